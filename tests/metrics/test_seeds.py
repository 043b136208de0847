"""The gain over several seeds: closed forms, and simulated coverage."""

import math

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import t

from fracray.metrics import FEWEST_GROUPS, paired_gain, score
from fracray.metrics.seeds import SeedRun, seeded_gain


def drawn(generator, groups=11, size=40):
    group = np.repeat(np.arange(groups), size)
    z = -0.5 + generator.normal(0, 0.5, groups)[group] + generator.normal(0, 1.6, len(group))
    return (generator.random(len(group)) < expit(z)).astype(int), z, group


def training(generator, z, noise=1.0):
    return SeedRun(expit(z + generator.normal(0, noise, len(z))), 0.4)


def test_the_gain_is_the_difference_of_the_means():
    generator = np.random.default_rng(0)
    labels, z, group = drawn(generator)
    ours, theirs = [training(generator, z, 0.5) for _ in range(3)], [training(generator, z) for _ in range(2)]
    for metric in ("accuracy", "auroc", "brier"):
        means = [
            np.mean([getattr(score(labels, run.probabilities, run.threshold), metric) for run in side])
            for side in (ours, theirs)
        ]
        assert seeded_gain(labels, group, ours, theirs, metric).value == pytest.approx(means[0] - means[1])
    losses = [-np.mean(np.where(labels == 1, np.log(run.probabilities), np.log1p(-run.probabilities))) for run in ours]
    flat = [SeedRun(np.full(len(labels), 0.5), 0.5)] * 2
    assert seeded_gain(labels, group, ours, flat, "loss").value == pytest.approx(np.mean(losses) - math.log(2))


def test_the_gain_in_calibration_error_is_that_of_the_errors_as_they_are_reported():
    """0 where the square of the error is estimated below 0."""
    generator = np.random.default_rng(0)
    labels, z, group = drawn(generator)
    sides = [[SeedRun(expit(z * slope), 0.4) for slope in slopes] for slopes in ((1.0, 1.1), (0.9, 0.5))]
    reported = [[score(labels, run.probabilities, run.threshold, group).ece for run in side] for side in sides]
    assert reported[0] == [0.0, 0.0]
    assert reported[1][1] > 0
    found = seeded_gain(labels, group, *sides, "ece")
    assert found.value == pytest.approx(np.mean(reported[0]) - np.mean(reported[1]))
    # Signed values differ between seeds where reported ones are all 0, and the interval is as wide as these say.
    low, high = (seeded_gain(labels, group, [side[0]] * 2, [side[1]] * 2, "ece") for side in zip(*sides, strict=True))
    assert found.high - found.low > min(low.high - low.low, high.high - high.low)


def test_over_folds_the_gain_in_calibration_error_is_that_of_the_means_of_the_folds_errors():
    generator = np.random.default_rng(0)
    labels, z, group, folds = over_folds(generator)
    sides = [
        [SeedRun(expit(z * slope), np.full(len(z), 0.4)) for slope in slopes] for slopes in ((1.0, 1.1), (0.9, 0.5))
    ]
    inside = [folds == fold for fold in np.unique(folds)]
    means = [
        np.mean([score(labels[i], run.probabilities[i], 0.4, group[i]).ece for run in side for i in inside])
        for side in sides
    ]
    assert seeded_gain(labels, group, *sides, "ece", folds).value == pytest.approx(means[0] - means[1])


def test_without_a_difference_between_seeds_it_is_that_of_the_groups_alone():
    generator = np.random.default_rng(1)
    labels, z, group = drawn(generator)
    one, two = training(generator, z, 0.5), training(generator, z)
    gain = seeded_gain(labels, group, [one] * 3, [two] * 3, "auroc")
    known = paired_gain(labels, one.probabilities, 0.4, two.probabilities, 0.4, group, "auroc")
    assert (gain.low, gain.high) == pytest.approx((known.low, known.high))


def test_where_groups_agree_it_is_welchs_interval_over_the_seeds():
    """All groups are copies of one: only the seeds differ."""
    generator = np.random.default_rng(2)
    labels, z, _ = drawn(generator, groups=1)
    group = np.repeat(np.arange(8), len(labels))
    ours, theirs = (
        [SeedRun(np.tile(training(generator, z, noise).probabilities, 8), 0.4) for _ in range(3)] for noise in (0.5, 2)
    )
    gain = seeded_gain(np.tile(labels, 8), group, ours, theirs, "accuracy")
    scores = [[((run.probabilities[: len(labels)] >= 0.4) == labels).mean() for run in side] for side in (ours, theirs)]
    parts = [np.var(side, ddof=1) / 3 for side in scores]
    freedom = sum(parts) ** 2 / sum(part**2 / 2 for part in parts)
    half = t.ppf(0.975, freedom) * math.sqrt(sum(parts))
    assert gain.high - gain.value == pytest.approx(half)


def test_one_seed_or_few_groups_give_no_interval():
    generator = np.random.default_rng(3)
    labels, z, group = drawn(generator)
    runs = [training(generator, z) for _ in range(2)]
    assert math.isnan(seeded_gain(labels, group, runs[:1], runs, "accuracy").low)
    assert not math.isnan(seeded_gain(labels, group, runs, runs[::-1], "accuracy").low)
    few = group % (FEWEST_GROUPS - 1)
    assert math.isnan(seeded_gain(labels, few, runs, runs[::-1], "accuracy").low)


