"""Anatomy in the beam: the thickness of bone, tissue, plaster and metal that each ray crosses, and breaks in the bone.

Knows geometry and attenuation; nothing of devices, labels or files. Maps are (H, W) float32 line integrals:
thickness in pixels times a linear attenuation per pixel, which add up along a ray (Beer-Lambert).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

from fracray.data.phantom.anatomy import Bone, FlatBone, Point, Tissue

CORTICAL, SPONGY, MUSCLE, PLASTER = 0.042, 0.013, 0.0105, 0.024  # attenuation per pixel
HALF = 2  # soft tissue is smooth: it is drawn at half size


@dataclass(frozen=True)
class Break:
    """A fracture of one bone, in the bone's own coordinates (along its axis, across it), in pixels.

    `at` is the distance from the proximal end; `slope` and `pitch` shape the line, `jag` its teeth; `gap` is its
    half-width and `depth` the share of attenuation lost in it; `shift` and `apex` are the step between the fragments
    and the sideways bend at the break; `side` is the cortex that an incomplete hairline starts from, 0 in others.
    """

    at: float
    slope: float
    pitch: float
    gap: float
    depth: float
    shift: float
    apex: float
    jag: tuple[float, ...]
    side: int

    def line(self, across: np.ndarray, radius: float) -> np.ndarray:
        """Where along the bone the break lies, at each place across it."""
        run = np.clip(across / max(radius, 1.0), -1.0, 1.0)
        teeth = np.interp(run, np.linspace(-1, 1, len(self.jag)), self.jag)
        twist = self.pitch * radius * np.arcsin(0.98 * run)
        return (self.at + self.slope * across + twist + teeth).astype(np.float32)

    def outline(self, bone: Bone) -> np.ndarray:
        """(n, 2) float points of the picture that the break's line passes, on both fragments."""
        across = np.linspace(-1, 1, 9) * bone.radius
        places = list(zip(across, self.line(across, bone.radius).tolist(), strict=True))
        sides = ((self.gap * sign, self.apex + sign * self.shift / 2) for sign in (-1, 1))
        return np.array([bone.point(s + gap, u + step) for gap, step in sides for u, s in places])


def _half_widths(bone: Bone, s: np.ndarray, length: float, inset: float) -> tuple[np.ndarray, np.ndarray]:
    """The bone's half-width at distance `s` from its proximal end, ends capped; and the same less `inset` all round."""
    reach, ends = np.float32(max(bone.flare, 1.0)), ((s, bone.ends[0]), (np.float32(length) - s, bone.ends[1]))
    plain = np.full_like(s, bone.radius)
    for far, end in ends:
        plain += np.float32(end - bone.radius) * np.exp(-((np.maximum(far, 0) / reach) ** 2))
    insets = np.array([[0.0], [inset]], np.float32)
    both = np.repeat(plain[None], 2, axis=0)
    for far, end in ends:
        cap = min(0.75 * end, length / 2)
        short = np.minimum(np.maximum((cap + insets - far) / np.maximum(cap - insets, 1), 0), 1)
        both *= (1 - short ** np.float32(bone.square)) ** np.float32(1 / bone.square)
    outer, inner = np.maximum(both - insets, 0)
    return outer, inner


def paint_bone(canvas: np.ndarray, bone: Bone, texture: np.ndarray, physis: float, fracture: Break | None) -> None:
    """Add one bone's attenuation to the canvas, in place.

    texture: float32 around 1, larger than the picture's diagonal, the trabecular pattern; physis: depth, 0 to 1, of
    open growth plates.
    """
    height, width = canvas.shape
    length, (along, across) = bone.length, bone.axes
    spare = abs(bone.bow) + (abs(fracture.shift) + abs(fracture.apex) if fracture else 0.0) + 3
    reach = max(*bone.ends, bone.radius) + spare
    # Only the part that lies on the canvas is drawn: shafts extend far out of the picture.
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
    outer, inner = _half_widths(bone, s, length, 0.3 * cortex)
    shell = cortex * (0.3 + 0.7 * np.minimum(np.maximum(near_end, 0), 1))
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
        solid = outer_square - square
        hollow = np.subtract(inner_square, square, out=square)
        for part in (solid, hollow):
            np.maximum(part, 0, out=part)
            np.sqrt(part, out=part)
        solid *= np.float32(2 * CORTICAL)
        hollow *= grain
        solid += hollow
        return solid

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
        if fracture.side:
            # An incomplete crack fades before it reaches the far cortex.
            lost *= np.clip(0.9 + fracture.side * local / bone.radius, 0, 1)
        patch = chords(bow) * (1 - lost)
    for end in (s, length - s) if physis else ():
        plate = np.exp(-(((end - 1.15 * bone.radius) / 1.3) ** 2)) * physis
        patch = patch * (1 - plate[:, None].astype(np.float32))

    corner = bone.start + low * along - half * across
    ends = np.array([corner, corner + (high - low) * along, corner + 2 * half * across])
    ends = np.vstack([ends, ends[1] + ends[2] - ends[0]])
    x0, y0 = np.clip(np.floor(ends.min(0)).astype(int) - 1, 0, (width, height))
    x1, y1 = np.clip(np.ceil(ends.max(0)).astype(int) + 2, 0, (width, height))
    if x1 > x0 and y1 > y0:
        matrix = np.column_stack([across, along, corner - (x0, y0)])
        canvas[y0:y1, x0:x1] += bone.density * cv2.warpAffine(
            patch.astype(np.float32), matrix, (int(x1 - x0), int(y1 - y0)), flags=cv2.INTER_LINEAR
        )


