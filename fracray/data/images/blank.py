"""Whether a picture shows nothing: one gray value, or nearly.

Knows gray arrays only: nothing of files, labels or manifests.
"""

import cv2
import numpy as np

# A picture is averaged to _SIDE x _SIDE cells, so that the noise of a camera or of a JPEG vanishes. The outermost
# cells are left out: an empty picture often has a frame. In FracAtlas at least 10% of a radiograph's inner cells are
# further than _NEAR gray levels from their median.
_SIDE = 32
_NEAR = 4  # gray levels
_MARK = 0.04  # share of the inner cells that a letter or another mark may cover; its pixels ...
_APART = 12  # ... differ by more than this many gray levels from the median ...
_CLEAR = 48  # ... and most of them have one gray value that differs by this many levels at least:
_ROUGH = 8  # gray levels, that a thumbnail's cells may be off in all
_ONE_VALUE = 0.6  # this share of them lies within _NEAR levels of it. A small finger in a large field has many grays.


def nothing_shown(gray: np.ndarray, thumb: np.ndarray | None = None) -> str:
    """Why a picture (H, W) uint8 shows nothing, in words for a note; '' where it shows something.

    thumb: its thumbnail, where the caller has it; the answer is the same, and most pictures cost a tenth.
    """
    # A thumbnail with more pixels than the picture may show a pattern more strongly.
    if thumb is not None and min(gray.shape) >= len(thumb) and not may_show_nothing(thumb[None])[0]:
        return ""
    lowest, highest = int(gray.min()), int(gray.max())
    if lowest == highest:
        return f"shows nothing: one gray value, {lowest}, all over"
    cells = cv2.resize(gray, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)[1:-1, 1:-1].astype(np.int16)
    middle = int(np.median(cells))
    other = np.count_nonzero(np.abs(cells - middle) > _NEAR)
    if not other:
        return f"shows nothing: nearly all of it is within {_NEAR} gray levels of {middle}"
    if other <= _MARK * cells.size and _is_mark(gray, middle):
        return f"shows nothing: a mark on a ground within {_NEAR} gray levels of {middle}"
    return ""


def may_show_nothing(thumbs: np.ndarray) -> np.ndarray:
    """Of which thumbnails (n, H, W) uint8 the picture may show nothing: (n,) bool. Never misses one that does."""
    cells = np.stack([cv2.resize(one, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)[1:-1, 1:-1] for one in thumbs])
    levels, few = cells.reshape(len(cells), -1), int(_MARK * cells[0].size)
    ends = np.partition(levels, (few, levels.shape[1] - 1 - few), axis=1)
    return ends[:, -1 - few].astype(np.int16) - ends[:, few] <= 2 * _NEAR + _ROUGH


def _is_mark(gray: np.ndarray, middle: int) -> bool:
    """Whether what differs from the ground, frame aside, has one gray value, as a burnt-in letter has."""
    height, width = gray.shape
    top, left = -(-height // _SIDE), -(-width // _SIDE)
    counts = np.bincount(gray[top : height - top, left : width - left].ravel(), minlength=256)
    counts[max(middle - _APART, 0) : middle + _APART + 1] = 0
    alike = np.convolve(counts, np.ones(2 * _NEAR + 1, dtype=counts.dtype), mode="same")
    value = int(alike.argmax())
    return abs(value - middle) >= _CLEAR and alike[value] >= _ONE_VALUE * counts.sum()
