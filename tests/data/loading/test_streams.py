"""Streams: every image once, the same batches from memory and from Ray Data, on any number of ranks."""

import gc
import threading
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from fracray.config import Config
from fracray.data.images.letterbox import letterbox
from fracray.data.images.square import decode
from fracray.data.loading import streams
from fracray.data.loading.augment import Augmenter
from fracray.data.loading.ingest import ingest
from fracray.data.loading.plan import make_plan
from fracray.data.loading.shards import open_shards
from fracray.data.loading.streams import MemoryStream, RayStream, ahead
from fracray.data.manifest import Manifest
from fracray.data.prepare import prepare
from fracray.runtime.console import new_console
from fracray.runtime.efficiency import Meter
from fracray.runtime.storage import Folder

STRONG = {"rotate": 25.0, "flip": 0.5, "vertical_flip": 0.3, "scale": 0.2, "brightness": 0.3, "contrast": 0.3}


def make_config(**train):
    return Config().with_leaves(
        {
            "data.size": 32,
            "data.phantom.count": 150,
            "data.split.block": 10,
            **{f"augment.{name}": value for name, value in STRONG.items()},
            **{f"train.{name}": value for name, value in train.items()},
        }
    )


@pytest.fixture(scope="module")
def prepared(ray_local):
    return prepare(make_config().data, new_console())


def drain(stream, epoch):
    return list(stream.train(epoch))


# ---------------------------------------------------------------- the plan


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("batch_size", [1, 7, 16, 1000])
def test_every_image_is_in_exactly_one_batch_of_one_rank(prepared, world, batch_size):
    plans = [
        make_plan(make_config(batch_size=batch_size), prepared.table, prepared.shards, r, world) for r in range(world)
    ]
    seen, steps = [], set()
    for plan in plans:
        slices = plan.train_slices(3)
        steps.add(len(slices))
        seen += [row for rows, _ in slices for row in rows]
    assert sorted(seen) == list(prepared.rows("train"))
    assert steps == {plans[0].steps}
    for parts in zip(*(plan.train_slices(3) for plan in plans), strict=True):
        assert sum(len(rows) for rows, _ in parts) == parts[0][1]
    val = sorted(row for plan in plans for rows, _ in plan.val_slices() for row in rows)
    assert val == list(prepared.rows("val"))


def test_ranks_together_hold_the_batches_of_one_rank(prepared):
    alone = make_plan(make_config(batch_size=16), prepared.table, prepared.shards)
    pair = [make_plan(make_config(batch_size=16), prepared.table, prepared.shards, rank, 2) for rank in (0, 1)]
    for complete, left, right in zip(alone.train_slices(1), *(plan.train_slices(1) for plan in pair), strict=True):
        assert list(complete[0]) == [*left[0], *right[0]]


def test_order_changes_with_epoch_and_seed_alone(prepared):
    plan = make_plan(make_config(), prepared.table, prepared.shards)
    assert list(plan.order(2)) == list(make_plan(make_config(), prepared.table, prepared.shards).order(2))
    assert list(plan.order(2)) != list(plan.order(3))
    assert list(plan.order(2)) != list(make_plan(make_config(seed=1), prepared.table, prepared.shards).order(2))


