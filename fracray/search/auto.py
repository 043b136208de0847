"""Which sampler and scheduler `auto` are: a rule over what is searched, by how many trials, at how many places.

The rule rests on what Optuna's samplers can model, on benchmarks/samplers.py and benchmarks/anytime.py; docs/search.md
has the figures.
Imports neither Optuna nor Ray.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from fracray.runtime.console import counted
from fracray.runtime.run_folder import CHOSEN
from fracray.search.space import Choices, SearchSpace

if TYPE_CHECKING:
    from rich.console import Console

SAMPLER, SCHEDULER = CHOSEN
FEW = 100  # trials up to which nsga2 has too few generations
MANY = 1000  # trials from which Optuna recommends CMA-ES
GP_TRIALS = range(32, 201)  # with 16 it was no better than tpe, and with each trial its model takes longer


def choose_sampler(space: SearchSpace, at_once: int) -> tuple[str, str]:
    """The name of the sampler for a search with `at_once` trials at a time, and why, as the end of a sentence."""
    search, dimensions = space.config.search, space.dimensions
    trials, startup = search.trials, search.sampler.startup_trials
    conditional = any(dimension.when for dimension in dimensions)
    choices = any(isinstance(dimension.values, Choices) for dimension in dimensions)
    if trials <= max(startup, 2 * at_once):
        begun = f"startup_trials is {startup} and {counted(at_once, 'trial')} run at a time"
        return (
            "random",
            f"of {counted(trials, 'trial')} hardly any begins after there is something to learn from: {begun}",
        )
    if len(search.metrics) > 1:
        if trials > FEW and not conditional:
            return "nsga2", f"{len(search.metrics)} metrics and more than {FEW} trials, enough for generations"
        return (
            "tpe",
            f"{len(search.metrics)} metrics, and {'settings with a condition' if conditional else 'few trials'}",
        )
    if conditional:
        return "tpe", "it models settings with a condition"
    if trials >= MANY and not choices and not search.constraints:
        return "cmaes", f"ranges alone, one metric, no constraint, and at least {MANY} trials"
    if search.scheduler.name not in ("auto", "none"):
        return "tpe", f"it learns from the trials that {search.scheduler.name} stops early too"
    if trials in GP_TRIALS and not choices and not search.constraints:
        least, most = GP_TRIALS[0], GP_TRIALS[-1]
        return "gp", f"ranges alone, one metric, no constraint, {least} to {most} trials, and none is stopped early"
    return "tpe", "one metric, and a number of trials, choices or constraints that gp and cmaes are not for"


def _choose_scheduler(space: SearchSpace) -> tuple[str, str]:
    """The same of the scheduler, of a space whose sampler is no longer `auto`."""
    search = space.config.search
    if len(search.metrics) > 1:
        return "none", "early stopping ranks trials by one metric"
    if search.sampler.name in ("gp", "nsga2"):
        return "none", f"{search.sampler.name} learns only from trials that ran all epochs"
    return "asha", "it spends the epochs on the trials that begin well"


def resolved(space: SearchSpace, at_once: int, console: "Console") -> SearchSpace:
    """The space with the sampler and scheduler that `auto` are, which is printed; others stay as they are."""
    search = space.config.search
    if search.sampler.name == "auto":
        name, why = choose_sampler(space, at_once)
        console.print(f"sampler: auto is {name} here: {why}", soft_wrap=True)
        space = replace(space, config=space.config.with_leaves({SAMPLER: name}))
    if search.scheduler.name == "auto":
        name, why = _choose_scheduler(space)
        console.print(f"scheduler: auto is {name} here: {why}", soft_wrap=True)
        space = replace(space, config=space.config.with_leaves({SCHEDULER: name}))
    return space
