"""Optuna's samplers for a search: what they draw for a trial depends on the seed, its number and the results so far."""

import warnings
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial
from threadpoolctl import threadpool_limits

from fracray.search.space import SearchSpace


def sampler(space: SearchSpace) -> BaseSampler:
    """Optuna's sampler of a search, which `auto` must have become one of: see `auto.resolved`."""
    settings = space.config.search.sampler
    assert settings.name != "auto"
    if settings.name == "cmaes":
        return _CmaEs(space)
    if settings.name == "gp":
        return _OnOneThread(settings.seed, lambda seed: _gp(settings.startup_trials, seed))
    if settings.name == "nsga2":
        return _Repeatable(settings.seed, lambda seed: _nsga2(settings.startup_trials, seed))
    if settings.name == "tpe":
        return _Repeatable(settings.seed, lambda seed: _tpe(settings.startup_trials, seed))
    return _Repeatable(settings.seed, RandomSampler)  # a grid's points are queued: nothing is left to sample


def _tpe(startup_trials: int, seed: int) -> BaseSampler:
    with warnings.catch_warnings():  # `group` is marked experimental, and has been since 2021
        warnings.simplefilter("ignore", ExperimentalWarning)
        # group: conditional dimensions are modelled jointly too; constant_liar: running trials repel new ones
        return TPESampler(n_startup_trials=startup_trials, multivariate=True, group=True, constant_liar=True, seed=seed)


def _gp(startup_trials: int, seed: int) -> BaseSampler:
    # It models the trials that ran all epochs alone: values of equal rungs. Settings with a condition are drawn apart.
    return GPSampler(n_startup_trials=startup_trials, seed=seed, warn_independent_sampling=False)


def _nsga2(startup_trials: int, seed: int) -> BaseSampler:
    # Its generations are in the study, so one that is made anew for each trial goes on where the last one was.
    return NSGAIISampler(population_size=max(2, startup_trials), seed=seed)


def _cmaes(startup_trials: int, seed: int) -> BaseSampler:
    with warnings.catch_warnings():  # `consider_pruned_trials` is marked experimental
        warnings.simplefilter("ignore", ExperimentalWarning)
        # Without the stopped trials, which are most, hardly a generation becomes complete; docs/search.md has figures.
        return CmaEsSampler(n_startup_trials=startup_trials, consider_pruned_trials=True, seed=seed)


class _Repeatable(BaseSampler):
    """A sampler that begins its random numbers anew for every trial, and for every setting that it draws alone.

    Optuna's own go on with one stream: what they draw depends on how many trials this process has asked for, so trials
    that are asked for in another order, or by a driver that resumes the search, would get other settings.
    """

    def __init__(self, seed: int, make: Callable[[int], BaseSampler]) -> None:
        self._seed, self._make = seed, make
        self._joint = make(seed)

    def _begin(self, trial: FrozenTrial, setting: str = "") -> BaseSampler:
        entropy = (self._seed, trial.number, zlib.crc32(setting.encode()))
        return self._make(int(np.random.SeedSequence(entropy).generate_state(1)[0]))

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        self._joint = self._begin(trial)
        return self._joint.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._joint.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        alone = self._begin(trial, param_name)
        return alone.sample_independent(study, trial, param_name, param_distribution)


class _OnOneThread(_Repeatable):
    """The same for what computes with Torch or BLAS: beside trials that have all cores, more threads only wait."""

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        with threadpool_limits(1):
            return super().sample_relative(study, trial, search_space)


class _CmaEs(_Repeatable):
    """CMA-ES over the ranges that every trial has; the other settings are drawn at random."""

    def __init__(self, space: SearchSpace) -> None:
        settings = space.config.search.sampler
        super().__init__(settings.seed, lambda seed: _cmaes(settings.startup_trials, seed))
        self._modelled = {
            dimension.path: dimension.distribution
            for dimension in space.dimensions
            if dimension.path not in space.unmodelled
        }

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        # Not Optuna's choice, the settings that all trials so far have in common: as soon as one trial lacks a setting
        # with a condition there are fewer, and from then on it would draw all settings at random.
        self._joint = self._begin(trial)
        return self._modelled
