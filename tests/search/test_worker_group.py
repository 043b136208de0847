"""The orders and answers between a place in the search and its workers."""

import asyncio
import time

import numpy as np
import pandas as pd
import pytest
import ray

from fracray.config import Config
from fracray.data.loading.ingest import ShardFile, Shards
from fracray.errors import InputError
from fracray.runtime.ray_session import Shared
from fracray.runtime.resources import WorkerResources
from fracray.runtime.storage import Folder
from fracray.search import worker_group
from fracray.search.messages import Suggestion, TrialReport
from fracray.search.worker_group import Mailbox, Order, WorkerGroup
from fracray.training.epochs import EpochResult
from fracray.training.job import Job

MEBI = 2**20
FAILED = TrialReport.failed(InputError("gone.safetensors: no such file"))
DONE = TrialReport(EpochResult(1, {}, {"val_accuracy": 0.5}, seconds=1.0))


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(worker_group, "AGREE_SECONDS", 0.2)


def test_a_mistake_that_all_workers_find_is_one_answer_and_restarts_none():
    async def scenario():
        mailbox = Mailbox(2)
        await mailbox.post(Order(1, Suggestion(3, {}), 1))
        agreed = await asyncio.gather(mailbox.fail(1, 0, FAILED), mailbox.fail(1, 1, FAILED))
        assert agreed == [True, True]
        assert await mailbox.result(1) == FAILED

    asyncio.run(scenario())


def test_a_mistake_of_one_worker_counts_whatever_the_others_answer():
    async def scenario():
        mailbox = Mailbox(2)
        await mailbox.post(Order(1, Suggestion(3, {}), 1))
        await mailbox.answer(1, 0, DONE)
        assert await mailbox.fail(1, 1, FAILED)
        assert await mailbox.result(1) == FAILED

    asyncio.run(scenario())


def test_workers_that_wait_for_one_with_a_mistake_are_restarted_without_its_order():
    """They are in the middle of an exchange with it; the trial has failed, and is not begun again."""

    async def scenario():
        mailbox = Mailbox(2)
        await mailbox.post(Order(1, Suggestion(3, {}), 1))
        assert not await mailbox.fail(1, 1, FAILED)
        assert await mailbox.result(1) == FAILED
        restarted = asyncio.create_task(mailbox.after(0))
        await asyncio.sleep(0.1)
        assert not restarted.done()
        await mailbox.post(Order(2, Suggestion(4, {}), 1))
        assert (await restarted).trial.number == 4
        await mailbox.answer(1, 0, DONE)  # a late answer to the old order
        assert await mailbox.result(0.1) is None

    asyncio.run(scenario())


def test_two_workers_read_the_one_copy_of_the_images(ray_local, tmp_path):
    """A real group: what its trainer, its controller and its workers hand on is a reference."""
    train, val, size = 24, 16, 32
    labels = np.arange(train + val) % 2
    images = np.zeros((40 * MEBI // size**2, size, size), dtype=np.uint8)  # 40 MiB, of which the first are used
    images[: train + val] = np.random.default_rng(0).integers(0, 200, (train + val, size, size))
    leaves = {"train.epochs": 1, "train.batch_size": 8, "train.threads": 1, "model.width": 4}
    table = pd.DataFrame(
        {
            "image_id": [f"i{row}" for row in range(train + val)],
            "group": [f"g{row // 4}" for row in range(train + val)],
            "label": labels,
            "split": ["train"] * train + ["val"] * val,
            "pixel_hash": "",
            "look": b"",
            "width": size,
            "height": size,
            "brightness": 100.0,
        }
    )
    job = Job(
        config=Config().with_leaves(leaves),
        run=Folder(tmp_path),
        shards=Shards(Folder(tmp_path), size, (ShardFile("0.parquet", 0, train + val),)),
        table=table,
        fingerprint="drawn",
        rotations=(table["split"].to_numpy(),),
        metrics=("val_accuracy",),
        images=images,
    )

    def stored():
        return ray.available_resources()["object_store_memory"]

    before = stored()
    group = WorkerGroup(Shared(job), WorkerResources(workers=2, cpus=0.5))
    try:
        report = group.epoch(Suggestion(0, {}), 1)
        assert report.result.workers == 2, report.failure
        time.sleep(3)  # Ray counts now and then
        assert 40 * MEBI <= before - stored() < 60 * MEBI
    finally:
        group.stop()
