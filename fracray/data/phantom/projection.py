"""Anatomy in the beam: the thickness of bone, tissue, plaster and metal that each ray crosses, and breaks in the bone.

Knows geometry and attenuation; nothing of devices, labels or files. Maps are (H, W) float32 line integrals:
thickness in pixels times a linear attenuation per pixel, which add up along a ray (Beer-Lambert).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

from fracray.data.phantom.anatomy import Bone, Plate, Point, Strip, Tissue

CORTICAL = 0.042  # attenuation per pixel of cortical bone, spongy bone, muscle, plaster
SPONGY = 0.013
MUSCLE = 0.0105
PLASTER = 0.024
HALF = 2  # soft tissue is smooth: it is drawn at half size


@dataclass(frozen=True)
class Break:
    """A fracture of one bone, in the bone's own coordinates (along its axis, across it), in pixels.

    `kind` is transverse, oblique, spiral or hairline; `at` the distance from the proximal end; `slope` and `pitch`
    shape the line, `jag` its teeth; `gap` is its half-width and `depth` the share of attenuation lost in it; `shift`
    and `apex` are the step between the fragments and the sideways bend at the break; `side` the cortex that an
    incomplete hairline starts from.
    """

    kind: str
    at: float
    slope: float
    pitch: float
    gap: float
    depth: float
    shift: float
    apex: float
    side: int
    jag: tuple[float, ...]

    def line(self, across: np.ndarray, radius: float) -> np.ndarray:
        """Where along the bone the break lies, at each place across it."""
        run = np.clip(across / max(radius, 1.0), -1.0, 1.0)
        teeth = np.interp(run, np.linspace(-1, 1, len(self.jag)), self.jag)
        twist = self.pitch * radius * np.arcsin(0.98 * run)
        return (self.at + self.slope * across + twist + teeth).astype(np.float32)


def _frame(bone: Bone) -> tuple[float, np.ndarray, np.ndarray]:
    """Length, unit vector along, unit vector across."""
    along = np.subtract(bone.stop, bone.start)
    length = float(np.hypot(*along))
    along = along / length
    return length, along, np.array([-along[1], along[0]])


def _half_widths(bone: Bone, s: np.ndarray, length: float, inset: float) -> tuple[np.ndarray, np.ndarray]:
    """The bone's half-width at distance `s` from its proximal end, ends capped; and the same less `inset` all round."""
    reach = np.float32(max(bone.flare, 1.0))
    back = np.float32(length) - s
    plain = np.full_like(s, bone.radius)
    plain += np.float32(bone.ends[0] - bone.radius) * np.exp(-((np.maximum(s, 0) / reach) ** 2))
    plain += np.float32(bone.ends[1] - bone.radius) * np.exp(-((np.maximum(back, 0) / reach) ** 2))
    insets = np.array([[0.0], [inset]], np.float32)
    both = np.repeat(plain[None], 2, axis=0)
    for far, end in ((s, bone.ends[0]), (back, bone.ends[1])):
        cap = min(0.75 * end, length / 2)
        short = (cap + insets - far) / np.maximum(cap - insets, 1)
        np.maximum(short, 0, out=short)
        np.minimum(short, 1, out=short)
        both *= (1 - short ** np.float32(bone.square)) ** np.float32(1 / bone.square)
    both -= insets
    np.maximum(both, 0, out=both)
    return both[0], both[1]


