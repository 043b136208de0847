"""What a search's driver spends on a trial while the number of trials grows: nothing is trained.

Everything that runs in the driver's process between Tune and Optuna's journal is asked as Tune asks it, on synthetic
curves (those of stopping.py): suggestions, stopping rules, reports, the progress table and trials.parquet. Each search
runs in a process of its own; times are CPU time. Tune's own work is not in it: overhead.py has searches with Tune.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
from optuna.trial import TrialState
from ray.tune.schedulers import TrialScheduler
from rich.console import Console
from rich.table import Table
from samplers import EPOCHS, space_of, true_curve
from table import write_results

from fracray.runtime.console import new_console, new_table
from fracray.runtime.efficiency import EfficiencyTracker
from fracray.runtime.storage import Folder
from fracray.search.messages import Suggestion, TrialReport
from fracray.search.progress import SearchProgress
from fracray.search.schedulers import StudyScheduler
from fracray.search.study import JOURNAL, StudySearcher
from fracray.search.trials_table import StudyLedger, collect
from fracray.training.epochs import EpochResult

HERE = Path(__file__).parent
METRIC = "val_accuracy"
SEARCHES = "random none,random asha,random pasha,random median,random hyperband,tpe asha"
STEPS = ("suggest", "judge", "tell", "progress")
MORE_METRICS = 20  # beside the searched one, as a trial of the default configuration reports them


@dataclass(frozen=True)
class Cost:
    """A search of `trials` trials: milliseconds of CPU a trial by step, seconds of its end, and bytes."""

    sampler: str
    scheduler: str
    trials: int
    reports: int
    stopped: int
    ms: dict[str, float]  # suggest, judge, tell, progress; all
    end_s: float  # the last table, written
    resume_s: float  # the study read again from its journal
    grown_bytes: int
    journal_bytes: int

    @property
    def name(self) -> str:
        return f"{self.sampler}, {self.scheduler}"


class Clock:
    """CPU seconds by step."""

    def __init__(self) -> None:
        self.spent = defaultdict[str, float](float)

    def __call__(self, step: str, work: Callable[..., Any], *args: Any, **named: Any) -> Any:
        begun = time.process_time()
        try:
            return work(*args, **named)
        finally:
            self.spent[step] += time.process_time() - begun


def result_of(values: np.ndarray, epoch: int) -> dict[str, Any]:
    value = float(values[epoch - 1])
    metrics = {METRIC: value} | {f"val_more{number}": value / (number + 2) for number in range(MORE_METRICS)}
    kept = EpochResult(epoch, metrics, metrics, seconds=1.0, core_seconds={"forward": 0.5, "backward": 0.5})
    return TrialReport(kept, done=epoch == len(values)).to_tune([METRIC]) | {"time_this_iter_s": 1.0}


def cost_of(sampled: str, scheduler: str, trials: int, places: int) -> Cost:
    """Drive one search as Tune does, `places` trials at a time in turn."""
    clock, reports = Clock(), 0
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as scratch:
        space = space_of("ranges", sampled, scheduler, 0, [METRIC], Path(scratch))
        run, journal = Folder(Path(scratch)), Path(scratch) / JOURNAL
        searcher = StudySearcher(space, journal, trials)
        judge = StudyScheduler(searcher.stops)
        ledger = StudyLedger(run, searcher.study, journal, EPOCHS)
        tracker = EfficiencyTracker(time.time(), lambda: float(places), "CPU")
        progress = SearchProgress(space, run, ledger, trials, tracker, Console(file=StringIO()), None)
        before, running, ids = (
            psutil.Process().memory_info().rss,
            list[tuple[Any, np.ndarray, int]](),
            iter(range(10**9)),
        )
        while True:
            while len(running) < places:
                name = str(next(ids))
                suggested = clock("suggest", searcher.suggest, name)
                if not isinstance(suggested, dict):
                    break
                trial = SimpleNamespace(trial_id=name, config=suggested)
                clock("progress", progress.on_trial_start, 0, [], trial)
                leaves = dict(Suggestion.from_tune(suggested).leaves) or space.defaults()[0]
                running.append((trial, true_curve(space, leaves, generator), 1))
            if not running:
                break
            trial, values, epoch = running.pop(0)
            result, reports = result_of(values, epoch), reports + 1
            clock("progress", progress.on_trial_result, 0, [], trial, result)
            stop = result["done"] or clock("judge", judge.on_trial_result, None, trial, result) == TrialScheduler.STOP
            if stop:
                clock("tell", searcher.on_trial_complete, trial.trial_id, result)
                clock("progress", progress.on_trial_complete, 0, [], trial)
            else:
                clock("tell", searcher.on_trial_result, trial.trial_id, result)
                running.append((trial, values, epoch + 1))
        end, again = Clock(), Clock()
        end("end", progress.__exit__)
        grown = psutil.Process().memory_info().rss - before
        stopped = len(searcher.study.get_trials(deepcopy=False, states=(TrialState.PRUNED,)))
        again("again", lambda: collect(run, StudySearcher(space, journal, trials).study, EPOCHS))
        size = journal.stat().st_size
    ms = {step: seconds / trials * 1e3 for step, seconds in clock.spent.items()}
    ms["all"] = sum(ms.values())
    return Cost(
        *(sampled, scheduler, trials, reports, stopped, ms),
        *(end.spent["end"], again.spent["again"], grown, size),
    )


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--counts", default="100,1000,10000", help="trials, default %(default)s")
    cli.add_argument("--searches", default=SEARCHES, help="sampler and scheduler of each, default %(default)s")
    cli.add_argument("--places", type=int, default=16, help="trials at a time (default %(default)s)")
    cli.add_argument("--json", type=Path, default=HERE / "results" / "growth.json", help="default %(default)s")
    args = cli.parse_args()
    console, costs = new_console(), _kept(args.json)
    for sampled, scheduler in (words.split() for words in args.searches.split(",")):
        for trials in map(int, args.counts.split(",")):
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as alone:
                cost = alone.submit(cost_of, sampled, scheduler, trials, args.places).result()
            costs[cost.name, trials] = cost
            console.print(f"{cost}", soft_wrap=True)
            write_results(console, "growth", _table(costs), _figures(args.places, costs), args.json)


def _kept(path: Path) -> dict[tuple[str, int], Cost]:
    """What an earlier call has measured: searches that take hours need not be measured in one."""
    found = [Cost(**one) for one in json.loads(path.read_text())["searches"]] if path.exists() else []
    return {(cost.name, cost.trials): cost for cost in found}


def _figures(places: int, costs: dict[tuple[str, int], Cost]) -> dict[str, Any]:
    searches = [asdict(costs[key]) for key in sorted(costs)]
    return {"settings": {"places": places, "epochs": EPOCHS}, "searches": searches}


def _table(costs: dict[tuple[str, int], Cost]) -> Table:
    table = new_table("search")
    for heading in ("trials", *STEPS, "ms a trial", "end s", "resume s", "grown MiB", "journal MiB"):
        table.add_column(heading, justify="right")
    for cost in (costs[key] for key in sorted(costs)):
        spent = (f"{cost.ms.get(step, 0.0):.2f}" for step in (*STEPS, "all"))
        sizes = (f"{size / 2**20:,.0f}" for size in (cost.grown_bytes, cost.journal_bytes))
        table.add_row(cost.name, f"{cost.trials:,}", *spent, f"{cost.end_s:.1f}", f"{cost.resume_s:.1f}", *sizes)
    return table


if __name__ == "__main__":
    main()
