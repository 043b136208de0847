"""Augmentation: stock transforms of albumentations with the same draws give the same pixels, and the draws are what the
strengths say."""

import random

import albumentations as A
import cv2
import numpy as np
import pytest
from scipy import stats

from fracray.config import AugmentConfig
from fracray.data.images.letterbox import letterbox
from fracray.data.loading.augment import Augmenter
from fracray.data.loading.draws import Pictures, draw, philox

STRONG = AugmentConfig(rotate=25.0, flip=0.5, vertical_flip=0.3, scale=0.2, stretch=0.2, brightness=0.3, contrast=0.3)
OFF = AugmentConfig(rotate=0.0, flip=0.0, scale=0.0, stretch=0.0, brightness=0.0, contrast=0.0)


def only(**strengths):
    return OFF.model_copy(update=strengths)


@pytest.fixture(scope="module")
def radiographs():
    """(48, 72, 60): smooth, as radiographs are, bright up to the border, and higher than wide."""
    generator = np.random.default_rng(0)
    return np.stack(
        [
            cv2.resize(generator.integers(0, 256, (9, 8), dtype=np.uint8), (60, 72), interpolation=cv2.INTER_CUBIC)
            for _ in range(48)
        ]
    )


def contrast_about_the_mean(lowest, highest):
    return A.ColorJitter((1, 1), (lowest, highest), (1, 1), (0, 0), p=1.0)


def by_albumentations(strengths, image, draws, at):
    """One image as albumentations augments it with our draws."""
    angle, brightness, contrast = (float(d[at]) for d in (draws.angle, draws.brightness, draws.contrast))
    x, y = (float(factor) for factor in draws.scale[at])
    transforms = []
    if strengths.contrast:  # about the mean gray
        transforms.append(contrast_about_the_mean(1 + contrast, 1 + contrast))
    if strengths.brightness:
        transforms.append(A.RandomBrightnessContrast((brightness, brightness), (0, 0), p=1.0))
    transforms += [A.HorizontalFlip(p=float(draws.flip[at])), A.VerticalFlip(p=float(draws.vertical_flip[at]))]
    if strengths.warps:
        scale = {"x": (x, x), "y": (y, y)}
        transforms.append(A.Affine(rotate=(angle, angle), scale=scale, interpolation=cv2.INTER_LINEAR, p=1.0))
    return A.Compose(transforms)(image=image)["image"]


# ---------------------------------------------------------------- pixels


@pytest.mark.parametrize(
    ("strengths", "largest", "share"),
    [
        # Moving pixels and looking gray levels up is exact; they round each of two changes of the gray levels.
        (only(flip=0.5), 0, 0.0),
        (only(vertical_flip=0.5), 0, 0.0),
        (only(brightness=0.3), 0, 0.0),
        (only(contrast=0.3), 1, 0.01),
        (only(flip=0.5, vertical_flip=0.5, brightness=0.4), 0, 0.0),
        (only(brightness=0.4, contrast=0.4), 1, 0.7),
        # Our matrix is inverted, and multiplied with the flips, in another order than theirs: some values near a half
        # are rounded to the next gray level.
        (only(rotate=180.0), 1, 1e-3),
        (only(scale=0.3), 1, 1e-3),
        (only(scale=0.2, stretch=0.3), 1, 1e-3),
        (only(rotate=25.0, scale=0.2, stretch=0.2, flip=0.5, vertical_flip=0.5, brightness=0.3), 1, 1e-3),
        (STRONG, 2, 0.7),
    ],
    ids=str,
)
def test_albumentations_with_the_same_draws_gives_the_same_pixels(radiographs, strengths, largest, share):
    rows = np.arange(len(radiographs))
    if strengths.brightness and strengths.contrast:  # they clip after each of the two
        radiographs = 110 + radiographs // 8
    ours, draws = Augmenter(strengths, 7).batch(radiographs, 2, rows), draw(strengths, 7, 2, rows)
    theirs = [by_albumentations(strengths, image, draws, at) for at, image in enumerate(radiographs)]
    difference = np.abs(ours.astype(int) - np.stack(theirs))
    assert difference.max() <= largest
    assert (difference > 0).mean() <= share
    assert np.mean([not np.array_equal(a, b) for a, b in zip(ours, radiographs, strict=True)]) > 0.25


