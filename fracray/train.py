"""python -m fracray.train: train one config on N workers with Ray Train.

The loop is `fracray.training.loop`; here it gets its workers and its data, and the user sees the progress.
"""

import argparse
import os
import signal
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import isnan, nan
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
from rich.console import Console

from fracray.config import Config, load_config, parse_assignments
from fracray.data.datasheet import datasheet
from fracray.data.loading.streams import TASK_CPUS, fits_in_memory
from fracray.data.manifest import MANIFEST
from fracray.data.prepare import Prepared, prepare
from fracray.errors import InputError, RunError, run_verb
from fracray.runtime.ray_session import (
    capacity,
    connect,
    cpus_for,
    gather,
    refuse_shared_gpu,
    require_seen,
    trials_at_once,
)
from fracray.runtime.run_folder import (
    BEST,
    EPOCHS,
    data_source,
    how_to_go_on,
    new_run,
    stored_config,
    trial_folder,
    trial_name,
)
from fracray.runtime.show import epoch_line, new_console, say_next_steps, say_phantom, say_prepared, say_validation
from fracray.runtime.storage import Folder
from fracray.training.checkpoint import read_metadata
from fracray.training.model import build_model
from fracray.training.trial import Job, TrialRunner, refuse_missing_gpu, use_cores

TRIAL = 0  # a training is a run of one trial
MAX_FAILURES = 3
RESIZE_SECONDS = 30.0  # an elastic group looks so often for room for more workers: growing costs it a start
# Ray counts a dead machine in for up to 20 s, so that the group that follows may be too large to begin. Ray waits for
# its machines for this long, 60 s by default, and then counts again.
REGROUP_SECONDS = 20


def parser() -> argparse.ArgumentParser:
    cli = argparse.ArgumentParser(
        prog="python -m fracray.train",
        description="Train one fracture classifier on one or more workers and keep its best epoch as a checkpoint.",
        epilog="examples:\n"
        "  python -m fracray.train --epochs 8\n"
        "  python -m fracray.train --data FracAtlas.zip --workers 2 --set model.dropout=0.3 --set data.size=224\n"
        "  python -m fracray.train --data s3://bucket/FracAtlas --workers 1-4 --gpus-per-worker 1 --address auto\n"
        "  python -m fracray.train --name first --resume\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cli.add_argument("--data", metavar="PATH", help="FracAtlas (folder, zip) or an imported set; default: phantoms")
    cli.add_argument("--config", metavar="FILE", help="a config tree in YAML (a run's config.yaml), or a checkpoint")
    cli.add_argument(
        "--workers",
        default="1",
        metavar="N[-M]",
        help="processes that train together (default %(default)s); with 2-4 as many as there is room for, from two to "
        "four, as machines come and go",
    )
    cli.add_argument("--cpus-per-worker", type=float, help="default: as many whole ones as all workers can have")
    cli.add_argument("--gpus-per-worker", type=float, help="default: 1 where the cluster has that many GPUs, else 0")
    cli.add_argument("--epochs", type=int, help="short for --set train.epochs=N")
    cli.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="set one setting; repeatable")
    cli.add_argument("--storage", default="runs", help="folder or URI that holds the runs (default %(default)s)")
    cli.add_argument("--name", help="name of the run folder (default: train- and the time)")
    cli.add_argument("--resume", action="store_true", help="go on with the run of this --name")
    cli.add_argument("--address", help="a Ray cluster: auto or HOST:PORT (default: a local one)")
    return cli


