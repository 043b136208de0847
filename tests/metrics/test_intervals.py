"""Intervals over groups: closed forms, simulated coverage, and where there is none."""

import math

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit, logit
from sklearn import metrics as sk

from fracray.metric_names import METRICS
from fracray.metrics import (
    FEWEST_GROUPS,
    FEWEST_OF_A_CLASS,
    GroupJackknife,
    auroc_over_folds,
    balanced_errors,
    paired_gain,
    score,
    score_intervals,
)
from fracray.metrics.intervals import ABOUT, MOST_LEFT_OUT


def uneven(generator, groups):
    """Labels, probabilities and groups of 10 to 160 images that have something in common, as FracAtlas' blocks."""
    sizes = generator.choice([10, 25, 25, 50, 50, 50, 160], groups)
    group = np.repeat(np.arange(groups), sizes)
    z = -1.5 + generator.normal(0, 0.5, groups)[group] + generator.normal(0, 1.6, len(group))
    labels = (generator.random(len(group)) < expit(z + generator.normal(0, 0.7, groups)[group])).astype(int)
    return labels, expit(z), group


@pytest.fixture(scope="module")
def truth():
    labels, probabilities, _ = uneven(np.random.default_rng(99), 20_000)
    return score(labels, probabilities, 0.3)


# ---- coverage


@pytest.mark.parametrize("groups", [7, 11, 30])
def test_intervals_cover_the_truth_as_often_as_they_claim(truth, groups):
    """Percentiles of a bootstrap over groups cover 0.85 to 0.91 here. benchmarks/coverage.py has the table."""
    generator = np.random.default_rng(groups)
    names = ("accuracy", "balanced_accuracy", "auroc", "average_precision", "sensitivity", "specificity", "brier")
    covered, runs = dict.fromkeys(names, 0), 300
    for _ in range(runs):
        labels, probabilities, group = uneven(generator, groups)
        intervals = score_intervals(labels, probabilities, group, 0.3)
        for name in names:
            covered[name] += intervals[name].low <= getattr(truth, name) <= intervals[name].high
    shares = {name: count / runs for name, count in covered.items()}
    assert min(shares.values()) > 0.92, shares
    assert np.mean(list(shares.values())) < 0.985, shares  # and no wider than need be


def test_the_interval_of_the_calibration_error_covers_that_of_a_perfect_model():
    """Before, the interval of one such sample was [.0499, .1008], and it held the truth, 0, in 3% of the samples."""
    generator = np.random.default_rng(5)
    covered, slopes, intercepts = [], [], []
    for _ in range(200):
        group = np.repeat(np.arange(11), 45)
        z = -2.2 + generator.normal(0, 0.5, 11)[group] + generator.normal(0, 1.6, len(group))
        labels = (generator.random(len(group)) < expit(z)).astype(int)
        found = score_intervals(labels, expit(z), group, 0.5)
        covered.append(found["ece"].low == 0)
        slopes.append(found["calibration_slope"].low <= 1 <= found["calibration_slope"].high)
        intercepts.append(found["calibration_intercept"].low <= 0 <= found["calibration_intercept"].high)
    assert np.mean(covered) > 0.95
    assert np.mean(slopes) > 0.92
    assert np.mean(intercepts) > 0.92


# ---- closed forms


def test_the_interval_of_an_accuracy_of_equal_groups_is_the_t_interval_of_their_means():
    right = np.array([40, 45, 38, 50, 44, 41, 47, 39])
    labels = np.zeros(400, int)
    probabilities = np.concatenate([[0.1] * k + [0.9] * (50 - k) for k in right])
    found = score_intervals(labels, probabilities, np.repeat(np.arange(8), 50), 0.5)["accuracy"]
    mean, error = (right / 50).mean(), (right / 50).std(ddof=1) / math.sqrt(8)
    half = stats.t.ppf(0.975, 7) * error / (mean * (1 - mean))
    assert found.value == pytest.approx(mean)
    assert (found.low, found.high) == pytest.approx((expit(logit(mean) - half), expit(logit(mean) + half)))


def test_with_many_single_images_it_is_the_binomial_interval():
    probabilities = np.repeat([0.1, 0.9], [400, 100])
    generator = np.random.default_rng(0)
    generator.shuffle(probabilities)
    found = score_intervals(np.zeros(500, int), probabilities, np.arange(500), 0.5)["accuracy"]
    half = 1.96 * math.sqrt(0.8 * 0.2 / 500)
    assert found.value == 0.8
    # 500 groups are left out some at a time, so the width varies by a few per cent.
    assert (found.low, found.high) == pytest.approx((0.8 - half, 0.8 + half), abs=0.006)


