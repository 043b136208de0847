"""Scores, intervals, operating points and calibration of a binary classifier, in plain numpy and scipy.

Knows nothing of images, networks, files or Ray.
"""

from fracray.metrics.calibration import BIASES, TEMPERATURES, Calibration, cross_fitted, fit_temperature
from fracray.metrics.inputs import Array
from fracray.metrics.intervals import (
    FEWEST_GROUPS,
    FEWEST_OF_A_CLASS,
    ROUGH_BELOW,
    GroupJackknife,
    Interval,
    Scale,
    auroc_over_folds,
    balanced_errors,
    paired_gain,
    score_intervals,
)
from fracray.metrics.label_noise import LabelDoubt, doubt_labels
from fracray.metrics.reliability import CalibrationError, slope_and_intercept
from fracray.metrics.scores import Scores, by_set, choose_threshold, over_sets, score

__all__ = [
    "BIASES",
    "FEWEST_GROUPS",
    "FEWEST_OF_A_CLASS",
    "ROUGH_BELOW",
    "TEMPERATURES",
    "Array",
    "Calibration",
    "CalibrationError",
    "GroupJackknife",
    "Interval",
    "LabelDoubt",
    "Scale",
    "Scores",
    "auroc_over_folds",
    "balanced_errors",
    "by_set",
    "choose_threshold",
    "cross_fitted",
    "doubt_labels",
    "fit_temperature",
    "over_sets",
    "paired_gain",
    "score",
    "score_intervals",
    "slope_and_intercept",
]
