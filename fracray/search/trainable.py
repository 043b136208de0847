"""A place in the search: the process that Tune reuses for one trial after another, one epoch per step.

The command knows this class and trains nothing, so Torch is imported where a trial runs.
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from ray import tune

from fracray.errors import OutOfReachError
from fracray.runtime.efficiency import REPORTING, STARTING, Meter
from fracray.runtime.ray_session import Shared
from fracray.runtime.resources import WorkerResources
from fracray.runtime.timeline import FIRST_EPOCH, Stretch
from fracray.search.messages import MISTAKES, Suggestion, TrialReport
from fracray.training.job import Job

if TYPE_CHECKING:
    from fracray.search.worker_group import WorkerGroup
    from fracray.training.trial import TrialRunner


class TrialActor(tune.Trainable):
    """Trains in its own process with one worker; with several it directs a group of Ray Train's workers.

    A trial's folder holds all of its state, so what Tune saves when it pauses a trial can stay empty. A trial that is
    taken up again reports the epochs that its folder holds once more, one per step, before it trains the next.
    """

    def setup(self, config: dict[str, Any], shared: Shared[Job], each: WorkerResources) -> None:
        asked = time.time()
        self._job, self._each = shared.get(), each
        self._runner: TrialRunner | None = None
        self._group: Any = None  # a WorkerGroup
        self._group_started = False  # whether the group has answered an order
        if each.workers == 1:
            from fracray.training.workers import use_cores

            self._meter = use_cores(self._job.config, each.cpus, each.gpus)
        else:
            from fracray.search.worker_group import WorkerGroup

            self._group = WorkerGroup(shared, each)
            self._meter = Meter(cores=each.workers * (each.gpus or each.cpus))
        from fracray.search import ready

        imports = Stretch("process and imports", psutil.Process().create_time(), ready.AT)
        self._started = [imports, Stretch("waits for the command", ready.AT, max(asked, ready.AT))]
        self._begin(config)
        self._ended = time.perf_counter()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        self._trial = Suggestion.from_tune(config)
        self._next = 1  # the epoch that is reported next
        self._pause = STARTING
        self._close()

    def step(self) -> dict[str, Any]:
        self._meter.add_wall(self._pause, time.perf_counter() - self._ended)
        self._pause = REPORTING
        if self._group is not None:
            report = self._group_epoch(self._group)
        else:
            try:
                report = self._epoch()
            except OutOfReachError:  # the trial may run in another process, and this one may fail all that it gets
                raise
            except MISTAKES as error:
                # The trial would fail in any process, and this one still works: raising would make Tune end it.
                self._close()
                report = TrialReport.failed(error)
        if report.result is not None:
            self._next = report.result.epoch + 1
            ended = report.result.diverged or self._next > self._job.config.train.epochs
            report = replace(report, done=ended, started=self._start_told(report))
        self._ended = time.perf_counter()
        return report.to_tune(self._job.metrics)

    def _epoch(self) -> TrialReport:
        if self._runner is None:
            import torch

            from fracray.training.loop import pick_device
            from fracray.training.trial import TrialRunner

            device = pick_device() if self._each.gpus else torch.device("cpu")
            with self._meter.waiting(STARTING):
                self._runner = TrialRunner(
                    self._job, self._trial.number, dict(self._trial.leaves), device=device, meter=self._meter
                )
        if self._next <= self._runner.epochs_done:
            return TrialReport(self._runner.result(self._next), ran=False)
        return TrialReport(self._runner.run_epoch())

    def _group_epoch(self, group: "WorkerGroup") -> TrialReport:
        """An epoch on the group's workers, with the cost of starting them and of passing orders and answers."""
        begun, first = time.perf_counter(), not self._group_started
        report = group.epoch(self._trial, self._next)
        self._group_started = True
        result = report.result
        if result is None or not report.ran:
            return report
        known = result.seconds + result.core_seconds.get(STARTING, 0.0) / self._meter.cores
        overhead = time.perf_counter() - begun - known
        self._meter.add_wall(STARTING if first else REPORTING, max(0.0, overhead))
        spent = {phase: seconds + result.core_seconds.get(phase, 0.0) for phase, seconds in self._meter.take().items()}
        return replace(report, result=replace(result, core_seconds=spent))

    def _start_told(self, report: TrialReport) -> tuple[Stretch, ...]:
        """How this process came to the first epoch that it ran, which this report is of; empty for any other."""
        if report.result is None or not report.ran or not self._started:
            return ()
        told, self._started = self._started, []
        now = time.time()
        first = Stretch(FIRST_EPOCH, now - report.result.seconds, now)
        return (*told, Stretch("gets data and network", told[-1].ended, first.begun), first)

    def _close(self) -> None:
        if self._runner is not None:
            self._runner.close()
            self._runner = None

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        Path(checkpoint_dir, "in-the-trial-folder").touch()

    def load_checkpoint(self, checkpoint: Any) -> None:
        pass

    def cleanup(self) -> None:
        if self._group is not None:
            self._group.stop()
        self._close()


def trainable(job: Job, each: WorkerResources) -> Any:
    """The trainable of a search, with the resources of one place."""
    actor = tune.with_parameters(TrialActor, shared=Shared(job), each=each)
    if each.workers == 1:
        return tune.with_resources(actor, {"cpu": each.cpus, "gpu": each.gpus})
    # The process that directs a group only waits. If it took a CPU, two of them on two CPUs would wait for their
    # workers forever.
    return tune.with_resources(actor, {"node:__internal_head__": 0.001})
