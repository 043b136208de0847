"""What a search found: the best configuration, its gain over the default, importances, cost, and the next commands.

Reads the run folder and prints; trains nothing.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from math import isnan, nan
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fracray.data.prepare import Prepared
from fracray.data.splits.set_names import is_validation
from fracray.errors import RunError
from fracray.evaluation.report import on_validation, say_few_groups, say_validation
from fracray.metric_names import METRICS, bare_metric, lower_is_better
from fracray.metrics import Interval, paired_gain
from fracray.metrics.seeds import seeded_gain
from fracray.runtime.console import counted, new_table, setting_cell, share_bar
from fracray.runtime.efficiency import WORDS, Efficiency, EfficiencyTracker
from fracray.runtime.run_folder import BEST, ensemble_card, next_steps, refit_command, trial_folder, trial_name
from fracray.runtime.storage import Folder
from fracray.search.constraints import verdict
from fracray.search.importance import FEWEST_TRIALS, Importances, importances
from fracray.search.judged import JUDGED_BY, JudgedSet, fold_metric, judged_folds, judged_set, read_folds, validated
from fracray.search.space import SearchSpace
from fracray.search.states import State
from fracray.search.study import epoch_budget, stored_study
from fracray.search.trials_table import TrialRow, best_row, best_rows, collect

EFFICIENCY = "efficiency.json"
OVER_DEFAULT = f"gain over the default configuration ({trial_name(0)})"
BESIDE = ("accuracy", "auroc")  # in which a gain is told too: see `told_gains`
EFFICIENCY_NOTE = {"CPU": "work in CPU time, waits in wall time", "GPU": "device time"}


def summarise(
    space: SearchSpace,
    run: Folder,
    prepared: Prepared,
    tracker: EfficiencyTracker,
    console: Console,
    refit_follows: bool = False,
) -> None:
    """Print the best configuration, its gain over the default with its interval, importances, and the next commands.

    refit_follows: the command refits what was found, so it need not say how to.
    """
    with stored_study(run) as study:
        assert study is not None, "a search begins its study before its first trial"
        rows = collect(run, study, space.config.train.epochs)
        found = importances(study)
        budget = epoch_budget(study, space.config)
        front = [frozen.number for frozen in study.best_trials] if len(space.metrics) > 1 else []
    metric, search = space.metrics[0], space.config.search
    sets = [name for name in prepared.sets if is_validation(name)]
    best = best_row(rows.values(), search)
    if best is None:
        if any(row.state in (State.FAILED, State.DIVERGED) for row in rows.values()):
            raise RunError(f"{run}: no trial succeeded; the reasons are above")
        console.print("no trial has finished an epoch yet")
        return
    if ensemble_card(run) is None:
        run.copy(f"trials/{best.name}/{BEST}", BEST)
    crossed = space.config.data.split.cross_validate
    gains = fold_gains(run, space, rows, best) if crossed else gains_over_default(run, space, rows, best, sets)
    ended = sum(row.state.finished for row in rows.values())
    full = sum(row.state is State.DONE for row in rows.values())
    reached = f"{best.name}, {metric} {best.best(metric):.4f} at its best epoch"
    if best.state.finished:
        console.print(f"\nbest of {counted(ended, 'finished trial')}: {reached}")
    else:
        epochs = f"{len(best.history)} of {counted(space.config.train.epochs, 'epoch')}"
        others = f"{counted(ended, 'other trial')} ended"
        console.print(f"\nbest so far: {reached}; it is not finished ({epochs}); {others}")
    if search.constraints:
        ranked = [(row.name, row.best) for row in best_rows(rows.values(), search)]
        words, any_does = verdict(ranked, search)
        console.print(f"constraints: {words}", style="" if any_does else "yellow", soft_wrap=True)
    if budget < space.config.train.epochs:
        console.print(
            f"pasha gave no trial more than {budget} of {counted(space.config.train.epochs, 'epoch')}; a refit trains "
            "the best ones for all",
            soft_wrap=True,
        )
    console.print("\nbest configuration:")
    console.print(config_table(space, best.leaves))
    over = f", each the mean over {space.config.data.split.rotations_in_words}" if crossed else ""
    _say_gains(console, best.number, gains, over)
    if gains:
        _say_unequal(console, rows[0], best)
        say_few_compared(console, prepared, metric)
    if len(space.metrics) > 1:
        where = " of the trials that satisfy the constraints" if search.constraints else ""
        console.print(f"\nPareto front{where}, each trial at its best epoch in the first metric:")
        console.print(_front_table(space, [rows[number] for number in front]) if front else "no trial is on it")
    if len(space.dimensions) > 1 and len(space.metrics) == 1:
        _say_importances(console, found, full)
    console.print(f"{best.name} {on_validation(space.config.data.split)}:")
    say_validation(console, prepared.over_folds(), best.history[-1].best, space.config.train.operating_point)
    keep_efficiency(run, tracker, console)
    if ensemble_card(run) is not None and not refit_follows:
        console.print(
            f"\nnote: {run.sub(BEST)} is the ensemble of this search's refit, and stays; what was found since is taken "
            f"into it by: {refit_command(run)} --top 3 --resume",
            soft_wrap=True,
        )
    console.print(next_steps(run, BEST, space.config.data.source), soft_wrap=True)


def told_gains(metric: str, sets: Sequence[str]) -> list[tuple[str, str]]:
    """In which validation set and bare metric a gain is told, where a search is by `metric`.

    A mean or worst over several sets has no images of its own: then the gain is told for each set. Beside it stands
    AUROC, as accuracy hardly tells models apart where most images are of one class; beside a metric that is better when
    lower, accuracy too.
    """
    bare = bare_metric(metric, sets)
    inside = [of for of in sets if metric == f"{of}_{bare}"] or sets
    return [(name, each) for each in (bare, *_beside(metric)) for name in inside]


def say_few_compared(console: Console, prepared: Prepared, metric: str) -> None:
    """Say where the images by which a gain is told are in too few groups; `metric`: the searched one."""
    if prepared.config.split.cross_validate:
        compared = {"val": validated(prepared)}
    else:
        sets = [name for name in prepared.sets if is_validation(name)]
        compared = {name: prepared.table.iloc[prepared.rows(name)] for name, _ in told_gains(metric, sets)}
    for name, rows in compared.items():
        where = "" if name == "val" else f" in {name}"
        say_few_groups(console, rows["group"].to_numpy(), rows["label"].to_numpy(), where)


def told_over_folds(metric: str) -> tuple[str, ...]:
    """The reported metrics in which a gain is told, where it is one of means over folds: see `told_gains`."""
    return (metric, *(f"val_{bare}" for bare in _beside(metric)))


def _beside(metric: str) -> tuple[str, ...]:
    names = BESIDE if lower_is_better(metric) else BESIDE[1:]
    return tuple(name for name in names if not metric.endswith(f"_{name}"))


def gains_over_default(
    run: Folder, space: SearchSpace, rows: Mapping[int, TrialRow], best: TrialRow, sets: Sequence[str]
) -> dict[str, Interval]:
    """How much better the best trial of a search is than the default one, by reported name.

    Empty where the default is the best, or has not finished. Not for means over folds: see `fold_gains`.
    """
    if best.number == 0 or 0 not in rows or not rows[0].state.finished:
        return {}
    with ExitStack() as held:
        winner, default = (
            held.enter_context(trial_folder(run, number).sub(BEST).local_folder(JUDGED_BY))
            for number in (best.number, 0)
        )
        return _gains(winner, default, space.metrics[0], sets)


def fold_gains(run: Folder, space: SearchSpace, rows: Mapping[int, TrialRow], best: TrialRow) -> dict[str, Interval]:
    """The same where a metric is the mean over folds, on the images that each fold's model did not see.

    Without an interval where the best has not finished, where the metric is not one of 'val', or where a trial kept no
    predictions of its folds.
    """
    if best.number == 0 or 0 not in rows or not rows[0].state.finished:
        return {}
    point = space.config.train.operating_point
    gains, tables = {}, [read_folds(trial_folder(run, number)) for number in (best.number, 0)]
    for name in told_over_folds(space.metrics[0]):
        gains[name] = Interval(best.best(name) - rows[0].best(name), nan, nan)
        bare = fold_metric(name)
        if bare is None or not best.state.finished:
            continue
        kept = [judged_folds(table, bare, point) for table in tables if table is not None]
        if len(kept) == len(tables):
            gains[name] = _gain(kept[0], kept[1], bare)
    return gains


def _gains(winner: Path, default: Path, metric: str, sets: Sequence[str]) -> dict[str, Interval]:
    """The winner's metrics minus the default's on the same validation images, by reported name: see `told_gains`."""
    return {
        f"{name}_{bare}": _gain(judged_set(winner, name, bare), judged_set(default, name, bare), bare)
        for name, bare in told_gains(metric, sets)
    }


def _gain(ours: JudgedSet, theirs: JudgedSet, bare: str) -> Interval:
    """The gain of one training over another in a bare metric; that of a loss has no interval."""
    assert (ours.images == theirs.images).all()
    if bare not in METRICS:
        return seeded_gain(ours.labels, ours.groups, [ours.as_run], [theirs.as_run], bare, ours.folds)
    return paired_gain(
        *(ours.labels, ours.told, ours.threshold, theirs.told, theirs.threshold, ours.groups, bare, ours.folds)
    )


def gain_words(name: str, gain: Interval) -> str:
    """A gain in a reported metric, larger where it is better: '+0.0123 val_accuracy' or 'val_loss lower by 0.0123'."""
    unknown = isnan(gain.low)
    if lower_is_better(name):
        return f"{name} lower by {0 - gain.value:.4f}" + ("" if unknown else f" [{-gain.high:.4f}, {-gain.low:.4f}]")
    return f"{gain.value:+.4f} {name}" + ("" if unknown else f" [{gain.low:+.4f}, {gain.high:+.4f}]")


def _say_gains(console: Console, number: int, gains: dict[str, Interval], over: str = "") -> None:
    if number == 0:
        console.print("the default configuration was not beaten")
    for name, gain in gains.items():
        console.print(f"{OVER_DEFAULT}: {gain_words(name, gain)}{over}", soft_wrap=True)
    if any(not isnan(gain.low) for gain in gains.values()):
        console.print(
            "the 95% interval holds what other groups of validation radiographs would change, and not what another "
            "training seed would: each configuration was trained once, and one configuration trained twice can "
            "differ by more than this interval",
            soft_wrap=True,
        )
    if gains:
        console.print("the best of many validation scores is optimistic: use the test split to judge it, as below")


def _say_unequal(console: Console, default: TrialRow, best: TrialRow) -> None:
    """Say it where the best trial had more epochs: after pasha's budget was raised, or in a run of an older version."""
    if len(default.history) < len(best.history):
        console.print(
            f"note: {default.name} had {counted(len(default.history), 'epoch')}, {best.name} had {len(best.history)}, "
            "which alone may be worth something; a refit trains both for all epochs",
            soft_wrap=True,
        )