def test_the_jackknife_of_auroc_is_delongs_variance():
    """For single images, the two estimates of one variance (Sun and Xu 2014) differ by little."""
    generator = np.random.default_rng(1)
    labels = np.repeat([0, 1], [110, 80])
    probabilities = expit(generator.normal(0, 1, 190) + labels)
    found = score_intervals(labels, probabilities, np.arange(190), 0.5)["auroc"]
    wins = (probabilities[labels == 1][:, None] > probabilities[labels == 0]).astype(float)
    error = math.sqrt(wins.mean(1).var(ddof=1) / 80 + wins.mean(0).var(ddof=1) / 110)
    half = logit(found.high) - logit(found.value)
    assert found.value == pytest.approx(sk.roc_auc_score(labels, probabilities))
    assert half * found.value * (1 - found.value) / stats.t.ppf(0.975, 79) == pytest.approx(error, rel=0.03)


def test_few_groups_that_hold_most_of_a_class_are_as_few_as_they_are():
    groups = np.repeat(np.arange(10), 20)
    labels = np.zeros(200, int)
    labels[:20], labels[20:22], labels[60:62] = 1, 1, 1  # 20 of 24 positives in one group
    jackknife = GroupJackknife(labels, groups)
    assert jackknife.effective_groups("all") == pytest.approx(10)
    assert jackknife.effective_groups("positive") == pytest.approx(24**2 / (20**2 + 2**2 + 2**2))
    assert jackknife.effective_groups("both") == jackknife.effective_groups("positive")


def test_a_share_of_exactly_one_has_the_exact_binomial_end():
    labels = np.tile([0, 0, 1], 20)
    intervals = score_intervals(labels, np.where(labels, 0.9, 0.1), np.repeat(np.arange(20), 3), 0.5)
    for name in ("accuracy", "auroc", "sensitivity", "specificity"):
        assert intervals[name].high == intervals[name].value == 1.0
        # 20 equal groups, and no mistake: as 20 of 20 trials.
        assert intervals[name].low == pytest.approx(stats.binomtest(20, 20).proportion_ci(method="exact").low)


def test_many_groups_are_left_out_several_at_a_time():
    generator = np.random.default_rng(0)
    labels, probabilities, _ = uneven(generator, 40)
    groups = np.arange(len(labels))
    jackknife = GroupJackknife(labels, groups)
    assert jackknife.parts == MOST_LEFT_OUT < jackknife.groups
    left_out = np.concatenate([1 - weights for weights in jackknife.weights()])
    assert (left_out.sum(0) == 1).all()
    assert left_out.sum(1).max() - left_out.sum(1).min() <= 1
    found = score_intervals(labels, probabilities, groups, 0.5)["accuracy"]
    error = math.sqrt(found.value * (1 - found.value) / len(labels))
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.15)


def test_each_left_out_value_is_the_score_of_the_other_images():
    generator = np.random.default_rng(1)
    labels, probabilities = generator.integers(0, 2, 90), np.round(generator.random(90), 1)
    groups = np.array([f"g{k // 10}" for k in range(90)])
    values = {name: [] for name in METRICS}
    for name in np.unique(groups):
        rest = groups != name
        scores = score(labels[rest], probabilities[rest], 0.5).as_dict()
        for metric in METRICS:
            values[metric].append(scores[metric])
    intervals = score_intervals(labels, probabilities, groups, 0.5)
    jackknife = GroupJackknife(labels, groups)
    for metric in set(METRICS) - {"ece"}:  # its bins are those of all images
        expected = jackknife.interval(intervals[metric].value, np.array(values[metric]), ABOUT.get(metric, "both"))
        assert (intervals[metric].low, intervals[metric].high) == pytest.approx((expected.low, expected.high)), metric


# ---- where there is no interval


@pytest.mark.parametrize("groups", [1, 2, FEWEST_GROUPS - 1, FEWEST_GROUPS])
def test_too_few_groups_have_no_interval(groups):
    """Two groups gave [0.500, 0.500] for balanced accuracy: resamples of one class were left out."""
    labels = np.array([0, 1, 1, 0] * groups)
    probabilities = np.random.default_rng(0).random(len(labels))
    intervals = score_intervals(labels, probabilities, np.repeat(np.arange(groups), 4), 0.5)
    known = groups >= FEWEST_GROUPS
    assert all(math.isnan(each.low) != known for each in intervals.values())
    assert not any(math.isnan(each.value) for each in intervals.values())


@pytest.mark.parametrize("holding", [1, FEWEST_OF_A_CLASS - 1, FEWEST_OF_A_CLASS])
def test_a_class_of_too_few_groups_gives_no_interval_to_what_depends_on_it(holding):
    """Of 12 groups, two hold all fractures: 11% of the resamples hold none, and say nothing on sensitivity."""
    groups, labels = np.repeat(np.arange(12), 10), np.zeros(120, int)
    labels[np.isin(groups, np.arange(holding)) & (np.arange(120) % 10 < 5)] = 1
    intervals = score_intervals(labels, np.random.default_rng(0).random(120), groups, 0.5)
    known = holding >= FEWEST_OF_A_CLASS
    for name in ("sensitivity", "auroc", "balanced_accuracy", "average_precision", "f1"):
        assert math.isnan(intervals[name].low) != known, name
    for name in ("accuracy", "specificity", "brier", "ece", "prevalence"):
        assert not math.isnan(intervals[name].low), name


