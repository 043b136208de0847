"""Curves against scikit-learn, and the reliability diagram's band against a bootstrap done by hand."""

import math

import numpy as np
import pytest
import sklearn.metrics as sk
from scipy.special import expit
from sklearn.calibration import calibration_curve

from fracray.metrics import confusion, histogram, precision_recall_points, reliability_diagram, roc_points
from fracray.metrics.curves import MOST_POINTS


def drawn(seed, n=300, ties=True):
    generator = np.random.default_rng(seed)
    labels = (generator.random(n) < 0.3).astype(int)
    probabilities = expit(generator.normal(labels * 1.5 - 1, 1))
    return labels, probabilities.round(2) if ties else probabilities


@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_the_roc_curve_is_scikit_learns(seed, ties):
    labels, probabilities = drawn(seed, ties=ties)
    found = roc_points(labels, probabilities)
    fpr, tpr, _ = sk.roc_curve(labels, probabilities, drop_intermediate=False)
    # Corners only: every one of them is on scikit-learn's curve, and the area is the same.
    assert set(zip(found["false_positive_rate"], found["sensitivity"], strict=True)) <= set(
        zip(fpr.tolist(), tpr.tolist(), strict=True)
    )
    assert len(found["threshold"]) < len(fpr)
    assert sk.auc(found["false_positive_rate"], found["sensitivity"]) == pytest.approx(
        sk.roc_auc_score(labels, probabilities), abs=1e-12
    )
    for threshold, sensitivity in zip(found["threshold"], found["sensitivity"], strict=True):
        assert (probabilities >= threshold)[labels == 1].mean() == pytest.approx(sensitivity)


@pytest.mark.parametrize("ties", [True, False])
def test_precision_and_recall_are_scikit_learns(ties):
    labels, probabilities = drawn(7, ties=ties)
    found = precision_recall_points(labels, probabilities)
    precision, recall, _ = sk.precision_recall_curve(labels, probabilities)
    assert found["precision"] == pytest.approx(precision[-2::-1])
    assert found["recall"] == pytest.approx(recall[-2::-1])
    steps = np.diff([0, *found["recall"]]) * found["precision"]
    assert steps.sum() == pytest.approx(sk.average_precision_score(labels, probabilities))


def test_one_class_has_no_curve_and_long_ones_are_thinned():
    assert roc_points([1, 1], [0.1, 0.2])["threshold"] == []
    assert precision_recall_points([0, 0], [0.1, 0.2])["recall"] == []
    labels, probabilities = drawn(8, 20_000, ties=False)
    found = roc_points(labels, probabilities)
    assert len(found["threshold"]) == MOST_POINTS
    assert (found["sensitivity"][0], found["sensitivity"][-1]) == (0, 1)
    area = sk.auc(found["false_positive_rate"], found["sensitivity"])
    assert area == pytest.approx(sk.roc_auc_score(labels, probabilities), abs=1e-3)


def test_the_confusion_matrix_and_the_histogram_count_every_image_once():
    labels, probabilities = drawn(9)
    found = confusion(labels, probabilities, 0.4)
    tn, fp, fn, tp = sk.confusion_matrix(labels, probabilities >= 0.4).ravel()
    assert found == {"true_positive": tp, "false_negative": fn, "false_positive": fp, "true_negative": tn}
    bars = histogram(labels, [*probabilities[:-2], 0.0, 1.0])
    assert (sum(bars["positive"]), sum(bars["negative"])) == (labels.sum(), (1 - labels).sum())


def test_the_reliability_diagram_has_scikit_learns_points_and_a_band_over_groups():
    labels, probabilities = drawn(10, 300, ties=False)
    groups = np.arange(300) // 20
    found = reliability_diagram(labels, probabilities, groups)
    share, mean = calibration_curve(labels, probabilities, n_bins=15, strategy="quantile")
    assert [each["share"] for each in found] == pytest.approx(share)
    assert [each["mean_probability"] for each in found] == pytest.approx(mean)
    assert {each["images"] for each in found} == {20}
    assert all(each["low"] <= each["share"] <= each["high"] for each in found)
    # By hand: the first bin's share in samples of groups.
    generator, inside = np.random.default_rng(1), probabilities <= np.sort(probabilities)[19]
    shares = []
    for _ in range(3000):
        rows = np.concatenate([np.flatnonzero((groups == g) & inside) for g in generator.integers(0, 15, 15)])
        if len(rows):
            shares.append(labels[rows].mean())
    assert (found[0]["low"], found[0]["high"]) == pytest.approx(np.quantile(shares, [0.025, 0.975]), abs=0.03)
    assert reliability_diagram(labels, probabilities, groups) == found
    # Images of a group that are alike make it wider.
    alone = reliability_diagram(np.tile(labels, 3), np.tile(probabilities, 3), np.tile(np.arange(300), 3))
    single = reliability_diagram(np.tile(labels, 3), np.tile(probabilities, 3), np.arange(900))
    assert np.mean([b["high"] - b["low"] for b in alone]) > 1.4 * np.mean([b["high"] - b["low"] for b in single])


def test_few_groups_have_no_band():
    labels, probabilities = drawn(11)
    assert all(math.isnan(each["low"]) for each in reliability_diagram(labels, probabilities, np.arange(300) % 4))
    assert reliability_diagram([], []) == []


def test_bins_of_one_group_each_have_no_band():
    groups = np.repeat(np.arange(5), 20)
    probabilities = 0.1 + 0.2 * groups + np.linspace(0, 1e-3, 100)
    bins = reliability_diagram(np.arange(100) % 2, probabilities, groups)
    assert len(bins) == 5
    assert all(np.isnan(one["low"]) and np.isnan(one["high"]) for one in bins)
