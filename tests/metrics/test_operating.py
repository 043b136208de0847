"""Operating points and the decision curve: closed forms, exhaustive search, Bayes' theorem and simulated coverage."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from fracray.metrics import (
    CostRatio,
    at_prevalence,
    choose_operating_points,
    decision_curve,
    fit_temperature,
    operating_scores,
)


def drawn(seed, n=300, groups=30):
    generator = np.random.default_rng(seed)
    labels = (generator.random(n) < 0.3).astype(int)
    return labels, expit(generator.normal(labels * 1.5 - 1, 1)), np.arange(n) % groups


def rates(labels, probabilities, threshold):
    called = probabilities >= threshold
    return called[labels == 1].mean(), (~called)[labels == 0].mean()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 1), st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.7, 1.0])), min_size=2, max_size=30)
)
def test_each_point_is_the_best_of_all_thresholds(pairs):
    labels, probabilities = (np.array(each, dtype=float) for each in zip(*pairs, strict=True))
    if len(set(labels)) < 2:
        return
    cost = CostRatio(5, 2)
    found = choose_operating_points(labels, probabilities, cost)
    all_of_them = [rates(labels, probabilities, t) for t in [*np.unique(probabilities), 1.5]]

    def expense(sens, spec):
        return 5 * (1 - sens) * labels.sum() + 2 * (1 - spec) * (1 - labels).sum()

    reached = {name: rates(labels, probabilities, threshold) for name, threshold in found.items()}
    for target in (0.9, 0.95):
        enough = [(sens, spec) for sens, spec in all_of_them if spec >= target - 1e-9]
        assert reached[f"specificity_{target:.2f}"] == pytest.approx(max(enough))
        enough = [(spec, sens) for sens, spec in all_of_them if sens >= target - 1e-9]
        assert reached[f"sensitivity_{target:.2f}"][::-1] == pytest.approx(max(enough))
    assert sum(reached["youden"]) == pytest.approx(max(map(sum, all_of_them)))
    assert expense(*reached["cost"]) == pytest.approx(min(expense(*each) for each in all_of_them))


def test_a_dearer_miss_and_a_higher_prevalence_lower_the_threshold():
    labels, probabilities, _ = drawn(0)
    thresholds = [choose_operating_points(labels, probabilities, CostRatio(c, 1))["cost"] for c in (0.2, 1, 5, 50)]
    assert thresholds == sorted(thresholds, reverse=True)
    assert thresholds[0] > thresholds[-1]
    at = [choose_operating_points(labels, probabilities, CostRatio(5, 1), share)["cost"] for share in (0.02, 0.3, 0.8)]
    assert at == sorted(at, reverse=True)
    assert at[0] > at[-1]
    # Only the ratio counts.
    assert (
        choose_operating_points(labels, probabilities, CostRatio(10, 2))["cost"]
        == choose_operating_points(labels, probabilities, CostRatio(5, 1))["cost"]
    )


def test_predictive_values_are_those_of_bayes_theorem():
    """Altman and Bland's example (BMJ 1994; 309: 102): 263 liver scans, sensitivity 0.90, specificity 0.63."""
    labels = np.repeat([1, 1, 0, 0], [231, 27, 32, 54])
    called = np.repeat([1.0, 0.0, 1.0, 0.0], [231, 27, 32, 54])
    own = operating_scores(labels, called, np.arange(len(labels)), 0.5)
    assert own["sensitivity"].value == pytest.approx(0.90, abs=0.005)
    assert own["specificity"].value == pytest.approx(0.63, abs=0.005)
    assert own["ppv"].value == pytest.approx(0.88, abs=0.005)
    assert own["npv"].value == pytest.approx(0.67, abs=0.005)
    quarter = operating_scores(labels, called, np.arange(len(labels)), 0.5, prevalence=0.25)  # also given there
    assert quarter["ppv"].value == pytest.approx(0.45, abs=0.005)
    assert quarter["npv"].value == pytest.approx(0.95, abs=0.005)
    for found in (own, quarter):
        assert all(one.low < one.value < one.high for one in found.values())