def config_table(space: SearchSpace, leaves: Mapping[str, Any]) -> Table:
    """The searched settings of one configuration next to the default's."""
    table = new_table("setting", "best", "default")
    defaults = space.config.leaves()
    for dimension in space.dimensions:
        if dimension.path in leaves or not leaves:
            chosen = leaves.get(dimension.path, defaults[dimension.path])
            table.add_row(dimension.path, setting_cell(chosen), setting_cell(defaults[dimension.path]))
    return table


def _front_table(space: SearchSpace, front: Sequence[TrialRow]) -> Table:
    table = new_table("trial", *space.metrics)
    for row in front:
        table.add_row(row.name, *(f"{row.best(metric):.4f}" for metric in space.metrics))
    return table


def _say_importances(console: Console, found: Importances | None, full: int) -> None:
    if found is None:
        few = f"{full} trials ran all epochs, and at least {FEWEST_TRIALS} that differ are needed"
        console.print(f"\nimportance of the settings: {few}", soft_wrap=True)
        return
    first = found.shares[0]
    if not found.told_apart:
        console.print(
            f"\nimportance of the settings: {full} trials that ran all epochs do not tell it from chance. The largest "
            f"share is {first.share:.2f} ({first.path}); where no setting matters, the largest is up to "
            f"{found.strongest:.2f}",
            soft_wrap=True,
        )
        return
    console.print(
        f"\nimportance of each setting (random forest over the {full} trials that ran all "
        "epochs). By chance: up to how much a setting gets when the values of the trials change "
        "places at random",
        soft_wrap=True,
    )
    table = new_table("setting", "share", "by chance", "")
    for each in found.shares:
        bar = share_bar(each.share) if each.share > each.chance else "no more than chance"
        table.add_row(each.path, f"{each.share:.2f}", f"{each.chance:.2f}", bar)
    console.print(table)


def keep_efficiency(run: Folder, tracker: EfficiencyTracker, console: Console) -> None:
    """Write and print which share of the machine the command used until now; nothing before the first epoch."""
    efficiency = tracker.efficiency()
    if efficiency is not None:
        run.write_json(EFFICIENCY, efficiency.as_dict())
        _say_efficiency(console, efficiency)


def _say_efficiency(console: Console, efficiency: Efficiency) -> None:
    """Print the share of the machine that went into training and augmentation, and where the rest went."""
    console.print(
        f"efficiency {efficiency.value:.2f}: share of {efficiency.cores:.3g} {efficiency.unit}(s) for "
        f"{efficiency.wall:.0f} s that went into training and augmentation ({EFFICIENCY_NOTE[efficiency.unit]}):",
        soft_wrap=True,
    )
    if efficiency.first_epoch is not None:
        console.print(f"the first epoch began {efficiency.first_epoch:.1f} s after the command")
    table = new_table("", "share", "")
    for phase, share in efficiency.shares().items():
        table.add_row(WORDS[phase], f"{share:.3f}", share_bar(share))
    console.print(table)
