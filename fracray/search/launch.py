"""Runs the trials that a searcher hands out, with Ray Tune: what each gets, how many at a time, until none is left.

Knows nothing of how a trial's settings are chosen, nor of what is shown.
"""

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import ray
from ray import tune
from ray.air._internal import usage
from ray.air.execution import FixedResourceManager
from ray.tune import Callback
from ray.tune.execution import class_cache, tune_controller
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper
from rich.console import Console

from fracray.config import Config, SearchConfig
from fracray.data.loading.streams import TASK_CPUS
from fracray.interrupts import listen
from fracray.runtime.imports import import_in_thread
from fracray.runtime.ray_session import own_cluster
from fracray.runtime.replaced import replaced
from fracray.runtime.resources import (
    WorkerResources,
    cpus_for,
    gpu_words,
    gpus_for,
    refuse_missing_gpu,
    trials_at_once,
)
from fracray.search.imports import LAST
from fracray.search.messages import searched
from fracray.search.trainable import trainable
from fracray.training.job import Job

if TYPE_CHECKING:
    from fracray.search.progress import SearchProgress

ROUNDING = 1e-6  # Ray Tune counts in floats: without it, 39 trials of 0.05 CPUs fit 2 CPUs


def places(search: SearchConfig, spare: float = 0.0) -> tuple[WorkerResources, int]:
    """What each trial gets and how many run at a time, if one machine keeps `spare` CPUs free.

    Fewer CPUs than asked for where Ray Data would have none left on a small cluster. InputError as `trials_at_once`.
    """
    gpus = gpus_for(search.workers_per_trial, search.gpus_per_trial, search.cpus_per_trial)
    each = WorkerResources(search.workers_per_trial, search.cpus_per_trial, gpus)
    most = cpus_for(each.workers, each.gpus, spare)
    if most < each.cpus <= cpus_for(each.workers, each.gpus):
        each = replace(each, cpus=most)
    return each, trials_at_once(each, spare, search.concurrent)


def at_once(search: SearchConfig) -> int:
    """How many trials of a search will run at a time, as far as is known before its data are prepared."""
    return places(search)[1]


def find_places(config: Config, console: Console) -> WorkerResources:
    """What each trial gets, or InputError where the cluster has no room for one; says which GPUs that is."""
    each, _ = places(config.search)
    refuse_missing_gpu(config.data.augment_on, each.gpus > 0)
    console.print(gpu_words(each, "trial", config.search.gpus_per_trial), soft_wrap=True)
    return each


def places_of(job: Job) -> tuple[WorkerResources, int]:
    """The places of a job, whose images Ray Data's tasks may have to prepare."""
    return places(job.config.search, 0.0 if job.images is not None else TASK_CPUS)


@contextmanager
def _started_processes(each: WorkerResources) -> Iterator[None]:
    """On the command's own cluster, let trials run in the processes that Ray has started for its CPUs.

    Tune would take two new ones for each place: it names variables of the environment, which here all processes have,
    and it asks for a placement group, which Ray announces by a task that uses up a process. Nobody else is on this
    cluster, so counting what trials have taken is enough.
    """
    if not own_cluster() or each.workers > 1:
        yield
        return
    room = {name: amount + ROUNDING for name, amount in ray.cluster_resources().items()}
    unnamed = replaced(class_cache, DEFAULT_ENV_VARS={}, ENV_VARS_TO_PROPAGATE=set())
    with unnamed, replaced(tune_controller, PlacementGroupResourceManager=partial(FixedResourceManager, room)):
        yield


def run_trials(
    job: Job,
    searcher: Searcher,
    progress: "SearchProgress",
    scheduler: FIFOScheduler | None = None,
    seconds: float | None = None,
    stop: Stopper | None = None,
    callbacks: Sequence[Callback] = (),
) -> None:
    """Run trials until the searcher has none left, `seconds` are over, or `stop` says so.

    callbacks: whom Tune tells of the trials, besides `progress`.
    """
    each, concurrent = places_of(job)
    tuner = tune.Tuner(
        trainable(job, each),
        tune_config=tune.TuneConfig(
            metric=searched(job.metric),
            mode=job.config.search.mode,
            search_alg=searcher,
            scheduler=scheduler or FIFOScheduler(),
            num_samples=-1,  # the searcher ends the search: a trial that lost its process is one sample more
            max_concurrent_trials=concurrent,
            time_budget_s=seconds,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=f"search-{uuid.uuid4().hex[:8]}",
            storage_path=job.run.path("ray"),
            storage_filesystem=job.run.filesystem,
            callbacks=[progress, *callbacks],
            stop=stop,
            verbose=0,
        ),
    )
    progress.then = partial(import_in_thread, LAST)
    # Tune notes for Ray's makers whose callbacks it is given, and would import MLflow to know its own from others.
    with progress, _started_processes(each), replaced(usage, tag_callbacks=lambda _: False):
        tuner.fit()
    listen()  # Tune leaves a handler that only ends its own loop
