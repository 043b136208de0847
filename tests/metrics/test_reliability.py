"""Calibration error against closed forms, pairs and known truths; slope and intercept against scikit-learn."""

import itertools
import math

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression

from fracray.metrics import CalibrationError, score, slope_and_intercept
from fracray.metrics.reliability import BIN_IMAGES, BINS, equal_mass_bins


def in_groups(generator, groups, slope=1.0, apart=0.7):
    """Labels, calibrated probabilities made more extreme by `slope`, and groups with something in common."""
    size = 45
    group = np.repeat(np.arange(groups), size)
    z = -2.2 + generator.normal(0, 0.5, groups)[group] + generator.normal(0, 1.6, len(group))
    labels = (generator.random(len(group)) < expit(z + apart * generator.normal(0, 1, groups)[group])).astype(int)
    points, weights = np.polynomial.hermite_e.hermegauss(20)
    calibrated = expit(z[:, None] + apart * points) @ (weights / weights.sum())
    return labels, expit(slope * logit(calibrated)), group


def signed(labels, probabilities, groups=None):
    return CalibrationError(labels, probabilities, groups).signed(np.ones((1, len(labels))))[0]


def test_it_is_the_mean_product_of_the_residuals_of_pairs_of_different_groups():
    generator = np.random.default_rng(0)
    labels, probabilities, groups = generator.integers(0, 2, 90), generator.random(90), generator.integers(0, 7, 90)
    bins, expected = equal_mass_bins(probabilities), 0.0
    assert len(set(bins)) == 90 // BIN_IMAGES
    for number in set(bins):
        inside = np.flatnonzero(bins == number)
        pairs = [(a, b) for a, b in itertools.combinations(inside, 2) if groups[a] != groups[b]]
        products = [(probabilities[a] - labels[a]) * (probabilities[b] - labels[b]) for a, b in pairs]
        expected += len(inside) / 90 * np.mean(products)
    found = signed(labels, probabilities, groups)
    assert found * abs(found) == pytest.approx(expected, abs=1e-12)


def test_in_closed_form_for_single_images():
    # 300 images, 15 bins of 20 with one probability each: Kumar et al.'s estimate, from counts alone.
    levels, positives = (np.arange(15) + 4) / 20, np.arange(15)
    labels = np.concatenate([[1] * k + [0] * (20 - k) for k in positives])
    claimed, share = np.repeat(levels, 20), positives / 20
    expected = np.mean((levels - share) ** 2 - share * (1 - share) / 19)
    assert signed(labels, claimed) == pytest.approx(math.sqrt(expected), abs=1e-12)
    assert score(labels, claimed, 0.5).ece == pytest.approx(math.sqrt(expected), abs=1e-12)


def test_its_bins_are_scikit_learns_quantile_bins():
    generator = np.random.default_rng(3)
    probabilities = generator.random(BINS * 40)
    labels = (generator.random(len(probabilities)) < probabilities**2).astype(int)
    share, mean = calibration_curve(labels, probabilities, n_bins=BINS, strategy="quantile")
    bins = equal_mass_bins(probabilities)
    assert [labels[bins == k].mean() for k in range(BINS)] == pytest.approx(list(share))
    assert [probabilities[bins == k].mean() for k in range(BINS)] == pytest.approx(list(mean))
    # All of them: the plain root mean square error less its floor, which is small here.
    assert signed(labels, probabilities) == pytest.approx(np.sqrt(np.mean((share - mean) ** 2)), abs=0.02)


def test_equal_probabilities_share_a_bin():
    probabilities = np.array([0.1] * 200 + [0.2] * 50 + [0.3] * 50)
    bins = equal_mass_bins(probabilities)
    assert [len(set(bins[probabilities == level])) for level in (0.1, 0.2, 0.3)] == [1, 1, 1]
    assert bins.max() == 2
    assert len(equal_mass_bins(np.zeros(0))) == 0


@pytest.mark.parametrize(("groups", "apart"), [(11, 0.7), (30, 0.7), (11, 0.0)])
def test_a_perfect_model_has_no_floor(groups, apart):
    """The usual ECE of these samples is 0.04 to 0.05 on average; this one is small, and its square is nothing."""
    generator = np.random.default_rng(0)
    squares, usual = [], []
    for _ in range(300):
        labels, probabilities, group = in_groups(generator, groups, apart=apart)
        found = signed(labels, probabilities, group)
        squares.append(found * abs(found))
        bins = equal_mass_bins(probabilities)
        sums = np.bincount(bins, probabilities - labels)
        usual.append(np.abs(sums).sum() / len(labels))
    assert abs(np.mean(squares)) < 3 * np.std(squares) / math.sqrt(300)
    assert np.mean(np.sqrt(np.maximum(0, squares))) < 0.5 * np.mean(usual)
    assert np.mean(np.array(squares) <= 0) > 0.4


