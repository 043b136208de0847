"""Which sampler and which scheduler find the better configuration: on real radiographs, by small trainings.

Every method searches the seven settings of reg.yaml and the learning rate with fracray's own searcher and stopping
rules, one trial at a time, beginning with the default configuration. A trial is `fracray.training.loop.Fit` in this
process, without Ray Tune, so that a search costs its trainings. Each seed has another fold as test and another one as
validation. Compared are the best validation accuracy, which is what a search maximises, and what that trial is worth on
test, as differences from the random search of the same seed. The first trials of a long search are a short one.

Compute is counted in epochs over all trials, so that the machine's load does not matter. Each search is written when it
ends, and a later call with the same settings keeps it.
"""

import argparse
import json
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import optuna
import pandas as pd
import yaml
from ablation import FOLDS, logits_of, plan_of
from processes import end_with_parent, server
from rich.table import Table
from table import write_results

from fracray.config import PHANTOM, Config, parse_assignments
from fracray.data.loading.streams import MemoryStream
from fracray.data.manifest import in_set
from fracray.metric_names import mode_of, preference
from fracray.metrics import score
from fracray.runtime.console import new_console, new_table
from fracray.search.messages import Suggestion, TrialReport
from fracray.search.space import SearchSpace
from fracray.search.space_file import load_space
from fracray.search.study import JOURNAL, StudySearcher
from fracray.training.epochs import EpochResult
from fracray.training.loop import Fit, pick_device
from fracray.training.workers import use_cores

HERE = Path(__file__).parent
RANDOM, DEFAULT = "random/none", "default"
METHODS = (RANDOM, "tpe/none", "tpe/asha", "gp/none", "tpe/pasha")
SCORES = {"value": "validation", "test_accuracy": "test accuracy", "test_auroc": "test AUROC"}
NOT_SHARED = ("seeds", "methods", "processes", "json")  # what may differ from the call whose searches are kept


