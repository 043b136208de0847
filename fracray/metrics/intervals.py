"""Intervals over groups: images of a group are not independent, so groups are left out, never single images.

Percentiles of a bootstrap over groups are too narrow where groups are few: with 11 groups as those of FracAtlas, they
hold the truth in 0.84 of the samples, not in 0.95. Of five methods, the jackknife below is the only one that holds it
often enough there and with 5 and 7 groups: see benchmarks/coverage.py.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit, stdtrit

from fracray.metric_names import METRICS
from fracray.metrics.inputs import CELLS, Array, checked, numbered
from fracray.metrics.reliability import slope_and_intercept
from fracray.metrics.scores import OverFolds, Ranked, floored

LEVEL = 0.95
FEWEST_GROUPS = 5  # with fewer, there is no interval
FEWEST_OF_A_CLASS = 3  # groups with a class; of fewer, more than a tenth of all resamples would hold none at all
ROUGH_BELOW = 30  # with fewer groups, an interval is a rough one
MOST_LEFT_OUT = 200  # more groups are left out several at a time, dealt at random, to bound the time ...
PARTS_SEED = 8_151_906  # ... by draws that nothing else in a data set or a test was drawn by

# Which images a value depends on: they alone say how many groups there are to learn it from.
About = Literal["all", "positive", "negative", "both"]
ABOUT: dict[str, About] = {
    "prevalence": "all",
    "accuracy": "all",
    "brier": "all",
    "ece": "all",
    "sensitivity": "positive",
    "specificity": "negative",
}  # the others: both
# What a value can be: within 0..1; above 0; any number; a signed calibration error.
Scale = Literal["share", "ratio", "number", "error"]


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval; `low` and `high` are nan where there is none."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float | None]:
        """By name, as JSON values; nan and infinity become null."""
        return {name: value if math.isfinite(value) else None for name, value in asdict(self).items()}


class GroupJackknife:
    """The groups of one set of images, left out in turn, and the 95% intervals that follow from that.

    labels (n,) in {0, 1}; groups (n,), integers or strings. The interval of a value is a t-interval with the
    jackknife's variance (Efron and Stein 1981, doi 10.1214/aos/1176345462), for shares on the logit scale. Groups
    differ in size, and few of them may hold most of a class. So the degrees of freedom are those of as many equal
    groups as know as much (Kish 1965): (sum of sizes)^2 / sum of squared sizes, less one, where a size is the number
    of a group's images that the value depends on.
    """

    def __init__(self, labels: npt.ArrayLike, groups: npt.ArrayLike) -> None:
        y, _ = checked(labels, np.zeros(np.shape(labels)))
        group = numbered(groups, len(y))
        self.n, self.groups = len(y), int(group.max(initial=-1)) + 1
        of_class = {"positive": np.bincount(group, y), "negative": np.bincount(group, 1 - y)}
        self._scarce: dict[str, bool] = {
            name: bool((sizes > 0).sum() < FEWEST_OF_A_CLASS) for name, sizes in of_class.items()
        }
        self._part = group
        if self.groups > MOST_LEFT_OUT:
            order = np.random.default_rng(PARTS_SEED).permutation(self.groups)
            self._part = (order % MOST_LEFT_OUT)[group]
        self.parts = int(self._part.max(initial=-1)) + 1
        masks = {"all": np.ones(len(y)), "positive": y, "negative": 1 - y}
        sizes = {name: np.bincount(self._part, mask) for name, mask in masks.items()}
        with np.errstate(invalid="ignore"):
            self._effective = {name: float(size.sum() ** 2 / (size**2).sum()) for name, size in sizes.items()}

    def effective_groups(self, about: About) -> float:
        """How many equal groups know as much about these images; nan where they are too few for an interval."""
        classes = {"all": (), "both": ("positive", "negative")}.get(about, (about,))
        if self.groups < FEWEST_GROUPS or any(self._scarce[name] for name in classes):
            return math.nan
        return min(self._effective[name] for name in classes or ("all",))

    def weights(self) -> Iterator[Array]:
        """Image weights, (r, n) at a time: all ones but for the images that are left out."""
        block = max(1, CELLS // max(1, self.n))
        for start in range(0, self.parts, block):
            left_out = np.arange(start, min(start + block, self.parts))
            yield (left_out[:, None] != self._part).astype(np.float64)

    def values(self, statistic: Callable[[Array], dict[str, Array]]) -> dict[str, Array]:
        """A statistic (image weights (r, n) to values (r,) by name) with each part left out, (parts,) by name."""
        found = [statistic(weights) for weights in self.weights()]
        return {name: np.concatenate([part[name] for part in found]) for name in found[0]} if found else {}

    def interval(self, value: float, left_out: Array, about: About = "both", scale: Scale = "share") -> Interval:
        """The interval of a value from its values with each part left out, (parts,).

        low and high are nan where the groups are too few, or where the value is unknown without one of them. A share
        of exactly 0 or 1 has no variance; its other end is the exact binomial one, with each group as one trial.
        """
        shown = floored(value) if scale == "error" else value
        effective = self.effective_groups(about)
        if math.isnan(value) or math.isnan(effective) or not np.isfinite(left_out).all():
            return Interval(shown, math.nan, math.nan)
        if scale == "error":
            half = self._half(left_out * np.abs(left_out), effective)
            low, high = (math.sqrt(max(0.0, value * abs(value) + side * half)) for side in (-1, 1))
            return Interval(shown, low, min(1.0, high))
        half = self._half(left_out, effective)
        if scale == "share":
            if value in {0.0, 1.0}:
                reach = 1 - ((1 - LEVEL) / 2) ** (1 / effective)
                return Interval(value, max(0.0, value - reach), min(1.0, value + reach))
            low, high = (float(expit(logit(value) + side * half / (value * (1 - value)))) for side in (-1, 1))
            return Interval(value, min(low, value), max(high, value))
        if scale == "ratio":
            if not value:
                return Interval(value, math.nan, math.nan)
            return Interval(value, value * math.exp(-half / value), value * math.exp(half / value))
        return Interval(value, value - half, value + half)

    def _half(self, left_out: Array, effective: float) -> float:
        """Half of the width: Student's t times the jackknife's standard error."""
        count = len(left_out)
        error = math.sqrt((count - 1) / count * float(((left_out - left_out.mean()) ** 2).sum()))
        return float(stdtrit(max(1.0, effective - 1), (1 + LEVEL) / 2)) * error


def score_intervals(
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    groups: npt.ArrayLike,
    threshold: npt.ArrayLike,
    cross_fitted: npt.ArrayLike | None = None,
) -> dict[str, Interval]:
    """95% intervals over groups of every metric of Scores, and of calibration_slope and calibration_intercept.

    Arguments as of `score`; `threshold` is (n,) where models of several folds scored one image each. low and high are
    nan with fewer than FEWEST_GROUPS groups, or where a class is in fewer than FEWEST_OF_A_CLASS. RunError as `score`.
    """
    ranked = Ranked(labels, probabilities, threshold, groups, cross_fitted)
    told = probabilities if cross_fitted is None else cross_fitted

    def statistic(weights: Array) -> dict[str, Array]:
        slope, intercept = slope_and_intercept(labels, told, weights)
        return ranked.scores(weights) | {"calibration_slope": slope, "calibration_intercept": intercept}

    values = statistic(np.ones((1, ranked.n)))
    jackknife = GroupJackknife(labels, groups)
    left_out = jackknife.values(statistic)

    def interval(name: str) -> Interval:
        scale: Scale = "error" if name == "ece" else "share" if name in METRICS else "number"
        return jackknife.interval(float(values[name][0]), left_out[name], ABOUT.get(name, "both"), scale)

    return {name: interval(name) for name in values} if ranked.n else {}


def ranked(
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    threshold: npt.ArrayLike,
    groups: npt.ArrayLike,
    folds: npt.ArrayLike | None,
) -> Ranked | OverFolds:
    """The predictions of one model or, with `folds`, of a model of each fold."""
    if folds is None:
        return Ranked(labels, probabilities, threshold, groups)
    return OverFolds(labels, probabilities, threshold, groups, folds)


def paired_gain(
    labels: npt.ArrayLike,
    probabilities_a: npt.ArrayLike,
    threshold_a: npt.ArrayLike,
    probabilities_b: npt.ArrayLike,
    threshold_b: npt.ArrayLike,
    groups: npt.ArrayLike,
    metric: str = "accuracy",
    folds: npt.ArrayLike | None = None,
) -> Interval:
    """The score of model a minus that of model b on the same images, with the same groups left out of both.

    Arguments and interval as of `score_intervals`; `metric` is a name from METRICS. With `folds` (n,), the fold in
    which an image was held out, a and b are models of each fold, and a score is the mean over the folds: see
    `OverFolds`. The interval knows of the groups, and not of what another seed of the training would give.
    """
    assert metric in METRICS, f"{metric} is not one of {METRICS}"
    a = ranked(labels, probabilities_a, threshold_a, groups, folds)
    b = ranked(labels, probabilities_b, threshold_b, groups, folds)
    value = getattr(a.as_scores(), metric) - getattr(b.as_scores(), metric)
    jackknife = GroupJackknife(labels, groups)
    left_out = jackknife.values(lambda weights: {metric: a.scores(weights)[metric] - b.scores(weights)[metric]})
    return jackknife.interval(value, left_out.get(metric, np.empty(0)), ABOUT.get(metric, "both"), "number")


def balanced_errors(labels: npt.ArrayLike, called: npt.ArrayLike, jackknife: GroupJackknife) -> tuple[Array, Array]:
    """1 - balanced accuracy of k sets of calls on the same images: (k,) of all, (parts, k) with each part left out.

    labels (n,) in {0, 1}; called (k, n) bool, True for positive; jackknife: of the same images. The same groups
    are left out of all k, so any difference or ratio of columns is paired. nan where a class is missing.
    """
    y = np.asarray(labels, dtype=np.float64)
    positive = np.asarray(called, dtype=np.float64)
    assert positive.shape[1:] == y.shape, f"{positive.shape} calls, {y.shape} labels"
    missed, mistaken = (y * (1 - positive)).T, ((1 - y) * positive).T

    def errors(weights: Array) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            return (weights @ missed / (weights @ y)[:, None] + weights @ mistaken / (weights @ (1 - y))[:, None]) / 2

    return errors(np.ones((1, len(y))))[0], np.concatenate([errors(weights) for weights in jackknife.weights()])


def auroc_over_folds(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, groups: npt.ArrayLike, folds: npt.ArrayLike
) -> Interval:
    """AUROC of cross-fitted predictions: the mean over the folds, as models of different folds differ in scale.

    labels, probabilities, groups as of `score_intervals`; folds (n,): the fold in which an image was held out, each
    group within one. Folds with one class are left out, also those that a left-out group leaves with one; value, low
    and high are nan where none is left. Raises RunError as `score`.
    """
    over = OverFolds(labels, probabilities, 0.5, None, folds)
    jackknife = GroupJackknife(labels, groups)
    return jackknife.interval(over.as_scores().auroc, jackknife.values(over.scores).get("auroc", np.empty(0)))
