"""What every score of the package takes: labels in {0, 1} with a finite number for each, and groups."""

import numpy as np
import numpy.typing as npt

from fracray.errors import RunError

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.intp]
# Weights are held as (weightings, images); this many at a time bounds the memory at some 100 MB.
CELLS = 1_000_000


def checked(labels: npt.ArrayLike, values: npt.ArrayLike) -> tuple[Array, Array]:
    """Both as float64; RunError for values that are not finite, as after a training that diverged."""
    y = np.asarray(labels, dtype=np.float64)
    v = np.asarray(values, dtype=np.float64)
    assert y.ndim == 1, f"expected (n,), got {y.shape}"
    assert y.shape == v.shape, f"{y.shape} labels, {v.shape} values"
    assert ((y == 0) | (y == 1)).all(), "a label outside 0/1"
    if not np.isfinite(v).all():
        raise RunError(
            f"{(~np.isfinite(v)).sum()} of {len(v)} predictions are not finite: the training diverged; lower train.lr"
        )
    return y, v


def numbered(groups: npt.ArrayLike | None, n: int) -> npt.NDArray[np.intp]:
    """The group of each of n images as numbers from 0; without groups each image is its own."""
    if groups is None:
        return np.arange(n)
    group = np.unique(np.asarray(groups), return_inverse=True)[1]
    assert group.shape == (n,), f"{n} images, {group.shape} groups"
    return group
