"""Scores of a binary classifier at one threshold, and the choice of that threshold.

Every score counts each image once; a positive is label 1 (fractured), and an image is called positive when its
probability is at least the threshold.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from fracray.metric_names import METRICS, REPORTED, lower_is_better
from fracray.metrics.inputs import Array, IntArray, checked
from fracray.metrics.reliability import CalibrationError


@dataclass(frozen=True)
class Scores:
    """The scores of a set of probabilities at one threshold; nan where undefined, such as AUROC with one class.

    All except the count `n` are in 0..1. `brier`: mean squared error of the probabilities. `average_precision`: the
    step-wise area under precision over recall. `ece`: the root mean square calibration error, 0 where the unbiased
    estimate of its square is below 0: see `reliability.CalibrationError`.
    """

    n: int
    prevalence: float
    accuracy: float
    balanced_accuracy: float
    auroc: float
    average_precision: float
    sensitivity: float
    specificity: float
    f1: float
    brier: float
    ece: float

    def as_dict(self, prefix: str = "") -> dict[str, float]:
        """The scores by name, for a report or a table: `prefix='val_'` gives `val_accuracy`."""
        return {f"{prefix}{name}": value for name, value in asdict(self).items()}


def over_sets(sets: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The metrics of several validation sets by reported name: each set's own, their mean and their worst.

    sets: by name, 'val', 'val/view', ...; metrics by name, the same in each. Gives 'val_accuracy',
    'val/view_accuracy', ... and, where there are several sets, 'mean_val_accuracy' and 'worst_val_accuracy'.
    """
    found = {f"{name}_{metric}": value for name, metrics in sets.items() for metric, value in metrics.items()}
    if len(sets) > 1:
        for metric in REPORTED:
            values = [metrics[metric] for metrics in sets.values()]
            found[f"mean_val_{metric}"] = math.fsum(values) / len(values)
            worst = max if lower_is_better(metric) else min
            # Python's max and min find nan only where it comes first.
            found[f"worst_val_{metric}"] = math.nan if any(map(math.isnan, values)) else worst(values)
    return found


def by_set(values: Mapping[str, float], sets: Sequence[str]) -> dict[str, dict[str, float]]:
    """The metrics of each set by their bare name, from values by reported name: the inverse of `over_sets`."""
    return {
        name: {key.removeprefix(f"{name}_"): value for key, value in values.items() if key.startswith(f"{name}_")}
        for name in sets
    }


def score(
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    threshold: npt.ArrayLike,
    groups: npt.ArrayLike | None = None,
    cross_fitted: npt.ArrayLike | None = None,
) -> Scores:
    """Every score of one set; labels (n,) in {0, 1}, probabilities (n,) in 0..1, threshold one or (n,).

    groups (n,): what the calibration error takes for independent; without them, each image. cross_fitted (n,): the
    probabilities for Brier score and calibration error, where the calibration was fitted to these images: see
    `calibration.cross_fitted`. Raises RunError for probabilities that are not finite, as after a training that
    diverged.
    """
    return Ranked(labels, probabilities, threshold, groups, cross_fitted).as_scores()


def floored(signed: float) -> float:
    """A signed calibration error as it is reported: 0 where its square is estimated below 0; nan stays nan."""
    return 0.0 if signed < 0 else signed