def test_a_set_of_many_shards_is_shuffled_within_windows(prepared):
    plan = replace(
        make_plan(make_config(), prepared.table, prepared.shards), train_rows=np.arange(100_000), shard_rows=100
    )
    order = plan.order(0)
    assert sorted(order) == list(range(100_000))
    shards_of_a_window = len(set(order[: 64 * 100] // 100))
    assert shards_of_a_window == 64  # a window reads 64 shards, not all 1,000


# ---------------------------------------------------------------- memory and Ray Data


@pytest.mark.parametrize(("rank", "balance"), [(0, 0.0), (1, 0.9)])
def test_memory_and_ray_data_give_the_same_batches(prepared, rank, balance):
    plan = make_plan(make_config(batch_size=24, balance=balance), prepared.table, prepared.shards, rank, 2)
    memory, ray_data = MemoryStream(plan, prepared.shards.load(), epochs=2), RayStream(plan, prepared.shards, epochs=2)
    for epoch in (0, 1):
        pairs = list(zip(drain(memory, epoch), drain(ray_data, epoch), strict=True))
        assert len(pairs) == plan.steps
        for ours, theirs in pairs:
            assert np.array_equal(ours.rows, theirs.rows)
            assert np.array_equal(ours.images, theirs.images)
            assert np.array_equal(ours.labels, theirs.labels)
            assert ours.global_count == theirs.global_count
    for ours, theirs in zip(memory.validation(), ray_data.validation(), strict=True):
        assert np.array_equal(ours.images, theirs.images)
    memory.close()
    ray_data.close()


def test_a_task_of_ray_data_may_have_no_image_for_a_rank(prepared, monkeypatch):
    """The last batch of an epoch, and of validation, has fewer images than there are workers."""
    monkeypatch.setattr(streams, "TASK_BYTES", 1)  # a task for each step
    plan = make_plan(make_config(batch_size=24), prepared.table, prepared.shards, 1, 2)
    plan = replace(plan, train_rows=plan.train_rows[:25], val_rows=plan.val_rows[:1])
    memory, ray_data = MemoryStream(plan, prepared.shards.load(), epochs=2), RayStream(plan, prepared.shards, epochs=2)
    for epoch in (0, 1):
        ours, theirs = drain(memory, epoch), drain(ray_data, epoch)
        assert [len(batch.rows) for batch in ours] == [12, 0]
        for one, other in zip(ours, theirs, strict=True):
            assert np.array_equal(one.images, other.images)
            assert one.images.shape == other.images.shape
    assert [batch.images.shape for batch in ray_data.validation()] == [(0, 32, 32)]
    memory.close()
    ray_data.close()


EXTRA = {"CLAHE": {"p": 0.5}, "GaussNoise": {"p": 0.5}, "CoarseDropout": {"p": 0.5}}


@pytest.mark.parametrize("world", [1, 3])
def test_extra_transforms_draw_the_same_in_every_stream_and_for_every_number_of_workers(prepared, world):
    config = make_config(batch_size=24).with_leaves({"augment.extra": EXTRA})
    images = prepared.shards.load()
    pictures = make_plan(config, prepared.table, prepared.shards).pictures
    expected = Augmenter(config.augment, config.train.seed).batch(images, 1, range(len(images)), pictures)
    seen = []
    for rank in range(world):
        plan = make_plan(config, prepared.table, prepared.shards, rank, world)
        for stream in (MemoryStream(plan, images, epochs=2), RayStream(plan, prepared.shards, epochs=2)):
            for batch in drain(stream, 1):
                seen += batch.rows.tolist()
                for row, image in zip(batch.rows, batch.images, strict=True):
                    assert np.array_equal(image, expected[row])
            stream.close()
    assert sorted(seen) == sorted([*prepared.rows("train")] * 2)
    changed = [not np.array_equal(images[row], expected[row]) for row in seen]
    assert np.mean(changed) > 0.9


def test_training_images_are_augmented_again_each_epoch_and_validation_never(prepared):
    images = prepared.shards.load()
    stream = MemoryStream(make_plan(make_config(), prepared.table, prepared.shards), images, epochs=2)
    first, second = (
        {row: image for b in drain(stream, e) for row, image in zip(b.rows, b.images, strict=True)} for e in (0, 1)
    )
    changed = [not np.array_equal(first[row], second[row]) for row in first]
    assert np.mean(changed) > 0.95
    for batch in stream.validation():
        assert np.array_equal(batch.images, images[batch.rows])


def test_a_stream_left_in_the_middle_of_an_epoch_can_be_asked_again(prepared):
    plan = make_plan(make_config(batch_size=8), prepared.table, prepared.shards)
    complete = [drain(MemoryStream(plan, prepared.shards.load(), epochs=2), epoch) for epoch in (0, 1)]
    for asked in (0, 1):
        stream = MemoryStream(plan, prepared.shards.load(), epochs=2)
        half = stream.train(0)
        next(half)
        half.close()
        for ours, theirs in zip(drain(stream, asked), complete[asked], strict=True):
            assert np.array_equal(ours.images, theirs.images)


def test_the_next_epoch_is_augmented_while_this_one_ends(prepared):
    plan = make_plan(make_config(batch_size=8), prepared.table, prepared.shards)
    meter = Meter()
    stream = MemoryStream(plan, prepared.shards.load(), 2, meter)
    drain(stream, 0)
    meter.take()
    deadline = time.monotonic() + 10
    while not (ahead_of_time := meter.take()["transform"]) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ahead_of_time > 0  # epoch 1 is not asked for until later
    stream.close()


def test_a_stream_without_references_ends_its_thread(prepared):
    plan = make_plan(make_config(batch_size=8), prepared.table, prepared.shards)
    stream = MemoryStream(plan, prepared.shards.load(), epochs=50)
    before = threading.active_count()
    next(stream.train(0))
    assert threading.active_count() == before + 1
    del stream
    gc.collect()
    assert threading.active_count() == before


def test_an_error_of_the_augmenting_thread_reaches_the_loop():
    def broken():
        yield "first"
        raise ValueError("no such file")

    batches = ahead(broken)
    assert next(batches) == "first"
    with pytest.raises(ValueError, match="no such file"):
        next(batches)


# ---------------------------------------------------------------- ingest


def test_letterbox_keeps_aspect_and_centres():
    tall = np.full((200, 100), 255, dtype=np.uint8)
    square = letterbox(tall, 64)
    assert square.shape == (64, 64)
    assert (square[:, 16:48] == 255).all()
    assert (square[:, :15] == 0).all()
    assert (square[:, 49:] == 0).all()


def test_decoding_at_reduced_scale_is_decoding_and_shrinking():
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 255, (40, 30), dtype=np.uint8), (1504, 2000), interpolation=cv2.INTER_CUBIC)
    data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    reduced = decode(data, 2000, 64).astype(float)
    plain = letterbox(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE), 64).astype(float)
    assert np.abs(reduced - plain).mean() < 1.0
    assert np.abs(reduced - plain).max() < 12


