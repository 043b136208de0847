"""The gain of one configuration over another where each was trained with several seeds."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from fracray.metrics.inputs import Array
from fracray.metrics.intervals import ABOUT, LEVEL, GroupJackknife, Interval, ranked
from fracray.metrics.scores import OverFolds, Ranked, log_losses, mean_over_folds, rows_by_fold

FEWEST_SEEDS = 2  # of one, it is not known what another one would give


@dataclass(frozen=True)
class SeedRun:
    """One training's probabilities (n,) on a set of images, and its threshold; over folds one for each image, (n,)."""

    probabilities: Array
    threshold: float | Array


def seeded_gain(
    labels: Array,
    groups: Array,
    ours: Sequence[SeedRun],
    theirs: Sequence[SeedRun],
    metric: str,
    folds: Array | None = None,
) -> Interval:
    """The mean score over the seeds of one configuration minus that of another, on the same images.

    labels (n,) in {0, 1}; groups (n,); metric: a name from METRICS, or 'loss'. folds (n,): where a training is a model
    of each fold, the fold in which an image was held out; its score is the mean over the folds. The 95% interval knows
    of both what other groups of images and what other seeds would change: its variance is the sum of that between
    groups (the same ones left out of all trainings, see GroupJackknife) and that between seeds, and its degrees of
    freedom are Satterthwaite's (1946, doi 10.2307/3002019). The sum is no less than the variance where seeds and groups
    are both drawn at random (Owen 2007, doi 10.1214/07-AOAS122), and more where they interact. Without what it is too
    much, two seeds and 11 groups held the truth in 0.90 of the samples instead of 0.96. low and high are nan with one
    seed, and as of `score_intervals`.
    """
    jackknife = GroupJackknife(labels, groups)
    sides = [[_scorer(labels, groups, run, metric, folds) for run in runs] for runs in (ours, theirs)]

    def values(weights: Array) -> list[Array]:
        return [np.stack([scorer(weights) for scorer in side]) for side in sides]  # each (seeds, r)

    of_all = [found[:, 0] for found in values(np.ones((1, len(labels))))]
    gain = float(of_all[0].mean() - of_all[1].mean())
    if metric == "ece":  # signed, a calibration error varies as it should; what each training reports is not
        reported = [[_ranked(labels, groups, run, folds).as_scores().ece for run in side] for side in (ours, theirs)]
        gain = float(np.mean(reported[0]) - np.mean(reported[1]))
    differences = [found[0].mean(0) - found[1].mean(0) for found in map(values, jackknife.weights())]
    left_out = np.concatenate(differences) if differences else np.empty(0)
    effective = jackknife.effective_groups(ABOUT.get(metric, "all" if metric == "loss" else "both"))
    few = min(len(ours), len(theirs)) < FEWEST_SEEDS
    if few or math.isnan(gain) or math.isnan(effective) or not np.isfinite(left_out).all():
        return Interval(gain, math.nan, math.nan)
    parts = [(_spread(left_out), max(1.0, effective - 1))]
    parts += [(float(found.var(ddof=1)) / len(found), len(found) - 1.0) for found in of_all]
    variance = sum(part for part, _ in parts)
    if not variance:
        return Interval(gain, gain, gain)
    freedom = variance**2 / sum(part**2 / known for part, known in parts)
    half = float(stdtrit(freedom, (1 + LEVEL) / 2)) * math.sqrt(variance)
    return Interval(gain, gain - half, gain + half)


def _spread(left_out: Array) -> float:
    """The jackknife's variance of a value, from it with each part left out, (parts,)."""
    count = len(left_out)
    return (count - 1) / count * float(((left_out - left_out.mean()) ** 2).sum())


def _scorer(labels: Array, groups: Array, run: SeedRun, metric: str, folds: Array | None) -> Callable[[Array], Array]:
    """One training's score as a function of image weights (r, n), giving (r,)."""
    if metric == "loss":
        losses = log_losses(labels, run.probabilities)
        inside = rows_by_fold(np.zeros(len(losses)) if folds is None else folds)

        def loss(weights: Array) -> Array:
            with np.errstate(invalid="ignore"):  # a group that is left out may be all of its fold
                each = [weights[:, rows] @ losses[rows] / weights[:, rows].sum(1) for rows in inside]
            return mean_over_folds(np.array(each))

        return loss
    scored = _ranked(labels, groups, run, folds)
    return lambda weights: scored.scores(weights)[metric]


def _ranked(labels: Array, groups: Array, run: SeedRun, folds: Array | None) -> Ranked | OverFolds:
    return ranked(labels, run.probabilities, run.threshold, groups, folds)
