"""DeLong's test: whether two models' AUROCs on the same images differ, if images were independent."""

import math
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

from fracray.metrics.inputs import Array, checked
from fracray.metrics.intervals import LEVEL


@dataclass(frozen=True)
class DeLong:
    """AUROC of two models, their difference with its standard error and 95% interval, z and two-sided p.

    z and p are nan, and the interval is, where the two order all pairs alike (the error is 0).
    """

    auroc_a: float
    auroc_b: float
    difference: float
    error: float
    low: float
    high: float
    z: float
    p: float

    def as_dict(self) -> dict[str, float | None]:
        """By name, as JSON values; nan becomes null."""
        return {name: value if math.isfinite(value) else None for name, value in asdict(self).items()}


def delong(labels: npt.ArrayLike, probabilities_a: npt.ArrayLike, probabilities_b: npt.ArrayLike) -> DeLong:
    """Test model a against model b on the same images; labels (n,) in {0, 1}, probabilities (n,) each.

    It takes each image as independent, so with groups of images it finds differences too easily: it is a check of
    `paired_gain`, which leaves out groups. All nan with fewer than two images of a class. RunError as `score`.
    Sources: DeLong et al. 1988, doi 10.2307/2531595; by midranks, Sun and Xu 2014, doi 10.1109/LSP.2014.2337313.
    """
    y, a = checked(labels, probabilities_a)
    _, b = checked(labels, probabilities_b)
    areas, covariance = _components(y, np.stack([a, b]))
    difference = float(areas[0] - areas[1])
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    error = math.sqrt(max(0.0, variance)) if not math.isnan(variance) else math.nan
    known = error > 1e-12  # rounding, where both order all pairs alike
    z = difference / error if known else math.nan
    half = float(ndtri((1 + LEVEL) / 2)) * error if known else math.nan
    p = 2 * float(ndtr(-abs(z)))
    return DeLong(float(areas[0]), float(areas[1]), difference, error, difference - half, difference + half, z, p)


def _components(y: Array, scores: Array) -> tuple[Array, Array]:
    """AUROC (k,) of scores (k, n) and their covariance (k, k)."""
    positive, negative = scores[:, y == 1], scores[:, y == 0]
    m, n = positive.shape[1], negative.shape[1]
    if m < 2 or n < 2:
        return np.full(len(scores), math.nan), np.full((len(scores), len(scores)), math.nan)
    among_all = np.stack([_midranks(np.r_[ours, theirs]) for ours, theirs in zip(positive, negative, strict=True)])
    # Of each positive, the share of negatives below it; of each negative, the share of positives above it.
    of_positives = (among_all[:, :m] - np.stack([*map(_midranks, positive)])) / n
    of_negatives = 1 - (among_all[:, m:] - np.stack([*map(_midranks, negative)])) / m
    return of_positives.mean(1), np.cov(of_positives) / m + np.cov(of_negatives) / n


def _midranks(values: Array) -> Array:
    """Ranks from 1, (n,); of equal values, their mean rank."""
    _, level, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[level]
