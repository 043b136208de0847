"""What logits on the validation sets are worth: the calibration, the threshold and the metrics that follow from them.

Knows nothing of networks or of how the logits came about.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch.nn import functional as F

from fracray.metrics import Calibration, choose_threshold, cross_fitted, fit_temperature, over_sets, score


def log_loss(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The mean binary cross-entropy of calibrated probabilities (n,), labels (n,) in {0., 1.}."""
    return float(F.binary_cross_entropy(torch.from_numpy(probabilities).float(), torch.from_numpy(labels)))


def score_validation(
    labels: np.ndarray,
    logits: np.ndarray,
    groups: np.ndarray,
    inside: Mapping[str, np.ndarray],
    operating_point: Literal["accuracy", "balanced"],
) -> tuple[Calibration, float, dict[str, float]]:
    """Calibration and threshold fitted on 'val', and the metrics of every set by reported name.

    labels (n,) float32 in {0, 1}; logits (n,), finite; groups (n,); inside: the places in these of each set. On 'val'
    itself loss, Brier score and calibration error are those of cross-fitted probabilities: the calibration has seen
    these labels, so its own would be too good.
    """
    calibration = fit_temperature(labels[inside["val"]], logits[inside["val"]])
    probabilities = calibration.apply(logits)
    threshold = choose_threshold(labels[inside["val"]], probabilities[inside["val"]], operating_point)
    scores = {}
    for name, members in inside.items():
        y, p, group = labels[members], probabilities[members], groups[members]
        told = cross_fitted(y, logits[members], group) if name == "val" else p
        # Of the calibrated probabilities: the class weights in the training loss shift the raw ones.
        scores[name] = {"loss": log_loss(y, told), **score(y, p, threshold, group, told).as_dict()}
    return calibration, threshold, over_sets(scores)