def test_albumentations_left_to_draw_gives_the_same_distribution_of_pixels(radiographs):
    """Several pixels of one radiograph over 1,500 draws of each, by the two-sample test of Kolmogorov and Smirnov."""
    image, count = radiographs[0], 1500
    pipeline = A.Compose(
        [
            contrast_about_the_mean(0.7, 1.3),
            A.RandomBrightnessContrast(brightness_limit=0.3, contrast_limit=(0, 0), p=1.0),
            A.HorizontalFlip(p=0.5),
            A.VerticalFlip(p=0.3),
            A.Affine(rotate=(-25, 25), scale=(0.8, 1.2), keep_ratio=True, interpolation=cv2.INTER_LINEAR, p=1.0),
        ]
    )
    # Compose(seed=...) seeds every transform alike, and only images flipped left-right would be flipped up-down.
    pipeline.set_random_state(np.random.default_rng(0), random.Random(0))
    theirs = np.stack([pipeline(image=image)["image"] for _ in range(count)])
    strengths = STRONG.model_copy(update={"stretch": 0.0})
    ours = Augmenter(strengths, 0).batch(np.broadcast_to(image, (count, *image.shape)), 0, range(count))
    for y, x in [(3, 3), (3, 40), (20, 12), (35, 30), (36, 50), (60, 8), (70, 58)]:
        assert stats.ks_2samp(ours[:, y, x], theirs[:, y, x]).pvalue > 1e-3, (y, x)


def test_an_augmentation_that_is_off_returns_the_images_themselves(radiographs):
    assert Augmenter(OFF, 0).batch(radiographs, 0, range(48)) is radiographs


def test_certain_flips_turn_every_image(radiographs):
    rows = range(len(radiographs))
    assert np.array_equal(Augmenter(only(flip=1.0), 0).batch(radiographs, 0, rows), radiographs[:, :, ::-1])
    assert np.array_equal(Augmenter(only(vertical_flip=1.0), 0).batch(radiographs, 0, rows), radiographs[:, ::-1])


def test_images_that_may_only_be_read_are_augmented_and_left_as_they_are(radiographs):
    shared = radiographs.copy()
    shared.flags.writeable = False
    augmented = Augmenter(STRONG, 1).batch(shared, 0, range(48))
    assert np.array_equal(shared, radiographs)
    assert np.array_equal(augmented, Augmenter(STRONG, 1).batch(radiographs.copy(), 0, range(48)))


def test_no_images_are_no_images(radiographs):
    for strengths in (OFF, STRONG, only(flip=0.5)):
        assert Augmenter(strengths, 0).batch(radiographs[:0], 0, []).shape == (0, 72, 60)


# ---------------------------------------------------------------- draws


def test_philox_gives_the_published_answers():
    """The known answers that its authors ship (Random123, kat_vectors)."""
    known = [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ]
    for counter, key, words in known:
        drawn = philox([np.array([word], dtype=np.uint64) for word in counter], key)
        assert tuple(int(word[0]) for word in drawn) == words


def parameters(draws):
    """(7, n): every parameter drawn, flips as 0 and 1; zoom and stretch apart."""
    x, y = draws.scale.T
    return np.stack(
        [draws.flip, draws.vertical_flip, draws.angle, np.sqrt(x * y), x / y, draws.brightness, draws.contrast]
    ).astype(float)


def test_draws_are_uniform_within_their_strengths_and_flips_have_their_probability():
    drawn = parameters(draw(STRONG, 0, 0, range(20_000)))
    for name, values in (("flip", drawn[0]), ("vertical_flip", drawn[1])):
        assert stats.binomtest(int(values.sum()), len(values), getattr(STRONG, name)).pvalue > 1e-3
    for values, middle, reach in zip(drawn[2:], (0, 1, 1, 0, 0), (25.0, 0.2, 0.2, 0.3, 0.3), strict=True):
        assert stats.kstest(values, stats.uniform(middle - reach, 2 * reach).cdf).pvalue > 1e-3


