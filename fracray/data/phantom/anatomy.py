"""What a simulated limb is made of: bones, flat bones and soft tissue, as shapes.

Pure geometry in pixels, x to the right and y downwards; knows nothing of body regions, X-rays, fractures or files.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

Point = tuple[float, float]


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


@dataclass(frozen=True)
class Strip:
    """A curved or flat bone drawn along a line: a rib, the rim of the pelvis."""

    points: tuple[Point, ...]
    radius: float
    density: float = 1.0


@dataclass(frozen=True)
class Plate:
    """A thin flat bone seen face on: the blade of the scapula, the wing of the ilium."""

    points: tuple[Point, ...]
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

    bones: tuple[Bone, ...]
    tissues: tuple[Tissue, ...]
    strips: tuple[Strip, ...] = ()
    plates: tuple[Plate, ...] = ()

    def __add__(self, other: "Anatomy") -> "Anatomy":
        return Anatomy(
            self.bones + other.bones,
            self.tissues + other.tissues,
            self.strips + other.strips,
            self.plates + other.plates,
        )

    def placed(self, matrix: np.ndarray) -> "Anatomy":
        """The same under a similarity, a 2 x 3 matrix; a mirrored one bends the bones the other way."""
        determinant = float(np.linalg.det(matrix[:, :2]))
        scale, side = abs(determinant) ** 0.5, float(np.sign(determinant))

        def move(points: Sequence[Point]) -> tuple[Point, ...]:
            return tuple((float(x), float(y)) for x, y in np.asarray(points) @ matrix[:, :2].T + matrix[:, 2])

        def bone(b: Bone) -> Bone:
            start, stop = move((b.start, b.stop))
            ends = (b.ends[0] * scale, b.ends[1] * scale)
            sizes = {"radius": b.radius * scale, "flare": b.flare * scale, "bow": b.bow * scale * side}
            return replace(b, start=start, stop=stop, ends=ends, **sizes)

        return Anatomy(
            tuple(bone(b) for b in self.bones),
            tuple(
                replace(t, points=move(t.points), widths=tuple(w * scale for w in t.widths), depth=t.depth * scale)
                for t in self.tissues
            ),
            tuple(replace(s, points=move(s.points), radius=s.radius * scale) for s in self.strips),
            tuple(replace(p, points=move(p.points)) for p in self.plates),
        )