def log_losses(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> Array:
    """The binary cross-entropy of each image (n,), float64; probabilities (n,) are kept 1e-12 away from 0 and 1."""
    told = np.clip(np.asarray(probabilities, dtype=np.float64), 1e-12, 1 - 1e-12)
    return np.asarray(-np.where(np.asarray(labels) > 0.5, np.log(told), np.log1p(-told)))


def choose_threshold(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, operating_point: Literal["accuracy", "balanced"]
) -> float:
    """The threshold that maximises accuracy or balanced accuracy on these images, in 0..1 (or just above 1).

    Candidates lie midway between neighbouring probabilities, with 0 and 1 as the outer neighbours. Of several best
    ones, the nearest to 0.5 is taken, then the lower. With a single class the threshold is 0.5.
    Raises RunError for probabilities that are not finite.
    """
    y, p = checked(labels, probabilities)
    positives, negatives = int(y.sum()), int(len(y) - y.sum())
    if not positives or not negatives:
        return 0.5
    candidates, caught, spared = cuts(y, p)
    # Integers, so that equal gains compare equal.
    worth = caught + spared if operating_point == "accuracy" else caught * negatives + spared * positives
    return nearest_half(candidates[worth == worth.max()])


def cuts(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> tuple[Array, IntArray, IntArray]:
    """Every way in which a threshold divides these images: thresholds (k,) ascending, caught (k,) and spared (k,).

    Thresholds lie midway between neighbouring probabilities, with 0 and 1 as the outer neighbours. caught: positives
    at or above the threshold; spared: negatives below it. Not for no images. RunError as `choose_threshold`.
    """
    y, p = checked(labels, probabilities)
    levels, level_of = np.unique(p, return_inverse=True)
    lower = np.concatenate([[min(0.0, levels[0])], levels])
    upper = np.concatenate([levels, [max(1.0, np.nextafter(levels[-1], np.inf))]])
    middle = (lower + upper) / 2
    # There is no float between two neighbouring ones: the upper one still separates them, as p >= threshold.
    candidates = np.where(middle > lower, middle, upper)
    candidates[0] = middle[0]
    missed, spared = (np.r_[0, np.cumsum(np.bincount(level_of[y == label], minlength=len(levels)))] for label in (1, 0))
    return candidates, missed[-1] - missed, spared


def nearest_half(thresholds: Array) -> float:
    """Of thresholds (k,) ascending that are as good, the nearest to 0.5, then the lower."""
    return float(thresholds[np.argmin(np.abs(thresholds - 0.5))])


class Ranked:
    """One model's probabilities, sorted once and scored with many sets of image weights. Arguments as of `score`."""

    def __init__(
        self,
        labels: npt.ArrayLike,
        probabilities: npt.ArrayLike,
        threshold: npt.ArrayLike,
        groups: npt.ArrayLike | None = None,
        cross_fitted: npt.ArrayLike | None = None,
    ) -> None:
        y, p = checked(labels, probabilities)
        self.n = len(y)
        self.order = np.argsort(p, kind="stable")
        self.y = y[self.order]
        self.p = p[self.order]
        self.called = (self.p >= np.broadcast_to(threshold, y.shape)[self.order]).astype(np.float64)
        # Starts of the runs of equal probabilities, ascending.
        self.starts = np.flatnonzero(np.r_[True, self.p[1:] != self.p[:-1]]) if self.n else np.zeros(0, np.intp)
        told = p if cross_fitted is None else checked(labels, cross_fitted)[1]
        self.squares = (told - y) ** 2
        self.calibration_error = CalibrationError(y, told, groups)

    def as_scores(self) -> Scores:
        """The scores with every image counted once."""
        values = {name: float(found[0]) for name, found in self.scores(np.ones((1, self.n))).items()}
        return Scores(n=self.n, **values | {"ece": floored(values["ece"])})

    def scores(self, weights: Array) -> dict[str, Array]:
        """Every metric, each (r,), for weights (r, n) in the order the images were given, equal within a group.

        The calibration error keeps its sign, which only intervals need: see `CalibrationError.signed`.
        """
        if not self.n:
            return {name: np.full(len(weights), math.nan) for name in METRICS}
        w = weights[:, self.order]
        total = w.sum(1)
        positive, negative = w @ self.y, w @ (1 - self.y)
        tp, fp = w @ (self.y * self.called), w @ ((1 - self.y) * self.called)
        # Per run of equal probabilities: weight of positives, of negatives, and of those at or above the run.
        run_p = np.add.reduceat(w * self.y, self.starts, axis=1)
        run_n = np.add.reduceat(w, self.starts, axis=1) - run_p
        above_p = np.cumsum(run_p[:, ::-1], axis=1)[:, ::-1]
        above_n = np.cumsum(run_n[:, ::-1], axis=1)[:, ::-1]
        with np.errstate(divide="ignore", invalid="ignore"):
            sensitivity = tp / positive
            specificity = (negative - fp) / negative
            # Ties count half: Mann and Whitney's U.
            auroc = (run_n * (above_p - run_p / 2)).sum(1) / (positive * negative)
            precision = np.nan_to_num(above_p / (above_p + above_n))
            return {
                "prevalence": positive / total,
                "accuracy": (tp + negative - fp) / total,
                "balanced_accuracy": (sensitivity + specificity) / 2,
                "auroc": auroc,
                "average_precision": (run_p * precision).sum(1) / positive,
                "sensitivity": sensitivity,
                "specificity": specificity,
                # Undefined (0/0) where no image is positive and none is called positive.
                "f1": 2 * tp / (positive + tp + fp),
                "brier": weights @ self.squares / total,
                "ece": self.calibration_error.signed(weights),
            }


class OverFolds:
    """Cross-fitted predictions, scored fold by fold: a score is the mean over the folds, whose models differ in scale.

    Arguments as of `Ranked`; folds (n,): the fold in which an image was held out. A fold in which a score is unknown,
    as AUROC is where all images are of one class, is left out of its mean; nan where it is known in none.
    """

    def __init__(
        self,
        labels: npt.ArrayLike,
        probabilities: npt.ArrayLike,
        threshold: npt.ArrayLike,
        groups: npt.ArrayLike | None,
        folds: npt.ArrayLike,
    ) -> None:
        y, p = checked(labels, probabilities)
        self.n = len(y)
        level, of_all = np.broadcast_to(threshold, y.shape), None if groups is None else np.asarray(groups)
        self._folds = [
            (rows, Ranked(y[rows], p[rows], level[rows], None if of_all is None else of_all[rows]))
            for rows in rows_by_fold(folds)
        ]

    def as_scores(self) -> Scores:
        """The means of the folds' scores with every image counted once; `n` counts all images."""
        each = [ranked.as_scores() for _, ranked in self._folds]
        means = {name: np.array([[getattr(one, name)] for one in each]).reshape(-1, 1) for name in METRICS}
        return Scores(n=self.n, **{name: float(mean_over_folds(values)[0]) for name, values in means.items()})

    def scores(self, weights: Array) -> dict[str, Array]:
        """Every metric, each (r,), for weights (r, n), as `Ranked.scores`."""
        each = [ranked.scores(weights[:, rows]) for rows, ranked in self._folds]
        return {
            name: mean_over_folds(np.array([one[name] for one in each]).reshape(-1, len(weights))) for name in METRICS
        }


def rows_by_fold(folds: npt.ArrayLike) -> list[IntArray]:
    """The places of each fold's images, ascending; folds (n,)."""
    fold = np.asarray(folds)
    return [np.flatnonzero(fold == name) for name in np.unique(fold)]


def mean_over_folds(values: Array) -> Array:
    """The means (r,) of values (folds, r) over the folds that have one; nan where none has."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(known, values, 0).sum(0) / known.sum(0))