def test_draws_of_parameters_rows_epochs_and_seeds_are_uncorrelated():
    count = 10_000
    here = parameters(draw(STRONG, 0, 0, range(count)))
    # The correlation of n independent pairs has a standard deviation of 1 / sqrt(n).
    limit = 4.5 / np.sqrt(count - 1)
    among = np.corrcoef(here) - np.eye(len(here))
    assert np.abs(among).max() < limit
    for other in (
        parameters(draw(STRONG, 0, 0, range(1, count + 1))),
        parameters(draw(STRONG, 0, 1, range(count))),
        parameters(draw(STRONG, 1, 0, range(count))),
        parameters(draw(STRONG, 2**32, 0, range(count))),
        parameters(draw(STRONG, 0, 0, range(2**32, 2**32 + count))),
    ):
        assert np.abs(np.corrcoef(here, other)[: len(here), len(here) :]).max() < limit


def test_a_draw_depends_on_seed_epoch_and_row_alone():
    rows = np.random.default_rng(0).permutation(500)
    together = parameters(draw(STRONG, 5, 2, rows))
    alone = [parameters(draw(STRONG, 5, 2, [row]))[:, 0] for row in rows]
    assert np.array_equal(together.T, alone)
    for other in (draw(STRONG, 6, 2, rows), draw(STRONG, 5, 3, rows)):
        assert not np.isclose(parameters(other)[2:], together[2:]).any(axis=1).all()


def test_a_strength_does_not_change_the_draws_of_the_others():
    rows = range(100)
    all_on, rotation = draw(STRONG, 0, 0, rows), draw(only(rotate=25.0), 0, 0, rows)
    assert np.array_equal(all_on.angle, rotation.angle)
    assert not rotation.flip.any()
    assert (rotation.scale == 1).all()
    assert not rotation.brightness.any()
    doubled = draw(STRONG.model_copy(update={"rotate": 50.0}), 0, 0, rows)
    assert np.allclose(doubled.angle, 2 * all_on.angle)


def test_batches_of_any_composition_hold_the_same_images(radiographs):
    rows = np.arange(len(radiographs))
    augmenter = Augmenter(STRONG, 3)
    complete = augmenter.batch(radiographs, 4, rows)
    order = np.random.default_rng(1).permutation(rows)
    assert np.array_equal(augmenter.batch(radiographs[order], 4, order), complete[order])
    parts = [Augmenter(STRONG, 3).batch(radiographs[part], 4, part) for part in np.array_split(rows, 5)]
    assert np.array_equal(np.concatenate(parts), complete)
    assert not np.array_equal(augmenter.batch(radiographs, 5, rows), complete)


# ---------------------------------------------------------------- what a strength does to a picture


@pytest.fixture
def bar():
    image = np.full((64, 64), 40, dtype=np.uint8)
    cv2.rectangle(image, (20, 8), (34, 56), 200, -1)
    return image


@pytest.mark.parametrize("strength", ["rotate", "scale", "stretch", "brightness", "contrast"])
def test_each_strength_alone_changes_the_image_within_its_range(bar, strength):
    strengths = only(**{strength: getattr(STRONG, strength)})
    drawn = Augmenter(strengths, 0).batch(np.broadcast_to(bar, (200, 64, 64)), 0, range(200)).astype(float)
    assert np.mean([not np.array_equal(image, bar) for image in drawn]) > 0.9
    shifts = drawn[:, 32, 27] - 200  # inside the bright bar, whatever the warp
    if strength == "brightness":
        assert shifts.min() >= -0.3 * 255 - 1
        assert shifts.min() < -0.2 * 255
    if strength in ("rotate", "scale", "stretch"):
        assert np.abs(shifts).max() <= 1  # a warp moves gray levels, it does not change them
        areas = (drawn > 120).sum(axis=(1, 2)) / (bar > 120).sum()
        if strength == "scale":
            assert 0.8**2 * 0.9 < areas.min() < 0.75
            assert 1.3 < areas.max() < 1.2**2 * 1.1
        else:
            assert np.abs(areas - 1).max() < 0.05


def test_without_a_stretch_of_its_own_it_is_as_large_as_the_zoom():
    given = AugmentConfig(rotate=0.0, flip=0.0, scale=0.2, brightness=0.0, contrast=0.0)
    as_large, own = (draw(strengths, 0, 0, range(50)) for strengths in (given, only(scale=0.2, stretch=0.2)))
    assert np.array_equal(as_large.scale, own.scale)
    assert not given.model_copy(update={"scale": 0.0}).warps


