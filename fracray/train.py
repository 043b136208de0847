"""python -m fracray.train: train one config on N workers with Ray Train.

The loop is `fracray.training.loop`; here it gets its workers and its data, and the user sees the progress.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fracray.errors import InputError, RunError, run_verb
from fracray.interrupts import remedy
from fracray.runtime.arguments import add_run_options, command

if TYPE_CHECKING:  # a command imports Torch and Ray only once its arguments are read and its files are found
    from fracray.config import Config
    from fracray.runtime.resources import WorkerResources
    from fracray.runtime.storage import Folder
    from fracray.training.steps import Reached

TRIAL = 0  # a training is a run of one trial
WORKERS = "1"  # by default
ANSWER_SECONDS = 2.0  # for the actor that knows how far the training is: the command must not wait for it

# ---------------------------------------------------------------- the command


def parser() -> argparse.ArgumentParser:
    cli = command(
        "train",
        "Train one fracture classifier on one or more workers and keep its best epoch as a checkpoint.",
        "  python -m fracray.train --epochs 8\n"
        "  python -m fracray.train --data FracAtlas.zip --workers 2 --set model.dropout=0.3 --set data.size=224\n"
        "  python -m fracray.train --data s3://bucket/FracAtlas --workers 1-4 --gpus-per-worker 1 --address auto\n"
        "  python -m fracray.train --name first --resume\n",
    )
    cli.add_argument("--config", metavar="FILE", help="a config tree in YAML (a run's config.yaml), or a checkpoint")
    cli.add_argument(
        "--workers",
        default=WORKERS,
        metavar="N[-M]",
        help="processes that train together (default %(default)s); with 2-4 as many as there is room for, from two to "
        "four, as machines come and go",
    )
    cli.add_argument("--cpus-per-worker", type=float, metavar="N", help="default: as many as all workers can have")
    cli.add_argument(
        "--gpus-per-worker", type=float, metavar="N", help="default: 1 where the cluster has that many GPUs, else 0"
    )
    add_run_options(cli, "train")
    return cli


def main(argv: Sequence[str]) -> None:
    args = parser().parse_args(argv)
    least, most = _workers(args.workers)
    with ExitStack() as held:  # the run, which no other command may work in, and its dashboards
        config, run = (_resume if args.resume else _begin)(args, held)
        _train(args, config, run, least, most, held)


# ---------------------------------------------------------------- its checks


def _workers(text: str) -> tuple[int, int]:
    """The fewest and the most workers that --workers names: '2' or '2-4'."""
    least, dash, most = text.partition("-")
    if not (least.isdecimal() and (most.isdecimal() or not dash)):
        raise InputError(f"--workers {text}: expected a number, or a range such as 2-4")
    fewest, highest = int(least), int(most or least)
    if fewest < 1:
        raise InputError(f"--workers {text}: at least one worker is needed")
    if fewest > highest:
        raise InputError(f"--workers {text}: the minimum must not exceed the maximum")
    return fewest, highest


def _begin(args: argparse.Namespace, held: ExitStack) -> tuple[Config, Folder]:
    """The config and the folder of a new run; everything that can be refused early is refused before it is written."""
    from fracray.config import Config

    config = _asked(args, Config())
    from fracray.runtime.run_folder import find_run

    run = find_run(args.storage, args.name, "train", resume=False)

    from fracray.tracking.targets import addresses, opened
    from fracray.training.growth import try_network

    named = addresses(args.log)
    try_network(config)  # an unknown name or missing weights are refused here
    args.targets = opened(named)
    _hold(args, run, held)
    return config, run


def _resume(args: argparse.Namespace, held: ExitStack) -> tuple[Config, Folder]:
    """The config and the folder of a run that exists; options that ask for another config are refused."""
    from fracray.runtime.run_folder import (
        SPACE,
        TRIALS,
        as_begun,
        find_run,
        how_to_continue,
        refuse_other,
        stored_config,
    )
    from fracray.tracking.targets import addresses, opened

    run = find_run(args.storage, args.name, "train", resume=True)
    if run.exists(SPACE):
        raise InputError(f"{run}: is a search, not a training; {how_to_continue('tune', args.storage, run)}")
    if run.exists(TRIALS):
        raise InputError(f"{run}: is the refit of a search; continue it with python -m fracray.refit")
    args.targets = opened(addresses(args.log))
    _hold(args, run, held)
    config = stored_config(run)
    if _with_direction(config, {}).search.mode != config.search.mode:
        raise InputError(
            f"{run}: began with an older version, which kept the epoch with the worst {config.search.metrics[0]}; "
            "start a new run with another --name"
        )
    refuse_other(run, config.leaves(), as_begun(run, _asked(args, config)).leaves(), "in this command")
    return config, run


def _asked(args: argparse.Namespace, config: Config) -> Config:
    """The config that the command line asks for, from this one where it names none."""
    from fracray.config import load_config, parse_assignments
    from fracray.runtime.locations import data_source

    leaves = parse_assignments(args.set)
    if args.data:
        leaves["data.source"] = data_source(args.data)
    if args.epochs is not None:
        leaves["train.epochs"] = args.epochs
    if args.config and Path(args.config).is_dir():
        from fracray.training.checkpoint import read_metadata

        config = read_metadata(args.config).config
    elif args.config:
        config = load_config(args.config)
    config = config.with_leaves(leaves, "command line")
    _, most = _workers(args.workers)
    # What is refused for so many workers of a trial is refused here too.
    config.with_leaves({"search.workers_per_trial": most}, f"--workers {args.workers}")
    return _with_direction(config, leaves)


def _with_direction(config: Config, leaves: Mapping[str, Any]) -> Config:
    """The config with the direction in which the metric of the best epoch is better; both are checked."""
    from fracray.data.splits.set_names import validation_sets
    from fracray.metric_names import mode_of, reported_metrics
    from fracray.search.space import check_metric

    if not config.search.metrics:
        raise InputError("search.metric: names no metric; name one, such as val_accuracy")
    metric = config.search.metrics[0]
    check_metric(metric, reported_metrics(validation_sets(config.data.split)), "search.metric")
    mode = mode_of(metric)
    if leaves.get("search.mode", mode) != mode:
        raise InputError(f"search.mode: {metric} is better when {'lower' if mode == 'min' else 'higher'}; set {mode}")
    return config.with_leaves({"search.mode": mode}, "search.metric")


def _hold(args: argparse.Namespace, run: Folder, held: ExitStack) -> None:
    """Keep other commands out of the run, and say how to continue it after Ctrl-C, as long as this one lasts."""
    from fracray.runtime.run_folder import open_for_work

    held.enter_context(remedy(lambda: _how_to_continue(args, run)))
    held.enter_context(open_for_work(run, args.storage, args.resume))


def _how_to_continue(args: argparse.Namespace, run: Folder) -> str:
    from fracray.runtime.run_folder import how_to_continue

    return how_to_continue(
        "train",
        args.storage,
        run,
        workers=None if args.workers == WORKERS else args.workers,
        cpus_per_worker=args.cpus_per_worker,
        gpus_per_worker=args.gpus_per_worker,
        address=args.address,
    )


# ---------------------------------------------------------------- the training


def _train(args: argparse.Namespace, config: Config, run: Folder, least: int, most: int, held: ExitStack) -> None:
    from fracray.data.loading.streams import TASK_CPUS
    from fracray.data.prepare import prepare
    from fracray.data.report import say_phantom, say_prepared
    from fracray.evaluation.report import on_validation, say_validation
    from fracray.reporting.write import leave_report
    from fracray.runtime.console import counted, new_console
    from fracray.runtime.ray_session import Shared, connect
    from fracray.runtime.resources import (
        gather,
        gpu_words,
        refuse_missing_gpu,
        refuse_shared_gpu,
        require_seen,
        trials_at_once,
    )
    from fracray.runtime.run_folder import BEST, next_steps, say_changed, trial_folder, trial_name
    from fracray.runtime.storage import Folder
    from fracray.tracking.live import LiveLog
    from fracray.training.epochs import read_epochs
    from fracray.training.job import make_job
    from fracray.training.watch import TrainingLines
    from fracray.training.workers import run_workers

    console = new_console()
    if args.resume:
        say_changed(console, run)
    say_phantom(console, config)
    with connect(args.address, lambda: _how_to_continue(args, run)):
        gather(lambda words: console.print(words, soft_wrap=True))
        each = _resources(args, least, most)
        refuse_shared_gpu(most, each.gpus)
        refuse_missing_gpu(config.data.augment_on, each.gpus > 0)
        trials_at_once(_fewest(each))  # refused before anything that takes long
        if run.is_local:
            require_seen(run.path("environment.json"), f"--storage {args.storage}")
        prepared = prepare(config.data, console, shelf=Folder(args.storage))
        say_prepared(console, prepared, config.model.localise)
        job = make_job(config, run, prepared)
        spare = 0.0 if job.images is not None else TASK_CPUS
        each = _resources(args, least, most, spare)
        trials_at_once(_fewest(each), spare)
        folds = config.data.split.for_each_fold
        folds += " (--set data.split.cross_validate=false trains one model)" if folds else ""
        console.print(
            f"training {config.model.name} on {args.workers} worker(s) with {each.cpus:g} CPU(s) and {each.gpus:g} "
            f"GPU(s) each, {counted(config.train.epochs, 'epoch')}{folds}; run folder {run}",
            soft_wrap=True,
        )
        console.print(gpu_words(_fewest(each), "worker", args.gpus_per_worker), soft_wrap=True)
        board, latest = _board()
        live = held.enter_context(LiveLog(args.targets, run, console))
        with TrainingLines(trial_folder(run, TRIAL), config, console, latest, live.training):
            settings = {"job": Shared(job), "each": each, "board": board}
            run_workers(
                run,
                trial_name(TRIAL),
                _work,
                settings,
                each,
                job.images is not None,
                f"; --resume continues from {run}",
            )
    history = read_epochs(trial_folder(run, TRIAL))
    if isnan(history[-1].value("val_loss")):
        raise RunError(
            f"{run}: the loss became infinite or NaN in epoch {len(history)}, and there is no earlier epoch to keep; "
            "lower train.lr or set train.clip_norm=1, and choose another --name"
        )
    run.copy(f"trials/{trial_name(TRIAL)}/{BEST}", BEST)
    if history[-1].diverged:
        console.print(
            f"warning: the loss became infinite or NaN in epoch {len(history)} of {config.train.epochs}, which ended "
            "the training; the best epoch before it is kept. Lower train.lr or set train.clip_norm=1",
            style="yellow",
            soft_wrap=True,
        )
    console.print(f"\nbest of {counted(len(history), 'epoch')}, {on_validation(config.data.split)}:")
    say_validation(console, prepared.over_folds(), history[-1].best, config.train.operating_point)
    leave_report(run, prepared.manifest, console)
    console.print(next_steps(run, BEST, config.data.source), soft_wrap=True)


def _resources(args: argparse.Namespace, least: int, most: int, spare: float = 0.0) -> WorkerResources:
    """What each worker gets, from the command line or the cluster, of which `spare` CPUs stay free."""
    from fracray.runtime.resources import WorkerResources, capacity, cpus_for, gpus_for

    gpus = args.gpus_per_worker
    if gpus is None:
        gpus = gpus_for(least, None)
    if gpus < 0 or (args.cpus_per_worker is not None and args.cpus_per_worker <= 0):
        raise InputError("--cpus-per-worker and --gpus-per-worker: a worker needs more than 0 CPUs and at least 0 GPUs")
    expected = max(least, min(most, int(capacity("GPU") / gpus))) if gpus else most
    return WorkerResources(most, args.cpus_per_worker or cpus_for(expected, gpus, spare), gpus, least)


def _fewest(each: WorkerResources) -> WorkerResources:
    """The resources without which the training cannot start."""
    return replace(each, workers=each.least)


def _board() -> tuple[Any, Callable[[], Reached | None]]:
    """The actor that the first worker tells how far it is, and a function that returns what was told last."""
    import ray

    from fracray.runtime.resources import here
    from fracray.training.steps import Latest

    board = ray.remote(Latest).options(num_cpus=0, scheduling_strategy=here()).remote()

    def latest() -> Reached | None:
        try:
            reached: Reached | None = ray.get(board.get.remote(), timeout=ANSWER_SECONDS)
        except ray.exceptions.RayError:  # it starts, or the cluster ends, which whoever trains on it says
            return None
        return reached

    return board, latest


def _work(settings: dict[str, Any]) -> None:
    """What every worker runs: the one trial, to its end."""
    import ray.train.torch

    from fracray.training.trial import TrialRunner
    from fracray.training.workers import use_cores

    context = ray.train.get_context()
    job = settings["job"].get()
    meter = use_cores(job.config, settings["each"].cpus, settings["each"].gpus)
    rank, world = context.get_world_rank(), context.get_world_size()
    put = settings["board"].put.remote
    runner = TrialRunner(job, TRIAL, {}, rank, world, ray.train.torch.get_device(), meter, put if rank == 0 else None)
    try:
        while not runner.done:
            result = runner.run_epoch()
            ray.train.report(result.to_json())
    finally:
        runner.close()


if __name__ == "__main__":
    raise SystemExit(run_verb(main))
