"""What is printed where there are too few groups for an interval."""

from math import nan

import pytest

from fracray.evaluation.report import FEW_GROUPS, say_few_groups, scores_table
from fracray.metrics import Interval
from fracray.runtime.console import new_console


@pytest.mark.parametrize(
    ("groups", "note"),
    [(1, "only one group, and an interval needs at least two"), (2, "only 2 groups"), (FEW_GROUPS, None)],
)
def test_too_few_groups_are_noted(capsys, groups, note):
    say_few_groups(new_console(), [f"g{index}" for index in range(groups)] * 3)
    printed = capsys.readouterr().out
    assert note in printed if note else printed == ""


def test_an_interval_that_there_is_not_is_left_empty(capsys):
    scores = {"accuracy": Interval(0.7, nan, nan), "auroc": Interval(0.8, 0.6, 0.9)}
    new_console().print(scores_table(scores, [], "test"))
    printed = capsys.readouterr().out
    assert "0.700" in printed
    assert "nan" not in printed
    assert "[0.600, 0.900]" in printed
