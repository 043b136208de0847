"""A search space: the config that every trial starts from, and the settings in which trials differ.

Knows nothing of files (`space_file.py` reads them) or of Ray, and loads Optuna only when a search begins.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fracray.config import Config
from fracray.errors import InputError, nearest

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution


def check_metric(metric: str, reported: Sequence[str], where: str) -> None:
    """InputError unless every epoch reports this metric."""
    if metric not in reported:
        raise InputError(
            f"{where}: metric '{metric}' is not reported{nearest(metric, reported)}; reported are {_in_short(reported)}"
        )


def _in_short(reported: Sequence[str]) -> str:
    """'val_* and worst_val_*, where * is accuracy, ...': every set with every metric would fill a page."""
    metrics = [name.removeprefix("val_") for name in reported if name.startswith("val_")]
    starts = [name.removesuffix(metrics[0]) for name in reported if name.endswith(f"_{metrics[0]}")] if metrics else []
    starts = [start for start in starts if f"{start}{metrics[-1]}" in reported]
    return f"{', '.join(f'{start}*' for start in starts)}, where * is {', '.join(metrics)}"


@dataclass(frozen=True)
class Choices:
    """The values of a categorical setting."""

    values: tuple[Any, ...]

    @property
    def distribution(self) -> "BaseDistribution":
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.values)

    def ask(self, trial: "optuna.Trial", path: str) -> Any:
        return trial.suggest_categorical(path, self.values)

    def contains(self, value: Any) -> bool:
        return value in self.values

    def grid(self) -> list[Any] | None:
        """Every value; None if there are infinitely many."""
        return list(self.values)

    def __str__(self) -> str:
        return str(list(self.values))


@dataclass(frozen=True)
class Range:
    """The values from `low` to `high`, both included: whole numbers or floats, in steps, or on a logarithmic scale."""

    low: float
    high: float
    step: float | None = None
    log: bool = False
    whole: bool = False

    @property
    def distribution(self) -> "BaseDistribution":
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(float(self.low), float(self.high), log=self.log, step=self.step)

    def ask(self, trial: "optuna.Trial", path: str) -> Any:
        if self.whole:
            return trial.suggest_int(path, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(path, float(self.low), float(self.high), step=self.step, log=self.log)

    def contains(self, value: Any) -> bool:
        """Whether a value lies in the range; False for one of another kind."""
        if not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        step = 1 if self.whole and self.step is None else self.step
        steps = (value - self.low) / step if step else 0.0
        return abs(steps - round(steps)) < 1e-8

    def grid(self) -> list[Any] | None:
        """Every value; None if there are infinitely many."""
        if self.whole and not self.log:
            return list(range(int(self.low), int(self.high) + 1, int(self.step or 1)))
        if not self.whole and self.step is not None:
            count = round((self.high - self.low) / self.step)
            return [round(self.low + place * (self.high - self.low) / count, 12) for place in range(count + 1)]
        return None

    def __str__(self) -> str:
        return f"[{self.low}, {self.high}]" + (f" in steps of {self.step}" if self.step not in (None, 1) else "")


@dataclass(frozen=True)
class Dimension:
    """One searched setting: its values, and the values that other settings must have for it to be searched at all."""

    path: str
    values: Choices | Range
    when: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    where: str = "space"  # file and line, for messages

    @property
    def distribution(self) -> "BaseDistribution":
        """The values as Optuna has them."""
        return self.values.distribution

    def active(self, leaves: Mapping[str, Any]) -> bool:
        return all(leaves[path] in allowed for path, allowed in self.when)

    @property
    def choices(self) -> tuple[Any, ...]:
        """All values of a categorical dimension, the two ends of a range."""
        return self.values.values if isinstance(self.values, Choices) else (self.values.low, self.values.high)

    def __str__(self) -> str:
        """As in a file: 'log_float [0.0001, 0.01]', with its condition."""
        scale = "log_" if isinstance(self.values, Range) and self.values.log else ""
        kind = "categorical" if isinstance(self.values, Choices) else "int" if self.values.whole else "float"
        when = ", ".join(f"{path} in {list(allowed)}" for path, allowed in self.when)
        return f"{scale}{kind} {self.values}{f' when {when}' if when else ''}"

    def grid(self) -> list[Any]:
        """Every value, for a grid; InputError for a continuous dimension."""
        found = self.values.grid()
        if found is None:
            raise InputError(
                f"{self.where}: {self.path}: a grid needs a finite number of values; "
                f"use {{categorical: [...]}} or give the range a step: {{float: [low, high], step: s}}"
            )
        return found


@dataclass(frozen=True)
class SearchSpace:
    """A resolved search: the config that every trial starts from, and the dimensions in which trials differ."""

    config: Config
    dimensions: tuple[Dimension, ...]
    origin: str

    @property
    def metrics(self) -> tuple[str, ...]:
        return self.config.search.metrics

    @property
    def unmodelled(self) -> tuple[str, ...]:
        """The settings that are drawn at random whatever the results: CMA-ES models ranges that every trial has."""
        if self.config.search.sampler.name != "cmaes":
            return ()
        return tuple(
            dimension.path for dimension in self.dimensions if isinstance(dimension.values, Choices) or dimension.when
        )

    def described(self) -> dict[str, str]:
        """What is searched, as text by path: two spaces with equal descriptions are the same."""
        return {f"space.{dimension.path}": str(dimension) for dimension in self.dimensions}

    def suggest(self, trial: "optuna.Trial") -> dict[str, Any]:
        """Ask Optuna for the settings of one trial; conditions are respected."""
        return self._choose(lambda dimension: dimension.values.ask(trial, dimension.path))

    def defaults(self) -> tuple[dict[str, Any], list[str]]:
        """The config's own values of the searched settings, and the paths at which they lie outside the space."""
        return self.settings_of({})

    def settings_of(self, leaves: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """The values that `leaves` give the searched settings, else the config's own, and the paths outside the space.

        A setting whose condition these values do not meet is left out.
        """
        known = {**self.config.leaves(), **leaves}
        values = self._choose(lambda dimension: known[dimension.path])
        allowed = {dimension.path: dimension.values for dimension in self.dimensions}
        return values, [path for path, value in values.items() if not allowed[path].contains(value)]

    def _choose(self, value_of: Callable[[Dimension], Any]) -> dict[str, Any]:
        """The values by path, in the order of the dimensions, of all that are active given those before them."""
        chosen: dict[str, Any] = {}
        leaves = self.config.leaves()
        for dimension in self.dimensions:
            if dimension.active({**leaves, **chosen}):
                chosen[dimension.path] = value_of(dimension)
        return chosen

    def grid(self) -> dict[str, list[Any]]:
        """The values of every dimension, for a grid search; InputError where there is no finite grid."""
        for dimension in self.dimensions:
            if dimension.when:
                raise InputError(f"{dimension.where}: {dimension.path}: a grid takes no conditional dimensions")
        return {dimension.path: dimension.grid() for dimension in self.dimensions}

    @property
    def grid_points(self) -> int | None:
        """The number of trials of a grid search, the default configuration included; None for the other samplers."""
        if self.config.search.sampler.name != "grid":
            return None
        return math.prod(len(values) for values in self.grid().values()) + bool(self.defaults()[1])

    def points(self) -> Iterator[dict[str, Any]]:
        """The points of a grid, in an order drawn by the sampler's seed."""
        import numpy as np

        grid = self.grid()
        shape = tuple(len(values) for values in grid.values())
        for index in np.random.default_rng(self.config.search.sampler.seed).permutation(math.prod(shape)):
            places = np.unravel_index(index, shape)
            yield {path: values[place] for (path, values), place in zip(grid.items(), places, strict=True)}