def sixteenths(points: Sequence[Point] | np.ndarray) -> np.ndarray:
    """Points as OpenCV draws them without rounding to pixels: int32, with a shift of 4."""
    return np.round(np.asarray(points) * 16).astype(np.int32)


def _outline(tissue: Tissue, canvas: np.ndarray, spare: float = 0.0) -> None:
    """Fill the tissue's tube, `spare` pixels wider, into a uint8 mask at half size."""
    points, widths = np.asarray(tissue.points) / HALF, [(w + spare) / HALF for w in tissue.widths]
    for (a, b), (wa, wb) in zip(pairwise(points), pairwise(widths), strict=True):
        normal = np.array([-(b - a)[1], (b - a)[0]]) / max(np.hypot(*(b - a)), 1e-6)
        corners = sixteenths([a + normal * wa, b + normal * wb, b - normal * wb, a - normal * wa])
        cv2.fillConvexPoly(canvas, corners, 255, cv2.LINE_8, 4)
    for centre, w in zip(points, widths, strict=True):
        cv2.circle(canvas, sixteenths(centre).tolist(), round(w * 16), 255, -1, cv2.LINE_8, 4)


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
                _outline(tissue, mask)
        total = np.maximum(total, _rounded(mask, depth))
    total = cv2.GaussianBlur(total, (7, 7), 1.6)
    total = total * (MUSCLE * (1 + 0.035 * cv2.resize(muscle, small[::-1], interpolation=cv2.INTER_CUBIC)))
    if plaster:
        inner, outer, depth = np.zeros(small, np.uint8), np.zeros(small, np.uint8), tissues[0].depth
        _outline(tissues[0], inner)
        _outline(tissues[0], outer, plaster)
        shell = np.maximum(_rounded(outer, depth + plaster) - _rounded(inner, depth), 0) + 0.5 * plaster * (outer > 0)
        # Wet bandage dries in ridges.
        ridges = 1 + 0.25 * cv2.resize(muscle[:, ::-1], small[::-1], interpolation=cv2.INTER_CUBIC)
        total = total + cv2.GaussianBlur(shell, (5, 5), 0.8) * ridges * PLASTER
    return cv2.resize(total, (width, height), interpolation=cv2.INTER_LINEAR)


def _smoothed(points: Sequence[Point], closed: bool) -> np.ndarray:
    """Sixteenths of pixels of the line with its corners cut twice (Chaikin, doi 10.1016/0146-664X(74)90028-8)."""
    line = np.asarray(points)
    for _ in range(2):
        following = np.roll(line, -1, axis=0)
        cut = np.stack([0.75 * line + 0.25 * following, 0.25 * line + 0.75 * following], axis=1).reshape(-1, 2)
        line = cut if closed else np.vstack([line[:1], cut[:-2], line[-1:]])
    return sixteenths(line)


