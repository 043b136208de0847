"""Scores against scikit-learn and closed forms, intervals against simulation, calibration against known parameters."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from sklearn.linear_model import LogisticRegression

from fracray.errors import RunError
from fracray.metric_names import METRICS
from fracray.metrics import (
    BIASES,
    TEMPERATURES,
    Calibration,
    auroc_over_folds,
    balanced_errors,
    bootstrap,
    choose_threshold,
    fit_temperature,
    paired_gain,
    score,
)


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


def test_expected_calibration_error_in_closed_form():
    # 15 levels of 10 images, so that each level is a bin; level k claims (k + 1) / 20 and has k / 15 * 10 positives.
    levels = np.arange(15)
    positives = np.round(levels / 15 * 10).astype(int)
    labels = np.concatenate([[1] * k + [0] * (10 - k) for k in positives])
    probabilities = np.repeat((levels + 1) / 20, 10)
    expected = np.mean(np.abs((levels + 1) / 20 - positives / 10))
    assert score(labels, probabilities, 0.5).ece == pytest.approx(expected, abs=1e-12)


def test_expected_calibration_error_without_ties_is_that_of_equal_bins():
    generator = np.random.default_rng(3)
    probabilities = generator.random(15 * 40)
    labels = (generator.random(len(probabilities)) < probabilities**2).astype(int)
    order = np.argsort(probabilities)
    bins = zip(np.split(probabilities[order], 15), np.split(labels[order], 15), strict=True)
    expected = np.mean([abs(p.mean() - y.mean()) for p, y in bins])
    assert score(labels, probabilities, 0.5).ece == pytest.approx(expected, abs=1e-12)


def test_one_probability_for_all_is_calibrated_when_it_is_the_prevalence():
    labels = np.array([1] * 3 + [0] * 9)
    scores = score(labels, np.full(12, 0.25), 0.5)
    assert scores.ece == pytest.approx(0, abs=1e-12)
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


# ---- intervals


def test_bootstrap_covers_the_truth_as_often_as_it_claims():
    # Accuracy 0.8, decided per group of three images: intervals that ignored the groups would cover about 74%.
    generator = np.random.default_rng(0)
    covered, runs = 0, 300
    for run in range(runs):
        right = np.repeat(generator.random(80) < 0.8, 3)
        labels = np.repeat(generator.integers(0, 2, 80), 3)
        probabilities = np.where(right == (labels == 1), 0.9, 0.1)
        interval = bootstrap(labels, probabilities, np.repeat(np.arange(80), 3), 0.5, repeats=300, seed=run)["accuracy"]
        covered += interval.low <= 0.8 <= interval.high
    assert 0.90 <= covered / runs <= 0.98


def test_bootstrap_of_accuracy_is_the_binomial_interval():
    labels = np.zeros(500, int)
    probabilities = np.repeat([0.1, 0.9], [400, 100])
    interval = bootstrap(labels, probabilities, np.arange(500), 0.5, repeats=4000)["accuracy"]
    half = 1.96 * math.sqrt(0.8 * 0.2 / 500)
    assert interval.value == 0.8
    assert (interval.low, interval.high) == pytest.approx((0.8 - half, 0.8 + half), abs=0.004)


def test_bootstrap_by_weights_equals_scores_of_repeated_images():
    generator = np.random.default_rng(1)
    labels, probabilities = generator.integers(0, 2, 40), np.round(generator.random(40), 1)
    groups = np.array([f"g{k // 4}" for k in range(40)])
    names = np.unique(groups)
    # The same draws, carried out by hand and scored one at a time.
    draws = np.random.default_rng(5).integers(len(names), size=(50, len(names)))
    by_hand = []
    for draw in draws:
        picked = np.concatenate([np.flatnonzero(groups == names[k]) for k in draw])
        by_hand.append(score(labels[picked], probabilities[picked], 0.5).as_dict())
    intervals = bootstrap(labels, probabilities, groups, 0.5, repeats=50, seed=5)
    for name in METRICS:
        low, high = np.nanquantile([row[name] for row in by_hand], [0.025, 0.975])
        interval = intervals[name]
        expected = (min(low, interval.value), max(high, interval.value))
        assert (interval.low, interval.high) == pytest.approx(expected, abs=1e-12), name


def test_bootstrap_survives_resamples_of_one_class():
    intervals = bootstrap([0, 0, 0, 1], [0.1, 0.2, 0.3, 0.4], [0, 1, 2, 3], 0.35, repeats=200)
    assert intervals["auroc"].value == intervals["auroc"].low == 1.0
    single = bootstrap([0, 1], [0.1, 0.9], ["a", "a"], 0.5)["accuracy"]
    assert single.value == 1.0
    assert math.isnan(single.low)
    assert math.isnan(single.high)


def test_bootstrap_is_the_same_for_the_same_seed_only():
    generator = np.random.default_rng(2)
    labels, probabilities, groups = generator.integers(0, 2, 90), generator.random(90), np.arange(90) // 2
    first = bootstrap(labels, probabilities, groups, 0.5, repeats=100, seed=1)
    assert bootstrap(labels, probabilities, groups, 0.5, repeats=100, seed=1) == first
    assert bootstrap(labels, probabilities, groups, 0.5, repeats=100, seed=2) != first


def test_paired_gain_of_a_model_over_itself_is_nothing():
    generator = np.random.default_rng(4)
    labels, probabilities, groups = generator.integers(0, 2, 90), generator.random(90), np.arange(90)
    gain = paired_gain(labels, probabilities, 0.5, probabilities, 0.5, groups, metric="auroc")
    assert (gain.value, gain.low, gain.high) == (0.0, 0.0, 0.0)


def test_paired_gain_is_narrower_than_unpaired_ones():
    # b errs where a does and in 5% of the images more: the difference is known far better than either accuracy.
    right_a = np.arange(1000) % 5 != 0
    right_b = right_a & (np.arange(1000) % 20 != 1)
    labels = np.zeros(1000, int)
    a, b = np.where(right_a, 0.1, 0.9), np.where(right_b, 0.1, 0.9)
    gain = paired_gain(labels, a, 0.5, b, 0.5, np.arange(1000))
    assert gain.value == pytest.approx(0.05)
    half = 1.96 * math.sqrt(0.05 * 0.95 / 1000)
    assert (gain.low, gain.high) == pytest.approx((0.05 - half, 0.05 + half), abs=0.003)


def test_balanced_errors_are_scikit_learns_on_the_resamples_of_the_bootstrap():
    rng = np.random.default_rng(1)
    labels, groups = rng.integers(0, 2, 200), rng.integers(0, 12, 200)
    probabilities = rng.random((3, 200))
    values, drawn = balanced_errors(labels, probabilities >= 0.4, groups, repeats=300, seed=5)
    for called, value, column in zip(probabilities >= 0.4, values, drawn.T, strict=True):
        assert value == pytest.approx(1 - sk.balanced_accuracy_score(labels, called))
        interval = bootstrap(labels, called, groups, 0.5, repeats=300, seed=5)["balanced_accuracy"]
        low, high = np.quantile(1 - column, [0.025, 0.975])
        assert (min(low, 1 - value), max(high, 1 - value)) == pytest.approx((interval.low, interval.high))
    none, no_draws = balanced_errors(np.ones(4), np.ones((2, 4), bool), [1, 1, 1, 1])
    assert np.isnan(none).all()
    assert no_draws.shape == (0, 2)


# ---- calibration


def test_calibration_in_closed_form():
    # Two logits, -2 and 3, positive in 10% and 60% of their images: two equations for slope and bias.
    logits = np.repeat([-2.0, 3.0], 100)
    labels = np.array([1] * 10 + [0] * 90 + [1] * 60 + [0] * 40)
    calibration = fit_temperature(labels, logits)
    low, high = math.log(0.1 / 0.9), math.log(0.6 / 0.4)
    slope = (high - low) / 5
    assert calibration.temperature == pytest.approx(1 / slope, rel=1e-4)
    assert calibration.bias == pytest.approx(high - 3 * slope, abs=1e-4)
    assert calibration.apply(np.array([-2.0, 3.0])) == pytest.approx([0.1, 0.6], abs=1e-4)


def test_calibration_is_unpenalised_logistic_regression_and_undoes_a_weighted_loss():
    generator = np.random.default_rng(0)
    true = generator.normal(-2, 1.5, 20_000)
    labels = (generator.random(len(true)) < 1 / (1 + np.exp(-true))).astype(int)
    # What a loss weighted 5 to 1 and overconfident twofold would give.
    logits = 2 * (true + math.log(5))
    calibration = fit_temperature(labels, logits)
    reference = LogisticRegression(C=np.inf, tol=1e-10).fit(logits[:, None], labels)
    assert 1 / calibration.temperature == pytest.approx(reference.coef_[0, 0], rel=1e-3)
    assert calibration.bias == pytest.approx(reference.intercept_[0], abs=1e-3)
    assert calibration.temperature == pytest.approx(2, rel=0.05)
    assert calibration.bias == pytest.approx(-math.log(5), abs=0.08)
    assert score(labels, calibration.apply(logits), 0.5).ece < 0.01


def test_auroc_over_folds_is_the_mean_of_scikit_learns():
    rng = np.random.default_rng(0)
    labels, fold = rng.integers(0, 2, 400), np.arange(400) // 80
    probabilities = rng.random(400) + 0.3 * labels + fold  # each fold's predictor has its own scale
    groups = np.arange(400) // 4
    found = auroc_over_folds(labels, probabilities, groups, fold)
    each = [sk.roc_auc_score(labels[fold == k], probabilities[fold == k]) for k in range(5)]
    assert found.value == pytest.approx(np.mean(each))
    assert found.value - 0.1 < found.low < found.value < found.high < found.value + 0.1
    # As wide as theory has it for single images: Hanley and McNeil's error of each fold, over the root of five.
    alone = auroc_over_folds(labels, probabilities, np.arange(400), fold)
    q = np.mean(each)
    p, n = 40, 40
    error = math.sqrt(
        (q * (1 - q) + (p - 1) * (q / (2 - q) - q * q) + (n - 1) * (2 * q * q / (1 + q) - q * q)) / (p * n)
    )
    assert alone.high - alone.low == pytest.approx(2 * 1.96 * error / math.sqrt(5), rel=0.15)


def test_auroc_over_folds_leaves_out_folds_with_one_class():
    labels, fold = np.array([0, 1, 0, 1, 1, 1]), np.array([0, 0, 0, 0, 1, 1])
    found = auroc_over_folds(labels, [0.1, 0.9, 0.2, 0.8, 0.1, 0.2], list("abcdef"), fold)
    assert (found.value, found.high) == (1.0, 1.0)
    nothing = auroc_over_folds([1, 1], [0.1, 0.2], ["a", "b"], [0, 1])
    assert math.isnan(nothing.value)
    undivided = auroc_over_folds(labels, [0.1, 0.9, 0.2, 0.8, 0.1, 0.2], ["a"] * 6, fold)
    assert (undivided.value, math.isnan(undivided.low)) == (1.0, True)


def test_calibration_keeps_the_order_and_its_bounds():
    labels = np.array([0, 0, 1, 1])
    separable = fit_temperature(labels, np.array([-1.0, -0.5, 0.5, 1.0]))
    backwards = fit_temperature(labels, np.array([1.0, 0.5, -0.5, -1.0]))
    assert separable.temperature == pytest.approx(TEMPERATURES[0])
    assert backwards.temperature == pytest.approx(TEMPERATURES[1])
    shifted = fit_temperature(labels, np.array([100.0, 101.0, 100.0, 101.0]))
    assert BIASES[0] <= shifted.bias <= BIASES[1]
    assert fit_temperature([1, 1], [0.3, 0.9]) == Calibration()
    with pytest.raises(RunError, match="not finite"):
        fit_temperature(labels, [0, math.inf, 1, 1])
