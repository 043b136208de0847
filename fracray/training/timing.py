"""How long a step and a validation pass of a config take, measured on the prepared data. Writes nothing."""

import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

import torch

from fracray.config import Config
from fracray.data.loading.plan import Batch, make_plan
from fracray.runtime.ray_session import Shared
from fracray.runtime.resources import WorkerResources
from fracray.training.job import Job
from fracray.training.loop import Fit, Stream, pick_device
from fracray.training.trial import make_stream
from fracray.training.workers import use_cores

WARM_STEPS = 5  # at first memory is taken, kernels are chosen, and on a GPU steps are recorded
LEAST_STEPS = 8  # that are timed
TIMED_SECONDS = 4.0  # long enough for the places of a search to be timed at the same time
MOST_SECONDS = 30.0


@dataclass(frozen=True)
class Timing:
    """Seconds on one worker, and when it was ready, in seconds since 1970.

    build: from nothing to a network with its batches; steps: of each timed step, with the wait for its batch; images of
    the full size; validation: of one pass over this worker's part of the validation sets.
    """

    ready: float
    build: float
    steps: tuple[float, ...]
    validation: float


def time_steps(shared: Shared[Job], each: WorkerResources) -> Timing:
    """Time forward, backward and optimiser on batches as one worker gets them, with its share of the cores.

    Of a trial on several workers one is timed, on its part of each batch: what they tell each other is not in it.
    """
    ready, begun = time.time(), time.perf_counter()
    job = shared.get()
    meter = use_cores(job.config, each.cpus, each.gpus)
    device = pick_device() if each.gpus else torch.device("cpu")
    config = part_of(job.config, each.workers)
    plan = make_plan(config, job.table.assign(split=job.rotations[0]), job.shards)
    stream = make_stream(config, plan, job, device, meter)
    fit = _TimedFit(config, stream, device, job.metric, config.search.mode)
    build = time.perf_counter() - begun
    try:
        while not fit.enough:
            with suppress(_EnoughError):
                fit.train_last()
        begun = time.perf_counter()
        fit.validate()
        validation = (time.perf_counter() - begun) / each.workers
    finally:
        stream.close()
    return Timing(ready, build, fit.steps, validation)


def part_of(config: Config, workers: int) -> Config:
    """The config of a training on one worker, whose batches are what each of so many has of a batch."""
    return config.with_leaves(
        {"train.batch_size": -(-config.train.batch_size // workers), "search.workers_per_trial": 1}
    )


class _EnoughError(Exception):
    """Ends an epoch once enough of its steps are timed."""


class _TimedFit(Fit):
    def __init__(self, config: Config, stream: Stream, device: torch.device, metric: str, mode: str) -> None:
        super().__init__(config, stream, device, metric, mode)
        self._ended: list[float] = []
        self._began = time.perf_counter()

    @property
    def steps(self) -> tuple[float, ...]:
        """Seconds of every timed step."""
        warm = self._ended[WARM_STEPS - 1 :]
        return tuple(after - before for before, after in pairwise(warm))

    @property
    def enough(self) -> bool:
        steps = self.steps
        late = time.perf_counter() - self._began > MOST_SECONDS
        return bool(steps) and (late or (len(steps) >= LEAST_STEPS and sum(steps) >= TIMED_SECONDS))

    def train_last(self) -> None:
        """Train the last epoch, whose images are of the full size, until enough is timed."""
        self._train_epoch(self.config.train.epochs - 1)

    def _step(self, batch: Batch, step: int) -> torch.Tensor:
        total = super()._step(batch, step)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._ended.append(time.perf_counter())
        if self.enough:
            raise _EnoughError
        return total
