"""What `evaluate --json` wrote of the checkpoint of a report: its scores by set, and those under corruptions."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

from fracray.errors import InputError
from fracray.metrics import Interval
from fracray.training.card import CheckpointMetadata


@dataclass(frozen=True)
class Corrupted:
    """A corruption: its name, what it imitates, balanced errors and AUROCs by severity, and over all of them.

    mean: the balanced error over the severities; excess: that less the clean one.
    """

    name: str
    imitates: str
    errors: Mapping[int, float]
    mean: Interval
    excess: Interval
    auroc: float

    @property
    def hurts(self) -> bool:
        """Whether it clearly raises the balanced error."""
        return self.excess.low > 0


@dataclass(frozen=True)
class Evaluated:
    """An evaluation: its part, the scores of each set by name, and the corruptions, the worst first, if they were run.

    clean: the balanced error of the radiographs as they are.
    """

    part: str
    images: int
    scores: Mapping[str, Mapping[str, Interval]]
    clean: Interval | None = None
    corruptions: tuple[Corrupted, ...] = ()


def read_evaluated(file: str, card: CheckpointMetadata) -> Evaluated:
    """What `evaluate --json FILE` wrote; InputError where it is no such file, or of another checkpoint than this."""
    try:
        tree = json.loads(Path(file).expanduser().read_text(encoding="utf-8"))
        ours = [(one["trial"], one["epoch"], one["threshold"]) for one in tree["checkpoints"]]
        found = _read(tree)
    except OSError as error:
        raise InputError(
            f"--evaluated {file}: cannot be read: {error.strerror}; name what evaluate --json wrote"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"--evaluated {file}: not what evaluate --json writes; name such a file") from None
    if ours != [(card.trial, card.epoch, card.threshold)]:
        names = ", ".join(f"{trial} at epoch {epoch}" for trial, epoch, _ in ours)
        raise InputError(
            f"--evaluated {file}: is of {names or 'no checkpoint'}, and the report is of {card.trial} at epoch "
            f"{card.epoch}; evaluate that one, and name its file"
        )
    return found


def _read(tree: Mapping[str, Any]) -> Evaluated:
    scores = {tree["split"]: tree["scores"]} | tree["sets"]
    by_set = {name: {one: _interval(value) for one, value in each.items()} for name, each in scores.items()}
    found = Evaluated(tree["split"], int(tree["images"]), by_set)
    if "corruptions" not in tree:
        return found
    suite = tree["corruptions"]
    rows = [
        Corrupted(
            name,
            one["imitates"],
            {cell["severity"]: _interval(cell["balanced_error"]).value for cell in one["severities"]},
            _interval(one["mean"]),
            _interval(one["excess"]),
            _number(one["auroc"]),
        )
        for name, one in suite["corruptions"].items()
    ]
    rows.sort(key=lambda one: -one.excess.value)
    clean = _interval(suite["clean"]["balanced_error"])
    return Evaluated(found.part, found.images, found.scores, clean, tuple(rows))


def _interval(value: Mapping[str, Any]) -> Interval:
    return Interval(*(_number(value[name]) for name in ("value", "low", "high")))


def _number(value: float | None) -> float:
    return nan if value is None else float(value)
