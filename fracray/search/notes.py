"""What a sampler, a scheduler and constraints make of this very space, said before the search begins."""

from collections.abc import Iterator

from rich.console import Console

from fracray.runtime.console import counted
from fracray.search.constraints import USED_BY, in_words
from fracray.search.pasha import first_budget
from fracray.search.space import SearchSpace
from fracray.training.rungs import stopping_epochs


def say_notes(space: SearchSpace, console: Console) -> None:
    """Print what a user may not expect of the search's settings."""
    for line in notes(space):
        console.print(line, soft_wrap=True)


def notes(space: SearchSpace) -> Iterator[str]:
    config, search = space.config, space.config.search
    scheduler, epochs = search.scheduler, counted(config.train.epochs, "epoch")
    if scheduler.name != "none" and not stopping_epochs(config):
        grace = scheduler.grace_epochs
        yield f"note: {scheduler.name} can stop no trial: grace_epochs is {grace}, and a trial has {epochs}"
    elif scheduler.name == "pasha":
        first = first_budget(config)
        if first < config.train.epochs:
            yield f"pasha: at first no trial gets more than {first} of {epochs}"
        else:
            yield (
                f"note: pasha is the same as asha here: the second rung is the last of {epochs}; more epochs, or lower "
                "grace_epochs or reduction_factor, would give it rungs to begin with"
            )
    if space.unmodelled:
        yield f"note: cmaes models ranges without a condition; {', '.join(space.unmodelled)}: drawn at random"
    if search.refit.over_folds and not search.refit.top:
        yield "note: search.refit.top is 0, so nothing is refitted, with folds or without; --refit does it at the end"
    if search.constraints:
        yield f"constraints: {in_words(search)}, at a trial's best epoch"
        if search.sampler.name not in USED_BY:
            yield (
                f"note: {search.sampler.name} does not look for trials that satisfy them; they decide which trial is "
                f"best all the same ({', '.join(USED_BY)} look for them)"
            )
