"""What the flags print: the sentences that depend on the numbers."""

import io
import math

import numpy as np
import pytest
from rich.console import Console

from fracray.evaluation.flag_tables import say_decision_curve, say_saliency, say_subgroups
from fracray.evaluation.operating import Operating
from fracray.evaluation.saliency import Looked, Pointer, Saliency, Sanity
from fracray.evaluation.subgroups import Subgroup
from fracray.metrics import Interval, decision_curve

UNKNOWN = Interval(math.nan, math.nan, math.nan)


def printed(say, *found, width=120):
    console = Console(width=width, record=True, file=io.StringIO(), highlight=False, markup=False)
    say(console, *found)
    return console.export_text()


def test_where_a_model_is_worth_more_is_said_in_ranges():
    generator = np.random.default_rng(0)
    labels = (generator.random(2000) < 0.3).astype(int)
    good = np.where(labels == 1, 0.6, 0.1) + generator.uniform(-0.05, 0.05, 2000)
    curve = decision_curve(labels, good, np.arange(2000) // 20)
    out = printed(say_decision_curve, Operating((), curve, 0.3, False))
    # Below 5% the model calls all, as treating all does; from 65% on it calls none.
    useful = [round(100 * t) for t, gain in zip(curve.thresholds, curve.gain, strict=True) if gain.low > 0]
    assert useful == list(range(useful[0], useful[-1] + 1))
    assert (5 < useful[0] < 15, 55 < useful[-1] < 66) == (True, True)
    assert f"(interval above 0) at a threshold probability of {useful[0]}% to {useful[-1]}%, at a prevalence of" in out
    assert "19 false alarms" in out
    assert "1 false alarm " in out
    assert "moved" not in out
    useless = decision_curve(labels, np.full(2000, 0.3), np.arange(2000) // 20, prevalence=0.05)
    out = printed(say_decision_curve, Operating((), useless, 0.05, True))
    assert "(interval above 0) at no threshold probability, at a prevalence of 5.0%. Its probabilities are moved" in out


def test_a_subgroup_clearly_below_all_is_named_and_one_with_few_images_has_no_score():
    low, fine = Interval(0.6, 0.5, 0.7), Interval(0.7, 0.5, 0.9)
    groups = [
        Subgroup("region", "hip", 20, 30, 8, {"auroc": low}),
        Subgroup("region", "hand", 20, 30, 8, {"auroc": fine}),
        Subgroup("region", "foot", 3, 30, 8, {}, "only 3 fractured: fewer than 10"),
    ]
    out = printed(say_subgroups, groups, {"auroc": Interval(0.8, 0.7, 0.9)})
    assert "lies below the AUROC of all radiographs, 0.800, in: region hip (0.600). Of many subgroups" in out
    row = next(line for line in out.splitlines() if "foot" in line)
    assert row.split() == ["foot", "3", "30", "too", "few"]
    assert "lies below" not in printed(say_subgroups, groups[1:], {"auroc": Interval(0.8, 0.7, 0.9)})


def saliency(gain, head, last, others):
    pointer = Pointer(Interval(0.5, 0.4, 0.6), Interval(0.1, 0.05, 0.2))
    pointers = dict.fromkeys(("map", "random", "centre", "usual"), pointer)
    levels = {"the head": Interval(head, head, head), "all weights": Interval(last, last, last)}
    looked = (Looked("all", 20, pointers, gain, gain), Looked("missed", 4, {}, UNKNOWN, UNKNOWN))
    sanity = Sanity(100, 0, levels, Interval(others, others, others))
    return (Saliency("grad_cam", 7, looked, sanity, "the middle of the image"),)


@pytest.mark.parametrize(
    ("found", "words", "others"),
    [
        ((Interval(0.2, 0.1, 0.3), 0.1, -0.001, 0.2), "the map clearly knows more than the usual place", "much alike"),
        ((Interval(0.0, -0.1, 0.1), 0.1, 0.0, 0.2), "not clearly more than the usual place", "reason of a call"),
        ((Interval(-0.2, -0.3, -0.1), 0.1, 0.0, 0.2), "clearly less than the usual place", "reason of a call"),
        ((Interval(0.2, 0.1, 0.3), 0.9, 0.1, 0.2), "do not read it as the reason of a call", "depends on what"),
        ((Interval(0.2, 0.1, 0.3), 0.1, 0.6, 0.2), "do not read it as the reason of a call", "depends on what"),
        ((Interval(0.2, 0.1, 0.3), 0.1, 0.1, 0.9), "maps of two radiographs are much alike", "reason of a call"),
    ],
)
def test_a_map_is_judged_by_what_it_finds_and_by_what_stays_without_its_weights(found, words, others):
    out = printed(say_saliency, saliency(*found))
    assert words in out
    assert others not in out
    assert "-0.00" not in out.splitlines()[-1]
    assert "the usual place, which is the middle of the image" in out
    assert next(line for line in out.splitlines() if "missed" in line).split() == ["missed", "4", "too", "few"]


def test_without_boxes_there_are_no_hits():
    (one,) = saliency(UNKNOWN, 0.1, 0.0, 0.2)
    out = printed(say_saliency, (Saliency("grad_cam", 7, (), one.sanity),))
    assert "none of these fractured radiographs has a box" in out
    assert "hit of" not in out
