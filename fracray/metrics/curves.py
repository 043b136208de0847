"""The curves of a binary classifier as points: ROC, precision and recall, reliability, histogram, confusion matrix."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from fracray.metrics.inputs import Array, checked, numbered
from fracray.metrics.intervals import FEWEST_GROUPS, LEVEL
from fracray.metrics.reliability import equal_mass_bins
from fracray.metrics.scores import cuts

MOST_POINTS = 1000  # of a curve: more cannot be told apart on a page
RESAMPLES = 2000
HISTOGRAM_BINS = 20


def roc_points(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> dict[str, list[float]]:
    """false_positive_rate, sensitivity and threshold of every corner of the ROC curve, from (0, 0) to (1, 1).

    labels (n,) in {0, 1}, probabilities (n,) in 0..1. Empty lists with a single class. At most MOST_POINTS, evenly
    thinned. Raises RunError for probabilities that are not finite.
    """
    y, p = checked(labels, probabilities)
    positives, negatives = y.sum(), len(y) - y.sum()
    if not positives or not negatives:
        return {"false_positive_rate": [], "sensitivity": [], "threshold": []}
    thresholds, caught, spared = (values[::-1] for values in cuts(y, p))
    alarms = negatives - spared
    # Between two corners the curve is straight.
    turns = np.diff(caught[:-1]) * np.diff(alarms[1:]) != np.diff(caught[1:]) * np.diff(alarms[:-1])
    kept = _thinned(np.flatnonzero(np.r_[True, turns, True]))
    return {
        "false_positive_rate": (alarms[kept] / negatives).tolist(),
        "sensitivity": (caught[kept] / positives).tolist(),
        "threshold": thresholds[kept].tolist(),
    }


def precision_recall_points(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> dict[str, list[float]]:
    """recall, precision and threshold, from the highest threshold that calls an image positive to the lowest.

    Arguments as of `roc_points`. The area under these steps is the average precision. Empty lists without a positive.
    """
    y, p = checked(labels, probabilities)
    positives = int(y.sum())
    if not positives:
        return {"recall": [], "precision": [], "threshold": []}
    thresholds, caught, spared = (values[::-1][1:] for values in cuts(y, p))  # without the one that calls none
    called = caught + (len(y) - positives) - spared
    kept = _thinned(np.arange(len(thresholds)))
    return {
        "recall": (caught[kept] / positives).tolist(),
        "precision": (caught[kept] / called[kept]).tolist(),
        "threshold": thresholds[kept].tolist(),
    }


def _thinned(places: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    if len(places) <= MOST_POINTS:
        return places
    return places[np.unique(np.linspace(0, len(places) - 1, MOST_POINTS).round().astype(np.intp))]


def reliability_diagram(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, groups: npt.ArrayLike | None = None, seed: int = 0
) -> list[dict[str, Any]]:
    """The bins of a reliability diagram: images, mean_probability, share of positives, and the band low to high.

    labels (n,) in {0, 1}, probabilities (n,) in 0..1, groups (n,). Bins of equal mass, those of the calibration error.
    The band holds the share in 95% of RESAMPLES bootstrap samples of groups (percentiles; a bin that a sample leaves
    empty is left out of it). It shows how much the share varies, and is too narrow with few groups; nan with fewer
    than FEWEST_GROUPS groups, or where the bin's images are all of one. Raises RunError as `roc_points`.
    """
    y, p = checked(labels, probabilities)
    if not len(y):
        return []
    bins, group = equal_mass_bins(p), numbered(groups, len(y))
    count, known = int(bins.max()) + 1, int(group.max()) + 1
    cell = bins * known + group
    images, positives = (
        np.bincount(cell, weights, minlength=count * known).reshape(count, known).astype(np.float64)
        for weights in (np.ones(len(y)), y)
    )
    total = images.sum(1)
    low, high = _band(images, positives, seed)
    means = np.bincount(bins, p, minlength=count) / total
    return [
        {
            "images": int(total[at]),
            "mean_probability": float(means[at]),
            "share": float(positives[at].sum() / total[at]),
            "low": float(low[at]),
            "high": float(high[at]),
        }
        for at in range(count)
    ]


def _band(images: Array, positives: Array, seed: int) -> tuple[Array, Array]:
    """Percentiles (bins,) of the share of positives over samples of groups; images, positives: (bins, groups)."""
    count, known = images.shape
    nothing = np.full(count, math.nan)
    if known < FEWEST_GROUPS:
        return nothing, nothing
    generator = np.random.default_rng(seed)
    shares = []
    for start in range(0, RESAMPLES, 250):
        drawn = generator.multinomial(known, np.full(known, 1 / known), min(250, RESAMPLES - start))
        with np.errstate(invalid="ignore"):
            shares.append((drawn @ positives.T) / (drawn @ images.T))
    sampled = np.concatenate(shares)
    several = (images > 0).sum(1) > 1
    low, high = nothing.copy(), nothing.copy()
    if several.any():  # else numpy gives no ends at all
        ends = np.nanquantile(sampled[:, several], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        low[several], high[several] = ends
    return low, high


def histogram(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> dict[str, list[float]]:
    """How many images of each class have which probability: edges (HISTOGRAM_BINS + 1,), positive and negative."""
    y, p = checked(labels, probabilities)
    edges = np.linspace(0, 1, HISTOGRAM_BINS + 1)
    return {
        "edges": edges.tolist(),
        "positive": np.histogram(p[y == 1], edges)[0].tolist(),
        "negative": np.histogram(p[y == 0], edges)[0].tolist(),
    }


def confusion(labels: npt.ArrayLike, probabilities: npt.ArrayLike, threshold: npt.ArrayLike) -> dict[str, int]:
    """true_positive, false_negative, false_positive and true_negative at a threshold, one or (n,)."""
    y, p = checked(labels, probabilities)
    called = p >= np.broadcast_to(threshold, y.shape)
    return {
        "true_positive": int((called & (y == 1)).sum()),
        "false_negative": int((~called & (y == 1)).sum()),
        "false_positive": int((called & (y == 0)).sum()),
        "true_negative": int((~called & (y == 0)).sum()),
    }
