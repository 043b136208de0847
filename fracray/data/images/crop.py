"""Finds the part of a radiograph that holds the anatomy, so that a square is not filled with empty ground.

Knows gray pictures, dark where nothing absorbs, and nothing else. Imports neither Torch nor Ray.
"""

import cv2
import numpy as np

CROP_VERSION = 1  # raise it when another part of the same picture would be kept
LEAST = 0.5  # of the picture's longer side: each side that is kept has this length at least, or is kept in full
WORTH = 1.1  # a picture is cut only where what is kept is enlarged by this factor at least

# Searched in a blurred copy of some _SIDE px: noise, trabeculae and print are gone, and a finger is still 3 px wide.
# That takes 0.13 ms a picture, and in a copy of 160 px 0.3 ms, with hardly another result on FracAtlas.
_SIDE = 96
_BLUR = 1.0  # px, standard deviation
_EDGE = 3  # px at the edge that do not count for gray levels: frames and rounded corners
_FEWEST = 20  # px of the copy's shorter side; thinner pictures, and tiny ones, are kept whole
# Gray levels are taken as 255 * sqrt(level / 255), which spreads the dark ones: thin bone is not much brighter than the
# ground beside a pelvis, and the noise of X-ray quanta gets the same size everywhere (Anscombe 1948,
# doi:10.1093/biomet/35.3-4.246). The ground is the most frequent level of the darker half. Anatomy is brighter than it
# by a share of the range up to nearly the brightest level, and by more than noise.
_ROOTS = np.rint(np.sqrt(np.arange(256) * 255.0)).astype(np.uint8)
_BRIGHT = 0.97  # of the pixels are no brighter; metal and letters are
_SHARE, _NOISE = 0.25, 8.0  # of that range; levels
_BLACK = 20  # level, 1.6 in gray: the ground of a picture that is mostly black is looked for up to here
# Where more than this share is as much darker than the ground, it is no ground: the picture is inverted, or in doubt.
_DARKER = 0.02
_NEAR = 9  # px: what is nearer than half of that to a clear part may be its skin
_APART = 3  # px between those of the ground that a plane is fitted to
_GROUND = 30  # of these; with fewer the picture is kept whole
_SPECK = 0.004  # of the picture: smaller parts are letters, dust and scratches
_STRIPE = 0.12  # of a side: a part along an edge that is no wider is light that fell beside the cassette
_MARGIN = 0.05  # of the longer side, kept around what is found: skin is hardly brighter than the ground


