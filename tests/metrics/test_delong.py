"""DeLong's test against its definition over all pairs, against a permutation test, and under the hypothesis."""

import math

import numpy as np
import pytest
from scipy.stats import permutation_test
from sklearn.metrics import roc_auc_score

from fracray.metrics import delong


def drawn(generator, n=120, gap=0.5, shared=1.0):
    labels = (np.arange(n) % 3 == 0).astype(int)
    common = generator.normal(0, shared, n)
    a, b = (
        labels * shift + common + generator.normal(0, 1, n) for shift in (1.2 + gap, 1.2)
    )  # rounded: ties count half
    return labels, a.round(1), b.round(1)


def by_definition(labels, scores):
    """DeLong et al. 1988: placements of every positive and every negative from all pairs; AUROCs and covariance."""
    x, y = scores[:, labels == 1], scores[:, labels == 0]
    pairs = (x[:, :, None] > y[:, None, :]) + 0.5 * (x[:, :, None] == y[:, None, :])
    v10, v01 = pairs.mean(2), pairs.mean(1)
    return pairs.mean((1, 2)), np.cov(v10) / x.shape[1] + np.cov(v01) / y.shape[1]


@pytest.mark.parametrize("seed", range(4))
def test_it_is_its_definition(seed):
    labels, a, b = drawn(np.random.default_rng(seed))
    found = delong(labels, a, b)
    areas, covariance = by_definition(labels, np.stack([a, b]))
    error = math.sqrt(np.array([1, -1]) @ covariance @ [1, -1])
    assert (found.auroc_a, found.auroc_b) == pytest.approx((roc_auc_score(labels, a), roc_auc_score(labels, b)))
    assert found.error == pytest.approx(error)
    assert found.z == pytest.approx((areas[0] - areas[1]) / error)
    assert (found.low, found.high) == pytest.approx(
        (found.difference - 1.959964 * error, found.difference + 1.959964 * error)
    )
    back = delong(labels, b, a)
    assert (back.z, back.p) == pytest.approx((-found.z, found.p))


def test_a_case_by_hand():
    """Two positives, two negatives: placements (1, 0.5) and (1, 0.5) of one model, all 1 of the other."""
    found = delong([1, 1, 0, 0], [0.9, 0.4, 0.1, 0.5], [0.9, 0.8, 0.1, 0.2])
    assert (found.auroc_a, found.auroc_b) == (0.75, 1.0)
    assert found.error == pytest.approx(math.sqrt(0.125 / 2 + 0.125 / 2))
    assert found.p == pytest.approx(2 * 0.2397501, abs=1e-6)  # of z = -0.7071, from a table of the normal


def test_its_p_value_is_that_of_a_permutation_test():
    labels, a, b = drawn(np.random.default_rng(5), n=150, gap=0.7)
    rank = [np.argsort(np.argsort(each)) for each in (a, b)]  # on one scale, so that the models can be exchanged

    def difference(one, two):
        return roc_auc_score(labels, one) - roc_auc_score(labels, two)

    known = permutation_test(rank, difference, permutation_type="samples", n_resamples=1000, rng=0)
    found = delong(labels, *rank)
    assert 0.001 < found.p < 0.2
    assert found.p == pytest.approx(known.pvalue, abs=0.03)


def test_equal_models_differ_as_often_as_claimed():
    generator = np.random.default_rng(6)
    found = [delong(*drawn(generator, gap=0)) for _ in range(600)]
    assert np.mean([each.p < 0.05 for each in found]) == pytest.approx(0.05, abs=0.025)
    assert np.mean([each.low <= 0 <= each.high for each in found]) == pytest.approx(0.95, abs=0.025)


def test_the_same_order_has_no_test_and_one_image_of_a_class_no_error():
    labels, a, _ = drawn(np.random.default_rng(7))
    same = delong(labels, a, 2 * a)
    assert same.difference == 0
    assert math.isnan(same.z)
    assert same.as_dict()["p"] is None
    assert math.isnan(delong([1, 0, 0], [0.9, 0.1, 0.2], [0.1, 0.2, 0.3]).error)
