"""Cross-validation inside one trial: several models, trained epoch by epoch, each validated on another fold.

Same interface as `Fit`, so that a trial can run either. Knows nothing of Ray.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from fracray.training.loop import EpochReport, Fit


class Folds:
    """One config trained on several divisions of the same images, one epoch on each at a time.

    Metrics are the means over the models, and the best epoch is the one with the best mean. The weights that are kept
    are those of the first model; the report has the validation of each, and the first one's own metrics. All `fits`
    have the same config, metric and mode.
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
        """Train and validate one epoch of every model; all keep their weights if the mean is the best so far."""
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
        folds = tuple(report.validation for report in reports)
        first = reports[0].metrics
        return EpochReport(self.epochs_done, metrics, folds[0], is_best, diverged, seconds, folds, first)

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The states of all models, as `Fit.state` gives them."""
        states = [fit.state() for fit in self._fits]
        tensors = {f"{at}/{name}": tensor for at, (part, _) in enumerate(states) for name, tensor in part.items()}
        return tensors, {"folds": [meta for _, meta in states]}

    def load_state(self, tensors: dict[str, torch.Tensor], meta: dict[str, Any]) -> None:
        """Resume from what `state` returned."""
        for at, (fit, part) in enumerate(zip(self._fits, meta["folds"], strict=True)):
            start = f"{at}/"
            fit.load_state(
                {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}, part
            )


def best_of_folds(
    tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]
) -> Iterator[tuple[dict[str, torch.Tensor], int]]:
    """The best weights of every model, in the order of the fits, and their epoch; from what `Folds.state` returned."""
    for at, of_fit in enumerate(meta["folds"]):
        start = f"{at}/best."
        weights = {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
        yield weights, int(of_fit["best"]["epoch"])
