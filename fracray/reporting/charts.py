"""Charts as inline SVG that follow the page: light, dark and printed, from 400 px on.

Colours are classes, which the page's style sheet fills; places are rounded to a tenth of a unit. Drawn here, as the
audit's chart is, and not by Matplotlib: that takes 0.15 to 0.4 s of a CPU for each of some thirty charts, at the end of
every search, and its colours do not follow the page. Knows nothing of runs.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup, escape

WIDTH, HEIGHT = 380, 236  # units; at 400 px one is about a pixel
_TOP, _RIGHT, _BOTTOM = 22, 10, 38
_LETTER = 6.0  # the width of a character of 11 units, about
_TICKS = 5


@dataclass(frozen=True)
class Axis:
    """One axis: its words and its ends, linear or logarithmic, or with one place for each of `names`."""

    words: str
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    names: tuple[str, ...] = ()
    whole: bool = False

    @classmethod
    def over(cls, words: str, values: Iterable[float], log: bool = False, whole: bool = False) -> "Axis":
        """An axis that holds all finite values, with a little room at both ends."""
        known = [value for value in values if math.isfinite(value) and (value > 0 or not log)]
        low, high = (min(known), max(known)) if known else (1.0, 2.0) if log else (0.0, 1.0)
        if log:
            room = (high / low) ** 0.04 if high > low else 2.0
            return cls(words, low / room, high * room, log=True)
        room = (high - low) * 0.05 or abs(high) * 0.05 or 0.5
        return cls(words, low - room, high + room, whole=whole)

    @classmethod
    def without_outliers(cls, words: str, values: Iterable[float], kept: Iterable[float] = ()) -> "Axis":
        """As `over`, but a few values far from the others, such as losses before a divergence, do not stretch it.

        kept: values that it holds however far they are, such as the best one.
        """
        known = sorted(value for value in values if math.isfinite(value))
        if len(known) < 8:
            return cls.over(words, known)
        low, high = known[len(known) // 4], known[(3 * len(known)) // 4]
        reach = 4 * (high - low) or math.inf
        return cls.over(words, [*(value for value in known if low - reach <= value <= high + reach), *kept])

    @classmethod
    def of_names(cls, words: str, names: Sequence[str]) -> "Axis":
        """An axis with a place for each name: that of the first is 0."""
        return cls(words, -0.5, len(names) - 0.5, names=tuple(names))

    def place(self, value: float) -> float:
        """Where a value is, 0 to 1 from one end to the other; nan where it has no place."""
        if not math.isfinite(value) or (self.log and value <= 0):
            return math.nan
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[float, str]]:
        """Values with their words."""
        if self.names:
            return [(float(at), _short(name)) for at, name in enumerate(self.names)]
        values = _log_ticks(self.low, self.high) if self.log else _linear_ticks(self.low, self.high, self.whole)
        if self.log:
            return [(value, number(value)) for value in values]
        step = min((b - a for a, b in pairwise(values)), default=1.0)
        return [(value, number(value, step)) for value in values]


class Plot:
    """A chart of points, lines and bars on two axes; each part has one of the classes of `report.css`."""

    def __init__(self, x: Axis, y: Axis, height: int = HEIGHT) -> None:
        self.x, self.y, self._height = x, y, height
        self._marks: list[str] = []
        self._ticks = y.ticks()
        self._left = 12 + _LETTER * max((len(words) for _, words in self._ticks), default=0)

    def _at(self, x: float, y: float) -> tuple[float, float] | None:
        across, up = self.x.place(x), self.y.place(y)
        if math.isnan(across) or math.isnan(up):
            return None
        across, up = min(1.0, max(0.0, across)), min(1.0, max(0.0, up))  # what lies beyond is drawn at the edge
        return self._left + across * (WIDTH - _RIGHT - self._left), self._base - up * (self._base - _TOP)

    @property
    def _base(self) -> float:
        return self._height - _BOTTOM

    def dots(self, x: Sequence[float], y: Sequence[float], kind: str) -> None:
        """Round dots, all as one path."""
        found = [place for point in zip(x, y, strict=True) if (place := self._at(*point)) is not None]
        if found:
            path = "".join(f"M{across:.1f} {up:.1f}h0" for across, up in found)
            self._marks.append(f'<path class="dots {kind}" d="{path}"/>')

    def line(self, x: Sequence[float], y: Sequence[float], kind: str) -> None:
        """A line through the points, with a gap where a value is missing."""
        self.lines([(x, y)], kind)

    def lines(self, each: Iterable[tuple[Sequence[float], Sequence[float]]], kind: str) -> None:
        """Many lines of one class, as one path."""
        path = "".join(self._path(x, y) for x, y in each)
        if path:
            self._marks.append(f'<path class="curve {kind}" d="{path}"/>')

    def _path(self, x: Sequence[float], y: Sequence[float]) -> str:
        parts, pen = [], "M"
        for point in zip(x, y, strict=True):
            place = self._at(*point)
            if place is None:
                pen = "M"
                continue
            parts.append(f"{pen}{place[0]:.1f} {place[1]:.1f}")
            pen = "L"
        return "".join(parts)

    def steps(self, x: Sequence[float], y: Sequence[float], kind: str) -> None:
        """A line that keeps its height until the next point."""
        pairs = list(zip(x, y, strict=True))
        turned = [point for (_, before), (at, now) in pairwise(pairs) for point in ((at, before), (at, now))]
        both = [*pairs[:1], *turned]
        self.line([point[0] for point in both], [point[1] for point in both], kind)

    def band(self, x: Sequence[float], low: Sequence[float], high: Sequence[float], kind: str) -> None:
        """The area between two lines."""
        there = [place for point in zip(x, low, strict=True) if (place := self._at(*point)) is not None]
        back = [place for point in zip(x, high, strict=True) if (place := self._at(*point)) is not None]
        if there:
            path = "L".join(f"{across:.1f} {up:.1f}" for across, up in (*there, *reversed(back)))
            self._marks.append(f'<path class="area {kind}" d="M{path}z"/>')

    def bar(self, left: float, right: float, low: float, high: float, kind: str) -> None:
        """A rectangle between two values of each axis."""
        corner, other = self._at(left, high), self._at(right, low)
        if corner is not None and other is not None:
            width, height = max(0.5, other[0] - corner[0]), max(0.0, other[1] - corner[1])
            self._marks.append(
                f'<rect class="{kind}" x="{corner[0]:.1f}" y="{corner[1]:.1f}" width="{width:.1f}" '
                f'height="{height:.1f}"/>'
            )

    def across(self, y: float, kind: str) -> None:
        """A line from the left to the right."""
        self.line([self.x.low, self.x.high], [y, y], kind)

    def upright(self, x: float, kind: str) -> None:
        """A line from the bottom to the top."""
        self.line([x, x], [self.y.low, self.y.high], kind)

    def svg(self, label: str) -> Markup:
        """The chart; `label` is what a screen reader says in its place."""
        parts = [f'<svg class="plot" viewBox="0 0 {WIDTH} {self._height}" role="img" aria-label="{escape(label)}">']
        for value, words in self._ticks:
            if (place := self._at(self.x.low, value)) is not None:
                up = f"{place[1]:.1f}"
                parts.append(f'<path class="grid" d="M{self._left:.1f} {up}H{WIDTH - _RIGHT}"/>')
                parts.append(_words(self._left - 6, place[1] + 4, words, "end"))
        parts += self._below()
        parts += self._marks
        parts.append(f'<path class="frame" d="M{self._left:.1f} {_TOP}V{self._base}H{WIDTH - _RIGHT}"/>')
        parts.append(_words(2, 12, self.y.words, "start", "words"))
        parts.append(_words((self._left + WIDTH - _RIGHT) / 2, self._height - 5, self.x.words, "middle", "words"))
        parts.append("</svg>")
        return Markup("".join(parts))

    def _below(self) -> list[str]:
        """The words of the x axis, without those that would run into the one before."""
        parts, free = [], -math.inf
        for value, words in self.x.ticks():
            if (place := self._at(value, self.y.low)) is None:
                continue
            half = len(words) * _LETTER / 2
            middle = min(max(place[0], half), WIDTH - half)
            parts.append(f'<path class="tick" d="M{place[0]:.1f} {self._base}v4"/>')
            if middle - half < free:
                continue
            free = middle + half + _LETTER
            parts.append(_words(middle, self._base + 17, words, "middle"))
        return parts


def _words(x: float, y: float, words: str, anchor: str, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _short(name: str) -> str:
    return name if len(name) <= 22 else f"{name[:10]}…{name[-11:]}"


def number(value: float, step: float = 0.0) -> str:
    """A number in few characters; `step`: the distance to the next one, which it shall differ from."""
    if value == 0:
        return "0"
    if abs(value) >= 1000 and value == round(value) and abs(value) < 1e6:
        return f"{value:,.0f}"
    if not 1e-3 <= abs(value) < 1e5:
        digits, _, power = f"{value:.1e}".partition("e")
        return f"{digits.removesuffix('.0')}e{int(power)}"
    if step:
        decimals = next((places for places in range(6) if abs(round(step, places) - step) < step * 1e-6), 6)
        return f"{value:.{decimals}f}"
    return f"{value:.4g}"


def _linear_ticks(low: float, high: float, whole: bool) -> list[float]:
    """Round values from low to high, about _TICKS of them."""
    raw = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    if whole:
        step = max(1.0, math.ceil(step))
    first = math.ceil(low / step - 1e-9)
    return [round(place * step, 10) for place in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, with values between them where there are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 4, 5, 6, 7, 8, 9)):
        found = [factor * 10.0**power for power in powers for factor in factors]
        found = [value for value in found if low <= value <= high]
        if len(found) >= 3:
            break
    return [float(f"{value:.1g}") for value in found[:: math.ceil(len(found) / 8)]] or [math.sqrt(low * high)]
