"""One trial on one rank: a config, its stream, its loop, and its folder, which is its whole memory.

The same runner serves in a reused actor of Tune, in a worker of Train and in a test. Whoever starts a trial whose
folder holds a state goes on from there, at the cost of the epoch that was under way and of those finished since the
state was written, `train.keep_seconds` before it at most.
"""

import ctypes
import json
import math
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist

from fracray.config import Config
from fracray.data.loading.gpu_stream import DeviceStream
from fracray.data.loading.ingest import Shards
from fracray.data.loading.plan import Plan, make_plan
from fracray.data.loading.streams import MemoryStream, RayStream
from fracray.data.manifest import part_of
from fracray.errors import InputError
from fracray.metrics import is_validation
from fracray.runtime.efficiency import CHECKPOINTING, Meter
from fracray.runtime.run_folder import BEST, EPOCHS, STATE, trial_folder, trial_name
from fracray.runtime.storage import Folder
from fracray.training.checkpoint import SEEN_COLUMNS, CheckpointMetadata, load_state, save_checkpoint, save_state
from fracray.training.cross_validation import Folds
from fracray.training.loop import EpochReport, Fit, pick_device

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


@dataclass(frozen=True)
class Job:
    """What all trials of a run share.

    images: (N, S, S) uint8, shared read-only; None has Ray Data stream the shards instead.
    """

    config: Config
    run: Folder
    shards: Shards
    table: pd.DataFrame  # image_id, group, label, split, pixel_hash of every shard row
    fingerprint: str
    rotations: tuple[np.ndarray, ...]  # split column of each division to train on
    metrics: tuple[str, ...]
    images: np.ndarray | None

    @property
    def metric(self) -> str:
        return self.metrics[0]


@dataclass(frozen=True)
class _State:
    """What resumption needs, as it was when an epoch ended, and the best epoch if it has yet to be written."""

    tensors: dict[str, torch.Tensor]
    meta: dict[str, Any]
    best: EpochReport | None
    weights: dict[str, torch.Tensor]