def parser() -> argparse.ArgumentParser:
    cli = argparse.ArgumentParser(
        prog="python benchmarks/anytime.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cli.add_argument("--data", default=PHANTOM, help="FracAtlas folder or zip, an imported set, or phantom (default)")
    cli.add_argument(
        "--methods", nargs="+", default=list(METHODS), metavar="SAMPLER/SCHEDULER", help=", ".join(METHODS)
    )
    cli.add_argument("--metric", default="val_accuracy", help="that the searches go by (default %(default)s)")
    cli.add_argument("--seeds", type=int, default=5, help="searches of each method (default %(default)s)")
    cli.add_argument("--trials", type=int, nargs="+", default=[16, 64], help="compared after (default 16 64)")
    cli.add_argument("--epochs", type=int, default=8, help="of a trial that is not stopped (default %(default)s)")
    cli.add_argument("--grace", type=int, default=2, help="epochs before a trial may be stopped (default %(default)s)")
    cli.add_argument("--startup", type=int, default=6, help="random trials before a model (default %(default)s)")
    cli.add_argument("--size", type=int, default=64, help="side in pixels (default %(default)s)")
    cli.add_argument("--processes", type=int, default=1, help="searches at a time, one core each (default %(default)s)")
    cli.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of all trials")
    cli.add_argument("--json", type=Path, default=HERE / "results" / "anytime.json", help="default %(default)s")
    return cli


# ---------------------------------------------------------------- the radiographs


@dataclass(frozen=True)
class Radiographs:
    """A prepared data set: squares (N, S, S) uint8, a row each, and the column of parts with each fold as test."""

    squares: np.ndarray
    table: pd.DataFrame
    parts: tuple[pd.Series, ...]


def radiographs(args: argparse.Namespace) -> Radiographs:
    from fracray.data.prepare import prepare
    from fracray.runtime.ray_session import connect

    console, parts = new_console(), []
    with connect(None):
        for fold in range(FOLDS):
            prepared = prepare(Config().with_leaves(settings(args) | {"data.split.fold": fold}).data, console)
            parts.append(prepared.table["split"])
        return Radiographs(prepared.shards.load(), prepared.table, tuple(parts))


# ---------------------------------------------------------------- one search


@dataclass(frozen=True)
class Trial:
    """values: the searched metric after each epoch. value and loss: at the best epoch, whose weights test is scored by.

    nan where the trial diverged.
    """

    values: tuple[float, ...]
    value: float
    loss: float
    test_accuracy: float
    test_auroc: float


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """What all trials have by dotted path."""
    given = parse_assignments(args.set)
    return {"data.source": args.data, "data.size": args.size, "data.split.protocol": "kfold", **given}


def space_of(method: str, seed: int, args: argparse.Namespace, folder: Path) -> SearchSpace:
    """The example space of the design: the seven settings of reg.yaml and the learning rate."""
    sampler, _, scheduler = method.partition("/")
    tree = yaml.safe_load((HERE.parent / "search_spaces" / "reg.yaml").read_text())
    tree["space"]["train.lr"] = {"log_float": [1.0e-4, 1.0e-2]}
    tree |= {
        "metric": args.metric,
        "mode": mode_of(args.metric),
        "epochs": args.epochs,
        "sampler": {"name": sampler, "seed": seed, "startup_trials": args.startup},
        "scheduler": {"name": scheduler, "grace_epochs": args.grace, "reduction_factor": 3},
    }
    file = folder / "space.yaml"
    file.write_text(yaml.safe_dump(tree))
    return load_space(file, {**settings(args), "train.seed": seed})


def search(method: str, seed: int, args: argparse.Namespace, data: Radiographs) -> list[Trial]:
    """All trials of one search, in their order."""
    trials = list[Trial]()
    with tempfile.TemporaryDirectory() as scratch:
        space = space_of(method, seed, args, Path(scratch))
        use_cores(space.config, 1)
        searcher = StudySearcher(space, Path(scratch) / JOURNAL, max(args.trials))
        for number in range(max(args.trials)):
            suggested = searcher.suggest(str(number))
            assert isinstance(suggested, dict), "each trial ends before the next is asked for"
            config = space.config.with_leaves(dict(Suggestion.from_tune(suggested).leaves))
            trials.append(_trial(config, seed, data, searcher, str(number)))
    return trials


def _trial(config: Config, seed: int, data: Radiographs, searcher: StudySearcher, name: str) -> Trial:
    """Train one configuration as a trial of Tune does, until it ends or the searcher stops it, and score it on test."""
    device, split, metric = pick_device(), data.parts[seed % FOLDS], config.search.metrics[0]
    stream = MemoryStream(plan_of(config, data.table, split), data.squares, config.train.epochs)
    fit, values, stopped = Fit(config, stream, device, metric, config.search.mode), list[float](), False
    validation = None
    while not fit.done and not stopped:
        report = fit.run_epoch()
        validation = report.validation if report.is_best else validation
        best = {metric: math.nan, **{key: value for key, value in fit.best.items() if key.startswith("val_")}}
        result = EpochResult(report.epoch, report.metrics, best, report.seconds, diverged=report.diverged)
        values.append(report.metrics.get(metric, math.nan))
        told = TrialReport(result, done=fit.done or report.diverged).to_tune([metric])
        stopped = report.diverged or (not fit.done and searcher.stops(name, told))
        if not fit.done and not stopped:
            searcher.on_trial_result(name, told)
    searcher.on_trial_complete(name, told)
    stream.close()
    if validation is None or report.diverged:
        return Trial(tuple(values), *[math.nan] * 4)
    rows = np.flatnonzero(in_set(split, "test"))
    fit.averaged.load_state_dict(fit.best_weights)
    logits = logits_of(fit.averaged, data.squares, rows, device, mirrored=False)
    labels = data.table["label"].to_numpy()[rows]
    found = score(labels, validation.calibration.apply(logits), validation.threshold)
    return Trial(tuple(values), best[metric], best["val_loss"], found.accuracy, found.auroc)


# ---------------------------------------------------------------- all searches


@dataclass(frozen=True)
class Search:
    """One search and its trials in their order."""

    method: str
    seed: int
    trials: tuple[Trial, ...]

    def within(self, epochs: int) -> tuple[Trial, ...]:
        """The trials that had ended after this many epochs in all."""
        ends = np.cumsum([len(trial.values) for trial in self.trials])
        return self.trials[: int((ends <= epochs).sum())]

    def curve(self, mode: str) -> np.ndarray:
        """The best value so far after each epoch of any trial; nan before the first finite one."""
        best = np.fmax if mode == "max" else np.fmin
        return best.accumulate([value for trial in self.trials for value in trial.values])

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> "Search":
        trials = tuple(Trial(**{**trial, "values": tuple(trial["values"])}) for trial in tree["trials"])
        return cls(tree["method"], tree["seed"], trials)


_held: list[Radiographs] = []  # of a process that searches


def _begin(data: Radiographs) -> None:
    end_with_parent()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    _held.append(data)


def _work(method: str, seed: int, args: argparse.Namespace) -> Search:
    return Search(method, seed, tuple(search(method, seed, args, _held[0])))


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    if RANDOM not in args.methods:
        raise SystemExit(f"--methods: {RANDOM} is what the others are compared with; name it too")
    shared = {key: value for key, value in vars(args).items() if key not in NOT_SHARED}
    shared["data"] = Path(args.data).name
    found = _kept(args.json, shared)
    # A seed of all methods before the next one: what a call that is ended leaves is whole pairs.
    wanted = [(method, seed) for seed in range(args.seeds) for method in args.methods]
    missing = [each for each in wanted if each not in found]
    if missing:
        begun = time.monotonic()
        with ProcessPoolExecutor(args.processes, server(), _begin, (radiographs(args),)) as pool:
            for done in as_completed([pool.submit(_work, *each, args) for each in missing]):
                one = done.result()
                found[one.method, one.seed] = one
                best, epochs = chosen(one.trials, args.metric), sum(len(trial.values) for trial in one.trials)
                print(
                    f"{time.monotonic() - begun:5.0f} s  {one.method}, seed {one.seed}: {epochs} epochs, "
                    f"{best.value:.4f}, on test {best.test_accuracy:.4f}, AUROC {best.test_auroc:.4f}",
                    flush=True,
                )
                _write(args.json, shared, found)
    searches = [found[each] for each in wanted]
    rows = compared(searches, args)
    draw(searches, args.metric, args.json.with_suffix(".png"))
    write_results(new_console(), "anytime", table_of(rows), {**_figures(shared, found), "compared": rows}, args.json)


def _kept(path: Path, shared: Mapping[str, Any]) -> dict[tuple[str, int], Search]:
    """The searches of an earlier call by method and seed; none where its settings were others."""
    tree = json.loads(path.read_text()) if path.exists() else {}
    if tree.get("settings") != shared:
        return {}
    return {(one["method"], one["seed"]): Search.from_json(one) for one in tree["searches"]}


def _figures(shared: Mapping[str, Any], found: Mapping[tuple[str, int], Search]) -> dict[str, Any]:
    return {"settings": dict(shared), "searches": [asdict(found[key]) for key in sorted(found)]}


def _write(path: Path, shared: Mapping[str, Any], found: Mapping[tuple[str, int], Search]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(_figures(shared, found)))
    partial.replace(path)


# ---------------------------------------------------------------- what they found


def chosen(trials: Sequence[Trial], metric: str) -> Trial:
    """The trial that a search calls its best."""
    return max(trials, key=lambda trial: preference(trial.value, trial.loss, mode_of(metric)))


def compared(searches: Sequence[Search], args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each method after so many trials, and after as many epochs as the shortest search of its seed took.

    The default configuration, the first trial of every search, comes first.
    """
    rows = []
    for count in sorted(args.trials):
        first = {(one.method, one.seed): one.trials[:count] for one in searches}
        fewest = {seed: min(map(epochs_of, [first[key] for key in first if key[1] == seed])) for _, seed in first}
        equal = {(one.method, one.seed): one.within(fewest[one.seed]) for one in searches}
        for after, part in ((f"{count} trials", first), (f"{count} trials, equal epochs", equal)):
            random = [part[RANDOM, seed] for seed in range(args.seeds)]
            rows.append(_row(DEFAULT, after, [trials[:1] for trials in random], random, args.metric))
            for method in args.methods:
                mine = [part[method, seed] for seed in range(args.seeds)]
                rows.append(_row(method, after, mine, random, args.metric))
    return rows


def epochs_of(trials: Sequence[Trial]) -> int:
    return sum(len(trial.values) for trial in trials)


def _row(
    method: str, after: str, mine: Sequence[Sequence[Trial]], random: Sequence[Sequence[Trial]], metric: str
) -> dict[str, Any]:
    """Means over the seeds with their standard errors, and of the differences from the random search of a seed."""
    ours, theirs = ([chosen(trials, metric) for trials in side] for side in (mine, random))
    row: dict[str, Any] = {"method": method, "after": after, "epochs": fmean(map(epochs_of, mine))}
    for name in SCORES:
        a, b = (np.array([getattr(trial, name) for trial in side]) for side in (ours, theirs))
        row |= {name: _mean(a), f"{name}_gain": _mean(a - b)}
    return row


def _mean(values: np.ndarray) -> tuple[float, float | None]:
    """Mean and standard error; None for the latter of one value."""
    error = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None
    return float(values.mean()), error


def table_of(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = new_table("after", "method", "epochs", *SCORES.values(), *(f"{name}: gain" for name in SCORES.values()))
    for row in rows:
        cells = [_cell(row[name]) for name in SCORES]
        gains = ["" if row["method"] == RANDOM else _cell(row[f"{name}_gain"], "+") for name in SCORES]
        table.add_row(row["after"], row["method"], f"{row['epochs']:.0f}", *cells, *gains)
    return table


def _cell(value: tuple[float, float | None], sign: str = "") -> str:
    mean, error = value
    return f"{mean:{sign}.4f}" + ("" if error is None else f" ± {error:.4f}")


def draw(searches: Sequence[Search], metric: str, path: Path) -> None:
    """Every search as a thin line, the medians as thick ones."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    longest = max(epochs_of(one.trials) for one in searches)
    steps = np.arange(1, longest + 1)
    for at, method in enumerate(dict.fromkeys(one.method for one in searches)):
        curves = [one.curve(mode_of(metric)) for one in searches if one.method == method]
        filled = np.array([np.append(curve, np.full(longest - len(curve), curve[-1])) for curve in curves])
        for each in filled:
            axes.plot(steps, each, color=f"C{at}", alpha=0.2, linewidth=0.8)
        words = f"{method}, median of {len(curves)}"
        axes.plot(steps, np.median(filled, axis=0), color=f"C{at}", linewidth=2, label=words)
    axes.set(xscale="log", xlabel="epochs trained, all trials together", ylabel=f"best {metric}")
    axes.legend(loc="best")
    axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
