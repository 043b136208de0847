"""`build_pipeline` as a user of albumentations sees it, and extra transforms inside fracray."""

import inspect
import subprocess
import sys

import albumentations as A
import cv2
import numpy as np
import pytest

from fracray.config import Config
from fracray.data.loading.augment import Augmenter, build_pipeline
from fracray.data.loading.draws import draw, source_matrices
from fracray.data.loading.transforms import GrayLevels, Warp

STRONG = {"rotate": 25.0, "flip": 0.5, "vertical_flip": 0.3, "scale": 0.2, "brightness": 0.3, "contrast": 0.3}
NOTHING = dict.fromkeys(STRONG, 0.0)
EXTRA = {
    "CLAHE": {"clip_limit": [1, 4], "p": 0.5},
    "GaussNoise": {"std_range": [0.02, 0.1], "p": 0.7},
    "CoarseDropout": {"p": 0.6},
}


def strengths(**given):
    return Config().with_leaves({f"augment.{name}": value for name, value in given.items()}).augment


@pytest.fixture(scope="module")
def radiographs():
    """(24, 72, 60): smooth, as radiographs are."""
    generator = np.random.default_rng(0)
    small = generator.integers(0, 256, (24, 9, 8), dtype=np.uint8)
    return np.stack([cv2.resize(image, (60, 72), interpolation=cv2.INTER_CUBIC) for image in small])


# ---- outside fracray


def test_the_pipeline_is_of_two_fused_transforms_and_the_extra_ones():
    pipeline = build_pipeline(strengths(**STRONG, extra=EXTRA))
    assert [type(transform) for transform in pipeline] == [GrayLevels, Warp, A.CLAHE, A.GaussNoise, A.CoarseDropout]
    assert isinstance(pipeline, A.Compose)
    assert isinstance(pipeline[0], A.ImageOnlyTransform)
    assert isinstance(pipeline[1], A.DualTransform)
    assert "Warp(p=1.0, flip=0.5, rotate=25.0, scale=0.2, stretch=0.2, vertical_flip=0.3)" in repr(pipeline)
    assert len(build_pipeline(strengths(**NOTHING))) == 0


def test_it_augments_a_gray_image_reproducibly_by_its_seed(radiographs):
    given = strengths(**STRONG, extra=EXTRA)
    first, again, other = (build_pipeline(given, seed=seed)(image=radiographs[0])["image"] for seed in (3, 3, 4))
    assert first.shape == radiographs[0].shape
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("shape", [(72, 60, 3), (72, 60, 1)])
def test_images_with_channels_keep_their_shape(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for given in (strengths(**STRONG), strengths(**{**NOTHING, "flip": 1.0})):
        assert build_pipeline(given, seed=1)(image=image)["image"].shape == shape


def test_a_saved_pipeline_augments_as_the_first(radiographs):
    pipeline = build_pipeline(strengths(**STRONG, extra=EXTRA), seed=5)
    restored = A.from_dict(A.to_dict(pipeline))
    restored.set_random_seed(5)
    pipeline.set_random_seed(5)
    for image in radiographs:
        assert np.array_equal(pipeline(image=image)["image"], restored(image=image)["image"])


def test_a_pipeline_is_restored_in_a_process_that_imports_the_transforms(tmp_path):
    A.save(build_pipeline(strengths(**STRONG, extra=EXTRA)), str(tmp_path / "pipeline.json"))
    code = "import sys, albumentations, fracray.data.loading.transforms; print(albumentations.load(sys.argv[1]))"
    seen = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "pipeline.json")], capture_output=True, text=True, check=True
    )
    assert "GrayLevels(" in seen.stdout