def test_it_finds_the_error_of_an_overconfident_model():
    generator = np.random.default_rng(1)
    labels, probabilities, group = in_groups(generator, 3000, slope=1.5)
    points = np.linspace(-9, 4, 4000)
    density = np.exp(-((points + 2.2) ** 2) / (2 * (1.6**2 + 0.5**2)))
    at, weights = np.polynomial.hermite_e.hermegauss(20)
    calibrated = expit(points[:, None] + 0.7 * at) @ (weights / weights.sum())
    truth = np.sqrt(np.average((expit(1.5 * logit(calibrated)) - calibrated) ** 2, weights=density))
    assert score(labels, probabilities, 0.5, group).ece == pytest.approx(truth, rel=0.1)


def test_a_perfect_model_is_within_its_band_as_often_as_the_band_says():
    """Labels drawn one by one would give a band that one perfect model in nine exceeds."""
    generator = np.random.default_rng(2)
    above = []
    for _ in range(200):
        labels, probabilities, group = in_groups(generator, 11)
        error = CalibrationError(labels, probabilities, group)
        above.append(error.signed(np.ones((1, len(labels))))[0] > error.perfect())
    assert np.mean(above) <= 0.09
    labels, probabilities, group = in_groups(generator, 100, slope=2)
    error = CalibrationError(labels, probabilities, group)
    assert error.signed(np.ones((1, len(labels))))[0] > error.perfect()


@pytest.mark.parametrize("groups", [1, 4, 5, 6])
def test_too_few_groups_have_no_band(groups):
    """Of five groups, 6% of the draws have the signs of the sample itself: its band would hold every sample."""
    labels, probabilities, group = in_groups(np.random.default_rng(0), groups)
    assert math.isnan(CalibrationError(labels, probabilities, group).perfect()) == (groups < 6)


def test_where_nothing_is_known_it_is_nan():
    assert math.isnan(score([1], [0.3], 0.5).ece)  # one image has no partner
    assert math.isnan(score([], [], 0.5).ece)
    # With a single group each image is its own, as there is nothing else to go by.
    assert signed([0, 1, 1], [0.2, 0.4, 0.9], ["a", "a", "a"]) == signed([0, 1, 1], [0.2, 0.4, 0.9])


# ---- slope and intercept


def test_slope_is_that_of_scikit_learns_regression_and_the_intercept_meets_the_prevalence():
    generator = np.random.default_rng(0)
    for slope in (0.3, 1.0, 2.5):
        labels, probabilities, group = in_groups(generator, 30, slope=slope)
        weights = np.stack([np.ones(len(labels)), group != 4, generator.integers(0, 3, len(labels))]).astype(float)
        slopes, intercepts = slope_and_intercept(labels, probabilities, weights)
        z = logit(probabilities)
        for weight, found, intercept in zip(weights, slopes, intercepts, strict=True):
            reference = LogisticRegression(C=np.inf, tol=1e-10).fit(z[:, None], labels, sample_weight=weight)
            assert found == pytest.approx(reference.coef_[0, 0], rel=1e-4)
            # The likelihood's condition for an intercept beside a slope of 1: as many expected as found.
            assert np.average(expit(z + intercept), weights=weight) == pytest.approx(
                np.average(labels, weights=weight), abs=1e-8
            )


def test_slope_and_intercept_undo_what_was_done_to_the_probabilities():
    generator = np.random.default_rng(1)
    z = generator.normal(-1, 1.5, 40_000)
    labels = (generator.random(len(z)) < expit(z)).astype(int)
    ones = np.ones((1, len(z)))
    (slope,), _ = slope_and_intercept(labels, expit(2 * z), ones)
    assert slope == pytest.approx(0.5, rel=0.05)
    _, (intercept,) = slope_and_intercept(labels, expit(z + 0.7), ones)
    assert intercept == pytest.approx(-0.7, abs=0.05)


@pytest.mark.parametrize(
    ("labels", "probabilities", "known"),
    [
        ([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9], (False, True)),  # separated
        ([1, 1, 1, 1], [0.1, 0.2, 0.8, 0.9], (False, False)),  # one class
        ([0, 1, 0, 1], [0.3, 0.3, 0.3, 0.3], (False, True)),  # all alike
        ([0, 1, 0, 1, 1] * 40, [0.3001, 0.3001, 0.3, 0.3, 0.3001] * 40, (False, True)),  # nearly: it would be 1,455
        ([0, 1, 0, 1] * 50, [0.5, 0.3, 0.3, 0.5] * 50, (True, True)),
        ([0, 1, 0, 1], [0.0, 1.0, 0.4, 0.3], (True, True)),  # certain
        ([], [], (False, False)),
    ],
)
def test_what_has_no_slope_or_intercept_is_nan(labels, probabilities, known):
    slopes, intercepts = slope_and_intercept(labels, probabilities, np.ones((1, len(labels))))
    assert (not math.isnan(slopes[0]), not math.isnan(intercepts[0])) == known