def test_a_stretch_changes_the_shape_and_a_zoom_does_not(bar):
    for strength, shapes in (("scale", (0.95, 1.05)), ("stretch", (0.8, 1.2))):
        drawn = Augmenter(only(**{strength: 0.2}), 0).batch(np.broadcast_to(bar, (100, 64, 64)), 0, range(100))
        widths, heights = ((drawn > 120).any(axis=axis).sum(axis=1) for axis in (1, 2))
        shape = widths / heights / (15 / 49)
        assert shapes[0] - 0.1 < shape.min() < shapes[0] + 0.05, strength
        assert shapes[1] - 0.05 < shape.max() < shapes[1] + 0.1, strength


def test_the_letterbox_does_not_tell_the_draw():
    """Brightness used to paint it too: its level told the network the draw, and was always 0 in validation."""
    generator = np.random.default_rng(0)
    small = generator.integers(60, 256, (40, 9, 6), dtype=np.uint8)
    images = np.stack([letterbox(cv2.resize(image, (40, 64)), 64) for image in small])
    bands = np.r_[0:12, 52:64]
    for strengths in (only(brightness=0.4, contrast=0.4), only(brightness=0.4, flip=0.5)):
        augmented = Augmenter(strengths, 0).batch(images, 0, range(40))
        assert not augmented[:, :, bands].any()
        assert np.corrcoef(augmented[:, 32, 32], draw(strengths, 0, 0, range(40)).brightness)[0, 1] > 0.5
    turned = Augmenter(only(brightness=0.4, rotate=20.0), 0).batch(images, 0, range(40))
    assert not turned[:, [0, 0, 63, 63], [0, 63, 0, 63]].any()


def test_black_bands_of_a_picture_are_part_of_it_where_sizes_are_known():
    dark = np.zeros((64, 64), dtype=np.uint8)
    dark[20:40] = 200
    brighter = only(brightness=0.4)
    rows = np.flatnonzero(draw(brighter, 0, 0, range(20)).brightness > 0.1)
    known = Pictures.of_sizes([64] * len(rows), [64] * len(rows), np.full(len(rows), 62.5), 64)
    images = np.broadcast_to(dark, (len(rows), 64, 64))
    assert Augmenter(brighter, 0).batch(images, 0, rows, known)[:, 0].min() > 20
    assert not Augmenter(brighter, 0).batch(images, 0, rows)[:, 0].any()


def test_contrast_keeps_the_mean_gray(radiographs):
    inside = np.clip(radiographs, 80, 170)  # not clipped by the contrast
    changed = Augmenter(only(contrast=0.3), 0).batch(inside, 0, range(48)).astype(float)
    assert np.abs(changed.mean(axis=(1, 2)) - inside.mean(axis=(1, 2))).max() < 1
    spread = changed.std(axis=(1, 2)) / inside.std(axis=(1, 2))
    assert spread.min() < 0.8
    assert spread.max() > 1.2


def test_sizes_give_the_frame_into_which_the_picture_was_put():
    for width, height in ((373, 454), (454, 373), (1, 1000), (1000, 1), (64, 64), (2304, 2880), (65, 64)):
        square = letterbox(np.full((height, width), 9, dtype=np.uint8), 64)
        top, bottom, left, right = Pictures.of_sizes([width], [height], np.array([9.0]), 64).frames[0]
        painted = np.zeros((64, 64), dtype=np.uint8)
        painted[top:bottom, left:right] = 9
        assert np.array_equal(painted, square), (width, height)
    with pytest.raises(ValueError):
        Pictures.of_sizes([64], [64], np.array([np.nan]), 64)


def test_angles_are_counter_clockwise(bar):
    turned = Augmenter(only(rotate=25.0), 0).batch(np.broadcast_to(bar, (50, 64, 64)), 0, range(50))
    angles = draw(only(rotate=25.0), 0, 0, range(50)).angle
    ys, xs = np.indices((64, 64)).reshape(2, -1)
    for image, angle in zip(turned, angles, strict=True):
        inside = np.clip(image.astype(float) - 40, 0, None).ravel()
        spread = np.cov(xs, ys, aweights=inside)
        foot_goes_right = np.arctan2(2 * spread[0, 1], spread[1, 1] - spread[0, 0]) / 2  # the bar's principal axis
        assert np.rad2deg(foot_goes_right) == pytest.approx(angle, abs=0.2)