def paint_bone(canvas: np.ndarray, bone: Bone, texture: np.ndarray, physis: float, fracture: Break | None) -> None:
    """Add one bone's attenuation to the canvas, in place.

    texture: float32 around 1, larger than the picture's diagonal, the trabecular pattern; physis: depth, 0 to 1, of
    open growth plates.
    """
    height, width = canvas.shape
    length, along, across = _frame(bone)
    spare = abs(bone.bow) + (abs(fracture.shift) + abs(fracture.apex) if fracture else 0.0) + 3
    reach = max(*bone.ends, bone.radius) + spare
    # Only the stretch that lies on the canvas is drawn: shafts run far out of the picture.
    first, last = -2.0, length + 3
    for origin, step, size in zip(bone.start, along, (width, height), strict=True):
        pace = step if abs(step) > 1e-6 else 1e-6
        inside = sorted(((-reach - origin) / pace, (size + reach - origin) / pace))
        first, last = max(first, inside[0]), min(last, inside[1])
    low, high = int(first), int(last)
    if high - low < 2:
        return
    s = np.arange(low, high, dtype=np.float32)

    cortex = bone.cortex * bone.radius
    # The cortex thins towards the spongy ends.
    near_end = np.minimum(s, np.float32(length) - s) / np.float32(2.2 * max(bone.flare, 1.0))
    shell = cortex * (0.3 + 0.7 * np.minimum(np.maximum(near_end, 0), 1))
    outer, inner = _half_widths(bone, s, length, 0.3 * cortex)
    inner = np.minimum(inner, np.maximum(outer - shell, 0))
    bow = np.float32(bone.bow) * (1 - (s * np.float32(2 / length) - 1) ** 2)
    half = int(np.ceil(outer.max() + spare))
    u = np.arange(-half, half + 1, dtype=np.float32)[None, :]
    outer_square, inner_square = (outer**2)[:, None], (inner**2)[:, None]

    # What a pixel of medulla adds in place of cortex, with the pattern of its trabeculae.
    grain = 2 * (SPONGY * texture[: high - low, : 2 * half + 1] - CORTICAL)

    def chords(offset: np.ndarray) -> np.ndarray:
        square = u - offset[:, None]
        np.square(square, out=square)
        whole = outer_square - square
        np.maximum(whole, 0, out=whole)
        np.sqrt(whole, out=whole)
        hollow = np.subtract(inner_square, square, out=square)
        np.maximum(hollow, 0, out=hollow)
        np.sqrt(hollow, out=hollow)
        whole *= np.float32(2 * CORTICAL)
        hollow *= grain
        whole += hollow
        return whole

    if fracture is None:
        patch = chords(bow)
    elif fracture.shift or fracture.apex:
        # Both ends stay in their joints; each fragment tilts so that they meet, or miss, at the break.
        near = bow + (fracture.apex - fracture.shift / 2) * s / fracture.at
        far = bow + (fracture.apex + fracture.shift / 2) * (length - s) / (length - fracture.at)
        patch = np.zeros((len(s), u.size), np.float32)
        for offset, sign in ((near, 1.0), (far, -1.0)):
            line = fracture.line(u - offset[:, None], bone.radius)
            patch = patch + chords(offset) * np.clip(sign * (line - s[:, None]) - fracture.gap + 0.5, 0, 1)
    else:
        local = u - bow[:, None]
        distance = (s[:, None] - fracture.line(local, bone.radius)) / np.hypot(1.0, fracture.slope + fracture.pitch)
        lost = fracture.depth * np.exp(-((distance / fracture.gap) ** 2))
        if fracture.kind == "hairline":
            # An incomplete crack fades before it reaches the far cortex.
            lost *= np.clip(0.9 + fracture.side * local / bone.radius, 0, 1)
        patch = chords(bow) * (1 - lost)
    if physis:
        for far in (s, length - s):
            plate = np.exp(-(((far - 1.15 * bone.radius) / 1.3) ** 2)) * physis
            patch = patch * (1 - plate[:, None].astype(np.float32))

    corner = bone.start + low * along - half * across
    ends = np.array([corner, corner + (high - low) * along, corner + 2 * half * across])
    ends = np.vstack([ends, ends[1] + ends[2] - ends[0]])
    x0, y0 = np.clip(np.floor(ends.min(0)).astype(int) - 1, 0, (width, height))
    x1, y1 = np.clip(np.ceil(ends.max(0)).astype(int) + 2, 0, (width, height))
    if x1 <= x0 or y1 <= y0:
        return
    matrix = np.column_stack([across, along, corner - (x0, y0)])
    warped = cv2.warpAffine(patch.astype(np.float32), matrix, (int(x1 - x0), int(y1 - y0)), flags=cv2.INTER_LINEAR)
    canvas[y0:y1, x0:x1] += bone.density * warped


def on_bone(bone: Bone, along: float, across: float = 0.0) -> Point:
    """The picture's point at a distance along the bone's (bent) axis and across it, in pixels."""
    length, forward, sideways = _frame(bone)
    bow = bone.bow * (1 - (2 * along / length - 1) ** 2)
    x, y = np.asarray(bone.start) + along * forward + (across + bow) * sideways
    return float(x), float(y)


def bone_length(bone: Bone) -> float:
    return _frame(bone)[0]


def break_outline(bone: Bone, fracture: Break) -> np.ndarray:
    """(n, 2) float points of the picture that the break's line passes, on both fragments."""
    across = np.linspace(-1, 1, 9) * bone.radius
    points = []
    for sign in (-1, 1):
        for u, s in zip(across, fracture.line(across, bone.radius), strict=True):
            points.append(on_bone(bone, float(s) + sign * fracture.gap, u + fracture.apex + sign * fracture.shift / 2))
    return np.array(points)


