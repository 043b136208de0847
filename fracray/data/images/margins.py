"""The edges of a picture: uniform margins, and a lost lower part that a decoder filled.

Knows gray arrays only: nothing of files, labels or manifests.
"""

import cv2
import numpy as np

_BLACK, _WHITE = 64, 192  # gray levels; film edges and unexposed margins of FracAtlas lie at 0 to 40 and 205 to 250
_BLOCK = 2**20  # px examined at once
_UNIFORM, _STEADY = 4.0, 8.0  # gray levels: standard deviation along a line, change of its mean from the first


def borders(gray: np.ndarray) -> tuple[int, ...]:
    """Widths of uniform margins, px, in the order of BORDERS."""
    edges = [_border(lines) for lines in (gray, gray[::-1], gray.T, gray.T[::-1])]
    return tuple(black for black, _ in edges) + tuple(white for _, white in edges)


def _border(lines: np.ndarray) -> tuple[int, int]:
    """How many of the first lines are uniformly black, and how many uniformly white; one of both is 0."""
    shade = float(lines[0].mean())
    if _BLACK <= shade <= _WHITE:
        return 0, 0
    start, step, width = 0, 16, len(lines)
    while start < len(lines):  # most margins are narrow, so few lines are examined first
        block = lines[start : start + step].astype(np.float32)
        ended = (block.std(axis=1) > _UNIFORM) | (np.abs(block.mean(axis=1) - shade) > _STEADY)
        if ended.any():
            width = start + int(ended.argmax())
            break
        start, step = start + step, min(2 * step, max(16, _BLOCK // lines.shape[1]))
    return (width, 0) if shade < _BLACK else (0, width)


_MCU = 16  # px; JPEG's largest unit
_FINE = 3.0  # between neighbours over that between units; 19 to 34 in FracAtlas' nine, at most 0.7 in its other files
_COPIES = 3.0  # gray levels that copies of a block differ by at most, once they are encoded again and reduced


def refilled(gray: np.ndarray) -> int:
    """Rows at the bottom, as stored, that repeat one textured block.

    A decoder fills the missing part of a truncated JPEG with copies of the last block; saved again, the file is
    complete and the picture is not. A gray fill without texture looks like a margin, and scaling removes the period.
    """
    height, width = gray.shape
    if height <= _MCU or width <= 2 * _MCU:
        return 0
    near, apart = _changes(gray, _MCU)
    if near < _FINE * (apart + 0.5):
        return 0
    far = np.abs(gray[:, _MCU:].astype(np.int16) - gray[:, :-_MCU])
    kept = np.flatnonzero(np.quantile(far, 0.9, axis=1) > 4)
    return height - 1 - int(kept[-1]) if len(kept) else height


def may_be_refilled(gray: np.ndarray, factor: int) -> bool:
    """Whether the picture may be `refilled` that a JPEG decoder reduced to this, by a factor of 2, 4 or 8."""
    unit = _MCU // factor
    if gray.shape[0] <= unit or gray.shape[1] <= 2 * unit:
        return True
    near, apart = _changes(gray, unit)
    # Copies of a block stay alike in any scale. Their texture may vanish at an eighth, where a block is a pixel.
    return bool(apart <= _COPIES and (near >= apart or unit <= 2))


def _changes(gray: np.ndarray, unit: int) -> tuple[float, float]:
    """Mean change between neighbours, and between pixels a unit apart, in the last row of units."""
    last = gray[-(gray.shape[0] % unit or unit) :]
    near, apart = (cv2.norm(last[:, by:], last[:, :-by], cv2.NORM_L1) / last[:, by:].size for by in (1, unit))
    return near, apart
