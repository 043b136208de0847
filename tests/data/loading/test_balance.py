"""Balanced epochs: exact counts, copies that are augmented anew, and that the loss counts what is drawn."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from fracray.config import AugmentConfig
from fracray.data.loading.augment import Augmenter
from fracray.data.loading.boxes import Boxes, BoxMaps
from fracray.data.loading.draws import COPY, Pictures, originals
from fracray.data.loading.gpu_stream import DeviceStream
from fracray.data.loading.plan import Plan
from fracray.data.loading.streams import MemoryStream
from fracray.training.loop import Fit
from tests.training.test_loop import make_config, make_stream

COUNT, FRACTURED, SIZE = 1000, 180, 16


def make_plan(balance, fractured=FRACTURED, **fields):
    labels = np.zeros(COUNT + 200, dtype=np.float32)
    labels[np.random.default_rng(0).permutation(COUNT)[:fractured]] = 1
    images = np.random.default_rng(1).integers(0, 256, (len(labels), SIZE, SIZE), dtype=np.uint8)
    val = np.arange(COUNT, COUNT + 200)
    plan = Plan(
        train_rows=np.arange(COUNT),
        val_rows=val,
        val_sets={"val": val},
        labels=labels,
        pictures=Pictures.of_images(images),
        batch_size=64,
        strengths=AugmentConfig(rotate=20.0, brightness=0.2, contrast=0.2),
        seed=3,
        shard_rows=100,
        balance=balance,
    )
    return replace(plan, **fields), images


@pytest.mark.parametrize(
    ("balance", "fractured", "expected"),
    [
        (0.0, 180, (820, 180)),
        (0.5, 180, (660, 340)),
        (1.0, 180, (500, 500)),
        (1.0, 7, (500, 500)),
        (1.0, 900, (500, 500)),
        (0.25, 500, (500, 500)),
        (1.0, 0, (1000, 0)),
    ],
)
def test_classes_of_an_epoch_are_exactly_as_asked_and_each_image_is_used_as_often_as_any_other(
    balance, fractured, expected
):
    plan, _ = make_plan(balance, fractured)
    assert plan.class_counts == expected
    rows = plan.order(2)
    assert len(rows) == len(np.unique(rows)) == COUNT
    own = originals(rows)
    for label, count in enumerate(expected):
        mine = np.flatnonzero(plan.labels[:COUNT] == label)
        times = Counter(own[plan.labels[own] == label].tolist())
        assert sum(times.values()) == count
        if len(mine):
            full, more = divmod(count, len(mine))
            assert Counter(times.get(row, 0) for row in mine.tolist()) == Counter({full: len(mine) - more}) + Counter(
                {full + 1: more}
            )


def test_the_default_is_each_image_once_in_the_order_that_it_was():
    plan, _ = make_plan(0.0)
    # A set of fewer shards than a window is shuffled in one; the shards' permutation is drawn before.
    random = np.random.default_rng((3, 5))
    random.permutation(10)
    assert np.array_equal(plan.order(5), random.permutation(np.arange(COUNT)))


def test_each_epoch_draws_other_images_of_the_common_class_and_validation_stays():
    plan, _ = make_plan(1.0)
    first, second = (set(originals(plan.order(epoch)).tolist()) for epoch in (0, 1))
    common = {row for row in first if plan.labels[row] == 0}
    assert 0.5 < len(common & second) / len(common) < 0.7  # 500 of 820
    assert np.array_equal(plan.order(1), plan.order(1))
    assert np.array_equal(np.concatenate([rows for rows, _ in plan.val_slices()]), np.arange(COUNT, COUNT + 200))


def test_ranks_share_an_epoch_out():
    whole, _ = make_plan(0.7)
    parts = [replace(whole, rank=rank, world=3).train_slices(1) for rank in range(3)]
    assert len({len(part) for part in parts}) == 1
    for step, (rows, count) in enumerate(whole.train_slices(1)):
        assert np.array_equal(np.concatenate([part[step][0] for part in parts]), rows)
        assert {part[step][1] for part in parts} == {count}


@pytest.mark.parametrize("stream", ["memory", "device"])
def test_copies_show_their_image_by_other_draws(stream):
    plan, images = make_plan(1.0)
    made = MemoryStream(plan, images, 1) if stream == "memory" else DeviceStream(plan, images, torch.device("cpu"))
    pictures, labels = {}, {}
    for batch in made.train(0):
        for row, image, label in zip(batch.rows.tolist(), np.asarray(batch.images), batch.labels, strict=True):
            pictures[row], labels[row] = image, label
    copies = [row for row in pictures if row >= COPY]
    assert len(copies) == 500 - FRACTURED
    augmenter = Augmenter(plan.strengths, plan.seed)
    differing = 0
    for row in copies:
        own = row % COPY
        assert labels[row] == plan.labels[own] == 1
        assert not np.array_equal(pictures[row], pictures[own])
        expected = augmenter.batch(images[[own]], 0, [row], plan.pictures.of([own]))[0]
        differing += np.count_nonzero(expected != pictures[row])
    assert differing <= (0 if stream == "memory" else 1e-3 * len(copies) * SIZE**2)


def test_the_boxes_of_a_copy_move_as_the_copy_does():
    plan, _ = make_plan(1.0)
    first = np.concatenate([[0], np.cumsum(plan.labels)]).astype(int)
    boxes = Boxes(np.tile([2.0, 3.0, 7.0, 12.0], (first[-1], 1)), first)
    plan = replace(plan, boxes=boxes, strengths=AugmentConfig(rotate=90.0))
    row = int(np.flatnonzero(plan.labels)[0])
    maps = BoxMaps(plan, SIZE, 4)
    shares, known = maps.of(np.array([row, row + COPY, row + 2 * COPY]), 0)
    assert known.all()
    mask = np.zeros((1, SIZE, SIZE), dtype=np.uint8)
    mask[0, 3:12, 2:7] = 255
    moved = Augmenter(plan.strengths, plan.seed).masks(mask, 0, [row + COPY])[0]
    np.testing.assert_allclose(shares[1], moved.reshape(4, 4, 4, 4).mean((1, 3)) / 255, atol=1 / 255)
    assert not np.array_equal(shares[0], shares[1])


def test_the_weighted_loss_knows_the_classes_that_are_drawn():
    """With half of each class both weigh the same: balance and weights do not add up."""
    config = make_config()
    weights = []
    for balance in (0.0, 0.5, 1.0):
        stream = make_stream(config)
        stream.plan = replace(stream.plan, balance=balance)
        weights.append(Fit(config, stream).positive_weight)
    assert weights == [2.0, pytest.approx(70 / 50), 1.0]
