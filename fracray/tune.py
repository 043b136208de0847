"""python -m fracray.tune: search regularisation and augmentation with Ray Tune and Optuna.

Read from top to bottom: the command, the trials, the search, what it found.
"""

import argparse
import math
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch
from ray import tune
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    TrialScheduler,
)
from rich.console import Console

from fracray.config import parse_assignments
from fracray.data.loading.streams import TASK_CPUS
from fracray.data.prepare import prepare
from fracray.errors import InputError, run_verb
from fracray.runtime.efficiency import PREFIX, RAN, REPORTING, STARTING, EfficiencyTracker, Meter
from fracray.runtime.ray_session import connect, cpus_for, gather, present, require_seen, trials_at_once
from fracray.runtime.run_folder import data_source, how_to_go_on, new_run
from fracray.runtime.show import new_console, say_phantom, say_prepared
from fracray.runtime.storage import Folder
from fracray.search.progress import RUNNING, WAITING, SearchProgress
from fracray.search.results import summarise
from fracray.search.space import SearchSpace
from fracray.search.space_file import load_space
from fracray.search.study import FAILURE, StudySearcher, local_journal, only_driver
from fracray.search.worker_group import WorkerGroup
from fracray.train import Share, make_job
from fracray.training.loop import pick_device
from fracray.training.model import build_model
from fracray.training.trial import Job, TrialRunner, refuse_missing_gpu, use_cores

SPACE = "space.yaml"


# ---------------------------------------------------------------- the command


def parser() -> argparse.ArgumentParser:
    cli = argparse.ArgumentParser(
        prog="python -m fracray.tune",
        description="Search dropout, augmentation and any other setting for the highest validation accuracy, "
        "with Ray Tune and Optuna. The default configuration is always the first trial.",
        epilog="examples:\n"
        "  python -m fracray.tune --space search_spaces/reg.yaml\n"
        "  python -m fracray.tune --space search_spaces/reg.yaml --data FracAtlas.zip --trials 64 --name atlas\n"
        "  python -m fracray.tune --name atlas --resume\n"
        "  python -m fracray.tune --space search_spaces/reg.yaml --gpus-per-trial 0.25 --address auto\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cli.add_argument(
        "--space", metavar="FILE", help="the search-space file (search_spaces/ has some); needed unless --resume"
    )
    cli.add_argument("--data", metavar="PATH", help="FracAtlas (folder, zip) or an imported set; default: phantoms")
    cli.add_argument("--trials", type=int, help="trials in all, over every resume")
    cli.add_argument("--epochs", type=int, help="epochs of a trial that is not stopped early")
    cli.add_argument("--concurrent", type=int, help="trials at a time; default: as many as fit the cluster")
    cli.add_argument("--workers-per-trial", type=int, help="Ray Train workers of a trial (default 1: a reused process)")
    cli.add_argument("--cpus-per-trial", type=float, help="CPUs of each worker of a trial (default 1)")
    cli.add_argument(
        "--gpus-per-trial", type=float, help="GPUs of each worker of a trial; a fraction shares one (default 0)"
    )
    cli.add_argument("--time-budget", type=float, metavar="SECONDS", help="stop searching after this long")
    cli.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="fix one setting for all trials; repeatable"
    )
    cli.add_argument("--storage", default="runs", help="folder or URI that holds the runs (default %(default)s)")
    cli.add_argument("--name", help="name of the run folder (default: tune- and the time)")
    cli.add_argument(
        "--resume", action="store_true", help="go on with the search of this --name, Optuna's history intact"
    )
    cli.add_argument("--address", help="a Ray cluster: auto or HOST:PORT (default: a local one)")
    return cli


FLAGS = {
    "trials": "search.trials",
    "epochs": "train.epochs",
    "concurrent": "search.concurrent",
    "workers_per_trial": "search.workers_per_trial",
    "cpus_per_trial": "search.cpus_per_trial",
    "gpus_per_trial": "search.gpus_per_trial",
    "time_budget": "search.time_budget",
}


def main(argv: Sequence[str]) -> None:
    # From the start of the process where it runs this command and nothing else: imports are a part of what it costs.
    begun = psutil.Process().create_time() if __name__ == "__main__" else time.time()
    args = parser().parse_args(argv)
    console = new_console()
    space, run = _begin(args)
    started = time.monotonic()
    say_phantom(console, space.config)
    with connect(args.address, lambda: how_to_go_on("tune", args.storage, run)):
        gather(lambda words: console.print(words, soft_wrap=True))
        _places(space, _share(space))  # before anything long is begun
        if run.is_local:
            require_seen(run.path("environment.json"), f"--storage {args.storage}")
        prepared = prepare(space.config.data, console, shelf=Folder(args.storage))
        say_prepared(console, prepared)
        job = make_job(space.config, run, prepared)
        unit = "GPU" if space.config.search.gpus_per_trial else "CPU"
        tracker = EfficiencyTracker(begun, lambda: present(unit), unit)
        finished = _search(space, job, tracker, console)
        summarise(space, run, prepared, tracker, console)
    if not finished:
        console.print(f"\nthe search is not finished; {how_to_go_on('tune', args.storage, run)}", soft_wrap=True)
        budget = space.config.search.time_budget
        if budget is None or time.monotonic() - started < budget:
            raise KeyboardInterrupt


