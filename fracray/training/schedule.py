"""What changes from step to step of a training: the learning rate, and the moving average's decay."""

import math

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
    """What changes from step to step: the learning rate, and the share of the way that the average goes.

    Tensors on a GPU, where a step is recorded once for all of them; numbers on a CPU.
    """

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self._config = config
        self.on_device = device.type == "cuda"
        self.lr: float | torch.Tensor = config.lr
        self.average: float | torch.Tensor = 1.0
        if self.on_device:
            self.lr, self.average = (torch.tensor(value, device=device) for value in (config.lr, 1.0))

    def set(self, step: int, total: int) -> None:
        lr, average = learning_rate(self._config, step, total), 1 - decay(self._config.ema, step)
        if isinstance(self.lr, torch.Tensor) and isinstance(self.average, torch.Tensor):
            self.lr.fill_(lr)
            self.average.fill_(average)
        else:
            self.lr, self.average = lr, average
