"""One trial on one rank: a config, its stream, its loop, and its folder, which is its whole memory.

The same session runs in a reused actor of Tune, in a worker of Train and in a test. Whoever starts a trial whose
folder holds a state goes on from there, at the cost of at most the epoch that was under way.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch

from fracray.checkpoint import SEEN_COLUMNS, Card, load_state, save_checkpoint, save_state
from fracray.config import Config
from fracray.data.ingest import Shards
from fracray.data.manifest import part_of
from fracray.data.resident import DeviceStream
from fracray.data.stream import MemoryStream, Plan, RayStream, make_plan
from fracray.errors import InputError
from fracray.fit import EpochReport, Fit, pick_device
from fracray.folds import Folds
from fracray.metrics import is_validation
from fracray.run import BEST, EPOCHS, STATE, Folder, trial_folder, trial_name


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


class Session:
    """One trial, from wherever its folder says it stands."""

    def __init__(
        self,
        job: Job,
        number: int,
        leaves: dict[str, Any],
        rank: int = 0,
        world: int = 1,
        device: torch.device | None = None,
    ) -> None:
        self._job, self._number = job, number
        self.config = job.config.with_leaves(leaves, f"trial {trial_name(number)}")
        plans = [
            make_plan(self.config, job.table.assign(split=split), job.shards, rank, world) for split in job.rotations
        ]
        device = device or pick_device()
        self._streams = [make_stream(self.config, plan, job, device) for plan in plans]
        fits = [Fit(self.config, stream, device, job.metric, job.config.search.mode) for stream in self._streams]
        self._fit = fits[0] if len(fits) == 1 else Folds(fits)
        self._folder = trial_folder(job.run, number)
        self._history: list[dict[str, float]] = []
        self._resume()

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

    def _identity(self) -> dict[str, Any]:
        """What makes this the same trial: all of its config but how the search around it is run."""
        return self.config.model_dump(mode="json", exclude={"search"})

    def run_epoch(self) -> dict[str, Any]:
        """Train and validate one epoch, keep what it gave, and return its metrics with the best epoch's.

        `best_<metric>` are the values at the epoch at which the searched metric was best so far; `diverged` says
        that the loss is no longer finite, and the trial ends.
        """
        report = self._fit.run_epoch()
        metrics = {**report.metrics, **self.best(), "seconds": report.seconds, "diverged": report.diverged}
        self._history = [*self._history, metrics]
        if self._fit.rank == 0:
            self._keep(report)
        return self.last()

    def best(self) -> dict[str, float]:
        """The best epoch's validation metrics, as best_val_*, best_val/view_*, best_worst_val_*, ...; nan for the
        searched ones where no epoch was finite."""
        found = {f"best_{name}": value for name, value in self._fit.best.items() if is_validation(name)}
        return {**{f"best_{metric}": math.nan for metric in self._job.metrics}, **found}

    def last(self) -> dict[str, Any]:
        """The last finished epoch's metrics, as Tune and Train are told of them."""
        metrics = self._history[-1]
        return {**metrics, "training_iteration": int(metrics["epoch"])}

    def _keep(self, report: EpochReport) -> None:
        with TemporaryDirectory() as scratch:
            if report.is_best:
                self._export(Path(scratch) / BEST, report)
                self._folder.upload(Path(scratch) / BEST, BEST)
            # The state goes last: it vouches for the best checkpoint and the history it was written after.
            tensors, meta = self._fit.state()
            save_state(Path(scratch) / STATE, tensors, {**meta, "config": self._identity(), "history": self._history})
            self._folder.write_json(EPOCHS, self._history)
            self._folder.upload(Path(scratch) / STATE, STATE)

    def _export(self, folder: Path, report: EpochReport) -> None:
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
        card = Card(
            config=self.config,
            threshold=seen.threshold,
            calibration=seen.calibration,
            metrics=report.metrics,
            data_fingerprint=self._job.fingerprint,
            epoch=report.epoch,
            trial=trial_name(self._number),
        )
        used = self._job.table[part_of(self._job.table["split"]).isin(("train", "val"))]
        save_checkpoint(folder, self._fit.best_weights, card, predictions, used[list(SEEN_COLUMNS)])

    def close(self) -> None:
        for stream in self._streams:
            stream.close()


def make_stream(config: Config, plan: Plan, job: Job, device: torch.device) -> MemoryStream | RayStream | DeviceStream:
    """The stream that the config asks for, of the images that the job holds, or where it holds none from its shards."""
    if job.images is None:
        return RayStream(plan, job.shards, config.train.epochs)
    if config.data.augment_on == "cpu":
        return MemoryStream(plan, job.images)
    refuse_missing_gpu(config, device.type != "cpu")
    return DeviceStream(plan, job.images, device)


def refuse_missing_gpu(config: Config, has_gpu: bool) -> None:
    """InputError where the GPU is to augment and there is none."""
    if config.data.augment_on == "gpu" and not has_gpu:
        raise InputError(
            "data.augment_on = gpu: the worker that is to augment has no GPU; give each one (--gpus-per-trial of tune, "
            "--gpus-per-worker of train), or leave data.augment_on at cpu"
        )


def use_threads(config: Config, cpus: float) -> None:
    """Give Torch the CPUs of this worker and no more: trials that share a machine must not crowd each other out."""
    torch.set_num_threads(config.train.threads or max(1, int(cpus)))