@pytest.mark.parametrize("given", [STRONG, {**NOTHING, "flip": 0.5, "vertical_flip": 0.5}], ids=["warp", "flips"])
def test_boxes_and_masks_move_with_the_pixels(given):
    image = np.zeros((120, 100), dtype=np.uint8)
    image[50:70, 30:45] = 255
    given = strengths(**{**given, "brightness": 0.0, "contrast": 0.0})
    pipeline = build_pipeline(given, seed=0, bbox_params=A.BboxParams(format="pascal_voc", label_fields=["names"]))
    moved = 0
    for _ in range(30):
        result = pipeline(image=image, mask=image // 255, bboxes=[[30, 50, 45, 70]], names=["fracture"])
        assert set(np.unique(result["mask"])) == {0, 1}
        assert np.mean((result["image"] > 127) != result["mask"]) < 0.005
        ys, xs = np.nonzero(result["mask"])
        ((x_min, y_min, x_max, y_max),) = result["bboxes"]
        seen = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        # A rotated rectangle touches all sides of the box around it with its corners, of which a pixel may be lost.
        assert np.abs(seen - (x_min, y_min, x_max, y_max)).max() < 2
        moved += not np.array_equal(seen, [30, 50, 45, 70])
    assert moved > 10


def test_strengths_out_of_range_are_refused():
    for make in (lambda: Warp(rotate=200), lambda: Warp(flip=1.5), lambda: GrayLevels(contrast=-1)):
        with pytest.raises(ValueError):
            make()


def test_left_to_draw_it_has_the_distribution_of_the_augmenter(radiographs):
    """By the mean and spread of pixels over many draws, of the pipeline's random state and of (seed, epoch, row)."""
    count, image = 800, radiographs[0]
    pipeline = build_pipeline(strengths(**STRONG), seed=2)
    theirs = np.stack([pipeline(image=image)["image"] for _ in range(count)]).astype(float)
    ours = Augmenter(strengths(**STRONG), 0).batch(np.broadcast_to(image, (count, *image.shape)), 0, range(count))
    error = np.sqrt((theirs.var(axis=0) + ours.astype(float).var(axis=0)) / count)
    assert np.abs((theirs.mean(axis=0) - ours.mean(axis=0)) / np.maximum(error, 0.1)).max() < 5


# ---- inside fracray


def test_without_strengths_the_extra_transforms_alone_augment(radiographs):
    augmented = Augmenter(strengths(**NOTHING, extra={"CLAHE": {"p": 1.0}}), 0).batch(radiographs, 0, range(24))
    assert all(not np.array_equal(a, b) for a, b in zip(augmented, radiographs, strict=True))
    off = Augmenter(strengths(**NOTHING, extra={"CLAHE": {"p": 0.0}}), 0)
    assert off.batch(radiographs, 0, range(24)) is radiographs


def test_an_extra_transform_follows_fracrays_own_and_is_that_of_albumentations(radiographs):
    before = Augmenter(strengths(**STRONG), 3).batch(radiographs, 1, range(24))
    after = Augmenter(strengths(**STRONG, extra={"InvertImg": {"p": 1.0}}), 3).batch(radiographs, 1, range(24))
    assert np.array_equal(after, 255 - before)


def test_draws_of_extra_transforms_depend_on_seed_epoch_and_row_alone(radiographs):
    given, rows = strengths(**STRONG, extra=EXTRA), np.arange(1000, 1024)
    images = radiographs.copy()
    images.flags.writeable = False
    complete = Augmenter(given, 3).batch(images, 4, rows)
    order = np.random.default_rng(1).permutation(24)
    assert np.array_equal(Augmenter(given, 3).batch(images[order], 4, rows[order]), complete[order])
    used = Augmenter(given, 3)
    parts = [used.batch(images[part], 4, rows[part]) for part in np.array_split(np.arange(24), 5)]
    assert np.array_equal(np.concatenate(parts), complete)
    assert np.array_equal(used.batch(images, 4, rows), complete)
    assert np.array_equal(images, radiographs)
    for seed, epoch in ((2, 4), (3, 5)):
        other = Augmenter(given, seed).batch(images, epoch, rows)
        assert not any(np.array_equal(a, b) for a, b in zip(other, complete, strict=True))


def test_a_transform_does_not_change_the_draws_of_the_others(radiographs):
    noise = {"GaussNoise": {"p": 0.5}}
    alone, after = (
        Augmenter(strengths(**NOTHING, extra=extra), 0).batch(radiographs, 0, range(24))
        for extra in (noise, {"InvertImg": {"p": 0.5}, **noise})
    )
    changed = [not np.array_equal(a, b) for a, b in zip(alone, radiographs, strict=True)]
    plain, inverted = (
        [np.array_equal(a, b) for a, b in zip(after, c, strict=True)] for c in (radiographs, 255 - radiographs)
    )
    assert [not (a or b) for a, b in zip(plain, inverted, strict=True)] == changed
    assert 4 < sum(changed) < 20


def test_probabilities_and_ranges_are_those_of_the_arguments():
    images = np.full((600, 40, 40), 100, dtype=np.uint8)
    extra = {"GaussNoise": {"std_range": [0.02, 0.1], "per_channel": False, "noise_scale_factor": 1.0, "p": 0.3}}
    augmented = Augmenter(strengths(**NOTHING, extra=extra), 0).batch(images, 0, range(600)).astype(float)
    spread = augmented.std(axis=(1, 2)) / 255
    assert 0.25 < (spread > 0).mean() < 0.35
    noisy = spread[spread > 0]
    assert noisy.min() > 0.015
    assert noisy.max() < 0.11
    assert np.corrcoef(noisy[:-1], noisy[1:])[0, 1] < 0.3  # neighbouring rows are independent


@pytest.mark.parametrize(
    "name",
    [
        "RandomGamma",
        "ElasticTransform",
        "GridDistortion",
        "MotionBlur",
        "SaltAndPepper",
        "RandomToneCurve",
        "PixelDropout",
        "GlassBlur",
        "Illumination",
    ],
)
def test_each_transform_draws_from_the_state_it_is_given(radiographs, name):
    """No transform keeps its own random state: two runs agree, other rows do not."""
    assert name in dict(inspect.getmembers(A))
    given = strengths(**NOTHING, extra={name: {"p": 1.0}})
    first, again, other = (
        Augmenter(given, 0).batch(radiographs, 0, rows) for rows in (range(24), range(24), range(100, 124))
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_warp_is_that_of_opencv_with_the_drawn_matrix(radiographs):
    given, rows = strengths(**STRONG), np.arange(24)
    draws = draw(given, 9, 2, rows)
    matrices = source_matrices(draws, 72, 60)
    for image, augmented, matrix, contrast, brightness in zip(
        radiographs,
        Augmenter(given, 9).batch(radiographs, 2, rows),
        matrices,
        draws.contrast,
        255 * draws.brightness,
        strict=True,
    ):
        levels = image.mean() + (1 + contrast) * (image - image.mean()) + brightness
        changed = np.clip(levels, 0, 255).astype(np.uint8)
        warped = cv2.warpAffine(changed, matrix, (60, 72), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        assert np.abs(augmented.astype(int) - warped).max() <= 1
        assert np.mean(augmented != warped) < 1e-3
