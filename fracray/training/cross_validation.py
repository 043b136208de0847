"""Cross-validation inside one trial: several models trained in step, each validated on a fold of its own.

Has the face of `Fit`, so that a trial need not know which it drives. Knows nothing of Ray.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

from fracray.training.loop import EpochReport, Fit


class Folds:
    """One config on several divisions of the same images, an epoch at a time on each.

    Metrics are the means over the models, the best epoch is that of the best mean, and the weights and validation that
    are kept are those of the first model. `fits` are of one config, metric and mode.
    """

    def __init__(self, fits: Sequence[Fit]) -> None:
        self._fits = tuple(fits)
        self._first = self._fits[0]
        self.rank, self.world = self._first.rank, self._first.world

    @property
    def done(self) -> bool:
        return self._first.done

    @property
    def epochs_done(self) -> int:
        return self._first.epochs_done

    @property
    def best(self) -> dict[str, float]:
        return self._first.best

    @property
    def best_weights(self) -> dict[str, torch.Tensor]:
        return self._first.best_weights

    def run_epoch(self) -> EpochReport:
        """Train and validate one epoch of every model; all keep their weights where the mean is the best so far."""
        reports = [fit.advance() for fit in self._fits]
        diverged = any(report.diverged for report in reports)
        names = set.intersection(*(set(report.metrics) for report in reports))
        metrics = {
            name: math.fsum(report.metrics[name] for report in reports) / len(reports)
            for name in reports[0].metrics
            if name in names
        }
        is_best = not diverged and self._first.is_better(metrics)
        if is_best:
            for fit in self._fits:
                fit.keep(metrics)
        seconds = math.fsum(report.seconds for report in reports)
        return EpochReport(self.epochs_done, metrics, reports[0].validation, is_best, diverged, seconds)

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The states of all models, as `Fit.state` gives them."""
        states = [fit.state() for fit in self._fits]
        tensors = {f"{at}/{name}": tensor for at, (part, _) in enumerate(states) for name, tensor in part.items()}
        return tensors, {"folds": [meta for _, meta in states]}

    def load_state(self, tensors: dict[str, torch.Tensor], meta: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        for at, (fit, part) in enumerate(zip(self._fits, meta["folds"], strict=True)):
            start = f"{at}/"
            fit.load_state(
                {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}, part
            )
