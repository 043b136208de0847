"""Sets of classes that hold the right one with a stated probability, whatever the model is worth: split conformal.

Knows logits, labels and groups; nothing of checkpoints.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fracray.metrics.inputs import checked, numbered

ROUNDING = 1e-12


@dataclass(frozen=True)
class ConformalSets:
    """The lowest logit at which class 1 is in the set, and the highest at which class 0 is.

    groups: of the images that each limit is from, for class 0 and class 1. An infinite limit: they are too few, and
    the class is in every set.
    """

    highest_of_0: float
    lowest_of_1: float
    groups: tuple[int, int]

    def words(self, logit: float) -> str:
        """'0', '1', '0+1', or '' where neither class is in the set."""
        inside = {"0": logit <= self.highest_of_0, "1": logit >= self.lowest_of_1}
        return "+".join(name for name, holds in inside.items() if holds)


def fit_conformal(
    labels: npt.ArrayLike, logits: npt.ArrayLike, groups: npt.ArrayLike | None, coverage: float
) -> ConformalSets:
    """The limits by which the set of a new image holds its class with a probability of at least `coverage`, per class.

    labels (n,) in {0, 1}, logits (n,), groups (n,) (without them each image is its own), coverage above 0 and below 1.
    For each class the score of its images is how far their logit speaks against it. Each of its k groups weighs
    1 / (k + 1), shared equally by its images, and the rest of the weight lies at infinity; the limit is the least score
    below or at which `coverage` of the weight lies. So the promise is for an image of a new group, where the groups are
    exchangeable: images of one group need not be independent. It takes k >= coverage / (1 - coverage) groups.
    With groups of one image this is split conformal prediction within a class (Vovk 2012, arXiv 1209.2673); with
    groups, the hierarchical one of Lee, Barber and Willett 2023 (arXiv 2306.06342).
    Raises RunError for logits that are not finite.
    """
    y, z = checked(labels, logits)
    assert 0 < coverage < 1, "coverage is a share"
    group = numbered(groups, len(y))
    limits, counts = [], []
    for label, sign in ((0, 1.0), (1, -1.0)):
        inside = y == label
        limit, count = _limit(sign * z[inside], group[inside], coverage)
        limits.append(sign * limit)
        counts.append(count)
    return ConformalSets(limits[0], limits[1], (counts[0], counts[1]))


def _limit(scores: npt.NDArray[np.float64], group: npt.NDArray[np.intp], coverage: float) -> tuple[float, int]:
    """The weighted quantile of the scores, and the number of groups."""
    if not len(scores):
        return math.inf, 0
    _, number, sizes = np.unique(group, return_inverse=True, return_counts=True)
    weights = 1 / ((len(sizes) + 1) * sizes[number])
    order = np.argsort(scores, kind="stable")
    reached = np.flatnonzero(np.cumsum(weights[order]) >= coverage - ROUNDING)
    return (float(scores[order[reached[0]]]) if len(reached) else math.inf), len(sizes)
