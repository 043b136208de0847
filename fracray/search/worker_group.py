"""A trial on several workers, inside a search: Ray Train's workers, kept from one trial to the next.

Starting a trainer takes ten seconds and more, and Tune may stop a trial at any epoch. So one trainer serves all trials
of a place in the search: its workers run one epoch at a time, of the trial that their order names.
"""

import asyncio
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray

from fracray.errors import OutOfReachError, RunError
from fracray.runtime.efficiency import STARTING
from fracray.runtime.ray_session import Shared
from fracray.runtime.resources import WorkerResources
from fracray.search.messages import MISTAKES, Suggestion, TrialReport
from fracray.training.job import Job
from fracray.training.trial import TrialRunner
from fracray.training.workers import run_workers, use_cores

POLL_SECONDS = 1.0
STOP_SECONDS = 30.0
AGREE_SECONDS = 20.0  # for all ranks to find the same mistake


@dataclass(frozen=True)
class Order:
    """What all workers do next: report the epoch `epoch` of `trial`, trained if need be, or stop."""

    serial: int
    trial: Suggestion = field(default_factory=lambda: Suggestion(-1, {}))
    epoch: int = 0
    stop: bool = False


class Mailbox:
    """Holds the open order until every rank has answered it; restarted workers find it here again."""

    def __init__(self, world: int) -> None:
        self._world = world
        self._order = Order(serial=0)
        self._answers: dict[int, TrialReport] = {}
        self._changed = asyncio.Condition()

    async def post(self, order: Order) -> None:
        async with self._changed:
            self._order, self._answers = order, {}
            self._changed.notify_all()

    async def after(self, serial: int) -> Order:
        """The first order later than `serial`, as soon as there is one."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._order.serial > serial)
            return self._order

    async def answer(self, serial: int, rank: int, report: TrialReport) -> None:
        async with self._changed:
            if serial == self._order.serial:
                self._answers[rank] = report
                self._changed.notify_all()

    async def fail(self, serial: int, rank: int, report: TrialReport) -> bool:
        """Answer that the trial cannot run. False when the others do not answer: they wait for this rank.

        Then the order is closed: the workers have to be restarted, and are not to take it up again.
        """
        await self.answer(serial, rank, report)
        async with self._changed:
            with suppress(TimeoutError):
                everyone = self._changed.wait_for(
                    lambda: serial != self._order.serial or len(self._answers) == self._world
                )
                await asyncio.wait_for(everyone, AGREE_SECONDS)
                return True
            if serial == self._order.serial:
                self._order = Order(serial=0)
                self._answers = dict.fromkeys(range(self._world), report)
                self._changed.notify_all()
            return False

    async def result(self, seconds: float) -> TrialReport | None:
        """Once all ranks have answered: rank 0's answer, or that of one that failed. None after so many seconds."""
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(lambda: len(self._answers) == self._world), seconds)
            except TimeoutError:
                return None
            failed = [report for report in self._answers.values() if report.failure]
            return failed[0] if failed else self._answers[0]


class WorkerGroup:
    """The workers of one place in the search, and the thread that waits for their trainer."""

    def __init__(self, shared: Shared[Job], each: WorkerResources) -> None:
        self._mailbox = ray.remote(Mailbox).options(num_cpus=0).remote(each.workers)
        self._serial = 0
        self._error: BaseException | None = None
        settings = {"job": shared, "mailbox": self._mailbox, "each": each}
        self._thread = threading.Thread(target=self._run, args=(shared.get(), each, settings), daemon=True)
        self._thread.start()

    def _run(self, job: Job, each: WorkerResources, settings: dict[str, Any]) -> None:
        try:
            run_workers(job.run, "group", _serve, settings, each, job.images is not None)
        except BaseException as error:
            self._error = error

    def epoch(self, trial: Suggestion, epoch: int) -> TrialReport:
        """The report of a trial's epoch, trained if need be; RunError when the workers have failed."""
        self._serial += 1
        ray.get(self._mailbox.post.remote(Order(self._serial, trial, epoch)))
        while (report := ray.get(self._mailbox.result.remote(POLL_SECONDS))) is None:
            if not self._thread.is_alive():
                raise self._error or RunError("the workers ended without an answer")
        return report

    def stop(self) -> None:
        """End the workers and free their resources."""
        ray.get(self._mailbox.post.remote(Order(self._serial + 1, stop=True)))
        self._thread.join(STOP_SECONDS)


def _serve(settings: Mapping[str, Any]) -> None:
    """What every worker runs: one order after another."""
    import ray.train
    import ray.train.torch

    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    job: Job = settings["job"].get()
    meter = use_cores(job.config, settings["each"].cpus, settings["each"].gpus)
    runner: TrialRunner | None = None
    serial = 0
    while not (order := ray.get(settings["mailbox"].after.remote(serial))).stop:
        serial, trial = order.serial, order.trial
        try:
            if runner is None or runner.number != trial.number:
                if runner is not None:
                    runner.close()
                    runner = None
                device = ray.train.torch.get_device()
                with meter.waiting(STARTING):
                    runner = TrialRunner(job, trial.number, dict(trial.leaves), rank, world, device, meter)
            ran = runner.epochs_done < order.epoch
            while runner.epochs_done < order.epoch:
                runner.run_epoch()
            report = TrialReport(runner.result(order.epoch), ran=ran)
        except OutOfReachError:  # the trial may run in other processes
            raise
        except MISTAKES as error:
            # The trial would fail in any process. Raised, the error would restart the group and be taken for a crash.
            if runner is not None:
                runner.close()
                runner = None
            if not ray.get(settings["mailbox"].fail.remote(serial, rank, TrialReport.failed(error))):
                raise
            continue
        ray.get(settings["mailbox"].answer.remote(serial, rank, report))
    if runner is not None:
        runner.close()
