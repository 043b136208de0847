"""python -m fracray.tune: search dropout, augmentation and other settings with Ray Tune and Optuna.

Read from top to bottom: the command, its checks, the search, what it found.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fracray.errors import InputError, run_verb
from fracray.interrupts import remedy
from fracray.runtime.arguments import add_prices, add_run_options, command

if TYPE_CHECKING:  # a command imports Torch and Ray only once its arguments are read and its files are found
    from ray.tune import Callback
    from rich.console import Console

    from fracray.data.prepare import Prepared
    from fracray.runtime.efficiency import EfficiencyTracker
    from fracray.runtime.storage import Folder
    from fracray.search.refit_trials import KeepsBack
    from fracray.search.space import SearchSpace
    from fracray.search.warm_start import WarmStart
    from fracray.tracking.live import LiveLog
    from fracray.training.job import Job

# ---------------------------------------------------------------- the command


def parser() -> argparse.ArgumentParser:
    cli = command(
        "tune",
        "Search dropout, augmentation and any other setting for the highest validation accuracy, with Ray Tune and "
        "Optuna. The default configuration is always the first trial.",
        "  python -m fracray.tune --space search_spaces/reg.yaml\n"
        "  python -m fracray.tune --space search_spaces/reg.yaml --data FracAtlas.zip --trials 64 --name atlas\n"
        "  python -m fracray.tune --name atlas --resume\n"
        "  python -m fracray.tune --space search_spaces/reg.yaml --time-budget 3600 --refit\n"
        "  python -m fracray.tune --space search_spaces/reg.yaml --gpus-per-trial 0.25 --address auto\n",
    )
    cli.add_argument(
        "--space", metavar="FILE", help="the search-space file (search_spaces/ has some); needed unless --resume"
    )
    cli.add_argument("--trials", type=int, metavar="N", help="trials in all, over every resume")
    cli.add_argument("--concurrent", type=int, metavar="N", help="trials at a time; default: as many as fit")
    cli.add_argument("--workers-per-trial", type=int, metavar="N", help="Ray Train workers of a trial (default 1)")
    cli.add_argument("--cpus-per-trial", type=float, metavar="N", help="CPUs of each worker of a trial (default 1)")
    cli.add_argument(
        "--gpus-per-trial",
        type=float,
        metavar="N",
        help="GPUs of each worker; 0.25 puts four on one GPU (default: 1 where the cluster has them)",
    )
    cli.add_argument(
        "--warm-start", metavar="RUN", help="an earlier search, whose best configurations follow the default one"
    )
    cli.add_argument("--time-budget", type=float, metavar="SECONDS", help="stop searching after this long")
    cli.add_argument(
        "--refit",
        type=int,
        nargs="?",
        const=3,
        metavar="K",
        help="at the end, within the time budget, train the K best configurations (3 without a number, 0 for none) "
        "anew, as `python -m fracray.refit` does; with search.refit.seeds, folds and members",
    )
    cli.add_argument(
        "--callback",
        action="append",
        default=[],
        metavar="MODULE:CLASS",
        help="a subclass of ray.tune.Callback of your own, which Tune calls during the search; repeatable",
    )
    cli.add_argument("--dry-run", action="store_true", help="only say what would be searched, and what it would take")
    add_prices(cli, "with --dry-run, for an estimate in money")
    add_run_options(cli, "tune")
    return cli


FLAGS = {
    "trials": "search.trials",
    "epochs": "train.epochs",
    "concurrent": "search.concurrent",
    "warm_start": "search.warm_start",
    "workers_per_trial": "search.workers_per_trial",
    "cpus_per_trial": "search.cpus_per_trial",
    "gpus_per_trial": "search.gpus_per_trial",
    "time_budget": "search.time_budget",
    "refit": "search.refit.top",
}
# What may change when a search is resumed.
BEGUN = "search.warm_start"  # of no use once the search has begun
FREE = {path for path in FLAGS.values() if path.startswith("search.")} - {BEGUN}
FREE |= {f"search.refit.{name}" for name in ("seeds", "folds", "members")}


def main(argv: Sequence[str]) -> None:
    begun = time.time()
    args = parser().parse_args(argv)
    if not args.dry_run and (args.cluster or args.price_per_hour):
        raise InputError("--cluster, --price-per-hour: only with --dry-run")
    with ExitStack() as held:  # the run, which no other command may work in, and its dashboards
        if args.dry_run:
            _forecast(args)
            return
        space, run, warm = (_resume if args.resume else _begin)(args, held)
        _search_and_summarise(args, space, run, warm, begun, held)


# ---------------------------------------------------------------- its checks


def _begin(args: argparse.Namespace, held: ExitStack) -> tuple[SearchSpace, Folder, WarmStart]:
    """The space, folder and warm start of a new run, which is written from here on."""
    space, run, warm = _new(args)
    from fracray.runtime.run_folder import OVERRIDES, SPACE
    from fracray.tracking.targets import opened

    args.targets = opened(args.log)
    _hold(args, run, held)
    run.write(SPACE, Path(args.space).read_bytes())
    run.write_json(OVERRIDES, _leaves(args))
    return space, run, warm


def _new(args: argparse.Namespace) -> tuple[SearchSpace, Folder, WarmStart]:
    """The same, of which nothing is written yet: what can be refused early is refused here."""
    if not args.space:
        raise InputError("--space: name a search-space file, for example --space search_spaces/reg.yaml")
    space = _load(args.space, _leaves(args))
    from fracray.runtime.run_folder import find_run
    from fracray.search.callbacks import load_callbacks
    from fracray.search.model_check import check_models
    from fracray.search.warm_start import WarmStart
    from fracray.tracking.targets import addresses

    run = find_run(args.storage, args.name, "tune", resume=False)
    check_models(space)
    warm = WarmStart(space)
    _ = warm.points  # read here, so that what is no search is refused
    args.callbacks, args.log = load_callbacks(args.callback), addresses(args.log)
    return space, run, warm


def _resume(args: argparse.Namespace, held: ExitStack) -> tuple[SearchSpace, Folder, WarmStart]:
    """The space, folder and warm start of a run that exists; nothing is written before it is known to be the same."""
    leaves = _leaves(args)
    from fracray.runtime.run_folder import OVERRIDES, REFIT, SPACE, find_run, how_to_continue
    from fracray.search.callbacks import load_callbacks
    from fracray.search.resumed import as_it_began, refuse_another
    from fracray.search.warm_start import WarmStart
    from fracray.tracking.targets import addresses, opened

    run = find_run(args.storage, args.name, "tune", resume=True)
    if not run.exists(SPACE):
        raise InputError(f"{run}: is a training, not a search; {how_to_continue('train', args.storage, run)}")
    args.callbacks, args.targets = load_callbacks(args.callback), opened(addresses(args.log))
    _hold(args, run, held)
    stored = run.read_json(OVERRIDES)
    with run.local_copy(SPACE) as path:
        space = as_it_began(run, _load(args.space or path, {**stored, **leaves}))
        where = "in this command" if args.space or leaves.keys() - FREE else f"in the run's {SPACE} and {OVERRIDES}"
        refuse_another(run, space, lambda: _load(path, stored), FREE, where)
    if space.config.search.refit.top:
        from fracray.search.refit import RefitPlan, refuse_other_folds

        own = run.sub(REFIT)
        refuse_other_folds(RefitPlan.begun(own), own, space.config.search.refit.over_folds or None, space.config)
    args.overrides = {**stored, **leaves}
    return space, run, WarmStart(space)


def _hold(args: argparse.Namespace, run: Folder, held: ExitStack) -> None:
    """Keep other commands out of the run, and say how to continue it after Ctrl-C, as long as this one lasts."""
    from fracray.runtime.run_folder import open_for_work

    held.enter_context(remedy(lambda: _how_to_continue(args, run)))
    held.enter_context(open_for_work(run, args.storage, args.resume))


def _how_to_continue(args: argparse.Namespace, run: Folder) -> str:
    from fracray.runtime.run_folder import how_to_continue

    return how_to_continue("tune", args.storage, run, address=args.address)


def _leaves(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that the command line fixes, by dotted path."""
    from fracray.config import parse_assignments
    from fracray.runtime.locations import data_source

    leaves = parse_assignments(args.set)
    if args.data:
        leaves["data.source"] = data_source(args.data)
    return leaves | {path: getattr(args, flag) for flag, path in FLAGS.items() if getattr(args, flag) is not None}