class TrialRunner:
    """One trial, from wherever its folder says it stands."""

    def __init__(
        self,
        job: Job,
        number: int,
        leaves: dict[str, Any],
        rank: int = 0,
        world: int = 1,
        device: torch.device | None = None,
        meter: Meter | None = None,
    ) -> None:
        self._job, self._number = job, number
        self._meter = meter or Meter(torch.get_num_threads())
        self.config = job.config.with_leaves(leaves, f"trial {trial_name(number)}")
        plans = [
            make_plan(self.config, job.table.assign(split=split), job.shards, rank, world) for split in job.rotations
        ]
        device = device or pick_device()
        self._streams = [make_stream(self.config, plan, job, device, self._meter) for plan in plans]
        fits = [
            Fit(self.config, stream, device, job.metric, job.config.search.mode, self._meter)
            for stream in self._streams
        ]
        self._fit = fits[0] if len(fits) == 1 else Folds(fits)
        self._folder = trial_folder(job.run, number)
        self._history: list[dict[str, float]] = []
        self._lines: list[str] = []  # the same as JSON: encoding all of a long trial's epochs after each would add up
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._best: EpochReport | None = None  # the best epoch, where its checkpoint is not written yet
        self._resume()
        self._kept, self._kept_epochs = time.monotonic(), self.epochs_done
        self._between = True  # epochs: within one, weights and optimiser are no state to go on from
        # ASHA knows a trial that was taken up again by a new name, and judges its first report as that of a rung.
        self._taken_up = self.epochs_done > 0

    @property
    def done(self) -> bool:
        return self._fit.done

    @property
    def epochs_done(self) -> int:
        return self._fit.epochs_done

    def _resume(self) -> None:
        if not self._folder.exists(STATE):
            return
        with self._folder.local_copy(STATE) as path:
            tensors, meta = load_state(path)
        if meta["config"] != self._identity():
            raise InputError(f"{self._folder}: was begun with another config; give the run another --name")
        self._fit.load_state(tensors, meta)
        self._history = meta["history"]
        self._lines = [json.dumps(metrics) for metrics in self._history]

    def _identity(self) -> dict[str, Any]:
        """What makes this the same trial: all of its config but how the search around it is run."""
        return self.config.model_dump(mode="json", exclude={"search"})

    def run_epoch(self) -> dict[str, Any]:
        """Train and validate one epoch, keep what it gave, and return its metrics with the best epoch's.

        `best_<metric>` are the values at the epoch at which the searched metric was best so far; `diverged` says
        that the loss is no longer finite, and the trial ends. Its weights and state are written by a thread, every
        `train.keep_seconds`, and before the report where the trial may end with it: what is finished is never lost.
        """
        self._between = False
        report = self._fit.run_epoch()
        self._between = True
        metrics = {
            **report.metrics,
            **self.best(),
            "seconds": report.seconds,
            "workers": float(self._fit.world),
            **self._spent(),
            "diverged": report.diverged,
        }
        self._history = [*self._history, metrics]
        self._lines.append(json.dumps(metrics))
        if report.is_best:
            self._best = report
        if self._fit.rank == 0:
            may_end = self.done or report.diverged or self._taken_up or may_stop(self._job.config, report.epoch)
            self._taken_up = False
            self._keep(may_end or time.monotonic() - self._kept > self.config.train.keep_seconds)
            if may_end:
                self.settle()
        return self.last()

    def _spent(self) -> dict[str, float]:
        """Core-seconds by phase since the last epoch's, all ranks together."""
        spent = self._meter.take()
        if self._fit.world == 1:
            return spent
        parts: list[dict[str, float]] = [{}] * self._fit.world
        dist.all_gather_object(parts, spent)
        return {phase: math.fsum(part[phase] for part in parts) for phase in spent}

    def best(self) -> dict[str, float]:
        """The best epoch's validation metrics, as best_val_*, best_val/view_*, best_worst_val_*, ...; nan for the
        searched ones where no epoch was finite."""
        found = {f"best_{name}": value for name, value in self._fit.best.items() if is_validation(name)}
        return {**{f"best_{metric}": math.nan for metric in self._job.metrics}, **found}

    def last(self) -> dict[str, Any]:
        """The last finished epoch's metrics, as Tune and Train are told of them."""
        metrics = self._history[-1]
        return {**metrics, "training_iteration": int(metrics["epoch"])}

    def _keep(self, whole: bool) -> None:
        """Have a thread write the metrics so far, and with `whole` all that resumption needs; one write at a time."""
        self.settle()
        with self._meter.work(CHECKPOINTING):
            state: _State | None = None
            if whole:
                tensors, meta = self._fit.state()
                meta |= {"config": self._identity(), "history": self._history}
                state = _State(tensors, meta, self._best, self._fit.best_weights)
                self._best, self._kept, self._kept_epochs = None, time.monotonic(), self.epochs_done
            self._writing = self._writer.submit(self._write, tuple(self._lines), state)

    def _write(self, lines: tuple[str, ...], state: _State | None) -> None:
        with self._meter.helper(), self._meter.helping(CHECKPOINTING):
            if state is not None and state.best is not None:
                with self._folder.building(BEST) as path:
                    self._export(path, state.best, state.weights)
            self._folder.write(EPOCHS, "[\n" + ",\n".join(lines) + "\n]\n")
            if state is not None:
                # It goes last: it vouches for the best checkpoint and the history it was written after.
                with self._folder.building(STATE) as path:
                    save_state(path, state.tensors, state.meta)

    def settle(self) -> None:
        """Wait for what is being written; raises what kept it from being so."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    @cached_property
    def _seen(self) -> pd.DataFrame:
        table = self._job.table
        return table.loc[part_of(table["split"]).isin(("train", "val")), list(SEEN_COLUMNS)]

    def _export(self, folder: Path, report: EpochReport, weights: dict[str, torch.Tensor]) -> None:
        seen = report.validation
        rows = self._job.table.iloc[seen.rows]
        predictions = pd.DataFrame(
            {
                "image_id": rows["image_id"].to_numpy(),
                "group": rows["group"].to_numpy(),
                "label": seen.labels.astype(np.int8),
                "split": rows["split"].to_numpy(),
                "logit": seen.logits,
            }
        )
        metadata = CheckpointMetadata(
            config=self.config,
            threshold=seen.threshold,
            calibration=seen.calibration,
            metrics=report.metrics,
            data_fingerprint=self._job.fingerprint,
            epoch=report.epoch,
            trial=trial_name(self._number),
        )
        save_checkpoint(folder, weights, metadata, predictions, self._seen)

    def close(self) -> None:
        """Stop what runs ahead, and write what is not written yet, unless an epoch broke off: the trial may go on."""
        for stream in self._streams:
            stream.close()
        try:
            if self._fit.rank == 0 and self._between and self._kept_epochs < self.epochs_done:
                self._keep(whole=True)
            self.settle()
        finally:
            self._writer.shutdown()


def make_stream(
    config: Config, plan: Plan, job: Job, device: torch.device, meter: Meter
) -> MemoryStream | RayStream | DeviceStream:
    """The stream that the config asks for, of the images that the job holds, or where it holds none from its shards."""
    if job.images is None:
        return RayStream(plan, job.shards, config.train.epochs, meter)
    if config.data.augment_on == "cpu":
        return MemoryStream(plan, job.images, config.train.epochs, meter)
    refuse_missing_gpu(config, device.type != "cpu")
    return DeviceStream(plan, job.images, device, meter)


def refuse_missing_gpu(config: Config, has_gpu: bool) -> None:
    """InputError where the GPU is to augment and there is none."""
    if config.data.augment_on == "gpu" and not has_gpu:
        raise InputError(
            "data.augment_on = gpu: the worker that is to augment has no GPU; give each one (--gpus-per-trial of tune, "
            "--gpus-per-worker of train), or leave data.augment_on at cpu"
        )


def may_stop(config: Config, epoch: int) -> bool:
    """Whether the search's scheduler may end a trial after this epoch (from 1), before its last."""
    scheduler = config.search.scheduler
    if scheduler.name == "asha":
        rung = float(min(scheduler.grace_epochs, config.train.epochs))
        while math.ceil(rung) < epoch:
            rung *= scheduler.reduction_factor
        return math.ceil(rung) == epoch
    return scheduler.name != "none"


def use_cores(config: Config, cpus: float, gpus: float = 0.0) -> Meter:
    """Give Torch the CPUs of this worker and no more, for trials that share a machine must not crowd each other out.

    Returns the meter of this process, which counts on its GPUs where it has any.
    """
    torch.set_num_threads(config.train.threads or max(1, int(cpus)))
    _keep_freed_memory()
    return Meter(torch.get_num_threads(), gpus or cpus, on_gpu=gpus > 0)


def _keep_freed_memory() -> None:
    """Have the C library keep what Torch frees, up to what the process once needed.

    By default glibc gives blocks of 128 KiB and more back to the system and gets them zeroed anew: at every step of a
    small network on a CPU for nearly every layer, which took a sixth of the training's and a third of the validation's
    time.
    """
    with suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)  # the most it takes
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
