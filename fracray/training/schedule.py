"""What changes from step to step of a training: the learning rate, and the moving average's decay."""

import math
from collections.abc import Sequence

import torch

from fracray.config import TrainConfig


def learning_rate(config: TrainConfig, step: int, total: int) -> float:
    """Linear warm-up, then a half cosine to zero (Loshchilov and Hutter 2017, arXiv 1608.03983); step from 0.

    timm's CosineLRScheduler can give the same rates, but takes three seconds to import.
    """
    warmup = config.warmup * total
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1.0, total - warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def decay(most: float, step: int) -> float:
    """The decay of a step, counted from 0, with Adam-like warm-up; `most`: 0 to below 1, 0: no average."""
    return min(most, (1 + step) / (10 + step)) if most else 0.0


class Rates:
    """What changes from step to step: the learning rates, and the share of the way that the average goes.

    lrs: one for each of `scales`, that of the schedule times the scale. Tensors on a GPU, where a step is recorded once
    for all of them; numbers on a CPU.
    """

    def __init__(self, config: TrainConfig, device: torch.device, scales: Sequence[float] = (1.0,)) -> None:
        self._config, self._scales = config, tuple(scales)
        self.on_device = device.type == "cuda"
        self.lrs: list[float] | list[torch.Tensor] = [config.lr * scale for scale in self._scales]
        self.average: float | torch.Tensor = 1.0
        if self.on_device:
            self.lrs = [torch.tensor(lr, device=device) for lr in self.lrs]
            self.average = torch.tensor(1.0, device=device)

    def set(self, step: int, total: int) -> None:
        lr, average = learning_rate(self._config, step, total), 1 - decay(self._config.ema, step)
        lrs = [lr * scale for scale in self._scales]
        if isinstance(self.average, torch.Tensor):
            for held, value in zip((*self.lrs, self.average), (*lrs, average), strict=True):
                held.fill_(value)
        else:
            self.lrs, self.average = lrs, average