def test_decode_applies_exif_orientation():
    from io import BytesIO

    from PIL import Image

    picture = np.zeros((60, 40), dtype=np.uint8)
    picture[:20] = 255  # bright at the top as stored; orientation 3 turns it by 180 degrees
    exif = Image.Exif()
    exif[0x0112] = 3
    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=95, exif=exif)
    shown = decode(buffer.getvalue(), 60, 60)
    assert shown[50, 30] > 200
    assert shown[5, 30] < 50


def test_shards_hold_the_used_radiographs_in_order_and_are_found_again(prepared, cache, tmp_path):
    shards = prepared.shards
    images = shards.load()
    root = prepared.manifest.root
    for row in (0, 7, len(images) - 1):
        record = prepared.manifest.used.iloc[row]
        data = (root / record["path"]).read_bytes()
        assert np.array_equal(images[row], decode(data, max(record["width"], record["height"]), 32))
    before = {path: path.stat().st_mtime_ns for path in Path(shards.folder.location).iterdir()}
    again = ingest(prepared.manifest, 32, Folder(cache))
    assert again == shards == open_shards(shards.folder)
    assert {path: path.stat().st_mtime_ns for path in Path(shards.folder.location).iterdir()} == before
    assert ingest(prepared.manifest, 48, Folder(cache)).folder != shards.folder


def test_a_file_that_is_removed_after_the_audit_is_named_and_no_shards_remain(prepared, tmp_path):
    from fracray.errors import RunError

    gone = Manifest(prepared.manifest.table.copy(), tmp_path)
    with pytest.raises(RunError, match="IMG"):
        ingest(gone, 32, Folder(tmp_path / "cache"))
    assert list((tmp_path / "cache" / "shards").iterdir()) == []


def test_tables_agree_with_shards(prepared):
    assert isinstance(prepared.table, pd.DataFrame)
    assert len(prepared.table) == prepared.shards.count == prepared.flow.used
