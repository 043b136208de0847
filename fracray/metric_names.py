"""The names of the metrics that every epoch reports, and what makes one result better than another.

Imports nothing, so that a misspelt metric is refused without loading numpy or Torch. `metrics.py` computes them.
"""

import math
from collections.abc import Sequence

METRICS = (
    "prevalence",
    "accuracy",
    "balanced_accuracy",
    "auroc",
    "average_precision",
    "sensitivity",
    "specificity",
    "f1",
    "brier",
    "ece",
)
REPORTED = (*(name for name in METRICS if name != "prevalence"), "loss")  # of each validation set, by every epoch
LOWER_IS_BETTER = ("loss", "brier", "ece")


def lower_is_better(reported: str) -> bool:
    """Whether a reported metric, such as 'val_loss' or 'worst_val_brier', is better when it is lower."""
    return reported.rpartition("_")[2] in LOWER_IS_BETTER


def mode_of(metric: str) -> str:
    """'min' or 'max': the direction in which a reported metric is better."""
    return "min" if lower_is_better(metric) else "max"


def is_validation(reported: str) -> bool:
    """Whether a reported value is a metric of a validation set, and not the epoch, a rate or a training loss."""
    return reported.startswith(("val_", "val/", "mean_val_", "worst_val_"))


def reported_metrics(sets: Sequence[str]) -> tuple[str, ...]:
    """The names under which every epoch reports the metrics of these validation sets: see `metrics.over_sets`."""
    prefixes = (*sets, *(("mean_val", "worst_val") if len(sets) > 1 else ()))
    return tuple(f"{prefix}_{metric}" for prefix in prefixes for metric in REPORTED)


def bare_metric(reported: str, sets: Sequence[str]) -> str:
    """'accuracy' of 'val/view_accuracy': a reported metric of these sets, their mean or worst, without the set."""
    return next(
        name for name in REPORTED if reported in {f"{prefix}_{name}" for prefix in (*sets, "mean_val", "worst_val")}
    )


def preference(value: float, loss: float, mode: str) -> tuple[float, float]:
    """Sort key of a result: the larger, the better. First the metric, then a lower validation loss; nan is worst.

    `mode` is 'max' or 'min'. Accuracies of few images are often equal, so the loss decides between them.
    """
    signed = value if mode == "max" else -value
    return (-math.inf if math.isnan(signed) else signed, -math.inf if math.isnan(loss) else -loss)
