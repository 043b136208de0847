"""Operating points fixed on validation, what they reach on the radiographs that are scored, and the decision curve.

A checkpoint keeps its logits on validation: thresholds come from those, and never from the labels that are scored.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fracray.data.manifest import in_set
from fracray.errors import InputError
from fracray.evaluation.scoring import Scored
from fracray.metrics import (
    CostRatio,
    DecisionCurve,
    Interval,
    at_prevalence,
    choose_operating_points,
    decision_curve,
    operating_scores,
)
from fracray.training.checkpoint import PREDICTIONS, Checkpoint

OWN = "checkpoint"  # the point of the checkpoint's own threshold


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold by the rule that fixed it on validation, and what it reached there and reaches here.

    thresholds: one for each checkpoint; on_validation: sensitivity and specificity, the mean over the checkpoints;
    reached: sensitivity, specificity, ppv and npv on the radiographs that are scored.
    """

    name: str
    words: str
    thresholds: tuple[float, ...]
    on_validation: dict[str, float]
    reached: dict[str, Interval]

    def as_dict(self) -> dict[str, Any]:
        """By name, as JSON values."""
        return {
            "name": self.name,
            "rule": self.words,
            "thresholds": list(self.thresholds),
            "on_validation": self.on_validation,
            "reached": {name: interval.as_dict() for name, interval in self.reached.items()},
        }


@dataclass(frozen=True)
class Operating:
    """The operating points and the decision curve, at a prevalence that is `given` or that of the set itself."""

    points: tuple[OperatingPoint, ...]
    curve: DecisionCurve
    prevalence: float
    given: bool

    def as_dict(self) -> dict[str, Any]:
        """A tree of JSON values."""
        prevalence = {"prevalence": self.prevalence, "prevalence_is": "given" if self.given else "of the set itself"}
        return prevalence | {"points": [one.as_dict() for one in self.points]}


def score_operating_points(
    checkpoints: Sequence[Checkpoint], scored: Scored, cost: CostRatio | None = None, prevalence: float | None = None
) -> Operating:
    """Fix the thresholds on each checkpoint's validation and apply them to what is scored.

    Of several checkpoints, each applies its own to the images of its fold. prevalence: for ppv, npv, the cost and the
    net benefit, for which the probabilities are moved to it; without it, the set's own, and for the cost that of
    validation. InputError for a checkpoint without predictions on validation.
    """
    chosen = []
    for checkpoint in checkpoints:
        labels, probabilities = validation(checkpoint)
        points = {OWN: checkpoint.metadata.threshold}
        points |= choose_operating_points(labels, probabilities, cost, prevalence)
        chosen.append((labels, probabilities, points))
    fold = np.zeros(len(scored.rows), dtype=np.intp) if scored.folds is None else scored.folds
    found = []
    for name in chosen[0][2]:
        thresholds = np.array([points[name] for _, _, points in chosen])
        there = np.array([_rates(labels, told, points[name]) for labels, told, points in chosen]).mean(0)
        words = rule_words(name, checkpoints[0].metadata.config.train.operating_point, cost)
        reached = operating_scores(scored.labels, scored.probabilities, scored.groups, thresholds[fold], prevalence)
        on_validation = {"sensitivity": float(there[0]), "specificity": float(there[1])}
        found.append(OperatingPoint(name, words, tuple(thresholds.tolist()), on_validation, reached))
    share = float(scored.labels.mean()) if prevalence is None else prevalence
    told = scored.told
    if prevalence is not None:  # they are calibrated on validation
        before = np.array([labels.mean() for labels, _, _ in chosen])
        told = at_prevalence(told, before[fold], prevalence)
    curve = decision_curve(scored.labels, told, scored.groups, prevalence)
    return Operating(tuple(found), curve, share, prevalence is not None)


def validation(checkpoint: Checkpoint) -> tuple[np.ndarray, np.ndarray]:
    """Labels and calibrated probabilities, (n,) each, on the set 'val'; InputError where they were not saved."""
    kept = checkpoint.predictions
    if kept is None:
        raise InputError(
            f"{checkpoint.folder}: has no {PREDICTIONS}, and operating points are fixed on validation alone; name a "
            "checkpoint as a training wrote it"
        )
    inside = kept[in_set(kept["split"], "val")]
    labels = inside["label"].to_numpy()
    if len(np.unique(labels)) < 2:
        raise InputError(f"{checkpoint.folder}: its validation set has one class, which fixes no operating point")
    return labels, checkpoint.metadata.calibration.apply(inside["logit"].to_numpy())


def _rates(labels: np.ndarray, probabilities: np.ndarray, threshold: float) -> tuple[float, float]:
    called = probabilities >= threshold
    return float(called[labels == 1].mean()), float((~called)[labels == 0].mean())


def rule_words(name: str, operating_point: str, cost: CostRatio | None = None) -> str:
    """The rule of a point of `choose_operating_points`, or of OWN, in words.

    operating_point: what the checkpoint's own threshold maximises, as train.operating_point.
    """
    rule, _, target = name.partition("_")
    if name == OWN:
        return f"the checkpoint's own: best {'balanced ' if operating_point == 'balanced' else ''}accuracy"
    if name == "youden":
        return "Youden: highest sensitivity + specificity"
    if cost is not None and name == "cost":
        return f"lowest cost, {cost.missed:g} a missed fracture and {cost.false_alarm:g} a false alarm"
    other = "sensitivity" if rule == "specificity" else "specificity"
    return f"highest {other} at a {rule} of {target}"