def test_nothing_called_positive_has_no_ppv():
    labels, probabilities, groups = drawn(1)
    found = operating_scores(labels, probabilities, groups, 1.1)
    assert math.isnan(found["ppv"].value)
    assert found["sensitivity"].value == 0
    assert found["specificity"].value == 1
    assert found["npv"].value == pytest.approx(1 - labels.mean())


def test_thresholds_may_differ_by_image():
    labels, probabilities, groups = drawn(2)
    each = np.where(np.arange(len(labels)) < 150, 0.2, 0.6)
    found = operating_scores(labels, probabilities, groups, each)
    assert found["sensitivity"].value == pytest.approx((probabilities >= each)[labels == 1].mean())


def test_net_benefit_is_that_of_vickers_and_elkin():
    labels, probabilities, groups = drawn(3)
    curve = decision_curve(labels, probabilities, groups, thresholds=(0.1, 0.3, 0.6))
    n, share = len(labels), labels.mean()
    for at, t in enumerate(curve.thresholds):
        called = probabilities >= t
        tp, fp = (called & (labels == 1)).sum(), (called & (labels == 0)).sum()
        assert curve.model[at].value == pytest.approx(tp / n - fp / n * t / (1 - t))
        assert curve.all[at].value == pytest.approx(share - (1 - share) * t / (1 - t))
        better = max(0, curve.all[at].value)
        assert curve.gain[at].value == pytest.approx(curve.model[at].value - better)
        assert curve.gain[at].low < curve.gain[at].value < curve.gain[at].high
    # At the set's own prevalence the weighted form is the same; the known prevalence has no error.
    given_ = decision_curve(labels, probabilities, groups, prevalence=share, thresholds=(0.1, 0.3, 0.6))
    assert [one.value for one in given_.model] == pytest.approx([one.value for one in curve.model])
    assert math.isnan(given_.all[0].low)
    row = curve.rows()[0]
    assert row["threshold_probability"] == 0.1
    assert row["model"] == curve.model[0].value
    assert row["treat_all_high"] == curve.all[0].high


def test_where_the_threshold_is_the_prevalence_treating_all_is_worth_nothing():
    """The closed form of Vickers and Elkin: treating all crosses treating none at a threshold of the prevalence."""
    labels = np.repeat([1, 0], [20, 80])
    curve = decision_curve(labels, np.full(100, 0.5), np.arange(100), thresholds=(0.2, 0.4))
    assert curve.all[0].value == pytest.approx(0)
    # A model that calls all is treating all.
    assert [one.value for one in curve.model] == pytest.approx([one.value for one in curve.all])
    perfect = decision_curve(labels, labels.astype(float), np.arange(100), thresholds=(0.2, 0.4))
    assert [one.value for one in perfect.model] == pytest.approx([0.2, 0.2])
    one_class = decision_curve(np.ones(20), np.full(20, 0.5), np.arange(20), thresholds=(0.2,))
    assert one_class.model[0].value == pytest.approx(1)
    assert math.isnan(one_class.model[0].low)


def test_intervals_at_a_given_prevalence_hold_the_truth():
    """Normal scores of known error rates, in groups that differ: PPV at 5%, and the net benefit."""
    generator = np.random.default_rng(4)
    held, runs, truth = {"ppv": 0, "gain": 0}, 200, {}
    big = 400_000
    y = generator.random(big) < 0.3
    z = generator.normal(y * 1.5 - 1, np.hypot(1, 0.4))
    sens, alarms = (expit(z) >= 0.4)[y].mean(), (expit(z) >= 0.4)[~y].mean()
    truth["ppv"] = 0.05 * sens / (0.05 * sens + 0.95 * alarms)
    truth["gain"] = 0.3 * sens - 0.7 * alarms * 0.4 / 0.6
    for _ in range(runs):
        groups = np.repeat(np.arange(25), 20)
        labels = (generator.random(500) < 0.3).astype(int)
        z = generator.normal(labels * 1.5 - 1, 1) + generator.normal(0, 0.4, 25)[groups]
        ppv = operating_scores(labels, expit(z), groups, 0.4, 0.05)["ppv"]
        gain = decision_curve(labels, expit(z), groups, thresholds=(0.4,)).gain[0]
        held["ppv"] += ppv.low <= truth["ppv"] <= ppv.high
        held["gain"] += gain.low <= truth["gain"] <= gain.high
    assert held["ppv"] / runs > 0.9
    assert held["gain"] / runs > 0.9


