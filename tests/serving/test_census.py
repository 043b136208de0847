"""How many replicas predict, where Ray Serve errs, hangs or has lost the application: without a cluster."""

import asyncio
import gc
import logging
import threading
import time
from types import SimpleNamespace

import pytest

from fracray.serving import census
from fracray.serving.census import Census
from fracray.serving.limits import RefusedError
from fracray.serving.replicas import Replicas


def status(**states):
    """As Ray Serve's, of one application `app`."""
    return SimpleNamespace(
        applications={"app": SimpleNamespace(deployments={"replica": SimpleNamespace(replica_states=states)})}
    )


@pytest.fixture
def looks(monkeypatch):
    """What each look gives, in order: a status, an error to raise or a function; the last one for ever."""
    monkeypatch.setattr(census, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(census, "LOOK_WITHIN", 0.2)
    monkeypatch.setattr(census, "KNOWN_SECONDS", 0.1)
    given = []

    def look():
        one = given.pop(0) if len(given) > 1 else given[0]
        if isinstance(one, BaseException):
            raise one
        return one() if callable(one) else one

    monkeypatch.setattr(census.serve, "status", look)
    return given


async def until(holds):
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "error", [ValueError("a field that is not known"), KeyError("app"), TypeError("None"), ConnectionError("gone")]
)
def test_any_error_of_a_look_is_told_once_and_the_counting_goes_on(looks, caplog, error):
    async def watch():
        found = Census("app", "replica")
        looks[:] = [error]
        found.start(running=1)
        assert found.known
        await until(lambda: caplog.records)
        assert not found.known
        assert found.age > 0.1
        await asyncio.sleep(0.2)
        assert len(caplog.records) == 1
        looks[:] = [status(RUNNING=2, STARTING=1)]
        await until(lambda: found.known)
        assert found.running == 2
        await asyncio.sleep(0.1)
        found.stop()

    with caplog.at_level(logging.WARNING, "fracray"):
        asyncio.run(watch())
    first, second = (record.getMessage() for record in caplog.records)
    assert f"not known how many replicas predict ({type(error).__name__}: {error})" in first
    assert second == "it is known again how many replicas predict: 2"


def test_a_look_that_hangs_is_told_and_no_other_hangs_beside_it(looks, caplog):
    goes_on, hanging = threading.Event(), []

    def hang():
        hanging.append(1)
        goes_on.wait(20)
        return status(RUNNING=1)

    async def watch():
        looks[:] = [hang]
        found = Census("app", "replica")
        found.start(running=1)
        await until(lambda: caplog.records)
        await asyncio.sleep(0.5)
        assert len(hanging) == 1
        goes_on.set()
        await until(lambda: found.known)
        found.stop()

    with caplog.at_level(logging.WARNING, "fracray"):
        asyncio.run(watch())
    assert "(TimeoutError: Ray Serve does not answer)" in caplog.records[0].getMessage()


@pytest.mark.parametrize(
    ("state", "running"),
    [
        (status(RUNNING=1, RECOVERING=1, PENDING_MIGRATION=1, STARTING=4, STOPPING=4), 3),
        (status(STARTING=1), 0),
        (SimpleNamespace(applications={}), 0),
    ],
)
def test_replicas_that_answer_are_counted_and_an_application_that_is_gone_has_none(looks, state, running):
    async def watch():
        looks[:] = [state]
        found = Census("app", "replica")
        found.start(running=7)
        await until(lambda: found.running != 7)
        found.stop()
        return found.running

    assert asyncio.run(watch()) == running


def test_what_ran_goes_on_where_a_new_configuration_cannot_be_built(looks):
    """Ray Serve then names the application without its deployments."""
    looked = []

    def failed():
        looked.append(1)
        return SimpleNamespace(applications={"app": SimpleNamespace(deployments={})})

    async def watch():
        looks[:] = [failed]
        found = Census("app", "replica")
        found.start(running=7)
        await until(lambda: len(looked) > 3)
        found.stop()
        return found.running, found.known

    assert asyncio.run(watch()) == (7, True)


class Handle:
    """Of replicas that answer."""

    async def answer(self):
        return {"checkpoint": "c"}

    @property
    def card(self):
        return SimpleNamespace(remote=self.answer)

    @property
    def call(self):
        async def called(name, *args):
            return [{"error": ""}], None

        return SimpleNamespace(remote=called)


def test_ready_and_metrics_say_so_and_pictures_are_sent_all_the_same(looks):
    async def watch():
        looks[:] = [status(RUNNING=1), ValueError("odd")]
        service = Replicas("app", Handle())
        await service.start()
        assert service.ready
        await until(lambda: not service.ready)
        assert await service.rows([], False) == [{"error": ""}]
        told = dict(line.rsplit(" ", 1) for line in service.counters.text().decode().splitlines())
        assert float(told["fracray_replicas_age_seconds"]) > 0.1
        looks[:] = [status(STARTING=1)]
        await until(lambda: service._census.known)
        assert not service.ready
        with pytest.raises(RefusedError, match="no replica is up"):
            await service.rows([], False)
        looks[:] = [status(RUNNING=1)]
        await until(lambda: service.ready)
        service.stop()

    asyncio.run(watch())


def test_a_look_that_hangs_holds_up_neither_the_stop_nor_the_end_of_the_loop(looks):
    hangs, begun = threading.Event(), time.monotonic()

    async def watch():
        found = Census("app", "replica")
        looks[:] = [lambda: hangs.wait(60)]
        found.start(running=1)
        await asyncio.sleep(0.1)
        found.stop()

    asyncio.run(watch())
    assert time.monotonic() - begun < 30
    hangs.set()


def test_a_look_that_fails_after_the_stop_is_no_error_of_the_loop(looks):
    fails, told = threading.Event(), []

    def look():
        fails.wait(60)
        raise ConnectionError("gone")

    async def watch():
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        found = Census("app", "replica")
        looks[:] = [look]
        found.start(running=1)
        await asyncio.sleep(0.1)
        found.stop()
        fails.set()
        await asyncio.sleep(0.2)
        del found
        gc.collect()
        await asyncio.sleep(0)

    asyncio.run(watch())
    assert told == []
