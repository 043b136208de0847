"""A place in the search: the process that Tune reuses for one trial after another, one epoch per step."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ray import tune

from fracray.runtime.efficiency import REPORTING, STARTING, Meter
from fracray.runtime.ray_session import Shared
from fracray.runtime.resources import WorkerResources
from fracray.search.messages import MISTAKES, Suggestion, TrialReport
from fracray.search.worker_group import WorkerGroup
from fracray.training.job import Job
from fracray.training.loop import pick_device
from fracray.training.trial import TrialRunner
from fracray.training.workers import use_cores


class TrialActor(tune.Trainable):
    """Trains in its own process with one worker; with several it directs a group of Ray Train's workers.

    A trial's folder holds all of its state, so what Tune saves when it pauses a trial can stay empty. A trial that is
    taken up again reports the epochs that its folder holds once more, one per step, before it trains the next.
    """

    def setup(self, config: dict[str, Any], shared: Shared[Job], each: WorkerResources) -> None:
        self._job, self._each = shared.get(), each
        self._runner: TrialRunner | None = None
        self._group: WorkerGroup | None = None
        self._group_started = False  # whether the group has answered an order
        if each.workers == 1:
            self._meter = use_cores(self._job.config, each.cpus, each.gpus)
        else:
            self._group = WorkerGroup(shared, each)
            self._meter = Meter(cores=each.workers * (each.gpus or each.cpus))
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
            except MISTAKES as error:
                # The trial would fail in any process, and this one still works: raising would make Tune end it.
                self._close()
                report = TrialReport.failed(error)
        if report.result is not None:
            self._next = report.result.epoch + 1
            ended = report.result.diverged or self._next > self._job.config.train.epochs
            report = replace(report, done=ended)
        self._ended = time.perf_counter()
        return report.to_tune(self._job.metrics)

    def _epoch(self) -> TrialReport:
        if self._runner is None:
            device = pick_device() if self._each.gpus else torch.device("cpu")
            with self._meter.waiting(STARTING):
                self._runner = TrialRunner(
                    self._job, self._trial.number, dict(self._trial.leaves), device=device, meter=self._meter
                )
        if self._next <= self._runner.epochs_done:
            return TrialReport(self._runner.result(self._next), ran=False)
        return TrialReport(self._runner.run_epoch())

    def _group_epoch(self, group: WorkerGroup) -> TrialReport:
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