def _begin(args: argparse.Namespace) -> tuple[SearchSpace, Folder]:
    """The space and the run folder, begun or taken up again; everything that can be refused early is."""
    leaves = parse_assignments(args.set)
    if args.data:
        leaves["data.source"] = data_source(args.data)
    leaves |= {path: getattr(args, flag) for flag, path in FLAGS.items() if getattr(args, flag) is not None}
    if not args.resume:
        if not args.space:
            raise InputError("--space: name a search-space file, for example --space search_spaces/reg.yaml")
        space = load_space(args.space, leaves)
        refuse_missing_gpu(space.config, space.config.search.gpus_per_trial > 0)
        _check_models(space)
        run = new_run(args.storage, args.name, "tune", resume=False)
        run.write(SPACE, Path(args.space).read_bytes())
        run.write_json("overrides.json", leaves)
        return space, run
    if args.space or args.data or args.set or args.epochs:
        raise InputError(
            "--resume goes on with the run's own space and data; leave out --space, --data, --set and --epochs"
        )
    run = new_run(args.storage, args.name, "tune", resume=True)
    leaves = {**run.read_json("overrides.json"), **leaves}
    with run.local_copy(SPACE) as path:
        space = load_space(path, leaves)
    refuse_missing_gpu(space.config, space.config.search.gpus_per_trial > 0)
    run.write_json("overrides.json", leaves)
    return space, run


def _check_models(space: SearchSpace) -> None:
    """Build each network that the space can ask for: a name or weights that cannot be had are refused before launch."""
    dimensions = {dimension.path: dimension for dimension in space.dimensions}
    for name in dimensions["model.name"].choices if "model.name" in dimensions else (space.config.model.name,):
        leaves = {"model.name": name}
        for path in ("model.weights", "model.spatial_dropout"):
            if path in dimensions and dimensions[path].active({**space.config.leaves(), **leaves}):
                leaves[path] = dimensions[path].choices[-1]
        build_model(space.config.with_leaves(leaves, space.origin).model, size=space.config.data.size)


# ---------------------------------------------------------------- the trials


class TrialActor(tune.Trainable):
    """One place in the search: a process that Tune reuses for one trial after another, an epoch a step.

    With one worker it trains in itself; with several it directs a group of Ray Train's workers. Either way a trial's
    folder is its memory, so what Tune saves when it pauses a trial need hold nothing.
    """

    def setup(self, config: dict[str, Any], job: Job, share: Share) -> None:
        self._job, self._share = job, share
        self._runner: TrialRunner | None = None
        self._group: WorkerGroup | None = None
        self._led = False  # whether the group has answered an order
        if share.workers == 1:
            self._meter = use_cores(job.config, share.cpus, share.gpus)
        else:
            self._group = WorkerGroup(job, share)
            self._meter = Meter(cores=share.workers * (share.gpus or share.cpus))
        self._begin(config)
        self._ended = time.perf_counter()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        self._number, self._leaves = config["number"], config["leaves"]
        self._next: int | None = None
        self._pause = STARTING
        self._close()

    def step(self) -> dict[str, Any]:
        self._meter.add_wall(self._pause, time.perf_counter() - self._ended)
        self._pause = REPORTING
        if self._group is not None:
            metrics = self._group_epoch(self._group)
        else:
            try:
                metrics = self._epoch()
            except (InputError, ValueError) as error:
                # It would fail so in any process, and this one is as good as before: no error of Tune's, which ends it.
                self._close()
                self._ended = time.perf_counter()
                nothing = {f"best_{metric}": math.nan for metric in self._job.metrics}
                return {**nothing, FAILURE: " ".join(str(error).split()), "done": True}
        self._next = metrics["training_iteration"] + 1
        self._ended = time.perf_counter()
        return {**metrics, "done": metrics["diverged"] or self._next > self._job.config.train.epochs}

    def _epoch(self) -> dict[str, Any]:
        if self._runner is None:
            device = pick_device() if self._share.gpus else torch.device("cpu")
            with self._meter.waiting(STARTING):
                self._runner = TrialRunner(self._job, self._number, self._leaves, device=device, meter=self._meter)
        if self._runner.done:
            return {**self._runner.last(), RAN: False}
        return {**self._runner.run_epoch(), RAN: True}

    def _group_epoch(self, group: WorkerGroup) -> dict[str, Any]:
        """An epoch on the group's workers, with what it cost beside: starting them, and handing orders to and fro."""
        begun, first = time.perf_counter(), not self._led
        metrics = group.epoch(self._number, self._leaves, self._next)
        self._led = True
        if metrics[RAN]:
            beside = time.perf_counter() - begun - metrics["seconds"] - metrics[PREFIX + STARTING] / self._meter.cores
            self._meter.add_wall(STARTING if first else REPORTING, max(0.0, beside))
        for phase, seconds in self._meter.take().items():
            metrics[phase] += seconds
        return metrics

    def _close(self) -> None:
        if self._runner is not None:
            self._runner.close()
            self._runner = None

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        Path(checkpoint_dir, "in-the-trial-folder").touch()

    def load_checkpoint(self, checkpoint: Any) -> None:
        pass

    def cleanup(self) -> None:
        if self._group is not None:
            self._group.stop()
        self._close()


