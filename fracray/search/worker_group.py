"""A trial on several workers, inside a search: Ray Train's workers, kept from one trial to the next.

Starting a trainer costs ten seconds and more, and a trial that is stopped early leaves its workers behind. So one
trainer serves all trials of a place in the search: its workers run one epoch at a time, of the trial they are told.
"""

import asyncio
import threading
from dataclasses import dataclass
from typing import Any

import ray

from fracray.errors import RunError
from fracray.runtime.efficiency import RAN, STARTING
from fracray.train import Share, run_workers
from fracray.training.trial import Job, TrialRunner, use_cores

POLL_SECONDS = 1.0
STOP_SECONDS = 30.0


@dataclass(frozen=True)
class Order:
    """What all workers do next: bring trial `number` to `epoch` finished epochs (None: one more), or stop."""

    serial: int
    number: int = -1
    leaves: dict[str, Any] | None = None
    epoch: int | None = None
    stop: bool = False


class Mailbox:
    """Where orders stand until every rank has answered them; workers that were started again find the open one."""

    def __init__(self, world: int) -> None:
        self._world = world
        self._order = Order(serial=0)
        self._answers: dict[int, dict[str, Any]] = {}
        self._news = asyncio.Condition()

    async def post(self, order: Order) -> None:
        async with self._news:
            self._order, self._answers = order, {}
            self._news.notify_all()

    async def after(self, serial: int) -> Order:
        """The first order later than `serial`, once there is one."""
        async with self._news:
            await self._news.wait_for(lambda: self._order.serial > serial)
            return self._order

    async def answer(self, serial: int, rank: int, metrics: dict[str, Any]) -> None:
        async with self._news:
            if serial == self._order.serial:
                self._answers[rank] = metrics
                self._news.notify_all()

    async def result(self, seconds: float) -> dict[str, Any] | None:
        """Rank 0's answer, once all ranks have given theirs; None when that takes longer."""
        async with self._news:
            try:
                await asyncio.wait_for(self._news.wait_for(lambda: len(self._answers) == self._world), seconds)
            except TimeoutError:
                return None
            return self._answers[0]


class WorkerGroup:
    """The workers of one place in the search, and the thread that waits for their trainer."""

    def __init__(self, job: Job, share: Share) -> None:
        self._mailbox = ray.remote(Mailbox).options(num_cpus=0).remote(share.workers)
        self._serial = 0
        self._error: BaseException | None = None
        settings = {"job": ray.put(job), "mailbox": self._mailbox, "share": share}
        self._thread = threading.Thread(target=self._run, args=(job, share, settings), daemon=True)
        self._thread.start()

    def _run(self, job: Job, share: Share, settings: dict[str, Any]) -> None:
        try:
            run_workers(job.run, "group", _serve, settings, share)
        except BaseException as error:
            self._error = error

    def epoch(self, number: int, leaves: dict[str, Any], epoch: int | None) -> dict[str, Any]:
        """Have a trial brought to `epoch` finished epochs and return its metrics; RunError when the workers gave up."""
        self._serial += 1
        ray.get(self._mailbox.post.remote(Order(self._serial, number, leaves, epoch)))
        while (metrics := ray.get(self._mailbox.result.remote(POLL_SECONDS))) is None:
            if not self._thread.is_alive():
                raise self._error or RunError("the workers ended without an answer")
        return metrics

    def stop(self) -> None:
        """Send the workers home and give back their resources."""
        ray.get(self._mailbox.post.remote(Order(self._serial + 1, stop=True)))
        self._thread.join(STOP_SECONDS)


def _serve(settings: dict[str, Any]) -> None:
    """What every worker runs: one order after another."""
    import ray.train
    import ray.train.torch

    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    job: Job = ray.get(settings["job"])
    meter = use_cores(job.config, settings["share"].cpus, settings["share"].gpus)
    runner: TrialRunner | None = None
    number, serial = -1, 0
    while not (order := ray.get(settings["mailbox"].after.remote(serial))).stop:
        serial = order.serial
        if runner is None or number != order.number:
            if runner is not None:
                runner.close()
            device = ray.train.torch.get_device()
            with meter.waiting(STARTING):
                runner = TrialRunner(job, order.number, order.leaves or {}, rank, world, device, meter)
            number = order.number
        target = runner.epochs_done + 1 if order.epoch is None else order.epoch
        ran = runner.epochs_done
        while runner.epochs_done < target and not runner.done:
            runner.run_epoch()
        metrics = {**runner.last(), RAN: runner.epochs_done > ran}
        ray.get(settings["mailbox"].answer.remote(serial, rank, metrics))
    if runner is not None:
        runner.close()
