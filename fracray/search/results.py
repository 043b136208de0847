"""What a search found: the best configuration, its gain over the default, importances, cost, and the next commands.

Reads the run folder and prints; trains nothing.
"""

import tempfile
from collections.abc import Sequence
from math import isnan
from pathlib import Path

import optuna
from rich.console import Console
from rich.table import Table

from fracray.data.manifest import in_set
from fracray.data.prepare import Prepared
from fracray.data.splits.set_names import is_validation
from fracray.errors import RunError
from fracray.evaluation.report import say_few_groups, say_validation
from fracray.metric_names import METRICS, bare_metric
from fracray.metrics import Interval, cross_fitted, paired_gain
from fracray.runtime.console import counted, new_table, setting_cell, share_bar
from fracray.runtime.efficiency import WORDS, Efficiency, EfficiencyTracker
from fracray.runtime.run_folder import BEST, next_steps, trial_folder, trial_name
from fracray.runtime.storage import Folder
from fracray.search.importance import FEWEST_TRIALS, Importances, importances
from fracray.search.space import SearchSpace
from fracray.search.study import local_journal, open_study
from fracray.search.trials_table import State, TrialRow, best_row, collect
from fracray.training.checkpoint import read_metadata, read_predictions

EFFICIENCY = "efficiency.json"
EFFICIENCY_NOTE = {"CPU": "work in CPU time, waits in wall time", "GPU": "device time"}


def summarise(
    space: SearchSpace, run: Folder, prepared: Prepared, tracker: EfficiencyTracker, console: Console
) -> None:
    """Print the best configuration, its gain over the default with its interval, importances, and the next commands."""
    with local_journal(run) as journal:
        study = open_study(journal, space)
        rows = collect(run, study, space.config.train.epochs)
        found = importances(study)
    metric, mode = space.metrics[0], space.config.search.mode
    sets = [name for name in prepared.sets if is_validation(name)]
    best = best_row(rows.values(), metric, mode)
    if best is None:
        if any(row.state in (State.FAILED, State.DIVERGED) for row in rows.values()):
            raise RunError(f"{run}: no trial succeeded; the reasons are above")
        console.print("no trial has finished an epoch yet")
        return
    with tempfile.TemporaryDirectory() as scratch:
        winner = Path(scratch) / "best"
        trial_folder(run, best.number).download(BEST, winner)
        run.upload(winner, BEST)
        default = Path(scratch) / "default"
        gains: dict[str, Interval] = {}
        crossed = space.config.data.split.cross_validate
        if 0 in rows and rows[0].state.finished and best.number != 0 and not crossed:
            trial_folder(run, 0).download(BEST, default)
            gains = _gains(winner, default, metric, sets)
    ended = sum(row.state.finished for row in rows.values())
    full = sum(row.state is State.DONE for row in rows.values())
    reached = f"{best.name}, {metric} {best.best(metric):.4f} at its best epoch"
    if best.state.finished:
        console.print(f"\nbest of {ended} finished trials: {reached}")
    else:
        epochs = f"{len(best.history)} of {counted(space.config.train.epochs, 'epoch')}"
        console.print(f"\nbest so far: {reached}; it is not finished ({epochs}); {ended} other trials are")
    console.print("\nbest configuration:")
    console.print(_config_table(space, best))
    _say_gains(console, best.number, gains)
    if crossed and best.number != 0 and 0 in rows:
        console.print(
            f"gain over the default configuration ({trial_name(0)}): {best.best(metric) - rows[0].best(metric):+.4f} "
            f"{metric}, each the mean over {space.config.data.split.rotations} folds",
            soft_wrap=True,
        )
    if gains:
        inside = prepared.table.iloc[prepared.rows("val")]
        say_few_groups(console, inside["group"].to_numpy(), inside["label"].to_numpy())
    if len(space.metrics) > 1:
        console.print("\nPareto front, each trial at its best epoch in the first metric:")
        console.print(_front_table(space, study, rows))
    if len(space.dimensions) > 1 and len(space.metrics) == 1:
        _say_importances(console, found, full)
    folds = f", the mean over {space.config.data.split.rotations} folds; counts are of the first" if crossed else ""
    console.print(f"{best.name} on validation{folds}:")
    say_validation(console, prepared, best.history[-1].best)
    efficiency = tracker.efficiency()
    if efficiency is not None:
        run.write_json(EFFICIENCY, efficiency.as_dict())
        _say_efficiency(console, efficiency)
    console.print(next_steps(run, BEST, space.config.data.source), soft_wrap=True)


