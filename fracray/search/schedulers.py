"""Which trials are stopped early: rules over the curves of all trials, and the scheduler through which Tune asks them.

Ray's own schedulers keep their rungs in memory and know a trial by Tune's id: a resumed search would begin with empty
rungs, and judge a trial that is taken up at epoch 8 among trials at epoch 3. A rule here is told what the study's
journal holds, by the trial's number, so a search that was interrupted decides as one that was not.
"""

from bisect import insort
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from fracray.config import Config
from fracray.training.rungs import rungs

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController
    from ray.tune.experiment import Trial

FEWEST = 3  # trials that the median is taken of


class StoppingRule:
    """The rule that `search.scheduler` names, over what it is told of the trials, in whatever order they report.

    It is asked after each epoch but a trial's last, before it is told of that epoch. Values: higher is better. Of pasha
    it is what happens below the budget that all trials have at the time: see `pasha`. What trials are compared by is
    kept in order, so that an answer costs hardly more where there are many trials.
    """

    def __init__(self, config: Config) -> None:
        settings = config.search.scheduler
        assert settings.name != "auto"
        self._name, self._grace, self._factor = settings.name, settings.grace_epochs, settings.reduction_factor
        self._steps = rungs(config)
        self._ranked = defaultdict[tuple[int, int], list[float]](list)  # by bracket and epoch, ascending
        self._curves = defaultdict[int, list[float]](list)  # of the median rule: from the grace epochs on, by trial

    def told(self, number: int, epoch: int, value: float) -> None:
        """A trial's value after an epoch, each once, a trial's epochs in their order."""
        if self._name == "median" and epoch >= self._grace:
            curve = self._curves[number]
            curve.append(value)
            insort(self._ranked[0, epoch], float(np.mean(curve)))
        elif self._name in ("asha", "pasha", "hyperband") and epoch in self._steps:
            insort(self._ranked[self._bracket(number), epoch], value)

    def stops(self, number: int, epoch: int, value: float) -> bool:
        """Whether a trial stops after an epoch with this value."""
        bracket = self._bracket(number)
        others = self._ranked.get((bracket, epoch), [])
        if self._name == "median":
            return len(others) >= FEWEST and value < percentile(others, 50)
        # Asynchronous successive halving: not among the best 1/factor of those that have reported this epoch before.
        judged = epoch in self._steps[bracket:]
        return judged and bool(others) and value < percentile(others, (1 - 1 / self._factor) * 100)

    def _bracket(self, number: int) -> int:
        return bracket_of(number, len(self._steps), self._factor) if self._name == "hyperband" else 0


def percentile(ascending: Sequence[float], percent: float) -> float:
    """numpy.percentile to the bit, of values that are in order already."""
    at = percent / 100 * (len(ascending) - 1)
    place = min(int(at), len(ascending) - 1)
    low, high, part = ascending[place], ascending[min(place + 1, len(ascending) - 1)], at - place
    return high - (high - low) * (1 - part) if part >= 0.5 else low + (high - low) * part


def bracket_of(number: int, steps: int, factor: float) -> int:
    """The bracket of asynchronous Hyperband that a trial belongs to: it skips this many of the first rungs.

    Bracket 0 stops trials from the first rung on; a trial in the last one, number `steps`, is never stopped. The trials
    are dealt out in the proportions of Hyperband's brackets (Li et al. 2018, JMLR 18-185), evenly over their numbers.
    """
    order = _dealt(steps, factor)
    return order[number % len(order)]


@cache
def _dealt(steps: int, factor: float) -> tuple[int, ...]:
    """The brackets of as many trials as all brackets of one Hyperband take, each evenly spread."""
    sizes = np.array([np.ceil((steps + 1) / (left + 1) * factor**left) for left in range(steps, -1, -1)])
    total = int(sizes.sum())
    given, order = np.zeros(len(sizes)), []
    for place in range(1, total + 1):
        bracket = int(np.argmax(sizes * place / total - given))
        given[bracket] += 1
        order.append(bracket)
    return tuple(order)


class StudyScheduler(FIFOScheduler):
    """Ray Tune's scheduler of a search: runs trials in the order of the searcher, and stops those that it names."""

    def __init__(self, stops: Callable[[str, Mapping[str, Any]], bool]) -> None:
        """`stops`: whether the trial with this id of Tune stops after this result."""
        super().__init__()
        self._stops = stops

    def on_trial_result(self, tune_controller: "TuneController", trial: "Trial", result: dict[str, Any]) -> str:
        return TrialScheduler.STOP if self._stops(trial.trial_id, result) else TrialScheduler.CONTINUE
