"""The orders and answers between a place in the search and its workers."""

import asyncio
import time
from dataclasses import replace

import numpy as np
import pytest
import ray

from fracray.errors import InputError
from fracray.runtime.ray_session import Shared
from fracray.runtime.resources import WorkerResources
from fracray.search import worker_group
from fracray.search.messages import Suggestion, TrialReport
from fracray.search.worker_group import Mailbox, Order, WorkerGroup
from fracray.training.epochs import EpochResult
from tests.training.test_trial import SIZE, make_job

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
    drawn = make_job(tmp_path, **{"train.epochs": 1, "train.batch_size": 8, "model.width": 4})
    images = np.zeros((40 * MEBI // SIZE**2, SIZE, SIZE), dtype=np.uint8)  # 40 MiB, of which the first are used
    images[: len(drawn.images)] = drawn.images
    job = replace(drawn, images=images)

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
