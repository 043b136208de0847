"""The settings `search`: what is optimised, by which sampler and scheduler, on which share of the machines."""

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, PlainSerializer, field_validator, model_validator

from fracray.config.extra_transforms import FrozenMap
from fracray.config.section import Section


class SamplerConfig(Section):
    """How the next configuration is chosen."""

    name: Literal["auto", "tpe", "gp", "nsga2", "cmaes", "random", "grid"] = Field(
        "auto",
        description="sampler of Optuna; grid needs a finite number of values in every dimension; auto: chosen by the "
        "space and the number of trials when the search begins",
    )
    seed: int = Field(0, ge=0, description="seed of the sampler, 0 or more")
    startup_trials: int = Field(
        8,
        ge=1,
        description="random trials before tpe, gp and cmaes start to model the results, and the size of nsga2's "
        "generations, 1 or more",
    )


class SchedulerConfig(Section):
    """How poor trials are stopped early."""

    name: Literal["auto", "asha", "pasha", "median", "hyperband", "none"] = Field(
        "auto",
        description="rule by which Ray Tune stops trials early; none: every trial runs all epochs; auto: none with gp, "
        "nsga2 and several metrics, else asha",
    )
    grace_epochs: int = Field(2, ge=1, description="epochs that every trial runs before it may be stopped, 1 or more")
    reduction_factor: Annotated[float, Field(gt=1)] = Field(
        3.0, description="of asha, pasha and hyperband: one of this many trials continues after each rung, above 1"
    )


class BoundConfig(Section):
    """What a reported metric must be at a trial's best epoch."""

    at_least: float | None = Field(None, description="the lowest value that satisfies it; null: none")
    at_most: float | None = Field(None, description="the highest value that satisfies it; null: none")

    @model_validator(mode="before")
    @classmethod
    def _of_ends(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or not set(value) or not set(value) <= set(cls.model_fields):
            raise ValueError("a constraint is {at_least: number}, {at_most: number} or both, and nothing else")
        return value

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.at_least is None and self.at_most is None:
            raise ValueError("a constraint needs at_least or at_most, for example {at_least: 0.8}")
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(f"no value is at least {self.at_least:g} and at most {self.at_most:g}")
        return self

    def excess(self, value: float) -> float:
        """How far a value is outside, above 0; 0 or below where it satisfies the bound. nan, no value, counts as 1."""
        if math.isnan(value):
            return 1.0
        low = -math.inf if self.at_least is None else self.at_least - value
        high = -math.inf if self.at_most is None else value - self.at_most
        return max(low, high)

    def __str__(self) -> str:
        """'at least 0.8'."""
        ends = (("at least", self.at_least), ("at most", self.at_most))
        return " and ".join(f"{words} {end:g}" for words, end in ends if end is not None)


def _dumped(constraints: Mapping[str, BoundConfig]) -> dict[str, dict[str, float | None]]:
    return {metric: bound.model_dump() for metric, bound in constraints.items()}


Constraints = Annotated[Mapping[str, BoundConfig], AfterValidator(FrozenMap), PlainSerializer(_dumped)]


class RefitConfig(Section):
    """What follows the search: its best configurations trained anew."""

    top: int = Field(
        0,
        ge=0,
        description="how many of the best configurations are trained anew, with the default one, at the end; 0: none",
    )
    seeds: int = Field(3, ge=1, description="trainings of each, with other seeds than the search's, 1 or more")
    folds: bool = Field(
        False,
        description="compares means over the folds of a kfold split: each training has a model for each fold but test",
    )
    members: Literal["best", "winner", "all", "folds"] | None = Field(
        None,
        description="of the ensemble: the winner's trainings, all, or whichever is best on validation; folds: the "
        "winner's models of all folds, which sets search.refit.folds; null: best, or what a resumed refit has",
    )

    @property
    def over_folds(self) -> bool:
        """Whether each training has a model for each fold."""
        return self.folds or self.members == "folds"


class SearchConfig(Section):
    """The search: what is optimised, with how many trials, on which share of the machines."""

    metric: str | tuple[str, ...] = Field(
        "val_accuracy", description="a reported metric, or a list of metrics for a Pareto front"
    )
    mode: Literal["max", "min"] = Field("max", description="max where a higher metric is better, min where a lower is")
    constraints: Constraints = Field(
        FrozenMap(),
        description="what reported metrics must be at a trial's best epoch: `{val_sensitivity: {at_least: 0.8}}`, and "
        "`at_most`; a trial that breaks one is never the best where another satisfies all",
    )
    trials: int = Field(16, ge=1, description="number of trials, that of the default configuration included, 1 or more")
    sampler: SamplerConfig = SamplerConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    warm_start: str | None = Field(
        None, description="run of an earlier search, whose best configurations follow the default one; null: none"
    )
    refit: RefitConfig = RefitConfig()
    concurrent: int | None = Field(
        None, ge=1, description="largest number of trials at the same time, 1 or more; null: as many as fit"
    )
    workers_per_trial: int = Field(1, ge=1, description="workers that train one trial together, 1 or more")
    cpus_per_trial: Annotated[float, Field(gt=0)] = Field(1.0, description="CPUs of each worker of a trial, above 0")
    gpus_per_trial: Annotated[float, Field(ge=0)] | None = Field(
        None,
        description="GPUs of each worker of a trial, 0 or more; 0.25: four share a GPU; 0: trains on CPUs; null: one "
        "where the cluster has that many, else 0",
    )
    time_budget: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="seconds after which no epoch starts, above 0; null: no limit; with search.refit, those of the "
        "search and of the refit together",
    )

    @field_validator("sampler", "scheduler", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        """Accepts `sampler: gp` for `sampler: {name: gp}`."""
        return {"name": value} if isinstance(value, str) else value

    @field_validator("constraints", mode="before")
    @classmethod
    def _by_metric(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise ValueError("expected a mapping from a metric to its bound: {val_sensitivity: {at_least: 0.8}}")
        return value

    def broken(self, value: Callable[[str], float]) -> dict[str, float]:
        """How far each constraint that does not hold is missed, by metric; `value` gives a reported metric."""
        excess = {metric: bound.excess(value(metric)) for metric, bound in self.constraints.items()}
        return {metric: by for metric, by in excess.items() if by > 0}

    @property
    def metrics(self) -> tuple[str, ...]:
        """The searched metrics; the first one decides which trial and which epoch is best."""
        return (self.metric,) if isinstance(self.metric, str) else self.metric
