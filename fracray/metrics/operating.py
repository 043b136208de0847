"""Operating points: thresholds chosen on one set of images, what they reach on another, and the decision curve.

An image is called positive when its probability is at least the threshold.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fracray.metrics.inputs import Array, checked
from fracray.metrics.intervals import GroupJackknife, Interval
from fracray.metrics.scores import choose_threshold, cuts, nearest_half

TARGETS = (0.90, 0.95)  # of specificity, and of sensitivity
ROUNDING = 1e-12  # 0.9 of 10 is 9, whatever the division says
LIKELY = tuple(round(0.01 * step, 2) for step in range(1, 100))  # threshold probabilities of a decision curve


@dataclass(frozen=True)
class CostRatio:
    """What a missed fracture costs, and what a false alarm: only their ratio matters. Both above 0."""

    missed: float
    false_alarm: float


def choose_operating_points(
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    cost: CostRatio | None = None,
    prevalence: float | None = None,
) -> dict[str, float]:
    """Thresholds by name, chosen on these images; labels (n,) in {0, 1}, with both classes, probabilities (n,) in 0..1.

    'specificity_0.90': of the thresholds with at least this specificity, that of the highest sensitivity, then of the
    highest specificity; 'sensitivity_0.90': the reverse. 'youden': the highest sensitivity + specificity - 1 (Youden
    1950, Cancer 3, 32). 'cost', with a cost: the lowest mean cost at this prevalence (default: that of these images).
    Of several thresholds that are best for the last two, the nearest to 0.5, then the lower.
    Raises RunError for probabilities that are not finite.
    """
    y, p = checked(labels, probabilities)
    positives, negatives = int(y.sum()), int(len(y) - y.sum())
    assert 0 < positives < len(y), "an operating point needs both classes"
    thresholds, caught, spared = cuts(y, p)
    found = {}
    for target in TARGETS:
        enough = spared >= target * negatives - ROUNDING
        found[f"specificity_{target:.2f}"] = float(thresholds[enough & (caught == caught[enough].max())][-1])
    for target in TARGETS:
        enough = caught >= target * positives - ROUNDING
        found[f"sensitivity_{target:.2f}"] = float(thresholds[enough & (spared == spared[enough].max())][0])
    found["youden"] = choose_threshold(y, p, "balanced")
    if cost is not None:
        share = positives / len(y) if prevalence is None else prevalence
        missed, alarms = 1 - caught / positives, 1 - spared / negatives
        costs = share * cost.missed * missed + (1 - share) * cost.false_alarm * alarms
        found["cost"] = nearest_half(thresholds[costs <= costs.min() * (1 + 1e-9) + ROUNDING])
    return found


def operating_scores(
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    groups: npt.ArrayLike,
    threshold: npt.ArrayLike,
    prevalence: float | None = None,
) -> dict[str, Interval]:
    """What a threshold, one or (n,), reaches on these images, with 95% intervals over groups: see `GroupJackknife`.

    sensitivity, specificity, ppv and npv: of those called positive or negative, the share that is. At a given
    prevalence the last two follow from the first two by Bayes' theorem; without one they are those of the set itself.
    nan where undefined, such as the ppv where nothing is called positive. A ppv or npv of exactly 0 or 1 knows only of
    the groups that it is a share of; at a given prevalence its other end is that of the rate which decides it.
    """
    y, p = checked(labels, probabilities)
    called = (p >= np.broadcast_to(threshold, y.shape)).astype(np.float64)

    def statistic(weights: Array) -> dict[str, Array]:
        tp, fn = weights @ (y * called), weights @ (y * (1 - called))
        fp, tn = weights @ ((1 - y) * called), weights @ ((1 - y) * (1 - called))
        with np.errstate(divide="ignore", invalid="ignore"):
            sensitivity, specificity = tp / (tp + fn), tn / (tn + fp)
            share = (tp + fn) / (tp + fn + fp + tn) if prevalence is None else prevalence
            predictive = _predictive_values(sensitivity, specificity, share)
        return {"sensitivity": sensitivity, "specificity": specificity, **predictive}

    jackknife = GroupJackknife(y, groups)
    values, left_out = statistic(np.ones((1, len(y)))), jackknife.values(statistic)
    about = {"sensitivity": "positive", "specificity": "negative"}
    found = {
        name: jackknife.interval(float(value[0]), left_out[name], about.get(name, "both"))  # type: ignore[arg-type]
        for name, value in values.items()
    }
    for name, inside in (("ppv", called == 1), ("npv", called == 0)):
        value = found[name].value
        if value not in {0.0, 1.0} or math.isnan(found[name].low):
            continue
        if prevalence is None:
            own = GroupJackknife(y[inside], np.asarray(groups)[inside])
            found[name] = own.interval(value, left_out[name], "all")
        else:
            found[name] = _certain(found, name, prevalence)
    return found


def _predictive_values(sensitivity: Array, specificity: Array, share: float | Array) -> dict[str, Array]:
    """ppv and npv at a share of positives, by Bayes' theorem."""
    caught, alarms = share * sensitivity, (1 - share) * (1 - specificity)
    missed, spared = share * (1 - sensitivity), (1 - share) * specificity
    return {"ppv": caught / (caught + alarms), "npv": spared / (missed + spared)}


