"""Processes that can be lost, batches, and the queue: without a server, a network or a picture."""

import asyncio
import os
import time

import pytest

from fracray.errors import InputError, RunError
from fracray.serving.batching import Batcher
from fracray.serving.limits import BODIES, Admission, Limits, RefusedError
from fracray.serving.processes import LostError, Pool


class Fragile:
    def pid(self):
        return os.getpid()

    def environment(self, name):
        return os.environ.get(name)

    def die(self):
        os._exit(9)

    def sleep(self, seconds):
        time.sleep(seconds)

    def fail(self):
        raise ValueError("why")


def refused():
    raise InputError("no such thing")


def test_a_process_that_dies_or_hangs_costs_its_own_call_only():
    async def work():
        pool = Pool(Fragile, 1, seconds=2.0)
        await pool.start()
        first = await pool.call("pid")
        assert await pool.call("pid") == first != os.getpid()
        with pytest.raises(RunError, match="ValueError: why"):
            await pool.call("fail")
        assert await pool.call("pid") == first
        with pytest.raises(LostError, match="ended unexpectedly"):
            await pool.call("die")
        second = await pool.call("pid")
        with pytest.raises(LostError, match="took longer than 2 s"):
            await pool.call("sleep", 60)
        third = await pool.call("pid")
        assert len({first, second, third}) == 3
        assert pool.lost == 2
        with pytest.raises(ProcessLookupError):
            os.kill(second, 0)
        pool.stop()
        with pytest.raises(ProcessLookupError):
            os.kill(third, 0)

    asyncio.run(work())


def test_processes_have_the_environments_in_turn():
    async def work():
        pool = Pool(Fragile, 3, seconds=5.0, environments=[{"GPU_NAME": "3"}, {"GPU_NAME": "5"}])
        await pool.start()
        found = await asyncio.gather(*(pool.call("environment", "GPU_NAME") for _ in range(3)))
        pool.stop()
        return found

    assert asyncio.run(work()) == ["3", "5", "3"]


def test_what_a_process_refuses_at_its_start_is_raised_here():
    with pytest.raises(InputError, match="no such thing"):
        asyncio.run(Pool(refused, 1, seconds=5).start())


def batches_of(items, most, wait=0.05, coming=lambda: True):
    """The batches that items which come at once are run in; their results are checked."""
    batches = []

    async def run(batch):
        batches.append(list(batch))
        await asyncio.sleep(0.01)
        return [-item for item in batch]

    async def work():
        batcher = Batcher(run, most, wait, 1, coming, 60)
        async with asyncio.timeout(60):
            assert await asyncio.gather(*map(batcher, items)) == [-item for item in items]
        batcher.stop()

    asyncio.run(work())
    return batches


def test_items_that_come_together_are_run_together():
    assert batches_of(range(1, 11), most=4) == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]


def test_one_item_waits_for_no_other_where_none_is_coming():
    assert batches_of([1, 2, 3], most=4, wait=3600, coming=lambda: False) == [[1, 2, 3]]


def answers_of(run, items, seconds=60.0):
    """What items that come at once get, in batches of four at most: results, or errors."""

    async def work():
        batcher = Batcher(run, 4, 0, 1, lambda: False, seconds)
        async with asyncio.timeout(60):
            found = await asyncio.gather(*map(batcher, items), return_exceptions=True)
        batcher.stop()
        return found

    return asyncio.run(work())


def test_an_item_that_cannot_be_run_fails_by_itself():
    batches = []

    async def run(batch):
        batches.append(list(batch))
        if 2 in batch:
            raise RunError(f"2 is in {batch}")
        return [-item for item in batch]

    found = answers_of(run, range(6))
    assert str(found.pop(2)) == "2 is in [2]"
    assert found == [0, -1, -3, -4, -5]
    assert batches == [[0, 1, 2, 3], [0], [1], [2], [3], [4, 5]]


def test_a_lost_process_costs_its_batch_and_is_not_asked_again():
    batches = []

    async def run(batch):
        batches.append(list(batch))
        if 1 in batch:
            raise LostError("died")
        return batch

    found = answers_of(run, range(6))
    assert [type(one) for one in found[:4]] == [LostError] * 4
    assert found[4:] == [4, 5]
    assert batches == [[0, 1, 2, 3], [4, 5]]


def failing_together(batches, alone):
    """Notes each batch; one of several items fails, and `alone` awaits what a single item does."""

    async def run(batch):
        batches.append(list(batch))
        if len(batch) > 1:
            raise RunError("why")
        await alone(*batch)
        return batch

    return run


def test_a_process_that_is_lost_to_one_item_of_a_failed_batch_is_not_asked_for_the_rest():
    batches = []

    async def alone(item):
        if item == 1:
            raise LostError("died")

    found = answers_of(failing_together(batches, alone), range(4))
    assert found[0] == 0
    assert [type(one) for one in found[1:]] == [LostError] * 3
    assert batches == [[0, 1, 2, 3], [0], [1]]


def test_the_items_of_a_failed_batch_have_no_more_time_than_a_batch():
    batches = []
    found = answers_of(failing_together(batches, lambda _: asyncio.sleep(0.2)), range(4), seconds=0.3)
    assert found[:2] == [0, 1]
    assert [str(one) for one in found[2:]] == ["why", "why"]
    assert batches == [[0, 1, 2, 3], [0], [1]]


def test_the_queue_counts_requests_and_bytes_and_gives_them_back():
    admission = Admission(Limits(bytes=100, queue=BODIES + 3))
    visits = [admission.enter() for _ in range(BODIES + 3)]
    with pytest.raises(RefusedError) as full:
        admission.enter()
    assert full.value.status == 429
    for visit in visits[:BODIES]:
        visit.take(100)
    with pytest.raises(RefusedError) as full:
        visits[BODIES].take(1)
    assert full.value.status == 429
    with pytest.raises(RefusedError) as large:
        visits[0].take(1)
    assert large.value.status == 413
    for visit in visits:
        visit.leave(30.0)
    assert (admission.requests, admission.bytes) == (0, 0)
    assert admission.seconds_each > 5


def test_answers_count_until_they_are_sent_and_one_alone_is_always_sent():
    admission = Admission(Limits(bytes=100, pixels=50, queue=9))
    first, second, third = (admission.enter() for _ in range(3))
    first.take(100)
    first.answer(10_000)
    assert (admission.bytes, admission.answers) == (0, 10_000)
    with pytest.raises(RefusedError) as full:
        second.answer(1)
    assert full.value.status == 429
    first.leave(1.0)
    second.answer(50 * BODIES)
    third.answer(50 * BODIES)
    for visit in (second, third):
        visit.leave(1.0)
    assert (admission.requests, admission.bytes, admission.answers) == (0, 0, 0)