def paint_flat_bones(shape: tuple[int, int], bones: Sequence[FlatBone]) -> np.ndarray:
    """(H, W) float32 attenuation of ribs, rims and blades."""
    total, layer = np.zeros(shape, np.float32), np.zeros(shape, np.uint8)
    for blade in (b for b in bones if not b.radius):
        points = _smoothed(blade.points, closed=True)
        layer[:] = 0
        cv2.fillPoly(layer, [points], 60, cv2.LINE_AA, 4)
        cv2.polylines(layer, [points], True, 105, 3, cv2.LINE_AA, 4)
        total += layer * np.float32(blade.density * 0.005)
    for density in sorted({b.density for b in bones if b.radius}):
        layer[:] = 0
        # A tube from concentric lines: bright cortex outside, darker medulla within.
        for share, value in ((1.0, 100), (0.78, 140), (0.5, 95), (0.25, 85)):
            for tube in (b for b in bones if b.radius and b.density == density):
                points, thickness = _smoothed(tube.points, closed=False), max(1, round(2 * share * tube.radius))
                cv2.polylines(layer, [points], False, value, thickness, cv2.LINE_AA, 4)
        total += layer * np.float32(density * 0.0035)
    return cv2.GaussianBlur(total, (0, 0), 1.0)


def paint_reaction(canvas: np.ndarray, bone: Bone, fracture: Break, callus: float, rng: np.random.Generator) -> None:
    """What forms around a break, in place: swelling, splinters where it is displaced, cloudy `callus` (0 to 1)."""
    r, (along, across) = bone.radius, bone.axes.astype(np.float32)
    x, y = bone.point(fracture.at, fracture.apex)
    x0, y0 = max(int(x) - int(5 * r), 0), max(int(y) - int(5 * r), 0)
    around = canvas[y0 : int(y) + int(5 * r), x0 : int(x) + int(5 * r)]
    height, width = around.shape
    dx = np.arange(x0, x0 + width, dtype=np.float32)[None, :] - np.float32(x)
    dy = np.arange(y0, y0 + height, dtype=np.float32)[:, None] - np.float32(y)
    s, u = ((axis[0] * dx + axis[1] * dy) / np.float32(r) for axis in (along, across))
    swelling = np.exp(-(s**2 + u**2) / np.float32(2 * 2.0**2)) * np.minimum(around * 4, 1)
    around += (2.4 * MUSCLE * r) * swelling
    if callus:
        cloud = cv2.resize(rng.random((9, 9), np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
        sleeve = np.exp(-(((np.abs(u) - 1.2) / 0.7) ** 2) - (s / np.float32(2.2)) ** 2)
        around += (callus * 1.7 * CORTICAL * r) * sleeve * (0.3 + cloud)
    if fracture.shift:
        layer = np.zeros(around.shape, np.uint8)
        for _ in range(int(rng.integers(3, 8))):
            at = fracture.at + rng.normal(0, 1.0) * r
            aside = fracture.apex + rng.choice((-1, 1)) * rng.uniform(0.7, 2.0) * r
            splinter = np.subtract(bone.point(at, aside), (x0, y0)) + rng.normal(0, 0.22 * r, (4, 2))
            cv2.fillConvexPoly(layer, cv2.convexHull(sixteenths(splinter)), 255, cv2.LINE_AA, 4)
        around += layer * np.float32(0.5 * CORTICAL * r / 255)


def paint_metal(canvas: np.ndarray, bone: Bone, at: float | None, rng: np.random.Generator) -> None:
    """Fix a bone, in place, with a plate and screws, a nail or a wire; around `at` pixels along it, or its middle."""
    length, r = bone.length, bone.radius
    centre = length / 2 if at is None else at
    span = min(rng.uniform(4.5, 9) * r, 0.42 * length)
    low, high = max(centre - span, 0.06 * length), min(centre + span, 0.94 * length)
    style, side = rng.choice(("plate", "nail", "wire"), p=(0.55, 0.3, 0.15)), rng.choice((-1, 1)) * r
    if style == "plate":
        screws = np.linspace(low + 0.5 * r, high - 0.5 * r, int(rng.integers(4, 8)))
        strokes = [((low, side), (high, side), 0.45 * r + 1)]
        strokes += [((s, side * 1.2), (s, -side * 1.05), max(1.5, 0.16 * r)) for s in screws]
    elif style == "nail":
        strokes = [((0.1 * length, 0), (0.9 * length, 0), 0.62 * r)]
        strokes += [((f * length, -1.3 * r), (f * length, 1.3 * r), max(1.5, 0.2 * r)) for f in (0.13, 0.18, 0.84)]
    else:
        strokes = [((low, turn * 0.9 * r), (high, -turn * 0.7 * r), 2) for turn in (-1, 1)]
    layer = np.zeros(canvas.shape, np.uint8)
    for start, stop, thickness in strokes:
        a, b = sixteenths([bone.point(*start), bone.point(*stop)]).tolist()
        cv2.line(layer, a, b, 255, max(1, round(thickness)), cv2.LINE_AA, 4)
    canvas += layer * np.float32(2.2 / 255)
