"""Which trials are stopped early: rules over the curves of all trials, and the scheduler through which Tune asks them.

Ray's own schedulers keep their rungs in memory and know a trial by Tune's id: a resumed search would begin with empty
rungs, and judge a trial that is taken up at epoch 8 among trials at epoch 3. A rule here is a pure function of what the
study's journal holds, by the trial's number, so a search that was interrupted decides as one that was not.
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from fracray.config import Config
from fracray.search.pasha import Curve
from fracray.training.rungs import rungs

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController
    from ray.tune.experiment import Trial

FEWEST = 3  # trials that the median is taken of

# Whether a trial stops after an epoch that it has just reported: its number, the epoch, and the curves of all trials as
# far as they are reported, its own included.
Rule = Callable[[int, int, Mapping[int, Curve]], bool]


def stopping_rule(config: Config) -> Rule:
    """The rule that `search.scheduler` names; it is asked after each epoch but a trial's last.

    Of pasha it is what happens below the budget that all trials have at the time: see `pasha`.
    """
    settings = config.search.scheduler
    steps = rungs(config)
    factor, grace = settings.reduction_factor, settings.grace_epochs

    def asha(number: int, epoch: int, curves: Mapping[int, Curve]) -> bool:
        return epoch in steps and _below_rung(number, epoch, curves, factor)

    def hyperband(number: int, epoch: int, curves: Mapping[int, Curve]) -> bool:
        bracket = bracket_of(number, len(steps), factor)
        if epoch not in steps[bracket:]:
            return False
        rivals = {other: curves[other] for other in curves if bracket_of(other, len(steps), factor) == bracket}
        return _below_rung(number, epoch, rivals, factor)

    def median(number: int, epoch: int, curves: Mapping[int, Curve]) -> bool:
        return epoch >= grace and _below_median(number, epoch, curves, grace)

    def none(number: int, epoch: int, curves: Mapping[int, Curve]) -> bool:
        return False

    return {"asha": asha, "pasha": asha, "hyperband": hyperband, "median": median, "none": none}[settings.name]


def _below_rung(number: int, epoch: int, curves: Mapping[int, Curve], factor: float) -> bool:
    """Asynchronous successive halving: not among the best 1/factor of those that have reported this epoch before."""
    others = [curve[epoch] for other, curve in curves.items() if other != number and epoch in curve]
    return bool(others) and bool(curves[number][epoch] < np.percentile(others, (1 - 1 / factor) * 100))


def _below_median(number: int, epoch: int, curves: Mapping[int, Curve], grace: int) -> bool:
    """The median stopping rule (Golovin et al. 2017, "Google Vizier"): worse than the median of the others' means.

    A mean is taken over the epochs from `grace` to `epoch`, of each trial that has come as far.
    """
    others = [curve for other, curve in curves.items() if other != number and epoch in curve]
    if len(others) < FEWEST:
        return False
    means = [np.mean([value for at, value in curve.items() if grace <= at <= epoch]) for curve in others]
    return bool(curves[number][epoch] < np.median(means))


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
