"""Two checkpoints on the same radiographs: the differences of their scores, with intervals over groups.

What both find easy or hard cancels out, so a difference is known better than either score. Must not know of the
command line.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console

from fracray.data.loading.shards import Shards
from fracray.evaluation.inference import predict
from fracray.evaluation.scoring import Scored, refuse_seen, unseen
from fracray.metrics import DeLong, Interval, cross_fitted, delong, paired_gain, score
from fracray.training.checkpoint import Checkpoint

COMPARED = ("auroc", "average_precision", "accuracy", "balanced_accuracy", "brier")


@dataclass(frozen=True)
class Compared:
    """One metric of both models, and the first less the second."""

    ours: float
    theirs: float
    difference: Interval


@dataclass(frozen=True)
class Comparison:
    """A checkpoint against another, `location`: metrics by name on the images that neither has seen."""

    location: str
    images: int
    groups: int
    metrics: dict[str, Compared]
    check: DeLong

    def as_dict(self) -> dict[str, Any]:
        """By name, as JSON values; undefined scores are null."""
        return {
            "location": self.location,
            "images": self.images,
            "groups": self.groups,
            "metrics": {
                name: {"ours": _finite(one.ours), "theirs": _finite(one.theirs), "difference": one.difference.as_dict()}
                for name, one in self.metrics.items()
            },
            "delong": self.check.as_dict(),
        }


def rows_for(
    location: str, other: Checkpoint, scored: Scored, trained_on: str, part: str, console: Console
) -> np.ndarray:
    """Which of the scored radiographs, (n,) bool, the other checkpoint has not seen either.

    trained_on: the fingerprint of the data that the scored checkpoint was trained on. Where both were trained on this
    data, InputError if the other was trained on one of the radiographs: its split is another one.
    """
    prepared = scored.prepared
    if other.metadata.data_fingerprint == prepared.fingerprint == trained_on:
        if part not in ("train", "all"):
            refuse_seen(other, prepared, scored.rows, f"--against {location}: name a model of the same split")
        return np.ones(len(scored.rows), dtype=bool)
    console.print(f"of --against {location}:")
    return np.isin(scored.rows, unseen(other, prepared, scored.rows, console))


def compare(
    location: str, other: Checkpoint, shards: Shards, scored: Scored, trained_on: str, part: str, console: Console
) -> Comparison:
    """The scores less those of the other checkpoint, each at its own threshold and calibration.

    shards: of the same radiographs, at the size that the other takes; trained_on: as of `rows_for`; part: the name of
    the set, for what was fitted to it. The intervals know of the groups, and not of what another seed of either
    training would give.
    """
    ours = scored.only(rows_for(location, other, scored, trained_on, part, console))
    labels, groups = ours.labels, ours.groups
    logits = predict(other, shards, ours.rows, console)
    probabilities = other.metadata.calibration.apply(logits)
    told = cross_fitted(labels, logits, groups) if part == "val" else probabilities  # fitted to these very images
    metrics = {}
    for name in COMPARED:
        a, b = (ours.told, told) if name == "brier" else (ours.probabilities, probabilities)
        own, theirs = (
            getattr(score(labels, p, threshold), name)
            for p, threshold in ((a, ours.thresholds), (b, other.metadata.threshold))
        )
        gain = paired_gain(labels, a, ours.thresholds, b, other.metadata.threshold, groups, name)
        metrics[name] = Compared(own, theirs, gain)
    check = delong(labels, ours.probabilities, probabilities)
    return Comparison(location, len(ours.rows), len(set(groups)), metrics, check)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
