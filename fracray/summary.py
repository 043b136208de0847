"""What a search found: the best config, its gain over the default, what mattered, and what to type next.

Reads the run folder and prints; runs nothing.
"""

import tempfile
from pathlib import Path

import optuna
from optuna.trial import TrialState
from rich.console import Console
from rich.table import Table

from fracray.board import DONE, FAILED, STOPPED, TrialRow, best_row, cell, collect
from fracray.checkpoint import read_card, read_predictions
from fracray.data.prepare import Prepared
from fracray.errors import RunError
from fracray.metrics import METRICS, Interval, paired_gain
from fracray.run import BEST, Folder, trial_folder, trial_name
from fracray.show import new_table, say_few_groups, say_next_steps, scores_table
from fracray.space import SearchSpace
from fracray.study import local_journal, open_study


def summarise(space: SearchSpace, run: Folder, prepared: Prepared, console: Console) -> None:
    """The best config, its gain over the default with its interval, what mattered, and what to type next."""
    with local_journal(run) as journal:
        study = open_study(journal, space)
        rows = collect(run, study, space.config.train.epochs)
        importances = _importances(study)
    metric, mode = space.metrics[0], space.config.search.mode
    best = best_row(rows, metric, mode)
    if best is None:
        if any(row.state == FAILED for row in rows.values()):
            raise RunError(f"{run}: no trial finished an epoch; what went wrong stands above")
        console.print("no trial has finished an epoch yet")
        return
    with tempfile.TemporaryDirectory() as scratch:
        winner = Path(scratch) / "best"
        trial_folder(run, best.number).download(BEST, winner)
        run.upload(winner, BEST)
        default = Path(scratch) / "default"
        gain = None
        if (
            0 in rows
            and rows[0].state in (DONE, STOPPED)
            and best.number != 0
            and metric.removeprefix("val_") in METRICS
        ):
            trial_folder(run, 0).download(BEST, default)
            gain = _gain(winner, default, metric.removeprefix("val_"))
    ended = sum(row.state in (DONE, STOPPED) for row in rows.values())
    console.print(f"\nbest of {ended} finished trials: {best.name}, {metric} {best.best(metric):.4f} at its best epoch")
    console.print("\nbest configuration:")
    console.print(_config_table(space, best))
    _say_gain(console, best.number, gain, metric)
    if gain is not None:
        say_few_groups(console, prepared, "val")
    if len(space.metrics) > 1:
        console.print("\nPareto front, each trial at its best epoch in the first metric:")
        console.print(_front_table(space, study, rows))
    if importances:
        console.print(
            f"\nimportance of each setting (fANOVA over {ended} trials; "
            "one stopped early counts with what it had reached):",
            soft_wrap=True,
        )
        console.print(_importance_table(importances))
    scores = {
        name.removeprefix("best_val_"): value
        for name, value in best.history[-1].items()
        if name.startswith("best_val_")
    }
    console.print(f"{best.name} on validation:")
    console.print(scores_table(scores, prepared.baselines, "val"))
    say_next_steps(console, run, BEST, space.config.data.source)


def _gain(winner: Path, default: Path, metric: str) -> Interval:
    """The winner's metric less the default's on the same validation images, resampled by group."""
    ours, theirs = read_predictions(winner), read_predictions(default)
    assert ours is not None, "a trial's checkpoint always carries its validation predictions"
    assert theirs is not None
    assert (ours["image_id"] == theirs["image_id"]).all()
    card, base = read_card(winner), read_card(default)
    return paired_gain(
        ours["label"].to_numpy(),
        card.calibration.apply(ours["logit"].to_numpy()),
        card.threshold,
        base.calibration.apply(theirs["logit"].to_numpy()),
        base.threshold,
        ours["group"].to_numpy(),
        metric=metric,
    )


def _say_gain(console: Console, number: int, gain: Interval | None, metric: str) -> None:
    if number == 0:
        console.print("the default configuration was not beaten")
    elif gain is not None:
        console.print(
            f"gain over the default configuration ({trial_name(0)}): {gain.value:+.4f} {metric} "
            f"[{gain.low:+.4f}, {gain.high:+.4f}] (95%, bootstrapped over groups)\n"
            "the best of many validation scores is biased upwards: judge it by the test split, see below",
            soft_wrap=True,
        )


def _config_table(space: SearchSpace, best: TrialRow) -> Table:
    table = new_table("setting", "best", "default")
    defaults = space.config.leaves()
    for dimension in space.dimensions:
        if dimension.path in best.leaves or not best.leaves:
            chosen = best.leaves.get(dimension.path, defaults[dimension.path])
            table.add_row(dimension.path, cell(chosen), cell(defaults[dimension.path]))
    return table


def _front_table(space: SearchSpace, study: optuna.Study, rows: dict[int, TrialRow]) -> Table:
    table = new_table("trial", *space.metrics)
    for frozen in study.best_trials:
        table.add_row(
            trial_name(frozen.number), *(f"{rows[frozen.number].best(metric):.4f}" for metric in space.metrics)
        )
    return table


def _importances(study: optuna.Study) -> dict[str, float]:
    """How much of the metric's variation each setting explains (fANOVA, Hutter et al. 2014); empty when unknown."""
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(study.directions) > 1 or len(done) < 4 or len({trial.value for trial in done}) < 2:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def _importance_table(importances: dict[str, float]) -> Table:
    table = new_table("setting", "share", "")
    for path, share in importances.items():
        table.add_row(path, f"{share:.2f}", "█" * round(share * 30))
    return table
