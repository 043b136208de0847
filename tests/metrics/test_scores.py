"""Scores and thresholds against scikit-learn and closed forms."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from fracray.errors import RunError
from fracray.metric_names import METRICS
from fracray.metrics import choose_threshold, over_sets, score


@st.composite
def predictions(draw, least_of_each=1):
    """Labels of both classes with probabilities on a coarse grid, so that ties are common, 0 and 1 included."""
    labels = draw(st.lists(st.integers(0, 1), min_size=0, max_size=60))
    labels = np.array(labels + [0, 1] * least_of_each)
    steps = draw(st.sampled_from([3, 10, 1000]))
    grid = draw(st.lists(st.integers(0, steps), min_size=len(labels), max_size=len(labels)))
    return labels, np.array(grid) / steps, draw(st.sampled_from([0.0, 0.1, 0.3, 0.5, 2 / 3, 1.0]))


@settings(max_examples=200, deadline=None)
@given(predictions())
def test_every_score_is_that_of_scikit_learn(case):
    labels, probabilities, threshold = case
    called = (probabilities >= threshold).astype(int)
    scores = score(labels, probabilities, threshold)
    assert scores.n == len(labels)
    assert scores.as_dict() | {"n": 0, "ece": 0} == pytest.approx(
        {
            "n": 0,
            "ece": 0,
            "prevalence": labels.mean(),
            "accuracy": sk.accuracy_score(labels, called),
            "balanced_accuracy": sk.balanced_accuracy_score(labels, called),
            "auroc": sk.roc_auc_score(labels, probabilities),
            "average_precision": sk.average_precision_score(labels, probabilities),
            "sensitivity": sk.recall_score(labels, called),
            "specificity": sk.recall_score(labels, called, pos_label=0),
            "f1": sk.f1_score(labels, called),
            "brier": sk.brier_score_loss(labels, probabilities),
        },
        abs=1e-12,
    )


@settings(max_examples=100, deadline=None)
@given(predictions(), st.randoms(use_true_random=False))
def test_scores_do_not_depend_on_the_order_of_the_images(case, random):
    labels, probabilities, threshold = case
    order = list(range(len(labels)))
    random.shuffle(order)
    shuffled = score(labels[order], probabilities[order], threshold)
    assert shuffled.as_dict() == pytest.approx(score(labels, probabilities, threshold).as_dict(), abs=1e-12)


def test_one_probability_for_all_is_calibrated_when_it_is_the_prevalence():
    labels = np.array([1] * 3 + [0] * 9)
    scores = score(labels, np.full(12, 0.25), 0.5)
    assert scores.ece == 0
    assert scores.brier == pytest.approx(0.25 * 0.75)
    assert scores.auroc == 0.5


def test_what_one_class_leaves_undefined_is_nan():
    scores = score([0, 0, 0], [0.1, 0.2, 0.3], 0.5)
    assert (scores.accuracy, scores.specificity, scores.prevalence) == (1.0, 1.0, 0.0)
    undefined = (scores.auroc, scores.average_precision, scores.sensitivity, scores.balanced_accuracy, scores.f1)
    assert all(math.isnan(value) for value in undefined)
    empty = score([], [], 0.5)
    assert empty.n == 0
    assert math.isnan(empty.accuracy)


def test_names_carry_the_prefix():
    assert set(score([0, 1], [0.2, 0.8], 0.5).as_dict("val_")) == {f"val_{name}" for name in ("n", *METRICS)}


def test_predictions_that_are_not_finite_fail_the_run():
    with pytest.raises(RunError, match=r"1 of 3 predictions are not finite.*train\.lr"):
        score([0, 1, 1], [0.1, math.nan, 0.3], 0.5)


# ---- operating point


@settings(max_examples=200, deadline=None)
@given(predictions(), st.sampled_from(["accuracy", "balanced"]))
def test_no_threshold_beats_the_chosen_one(case, operating_point):
    labels, probabilities, _ = case
    metric = "accuracy" if operating_point == "accuracy" else "balanced_accuracy"
    chosen = choose_threshold(labels, probabilities, operating_point)
    grid = np.concatenate([[0.0, 2.0], np.unique(probabilities), np.unique(probabilities) + 1e-9])
    best = max(getattr(score(labels, probabilities, t), metric) for t in grid)
    assert getattr(score(labels, probabilities, chosen), metric) == pytest.approx(best, abs=1e-12)


def test_the_threshold_is_midway_and_of_equal_ones_the_nearest_to_one_half():
    assert choose_threshold([0, 0, 1, 1], [0.1, 0.2, 0.4, 0.9], "accuracy") == pytest.approx(0.3)
    # Cuts at 0.2 and at 0.55 make one mistake each; 0.55 is nearer to 0.5.
    assert choose_threshold([0, 1, 0, 1], [0.1, 0.3, 0.5, 0.6], "accuracy") == pytest.approx(0.55)


def test_threshold_separates_neighbouring_floats_and_certain_scores():
    low, high = 0.25, np.nextafter(0.25, 1)
    chosen = choose_threshold([0, 1], [low, high], "accuracy")
    assert low < chosen <= high
    # Everything is called negative although one negative has probability 1.
    labels, probabilities = [0, 0, 0, 1], [1.0, 1.0, 1.0, 1.0]
    assert score(labels, probabilities, choose_threshold(labels, probabilities, "accuracy")).accuracy == 0.75


def test_threshold_with_one_class_is_one_half():
    assert choose_threshold([1, 1], [0.8, 0.9], "balanced") == 0.5


def test_the_worst_of_sets_is_unknown_where_one_of_them_is_unknown():
    """Python's max and min find nan only where it comes first."""
    known = dict.fromkeys((*METRICS[1:], "loss"), 0.5)
    unknown = known | {"auroc": math.nan, "ece": math.nan}
    for sets in ({"val": known, "val/view": unknown}, {"val": unknown, "val/view": known}):
        found = over_sets(sets)
        assert math.isnan(found["worst_val_auroc"])
        assert math.isnan(found["worst_val_ece"])
        assert found["worst_val_accuracy"] == 0.5
