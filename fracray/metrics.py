"""Scores, intervals, operating points and calibration of a binary classifier, in plain numpy.

Knows nothing of images, networks, files or Ray. Every score counts each image once; a positive is label 1 (fractured),
and an image is called positive when its probability is at least the threshold.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit

from fracray.errors import RunError
from fracray.metric_names import METRICS, REPORTED, lower_is_better

Array = npt.NDArray[np.float64]
BINS = 15
# Resampled weights are held as (resamples, images); this many at a time bounds the memory at some 100 MB.
CELLS = 1_000_000
# Outside these bounds, logits are separable or useless and the calibration is no estimate.
TEMPERATURES = (0.05, 20.0)
BIASES = (-10.0, 10.0)


@dataclass(frozen=True)
class Scores:
    """The scores of a set of probabilities at one threshold; nan where undefined, such as AUROC with one class.

    All except the count `n` are in 0..1. `brier`: mean squared error of the probabilities. `average_precision`: the
    step-wise area under precision over recall. `ece`: expected calibration error over 15 equal-mass bins (Naeini et
    al., AAAI 2015; equal mass after Nixon et al., CVPRW 2019), the mean over images of |mean probability - share
    positive| of their bin; equal probabilities share a bin, that of their middle rank.
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


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval; `low` and `high` are nan where there is none."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float | None]:
        """By name, as JSON values; nan and infinity become null."""
        return {name: value if math.isfinite(value) else None for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Calibration:
    """Logits to probabilities: sigmoid(logit / temperature + bias).

    Temperature alone (Guo et al., ICML 2017) keeps logit 0 at probability 0.5. A loss weighted against the imbalance
    moves every logit by about log(weight), which only a bias corrects (Platt, 1999), so both are fitted. The order
    of the images, and with it AUROC, does not change.
    """

    temperature: float = 1.0
    bias: float = 0.0

    def apply(self, logits: npt.ArrayLike) -> Array:
        """Probabilities, float64, of logits of any shape."""
        return np.asarray(expit(np.asarray(logits, dtype=np.float64) / self.temperature + self.bias))


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
            found[f"worst_val_{metric}"] = max(values) if lower_is_better(metric) else min(values)
    return found


def by_set(values: Mapping[str, float], sets: Sequence[str]) -> dict[str, dict[str, float]]:
    """The metrics of each set by their bare name, from values by reported name: the inverse of `over_sets`."""
    return {
        name: {key.removeprefix(f"{name}_"): value for key, value in values.items() if key.startswith(f"{name}_")}
        for name in sets
    }


def score(labels: npt.ArrayLike, probabilities: npt.ArrayLike, threshold: float) -> Scores:
    """Every score of one set; labels (n,) in {0, 1}, probabilities (n,) in 0..1.

    Raises RunError for probabilities that are not finite, as after a training that diverged.
    """
    ranked = _Ranked(labels, probabilities, threshold)
    values = ranked.scores(np.ones((1, ranked.n)))
    return Scores(n=ranked.n, **{name: float(values[name][0]) for name in METRICS})


def choose_threshold(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, operating_point: Literal["accuracy", "balanced"]
) -> float:
    """The threshold that maximises accuracy or balanced accuracy on these images, in 0..1 (or just above 1).

    Candidates lie midway between neighbouring probabilities, with 0 and 1 as the outer neighbours. Of several best
    ones, the nearest to 0.5 is taken, then the lower. With a single class the threshold is 0.5.
    Raises RunError for probabilities that are not finite.
    """
    y, p = _checked(labels, probabilities)
    positives, negatives = y.sum(), len(y) - y.sum()
    if not positives or not negatives:
        return 0.5
    levels, level_of = np.unique(p, return_inverse=True)
    lower = np.concatenate([[min(0.0, levels[0])], levels])
    upper = np.concatenate([levels, [max(1.0, np.nextafter(levels[-1], np.inf))]])
    middle = (lower + upper) / 2
    # There is no float between two neighbouring ones: the upper one still separates them, as p >= threshold.
    candidates = np.where(middle > lower, middle, upper)
    candidates[0] = middle[0]
    caught = positives - np.concatenate([[0], np.cumsum(np.bincount(level_of, y))])
    spared = np.concatenate([[0], np.cumsum(np.bincount(level_of, 1 - y))])
    # Integers, so that equal gains compare equal.
    worth = caught + spared if operating_point == "accuracy" else caught * negatives + spared * positives
    best = candidates[worth == worth.max()]
    return float(best[np.argmin(np.abs(best - 0.5))])


def bootstrap(
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    groups: npt.ArrayLike,
    threshold: npt.ArrayLike,
    repeats: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Percentile intervals of every metric of Scores from a cluster bootstrap.

    `threshold` is one number, or (n,) where models of several folds scored one image each. Whole groups, (n,)
    integers or strings, are drawn with replacement, as many as there are, because images of a
    group are not independent (Field and Welsh, 2007, doi 10.1111/j.1467-9868.2007.00593.x). Resamples in which a
    metric is undefined are left out of its quantiles. ECE grows with resampling, so an interval that does not
    contain its value is widened to contain it. With fewer than two groups low and high are nan. RunError as `score`.
    """
    ranked = _Ranked(labels, probabilities, threshold)
    values = ranked.scores(np.ones((1, ranked.n)))
    drawn = [ranked.scores(weights) for weights in _resamples(groups, ranked.n, repeats, seed)]
    return {
        name: percentile_interval(float(values[name][0]), np.concatenate([part[name] for part in drawn]), level)
        if drawn
        else Interval(float(values[name][0]), math.nan, math.nan)
        for name in METRICS
    }


def paired_gain(
    labels: npt.ArrayLike,
    probabilities_a: npt.ArrayLike,
    threshold_a: float,
    probabilities_b: npt.ArrayLike,
    threshold_b: float,
    groups: npt.ArrayLike,
    metric: str = "accuracy",
    repeats: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """The score of model a minus that of model b on the same images, both on the same resamples of groups.

    Arguments and interval as in `bootstrap`; `metric` is a name from METRICS.
    """
    assert metric in METRICS, f"{metric} is not one of {METRICS}"
    a = _Ranked(labels, probabilities_a, threshold_a)
    b = _Ranked(labels, probabilities_b, threshold_b)
    ones = np.ones((1, a.n))
    value = float(a.scores(ones)[metric][0] - b.scores(ones)[metric][0])
    drawn = [a.scores(w)[metric] - b.scores(w)[metric] for w in _resamples(groups, a.n, repeats, seed)]
    return percentile_interval(value, np.concatenate(drawn), level) if drawn else Interval(value, math.nan, math.nan)


def balanced_errors(
    labels: npt.ArrayLike, called: npt.ArrayLike, groups: npt.ArrayLike, repeats: int = 1000, seed: int = 0
) -> tuple[Array, Array]:
    """1 - balanced accuracy of k sets of calls on the same images: (k,) of all, (repeats, k) on resamples of groups.

    labels (n,) in {0, 1}; called (k, n) bool, True for positive; groups (n,). All k use the same resamples, so
    any difference or ratio of columns is paired. nan where a class is missing; no resamples with fewer than two groups.
    """
    y = np.asarray(labels, dtype=np.float64)
    positive = np.asarray(called, dtype=np.float64)
    assert positive.shape[1:] == y.shape, f"{positive.shape} calls, {y.shape} labels"
    missed, mistaken = (y * (1 - positive)).T, ((1 - y) * positive).T

    def errors(weights: Array) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            return (weights @ missed / (weights @ y)[:, None] + weights @ mistaken / (weights @ (1 - y))[:, None]) / 2

    drawn = [errors(weights) for weights in _resamples(groups, len(y), repeats, seed)]
    return errors(np.ones((1, len(y))))[0], np.concatenate(drawn) if drawn else np.empty((0, len(positive)))


def auroc_over_folds(
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    groups: npt.ArrayLike,
    folds: npt.ArrayLike,
    repeats: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """AUROC of cross-fitted predictions: the mean over the folds, as models of different folds differ in scale.

    labels, probabilities, groups as in `bootstrap`; folds (n,): the fold in which an image was held out, each group
    within one. Groups are drawn within their fold, as in `bootstrap`; folds with one class are left out, and value,
    low and high are nan where none is left. Raises RunError as `score`.
    """
    y, p, group, fold = np.asarray(labels), np.asarray(probabilities), np.asarray(groups), np.asarray(folds)
    inside = [rows for name in np.unique(fold) if len(set(y[rows := np.flatnonzero(fold == name)])) == 2]
    if not inside:
        return Interval(math.nan, math.nan, math.nan)
    values, drawn = [], []
    for number, rows in enumerate(inside):
        ranked = _Ranked(y[rows], p[rows], 0.5)
        values.append(ranked.scores(np.ones((1, ranked.n)))["auroc"][0])
        drawn.append([ranked.scores(w)["auroc"] for w in _resamples(group[rows], ranked.n, repeats, seed + number)])
    if not all(drawn):
        return Interval(float(np.mean(values)), math.nan, math.nan)
    return percentile_interval(
        float(np.mean(values)), np.mean([np.concatenate(parts) for parts in drawn], axis=0), level
    )


def fit_temperature(labels: npt.ArrayLike, logits: npt.ArrayLike) -> Calibration:
    """Fit temperature and bias by maximum likelihood; labels (n,) in {0, 1}, logits (n,).

    Bounded to TEMPERATURES and BIASES, so separable logits end at a bound. With a single class the identity is
    returned. Raises RunError for logits that are not finite. Sources: see Calibration.
    """
    y, z = _checked(labels, logits)
    if not len(y) or y.min() == y.max():
        return Calibration()

    def loss(parameters: Array) -> tuple[float, Array]:
        slope, bias = parameters
        u = slope * z + bias
        residual = expit(u) - y
        return float(np.mean(np.logaddexp(0.0, u) - y * u)), np.array([np.mean(residual * z), np.mean(residual)])

    slopes = (1 / TEMPERATURES[1], 1 / TEMPERATURES[0])
    # Convex in slope and bias, so the starting point does not matter.
    found = minimize(
        loss,
        x0=np.array([1.0, 0.0]),
        jac=True,
        method="L-BFGS-B",
        bounds=[slopes, BIASES],
        options={"ftol": 1e-15, "gtol": 1e-9, "maxiter": 500},
    )
    return Calibration(temperature=float(1 / found.x[0]), bias=float(found.x[1]))


# ---- arithmetic ----------------------------------------------------------------------------------------------------


class _Ranked:
    """One model's probabilities, sorted once and scored with many sets of image weights."""

    def __init__(self, labels: npt.ArrayLike, probabilities: npt.ArrayLike, threshold: npt.ArrayLike) -> None:
        y, p = _checked(labels, probabilities)
        self.n = len(y)
        self.order = np.argsort(p, kind="stable")
        self.y = y[self.order]
        self.p = p[self.order]
        self.called = (self.p >= np.broadcast_to(threshold, y.shape)[self.order]).astype(np.float64)
        # Starts of the runs of equal probabilities, ascending.
        self.starts = np.flatnonzero(np.r_[True, self.p[1:] != self.p[:-1]]) if self.n else np.zeros(0, np.intp)

    def scores(self, weights: Array) -> dict[str, Array]:
        """Every metric, each (resamples,), for weights (resamples, n) in the order the images were given."""
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
                "brier": w @ (self.p - self.y) ** 2 / total,
                "ece": self._ece(w, run_p + run_n, total),
            }

    def _ece(self, w: Array, run: Array, total: Array) -> Array:
        middle = np.cumsum(run, axis=1) - run / 2
        bins = np.minimum((BINS * middle / total[:, None]).astype(np.intp), BINS - 1)
        excess = np.add.reduceat(w * (self.p - self.y), self.starts, axis=1)
        flat = bins + BINS * np.arange(len(w))[:, None]
        sums = np.bincount(flat.ravel(), excess.ravel(), minlength=BINS * len(w)).reshape(len(w), BINS)
        return np.abs(sums).sum(1) / total


def _checked(labels: npt.ArrayLike, values: npt.ArrayLike) -> tuple[Array, Array]:
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


def _resamples(groups: npt.ArrayLike, n: int, repeats: int, seed: int) -> Iterator[Array]:
    """Image weights (resamples, n), one block at a time: how often each image's group was drawn."""
    names, group_of = np.unique(np.asarray(groups), return_inverse=True)
    assert len(group_of) == n, f"{n} images, {len(group_of)} groups"
    if len(names) < 2:
        return
    generator = np.random.default_rng(seed)
    block = max(1, CELLS // n)
    for start in range(0, repeats, block):
        count = min(block, repeats - start)
        draws = generator.integers(len(names), size=(count, len(names))) + len(names) * np.arange(count)[:, None]
        counts = np.bincount(draws.ravel(), minlength=count * len(names)).reshape(count, len(names))
        yield counts[:, group_of].astype(np.float64)


def percentile_interval(value: float, drawn: Array, level: float = 0.95) -> Interval:
    """The percentile interval of an estimate from its resamples (repeats,), without nan, widened to contain `value`."""
    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn) or math.isnan(value):
        return Interval(value, math.nan, math.nan)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, min(float(low), value), max(float(high), value))