@pytest.mark.parametrize("seeds", [2, 3])
def test_equal_configurations_are_told_apart_no_more_often_than_claimed(seeds):
    """Seeds differ in how good they are. An interval over groups alone excludes 0 in half of these samples."""
    generator = np.random.default_rng(10 + seeds)
    covered, alone, runs = 0, 0, 200
    for _ in range(runs):
        labels, z, group = drawn(generator)
        sides = [[training(generator, z, noise) for noise in np.exp(generator.normal(0, 0.5, seeds))] for _ in "ab"]
        gain = seeded_gain(labels, group, *sides, metric="accuracy")
        covered += gain.low <= 0 <= gain.high
        single = paired_gain(labels, sides[0][0].probabilities, 0.4, sides[1][0].probabilities, 0.4, group)
        alone += single.low <= 0 <= single.high
    assert covered / runs > 0.92
    assert alone / runs < 0.8


# ---- over folds


def over_folds(generator, groups=20, size=25, folds=4):
    labels, z, group = drawn(generator, groups, size)
    return labels, z, group, group % folds


def test_over_folds_the_gain_is_that_of_the_means_of_the_folds_scores():
    labels, z, group, fold = over_folds(np.random.default_rng(4))
    generator = np.random.default_rng(5)
    thresholds = np.array([0.3, 0.4, 0.5, 0.6])[fold]
    sides = [[SeedRun(training(generator, z).probabilities, thresholds) for _ in range(2)] for _ in "ab"]
    for metric in ("accuracy", "auroc", "brier"):
        means = [
            np.mean(
                [
                    getattr(score(labels[fold == k], run.probabilities[fold == k], thresholds[fold == k]), metric)
                    for run in side
                    for k in range(4)
                ]
            )
            for side in sides
        ]
        assert seeded_gain(labels, group, *sides, metric, fold).value == pytest.approx(means[0] - means[1])
        single = [side[0] for side in sides]
        paired = paired_gain(
            *(labels, single[0].probabilities, thresholds, single[1].probabilities, thresholds, group, metric, fold)
        )
        alone = seeded_gain(labels, group, [single[0]] * 2, [single[1]] * 2, metric, fold)
        assert (paired.value, paired.low) == pytest.approx((alone.value, alone.low))
    flat = [SeedRun(np.full(len(labels), 0.5), thresholds)] * 2
    uneven = np.where(fold == 0, 0, 1)
    losses = [-np.log(np.where(labels == 1, p, 1 - p)) for p in (run.probabilities for run in sides[0])]
    expected = np.mean([[loss[uneven == k].mean() for k in (0, 1)] for loss in losses]) - math.log(2)
    assert seeded_gain(labels, group, sides[0], flat, "loss", uneven).value == pytest.approx(expected)


def test_one_fold_is_no_fold():
    labels, z, group, _ = over_folds(np.random.default_rng(6))
    generator = np.random.default_rng(7)
    sides = [[training(generator, z) for _ in range(2)] for _ in "ab"]
    for metric in ("accuracy", "auroc", "loss"):
        one = seeded_gain(labels, group, *sides, metric, np.zeros(len(labels)))
        assert (one.value, one.low, one.high) == pytest.approx(
            [getattr(seeded_gain(labels, group, *sides, metric), name) for name in ("value", "low", "high")]
        )


def test_a_fold_that_loses_a_class_with_one_group_is_left_out_of_the_mean():
    labels, z, group, fold = over_folds(np.random.default_rng(8), groups=12, folds=3)
    labels[(fold == 0) & (group != 0)] = 0  # of fold 0, group 0 alone has fractures
    labels[np.flatnonzero(group == 0)[:3]] = 1
    generator = np.random.default_rng(9)
    a, b = (training(generator, z).probabilities for _ in "ab")
    gain = paired_gain(labels, a, 0.4, b, 0.4, group, "auroc", fold)
    assert math.isfinite(gain.low)
    assert gain.low < gain.value < gain.high


@pytest.mark.parametrize("metric", ["accuracy", "auroc"])
def test_over_folds_equal_configurations_are_told_apart_no_more_often_than_claimed(metric):
    """Each training has a model of each fold, with a scale and a quality of its own."""
    generator = np.random.default_rng(20)
    covered, runs = 0, 150
    for _ in range(runs):
        labels, z, group, fold = over_folds(generator)
        sides = []
        for _ in "ab":
            noises = np.exp(generator.normal(0, 0.3, (2, 4)))
            shifts = generator.normal(0, 0.3, (2, 4))
            sides.append(
                [
                    SeedRun(expit(z + shift[fold] + generator.normal(0, 1, len(z)) * noise[fold]), 0.4)
                    for noise, shift in zip(noises, shifts, strict=True)
                ]
            )
        gain = seeded_gain(labels, group, *sides, metric, fold)
        covered += gain.low <= 0 <= gain.high
    assert covered / runs > 0.92
