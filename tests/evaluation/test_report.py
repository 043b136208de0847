"""What is printed beside the scores: intervals, and where there are too few groups for them."""

import re
from math import nan

import numpy as np
import pytest

from fracray.data.baselines import Baseline
from fracray.evaluation.report import say_beaten, say_calibration, say_few_groups, scores_table
from fracray.metrics import FEWEST_GROUPS, ROUGH_BELOW, Interval, score_intervals
from fracray.runtime.console import new_console


def said(capsys, groups, labels):
    say_few_groups(new_console(), groups, labels)
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("groups", "note"),
    [
        (1, "there is only one group, and an interval needs at least 5: there is none"),
        (2, "there are only 2 groups, and an interval needs at least 5: there is none"),
        (FEWEST_GROUPS, "only 5 groups: the intervals are rough"),
        (ROUGH_BELOW - 1, "only 29 groups: the intervals are rough"),
        (ROUGH_BELOW, ""),
    ],
)
def test_too_few_groups_are_noted(capsys, groups, note):
    printed = said(capsys, [f"g{index}" for index in range(groups)] * 4, [0, 1, 1, 0] * groups)
    assert note in printed
    assert (printed == "") == (note == "")


def test_a_class_in_too_few_groups_is_noted(capsys):
    groups = [f"g{index}" for index in range(40)]
    printed = said(capsys, groups, [1, 1] + [0] * 38)
    assert "the fractured radiographs are all in 2 of 40 groups" in printed
    assert "sensitivity has none" in printed
    assert "the other radiographs are all in 1 of 40 groups" in said(capsys, groups, [1] * 39 + [0])
    assert said(capsys, groups, [0] * 40) == ""  # one class: its scores are missing in the table itself


def test_an_interval_that_there_is_not_is_left_empty(capsys):
    scores = {"accuracy": Interval(0.7, nan, nan), "auroc": Interval(0.8, 0.6, 0.9)}
    new_console().print(scores_table(scores, [], "test"))
    printed = capsys.readouterr().out
    assert "0.700" in printed
    assert "nan" not in printed
    assert "[0.600, 0.900]" in printed


def test_the_slope_of_probabilities_that_are_nearly_alike_is_not_determined(capsys):
    labels, groups = np.tile([0, 1, 0, 1, 1], 40), np.repeat(np.arange(20), 10)
    scores = score_intervals(labels, np.tile([0.3001, 0.3001, 0.3, 0.3, 0.3001], 40), groups, 0.5)
    new_console().print(scores_table(scores, [], "test"))
    assert re.search(r"calibration slope +not determined *\n", capsys.readouterr().out)
    assert scores["calibration_slope"].as_dict() == {"value": None, "low": None, "high": None}


def test_the_calibration_error_stands_beside_that_of_a_perfect_model(capsys):
    for value, words in ((0.02, "0.020 is within what"), (0.09, "0.090 exceeds what")):
        say_calibration(new_console(), {"ece": Interval(value, 0, 0.1)}, 0.05)
        printed = " ".join(capsys.readouterr().out.split())
        assert words in printed
        assert "up to 0.050 in 95% of the draws" in printed
    say_calibration(new_console(), {"ece": Interval(nan, nan, nan)}, nan)
    printed = capsys.readouterr().out
    assert "nan" not in printed
    assert "without the floor of the usual ECE. A slope" in " ".join(printed.split())


def test_a_threshold_for_balanced_accuracy_is_judged_by_that(capsys):
    rivals = [Baseline("id neighbours", "val", 0.90, 0.67, 0.82)]
    say_beaten(new_console(), {"accuracy": 0.8, "balanced_accuracy": 0.8}, rivals, "val", "balanced")
    assert capsys.readouterr().out == ""
    say_beaten(new_console(), {"accuracy": 0.95, "balanced_accuracy": 0.66}, rivals, "val", "balanced")
    assert "the balanced accuracy on val, 0.660, is not above 0.670" in capsys.readouterr().out


@pytest.mark.parametrize(("accuracy", "warned"), [(0.88, True), (0.90, True), (0.901, False)])
def test_a_model_that_does_not_beat_the_no_pixel_predictors_is_warned_of(capsys, accuracy, warned):
    rivals = [
        Baseline("majority", "val", 0.82, 0.5, 0.5),
        Baseline("id neighbours", "val", 0.90, 0.67, 0.82),
        Baseline("tags", "test", 0.99, 0.9, 0.9),  # of another part
    ]
    say_beaten(new_console(), {"accuracy": accuracy}, rivals, "val")
    say_beaten(
        new_console(),
        {"accuracy": Interval(accuracy, 0.5, 0.99)},
        [*rivals, Baseline("x", "val", nan, nan, nan)],
        "val",
    )
    printed = capsys.readouterr().out
    assert printed.count("is not above 0.900, that of the predictor 'id neighbours', which sees no pixel") == 2 * warned
    assert warned or not printed
