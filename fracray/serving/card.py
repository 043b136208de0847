"""What a client is told of the checkpoint: hash, classes, threshold, and what validation says of its probabilities.

Knows checkpoints and metrics, and no HTTP.
"""

import math
from typing import Any

import numpy as np
import pandas as pd

from fracray.data.manifest import in_set
from fracray.evaluation.maps import WORDS, methods
from fracray.evaluation.operating import OWN, rule_words
from fracray.metrics import choose_operating_points, cross_fitted, operating_scores, reliability_diagram
from fracray.prediction.scoring import conformal_of, hash_of
from fracray.training.checkpoint import Checkpoint


def model_card(checkpoint: Checkpoint, coverage: float) -> dict[str, Any]:
    """A tree of JSON values; what validation says is empty where the checkpoint keeps no logits of both classes.

    operating_points: name, rule, threshold, and sensitivity and specificity on validation with their 95% intervals.
    reliability: bins of validation, from and to which probability, images, mean probability and share fractured, with
    the ends of its band; by probabilities whose calibration was fitted to other groups. conformal: the coverage asked
    for, the groups of each class, and whether a set promises anything for it.
    """
    metadata = checkpoint.metadata
    config, found = metadata.config, methods(checkpoint.model)
    kept = checkpoint.predictions
    validation = None if kept is None else kept[in_set(kept["split"], "val")]
    both = validation is not None and validation["label"].nunique() == 2
    sets = conformal_of(checkpoint, coverage)
    return {
        "checkpoint": hash_of(checkpoint.folder),
        "trial": metadata.trial,
        "epoch": metadata.epoch,
        "members": len(checkpoint.members) or 1,
        "out_of_fold": metadata.out_of_fold,
        "model": config.model.name,
        "size": config.data.size,
        "crop": config.data.crop,
        "classes": list(metadata.classes),
        "threshold": metadata.threshold,
        "operating_point": config.train.operating_point,
        "metrics": {name: _number(value) for name, value in metadata.metrics.items()},
        "heatmap": WORDS[found[0]] if found else None,
        "validation": None
        if validation is None
        else {"images": len(validation), "fractured": int(validation["label"].sum())},
        "operating_points": _points(checkpoint, validation) if validation is not None and both else [],
        "reliability": _reliability(validation) if validation is not None and both else [],
        "conformal": None
        if sets is None
        else {
            "coverage": coverage,
            "groups": list(sets.groups),
            "promised": [math.isfinite(sets.highest_of_0), math.isfinite(sets.lowest_of_1)],
        },
        "versions": metadata.versions,
        "intended_use": "research only, no medical device",
    }


def _points(checkpoint: Checkpoint, validation: pd.DataFrame) -> list[dict[str, Any]]:
    metadata, labels = checkpoint.metadata, validation["label"].to_numpy()
    told = metadata.calibration.apply(validation["logit"].to_numpy())
    points = {OWN: metadata.threshold, **choose_operating_points(labels, told)}
    rows = []
    for name, threshold in points.items():
        reached = operating_scores(labels, told, validation["group"].to_numpy(), threshold)
        rule = rule_words(name, metadata.config.train.operating_point)
        rows.append(
            {"name": name, "rule": rule, "threshold": threshold}
            | {score: _interval(reached[score]) for score in ("sensitivity", "specificity")}
        )
    return rows


def _interval(found: Any) -> dict[str, float | None]:
    return {name: _number(getattr(found, name)) for name in ("value", "low", "high")}


def _reliability(validation: pd.DataFrame) -> list[dict[str, Any]]:
    labels, groups = validation["label"].to_numpy(), validation["group"].to_numpy()
    told = cross_fitted(labels, validation["logit"].to_numpy(), groups)
    bins = reliability_diagram(labels, told, groups)
    means = [one["mean_probability"] for one in bins]
    edges = [0.0, *((np.array(means[:-1]) + means[1:]) / 2).tolist(), 1.0]
    return [
        {"from": edges[at], "to": edges[at + 1]} | {name: _number(value) for name, value in one.items()}
        for at, one in enumerate(bins)
    ]


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