def test_a_ppv_of_one_knows_only_what_was_called_and_at_a_prevalence_the_specificity():
    labels, groups = np.repeat([1, 0], [20, 60]), np.arange(80)
    called = np.zeros(80)
    called[:6] = 1
    own = operating_scores(labels, called, groups, 0.5)["ppv"]
    assert (own.value, own.low, own.high) == (1, pytest.approx(0.025 ** (1 / 6)), 1)  # Clopper-Pearson, 6 of 6
    assert math.isnan(operating_scores(labels, np.where(groups < 3, 1.0, 0.0), groups, 0.5)["ppv"].low)
    given_ = operating_scores(labels, called, groups, 0.5, prevalence=0.05)
    assert given_["specificity"].low == pytest.approx(0.025 ** (1 / 60))
    alarms = 0.95 * (1 - 0.025 ** (1 / 60))
    assert given_["ppv"].low == pytest.approx(0.05 * 0.3 / (0.05 * 0.3 + alarms))
    # The other way round: all that is called positive is wrong, and nothing positive is missed but what is called so.
    turned = operating_scores(1 - labels, called, groups, 0.5, prevalence=0.05)
    assert turned["ppv"].value == 0
    caught = 0.05 * (1 - 0.025 ** (1 / 60))
    assert turned["ppv"].high == pytest.approx(caught / (caught + 0.95 * 0.3))
    everything = operating_scores(labels, np.where(groups < 30, 1.0, 0.0), groups, 0.5, prevalence=0.05)["npv"]
    missed = 0.05 * (1 - 0.025 ** (1 / 20))
    assert everything.low == pytest.approx(0.95 * (50 / 60) / (0.95 * (50 / 60) + missed))


def test_a_ppv_of_one_at_a_prevalence_holds_the_truth():
    """Of independent images, with known error rates: where nothing is called wrongly, by chance."""
    generator = np.random.default_rng(6)
    labels, truth = np.repeat([1, 0], [20, 60]), 0.05 * 0.5 / (0.05 * 0.5 + 0.95 * 0.03)
    held = []
    for _ in range(300):
        called = generator.random(80) < np.where(labels == 1, 0.5, 0.03)
        ppv = operating_scores(labels, called.astype(float), np.arange(80), 0.5, 0.05)["ppv"]
        if ppv.value == 1:
            held.append(ppv.low <= truth)
    assert len(held) > 20
    assert np.mean(held) > 0.95


def test_a_model_that_calls_everything_is_worth_exactly_what_treating_all_is():
    for positives in range(3, 40):
        labels = np.repeat([1, 0], [positives, 97 - positives])
        for prevalence in (None, 0.3):
            curve = decision_curve(labels, np.ones(97), np.arange(97), prevalence, thresholds=(0.01, 0.02))
            assert [(one.value, one.low) for one in curve.gain] == [(0, 0), (0, 0)]


def test_probabilities_that_are_moved_to_another_prevalence_are_calibrated_there():
    """Bayes' theorem by hand, there and back, and a logistic regression on a sample of the other prevalence."""
    # Of 1,000 at 20%: 40 fractured and 10 others look like this. At 5%: 10 of 50 fractured, and 11.875 of 950.
    assert at_prevalence([0.8], 0.2, 0.05)[0] == pytest.approx(10 / (10 + 950 / 80))
    some = np.array([0.0, 0.1, 0.5, 0.97, 1.0])
    assert at_prevalence(at_prevalence(some, 0.2, 0.05), 0.05, 0.2) == pytest.approx(some)
    assert at_prevalence(some, 0.3, 0.3) == pytest.approx(some)
    generator = np.random.default_rng(5)
    labels = (generator.random(100_000) < 0.05).astype(int)
    z = generator.normal(2.0 * labels, 1)
    at_a_third = expit(2 * z - 2 + math.log(0.5))  # right where a third is positive
    moved = at_prevalence(at_a_third, 1 / 3, 0.05)
    found = fit_temperature(labels, np.log(moved / (1 - moved)))
    assert found.temperature == pytest.approx(1, abs=0.03)
    assert found.bias == pytest.approx(0, abs=0.05)
