"""Confident learning on two classes: an example by hand, and what follows from the definitions."""

import math

import numpy as np
import pytest

from fracray.errors import RunError
from fracray.metrics import doubt_labels

LABELS = [0, 0, 0, 0, 1, 1, 1, 1]
PROBABILITIES = [0.1, 0.2, 0.55, 0.75, 0.9, 0.8, 0.38, 0.42]
# Of class 0: (0.9 + 0.8 + 0.45 + 0.25) / 4 = 0.6. Of class 1: (0.9 + 0.8 + 0.38 + 0.42) / 4 = 0.625.
# Labelled 0, the fourth has 0.75 >= 0.625 for class 1, the third only 0.55. Labelled 1, the seventh has 0.62 >= 0.6 for
# class 0, the eighth only 0.58.


def test_thresholds_and_flags_of_an_example_by_hand():
    found = doubt_labels(LABELS, PROBABILITIES)
    assert found.thresholds == pytest.approx((0.6, 0.625))
    assert found.self_confidence == pytest.approx([0.9, 0.8, 0.45, 0.25, 0.9, 0.8, 0.38, 0.42])
    assert found.flagged.tolist() == [False, False, False, True, False, False, True, False]
    assert found.disputed == 4
    # If its label were 1, an image is flagged with p <= 0.4; if it were 0, with p >= 0.625.
    assert found.expected == pytest.approx(0.1 + 0.2 + 0.38 + (1 - 0.75) + (1 - 0.9) + (1 - 0.8))


def test_where_both_classes_reach_their_threshold_the_likelier_one_counts():
    labels, probabilities = [0, 0, 0, 1, 1, 1], [0.9, 0.49, 0.51, 0.1, 0.49, 0.51]
    found = doubt_labels(labels, probabilities)
    assert sum(found.thresholds) < 1  # worse than chance, so that both can be reached
    assert found.flagged.tolist() == [True, False, True, True, True, False]


@pytest.mark.parametrize("label", [0, 1])
def test_a_class_that_no_image_has_is_never_suggested(label):
    found = doubt_labels([label] * 3, [0.0, 0.5, 1.0])
    assert not found.flagged.any()
    assert math.isnan(found.thresholds[1 - label])


def test_with_true_probabilities_and_right_labels_as_many_are_flagged_as_expected():
    generator = np.random.default_rng(0)
    probabilities = generator.beta(0.3, 1.2, 20_000)
    found = doubt_labels(generator.random(20_000) < probabilities, probabilities)
    assert found.flagged.sum() == pytest.approx(found.expected, rel=0.1)
    assert 100 < found.expected < found.disputed


def test_turned_labels_are_believed_least_and_nothing_else_is_flagged():
    generator = np.random.default_rng(1)
    labels = (np.arange(1000) % 5 == 0).astype(int)
    probabilities = np.clip(np.where(labels, 0.9, 0.1) + generator.normal(0, 0.02, 1000), 0, 1)
    turned = generator.choice(1000, 30, replace=False)
    labels[turned] = 1 - labels[turned]
    found = doubt_labels(labels, probabilities)
    assert set(np.argsort(found.self_confidence)[:30]) == set(turned)
    assert set(np.flatnonzero(found.flagged)) <= set(turned)
    assert found.flagged.sum() >= 15, "a threshold is a mean, which about half of a class reaches"


def test_probabilities_that_are_not_finite_are_refused():
    with pytest.raises(RunError, match="not finite"):
        doubt_labels([0, 1], [0.5, math.nan])
