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
        batcher = Batcher(run, most, wait, 1, coming)
        async with asyncio.timeout(60):
            assert await asyncio.gather(*map(batcher, items)) == [-item for item in items]
        batcher.stop()

    asyncio.run(work())
    return batches


def test_items_that_come_together_are_run_together():
    assert batches_of(range(1, 11), most=4) == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]


def test_one_item_waits_for_no_other_where_none_is_coming():
    assert batches_of([1, 2, 3], most=4, wait=3600, coming=lambda: False) == [[1, 2, 3]]


def test_an_error_of_a_batch_reaches_each_of_its_items_and_no_other():
    async def run(batch):
        if 1 in batch:
            raise LostError("died")
        return batch

    async def work():
        batcher = Batcher(run, 2, 0, 1, lambda: False)
        found = await asyncio.gather(*map(batcher, (1, 2, 3, 4)), return_exceptions=True)
        assert [type(one) for one in found[:2]] == [LostError, LostError]
        assert found[2:] == [3, 4]
        batcher.stop()

    asyncio.run(work())


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
