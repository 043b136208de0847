"""Corruptions of radiographs, simulated at severities 1 to 5.

Named and defined after MedMNIST-C (Di Salvo et al., arXiv 2406.17536; its parameters for ChestMNIST-C, the
radiographs, where it has them) and ImageNet-C (Hendrycks and Dietterich, ICLR 2019, arXiv 1903.12261), plus
faults of X-ray rooms that both lack. The result depends only on (seed, corruption, image key) and severity, not on
order or process. The draws (direction, corner, grain) of one image are the same at all severities, so that severities
differ only in their parameter. Knows nothing of labels or scores. Imports neither Torch nor Ray.

Lengths are shares of the image's side. What acts on pixels (noise, cells, blocks) is defined at a side of 224, as in
both sources, and scaled: a radiograph at 128 pixels looks as its corrupted 224-pixel version does when shrunk.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from fracray.data.images.letterbox import content, letterbox

SEVERITIES = (1, 2, 3, 4, 5)
REFERENCE = 224  # pixels a side at which the pixel-bound parameters are given

Values = tuple[float, float, float, float, float]
Effect = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Corruption:
    """One kind of fault: its name, what it imitates, its parameter at severities 1 to 5 and what that measures."""

    name: str
    words: str
    values: Values
    unit: str
    effect: Effect


def corrupt(image: np.ndarray, name: str, severity: int, seed: int, key: str) -> np.ndarray:
    """Corrupt one prepared radiograph; (S, S) uint8 in, a new (S, S) uint8 out.

    `name`: one of NAMES; `severity`: 1 to 5; `key`: what identifies the image, its image_id.
    """
    assert image.dtype == np.uint8, f"{image.dtype}"
    assert image.shape == (len(image), len(image)), f"{image.shape}"
    assert severity in SEVERITIES, f"severity {severity}"
    corruption = BY_NAME[name]
    # A counter-based generator (Salmon et al. 2011, doi 10.1145/2063384.2063405), keyed as the augmentation's is.
    bits = np.random.Philox(key=[seed, _number(name)], counter=[0, 0, _number(key), 0])
    return corruption.effect(image, corruption.values[severity - 1], np.random.Generator(bits))


def _number(text: str) -> int:
    """64 bits of a name, the same in every process, which Python's own hash is not."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


# ---- gray values -----------------------------------------------------------------------------------------------------