def _smoothed(points: Sequence[Point], closed: bool) -> np.ndarray:
    """Sixteenths of pixels of the line with its corners cut twice (Chaikin, doi 10.1016/0146-664X(74)90028-8)."""
    line = np.asarray(points)
    for _ in range(2):
        following = np.roll(line, -1, axis=0)
        cut = np.stack([0.75 * line + 0.25 * following, 0.25 * line + 0.75 * following], axis=1).reshape(-1, 2)
        line = cut if closed else np.vstack([line[:1], cut[:-2], line[-1:]])
    return np.round(line * 16).astype(np.int32)


def _outline(points: Sequence[Point], widths: Sequence[float], canvas: np.ndarray) -> None:
    """Fill a tube of varying width into a uint8 mask at half size."""
    p = np.asarray(points) / HALF
    for (a, b), (wa, wb) in zip(pairwise(p), pairwise(widths), strict=True):
        normal = np.array([-(b - a)[1], (b - a)[0]]) / max(np.hypot(*(b - a)), 1e-6)
        corners = np.array(
            [a + normal * wa / HALF, b + normal * wb / HALF, b - normal * wb / HALF, a - normal * wa / HALF]
        )
        cv2.fillConvexPoly(canvas, np.round(corners * 16).astype(np.int32), 255, cv2.LINE_8, 4)
    for centre, w in zip(p, widths, strict=True):
        cv2.circle(canvas, np.round(centre * 16).astype(int).tolist(), round(w / HALF * 16), 255, -1, cv2.LINE_8, 4)


def _rounded(mask: np.ndarray, depth: float) -> np.ndarray:
    """Thickness of a body whose silhouette is the mask: an ellipse at its edge, flat beyond `depth` pixels inside."""
    inside = np.minimum(cv2.distanceTransform(mask, cv2.DIST_L2, 3) * HALF, depth)
    return 2 * np.sqrt(inside * (2 * depth - inside))


