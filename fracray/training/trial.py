"""One trial on one rank: a config, its stream, its loop, and its folder, which holds all of its state.

The same runner serves a reused actor of Tune, a worker of Train and a test. A trial whose folder holds a state
continues from it. What is lost is the epoch that was running, and the epochs finished since the state was
written, at most `train.keep_seconds` before.
"""

import json
import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from fracray.config import Config, resolve
from fracray.data.loading.gpu_stream import DeviceStream
from fracray.data.loading.plan import Plan, make_plan
from fracray.data.loading.streams import MemoryStream, RayStream
from fracray.data.manifest import in_set, part_of
from fracray.errors import InputError
from fracray.metric_names import is_validation
from fracray.runtime.efficiency import CHECKPOINTING, Meter
from fracray.runtime.resources import refuse_missing_gpu
from fracray.runtime.run_folder import BEST, FOLDS, STATE, trial_folder, trial_name
from fracray.training.checkpoint import SEEN_COLUMNS, CheckpointMetadata, load_state, save_checkpoint, save_state
from fracray.training.cross_validation import Folds
from fracray.training.epochs import EpochResult, write_epochs
from fracray.training.job import Job
from fracray.training.loop import EpochReport, pick_device
from fracray.training.metered import MeteredFit
from fracray.training.ranks import add_up
from fracray.training.rungs import may_stop
from fracray.training.steps import Reached, StepCounter


@dataclass(frozen=True)
class _State:
    """What resumption needs, copied when an epoch ended, and the best epoch if its checkpoint is not written yet."""

    tensors: dict[str, torch.Tensor]
    meta: dict[str, Any]
    best: EpochReport | None
    weights: dict[str, torch.Tensor]


