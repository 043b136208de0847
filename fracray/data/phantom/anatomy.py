"""The parts of a simulated limb: bones, flat bones and soft tissue, as shapes.

Pure geometry in pixels, x to the right and y downwards; knows nothing of body regions, X-rays, fractures or files.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

Point = tuple[float, float]


def signed(rng: np.random.Generator, low: float, high: float) -> float:
    """A random size between low and high, with a random sign."""
    return float(rng.choice((-1, 1)) * rng.uniform(low, high))


@dataclass(frozen=True)
class Bone:
    """A tube of cortical bone around a medulla, from its proximal to its distal end.

    `radius` is the shaft's half-width, `ends` those of the two ends, `flare` the length over which an end tapers into
    the shaft, `bow` the bend of its middle, all in pixels; `cortex` is the cortex' share of the half-width, `square`
    the exponent of the end caps (2 round, 4 flat), `weight` the relative frequency of a fracture (0 never).
    """

    start: Point
    stop: Point
    radius: float
    ends: tuple[float, float]
    flare: float = 20.0
    cortex: float = 0.32
    bow: float = 0.0
    square: float = 2.6
    weight: float = 0.0
    density: float = 1.0

    @cached_property
    def length(self) -> float:
        return float(np.hypot(*np.subtract(self.stop, self.start)))

    @cached_property
    def axes(self) -> np.ndarray:
        """Unit vectors along and across the bone, (2, 2)."""
        along = np.subtract(self.stop, self.start) / self.length
        return np.array([along, [-along[1], along[0]]])

    def point(self, along: float, across: float = 0.0) -> Point:
        """The picture's point at a distance along the bone's (bent) axis and across it, in pixels."""
        forward, sideways = self.axes
        bow = self.bow * (1 - (2 * along / self.length - 1) ** 2)
        x, y = np.asarray(self.start) + along * forward + (across + bow) * sideways
        return float(x), float(y)


@dataclass(frozen=True)
class FlatBone:
    """A rib or rim along a line, `radius` thick; or, of radius 0, a blade (scapula, ilium) within an outline."""

    points: tuple[Point, ...]
    radius: float
    density: float = 1.0


@dataclass(frozen=True)
class Tissue:
    """Soft tissue around a line, with the half-width at each of its points; `depth` is its half-thickness."""

    points: tuple[Point, ...]
    widths: tuple[float, ...]
    depth: float


@dataclass(frozen=True)
class Anatomy:
    """Everything in the beam."""

    bones: tuple[Bone, ...] = ()
    tissues: tuple[Tissue, ...] = ()
    flat: tuple[FlatBone, ...] = ()

    def __add__(self, other: "Anatomy") -> "Anatomy":
        return Anatomy(self.bones + other.bones, self.tissues + other.tissues, self.flat + other.flat)

    def placed(self, matrix: np.ndarray) -> "Anatomy":
        """The same under a similarity, a 2 x 3 matrix; a mirrored one bends the bones the other way."""
        determinant = float(np.linalg.det(matrix[:, :2]))
        scale, side = abs(determinant) ** 0.5, float(np.sign(determinant))

        def move(points: Sequence[Point]) -> tuple[Point, ...]:
            return tuple((float(x), float(y)) for x, y in np.asarray(points) @ matrix[:, :2].T + matrix[:, 2])

        def bone(b: Bone) -> Bone:
            (start, stop), ends = move((b.start, b.stop)), (b.ends[0] * scale, b.ends[1] * scale)
            sizes = {"radius": b.radius * scale, "flare": b.flare * scale, "bow": b.bow * scale * side}
            return replace(b, start=start, stop=stop, ends=ends, **sizes)

        return Anatomy(
            tuple(map(bone, self.bones)),
            tuple(Tissue(move(t.points), tuple(w * scale for w in t.widths), t.depth * scale) for t in self.tissues),
            tuple(replace(f, points=move(f.points), radius=f.radius * scale) for f in self.flat),
        )
