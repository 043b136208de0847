"""Fits a radiograph into a square, and finds the part of a square that holds the picture.

Knows gray images and nothing else. Imports neither Torch nor Ray.
"""

import cv2
import numpy as np


def letterbox(image: np.ndarray, size: int, full: tuple[int, int] | None = None) -> np.ndarray:
    """Fit a gray image (H, W) uint8 into a (size, size) square, keeping its aspect, centred on black.

    Shrinking averages over areas, so that thin lines stay visible; enlarging is linear. full: width and height before
    the image was decoded at less than its scale, where the frame is to be that of these.
    """
    height, width = image.shape
    full_width, full_height = full or (width, height)
    rows, columns = frame(full_width, full_height, size)
    resized = cv2.resize(
        image,
        (columns.stop - columns.start, rows.stop - rows.start),
        interpolation=cv2.INTER_AREA if size < max(height, width) else cv2.INTER_LINEAR,
    )
    square = np.zeros((size, size), dtype=np.uint8)
    square[rows, columns] = resized
    return square


def frame(width: int, height: int, size: int) -> tuple[slice, slice]:
    """Rows and columns of the (size, size) square where `letterbox` puts a picture of this width and height."""
    scale = size / max(height, width)
    new_width, new_height = max(1, round(width * scale)), max(1, round(height * scale))
    top, left = (size - new_height) // 2, (size - new_width) // 2
    return slice(top, top + new_height), slice(left, left + new_width)


def content(square: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of a letterboxed (S, S) uint8 image that hold the picture; all of it if it is black.

    A border lies on two opposite sides, equally wide up to a pixel, and is exactly black; black on one side
    only belongs to the picture.
    """
    whole = slice(0, len(square))
    bands = []
    for axis in (1, 0):
        lit = np.flatnonzero(square.any(axis=axis))
        if not len(lit):
            return whole, whole
        before, after = int(lit[0]), len(square) - 1 - int(lit[-1])
        bands.append((before, after))
    (rows, columns) = (slice(min(b), len(square) - min(min(b) + 1, b[1])) if min(b) else whole for b in bands)
    return (rows, whole) if min(bands[0]) >= min(bands[1]) else (whole, columns)