def _load(file: str | Path, leaves: dict[str, Any]) -> SearchSpace:
    from fracray.runtime.resources import refuse_missing_gpu
    from fracray.search.space_file import load_space

    space = load_space(file, leaves)
    asked = space.config.search.refit
    if asked.top and asked.over_folds:
        from fracray.search.refit import refit_config, refuse_members

        refuse_members(asked.members, refit_config(space.config, folds=True))
    refuse_missing_gpu(space.config.data.augment_on, space.config.search.gpus_per_trial != 0)
    return space


# ---------------------------------------------------------------- the search


def _forecast(args: argparse.Namespace) -> None:
    """Say what a new search would do and take."""
    if args.resume:
        raise InputError("--dry-run: is for a new search; one that is resumed says by itself how long it still takes")
    from fracray.cluster.prices import read_prices

    prices = read_prices(args.cluster, args.price_per_hour)
    space, run, _ = _new(args)
    from fracray.search.forecast import forecast_search

    forecast_search(space, run, args.address, prices)


def _search_and_summarise(
    args: argparse.Namespace, space: SearchSpace, run: Folder, warm: WarmStart, begun: float, held: ExitStack
) -> None:
    import psutil

    from fracray.runtime.console import new_console
    from fracray.runtime.efficiency import EfficiencyTracker
    from fracray.runtime.imports import wait_for_imports
    from fracray.runtime.ray_session import connect
    from fracray.runtime.resources import gather, present, require_seen
    from fracray.runtime.run_folder import OVERRIDES, say_changed
    from fracray.runtime.storage import Folder
    from fracray.runtime.timeline import COMMAND, START, Stretch
    from fracray.search.imports import FIRST, preload

    if __name__ == "__main__":  # the process does nothing else, so its start is part of what the search costs
        begun = psutil.Process().create_time()
    START.add(COMMAND, Stretch("reads the command", begun, time.time()))
    console = new_console()
    if args.resume:
        say_changed(console, run)
    with connect(args.address, lambda: _how_to_continue(args, run), FIRST, preload(space.config)):
        from fracray.data.prepare import prepare
        from fracray.data.report import say_phantom, say_prepared
        from fracray.search.auto import resolved
        from fracray.search.launch import at_once, find_places
        from fracray.tracking.live import LiveLog
        from fracray.training.job import make_job

        say_phantom(console, space.config)
        gather(lambda words: console.print(words, soft_wrap=True))
        each = find_places(space.config, console)  # refused before anything that takes long
        if args.resume:
            run.write_json(OVERRIDES, args.overrides)  # kept for the next --resume, as they are not refused
        if run.is_local:
            require_seen(run.path("environment.json"), f"--storage {args.storage}")
        space = resolved(space, at_once(space.config.search), console)
        with START.stretch("prepares the data"):
            prepared = prepare(space.config.data, console, shelf=Folder(args.storage))
            say_prepared(console, prepared, space.config.model.localise)
            job = make_job(space.config, run, prepared)
        unit = "GPU" if each.gpus else "CPU"
        tracker = EfficiencyTracker(begun, lambda: present(unit), unit)
        live = held.enter_context(LiveLog(args.targets, run, console))
        finished, over, clock = _search(space, job, warm, tracker, console, args.callbacks, live)
        refits = space.config.search.refit.top > 0 and (finished or over)
        wait_for_imports()
        from fracray.reporting.write import leave_report
        from fracray.search.results import summarise

        summarise(space, run, prepared, tracker, console, refit_follows=refits)
        refitted = True
        if refits:
            refitted, used_up = _refit(space, job, prepared, tracker, clock, console, live)
            over = over if refitted else used_up
        leave_report(run, prepared.manifest, console)
    if not (finished and refitted):
        what = "search" if not finished else "refit"
        words = f"the {what} is not finished; {_how_to_continue(args, run)}"
        if not over:
            raise KeyboardInterrupt(words)
        console.print(f"\n{words}", soft_wrap=True)


