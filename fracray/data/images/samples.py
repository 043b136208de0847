"""From the samples of a picture, of any depth, to what a viewer shows: gray of 8 bits, transparent parts black.

Knows arrays only: nothing of files. Imports neither Torch nor Ray.
"""

import math
from typing import NamedTuple

import cv2
import numpy as np

from fracray.data.images.dicom_display import TAILS, stretch, tails

MAX_PIXELS = 80_000_000  # a 43 cm detector at 50 µm has 74 million
MAX_SIDE = 65_535  # px, JPEG's own limit
MAX_DECODED = 2**30  # bytes of one decoded picture
TOO_LARGE = f"header announces more than {MAX_PIXELS:,} pixels, or {MAX_SIDE:,} on a side: not decoded"
_BLOCK = 2**20  # px that are converted at once


class PictureError(ValueError):
    """A file without a usable picture: `fault` is 'truncated' or 'unreadable'; the message says why."""

    def __init__(self, fault: str, why: str) -> None:
        super().__init__(why)
        self.fault = fault


class Samples(NamedTuple):
    """The samples of a picture and what they mean: the arguments of `shown`."""

    samples: np.ndarray
    alpha: np.ndarray | None = None
    bits: int = 0
    inverted: bool = False
    premultiplied: bool = False


def said(error: Exception) -> str:
    """The words of a decoder's error on damaged bytes, for a note."""
    words = str(error).splitlines()[0] if str(error) else type(error).__name__
    # 'cannot identify image file <_io.BytesIO object at 0x7f...>'
    return "its header is damaged, or of an unknown version" if "object at 0x" in words else words


def check_size(width: int, height: int) -> None:
    """PictureError for a size, as announced by a file's header, that is not decoded."""
    if width < 1 or height < 1:
        raise PictureError("unreadable", "its header announces a picture without pixels")
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise PictureError("unreadable", TOO_LARGE)


def shown(
    samples: np.ndarray,
    alpha: np.ndarray | None = None,
    bits: int = 0,
    inverted: bool = False,
    premultiplied: bool = False,
) -> np.ndarray:
    """A picture as a viewer shows it: (H, W) uint8, over black.

    samples: (H, W) gray or (H, W, 3) RGB of any integer or float type; `bits` of them are in use (0: all). Up to 8 bits
    are shown as they are, deeper ones between the percentiles TAILS of their values, as in DICOM without a window:
    scanners fill 10 or 12 bits of 16. alpha: (H, W) uint8 or uint16, 0 where nothing is shown; None: all is.
    inverted: the highest value is black. premultiplied: the samples lie over black already. Transparent pixels and
    those that are not finite are black and are left out of the percentiles.
    """
    lit = None if alpha is None else alpha > 0
    if samples.dtype == bool:
        gray = _luma(samples * np.uint8(255))
    elif samples.dtype == np.uint8 and 0 < bits < 8:
        gray = _luma(np.rint(samples * np.float32(255 / (2**bits - 1))).astype(np.uint8))
    elif samples.dtype == np.int8:
        gray = _luma(samples.view(np.uint8) ^ 0x80)
    elif samples.dtype == np.uint8:
        gray = _luma(samples)
    elif samples.dtype == np.int16:
        gray = _stretched_words(_luma(samples.view(np.uint16) ^ 0x8000), lit)
    elif samples.dtype == np.uint16:
        gray = _stretched_words(_luma(samples), lit)
    else:
        with np.errstate(all="ignore"):
            values = samples if samples.ndim == 2 else _weighted(samples)
        finite = np.isfinite(values)
        lit = finite if lit is None else lit & finite
        gray = _stretched(values, lit)
    if inverted:
        gray = 255 - gray
    if lit is not None:
        gray[~lit] = 0
    return gray if alpha is None or premultiplied else over_black(gray, alpha)


def words_of(stored: Samples) -> tuple[np.ndarray, float, float] | None:
    """Opaque samples of 16 bits as gray, (H, W) uint16, and the values that `shown` makes black and white; else None.

    inverted is not applied.
    """
    samples, alpha, *_ = stored
    if samples.dtype not in (np.uint16, np.int16) or (alpha is not None and (alpha != np.iinfo(alpha.dtype).max).any()):
        return None
    gray = _luma(samples if samples.dtype == np.uint16 else samples.view(np.uint16) ^ 0x8000)
    return gray, *tails(np.arange(2**16), np.bincount(gray.ravel(), minlength=2**16))


def over_black(gray: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Gray (H, W) uint8 on a black ground, where it is as opaque as alpha, (H, W) uint8 or uint16, says."""
    most = np.iinfo(alpha.dtype).max
    if (alpha == most).all():
        return gray
    over = np.empty_like(gray)
    for rows in _blocks(gray):
        over[rows] = np.rint(gray[rows] * (alpha[rows] / np.float32(most))).astype(np.uint8)
    return over


def _luma(samples: np.ndarray) -> np.ndarray:
    """Gray of the same type; equal channels keep their value."""
    return samples if samples.ndim == 2 else cv2.cvtColor(np.ascontiguousarray(samples), cv2.COLOR_RGB2GRAY)


def _weighted(colours: np.ndarray) -> np.ndarray:
    """Gray of RGB of many values: (H, W) float64."""
    gray = np.empty(colours.shape[:2])
    for rows in _blocks(gray):
        red, green, blue = np.moveaxis(colours[rows].astype(np.float64), -1, 0)
        gray[rows] = 0.299 * red + 0.587 * green + 0.114 * blue
    return gray


def _stretched_words(gray: np.ndarray, lit: np.ndarray | None) -> np.ndarray:
    counts = np.bincount((gray if lit is None else gray[lit]).ravel(), minlength=2**16)
    display = stretch(np.arange(2**16), counts)
    return np.rint(np.clip(display, 0, 1) * 255).astype(np.uint8)[gray]


def _stretched(values: np.ndarray, lit: np.ndarray) -> np.ndarray:
    """As `stretch`, for values of which there are too many to count each."""
    gray = np.zeros(values.shape, np.uint8)
    seen = values[lit]
    if not len(seen):
        return gray
    ranks = [max(math.ceil(len(seen) * tail / 100) - 1, 0) for tail in TAILS]
    low, high = (float(value) for value in np.partition(seen, ranks)[ranks])
    if high <= low:
        low, high = float(seen.min()), float(seen.max())
    if high > low:
        for rows in _blocks(values):
            # Halves, because the difference of two large numbers may not be a number.
            display = (np.where(lit[rows], values[rows], low) / 2.0 - low / 2) / (high / 2 - low / 2)
            gray[rows] = np.rint(np.clip(display, 0, 1) * 255).astype(np.uint8)
    return gray


def _blocks(picture: np.ndarray) -> list[slice]:
    step = max(1, _BLOCK // picture.shape[1])
    return [slice(first, first + step) for first in range(0, len(picture), step)]
