"""What a section of a report is made of: text, tables, charts with their words, intervals as pictures.

Everything is escaped as it is put together. Knows nothing of runs.
"""

import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

from markupsafe import Markup, escape
from rich.console import Console

from fracray.metrics import Interval
from fracray.runtime.page import macros

Cell = str | Markup


@dataclass(frozen=True)
class Section:
    """One section: its anchor, its heading, one sentence on what it means, and its content."""

    name: str
    heading: str
    meaning: str
    body: Markup


def paragraph(words: Cell, kind: str = "") -> Markup:
    """A paragraph of one class."""
    named = Markup(' class="{}"').format(kind) if kind else Markup()
    return Markup("<p{}>{}</p>\n").format(named, words)


def heading(words: str) -> Markup:
    """A heading inside a section."""
    return Markup("<h3>{}</h3>\n").format(words)


def table(
    headings: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    numbers: Sequence[int] = (),
    kind: str = "",
    caption: str = "",
) -> Markup:
    """A table; `numbers`: the columns of figures, which stand to the right. The first cell of a row is its heading."""
    classes = [' class="number"' if at in numbers else "" for at in range(len(headings))]
    head = "".join(
        f'<th scope="col"{kind_}>{escape(words)}</th>' for words, kind_ in zip(headings, classes, strict=True)
    )
    lines = []
    for row in rows:
        first, *rest = row
        cells = "".join(f"<td{kind_}>{escape(cell)}</td>" for cell, kind_ in zip(rest, classes[1:], strict=True))
        lines.append(f'<tr><th scope="row"{classes[0]}>{_breakable(first)}</th>{cells}</tr>')
    said = f'<caption class="unseen">{escape(caption)}</caption>' if caption else ""
    return Markup(
        f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(caption or headings[0] or "table")}">'
        f'<table class="data {escape(kind)}">{said}<thead><tr>{head}</tr></thead>\n<tbody>\n'
        + "\n".join(lines)
        + "\n</tbody></table></div>\n"
    )


def _breakable(words: Cell) -> Markup:
    """Words that may break inside the path of a setting, which is longer than a narrow screen has room for."""
    return Markup(re.sub(r"\.(?=[a-z_])", ".<wbr>", escape(words)))


def chart(title: str, svg: Markup, words: Cell) -> Markup:
    """A chart with its title above and what it shows below."""
    return Markup(
        '<figure class="chart-box"><figcaption class="title">{}</figcaption>{}<p class="soft">{}</p></figure>\n'
    ).format(title, svg, words)


def charts(boxes: Iterable[Markup]) -> Markup:
    """Charts side by side, as many as there is room for."""
    return Markup('<div class="charts">\n{}</div>\n').format(Markup("").join(boxes))


def key(kind: str, words: str) -> Markup:
    """A word of a legend, with its colour."""
    return Markup('<span class="key-{}"><i class="swatch" aria-hidden="true"></i>{}</span>').format(kind, words)


def folded(summary: str, inside: Markup) -> Markup:
    """What is shown only when it is asked for."""
    return Markup("<details><summary>{}</summary>\n{}</details>\n").format(summary, inside)


def interval_picture(found: Interval, low: float, high: float, mark: float | None = None) -> Markup:
    """A value with its interval as a small picture from `low` to `high`; the words beside it say the same."""
    if isnan(found.value):
        return Markup("")
    return Markup(macros().interval(found.value, found.low, found.high, low, high, mark)).strip()


def share_picture(share: float, mark: float | None = None) -> Markup:
    """A share, 0 to 1, as a bar, with a mark for what it is compared with."""
    drawn = f'<rect class="fill" x="0" y="3" width="{160 * min(1.0, max(0.0, share)):.1f}" height="10"/>'
    if mark is not None:
        drawn += f'<path class="mark" d="M{160 * min(1.0, max(0.0, mark)):.1f} 0v16"/>'
    return Markup(f'<svg class="range" viewBox="0 0 160 16" aria-hidden="true">{drawn}</svg>')


def score(value: float | None, places: int = 3) -> str:
    """A score with three decimals; a dash where there is none."""
    return "–" if value is None or isnan(value) else f"{value:.{places}f}"


def with_interval(found: Interval, places: int = 3) -> str:
    """'0.876 [0.801, 0.930]', or the value alone."""
    if isnan(found.low):
        return score(found.value, places)
    return f"{found.value:.{places}f} [{found.low:.{places}f}, {found.high:.{places}f}]"


def said(say: Callable[..., None], *about: Any) -> list[str]:
    """The lines that a function of the console prints: what a report says is what the commands say."""
    out = io.StringIO()
    say(Console(file=out, width=10_000, color_system=None, highlight=False, markup=False, emoji=False), *about)
    return [line.strip() for line in out.getvalue().splitlines() if line.strip()]


def warnings(lines: Iterable[str]) -> Markup:
    """Each line as a note that is seen at once."""
    return Markup("").join(
        Markup('<p class="verdict look">{}</p>\n').format(line[:1].upper() + line[1:]) for line in lines
    )
