"""What a refit found, on the console: means and deviations over seeds, the winner, its gain, and the ensemble."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from math import isnan, nan
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fracray.config import Config, SearchConfig
from fracray.metrics import Interval
from fracray.metrics.seeds import seeded_gain
from fracray.runtime.console import new_table
from fracray.runtime.run_folder import BEST, refit_number, trial_folder
from fracray.runtime.storage import Folder
from fracray.search.constraints import standing, verdict
from fracray.search.ensemble import Choice
from fracray.search.judged import JUDGED_BY, JudgedSet, fold_metric, judged_folds, judged_set, read_folds
from fracray.search.refit import Outcome, RefitPlan, Refitted
from fracray.search.results import OVER_DEFAULT, gain_words, told_gains, told_over_folds
from fracray.search.trials_table import TrialRow

BESIDE = ("val_auroc", "val_loss")  # shown beside the searched metric


def say_outcome(
    console: Console, plan: RefitPlan, found: Outcome, searched: Mapping[int, TrialRow], search: SearchConfig
) -> None:
    """Print every configuration's mean and standard deviation over the seeds, and the winner."""
    metric = search.metrics[0]
    for name, reason in found.lost.items():
        console.print(f"{name} is left out: {reason}", style="yellow", soft_wrap=True)
    over = f"{len(found.seeds)} of {len(plan.seeds)} seeds" if len(found.seeds) < len(plan.seeds) else "seeds"
    words = f"{over}: {', '.join(map(str, found.seeds))}"
    folds = ", each the mean over the folds" if plan.folds else ""
    console.print(f"\nrefitted with {words}{folds}: mean and standard deviation over them", soft_wrap=True)
    console.print(_table(found, searched, search))
    if search.constraints:
        words, any_does = verdict([(one.name, one.mean) for one in found.ranked], search)
        console.print(f"constraints, by the means: {words}", style="" if any_does else "yellow", soft_wrap=True)
    best, default = found.winner, found.default
    if default is None:
        console.print("the default configuration could not be refitted, so nothing is compared with it", soft_wrap=True)
    elif best is default:
        console.print(
            f"the default configuration ({best.name}) {default_wins(found, search)}: it was not beaten", soft_wrap=True
        )
    else:
        console.print(f"winner by mean {metric}: {best.name}, {spread(best, metric)}")
    if len(found.ranked) > 1:
        console.print(
            f"the best of {len(found.ranked)} means is still somewhat optimistic, though far less than the best of "
            "many trials: use the test split to judge it, as below",
            soft_wrap=True,
        )


def default_wins(found: Outcome, search: SearchConfig) -> str:
    """Why the default configuration is the winner, as a predicate."""
    if search.broken(found.winner.mean):
        return "comes closest to the constraints, which no mean satisfies"
    among = " of those that satisfy the constraints" if search.constraints else ""
    return f"has the best mean {search.metrics[0]}{among}"


def _table(found: Outcome, searched: Mapping[int, TrialRow], search: SearchConfig) -> Table:
    metric = search.metrics[0]
    shown = tuple(dict.fromkeys((metric, *search.constraints, *BESIDE)))
    table = new_table("configuration", *shown, f"in the search: {metric}")
    for one in found.ranked:
        before = searched[one.number].best(metric) if one.number in searched else float("nan")
        table.add_row(
            f"{one.name} (default)" if one.number == 0 else one.name,
            *(spread(one, name) for name in shown),
            "" if isnan(before) else f"{before:.4f}",
            style="bold green" if one is found.winner else "",
        )
    return table


def spread(one: Refitted, metric: str) -> str:
    """A configuration's mean in a metric and, of several seeds, the standard deviation."""
    deviation = one.deviation(metric)
    return f"{one.mean(metric):.4f}" + ("" if isnan(deviation) else f" ± {deviation:.4f}")


def gains(winner: Sequence[Path], default: Sequence[Path], metric: str, sets: Sequence[str]) -> dict[str, Interval]:
    """The winner's mean metrics over its seeds minus the default's, by reported name, with intervals.

    winner, default: the checkpoint folders of their trainings. Which metrics: see `results.told_gains`.
    """
    found = {}
    for name, bare in told_gains(metric, sets):
        ours, theirs = ([judged_set(folder, name, bare) for folder in folders] for folders in (winner, default))
        found[f"{name}_{bare}"] = _gain(ours, theirs, bare)
    return found


