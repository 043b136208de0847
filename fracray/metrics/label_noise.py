"""Which labels a classifier that never saw them does not believe: confident learning for two classes.

Source: Northcutt, Jiang, Chuang, J. Artif. Intell. Res. 70 (2021), doi 10.1613/jair.1.12125.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fracray.metrics.inputs import Array, checked


@dataclass(frozen=True)
class LabelDoubt:
    """What out-of-sample probabilities say of the labels of n images.

    self_confidence: (n,) float64, the probability of the label that each has. flagged: (n,) bool. thresholds: the mean
    self-confidence of the images labelled 0 and of those labelled 1; nan for a class without images. disputed: images
    whose other label has more than half of the probability. expected: how many would be flagged where every label is
    right and the probabilities are true: the price of the rule, in images that are looked at for nothing.
    """

    self_confidence: Array
    flagged: npt.NDArray[np.bool_]
    thresholds: tuple[float, float]
    disputed: int
    expected: float


def doubt_labels(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> LabelDoubt:
    """Doubt of labels (n,) in {0, 1}, from probabilities (n,) of class 1 by models that did not learn these labels.

    An image is flagged where the probability of its other class is at least the threshold of that class. Where both
    classes reach theirs, the one with the higher probability counts, as in the source. Nothing is flagged as the other
    class where no image has that label. Raises RunError for probabilities that are not finite.
    """
    y, p = checked(labels, probabilities)
    own = np.where(y == 1, p, 1 - p)
    thresholds = _mean(own[y == 0]), _mean(own[y == 1])
    if_0, if_1 = _flagged(p, 1 - p, thresholds[1], thresholds[0]), _flagged(1 - p, p, thresholds[0], thresholds[1])
    return LabelDoubt(
        self_confidence=own,
        flagged=np.where(y == 1, if_1, if_0),
        thresholds=thresholds,
        disputed=int((own < 0.5).sum()),
        expected=float(np.sum((1 - p) * if_0 + p * if_1)),
    )


def _mean(values: Array) -> float:
    return float(values.mean()) if len(values) else math.nan


def _flagged(other: Array, own: Array, threshold: float, of_own: float) -> npt.NDArray[np.bool_]:
    """other, own: the probabilities of the class that an image is not labelled with, and of its label's."""
    return (other >= threshold) & ((own < of_own) | (other > own) | math.isnan(of_own))