def main(argv: Sequence[str]) -> None:
    args = parser().parse_args(argv)
    console = new_console()
    least, most = _workers(args.workers)
    config = _config(args)
    if not args.resume:
        build_model(config.model, size=config.data.size)  # a name or weights that cannot be had are refused here
    run = new_run(args.storage, args.name, "train", args.resume)
    if args.resume:
        if args.data or args.config or args.epochs or args.set:
            raise InputError(
                "--resume goes on with the run's own config; leave out --data, --config, --epochs and --set"
            )
        config = stored_config(run)
    say_phantom(console, config)
    with connect(args.address, lambda: how_to_go_on("train", args.storage, run)):
        gather(lambda words: console.print(words, soft_wrap=True))
        cpus, gpus = _shares(args, least, most)
        refuse_shared_gpu(most, gpus)
        refuse_missing_gpu(config, gpus > 0)
        trials_at_once(least, cpus, gpus)  # before anything long is begun
        if run.is_local:
            require_seen(run.path("environment.json"), f"--storage {args.storage}")
        prepared = prepare(config.data, console, shelf=Folder(args.storage))
        say_prepared(console, prepared)
        job = make_job(config, run, prepared)
        spare = 0.0 if job.images is not None else TASK_CPUS
        if args.cpus_per_worker is None:
            cpus, gpus = _shares(args, least, most, spare)
        trials_at_once(least, cpus, gpus, spare)
        console.print(
            f"training {config.model.name} on {args.workers} worker(s) with {cpus:g} CPU(s) and {gpus:g} GPU(s) each, "
            f"{config.train.epochs} epochs; run folder {run}",
            soft_wrap=True,
        )
        with _Follow(trial_folder(run, TRIAL), config, console):
            share = Share(most, cpus, gpus, least)
            try:
                run_workers(run, trial_name(TRIAL), _work, {"job": ray.put(job), "share": share}, share)
            except KeyboardInterrupt:
                going_on = how_to_go_on("train", args.storage, run)
                console.print(f"\nthe training is not finished; {going_on}", soft_wrap=True)
                raise
    history = trial_folder(run, TRIAL).read_json(EPOCHS)
    if isnan(history[-1].get("best_val_loss", nan)):
        raise RunError(
            f"{run}: the loss stopped being finite in epoch {len(history)}, and no epoch before it can be used; "
            "lower train.lr or set train.clip_norm=1, under another --name"
        )
    run.copy(f"trials/{trial_name(TRIAL)}/{BEST}", BEST)
    console.print(f"\nbest of {len(history)} epochs, on validation:")
    say_validation(console, prepared, history[-1])
    say_next_steps(console, run, BEST, config.data.source)


def _config(args: argparse.Namespace) -> Config:
    config = Config()
    if args.config:
        is_checkpoint = Path(args.config).is_dir()
        config = read_metadata(args.config).config if is_checkpoint else load_config(args.config)
    leaves = parse_assignments(args.set)
    if args.data:
        leaves["data.source"] = data_source(args.data)
    if args.epochs is not None:
        leaves["train.epochs"] = args.epochs
    return config.with_leaves(leaves, "command line")


def _workers(text: str) -> tuple[int, int]:
    """The fewest and the most workers that --workers names: '2' or '2-4'."""
    least, dash, most = text.partition("-")
    if not (least.isdecimal() and (most.isdecimal() or not dash)):
        raise InputError(f"--workers {text}: expected a number, or a range as 2-4")
    fewest, highest = int(least), int(most or least)
    if not 1 <= fewest <= highest:
        raise InputError(f"--workers {text}: at least one worker must train, and a range goes up")
    return fewest, highest


def _shares(args: argparse.Namespace, least: int, most: int, spare: float = 0.0) -> tuple[float, float]:
    """CPUs and GPUs of each worker, from the command line or the cluster, of which `spare` CPUs are to be left."""
    gpus = args.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if capacity("GPU") >= least else 0.0
    if gpus < 0 or (args.cpus_per_worker is not None and args.cpus_per_worker <= 0):
        raise InputError("--cpus-per-worker and --gpus-per-worker: a worker needs more than 0 CPUs and at least 0 GPUs")
    expected = max(least, min(most, int(capacity("GPU") / gpus))) if gpus else most
    return args.cpus_per_worker or cpus_for(expected, gpus, spare), gpus


def make_job(config: Config, run: Folder, prepared: Prepared) -> Job:
    """What the trials of a run share, images in memory or left to Ray Data's stream; written down in the run."""
    chosen = config.data.stream
    if chosen == "auto":
        chosen = "memory" if fits_in_memory(prepared.shards) else "ray"
        if chosen == "ray" and config.data.augment_on == "gpu":
            raise InputError(
                f"data.augment_on = gpu: the {prepared.shards.nbytes / 2**30:.1f} GiB of images do not fit this "
                "machine's memory, through which they reach the GPU; set data.augment_on=cpu, or a smaller data.size"
            )
    summary = prepared.summary()
    _refuse_change(run, summary)
    metric = config.search.metric
    job = Job(
        config=config,
        run=run,
        shards=prepared.shards,
        table=prepared.table[["image_id", "group", "label", "split", "pixel_hash"]],
        fingerprint=prepared.fingerprint,
        rotations=prepared.rotations,
        metrics=(metric,) if isinstance(metric, str) else tuple(metric),
        images=prepared.shards.load() if chosen == "memory" else None,
    )
    run.write_json("data.json", summary)
    run.write("DATASHEET.md", datasheet(summary))
    with TemporaryDirectory() as scratch:
        prepared.manifest.write(Path(scratch) / MANIFEST)
        run.upload(Path(scratch) / MANIFEST, MANIFEST)
    run.write("config.yaml", config.to_yaml())  # from here on the run is there to be resumed
    return job


