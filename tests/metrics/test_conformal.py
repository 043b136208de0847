"""Conformal sets: what they promise holds in simulations, also where the images of a group resemble each other."""

import math

import numpy as np
import pytest

from fracray.errors import RunError
from fracray.metrics import fit_conformal

COVERAGE = 0.8


def draw(random, groups, size, spread):
    """Logits, labels and groups: each group shifts the logits of its images, and has one class."""
    labels = np.repeat(random.integers(0, 2, groups), size)
    shifts = np.repeat(random.normal(0, spread, groups), size)
    logits = 2.0 * labels - 1 + shifts + random.normal(0, 1, groups * size)
    return labels, logits, np.repeat(np.arange(groups), size)


@pytest.mark.parametrize(("size", "spread"), [(1, 0.0), (8, 2.0)], ids=["single images", "groups that differ"])
def test_the_set_of_a_new_image_holds_its_class_as_often_as_asked(size, spread):
    """Coverage over draws of validation set and new group, for each class; not much above, as then it says nothing."""
    random = np.random.default_rng(0)
    held = {0: [], 1: []}
    for _ in range(1500):
        sets = fit_conformal(*draw(random, 40, size, spread), COVERAGE)
        labels, logits, _ = draw(random, 1, size, spread)
        held[labels[0]] += [str(labels[0]) in sets.words(logits[0]).split("+")]
    for label, found in held.items():
        error = 3 * math.sqrt(COVERAGE * (1 - COVERAGE) / len(found))
        assert COVERAGE - error < np.mean(found) < COVERAGE + 0.06 + error, label


def test_images_of_groups_that_differ_are_not_taken_for_independent_ones():
    """Where groups are ignored, the limit is too low: the few groups of a validation set may all be easy ones."""
    random = np.random.default_rng(1)
    held, ignoring = [], []
    for _ in range(1500):
        labels, logits, groups = draw(random, 24, 30, 3.0)
        new_label, new, _ = draw(random, 1, 1, 3.0)
        for found, known in ((held, groups), (ignoring, None)):
            found.append(str(new_label[0]) in fit_conformal(labels, logits, known, 0.9).words(new[0]).split("+"))
    assert np.mean(held) > 0.9 - 0.015
    assert np.mean(ignoring) < min(0.9 - 0.015, np.mean(held) - 0.01)


def test_without_groups_it_is_the_order_statistic_of_split_conformal():
    """Of n images of a class, the ceil((n + 1) * coverage)th score: of 19, the 18th, which is the 2nd from below."""
    positive = np.arange(19.0)
    sets = fit_conformal([1] * 19 + [0] * 9, [*positive, *-np.arange(9.0)], None, 0.9)
    assert sets.lowest_of_1 == 1.0
    assert sets.highest_of_0 == 0.0  # nine images are just enough: the highest of their logits
    assert [sets.words(logit) for logit in (-1.0, 0.5, 1.0)] == ["0", "", "1"]
    assert fit_conformal([1] * 19, positive, None, 0.9).highest_of_0 == math.inf
    assert fit_conformal([0] * 8 + [1] * 9, range(17), None, 0.9).words(-1e9) == "0"
    assert fit_conformal([0] * 8 + [1] * 9, range(17), None, 0.9).words(1e9) == "0+1"


def test_an_overlap_gives_both_classes():
    sets = fit_conformal([0] * 10 + [1] * 10, [*range(10), *range(10)], None, 0.9)
    assert sets.words(5.0) == "0+1"
    assert sets.groups == (10, 10)


def test_a_training_that_diverged_is_refused():
    with pytest.raises(RunError, match="not finite"):
        fit_conformal([0, 1], [0.0, math.nan], None, 0.9)
