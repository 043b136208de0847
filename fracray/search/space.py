"""A search space: the config that every trial starts from, and Optuna distributions over leaves of its tree.

Knows nothing of files (`space_file.py` reads them) or of Ray.
"""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from fracray.config import Config, nearest
from fracray.errors import InputError


def check_metric(metric: str, reported: Sequence[str], where: str) -> None:
    """InputError unless every epoch reports this metric."""
    if metric not in reported:
        raise InputError(
            f"{where}: metric '{metric}' is not reported{nearest(metric, reported)}; reported are {_in_short(reported)}"
        )


def _in_short(reported: Sequence[str]) -> str:
    """'val_* and worst_val_*, where * is accuracy, ...': the sets times the metrics would fill a page."""
    metrics = [name.removeprefix("val_") for name in reported if name.startswith("val_")]
    starts = [name.removesuffix(metrics[0]) for name in reported if name.endswith(f"_{metrics[0]}")] if metrics else []
    starts = [start for start in starts if f"{start}{metrics[-1]}" in reported]
    return f"{', '.join(f'{start}*' for start in starts)}, where * is {', '.join(metrics)}"


@dataclass(frozen=True)
class Dimension:
    """One searched leaf: its distribution, and the values other leaves must have for it to be searched at all."""

    path: str
    distribution: BaseDistribution
    when: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    where: str = "space"  # file and line, for messages

    def active(self, leaves: Mapping[str, Any]) -> bool:
        return all(leaves[path] in allowed for path, allowed in self.when)

    @property
    def choices(self) -> tuple[Any, ...]:
        """All values of a categorical dimension, the two ends of a range."""
        spread = self.distribution
        if isinstance(spread, CategoricalDistribution):
            return tuple(spread.choices)
        assert isinstance(spread, FloatDistribution | IntDistribution)
        return spread.low, spread.high

    def grid(self) -> list[Any]:
        """Every value, for a grid; InputError for a continuous dimension."""
        spread = self.distribution
        if isinstance(spread, CategoricalDistribution):
            return list(spread.choices)
        if isinstance(spread, IntDistribution) and not spread.log:
            return list(range(spread.low, spread.high + 1, spread.step))
        if isinstance(spread, FloatDistribution) and spread.step is not None:
            count = round((spread.high - spread.low) / spread.step) + 1
            return [round(float(value), 12) for value in np.linspace(spread.low, spread.high, count)]
        raise InputError(
            f"{self.where}: {self.path}: a grid needs a finite number of values; "
            f"use {{categorical: [...]}} or give the range a step: {{float: [low, high], step: s}}"
        )


@dataclass(frozen=True)
class SearchSpace:
    """A resolved search: the config every trial starts from, and the dimensions along which trials differ."""

    config: Config
    dimensions: tuple[Dimension, ...]
    origin: str

    @property
    def metrics(self) -> tuple[str, ...]:
        metric = self.config.search.metric
        return (metric,) if isinstance(metric, str) else tuple(metric)

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """Ask Optuna for the leaves of one trial, conditions respected."""
        chosen: dict[str, Any] = {}
        leaves = self.config.leaves()
        for dimension in self.dimensions:
            if dimension.active({**leaves, **chosen}):
                chosen[dimension.path] = _ask(trial, dimension.path, dimension.distribution)
        return chosen

    def defaults(self) -> tuple[dict[str, Any], list[str]]:
        """The config's own values of the searched leaves, and the paths at which they lie outside the space."""
        leaves = self.config.leaves()
        values, outside = {}, []
        for dimension in self.dimensions:
            if dimension.active(leaves):
                values[dimension.path] = leaves[dimension.path]
                if not contains(dimension.distribution, leaves[dimension.path]):
                    outside.append(dimension.path)
        return values, outside

    def grid(self) -> dict[str, list[Any]]:
        """The values of every dimension, for a grid search; InputError where there is no finite grid."""
        for dimension in self.dimensions:
            if dimension.when:
                raise InputError(f"{dimension.where}: {dimension.path}: a grid takes no conditional dimensions")
        return {dimension.path: dimension.grid() for dimension in self.dimensions}

    @property
    def grid_points(self) -> int | None:
        """How many trials a grid search has at all, the default's included; None for the other samplers."""
        if self.config.search.sampler.name != "grid":
            return None
        return math.prod(len(values) for values in self.grid().values()) + bool(self.defaults()[1])

    def points(self) -> Iterator[dict[str, Any]]:
        """The points of a grid, in an order drawn by the sampler's seed."""
        grid = self.grid()
        shape = tuple(len(values) for values in grid.values())
        for index in np.random.default_rng(self.config.search.sampler.seed).permutation(math.prod(shape)):
            places = np.unravel_index(index, shape)
            yield {path: values[place] for (path, values), place in zip(grid.items(), places, strict=True)}

    def sampler(self, told: int = 0) -> optuna.samplers.BaseSampler:
        """Optuna's sampler of this search. A resumed search, with `told` trials in its study, draws other numbers."""
        settings = self.config.search.sampler
        seed = settings.seed + told
        if settings.name in ("random", "grid"):  # all points of a grid are in the queue: nothing is left to sample
            return optuna.samplers.RandomSampler(seed=seed)
        if settings.name == "cmaes":
            return optuna.samplers.CmaEsSampler(n_startup_trials=settings.startup_trials, seed=seed)
        with warnings.catch_warnings():  # `group` is marked experimental, and has been since 2021
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # group: conditional dimensions are modelled jointly too; constant_liar: running trials repel new ones
            return optuna.samplers.TPESampler(
                n_startup_trials=settings.startup_trials, multivariate=True, group=True, constant_liar=True, seed=seed
            )


def _ask(trial: optuna.Trial, path: str, spread: BaseDistribution) -> Any:
    if isinstance(spread, CategoricalDistribution):
        return trial.suggest_categorical(path, spread.choices)
    if isinstance(spread, IntDistribution):
        return trial.suggest_int(path, spread.low, spread.high, step=spread.step, log=spread.log)
    assert isinstance(spread, FloatDistribution)
    return trial.suggest_float(path, spread.low, spread.high, step=spread.step, log=spread.log)


def contains(distribution: BaseDistribution, value: Any) -> bool:
    """Whether a value lies in a distribution; never one of the wrong kind."""
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    if not isinstance(value, int | float):
        return False
    return bool(distribution._contains(distribution.to_internal_repr(value)))