def _gains(winner: Path, default: Path, metric: str, sets: Sequence[str]) -> dict[str, Interval]:
    """The winner's metric minus the default's on the same validation images, by reported name.

    A mean or worst over several sets has no images of its own: then the gain is given for each set. Empty for a loss.
    On 'val', to which the calibrations were fitted, Brier score and calibration error are those of cross-fitted
    probabilities, as every epoch reports them.
    """
    bare = bare_metric(metric, sets)
    if bare not in METRICS:
        return {}
    ours, theirs = read_predictions(winner), read_predictions(default)
    assert ours is not None, "a trial's checkpoint always carries its validation predictions"
    assert theirs is not None
    assert (ours["image_id"] == theirs["image_id"]).all()
    metadata, base = read_metadata(winner), read_metadata(default)
    gains = {}
    for name in [of for of in sets if metric == f"{of}_{bare}"] or sets:
        inside = in_set(ours["split"], name)
        labels, groups = ours["label"].to_numpy()[inside], ours["group"].to_numpy()[inside]
        fitted_to_these = name == "val" and bare in ("brier", "ece")
        ours_told, theirs_told = (
            cross_fitted(labels, logits, groups) if fitted_to_these else calibration.apply(logits)
            for logits, calibration in (
                (ours["logit"].to_numpy()[inside], metadata.calibration),
                (theirs["logit"].to_numpy()[inside], base.calibration),
            )
        )
        gains[f"{name}_{bare}"] = paired_gain(
            labels,
            ours_told,
            metadata.threshold,
            theirs_told,
            base.threshold,
            groups,
            metric=bare,
        )
    return gains


def _say_gains(console: Console, number: int, gains: dict[str, Interval]) -> None:
    if number == 0:
        console.print("the default configuration was not beaten")
    for metric, gain in gains.items():
        known = "" if isnan(gain.low) else f" [{gain.low:+.4f}, {gain.high:+.4f}]"
        console.print(
            f"gain over the default configuration ({trial_name(0)}): {gain.value:+.4f} {metric}{known}", soft_wrap=True
        )
    if any(not isnan(gain.low) for gain in gains.values()):
        console.print(
            "the 95% interval holds what other groups of validation radiographs would change, and not what another "
            "training seed would: each configuration was trained once, and one configuration trained twice can "
            "differ by more than this interval",
            soft_wrap=True,
        )
    if gains:
        console.print("the best of many validation scores is optimistic: use the test split to judge it, as below")


def _config_table(space: SearchSpace, best: TrialRow) -> Table:
    table = new_table("setting", "best", "default")
    defaults = space.config.leaves()
    for dimension in space.dimensions:
        if dimension.path in best.leaves or not best.leaves:
            chosen = best.leaves.get(dimension.path, defaults[dimension.path])
            table.add_row(dimension.path, setting_cell(chosen), setting_cell(defaults[dimension.path]))
    return table


def _front_table(space: SearchSpace, study: optuna.Study, rows: dict[int, TrialRow]) -> Table:
    table = new_table("trial", *space.metrics)
    for frozen in study.best_trials:
        table.add_row(
            trial_name(frozen.number), *(f"{rows[frozen.number].best(metric):.4f}" for metric in space.metrics)
        )
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


def _say_efficiency(console: Console, efficiency: Efficiency) -> None:
    """Print the share of the machine that went into training and augmentation, and where the rest went."""
    console.print(
        f"efficiency {efficiency.value:.2f}: share of {efficiency.cores:.3g} {efficiency.unit}(s) for "
        f"{efficiency.wall:.0f} s that went into training and augmentation ({EFFICIENCY_NOTE[efficiency.unit]}):",
        soft_wrap=True,
    )
    table = new_table("", "share", "")
    for phase, share in efficiency.shares().items():
        table.add_row(WORDS[phase], f"{share:.3f}", share_bar(share))
    console.print(table)