def _trainable(job: Job, share: Share) -> Any:
    actor = tune.with_parameters(TrialActor, job=job, share=share)
    if share.workers == 1:
        return tune.with_resources(actor, {"cpu": share.cpus, "gpu": share.gpus})
    # The process that directs a group only waits. With a CPU of its own, two of them on two CPUs would wait for
    # their workers for ever.
    return tune.with_resources(actor, {"node:__internal_head__": 0.001})


# ---------------------------------------------------------------- the search


def _scheduler(space: SearchSpace) -> TrialScheduler:
    settings, epochs = space.config.search.scheduler, space.config.train.epochs
    grace = min(settings.grace_epochs, epochs)
    if settings.name == "asha":
        return AsyncHyperBandScheduler(
            time_attr="training_iteration", max_t=epochs, grace_period=grace, reduction_factor=settings.reduction_factor
        )
    if settings.name == "hyperband":
        return HyperBandScheduler(
            time_attr="training_iteration", max_t=epochs, reduction_factor=settings.reduction_factor
        )
    if settings.name == "median":
        return MedianStoppingRule(time_attr="training_iteration", grace_period=grace, min_samples_required=3)
    return FIFOScheduler()


def _share(space: SearchSpace, spare: float = 0.0) -> Share:
    """What each trial gets; one that would leave nothing of a small machine to Ray Data gives up what that needs."""
    search = space.config.search
    share = Share(search.workers_per_trial, search.cpus_per_trial, search.gpus_per_trial)
    most = cpus_for(share.workers, share.gpus, spare)
    return replace(share, cpus=most) if most < share.cpus <= cpus_for(share.workers, share.gpus) else share


def _places(space: SearchSpace, share: Share, spare: float = 0.0) -> int:
    return trials_at_once(share.workers, share.cpus, share.gpus, spare, space.config.search.concurrent)


def _search(space: SearchSpace, job: Job, tracker: EfficiencyTracker, console: Console) -> bool:
    """Run the trials that are still missing; False when Ctrl-C or the time budget ended the search before that."""
    search = space.config.search
    spare = 0.0 if job.images is not None else TASK_CPUS
    share = _share(space, spare)
    concurrent = _places(space, share, spare)
    with only_driver(job.run), local_journal(job.run) as journal:
        budget = min(search.trials, space.grid_points or search.trials)
        searcher = StudySearcher(space, journal, budget)
        missing = searcher.remaining
        if missing <= 0:
            console.print(f"all {budget} trials are done; --trials with a larger number adds more")
            return True
        console.print(
            f"searching {len(space.dimensions)} settings with {search.sampler.name} and {search.scheduler.name}: "
            f"{missing} of {budget} trials to run, {concurrent} at a time, "
            f"up to {space.config.train.epochs} epochs each; run folder {job.run}",
            soft_wrap=True,
        )
        progress = SearchProgress(space, job.run, searcher.study, journal, concurrent, budget, tracker, console)
        tuner = tune.Tuner(
            _trainable(job, share),
            tune_config=tune.TuneConfig(
                metric=f"best_{space.metrics[0]}",
                mode=search.mode,
                search_alg=searcher,
                scheduler=_scheduler(space),
                num_samples=-1,  # the searcher says when it is done: a trial that lost its process is one sample more
                max_concurrent_trials=concurrent,
                time_budget_s=search.time_budget,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=f"search-{uuid.uuid4().hex[:8]}",
                storage_path=job.run.path("ray"),
                storage_filesystem=job.run.filesystem,
                callbacks=[progress],
                verbose=0,
            ),
        )
        with progress:
            tuner.fit()
        return searcher.remaining <= 0 and not any(row.state in (RUNNING, WAITING) for row in progress.rows.values())


if __name__ == "__main__":
    raise SystemExit(run_verb(main))