def _search(
    space: SearchSpace,
    job: Job,
    warm: WarmStart,
    tracker: EfficiencyTracker,
    console: Console,
    callbacks: Sequence[Callback],
    live: LiveLog,
) -> tuple[bool, bool, KeepsBack | None]:
    """Run the missing trials; whether all are done, whether the time budget ended them, and the clock of one that a
    refit shares."""
    from fracray.runtime.console import counted
    from fracray.runtime.run_folder import REFIT
    from fracray.search.launch import places_of, run_trials
    from fracray.search.notes import say_notes
    from fracray.search.progress import SearchProgress
    from fracray.search.refit_trials import KeepsBack
    from fracray.search.schedulers import StudyScheduler
    from fracray.search.study import StudySearcher, local_journal
    from fracray.search.trials_table import StudyLedger
    from fracray.search.warm_start import told_points

    search = space.config.search
    _, concurrent = places_of(job)
    with local_journal(job.run) as journal:
        budget = min(search.trials, space.grid_points or search.trials)
        searcher = StudySearcher(space, journal, budget, lambda: told_points(warm, job.run, console))
        missing = searcher.remaining
        if missing <= 0:
            done = "the one trial is" if budget == 1 else f"all {budget:,} trials are"
            console.print(f"{done} done; --trials with a larger number adds more")
            return True, False, None
        console.print(
            f"searching {counted(len(space.dimensions), 'setting')} with {search.sampler.name} and "
            f"{search.scheduler.name}: "
            f"{missing} of {counted(budget, 'trial')} to run, {concurrent} at a time, "
            f"up to {counted(space.config.train.epochs, 'epoch')} each; run folder {job.run}",
            soft_wrap=True,
        )
        say_notes(space, console)
        ledger = StudyLedger(job.run, searcher.study, journal, space.config.train.epochs)
        progress = SearchProgress(space, job.run, ledger, budget, tracker, console, search.time_budget, live.trial)
        shared = search.time_budget is not None and search.refit.top > 0
        clock = KeepsBack(space.config, concurrent, lambda: progress.rows, job.run.sub(REFIT)) if shared else None
        seconds = None if clock else search.time_budget
        run_trials(job, searcher, progress, StudyScheduler(searcher.stops), seconds, clock, callbacks)
        over = clock.ended if clock else seconds is not None and progress.elapsed >= seconds
        return searcher.remaining <= 0 and not progress.unfinished(searcher.left), over, clock


def _refit(
    space: SearchSpace,
    job: Job,
    prepared: Prepared,
    tracker: EfficiencyTracker,
    clock: KeepsBack | None,
    console: Console,
    live: LiveLog,
) -> tuple[bool, bool]:
    """Train the best configurations anew in what is left of the time budget: see `refit`."""
    from fracray.search.refit_run import RefitOptions, refit

    asked = space.config.search.refit
    if clock and clock.ended:
        console.print(f"\n{clock.words}", soft_wrap=True)
    options = RefitOptions(
        top=asked.top,
        seeds=asked.seeds,
        folds=asked.over_folds,
        members=asked.members,
        seconds=clock.left if clock else space.config.search.time_budget,
    )
    return refit(space, job.run, prepared, options, tracker, console, job.images, live.refitted)


if __name__ == "__main__":
    raise SystemExit(run_verb(main))
