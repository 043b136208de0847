"""The epochs after which a search may stop a trial: the schedulers decide there, and a trial keeps its state there."""

import math

from fracray.config import Config


def rungs(config: Config) -> tuple[int, ...]:
    """The rungs of successive halving, epochs counted from 1: `grace_epochs` times the powers of `reduction_factor`.

    The last epoch is no rung. Where a rung is a fraction, the first epoch that reaches it is meant. Source: Li et al.
    2020, "A System for Massively Parallel Hyperparameter Tuning", arXiv 1810.05934.
    """
    settings, found = config.search.scheduler, []
    rung = float(settings.grace_epochs)
    while (epoch := math.ceil(rung)) < config.train.epochs:
        found.append(epoch)
        rung *= settings.reduction_factor
    return tuple(dict.fromkeys(found))


def stopping_epochs(config: Config) -> tuple[int, ...]:
    """All epochs after which the search's scheduler may stop a trial, before its last one."""
    settings = config.search.scheduler
    if settings.name in ("none", "auto"):  # auto is still there only where there is no search: see `search.auto`
        return ()
    if settings.name == "median":
        return tuple(range(settings.grace_epochs, config.train.epochs))
    return rungs(config)


def may_stop(config: Config, epoch: int) -> bool:
    """Whether the search's scheduler may stop a trial after this epoch (counted from 1), before its last one."""
    return epoch in stopping_epochs(config)
