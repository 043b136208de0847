"""What a search imports, where and when. Imports nothing of it.

Imports are most of a search's start: a second of a core for Torch, one for Ray Tune, in each process.
"""

import os
from glob import glob

from fracray.config import Config
from fracray.data.cache import was_prepared

# What the command needs at once, and takes as long to import as Ray takes to start; and what it needs when it ends.
FIRST = ("fracray.data.report", "fracray.search.launch", "fracray.search.progress", "fracray.search.refit_trials")
LAST = ("fracray.search.results", "fracray.reporting.write")
# What a process needs that runs trials.
TRIAL = (
    "fracray.search.trainable",
    "fracray.training.workers",
    "fracray.training.trial",
    "scipy.optimize",
    "fracray.search.ready",
)


def preload(config: Config) -> dict[str, str]:
    """The environment in which Ray's processes on this machine import what trials need as soon as they start.

    Ray starts one for each core. Empty where trials will run in less than half of them, and where radiographs are still
    to be read: the processes that read them run no trials.
    """
    search, cores = config.search, len(os.sched_getaffinity(0))
    gpus = search.gpus_per_trial != 0 and (glob("/dev/nvidia[0-9]*") or glob("/dev/kfd"))
    fit = min(search.trials, int(cores // search.cpus_per_trial))
    few = search.workers_per_trial > 1 or gpus or 2 * min(search.concurrent or fit, fit) < cores
    if few or not was_prepared(config.data):
        return {}
    # Ray sets the threads when a trial begins. NumPy and SciPy read that at their import, and with more threads than a
    # trial has cores the calibration of an epoch takes a hundred times as long.
    return {"RAY_preload_python_modules": ",".join(TRIAL), "OMP_NUM_THREADS": str(max(1, int(search.cpus_per_trial)))}