def _certain(found: Mapping[str, Interval], name: str, prevalence: float) -> Interval:
    """The interval of a ppv or npv of 0 or 1 at a prevalence: the rate that is 0 or 1 too decides it."""
    value = found[name].value
    rates = {each: np.array(found[each].value) for each in ("sensitivity", "specificity")}
    decides = "specificity" if (name == "ppv") == (value == 1) else "sensitivity"
    rates[decides] = np.array(found[decides].low if value == 1 else found[decides].high)
    end = float(_predictive_values(**rates, share=prevalence)[name])
    return Interval(value, min(value, end), max(value, end))


def at_prevalence(probabilities: npt.ArrayLike, before: npt.ArrayLike, after: float) -> Array:
    """Probabilities (n,) that are calibrated at one prevalence, `before`, one or (n,), as they are at another one.

    By Bayes' theorem, where the radiographs of each class stay as they are, the odds change by the ratio of the odds of
    the prevalences (Saerens et al. 2002, doi 10.1162/089976602753284446). Both prevalences above 0 and below 1.
    """
    p, share = np.asarray(probabilities, dtype=np.float64), np.asarray(before, dtype=np.float64)
    ill, well = p * after / share, (1 - p) * (1 - after) / (1 - share)
    return ill / (ill + well)


@dataclass(frozen=True)
class DecisionCurve:
    """Net benefit by threshold probability, in true positives per image; that of treating none is 0.

    thresholds: (k,); model, all: the model's net benefit, and that of treating all, with 95% intervals over groups;
    gain: the model's over the better one of treating all and treating none, whose interval is that of the difference.
    """

    thresholds: tuple[float, ...]
    prevalence: float
    model: tuple[Interval, ...]
    all: tuple[Interval, ...]
    gain: tuple[Interval, ...]

    def rows(self) -> list[dict[str, float]]:
        """One row a threshold, flat."""
        curves: Mapping[str, tuple[Interval, ...]] = {"model": self.model, "treat_all": self.all, "gain": self.gain}
        return [
            {"threshold_probability": threshold}
            | {
                f"{name}{end}": getattr(curve[at], field)
                for name, curve in curves.items()
                for end, field in (("", "value"), ("_low", "low"), ("_high", "high"))
            }
            | {"treat_none": 0.0}
            for at, threshold in enumerate(self.thresholds)
        ]


def decision_curve(
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    groups: npt.ArrayLike,
    prevalence: float | None = None,
    thresholds: tuple[float, ...] = LIKELY,
) -> DecisionCurve:
    """Net benefit: true positives less false positives times the odds of the threshold probability, per image.

    labels (n,) in {0, 1}, probabilities (n,) in 0..1, groups (n,); thresholds above 0 and below 1. A threshold
    probability t stands for a user to whom a missed fracture is as bad as (1 - t) / t false alarms. At another
    prevalence the two error rates are weighted by it; the probabilities must be those of that prevalence, as
    `at_prevalence` gives them. Source: Vickers and Elkin
    2006, doi 10.1177/0272989X06295361.
    """
    y, p = checked(labels, probabilities)
    at = np.array(thresholds)
    odds = at / (1 - at)
    called = (p[:, None] >= at).astype(np.float64)
    caught, alarms = y[:, None] * called, (1 - y)[:, None] * called

    def curves(weights: Array) -> Array:  # (3, r, k)
        positive, negative = (weights @ y)[:, None], (weights @ (1 - y))[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            share = positive / (positive + negative) if prevalence is None else np.full_like(positive, prevalence)
            # A set of one class has no rate of the other, which then weighs nothing.
            # The rates first: one of exactly 1 then gives exactly what treating all gives.
            hits = np.where(share > 0, share * ((weights @ caught) / positive), 0.0)
            costs = np.where(share < 1, (1 - share) * ((weights @ alarms) / negative), 0.0) * odds
        treat_all = share - (1 - share) * odds
        return np.stack([hits - costs, treat_all, hits - costs])

    jackknife = GroupJackknife(y, groups)
    values = curves(np.ones((1, len(y))))
    left_out = np.concatenate([values[:, :0], *(curves(weights) for weights in jackknife.weights())], axis=1)
    # Of the strategy that is better on all images, so that the interval is that of one difference.
    rival = values[1, 0] > 0
    for found in (values, left_out):
        found[2] -= np.where(rival, found[1], 0.0)
    share = float(y.mean()) if prevalence is None else prevalence
    model, treat_all, gain = (
        tuple(
            jackknife.interval(float(values[row, 0, column]), left_out[row, :, column], scale="number")
            for column in range(len(at))
        )
        for row in range(3)
    )
    if prevalence is not None:  # known, so treating all has a known benefit
        treat_all = tuple(Interval(one.value, math.nan, math.nan) for one in treat_all)
    return DecisionCurve(thresholds, share, model, treat_all, gain)