class TrialRunner:
    """One trial, from the state that its folder holds."""

    def __init__(
        self,
        job: Job,
        number: int,
        leaves: dict[str, Any],
        rank: int = 0,
        world: int = 1,
        device: torch.device | None = None,
        meter: Meter | None = None,
        tell: Callable[[Reached], None] | None = None,
    ) -> None:
        """`tell` is called about once a second while an epoch trains."""
        self._job, self.number = job, number
        self._meter = meter or Meter(torch.get_num_threads())
        self.config = job.config.with_leaves(leaves, f"trial {trial_name(number)}")
        plans = [
            make_plan(self.config, job.table.assign(split=split), job.shards, rank, world) for split in job.rotations
        ]
        self._device = device = device or pick_device()
        self._streams = [make_stream(self.config, plan, job, device, self._meter) for plan in plans]
        fits = [
            MeteredFit(self.config, stream, device, job.metric, job.config.search.mode, self._meter)
            for stream in self._streams
        ]
        if tell is not None:
            counter = StepCounter(sum(plan.steps for plan in plans), tell)
            for fit in fits:
                fit.counter = counter
        self._fit = fits[0] if len(fits) == 1 else Folds(fits)
        self._folder = trial_folder(job.run, number)
        self._history: list[EpochResult] = []
        self._lines: list[str] = []  # the history as JSON: encoding all of it after each epoch would add up
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._best: EpochReport | None = None  # the best epoch, while its checkpoint is not written
        self._resume()
        self._kept, self._kept_epochs = time.monotonic(), self.epochs_done
        self._between_epochs = True  # during an epoch, weights and optimiser are no state to resume from
        # Its first epoch is kept at once: an elastic group that grows, and is cut down again, goes forward.
        self._resumed = self.epochs_done > 0

    @property
    def done(self) -> bool:
        return self._fit.done or bool(self._history and self._history[-1].diverged)

    @property
    def epochs_done(self) -> int:
        return self._fit.epochs_done

    def _resume(self) -> None:
        if not self._folder.exists(STATE):
            return
        with self._folder.local_copy(STATE) as path:
            tensors, meta = load_state(path)
        # Read as a config, so that a setting which is newer than the state has its default.
        if _identity(resolve(meta["config"], str(self._folder), known_extra=True)) != _identity(self.config):
            raise InputError(f"{self._folder}: was started with another config; choose another --name for this run")
        self._fit.load_state(tensors, meta)
        self._history = [EpochResult.from_json(entry) for entry in meta["history"]]
        self._lines = [json.dumps(result.to_json()) for result in self._history]

    def run_epoch(self) -> EpochResult:
        """Train and validate one epoch, keep what is needed, and return the epoch's result.

        A thread writes weights and state every `train.keep_seconds`, and before the report where the trial may end
        with this epoch: the results of a finished trial are never lost.
        """
        self._between_epochs = False
        report = self._fit.run_epoch()
        self._between_epochs = True
        result = EpochResult(
            epoch=report.epoch,
            metrics={name: value for name, value in report.metrics.items() if name != "epoch"},
            best=self._best_metrics(),
            seconds=report.seconds,
            workers=self._fit.world,
            core_seconds=self._spent(),
            diverged=report.diverged,
        )
        self._history.append(result)
        self._lines.append(json.dumps(result.to_json()))
        if report.is_best:
            self._best = report
        if self._fit.rank == 0:
            may_end = self.done or may_stop(self._job.config, report.epoch)
            late = time.monotonic() - self._kept > self.config.train.keep_seconds
            self._keep(may_end or self._resumed or late)
            self._resumed = False
            if may_end:
                self.settle()
        return result

    def _spent(self) -> dict[str, float]:
        """Core-seconds by phase since the last epoch, all ranks together."""
        spent = self._meter.take()
        if self._fit.world == 1:
            return spent
        shared = torch.tensor(list(spent.values()), dtype=torch.float64, device=self._device)
        add_up([shared])
        return dict(zip(spent, shared.tolist(), strict=True))

    def _best_metrics(self) -> dict[str, float]:
        """The best epoch's validation metrics; nan for the searched ones while no epoch was finite."""
        found = {name: value for name, value in self._fit.best.items() if is_validation(name)}
        return {**dict.fromkeys(self._job.metrics, math.nan), **found}

    def result(self, epoch: int) -> EpochResult:
        """A finished epoch, counted from 1."""
        return self._history[epoch - 1]

    def _keep(self, everything: bool) -> None:
        """Let the thread write the metrics so far, and with `everything` what resumption needs; one write at a time."""
        self.settle()
        with self._meter.work(CHECKPOINTING):
            state: _State | None = None
            if everything:
                tensors, meta = self._fit.state()
                meta |= {"config": _identity(self.config), "history": [result.to_json() for result in self._history]}
                state = _State(tensors, meta, self._best, self._fit.best_weights)
                self._best, self._kept, self._kept_epochs = None, time.monotonic(), self.epochs_done
            self._writing = self._writer.submit(self._write, tuple(self._lines), state)

    def _write(self, lines: tuple[str, ...], state: _State | None) -> None:
        with self._meter.helper(), self._meter.helping(CHECKPOINTING):
            if state is not None and state.best is not None:
                with self._folder.building(BEST) as path:
                    self._export(path, state.best, state.weights)
                if state.best.folds:
                    with self._folder.building(FOLDS) as path:
                        self._held_out(state.best).to_parquet(path, index=False)
            write_epochs(self._folder, lines)
            if state is not None:
                # Written last: it guarantees that the best checkpoint and the history before it are complete.
                with self._folder.building(STATE) as path:
                    save_state(path, state.tensors, state.meta)

    def settle(self) -> None:
        """Wait for the running write; raises its error if it failed."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    @cached_property
    def _seen(self) -> pd.DataFrame:
        return seen_in(self._job.table)

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
            metrics={"epoch": float(report.epoch), **report.kept_metrics},
            data_fingerprint=self._job.fingerprint,
            epoch=report.epoch,
            trial=trial_name(self.number),
        )
        save_checkpoint(folder, weights, metadata, predictions, self._seen)

    def _held_out(self, report: EpochReport) -> pd.DataFrame:
        """Every image of a fold's 'val' with the logit of that fold's model, which was not trained on it.

        Columns image_id, group, label, fold (`SplitConfig.fold_of`) and logit; no image is in two folds that were dealt
        at once.
        """
        table, split, parts = self._job.table, self.config.data.split, []
        for number, (seen, cells) in enumerate(zip(report.folds, self._job.rotations, strict=True)):
            inside = in_set(pd.Series(cells[seen.rows]), "val")
            rows = table.iloc[seen.rows[inside]]
            columns = {name: rows[name].to_numpy() for name in ("image_id", "group")}
            columns |= {"label": seen.labels[inside].astype(np.int8)}
            columns |= {
                "fold": np.full(len(rows), split.fold_of(number)),
                "logit": seen.logits[inside],
            }
            parts.append(pd.DataFrame(columns))
        return pd.concat(parts, ignore_index=True)

    def close(self) -> None:
        """Stop the streams and write what is not written yet, unless an epoch was interrupted."""
        for stream in self._streams:
            stream.close()
        try:
            if self._fit.rank == 0 and self._between_epochs and self._kept_epochs < self.epochs_done:
                self._keep(everything=True)
            self.settle()
        finally:
            self._writer.shutdown()


def seen_in(table: pd.DataFrame) -> pd.DataFrame:
    """The images of a prepared set that a model is trained and validated on by its column split, with SEEN_COLUMNS."""
    return table.loc[part_of(table["split"]).isin(("train", "val")), list(SEEN_COLUMNS)]


def _identity(config: Config) -> dict[str, Any]:
    """What makes two trials the same: the config, without the settings of the search around it."""
    return config.model_dump(mode="json", exclude={"search"})


def make_stream(
    config: Config, plan: Plan, job: Job, device: torch.device, meter: Meter
) -> MemoryStream | RayStream | DeviceStream:
    """The stream that the config asks for, over the job's images or, where it holds none, over its shards."""
    if job.images is None:
        return RayStream(plan, job.shards, config.train.epochs, meter)
    if config.data.augment_on == "cpu":
        return MemoryStream(plan, job.images, config.train.epochs, meter)
    refuse_missing_gpu(config.data.augment_on, device.type != "cpu")
    return DeviceStream(plan, job.images, device, meter)
