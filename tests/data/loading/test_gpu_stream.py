"""Augmentation on the device: the batches of the CPU's stream, by the same draws. Here the device is Torch's CPU."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from fracray.config import AugmentConfig, Config
from fracray.data.loading.draws import Pictures
from fracray.data.loading.gpu_stream import BATCHES_AT_ONCE, DeviceStream, resident
from fracray.data.loading.plan import Plan
from fracray.data.loading.streams import MemoryStream
from fracray.errors import InputError
from fracray.runtime.resources import refuse_missing_gpu
from fracray.train import main as train
from fracray.training.loop import Fit
from fracray.tune import main as tune

CPU = torch.device("cpu")
STRONG = AugmentConfig(rotate=25.0, flip=0.5, vertical_flip=0.3, scale=0.2, brightness=0.3, contrast=0.3)
OFF = AugmentConfig(rotate=0.0, flip=0.0, scale=0.0, brightness=0.0, contrast=0.0)
COUNT, SIZE = 200, 48
# Upright, lying and square pictures; the images hold no black bands, so that a table outside of a frame is seen.
PICTURES = Pictures.of_sizes(
    np.tile([300, 200, 100, 100], 50), np.tile([200, 300, 100, 101], 50), np.linspace(0, 255, COUNT), SIZE
)


@pytest.fixture(scope="module")
def images():
    """(COUNT, SIZE, SIZE): smooth, as radiographs are, and bright up to the border."""
    generator = np.random.default_rng(0)
    small = generator.integers(0, 256, (COUNT, 6, 6), dtype=np.uint8)
    return np.stack([cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC) for image in small])


def make_plan(strengths=STRONG, rank=0, world=1, batch_size=24):
    val = np.arange(150, COUNT)
    return Plan(
        train_rows=np.arange(150),
        val_rows=val,
        val_sets={"val": val},
        labels=(np.arange(COUNT) % 3 == 0).astype(np.float32),
        pictures=PICTURES,
        batch_size=batch_size,
        strengths=strengths,
        seed=3,
        shard_rows=64,
        rank=rank,
        world=world,
    )


def both(plan, images, epoch):
    """Pairs of the same batch, from the CPU's stream and the device's."""
    return zip(
        MemoryStream(plan, images, epochs=3).train(epoch), DeviceStream(plan, images, CPU).train(epoch), strict=True
    )


@pytest.mark.parametrize("rank", [0, 1])
def test_batches_hold_the_same_rows_and_labels(images, rank):
    plan = make_plan(rank=rank, world=2, batch_size=31)
    for ours, theirs in both(plan, images, 1):
        assert np.array_equal(ours.rows, theirs.rows)
        assert np.array_equal(ours.labels, theirs.labels)
        assert ours.global_count == theirs.global_count
        assert theirs.images.dtype == torch.uint8
        assert tuple(theirs.images.shape) == ours.images.shape


@pytest.mark.parametrize(
    "strengths",
    [
        OFF,
        OFF.model_copy(update={"flip": 0.5}),
        OFF.model_copy(update={"vertical_flip": 0.5}),
        OFF.model_copy(update={"brightness": 0.4, "contrast": 0.4}),
        OFF.model_copy(update={"flip": 0.5, "vertical_flip": 0.5, "brightness": 0.4, "contrast": 0.4}),
    ],
    ids=str,
)
def test_flips_and_gray_levels_are_those_of_the_cpu_bit_for_bit(images, strengths):
    for ours, theirs in both(make_plan(strengths), images, 0):
        assert np.array_equal(ours.images, theirs.images.numpy())


@pytest.mark.parametrize(
    "strengths",
    [
        OFF.model_copy(update={"rotate": 180.0}),
        OFF.model_copy(update={"scale": 0.5}),
        OFF.model_copy(update={"rotate": 25.0, "scale": 0.2, "flip": 0.5, "vertical_flip": 0.5}),
    ],
    ids=str,
)
def test_a_warp_differs_from_the_cpu_by_rounding_alone(images, strengths):
    """OpenCV and Torch interpolate in another order of arithmetic: what falls near a half is rounded either way."""
    differences = np.concatenate(
        [
            np.abs(ours.images.astype(int) - theirs.images.numpy())
            for ours, theirs in both(make_plan(strengths), images, 2)
        ]
    )
    assert len(differences) == 150
    assert differences.max() <= 1
    assert (differences > 0).mean() < 2e-3


def test_all_strengths_together_differ_from_the_cpu_by_rounding_alone(images):
    differences = np.concatenate(
        [np.abs(ours.images.astype(int) - theirs.images.numpy()) for ours, theirs in both(make_plan(), images, 2)]
    )
    assert differences.max() <= 2  # one gray level, which contrast can make two
    assert (differences > 0).mean() < 2e-3


def test_more_batches_than_are_drawn_at_once_hold_every_row_once(images):
    plan = make_plan(batch_size=2)
    assert plan.steps > BATCHES_AT_ONCE
    rows = np.concatenate([batch.rows for batch in DeviceStream(plan, images, CPU).train(0)])
    assert sorted(rows) == list(range(150))
    for ours, theirs in both(plan, images, 0):
        assert np.abs(ours.images.astype(int) - theirs.images.numpy()).max() <= 2


def test_a_rank_without_images_in_the_last_batch_gets_an_empty_one(images):
    plan = replace(make_plan(rank=2, world=3, batch_size=50), train_rows=np.arange(101))
    *_, last = DeviceStream(plan, images, CPU).train(0)
    assert last.images.shape == (0, SIZE, SIZE)
    assert last.global_count == 1


def test_validation_is_never_augmented(images):
    seen = list(DeviceStream(make_plan(), images, CPU).validation())
    assert np.array_equal(np.concatenate([batch.images.numpy() for batch in seen]), images[150:])
    assert np.array_equal(np.concatenate([batch.rows for batch in seen]), np.arange(150, COUNT))


def test_the_set_is_copied_to_a_device_once_and_another_takes_its_place(images):
    shared = images.copy()
    shared.flags.writeable = False  # as Ray hands it out
    first = resident(shared, CPU)
    assert resident(shared, CPU) is first
    assert np.array_equal(first.numpy(), shared)
    other = resident(images, CPU)
    assert other is not first
    assert resident(shared, CPU) is not first


def test_the_loop_learns_the_same_from_either_stream(images):
    config = Config().with_leaves(
        {"data.size": SIZE, "model.width": 4, "train.epochs": 1, "train.batch_size": 24, "train.precision": "fp32"}
    )
    plan = make_plan(OFF.model_copy(update={"flip": 0.5, "contrast": 0.3}))  # what is equal to the bit
    reports = [
        Fit(config, stream, CPU).run_epoch()
        for stream in (MemoryStream(plan, images, epochs=3), DeviceStream(plan, images, CPU))
    ]
    assert reports[0].metrics == reports[1].metrics
    assert np.array_equal(reports[0].validation.logits, reports[1].validation.logits)


# ---------------------------------------------------------------- what cannot be


def test_ray_data_and_the_gpu_cannot_both_augment():
    with pytest.raises(InputError, match="cannot go with stream = ray"):
        Config().with_leaves({"data.augment_on": "gpu", "data.stream": "ray"})


def test_a_gpu_that_is_not_there_cannot_augment(tmp_path, ray_local):
    refuse_missing_gpu("gpu", True)
    refuse_missing_gpu("cpu", False)
    with pytest.raises(InputError, match=r"data\.augment_on = gpu"):
        refuse_missing_gpu("gpu", False)
    words = ["--storage", str(tmp_path), "--set", "data.augment_on=gpu"]
    with pytest.raises(InputError, match=r"data\.augment_on = gpu.*--gpus-per-trial"):
        tune(["--space", "search_spaces/reg.yaml", *words])
    with pytest.raises(InputError, match=r"data\.augment_on = gpu.*--gpus-per-worker"):
        train(words)