def test_a_set_without_images_has_no_scores():
    assert score_intervals([], [], [], 0.5) == {}


def test_intervals_are_the_same_again():
    generator = np.random.default_rng(2)
    labels, probabilities, groups = uneven(generator, 300)
    assert score_intervals(labels, probabilities, groups, 0.5) == score_intervals(labels, probabilities, groups, 0.5)


# ---- differences


def test_paired_gain_of_a_model_over_itself_is_nothing():
    generator = np.random.default_rng(4)
    labels, probabilities, groups = generator.integers(0, 2, 90), generator.random(90), np.arange(90)
    gain = paired_gain(labels, probabilities, 0.5, probabilities, 0.5, groups, metric="auroc")
    assert (gain.value, gain.low, gain.high) == (0.0, 0.0, 0.0)


def test_paired_gain_is_narrower_than_unpaired_ones():
    # b errs where a does and in 5% of the images more: the difference is known far better than either accuracy.
    order = np.random.default_rng(0).permutation(1000)
    right_a = order % 5 != 0
    right_b = right_a & (order % 20 != 1)
    labels = np.zeros(1000, int)
    a, b = np.where(right_a, 0.1, 0.9), np.where(right_b, 0.1, 0.9)
    gain = paired_gain(labels, a, 0.5, b, 0.5, np.arange(1000))
    assert gain.value == pytest.approx(0.05)
    half = 1.96 * math.sqrt(0.05 * 0.95 / 1000)
    assert (gain.low, gain.high) == pytest.approx((0.05 - half, 0.05 + half), abs=0.003)


@pytest.mark.parametrize("metric", METRICS)
def test_a_gain_is_the_difference_of_the_scores(metric):
    generator = np.random.default_rng(6)
    labels, a, groups = uneven(generator, 12)
    b = expit(logit(a) + generator.normal(0, 1, len(a)))
    gain = paired_gain(labels, a, 0.3, b, 0.3, groups, metric=metric)
    ours, theirs = (getattr(score(labels, p, 0.3, groups), metric) for p in (a, b))
    assert gain.value == pytest.approx(ours - theirs)
    assert gain.low <= gain.value <= gain.high


def test_a_gain_over_too_few_groups_has_no_interval():
    gain = paired_gain([0, 1] * 4, [0.1, 0.9] * 4, 0.5, [0.9, 0.1] * 4, 0.5, np.repeat(np.arange(4), 2))
    assert gain.value == 1.0
    assert math.isnan(gain.low)


def test_balanced_errors_are_scikit_learns_with_each_group_left_out():
    rng = np.random.default_rng(1)
    labels, groups = rng.integers(0, 2, 200), rng.integers(0, 12, 200)
    probabilities = rng.random((3, 200))
    jackknife = GroupJackknife(labels, groups)
    values, left_out = balanced_errors(labels, probabilities >= 0.4, jackknife)
    for called, value, column in zip(probabilities >= 0.4, values, left_out.T, strict=True):
        assert value == pytest.approx(1 - sk.balanced_accuracy_score(labels, called))
        expected = [1 - sk.balanced_accuracy_score(labels[groups != k], called[groups != k]) for k in range(12)]
        assert column == pytest.approx(expected)
        ours = jackknife.interval(value, column)
        accuracy = score_intervals(labels, called, groups, 0.5)["balanced_accuracy"]
        assert (ours.low, ours.high) == pytest.approx((1 - accuracy.high, 1 - accuracy.low))
    none, _ = balanced_errors(np.ones(4), np.ones((2, 4), bool), GroupJackknife(np.ones(4), [1, 1, 1, 1]))
    assert np.isnan(none).all()


# ---- over folds


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
    assert alone.high - alone.low == pytest.approx(2 * 1.96 * error / math.sqrt(5), rel=0.2)


def test_auroc_over_folds_leaves_out_folds_with_one_class():
    labels, fold = np.array([0, 1, 0, 1, 1, 1]), np.array([0, 0, 0, 0, 1, 1])
    found = auroc_over_folds(labels, [0.1, 0.9, 0.2, 0.8, 0.1, 0.2], list("abcdef"), fold)
    assert found.value == 1.0
    assert math.isnan(found.low)
    nothing = auroc_over_folds([1, 1], [0.1, 0.2], ["a", "b"], [0, 1])
    assert math.isnan(nothing.value)
    undivided = auroc_over_folds(labels, [0.1, 0.9, 0.2, 0.8, 0.1, 0.2], ["a"] * 6, fold)
    assert (undivided.value, math.isnan(undivided.low)) == (1.0, True)


def test_a_fold_that_a_left_out_group_leaves_with_one_class_is_left_out_of_that_mean():
    rng = np.random.default_rng(3)
    fold = np.repeat([0, 1, 2], 40)
    groups, labels = np.arange(120) // 8, rng.integers(0, 2, 120)
    labels[fold == 2] = 0
    labels[groups == 12] = 1  # all positives of fold 2
    found = auroc_over_folds(labels, rng.random(120), groups, fold)
    assert 0 < found.low < found.value < found.high < 1