def anatomy(gray: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of a gray picture (H, W) uint8 that hold the anatomy; all of them where it is in doubt.

    The picture is blurred and thresholded above its ground; specks, and stripes along an edge, are dropped. What is
    left is grown by what is connected to it and little brighter than a plane through the ground, as the tips of fingers
    and toes are (hysteresis, Canny 1986, doi:10.1109/TPAMI.1986.4767851), and is framed with a margin. The frame is
    used where it enlarges the picture by WORTH at least, and is widened where it would enlarge it more than 1 / LEAST
    times. The same picture always gives the same frame.
    """
    height, width = gray.shape
    whole = slice(0, height), slice(0, width)
    step = max(1, round(max(height, width) / _SIDE))
    if min(height, width) < step * _FEWEST:
        return whole
    small = cv2.GaussianBlur(cv2.LUT(gray[::step, ::step], _ROOTS), (0, 0), _BLUR)
    clear = _clear_parts(small)
    if clear is None or _framed(clear, step, gray.shape) is None:
        return whole
    return _framed(_grown(small, clear), step, gray.shape) or whole


def _clear_parts(small: np.ndarray) -> np.ndarray | None:
    """Where something is clearly brighter than the ground, (H, W) uint8, 1 or 0; None where nothing is, or in doubt."""
    counts = np.bincount(small[_EDGE:-_EDGE, _EDGE:-_EDGE].ravel(), minlength=256)
    upto = np.cumsum(counts)
    median, bright = np.searchsorted(upto, np.array([0.5, _BRIGHT]) * upto[-1])
    smooth = np.convolve(counts, np.ones(5, dtype=counts.dtype), mode="same")
    ground = int(smooth[: max(int(median), _BLACK) + 1].argmax())
    step = round(max(_NOISE, _SHARE * (int(bright) - ground)))
    if ground > step and upto[ground - step - 1] > _DARKER * upto[-1]:
        return None
    _, mask = cv2.threshold(small, ground + step, 1, cv2.THRESH_BINARY)
    _, labels, boxes, _ = cv2.connectedComponentsWithStats(mask, ltype=cv2.CV_16U)
    left, top, across, down, area = boxes.T
    height, width = small.shape
    beside = ((left == 0) | (left + across == width)) & (across < _STRIPE * width)
    along = ((top == 0) | (top + down == height)) & (down < _STRIPE * height)
    kept = (area >= _SPECK * small.size) & ~beside & ~along
    kept[0] = False  # the ground
    return kept.astype(np.uint8)[labels] if kept.any() else None


def _grown(small: np.ndarray, clear: np.ndarray) -> np.ndarray:
    """The clear parts and what is connected to them and brighter than the ground near it, (H, W) uint8, 1 or 0."""
    height, width = small.shape
    far = cv2.dilate(clear, np.ones((_NEAR, _NEAR), dtype=np.uint8))[_EDGE:-_EDGE:_APART, _EDGE:-_EDGE:_APART] == 0
    y, x = np.nonzero(far)
    if len(y) < _GROUND:
        return np.ones_like(clear)
    levels = small[_EDGE:-_EDGE:_APART, _EDGE:-_EDGE:_APART][far].astype(np.float64)
    across, down = np.arange(width) / width - 0.5, np.arange(height) / height - 0.5
    terms = np.stack([np.ones(len(y)), across[_APART * x + _EDGE], down[_APART * y + _EDGE]])
    for _ in range(2):  # light beside the cassette is left out the second time
        # Also where they all lie on one line.
        plane = np.linalg.solve(terms @ terms.T + 1e-3 * np.eye(3), terms @ levels)
        rest = np.abs(levels - plane @ terms)
        spread = 1.4826 * float(np.median(rest))
        near = rest < 3 * spread + 1
        terms, levels = terms[:, near], levels[near]
    ground = plane[0] + plane[1] * across + plane[2] * down[:, None]
    mask = (small > ground + max(_NOISE, 3 * spread)).astype(np.uint8) | clear
    _, labels = cv2.connectedComponents(mask, ltype=cv2.CV_16U)
    connected = np.zeros(int(labels.max()) + 1, dtype=np.uint8)
    connected[labels[clear > 0]] = 1
    return connected[labels]


def _framed(part: np.ndarray, step: int, shape: tuple[int, ...]) -> tuple[slice, slice] | None:
    """Rows and columns of the picture around a part of its copy; None where cropping to them is not worth it."""
    longer = max(shape)
    found = []
    for lines, side in zip((part.any(axis=1), part.any(axis=0)), shape, strict=True):
        at = np.flatnonzero(lines)
        start, stop = int(at[0]) * step - _MARGIN * longer, int(at[-1] + 1) * step + _MARGIN * longer
        found.append(_within(start, stop, side, LEAST * longer))
    rows, columns = found
    worth = longer >= WORTH * max(rows.stop - rows.start, columns.stop - columns.start)
    return (rows, columns) if worth else None


def _within(start: float, stop: float, side: int, least: float) -> slice:
    """Whole pixels from start to stop, inside 0 to side: at least `least` of them where the side has as many."""
    start, stop = max(0.0, start), min(float(side), stop)
    lacking = max(0.0, min(least, side) - (stop - start)) / 2
    start, stop = start - lacking, stop + lacking
    moved = max(0.0, -start) - max(0.0, stop - side)
    return slice(max(0, int(start + moved)), min(side, int(np.ceil(stop + moved))))
