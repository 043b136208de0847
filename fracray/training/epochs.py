"""What a trial reports of an epoch, and how a run folder keeps it. Imports neither Torch nor Ray."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fracray.metric_names import is_validation
from fracray.runtime.run_folder import BEST, EPOCHS
from fracray.runtime.storage import Folder

AT_BEST = "best_"  # before a metric's name: its value at the best epoch so far
SPENT = "seconds_"  # before a phase's name: core-seconds


@dataclass(frozen=True)
class EpochResult:
    """One finished epoch of a trial.

    metrics: by reported name (`val_accuracy`, `train_loss`, `lr`, ...). best: the validation metrics at the best epoch
    so far; the searched ones are nan while no epoch was finite. core_seconds: by phase, all workers together.
    diverged: the loss is no longer finite, and the trial ends.
    """

    epoch: int  # counted from 1
    metrics: Mapping[str, float]
    best: Mapping[str, float]
    seconds: float
    workers: int = 1
    core_seconds: Mapping[str, float] = field(default_factory=dict)
    diverged: bool = False

    def value(self, metric: str) -> float:
        """A validation metric at the best epoch so far; nan if it was not reported."""
        return float(self.best.get(metric, math.nan))

    def to_json(self) -> dict[str, Any]:
        """One flat mapping of JSON values, as in epochs.json and in the results that Ray carries."""
        return {
            "epoch": float(self.epoch),
            **self.metrics,
            **{f"{AT_BEST}{name}": value for name, value in self.best.items()},
            "seconds": self.seconds,
            "workers": float(self.workers),
            **{f"{SPENT}{phase}": value for phase, value in self.core_seconds.items()},
            "diverged": self.diverged,
        }

    @classmethod
    def from_json(cls, flat: Mapping[str, Any]) -> "EpochResult":
        """Inverse of `to_json`; entries of other kinds, which Ray adds, are ignored."""
        names = [name for name in flat if is_validation(name.removeprefix(AT_BEST))]
        return cls(
            epoch=int(flat["epoch"]),
            metrics={name: flat[name] for name in ("train_loss", "lr") if name in flat}
            | {name: flat[name] for name in names if not name.startswith(AT_BEST)},
            best={name.removeprefix(AT_BEST): flat[name] for name in names if name.startswith(AT_BEST)},
            seconds=float(flat.get("seconds", 0.0)),
            workers=int(flat.get("workers", 1)),
            core_seconds={name.removeprefix(SPENT): flat[name] for name in flat if name.startswith(SPENT)},
            diverged=bool(flat.get("diverged", False)),
        )


def read_epochs(folder: Folder) -> list[EpochResult]:
    """All finished epochs in a trial's folder; empty if it has none."""
    return [EpochResult.from_json(entry) for entry in folder.read_json_if_there(EPOCHS) or ()]


def saved_epochs(folder: Folder, history: Sequence[EpochResult] | None = None) -> list[EpochResult]:
    """A trial's finished epochs up to the last one whose best epoch is the checkpoint in the folder; or none.

    Metrics are written after every epoch, checkpoints less often. A better epoch that a lost process finished since
    then has no checkpoint, so it is dropped, with all epochs after it. history: all of them, if they were read before.
    """
    card = folder.read_json_if_there(f"{BEST}/config.json")
    if card is None:
        return []
    kept, history = card["epoch"], read_epochs(folder) if history is None else history
    best = next((_text(result.best) for result in history if result.epoch == kept), None)
    return [result for result in history if result.epoch <= kept or _text(result.best) == best]


def _text(best: Mapping[str, float]) -> str:
    return json.dumps(dict(best))  # nan equals nan as text


def write_epochs(folder: Folder, lines: Sequence[str]) -> None:
    """Write epochs.json from its epochs, each encoded already: encoding all of them after each epoch would add up."""
    folder.write(EPOCHS, "[\n" + ",\n".join(lines) + "\n]\n")
