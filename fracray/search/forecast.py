"""What a search will do and what it will cost, before it is begun: `tune --dry-run`. Writes nothing to the storage."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import ray
from rich.console import Console

from fracray.config import Config
from fracray.data.loading.plan import make_plan
from fracray.data.prepare import Prepared, prepare
from fracray.data.report import say_phantom, say_prepared
from fracray.errors import InputError, RunError
from fracray.runtime.console import counted, duration, new_console, new_table, setting_cell
from fracray.runtime.prices import HOLDS, NodePrice, Span, Work, money
from fracray.runtime.ray_session import Shared, connect
from fracray.runtime.resources import WorkerResources, alone, gather
from fracray.runtime.storage import Folder
from fracray.search.auto import resolved
from fracray.search.launch import at_once, find_places, places_of
from fracray.search.notes import say_notes
from fracray.search.pasha import first_budget
from fracray.search.refit import refit_config
from fracray.search.space import SearchSpace
from fracray.training.growth import work_in
from fracray.training.job import Job, gather_job
from fracray.training.timing import Timing, time_steps

MOST_TIMED = 8  # workers that are timed at the same time
BETWEEN_TRIALS = 0.35  # seconds of Tune, from one trial of a process to the next
AFTER_EPOCH = 0.05  # seconds that an epoch's report and its files may take
QUANTILES = (0.25, 0.9)  # of the steps' times, the ends of the range
CHANGES_COST = ("model.", "train.batch_size", "train.first_size", "train.grow_at", "train.head_epochs", "data.size")


@dataclass(frozen=True)
class Range:
    """From the least to the most, in seconds."""

    low: float
    high: float

    def __str__(self) -> str:
        low, high = duration(self.low), duration(self.high)
        return low if low == high else f"{low} to {high}"

    def hours(self, each: float) -> str:
        """So many of something, for that long: '0.4 to 0.5'."""
        low, high = (f"{seconds * each / 3600:.2g}" for seconds in (self.low, self.high))
        return low if low == high else f"{low} to {high}"


@dataclass(frozen=True)
class Forecast:
    """What trials of the default configuration take, all of which run to their last epoch.

    trial: of one trial; wall: of all; busy: of all, added up over the places.
    """

    trial: Range
    wall: Range
    busy: Range

    def with_refit(self, refit: "Forecast") -> "Forecast":
        """Both, one after the other."""
        wall, busy = (
            Range(one.low + two.low, one.high + two.high)
            for one, two in ((self.wall, refit.wall), (self.busy, refit.busy))
        )
        return Forecast(self.trial, wall, busy)


def forecast(
    config: Config,
    timings: Sequence[Timing],
    steps: int,
    trials: int,
    at_once: int,
    start: float,
    epochs: int | None = None,
) -> Forecast:
    """The seconds of `trials` trainings, `at_once` at a time, with so many steps an epoch.

    epochs: after which each ends; None: all. start: seconds until the first process is ready. The range is that of the
    timed steps.
    """
    epochs, rotations = epochs or config.train.epochs, config.data.split.rotations
    work = sum(work_in(config, epoch) for epoch in range(1, epochs + 1))
    times = np.concatenate([timing.steps for timing in timings])
    ends = []
    for quantile, after in zip(QUANTILES, (0.0, AFTER_EPOCH), strict=True):
        step = float(np.quantile(times, quantile))
        validation = float(np.quantile([timing.validation for timing in timings], quantile))
        build = float(np.quantile([timing.build for timing in timings], quantile))
        epoch_seconds = rotations * (steps * step * work + validation * epochs) + after * epochs
        ends.append(rotations * build + epoch_seconds + BETWEEN_TRIALS)
    trial, (low, high) = Range(*ends), ends
    return Forecast(
        trial,
        Range(start + low * trials / at_once, start + high * -(-trials // at_once)),
        Range(low * trials, high * trials),
    )


def forecast_search(space: SearchSpace, run: Folder, address: str | None, prices: Sequence[NodePrice] = ()) -> None:
    """Prepare the data, and print what a new search in `run` would do and take; Ray is started, or found at `address`.

    prices: of the types of nodes for which an estimate in money is wanted. Raises InputError as a search does.
    """
    console = new_console()
    say_phantom(console, space.config)
    with connect(address):
        gather(lambda words: console.print(words, soft_wrap=True))
        find_places(space.config, console)
        space = resolved(space, at_once(space.config.search), console)
        prepared = prepare(space.config.data, console)  # kept in this machine's cache, not in the storage
        say_prepared(console, prepared, space.config.model.localise)
        say_forecast(space, run, prepared, console, prices)


def say_forecast(
    space: SearchSpace, run: Folder, prepared: Prepared, console: Console, prices: Sequence[NodePrice] = ()
) -> None:
    """Print the settings, the space, the trials, and what they will take, from steps that are timed on the cluster."""
    config = space.config
    _say_settings(space, console)
    job = gather_job(config, run, prepared)
    if job.images is None and not alone():
        raise InputError(
            "--dry-run: the images do not fit a machine's memory, and to time a step on several machines they would "
            "have to be written to --storage; try a smaller data.size"
        )
    each, places = places_of(job)
    trials = min(config.search.trials, space.grid_points or config.search.trials)
    plan = make_plan(config, job.table.assign(split=job.rotations[0]), job.shards)
    console.print(
        f"{counted(trials, 'trial')}, {places} at a time, each on {each}, "
        f"up to {counted(config.train.epochs, 'epoch')} of {counted(plan.steps, 'step')}"
        f"{config.data.split.for_each_fold}",
        soft_wrap=True,
    )
    begun = time.time()
    timings = _time(job, each, min(MOST_TIMED, places * each.workers))
    start = min(timing.ready for timing in timings) - begun
    say_notes(space, console)
    steps = np.concatenate([timing.steps for timing in timings])
    low, high = np.quantile(steps, QUANTILES) * 1000
    console.print(
        f"timed {counted(len(steps), 'step')} of the default configuration on {counted(len(timings), 'worker')} at the "
        f"same time: {low:.3g} to {high:.3g} ms a step; validation {max(one.validation for one in timings):.2g} s",
        soft_wrap=True,
    )
    found = forecast(config, timings, plan.steps, trials, places, start)
    console.print(f"expected: {found.wall}; {_cost(found, each)}; {found.trial} for a trial", soft_wrap=True)
    if (first := first_budget(config)) < config.train.epochs:
        least = forecast(config, timings, plan.steps, trials, places, start, first)
        console.print(
            f"where pasha gives no trial more than {counted(first, 'epoch')}: {least.wall}; {_cost(least, each)}",
            soft_wrap=True,
        )
    if config.search.refit.top:
        again = refit_config(config, config.search.refit.over_folds)
        trainings = (config.search.refit.top + 1) * config.search.refit.seeds
        more = forecast(again, timings, plan.steps, trainings, places, 0.0)
        console.print(
            f"the refit, up to {counted(trainings, 'training')}{again.data.split.for_each_fold}: {more.wall} more; "
            f"{_cost(more, each)}",
            soft_wrap=True,
        )
        found = found.with_refit(more)
    if prices:
        console.print(f"in money{', with the refit' if config.search.refit.top else ''}:")
        for line in money(prices, _work(found, each)):
            console.print(f"  {line}", soft_wrap=True)
        console.print(f"{HOLDS}.", soft_wrap=True)
    if (budget := config.search.time_budget) is not None:
        console.print(f"search.time_budget ends it after {duration(budget)} in any case", soft_wrap=True)
        if config.search.refit.top and more.wall.high > budget / 2:
            console.print(
                "note: the refit may not end within it, as half of the budget is the most that is kept back for it; "
                "fewer epochs, a smaller data.size or more time help",
                style="yellow",
                soft_wrap=True,
            )
    for line in left_out(space, each):
        console.print(f"not in it: {line}", soft_wrap=True)
    console.print(f"a dry run: nothing was written to {run.around}", soft_wrap=True)


def _time(job: Job, each: WorkerResources, workers: int) -> list[Timing]:
    task = ray.remote(max_retries=0)(time_steps).options(num_cpus=each.cpus, num_gpus=each.gpus)
    shared = Shared(job)
    try:
        return list(ray.get([task.remote(shared, each) for _ in range(workers)]))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError | RunError):
            raise error.cause from None
        raise RunError(f"a step of the default configuration could not be run: {error.cause}") from None
    except ray.exceptions.RayError as error:
        raise RunError(
            f"a step of the default configuration could not be run: {str(error).splitlines()[0]}; was the machine "
            "short of memory?"
        ) from None


def _cost(found: Forecast, each: WorkerResources) -> str:
    words = f"{found.busy.hours(each.workers * each.cpus)} core-hours"
    return f"{words}, {found.busy.hours(each.workers * each.gpus)} GPU-hours" if each.gpus else words


def _work(found: Forecast, each: WorkerResources) -> Work:
    """What is to be paid for, in hours."""
    busy = Span(found.busy.low / 3600, found.busy.high / 3600)
    wall = Span(found.wall.low / 3600, found.wall.high / 3600)
    return Work(busy.times(each.workers * each.cpus), busy.times(each.workers * each.gpus), wall)


def left_out(space: SearchSpace, each: WorkerResources) -> list[str]:
    """What makes a search shorter or longer than the forecast says."""
    search, lines = space.config.search, []
    if search.scheduler.name != "none":
        lines.append(f"trials that {search.scheduler.name} stops early, which make it shorter")
    changing = [one.path for one in space.dimensions if one.path.startswith(CHANGES_COST) and "dropout" not in one.path]
    if changing:
        lines.append(f"settings that change what a step costs: {', '.join(changing)}")
    if each.workers > 1:
        lines.append("what the workers of a trial tell each other after every step")
    return [*lines, "preparing the data, and what other programs take of the machines"]


def _say_settings(space: SearchSpace, console: Console) -> None:
    """The settings that are not the defaults', then what is searched."""
    leaves, defaults = space.config.leaves(), Config().leaves()
    console.print("\nsettings that differ from the defaults:")
    table = new_table("setting", "value", "default")
    for path, value in leaves.items():
        if path not in defaults or value != defaults[path]:
            table.add_row(path, setting_cell(value), setting_cell(defaults.get(path, "")))
    console.print(table if table.row_count else "none")
    console.print(f"searched, from {space.origin}:")
    table = new_table("setting", "values", "first trial")
    for dimension in space.dimensions:
        table.add_row(dimension.path, str(dimension), setting_cell(leaves.get(dimension.path, "")))
    console.print(table)
