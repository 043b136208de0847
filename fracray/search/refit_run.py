"""The steps of a refit, for its own command and for the end of a search: plan, train, compare, write the ensemble."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from fracray.data.prepare import Prepared, prepare
from fracray.data.splits.set_names import is_validation
from fracray.evaluation.report import say_validation
from fracray.runtime.console import counted
from fracray.runtime.efficiency import EfficiencyTracker
from fracray.runtime.run_folder import (
    BEST,
    ENVIRONMENT,
    REFIT,
    environment,
    next_steps,
    refit_number,
    say_changed,
    trial_folder,
    trial_name,
)
from fracray.runtime.storage import Folder
from fracray.search.doubtful import write_doubtful
from fracray.search.ensemble import build_ensemble
from fracray.search.fold_ensemble import FEW_SEEDS, RIVALS, build_of_folds
from fracray.search.launch import places_of, run_trials
from fracray.search.progress import SearchProgress
from fracray.search.refit import OF_FOLDS, Outcome, RefitPlan, make_plan, outcome, refit_config
from fracray.search.refit_report import gains, gains_over_folds, say_ensemble, say_gains, say_outcome
from fracray.search.refit_trials import RefitTrials
from fracray.search.results import config_table, keep_efficiency, say_few_compared
from fracray.search.space import SearchSpace
from fracray.search.study import JOURNAL, stored_study
from fracray.search.trials_table import TrialRow, best_rows, collect
from fracray.training.checkpoint import read_metadata
from fracray.training.job import make_job


@dataclass(frozen=True)
class RefitOptions:
    """How much is refitted: the `top` configurations, each with `seeds` seeds; within `seconds`, if they are given.

    Of a refit that is resumed, nothing is taken away: with a `top` of 0 its configurations are those that it has.
    members: what the ensemble may be made of, see `ensemble.build_ensemble` and `fold_ensemble.build_of_folds`; with
    None, as the plan says.
    """

    top: int
    seeds: int
    folds: bool = False
    members: str | None = None
    seconds: float | None = None


def searched_trials(space: SearchSpace, run: Folder) -> dict[int, TrialRow]:
    """The trials of a search by number; empty where none has finished an epoch."""
    if not run.exists(JOURNAL):
        return {}
    with stored_study(run) as study:
        rows = {} if study is None else collect(run, study, space.config.train.epochs)
    return rows if best_rows(rows.values(), space.config.search) else {}


def refit(
    space: SearchSpace,
    run: Folder,
    prepared: Prepared,
    options: RefitOptions,
    tracker: EfficiencyTracker,
    console: Console,
    images: np.ndarray | None = None,
    heard: Callable[[TrialRow], None] | None = None,
) -> tuple[bool, bool]:
    """Train what is missing, name the winner, and make the ensemble the run's best checkpoint.

    images: of the search's job, where they are in memory. heard: is called with every training that has changed.
    Returns whether all was trained, and whether the time budget was used up when the trainings ended. Where not all
    was, the ensemble is of the seeds that all configurations have, if there is one.
    """
    own, rows = run.sub(REFIT), searched_trials(space, run)
    if not rows:
        console.print("no trial has finished an epoch yet, so there is nothing to refit")
        return False, True
    before = RefitPlan.begun(own)
    plan = make_plan(space.config, rows, options.top, options.seeds, options.folds, before, options.members)
    config = refit_config(space.config, plan.folds)
    if config.data != space.config.data:
        prepared = prepare(config.data, console, manifest=prepared.manifest, shelf=run.around)
    if own.exists(ENVIRONMENT):
        say_changed(console, own)
    else:
        own.write_json(ENVIRONMENT, environment())
    plan.write(own)  # before the config: a refit that is taken up again knows by its plan whether it has folds
    job = make_job(config, own, prepared, images)
    trials = RefitTrials(plan, own, config)
    progress = SearchProgress(
        replace(space, config=config), own, trials, trials.budget, tracker, console, options.seconds, heard
    )
    if len(space.metrics) > 1:
        console.print(
            f"note: of the searched metrics only the first, {space.metrics[0]}, decides which configurations are "
            "refitted and which one wins",
            style="yellow",
            soft_wrap=True,
        )
    if trials.remaining:
        names = ", ".join(trial_name(number) for number in plan.configurations)
        console.print(
            f"\nrefitting {counted(len(plan.configurations), 'configuration')} ({names}) with "
            f"{counted(len(plan.seeds), 'seed')} each: {trials.remaining} of {counted(trials.budget, 'training')} "
            f"to run, {places_of(job)[1]} at a time, {counted(config.train.epochs, 'epoch')} each"
            f"{config.data.split.for_each_fold}; run folder {own}",
            soft_wrap=True,
        )
        run_trials(job, trials, progress, seconds=options.seconds)
    over = options.seconds is not None and progress.elapsed >= options.seconds
    found = outcome(plan, progress.rows, config.search)
    finished = not trials.remaining and not progress.unfinished()
    if found is None:
        console.print("\nno seed has been trained with every configuration yet, so there is no winner", soft_wrap=True)
        return finished, over
    say_outcome(console, plan, found, rows, config.search)
    _summarise(replace(space, config=config), run, prepared, found, plan.members, console)
    keep_efficiency(own, tracker, console)
    console.print(next_steps(run, BEST, config.data.source), soft_wrap=True)
    return finished, over


def _summarise(
    space: SearchSpace,
    run: Folder,
    prepared: Prepared,
    found: Outcome,
    wanted: str,
    console: Console,
) -> None:
    """Print the winner's gain and configuration, write the ensemble, and print it and its validation."""
    own, metric, winner, default = run.sub(REFIT), space.metrics[0], found.winner, found.default
    sets = [name for name in prepared.sets if is_validation(name)]
    with tempfile.TemporaryDirectory() as scratch:
        folders: dict[int, dict[str, Path]] = {}
        for one in found.ranked if wanted != OF_FOLDS else ():  # its models are in the states of the trainings
            for seed in found.seeds:
                number = refit_number(one.number, seed)
                folder = Path(scratch) / trial_name(number)
                trial_folder(own, number).download(BEST, folder)
                folders.setdefault(one.number, {})[folder.name] = folder
        if default is not None and winner is not default:
            if space.config.data.split.cross_validate:
                gained = gains_over_folds(own, found, space.config)
            else:
                ours, theirs = (list(folders[number].values()) for number in (winner.number, 0))
                gained = gains(ours, theirs, metric, sets)
            say_gains(console, gained)
            say_few_compared(console, prepared, metric)
        console.print("\nwinning configuration:")
        console.print(config_table(space, winner.leaves))
        target, config = Path(scratch) / "ensemble", space.config.with_leaves(winner.leaves, winner.name)
        if wanted == OF_FOLDS:
            chosen = build_of_folds(target, own, winner, config, prepared)
            choices, note = [chosen], FEW_SEEDS if len(found.seeds) == 1 else ""
        else:
            chosen, choices, note = build_ensemble(
                target,
                {name: folder for inside in folders.values() for name, folder in inside.items()},
                list(folders[winner.number]),
                config,
                winner.name,
                prepared,
                wanted,
                console,
            )
        of_fold = read_metadata(target).of_fold
        run.upload(target, BEST)
    say_ensemble(console, chosen, choices, note, space.config.search)
    console.print(f"the ensemble on validation{of_fold}:")
    if wanted == OF_FOLDS:
        prepared = prepared.over_folds()
        own.write_json(RIVALS, [one.as_dict() for one in prepared.baselines])
    say_validation(console, prepared, chosen.scored.metrics, config.train.operating_point)
    if space.config.data.split.cross_validate:
        write_doubtful(own, prepared, found, console)
