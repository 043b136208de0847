"""Scores, intervals, operating points and calibration of a binary classifier, in plain numpy and scipy.

Knows nothing of images, networks, files or Ray.
"""

from fracray.metrics.calibration import BIASES, TEMPERATURES, Calibration, cross_fitted, fit_temperature
from fracray.metrics.conformal import ConformalSets, fit_conformal
from fracray.metrics.curves import confusion, histogram, precision_recall_points, reliability_diagram, roc_points
from fracray.metrics.delong import DeLong, delong
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
from fracray.metrics.operating import (
    CostRatio,
    DecisionCurve,
    at_prevalence,
    choose_operating_points,
    decision_curve,
    operating_scores,
)
from fracray.metrics.reliability import CalibrationError, slope_and_intercept
from fracray.metrics.scores import Scores, by_set, choose_threshold, log_losses, over_sets, score

__all__ = [
    "BIASES",
    "FEWEST_GROUPS",
    "FEWEST_OF_A_CLASS",
    "ROUGH_BELOW",
    "TEMPERATURES",
    "Array",
    "Calibration",
    "CalibrationError",
    "ConformalSets",
    "CostRatio",
    "DeLong",
    "DecisionCurve",
    "GroupJackknife",
    "Interval",
    "LabelDoubt",
    "Scale",
    "Scores",
    "at_prevalence",
    "auroc_over_folds",
    "balanced_errors",
    "by_set",
    "choose_operating_points",
    "choose_threshold",
    "confusion",
    "cross_fitted",
    "decision_curve",
    "delong",
    "doubt_labels",
    "fit_conformal",
    "fit_temperature",
    "histogram",
    "log_losses",
    "operating_scores",
    "over_sets",
    "paired_gain",
    "precision_recall_points",
    "reliability_diagram",
    "roc_points",
    "score",
    "score_intervals",
    "slope_and_intercept",
]