def _refuse_change(run: Folder, summary: Mapping[str, Any]) -> None:
    """InputError where a resumed run was begun on other data, or on another split of them."""
    if not run.exists("config.yaml"):
        return
    begun = run.read_json("data.json")
    for key, words in (("fingerprint", "other files or labels"), ("split_fingerprint", "another split")):
        if begun.get(key) != summary[key]:
            raise InputError(f"{run}: was begun on {words} of {begun['origin']}; restore them, or begin a new run")


@dataclass(frozen=True)
class Share:
    """What a training gets of the cluster: workers, and CPUs and GPUs of each.

    least: begins and goes on with fewer workers, down to so many, while there is no room for more; 0 for none but all.
    """

    workers: int
    cpus: float
    gpus: float
    least: int = 0


def run_workers(
    run: Folder, name: str, loop: Callable[[dict[str, Any]], None], settings: dict[str, Any], share: Share
) -> None:
    """Run `loop(settings)` on Ray Train's workers, in one process group.

    A worker that dies takes its group with it; the group is started again, up to three times, and each trial goes on
    from the state in its folder. So it does when an elastic group grows. Raises RunError when workers died more often,
    or the loop itself failed.
    """
    import ray.train
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    elastic = 0 < share.least < share.workers
    if elastic:
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(REGROUP_SECONDS))
    trainer = TorchTrainer(
        loop,
        train_loop_config=settings,
        scaling_config=ScalingConfig(
            num_workers=(share.least, share.workers) if elastic else share.workers,
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,
            use_gpu=share.gpus > 0,
            resources_per_worker={"CPU": share.cpus, **({"GPU": share.gpus} if share.gpus else {})},
        ),
        torch_config=TorchConfig(backend="nccl" if share.gpus else "gloo"),
        run_config=RunConfig(
            # A name used twice would resume in silence and train nothing.
            name=f"{name}-{uuid.uuid4().hex[:8]}",
            storage_path=run.path("ray"),
            storage_filesystem=run.filesystem,
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
        ),
    )
    interrupted = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise RunError(f"training on {share.workers} worker(s): {_cause(error)}; --resume goes on from {run}") from None
    except SystemExit:  # what Ray makes of Ctrl-C
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, interrupted)  # Ray leaves a handler of its own behind


def _cause(error: BaseException) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def _work(settings: dict[str, Any]) -> None:
    """What every worker runs: the one trial, to its end."""
    import ray.train.torch

    context = ray.train.get_context()
    job: Job = ray.get(settings["job"])
    meter = use_cores(job.config, settings["share"].cpus, settings["share"].gpus)
    rank, world = context.get_world_rank(), context.get_world_size()
    runner = TrialRunner(job, TRIAL, {}, rank, world, ray.train.torch.get_device(), meter)
    try:
        while not runner.done:
            metrics = runner.run_epoch()
            ray.train.report(metrics)
            if metrics["diverged"]:
                break
    finally:
        runner.close()


class _Follow:
    """Prints a line for every epoch as the trial's folder gets it."""

    def __init__(self, folder: Folder, config: Config, console: Console) -> None:
        self._folder, self._config, self._console = folder, config, console
        self._shown = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._done.wait(0.5):
            with suppress(InputError, RunError):  # a storage out of reach: the next look tells what this one missed
                self._show()

    def _show(self) -> None:
        if self._folder.exists(EPOCHS):
            history = self._folder.read_json(EPOCHS)
            for metrics in history[self._shown :]:
                self._console.print(epoch_line(metrics, self._config.train.epochs))
            self._shown = len(history)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self._thread.join()
        if exc[0] is None:
            self._show()


if __name__ == "__main__":
    raise SystemExit(run_verb(main))
