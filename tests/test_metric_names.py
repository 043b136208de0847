"""The names of metrics, and the one order in which results are ranked."""

from dataclasses import fields
from math import inf, nan

import pytest

from fracray.metric_names import METRICS, bare_metric, preference
from fracray.metrics import Scores


def test_the_names_are_those_of_the_scores():
    assert tuple(field.name for field in fields(Scores) if field.name != "n") == METRICS


@pytest.mark.parametrize(
    ("mode", "best_first"),
    [
        ("max", [(0.9, 0.5), (0.8, 0.1), (0.8, 0.2), (0.8, nan), (nan, 0.1)]),
        ("min", [(0.1, 0.5), (0.2, 0.1), (0.2, 0.2), (0.2, nan), (nan, 0.1)]),
        ("max", [(inf, 1.0), (0.0, 1.0), (-1.0, 0.1)]),
    ],
)
def test_the_metric_decides_then_the_loss_and_nan_is_last(mode, best_first):
    worst_first = best_first[::-1]
    ranked = sorted(worst_first, key=lambda pair: preference(*pair, mode), reverse=True)
    assert [repr(pair) for pair in ranked] == [repr(pair) for pair in best_first]


@pytest.mark.parametrize(
    ("reported", "bare"),
    [
        ("val_accuracy", "accuracy"),
        ("val/view_balanced_accuracy", "balanced_accuracy"),
        ("worst_val_auroc", "auroc"),
        ("mean_val_loss", "loss"),
    ],
)
def test_a_reported_metric_has_its_bare_name(reported, bare):
    assert bare_metric(reported, ["val", "val/view"]) == bare
