"""Processes that can be lost: a call to one that dies or takes too long fails, and another one takes its place.

Knows nothing of what they do.
"""

import asyncio
import contextlib
import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

from fracray.errors import InputError, RunError

STARTS_WITHIN = 300.0  # seconds: importing Torch and reading weights on a busy machine
ENDS_WITHIN = 5.0


class LostError(Exception):
    """The process died, or was ended because it took too long; the message says which."""


class Worker:
    """One process that holds what `make` returns, and does one call at a time. `make` must be picklable.

    environment: variables that are set before it is called.
    """

    def __init__(self, make: Callable[[], Any], quiet: bool, environment: Mapping[str, str]) -> None:
        self._make, self._quiet, self._environment = make, quiet, dict(environment)
        self._process: Any = None
        self._pipe: Connection | None = None

    def start(self) -> None:
        """Start the process and wait until it is ready; InputError and RunError as `make`, or LostError."""
        spawn = multiprocessing.get_context("spawn")  # a fork would copy threads of this process half
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(
            target=_work, args=(theirs, self._make, self._quiet, self._environment), daemon=True
        )
        self._process.start()
        theirs.close()  # so that its end is noticed
        self._answer(STARTS_WITHIN)

    def call(self, name: str, args: tuple[Any, ...], seconds: float) -> Any:
        """What the method `name` returns. RunError where it raises, LostError where the process is lost."""
        if self._pipe is None:
            raise LostError("is being started again")
        try:
            self._pipe.send((name, args))
        except OSError:
            raise self._lost() from None
        return self._answer(seconds)

    def _answer(self, seconds: float) -> Any:
        assert self._pipe is not None
        try:
            if not self._pipe.poll(seconds):
                self.stop()
                raise LostError(f"took longer than {seconds:g} s and was ended")
            fine, value = self._pipe.recv()
        except (EOFError, OSError, pickle.UnpicklingError):
            raise self._lost() from None
        if not fine:
            raise value
        return value

    def _lost(self) -> LostError:
        process = self._process
        process.join(ENDS_WITHIN)
        code = process.exitcode
        self.stop()
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                return LostError(f"was ended by {signal.Signals(-code).name}")
        return LostError("ended unexpectedly")

    @property
    def there(self) -> bool:
        return self._pipe is not None

    def stop(self) -> None:
        """End the process at once: it keeps nothing that could be lost."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None


def _work(pipe: Connection, make: Callable[[], Any], quiet: bool, environment: Mapping[str, str]) -> None:
    """The process: answer calls until the other end of the pipe closes, as it does however the server ends."""
    for signum in (signal.SIGINT, signal.SIGTERM):  # a terminal sends Ctrl-C to all; the server ends this process
        signal.signal(signum, signal.SIG_IGN)
    if quiet:  # decoders' libraries print what is odd about a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    os.environ.update(environment)
    try:
        served = make()
    except (InputError, RunError) as error:
        pipe.send((False, error))
        return
    with contextlib.suppress(EOFError, OSError):
        pipe.send((True, None))
        while True:
            name, args = pipe.recv()
            try:
                answer = True, getattr(served, name)(*args)
            except Exception as error:
                answer = False, RunError(f"{type(error).__name__}: {error}")
            pipe.send(answer)


class Pool:
    """Several equal processes behind one event loop. seconds: that a call may take; environments: variables, which the
    processes get in turn."""

    def __init__(
        self,
        make: Callable[[], Any],
        count: int,
        seconds: float,
        quiet: bool = False,
        environments: Sequence[Mapping[str, str]] = ({},),
    ) -> None:
        self._workers = [Worker(make, quiet, environments[at % len(environments)]) for at in range(count)]
        self.seconds = seconds
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="fracray-call")
        self._idle: asyncio.Queue[Worker] = asyncio.Queue()
        self._reviving: set[asyncio.Future[Any]] = set()
        self.lost = 0

    async def start(self) -> None:
        """Start all processes; errors as `Worker.start`."""
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(loop.run_in_executor(self._threads, worker.start) for worker in self._workers))
        for worker in self._workers:
            self._idle.put_nowait(worker)

    @property
    def ready(self) -> bool:
        """Whether at least one process can be called."""
        return any(worker.there for worker in self._workers)

    async def call(self, name: str, *args: Any) -> Any:
        """Call a method of one of the processes, once one is free; errors as `Worker.call`."""
        worker = await self._idle.get()
        loop = asyncio.get_running_loop()
        done = loop.run_in_executor(self._threads, worker.call, name, args, self.seconds)
        done.add_done_callback(lambda future: self._back(worker, future))
        return await asyncio.shield(done)  # the process works on when nobody waits for it any more

    def _back(self, worker: Worker, done: "asyncio.Future[Any] | Future[Any]") -> None:
        if done.cancelled() or not isinstance(done.exception(), LostError):
            self._idle.put_nowait(worker)
            return
        self.lost += 1
        revived = asyncio.get_running_loop().run_in_executor(self._threads, worker.start)
        self._reviving.add(revived)
        revived.add_done_callback(lambda future: self._revived(worker, future))

    def _revived(self, worker: Worker, started: "asyncio.Future[Any]") -> None:
        self._reviving.discard(started)
        if started.cancelled() or started.exception():  # the next call tells
            worker.stop()
        self._idle.put_nowait(worker)

    def stop(self) -> None:
        """End all processes."""
        for worker in self._workers:
            worker.stop()
        self._threads.shutdown(wait=False, cancel_futures=True)
