"""How many epochs PASHA lets a trial run: two rungs at first, one more when the ranking of the top two is unstable.

Bohdal et al. 2023, "PASHA: Efficient HPO and NAS with Progressive Resource Allocation", ICLR. Below that budget its
trials are stopped as by ASHA. Here a trial that reaches the budget ends there and is not taken up again when the budget
is raised later: a scheduler of Tune's that goes by the journal only stops trials. Pure functions of the trials' curves.
"""

from collections.abc import Mapping

import numpy as np

from fracray.config import Config
from fracray.training.rungs import rungs

NOISY = 90  # percentile of the differences between trials that overtake each other again and again

# A trial's value at its best epoch so far, higher is better, by the epoch after which it was reported, from 1.
Curve = Mapping[int, float]


def first_budget(config: Config) -> int:
    """The epochs that a trial of a new search may run: with pasha up to the second rung, else all."""
    levels = _levels(config)
    return levels[min(1, len(levels) - 1)] if config.search.scheduler.name == "pasha" else config.train.epochs


def raised_budget(config: Config, epoch: int, curves: Mapping[int, Curve], budget: int) -> int:
    """The budget after a report of this epoch, which `curves` hold: the next rung, or all epochs after the last one.

    It is only asked at the top rung itself, and stays as it is while the ranking is stable.
    """
    if epoch != budget or budget == config.train.epochs:
        return budget
    levels = _levels(config)
    at = levels.index(budget)
    return levels[at + 1] if unstable(curves, levels[at - 1], budget) else budget


def _levels(config: Config) -> tuple[int, ...]:
    return (*rungs(config), config.train.epochs)


def unstable(curves: Mapping[int, Curve], below: int, top: int) -> bool:
    """Whether the trials of the top rung were ranked otherwise in the rung below, by more than noise.

    Soft ranking: the trial at each place of the top rung must have been, in the rung below, within `noise` of the trial
    that had this place there. So one trial alone is stable.
    """
    both = [number for number, curve in curves.items() if below in curve and top in curve]
    before, after = (
        sorted(both, key=lambda number, rung=rung: (-curves[number][rung], number))  # type: ignore[misc]
        for rung in (below, top)
    )
    if before == after:
        return False
    margin = noise(curves, below, top)
    return any(
        abs(curves[one][below] - curves[other][below]) > margin for one, other in zip(after, before, strict=True)
    )


def noise(curves: Mapping[int, Curve], below: int, top: int) -> float:
    """Which difference between two trials is noise: 0 while no two have overtaken each other there and back.

    Of all pairs that have come beyond the rung below: their difference at the last epoch that both have reached, at
    most `top`, where their order there was the same before, and the other one in between. Of these the 90th percentile.
    """
    beyond = [curve for curve in curves.values() if any(below < epoch <= top for epoch in curve)]
    values = np.full((len(beyond), top + 1), np.nan)  # by trial and epoch
    for row, curve in zip(values, beyond, strict=True):
        for epoch, value in curve.items():
            if epoch <= top:
                row[epoch] = value
    found: list[float] = []
    for at, one in enumerate(values[:-1]):
        ahead = np.sign(one - values[at + 1 :])  # nan where not both have a value
        both = ~np.isnan(ahead)
        last = top - both[:, ::-1].argmax(axis=1)
        rows = np.arange(len(ahead))
        here = ahead[rows, last][:, None]
        like, unlike = (ahead == here) & (here != 0), (ahead == -here) & (here != 0)
        first, turned = like.argmax(axis=1), top - unlike[:, ::-1].argmax(axis=1)
        counted = (last > below) & both.any(axis=1) & unlike.any(axis=1) & (first < turned)
        found += np.abs(one[last] - values[at + 1 + rows, last])[counted].tolist()
    return float(np.percentile(found, NOISY)) if found else 0.0