def gains_over_folds(own: Folder, found: Outcome, config: Config) -> dict[str, Interval]:
    """The same where a score is the mean over folds, on the images that each fold's model did not see.

    own: the run folder of the refit. Without an interval as `results.fold_gains`, and with one seed.
    """
    gains, point = _means(found, config.search.metrics[0]), config.train.operating_point
    ours, theirs = (
        [read_folds(trial_folder(own, refit_number(number, seed))) for seed in found.seeds]
        for number in (found.winner.number, 0)
    )
    for name in gains:
        bare = fold_metric(name)
        if bare is None:
            continue
        kept = [[judged_folds(table, bare, point) for table in side if table is not None] for side in (ours, theirs)]
        if all(len(side) == len(found.seeds) for side in kept):
            gains[name] = _gain(kept[0], kept[1], bare)
    return gains


def _gain(ours: Sequence[JudgedSet], theirs: Sequence[JudgedSet], bare: str) -> Interval:
    first = ours[0]
    assert all((one.images == first.images).all() for one in (*ours, *theirs))
    winner, default = ([one.as_run for one in side] for side in (ours, theirs))
    return seeded_gain(first.labels, first.groups, winner, default, bare, first.folds)


def gains_told(own: Folder, config: Config, found: Outcome | None, sets: Sequence[str]) -> dict[str, Interval]:
    """The gain of a refit's winner as `say_gains` prints it, from its run folder; empty where there is none to tell."""
    if found is None or found.default is None or found.winner is found.default:
        return {}
    if config.data.split.cross_validate:
        return gains_over_folds(own, found, config)
    with ExitStack() as held:
        ours, theirs = (
            [
                held.enter_context(trial_folder(own, refit_number(number, seed)).sub(BEST).local_folder(JUDGED_BY))
                for seed in found.seeds
            ]
            for number in (found.winner.number, 0)
        )
        return gains(ours, theirs, config.search.metrics[0], sets)


def _means(found: Outcome, metric: str) -> dict[str, Interval]:
    """The differences of the means alone, without intervals."""
    assert found.default is not None
    means = {name: found.winner.mean(name) - found.default.mean(name) for name in told_over_folds(metric)}
    return {name: Interval(mean, nan, nan) for name, mean in means.items()}


def say_gains(console: Console, found: Mapping[str, Interval]) -> None:
    """Print how much better than the default configuration the winner is."""
    for name, gain in found.items():
        console.print(f"{OVER_DEFAULT}: {gain_words(name, gain)}", soft_wrap=True)
    if any(not isnan(gain.low) for gain in found.values()):
        console.print(
            "the 95% interval holds both what other groups of validation radiographs and what other training seeds "
            "would change",
            soft_wrap=True,
        )


def say_ensemble(console: Console, chosen: Choice, choices: Sequence[Choice], note: str, search: SearchConfig) -> None:
    """Print what the ensemble is made of, what it was chosen from, and whether it satisfies the constraints."""
    by = "the constraints, then by val_loss" if search.constraints else "val_loss"
    told = ", scored out of fold" if chosen.out_of_fold else ""
    console.print(f"\nensemble (the mean logit of its members){told}, by {by}:", soft_wrap=True)
    shown = tuple(dict.fromkeys((*search.constraints, "val_loss", "val_auroc")))
    table = new_table("members", *shown, "")
    for one in choices:
        values = (f"{one.scored.value(name):.4f}" for name in shown)
        table.add_row(one.words, *values, "chosen" if one is chosen else "")
    console.print(table)
    if search.constraints:
        broken = bool(search.broken(chosen.scored.value))
        console.print(
            f"{'warning: ' if broken else ''}the ensemble {standing(chosen.scored.value, search)}{told}",
            style="yellow" if broken else "",
            soft_wrap=True,
        )
    if note:
        console.print(note, soft_wrap=True)
