"""Temperature and bias against known parameters; probabilities of images that the calibration was not fitted to."""

import math

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from fracray.errors import RunError
from fracray.metrics import BIASES, TEMPERATURES, Calibration, cross_fitted, fit_temperature, score


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


def test_cross_fitted_probabilities_are_those_of_calibrations_fitted_to_the_other_groups():
    generator = np.random.default_rng(0)
    groups = generator.integers(0, 12, 400)
    logits = generator.normal(0, 2, 400)
    labels = (generator.random(400) < expit(logits - 1)).astype(int)
    found = cross_fitted(labels, logits, groups)
    for number in range(12):
        mine = groups == number
        changed = labels.copy()
        changed[mine] = 1 - labels[mine]
        again = cross_fitted(changed, logits, groups)
        assert (again[mine] == found[mine]).all()
        assert (again != found).any()
    slope, bias = np.polyfit(logits[groups == 3], np.log(found / (1 - found))[groups == 3], 1)
    assert abs(1 / slope - fit_temperature(labels, logits).temperature) < 0.3
    assert abs(bias - fit_temperature(labels, logits).bias) < 0.3


def test_cross_fitting_takes_the_optimism_out_of_the_loss():
    """The loss on the images that a calibration was fitted to is too low; that of cross-fitted probabilities is not."""
    generator = np.random.default_rng(1)

    def sample(groups):
        shift = np.repeat(generator.normal(0, 1, groups), 8)
        logits = generator.normal(0, 1.5, 8 * groups)
        return (
            (generator.random(8 * groups) < expit(logits + shift)).astype(int),
            logits,
            np.repeat(np.arange(groups), 8),
        )

    def loss(labels, probabilities):
        return -np.mean(np.log(np.where(labels == 1, probabilities, 1 - probabilities)))

    new_labels, new_logits, _ = sample(4000)
    gaps = []
    for _ in range(400):
        labels, logits, groups = sample(12)
        if len(set(labels)) < 2:
            continue
        fitted = fit_temperature(labels, logits)
        new = loss(new_labels, fitted.apply(new_logits))
        gaps.append(
            (loss(labels, fitted.apply(logits)) - new, loss(labels, cross_fitted(labels, logits, groups)) - new)
        )
    optimistic, honest = np.mean(gaps, axis=0)
    assert optimistic < -0.02
    assert abs(honest) < 0.01


def test_what_cannot_be_cross_fitted_keeps_the_calibration_of_all_images():
    logits, labels = np.array([-1.0, 0.0, 0.5, 2.0]), np.array([0, 1, 0, 1])
    of_all = fit_temperature(labels, logits).apply(logits)
    assert (cross_fitted(labels, logits, ["a"] * 4) == of_all).all()
    assert (cross_fitted([1, 1, 1, 1], logits) == expit(logits)).all()
    assert len(cross_fitted([], [])) == 0
    # All positives in one group: without it there is one class, and no calibration to be had.
    assert (cross_fitted(labels, logits, ["b", "a", "b", "a"])[[1, 3]] == of_all[[1, 3]]).all()
