"""The messages between the searcher, a trial's process and the progress table; a dict only where Ray carries them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

from fracray.errors import InputError
from fracray.runtime.timeline import Stretch
from fracray.training.epochs import AT_BEST, EpochResult

MISTAKES = (InputError, ValueError)  # what a trial raises that cannot run in any process, but for OutOfReachError

_NUMBER, _LEAVES = "number", "leaves"
_RAN, _FAILURE, _STARTED = "ran", "failure", "started"


@dataclass(frozen=True)
class Suggestion:
    """What the searcher suggests: a trial by its number in the study, and its settings by dotted path."""

    number: int
    leaves: Mapping[str, Any]

    def to_tune(self) -> dict[str, Any]:
        return {_NUMBER: self.number, _LEAVES: dict(self.leaves)}

    @classmethod
    def from_tune(cls, config: Mapping[str, Any]) -> "Suggestion":
        return cls(config[_NUMBER], config[_LEAVES])


@dataclass(frozen=True)
class TrialReport:
    """What a trial's process reports: an epoch's result, or why the trial cannot run in any process.

    ran: False for an epoch that a resumed trial only reports again. done: no epoch follows. started: how the process
    came to its first epoch, in its first report.
    """

    result: EpochResult | None
    ran: bool = True
    failure: str = ""
    done: bool = False
    started: tuple[Stretch, ...] = ()

    def reason(self, metrics: Sequence[str]) -> str:
        """Why a trial that ended with this report failed, given the searched metrics; empty if it did not."""
        if self.result is None:
            return self.failure
        if self.result.diverged:
            return "its loss became infinite or NaN; lower train.lr, or clip the gradient with train.clip_norm"
        undefined = [metric for metric in metrics if not math.isfinite(self.result.value(metric))]
        return f"{undefined[0]} has no value in any epoch" if undefined else ""

    @classmethod
    def failed(cls, mistake: Exception) -> "TrialReport":
        """The report of a trial that cannot run in any process."""
        return cls(None, failure=" ".join(str(mistake).split()), done=True)

    def to_tune(self, metrics: Sequence[str]) -> dict[str, Any]:
        """As Tune carries it. A trial that cannot run has nan for the searched metrics, which Tune asks for."""
        if self.result is None:
            return {**{searched(metric): math.nan for metric in metrics}, _FAILURE: self.failure, "done": True}
        flat = self.result.to_json()
        report = {**flat, "training_iteration": self.result.epoch, _RAN: self.ran, "done": self.done}
        return {**report, _STARTED: [astuple(one) for one in self.started]} if self.started else report

    @classmethod
    def from_tune(cls, result: Mapping[str, Any]) -> "TrialReport":
        """Inverse of `to_tune`; Ray's own entries are ignored."""
        if _FAILURE in result:
            return cls(None, failure=result[_FAILURE], done=True)
        if "epoch" not in result:  # Tune ended the trial before its first report
            return cls(None)
        started = tuple(Stretch(*one) for one in result.get(_STARTED, ()))
        return cls(EpochResult.from_json(result), result[_RAN], done=bool(result.get("done", False)), started=started)


def searched(metric: str) -> str:
    """The name under which Tune finds a metric: its value at the trial's best epoch so far."""
    return f"{AT_BEST}{metric}"