def _curve(image: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """A lookup table (256,) of gray values 0 to 255 over the picture; the border stays black."""
    out = image.copy()
    inside = content(image)
    out[inside] = cv2.LUT(np.ascontiguousarray(image[inside]), _to_gray(levels))
    return out


def _to_gray(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


_GRAYS = np.arange(256, dtype=np.float64)


def _expose(image: np.ndarray, value: float, rng: np.random.Generator) -> np.ndarray:
    # A detector's response to the logarithm of dose is S-shaped (Hurter and Driffield). Taken as logistic, a change of
    # dose multiplies the odds gray / (white - gray), and compresses at the toe or the shoulder instead of cutting off.
    odds = 2.0**-value
    return _curve(image, 255 * odds * _GRAYS / (odds * _GRAYS + 255 - _GRAYS))


def _gamma(image: np.ndarray, value: float, rng: np.random.Generator) -> np.ndarray:
    return _curve(image, 255 * (_GRAYS / 255) ** value)


def _contrast(image: np.ndarray, value: float, rng: np.random.Generator) -> np.ndarray:
    mean = image[content(image)].mean()
    return _curve(image, mean + value * (_GRAYS - mean))


def _invert(image: np.ndarray, value: float, rng: np.random.Generator) -> np.ndarray:
    return _curve(image, 255 - _GRAYS) if rng.random() < value else image.copy()


# ---- noise -----------------------------------------------------------------------------------------------------------


def _noisy(image: np.ndarray, noise: Callable[[np.ndarray, float], np.ndarray]) -> np.ndarray:
    """Add noise(x, scale), drawn for gray values x (n, n) float32 in 0..1 at n = min(S, REFERENCE) pixels a side.

    `scale` is n / REFERENCE: a pixel's noise falls with its side as that of an average over its area does. Beyond
    REFERENCE the grain keeps its size in the picture.
    """
    side = len(image)
    small = image if side <= REFERENCE else cv2.resize(image, (REFERENCE, REFERENCE), interpolation=cv2.INTER_AREA)
    added = noise(small.astype(np.float32) / 255, len(small) / REFERENCE)
    if len(small) != side:
        added = cv2.resize(added, (side, side), interpolation=cv2.INTER_CUBIC)
    out = image.copy()
    inside = content(image)
    out[inside] = _to_gray(image[inside] + 255 * added[inside])
    return out


def _shot_noise(image: np.ndarray, value: float, rng: np.random.Generator) -> np.ndarray:
    def noise(x: np.ndarray, scale: float) -> np.ndarray:
        photons = value / scale**2  # of a white pixel: a pixel of twice the side catches four times as many
        return (rng.poisson(photons * x) / photons - x).astype(np.float32)

    return _noisy(image, noise)


def _gaussian_noise(image: np.ndarray, value: float, rng: np.random.Generator) -> np.ndarray:
    return _noisy(image, lambda x, scale: rng.standard_normal(x.shape, np.float32) * np.float32(value * scale))


def _speckle_noise(image: np.ndarray, value: float, rng: np.random.Generator) -> np.ndarray:
    return _noisy(image, lambda x, scale: x * rng.standard_normal(x.shape, np.float32) * np.float32(value * scale))


# ---- sharpness and coding --------------------------------------------------------------------------------------------


def _blur(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Average the picture over offsets (n, 2) in pixels, each shared among its four neighbours."""
    reach = math.ceil(np.abs(points).max()) + 1
    side = 2 * reach + 1
    corner = np.floor(points).astype(int)
    part = points - corner
    kernel = np.zeros(side * side)
    for dx in (0, 1):
        for dy in (0, 1):
            share = np.abs(1 - dx - part[:, 0]) * np.abs(1 - dy - part[:, 1])
            cell = (corner[:, 1] + dy + reach) * side + corner[:, 0] + dx + reach
            kernel += np.bincount(cell, share, side * side)
    kernel = (kernel / kernel.sum()).reshape(side, side)
    out = image.copy()
    inside = content(image)
    # The picture alone, mirrored at its edges: it was blurred before it was letterboxed.
    out[inside] = cv2.filter2D(np.ascontiguousarray(image[inside]), -1, kernel, borderType=cv2.BORDER_REFLECT)
    return out


def _motion_blur(image: np.ndarray, value: float, rng: np.random.Generator) -> np.ndarray:
    angle = rng.uniform(0, math.pi)
    length = value * len(image)
    along = np.linspace(-length / 2, length / 2, 8 * math.ceil(length) + 1)
    return _blur(image, along[:, None] * np.array([math.cos(angle), math.sin(angle)]))


def _defocus_blur(image: np.ndarray, value: float, rng: np.random.Generator) -> np.ndarray:
    radius = value * len(image)
    axis = np.linspace(-radius, radius, 2 * math.ceil(4 * radius) + 1)
    disc = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    return _blur(image, disc[(disc**2).sum(1) <= radius**2 * (1 + 1e-9)])


def _pixelate(image: np.ndarray, value: float, rng: np.random.Generator) -> np.ndarray:
    cells = round(value * REFERENCE)
    side = len(image)
    if cells >= side:
        return image.copy()  # coarser than its cells already
    small = cv2.resize(image, (cells, cells), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (side, side), interpolation=cv2.INTER_NEAREST_EXACT)


def _jpeg(image: np.ndarray, value: float, rng: np.random.Generator) -> np.ndarray:
    side = len(image)
    if side == REFERENCE:
        return _coded(image, round(value))
    # Only what the coding changes is carried back, so that resizing alone changes nothing.
    large = cv2.resize(image, (REFERENCE, REFERENCE), interpolation=_interpolation(side, REFERENCE))
    change = _coded(large, round(value)).astype(np.float32) - large
    return _to_gray(image + cv2.resize(change, (side, side), interpolation=_interpolation(REFERENCE, side)))


def _coded(image: np.ndarray, quality: int) -> np.ndarray:
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)
    assert decoded is not None
    return decoded


def _interpolation(before: int, after: int) -> int:
    return cv2.INTER_AREA if after < before else cv2.INTER_LINEAR


# ---- positioning and field -------------------------------------------------------------------------------------------


def _warp(image: np.ndarray, angle: float = 0.0, scale: float = 1.0, move: tuple[float, float] = (0, 0)) -> np.ndarray:
    """Turn (degrees, counter-clockwise), scale and move (pixels) about the middle; outside is black."""
    side = len(image)
    matrix = cv2.getRotationMatrix2D(((side - 1) / 2, (side - 1) / 2), angle, scale)
    matrix[:, 2] += np.array(move)
    source = image
    if scale < 1:
        # Shrinking averages, as preparing does; a bare warp would skip pixels and add sharpness.
        small = max(1, round(side * scale))
        source = cv2.resize(image, (small, small), interpolation=cv2.INTER_AREA)
        ratio = small / side
        matrix = matrix @ np.array(
            [[1 / ratio, 0, (1 / ratio - 1) / 2], [0, 1 / ratio, (1 / ratio - 1) / 2], [0, 0, 1]]
        )
    return cv2.warpAffine(source, matrix, (side, side), flags=cv2.INTER_LINEAR)


def _sign(rng: np.random.Generator) -> int:
    return 1 if rng.random() < 0.5 else -1


def _rotate(image: np.ndarray, value: float, rng: np.random.Generator) -> np.ndarray:
    return _warp(image, angle=_sign(rng) * value)


def _translate(image: np.ndarray, value: float, rng: np.random.Generator) -> np.ndarray:
    angle = rng.uniform(0, 2 * math.pi)
    length = value * len(image)
    return _warp(image, move=(length * math.cos(angle), length * math.sin(angle)))


def _scale(image: np.ndarray, value: float, rng: np.random.Generator) -> np.ndarray:
    return _warp(image, scale=value)


def _collimate(image: np.ndarray, value: float, rng: np.random.Generator) -> np.ndarray:
    rows, columns = content(image)
    top, left = rows.start, columns.start
    height, width = rows.stop - top, columns.stop - left
    # The field lies off the middle by up to half of what the blades leave free, tilted by up to four degrees.
    aside, down, tilt = rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.5), rng.uniform(-4, 4)
    middle = (left + width / 2 + aside * (1 - value) * width / 2, top + height / 2 + down * (1 - value) * height / 2)
    corners = cv2.boxPoints((middle, (value * width, value * height), tilt))
    field = np.zeros_like(image)
    cv2.fillConvexPoly(field, np.rint((corners - 0.5) * 16).astype(np.int32), 255, cv2.LINE_AA, shift=4)
    # Blades lie above the patient, so their shadow has a soft edge.
    field = cv2.GaussianBlur(field, (0, 0), sigmaX=len(image) / REFERENCE)
    return _to_gray(image * (field.astype(np.float32) / 255))


@lru_cache(maxsize=2)
def _letter(letter: str) -> np.ndarray:
    """A lead letter, white on black, cropped to its size, larger than it is ever shown."""
    canvas = np.zeros((400, 400), np.uint8)
    cv2.putText(canvas, letter, (60, 340), cv2.FONT_HERSHEY_DUPLEX, 10, 255, 40, cv2.LINE_AA)
    x, y, width, height = cv2.boundingRect(canvas)
    return canvas[y : y + height, x : x + width]


def _mark(image: np.ndarray, value: float, rng: np.random.Generator) -> np.ndarray:
    lead = _letter("LR"[rng.integers(2)])
    below, right, tilt = rng.random() < 0.5, rng.random() < 0.5, rng.uniform(-12, 12)
    side = len(image)
    height = max(1, round(value * side))
    width = max(1, round(value * side * lead.shape[1] / lead.shape[0]))
    lead = cv2.resize(lead, (width, height), interpolation=cv2.INTER_AREA)
    rows, columns = content(image)
    aside, down = (rng.uniform(0.03, 0.08) * side + length / 2 for length in (width, height))
    x = columns.stop - 1 - aside if right else columns.start + aside
    y = rows.stop - 1 - down if below else rows.start + down
    middle = ((width - 1) / 2, (height - 1) / 2)
    matrix = cv2.getRotationMatrix2D(middle, tilt, 1.0)
    matrix[:, 2] += np.array([x - middle[0], y - middle[1]])
    return np.maximum(image, cv2.warpAffine(lead, matrix, (side, side), flags=cv2.INTER_LINEAR))


def _crop(image: np.ndarray, value: float, rng: np.random.Generator) -> np.ndarray:
    along, place = rng.integers(2), rng.uniform(0.25, 0.75)
    cut = list(content(image))
    length = cut[along].stop - cut[along].start
    kept = max(1, round(value * length))
    start = cut[along].start + round(place * (length - kept))
    cut[along] = slice(start, start + kept)
    return letterbox(np.ascontiguousarray(image[tuple(cut)]), len(image))


# ---- the table -------------------------------------------------------------------------------------------------------

CORRUPTIONS: tuple[Corruption, ...] = (
    # Severity 5 is a quarter or four times the dose. In the dark this is MedMNIST-C's brightness, a factor on the gray,
    # but white stays within bounds. ImageNet-C adds .1 to .5 of full scale, which leaves black where soft tissue was.
    Corruption("exposure_up", "more dose, darker", (0.4, 0.8, 1.2, 1.6, 2.0), "stops", _expose),
    Corruption("exposure_down", "less dose, paler", (-0.4, -0.8, -1.2, -1.6, -2.0), "stops", _expose),
    # ChestMNIST-C, gamma_corr_up and gamma_corr_down: x ** gamma.
    Corruption("gamma_corr_up", "curve, darker", (1.1, 1.2, 1.3, 1.4, 1.6), "exponent", _gamma),
    Corruption("gamma_corr_down", "curve, paler", (0.9, 0.8, 0.7, 0.6, 0.4), "exponent", _gamma),
    # ChestMNIST-C, contrast_up and contrast_down, about the mean of the picture (there: of the whole image).
    Corruption("contrast_up", "narrow window", (1.1, 1.2, 1.3, 1.4, 1.6), "factor", _contrast),
    Corruption("contrast_down", "wide window", (0.9, 0.8, 0.7, 0.6, 0.4), "factor", _contrast),
    # OrganAMNIST-C, shot_noise: photons of a white pixel at 224. ChestMNIST-C's 60 to 5 drown the bones of radiographs
    # that are darker than those of chests.
    Corruption("shot_noise", "quantum noise", (200, 100, 50, 25, 15), "photons", _shot_noise),
    # Half of ChestMNIST-C's gaussian_noise, for the same reason: standard deviation at 224.
    Corruption(
        "gaussian_noise", "electronic noise", (0.02, 0.04, 0.06, 0.09, 0.13), "share of full scale", _gaussian_noise
    ),
    # ChestMNIST-C, speckle_noise: standard deviation at 224.
    Corruption("speckle_noise", "speckle", (0.05, 0.15, 0.20, 0.35, 0.45), "share of the gray", _speckle_noise),
    # Not in ChestMNIST-C. ImageNet-C weighs the path by half a Gaussian of 3, 5, 8, 12 and 15 pixels of 224, at -45 to
    # 45 degrees (ImageMagick). Here a patient moves evenly, any way, over 3 to 15 pixels of 224: a path of 6 has the
    # spread of its 3, and more than 15 leaves no bone visible.
    Corruption("motion_blur", "patient moved", (0.015, 0.025, 0.035, 0.05, 0.065), "path, share of side", _motion_blur),
    # Not in ChestMNIST-C. ImageNet-C: discs of radius 3, 4, 6, 8, 10 pixels of 224, again too wide for bones.
    Corruption(
        "defocus_blur", "wide focal spot", (0.005, 0.008, 0.011, 0.015, 0.02), "radius, share of side", _defocus_blur
    ),
    # ChestMNIST-C, pixelate: cells a side, as a share of 224.
    Corruption("pixelate", "coarse copy", (0.30, 0.25, 0.20, 0.15, 0.10), "share of 224", _pixelate),
    # ChestMNIST-C, jpeg_compression.
    Corruption("jpeg_compression", "lossy archive", (50, 30, 15, 10, 7), "quality", _jpeg),
    # The rest is in neither source.
    Corruption("rotation", "turned limb", (5, 10, 20, 30, 45), "degrees", _rotate),
    Corruption("translation", "off centre", (0.04, 0.08, 0.12, 0.18, 0.25), "share of the side", _translate),
    Corruption("scale_up", "close-up", (1.1, 1.2, 1.35, 1.5, 1.8), "factor", _scale),
    Corruption("scale_down", "far field", (0.9, 0.8, 0.7, 0.6, 0.5), "factor", _scale),
    Corruption("collimation", "blades drawn in", (0.9, 0.8, 0.7, 0.6, 0.5), "share of each side", _collimate),
    # An image is inverted or not: the severity is the share of a set that arrives as MONOCHROME1. Each severity's
    # images are also inverted at the next.
    Corruption("inversion", "wrong polarity", (0.2, 0.4, 0.6, 0.8, 1.0), "share of the images", _invert),
    Corruption("side_marker", "lead letter", (0.04, 0.06, 0.08, 0.11, 0.15), "height, share of side", _mark),
    Corruption("letterboxed_crop", "cropped copy", (0.9, 0.8, 0.7, 0.6, 0.5), "share of one side", _crop),
)
BY_NAME = {corruption.name: corruption for corruption in CORRUPTIONS}
NAMES: tuple[str, ...] = tuple(BY_NAME)
