"""The settings `search`: what is optimised, by which sampler and scheduler, on which share of the machines."""

from typing import Annotated, Literal

from pydantic import Field

from fracray.config.section import Section


class SamplerConfig(Section):
    """How the next configuration is chosen."""

    name: Literal["tpe", "gp", "random", "grid", "cmaes"] = Field(
        "tpe", description="sampler of Optuna; grid needs a finite number of values in every dimension"
    )
    seed: int = Field(0, ge=0, description="seed of the sampler, 0 or more")
    startup_trials: int = Field(
        8, ge=1, description="random trials before tpe, gp and cmaes start to model the results, 1 or more"
    )


class SchedulerConfig(Section):
    """How poor trials are stopped early."""

    name: Literal["asha", "median", "hyperband", "none"] = Field(
        "asha", description="rule by which Ray Tune stops trials early; none: every trial runs all epochs"
    )
    grace_epochs: int = Field(2, ge=1, description="epochs that every trial runs before it may be stopped, 1 or more")
    reduction_factor: Annotated[float, Field(gt=1)] = Field(
        3.0, description="of asha and hyperband: one of this many trials continues after each rung, above 1"
    )


class RefitConfig(Section):
    """What follows the search: its best configurations trained anew."""

    top: int = Field(
        0,
        ge=0,
        description="how many of the best configurations are trained anew, with the default one, at the end; 0: none",
    )
    seeds: int = Field(3, ge=1, description="trainings of each, with other seeds than the search's, 1 or more")


class SearchConfig(Section):
    """The search: what is optimised, with how many trials, on which share of the machines."""

    metric: str | tuple[str, ...] = Field(
        "val_accuracy", description="a reported metric, or a list of metrics for a Pareto front"
    )
    mode: Literal["max", "min"] = Field("max", description="max where a higher metric is better, min where a lower is")
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

    @property
    def metrics(self) -> tuple[str, ...]:
        """The searched metrics; the first one decides which trial and which epoch is best."""
        return (self.metric,) if isinstance(self.metric, str) else self.metric
