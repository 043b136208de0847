"""python -m fracray.tune: search regularisation and augmentation with Ray Tune and Optuna.

Read from top to bottom: the command, the trials, the search, what it found.
"""

import argparse
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from ray import tune
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    TrialScheduler,
)
from rich.console import Console
from rich.table import Table

from fracray.board import DONE, RUNNING, STOPPED, WAITING, Board, TrialRow, best_row, cell, collect
from fracray.checkpoint import read_card, read_predictions
from fracray.cluster import connect, trials_at_once
from fracray.config import parse_assignments
from fracray.data.prepare import Prepared, prepare
from fracray.errors import InputError, RunError, run_verb
from fracray.group import WorkerGroup
from fracray.metrics import METRICS, Interval, paired_gain
from fracray.run import BEST, Folder, data_source, new_run, trial_folder, trial_name
from fracray.show import new_console, new_table, say_next_steps, say_phantom, say_prepared, scores_table
from fracray.space import SearchSpace, load_space
from fracray.study import JOURNAL, StudySearcher, open_study
from fracray.train import RAY_TASK_CPUS, Share, make_job
from fracray.trial import Job, Session, use_threads

SPACE = "space.yaml"
ACTOR_RETRIES = 2  # of a trial whose process died; it goes on from its last finished epoch


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
    cli.add_argument("--data", metavar="PATH", help="a FracAtlas folder or zip; default: the embedded phantom set")
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
    cli.add_argument("--address", help="a Ray cluster: auto, HOST:PORT or ray://HOST:PORT (default: a local one)")
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
    args = parser().parse_args(argv)
    console = new_console()
    space, run = _begin(args)
    say_phantom(console, space.config)
    with connect(args.address):
        _concurrency(space, spare=0.0)  # before anything long is begun
        prepared = prepare(space.config.data, console)
        say_prepared(console, prepared)
        job = make_job(space.config, run, prepared)
        finished = _search(space, job, console)
        _summary(space, run, prepared, console)
    if not finished:
        console.print(f"\nthe search is not finished; go on with: {_resume_command(args, run)}", soft_wrap=True)
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
    run.write_json("overrides.json", leaves)
    return space, run


def _resume_command(args: argparse.Namespace, run: Folder) -> str:
    storage = "" if args.storage == "runs" else f" --storage '{args.storage}'"
    return f"python -m fracray.tune --name {run.name}{storage} --resume"


# ---------------------------------------------------------------- the trials


class TrialActor(tune.Trainable):
    """One place in the search: a process that Tune reuses for one trial after another, an epoch a step.

    With one worker it trains in itself; with several it directs a group of Ray Train's workers. Either way a trial's
    folder is its memory, so what Tune saves when it pauses a trial need hold nothing.
    """

    def setup(self, config: dict[str, Any], job: Job, share: Share) -> None:
        self._job, self._share = job, share
        self._session: Session | None = None
        self._group: WorkerGroup | None = None
        if share.workers == 1:
            use_threads(job.config, share.cpus)
        else:
            self._group = WorkerGroup(job, share)
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        self._number, self._leaves = config["number"], config["leaves"]
        self._next: int | None = None
        if self._group is None:
            if self._session is not None:
                self._session.close()
            self._session = Session(self._job, self._number, self._leaves)

    def step(self) -> dict[str, Any]:
        if self._group is not None:
            metrics = self._group.epoch(self._number, self._leaves, self._next)
        else:
            assert self._session is not None
            metrics = self._session.last() if self._session.done else self._session.run_epoch()
        self._next = metrics["training_iteration"] + 1
        return {**metrics, "done": metrics["diverged"] or self._next > self._job.config.train.epochs}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        Path(checkpoint_dir, "in-the-trial-folder").touch()

    def load_checkpoint(self, checkpoint: Any) -> None:
        pass

    def cleanup(self) -> None:
        if self._group is not None:
            self._group.stop()
        if self._session is not None:
            self._session.close()


def _trainable(space: SearchSpace, job: Job) -> Any:
    search = space.config.search
    share = Share(search.workers_per_trial, search.cpus_per_trial, search.gpus_per_trial)
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


def _concurrency(space: SearchSpace, spare: float) -> int:
    search = space.config.search
    return trials_at_once(
        search.workers_per_trial, search.cpus_per_trial, search.gpus_per_trial, spare, search.concurrent
    )


def _search(space: SearchSpace, job: Job, console: Console) -> bool:
    """Run the trials that are still missing; False when Ctrl-C or the time budget ended the search before that."""
    search = space.config.search
    concurrent = _concurrency(space, spare=0.0 if job.images is not None else RAY_TASK_CPUS)
    with _journal(job.run) as journal:
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
        board = Board(space, job.run, searcher.study, journal, concurrent, budget, console)
        tuner = tune.Tuner(
            _trainable(space, job),
            tune_config=tune.TuneConfig(
                metric=f"best_{space.metrics[0]}",
                mode=search.mode,
                search_alg=searcher,
                scheduler=_scheduler(space),
                num_samples=missing,
                max_concurrent_trials=concurrent,
                time_budget_s=search.time_budget,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=f"search-{uuid.uuid4().hex[:8]}",
                storage_path=job.run.path("ray"),
                storage_filesystem=job.run.filesystem,
                callbacks=[board],
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=ACTOR_RETRIES),
            ),
        )
        with board:
            tuner.fit()
        return searcher.remaining <= 0 and not any(row.state in (RUNNING, WAITING) for row in board.rows.values())


@contextmanager
def _journal(run: Folder) -> Iterator[Path]:
    """A local path of the study's journal: the file itself on a path, a copy that the board sends back on a URI."""
    if run.is_local:
        yield Path(run.path(JOURNAL))
        return
    with tempfile.TemporaryDirectory() as scratch:
        journal = Path(scratch) / JOURNAL
        if run.exists(JOURNAL):
            journal.write_bytes(run.read(JOURNAL))
        yield journal
        run.write(JOURNAL, journal.read_bytes())


# ---------------------------------------------------------------- what it found


def _summary(space: SearchSpace, run: Folder, prepared: Prepared, console: Console) -> None:
    """The best config, its gain over the default with its interval, what mattered, and what to type next."""
    with _journal(run) as journal:
        study = open_study(journal, space)
        rows = collect(run, study, space.config.train.epochs)
        importances = _importances(study)
    metric, mode = space.metrics[0], space.config.search.mode
    best = best_row(rows, metric, mode)
    if best is None:
        raise RunError(f"{run}: no trial finished an epoch; the errors stand in {run.path('ray')}")
    with tempfile.TemporaryDirectory() as scratch:
        winner = Path(scratch) / "best"
        trial_folder(run, best.number).download(BEST, winner)
        run.upload(winner, BEST)
        default = Path(scratch) / "default"
        gain = None
        if 0 in rows and rows[0].history and best.number != 0 and metric.removeprefix("val_") in METRICS:
            trial_folder(run, 0).download(BEST, default)
            gain = _gain(winner, default, metric.removeprefix("val_"))
    ended = sum(row.state in (DONE, STOPPED) for row in rows.values())
    console.print(f"\nbest of {ended} finished trials: {best.name}, {metric} {best.best(metric):.4f} at its best epoch")
    console.print(_config_table(space, best))
    _say_gain(console, best.number, gain, metric)
    if len(space.metrics) > 1:
        console.print("\nPareto front, each trial at its best epoch in the first metric:")
        console.print(_front_table(space, study, rows))
    if importances:
        console.print(f"\nimportance of each setting (fANOVA over {ended} trials):")
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


if __name__ == "__main__":
    raise SystemExit(run_verb(main))