def paint_tissue(shape: tuple[int, int], tissues: Sequence[Tissue], muscle: np.ndarray, plaster: float) -> np.ndarray:
    """(H, W) float32 attenuation of the soft tissue and of a cast around the limb.

    muscle: a coarse float32 pattern of density; plaster: the cast's thickness in pixels, 0 for none.
    """
    height, width = shape
    small = (-(-height // HALF), -(-width // HALF))
    total: np.ndarray = np.zeros(small, np.float32)
    for depth in sorted({t.depth for t in tissues}):
        mask = np.zeros(small, np.uint8)
        for tissue in tissues:
            if tissue.depth == depth:
                _outline(tissue.points, tissue.widths, mask)
        total = np.maximum(total, _rounded(mask, depth))
    total = cv2.GaussianBlur(total, (7, 7), 1.6)
    total = total * (MUSCLE * (1 + 0.035 * cv2.resize(muscle, small[::-1], interpolation=cv2.INTER_CUBIC)))
    if plaster:
        first = tissues[0]
        inner, outer = np.zeros(small, np.uint8), np.zeros(small, np.uint8)
        _outline(first.points, first.widths, inner)
        _outline(first.points, [w + plaster for w in first.widths], outer)
        shell = _rounded(outer, first.depth + plaster) - _rounded(inner, first.depth)
        # Wet bandage dries in ridges.
        ridges = 1 + 0.25 * cv2.resize(muscle[:, ::-1], small[::-1], interpolation=cv2.INTER_CUBIC)
        total = (
            total + cv2.GaussianBlur(np.maximum(shell, 0) + 0.5 * plaster * (outer > 0), (5, 5), 0.8) * ridges * PLASTER
        )
    return cv2.resize(total, (width, height), interpolation=cv2.INTER_LINEAR)


def paint_flat_bones(shape: tuple[int, int], strips: Sequence[Strip], plates: Sequence[Plate]) -> np.ndarray:
    """(H, W) float32 attenuation of ribs, rims and blades."""
    total = np.zeros(shape, np.float32)
    layer = np.zeros(shape, np.uint8)
    for plate in plates:
        points = _smoothed(plate.points, closed=True)
        layer[:] = 0
        cv2.fillPoly(layer, [points], 60, cv2.LINE_AA, 4)
        cv2.polylines(layer, [points], True, 105, 3, cv2.LINE_AA, 4)
        total += layer * np.float32(plate.density * 0.005)
    for density in sorted({s.density for s in strips}):
        layer[:] = 0
        # A tube from concentric lines: bright cortex outside, darker medulla within.
        for share, value in ((1.0, 100), (0.78, 140), (0.5, 95), (0.25, 85)):
            for strip in (s for s in strips if s.density == density):
                points = _smoothed(strip.points, closed=False)
                cv2.polylines(layer, [points], False, value, max(1, round(2 * share * strip.radius)), cv2.LINE_AA, 4)
        total += layer * np.float32(density * 0.0035)
    return cv2.GaussianBlur(total, (0, 0), 1.0) if strips or plates else total


def paint_reaction(canvas: np.ndarray, bone: Bone, fracture: Break, callus: float, rng: np.random.Generator) -> None:
    """What gathers around a break, in place: swelling, splinters where it is displaced, cloudy `callus` (0 to 1)."""
    height, width = canvas.shape
    r = bone.radius
    x, y = on_bone(bone, fracture.at, fracture.apex)
    reach = int(5 * r)
    x0, x1 = max(int(x) - reach, 0), min(int(x) + reach, width)
    y0, y1 = max(int(y) - reach, 0), min(int(y) + reach, height)
    _, along, across = _frame(bone)
    dx = np.arange(x0, x1, dtype=np.float32)[None, :] - np.float32(x)
    dy = np.arange(y0, y1, dtype=np.float32)[:, None] - np.float32(y)
    s = (np.float32(along[0]) * dx + np.float32(along[1]) * dy) / np.float32(r)
    u = (np.float32(across[0]) * dx + np.float32(across[1]) * dy) / np.float32(r)
    around = canvas[y0:y1, x0:x1]
    swelling = np.exp(-(s**2 + u**2) / np.float32(2 * 2.0**2)) * np.minimum(around * 4, 1)
    around += (2.4 * MUSCLE * r) * swelling
    if callus:
        cloud = cv2.resize(rng.random((9, 9), np.float32), (x1 - x0, y1 - y0), interpolation=cv2.INTER_CUBIC)
        sleeve = np.exp(-(((np.abs(u) - 1.2) / 0.7) ** 2) - (s / np.float32(2.2)) ** 2)
        around += (callus * 1.7 * CORTICAL * r) * sleeve * (0.3 + cloud)
    if fracture.shift:
        layer = np.zeros(around.shape, np.uint8)
        for _ in range(int(rng.integers(3, 8))):
            at = on_bone(
                bone,
                fracture.at + rng.normal(0, 1.0) * r,
                fracture.apex + rng.choice((-1, 1)) * rng.uniform(0.7, 2.0) * r,
            )
            shape = np.subtract(at, (x0, y0)) + rng.normal(0, 0.22 * r, (4, 2))
            cv2.fillConvexPoly(layer, cv2.convexHull(np.round(shape * 16).astype(np.int32)), 255, cv2.LINE_AA, 4)
        around += layer * np.float32(0.5 * CORTICAL * r / 255)


def paint_metal(canvas: np.ndarray, bone: Bone, at: float | None, rng: np.random.Generator) -> None:
    """Fix a bone, in place, with a plate and screws, a nail or a wire; around `at` pixels along it, or its middle."""
    height, width = canvas.shape
    length = bone_length(bone)
    centre = length / 2 if at is None else at
    r = bone.radius
    span = min(rng.uniform(4.5, 9) * r, 0.42 * length)
    low, high = max(centre - span, 0.06 * length), min(centre + span, 0.94 * length)
    layer = np.zeros((height, width), np.uint8)

    def stroke(a: Point, b: Point, thickness: float) -> None:
        start, stop = ([round(c * 16) for c in p] for p in (a, b))
        cv2.line(layer, start, stop, 255, max(1, round(thickness)), cv2.LINE_AA, 4)

    style = rng.choice(("plate", "nail", "wire"), p=(0.55, 0.3, 0.15))
    side = rng.choice((-1, 1)) * r
    if style == "plate":
        stroke(on_bone(bone, low, side), on_bone(bone, high, side), 0.45 * r + 1)
        for s in np.linspace(low + 0.5 * r, high - 0.5 * r, int(rng.integers(4, 8))):
            stroke(on_bone(bone, s, side * 1.2), on_bone(bone, s, -side * 1.05), max(1.5, 0.16 * r))
    elif style == "nail":
        stroke(on_bone(bone, 0.1 * length), on_bone(bone, 0.9 * length), 0.62 * r)
        for s in (0.13 * length, 0.18 * length, 0.84 * length):
            stroke(on_bone(bone, s, -1.3 * r), on_bone(bone, s, 1.3 * r), max(1.5, 0.2 * r))
    else:
        for turn in (-1, 1):
            stroke(on_bone(bone, low, turn * 0.9 * r), on_bone(bone, high, -turn * 0.7 * r), 2)
    canvas += layer * np.float32(2.2 / 255)
