"""The training loop with its time counted: training, validation, and waiting for batches.

What is counted ends up in a search's efficiency. Knows nothing of Ray.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from itertools import pairwise, takewhile

import torch

from fracray.config import Config
from fracray.data.loading.plan import Batch, Plan
from fracray.runtime.efficiency import DATA_WAIT, TRAINING, VALIDATION, Meter, Stretches
from fracray.training.loop import Fit, Stream, Validation
from fracray.training.steps import StepCounter


class MeteredFit(Fit):
    """`Fit`, whose time `meter` counts."""

    def __init__(
        self, config: Config, stream: Stream, device: torch.device, metric: str, mode: str, meter: Meter
    ) -> None:
        self._meter = meter
        self._stream = _MeteredStream(stream, meter)
        self.counter: StepCounter | None = None  # is told of every step
        super().__init__(config, self._stream, device, metric, mode)

    def _step(self, batch: Batch, step: int) -> torch.Tensor:
        with self._meter.stretch(TRAINING, self.device, self._stream.steps):
            total = super()._step(batch, step)
        if self.counter is not None:
            self.counter.step(batch.global_count, self._stream.unfinished)
        return total

    def _train_epoch(self, epoch: int) -> float:
        if self.counter is not None:
            self.counter.begin(epoch + 1)
        loss = super()._train_epoch(epoch)
        self._stream.count_device_time()
        return loss

    def validate(self) -> tuple[Validation, dict[str, float]]:
        with self._meter.work(VALIDATION):
            return super().validate()


class _MeteredStream:
    """A stream that counts how long the training thread waits for its batches."""

    def __init__(self, stream: Stream, meter: Meter) -> None:
        self.plan: Plan = stream.plan
        self.steps: Stretches = []  # when each step of the epoch began and ended on the GPU
        self._stream, self._meter = stream, meter
        self._resident = False  # the images are on the GPU, and are augmented there between the steps

    def train(self, epoch: int) -> Iterator[Batch]:
        batches = self._stream.train(epoch)
        while True:
            # A GPU still has steps to do while the next batch is fetched, except for the first batch of an epoch.
            with nullcontext() if self.steps else self._meter.waiting(DATA_WAIT):
                batch = next(batches, None)
            if batch is None:
                return
            self._resident = isinstance(batch.images, torch.Tensor)
            yield batch

    def validation(self) -> Iterator[Batch]:
        return self._stream.validation()

    def unfinished(self) -> int:
        """How many steps of the epoch the GPU has been given and not done; 0 on a CPU."""
        return sum(1 for _ in takewhile(lambda step: not step[1].query(), reversed(self.steps)))

    def count_device_time(self) -> None:
        """Count what the GPU did in the epoch that has ended: its steps, and waiting for batches between them.

        Where images are augmented on the GPU between the steps, their stream counts that time.
        """
        for begun, ended in self.steps:
            self._meter.add_wall(TRAINING, begun.elapsed_time(ended) / 1000)
        if not self._resident:
            for (_, ended), (begun, _) in pairwise(self.steps):
                self._meter.add_wall(DATA_WAIT, ended.elapsed_time(begun) / 1000)
        self.steps.clear()
