"""Boxes move with the pixels: what is drawn in a box is found in its map, in every stream and with every transform."""

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from fracray.config import AugmentConfig
from fracray.data.images.letterbox import letterbox
from fracray.data.loading.boxes import Boxes, BoxMaps
from fracray.data.loading.draws import Pictures
from fracray.data.loading.gpu_stream import DeviceStream
from fracray.data.loading.plan import Plan
from fracray.data.loading.streams import MemoryStream

SIZE, CELLS, COUNT = 96, 12, 40
OFF = {"rotate": 0.0, "flip": 0.0, "scale": 0.0, "brightness": 0.0, "contrast": 0.0}
ALL = {"rotate": 40.0, "flip": 0.5, "vertical_flip": 0.5, "scale": 0.3, "stretch": 0.2}
GEOMETRY = {
    "Affine": {"shear": [-15, 15], "translate_percent": [-0.1, 0.1], "p": 0.7},
    "HorizontalFlip": {"p": 0.5},
    "RandomRotate90": {"p": 0.5},
    "CLAHE": {"p": 0.5},
}


def drawn():
    """Pictures of several shapes, each black but for white boxes; as a prepared table and as squares."""
    random = np.random.default_rng(0)
    rows, squares = [], []
    for number in range(COUNT):
        width, height = int(random.integers(80, 300)), int(random.integers(80, 300))
        picture, boxes = np.zeros((height, width), np.uint8), []
        for _ in range(int(random.integers(1, 3)) if number % 2 else 0):
            w, h = random.integers(20, 60, 2)
            x, y = random.integers(0, width - w), random.integers(0, height - h)
            picture[y : y + h, x : x + w] = 255
            # As they were drawn on a picture of twice the size.
            boxes.append((2.0 * x, 2.0 * y, 2.0 * w, 2.0 * h))
        rows.append((tuple(boxes), 2 * width, 2 * height, width, height))
        squares.append(letterbox(picture, SIZE))
    return pd.DataFrame(rows, columns=["boxes", "boxes_width", "boxes_height", "width", "height"]), np.stack(squares)


def make_plan(strengths, table, squares, labels=None):
    return Plan(
        train_rows=np.arange(COUNT),
        val_rows=np.arange(4),
        val_sets={"val": np.arange(4)},
        labels=(np.arange(COUNT) % 2).astype(np.float32) if labels is None else labels,
        pictures=Pictures.of_images(squares),
        batch_size=16,
        strengths=AugmentConfig(**strengths),
        seed=5,
        shard_rows=64,
        boxes=Boxes.of_table(table, SIZE),
    )


def seen(images):
    """The share of each cell that is white."""
    shares = [cv2.resize(image, (CELLS, CELLS), interpolation=cv2.INTER_AREA) / 255 for image in images]
    return np.stack(shares)


STREAMS = {
    "memory": lambda plan, squares: MemoryStream(plan, squares, 3),
    "device": lambda plan, squares: DeviceStream(plan, squares, torch.device("cpu")),
}


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize(
    "strengths",
    [OFF, {**OFF, "flip": 0.5}, {**OFF, "vertical_flip": 0.5}, {**OFF, "rotate": 90.0}, {**OFF, **ALL}],
    ids=["off", "flip", "vertical", "rotate", "all"],
)
def test_a_box_is_where_its_pixels_are(stream, strengths):
    table, squares = drawn()
    plan = make_plan(strengths, table, squares)
    maps = BoxMaps(plan, SIZE, CELLS)
    for epoch in (0, 2):
        for batch in STREAMS[stream](plan, squares).train(epoch):
            shares, known = maps.of(batch.rows, epoch)
            assert known.all()
            # Edges lie inside of pixels, which a mask has whole and an image in gray.
            found = seen(np.asarray(batch.images))
            assert np.abs(shares - found).max() < 0.26
            assert np.abs(shares - found).mean() < 0.01
            assert (shares.max(axis=(1, 2)) > 0.5).sum() >= (found.max(axis=(1, 2)) > 0.6).sum()


def test_it_moves_with_the_transforms_of_albumentations():
    table, squares = drawn()
    plan = make_plan({**OFF, **ALL, "extra": GEOMETRY}, table, squares)
    maps = BoxMaps(plan, SIZE, CELLS)
    for batch in MemoryStream(plan, squares, 1).train(0):
        shares, _ = maps.of(batch.rows, 0)
        found = seen(np.where(batch.images > 127, 255, 0).astype(np.uint8))  # CLAHE changes grays, and moves none
        boxed = shares.max(axis=(1, 2)) > 0
        assert np.abs(shares - found)[boxed].mean() < 0.03


def test_an_epoch_has_its_own_draws_and_a_row_has_the_same_alone():
    table, squares = drawn()
    maps = BoxMaps(make_plan({**OFF, **ALL}, table, squares), SIZE, CELLS)
    together, _ = maps.of(np.arange(COUNT), 1)
    assert np.array_equal(together[7], maps.of([7], 1)[0][0])
    assert not np.array_equal(together[7], maps.of([7], 2)[0][0])


def test_a_fracture_without_a_box_is_not_known():
    table, squares = drawn()
    labels = np.ones(COUNT, dtype=np.float32)
    labels[2] = 0  # and has no box, as every even row
    maps = BoxMaps(make_plan(OFF, table, squares, labels), SIZE, CELLS)
    shares, known = maps.of([0, 1, 2, 3], 0)
    assert known.tolist() == [False, True, True, True]
    assert shares[[0, 2]].max() == 0 < shares[[1, 3]].max()


def test_a_box_smaller_than_a_pixel_is_seen():
    table = pd.DataFrame({"boxes": [((100.0, 50.0, 1.0, 1.0),)], "boxes_width": [2000], "boxes_height": [2000]})
    boxes = Boxes.of_table(table.assign(width=2000, height=2000), SIZE)
    plan = make_plan(OFF, *drawn())
    maps = BoxMaps(Plan(**{**vars(plan), "boxes": boxes, "labels": np.ones(1)}), SIZE, CELLS)
    shares, _ = maps.of([0], 0)
    assert shares[0, 0, 0] > 0 == shares.sum() - shares[0, 0, 0]


def test_a_set_without_boxes_has_none():
    table, _ = drawn()
    assert Boxes.of_table(table.assign(boxes=[()] * COUNT), SIZE) is None
