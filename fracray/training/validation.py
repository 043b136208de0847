"""What logits on the validation sets are worth: the calibration, the threshold and the metrics that follow from them.

Knows nothing of networks or of how the logits came about.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from fracray.metrics import Calibration, choose_threshold, cross_fitted, fit_temperature, log_losses, over_sets, score


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
        scores[name] = {"loss": float(log_losses(y, told).mean()), **score(y, p, threshold, group, told).as_dict()}
    return calibration, threshold, over_sets(scores)
