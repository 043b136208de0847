"""The models of all folds of a refit's winner as one ensemble: together they have learned from all but the test fold.

What the models say of an image that they were not trained on, its out-of-fold logit, gives calibration, threshold and
metrics. The test part is never looked at.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from fracray.config import Config
from fracray.data.prepare import Prepared
from fracray.errors import InputError
from fracray.runtime.console import counted
from fracray.runtime.run_folder import BEST, STATE, trial_folder
from fracray.runtime.storage import Folder
from fracray.search.ensemble import Choice, Judge, Logits
from fracray.search.judged import read_folds
from fracray.search.refit import Refitted
from fracray.training.checkpoint import (
    PREDICTION_COLUMNS,
    load_state,
    save_checkpoint,
    save_ensemble,
)
from fracray.training.cross_validation import best_of_folds
from fracray.training.trial import seen_in

RIVALS = "baselines.json"  # in the run folder of a refit: the no-pixel predictors' means over the folds
FEW_SEEDS = (
    "with one seed, the mean of the folds' models spreads less than the out-of-fold logits that its calibration and "
    "threshold come from: probabilities are somewhat too near to the prevalence; more seeds (fracray.refit RUN "
    "--resume --seeds 2) make it less"
)


@dataclass(frozen=True)
class _OfFold:
    """One model: its name, its config, its weights, its best epoch, its fold's table (`read_folds`), and its split."""

    name: str
    config: Config
    weights: dict[str, Tensor]
    epoch: int
    held_out: pd.DataFrame
    split: np.ndarray


def build_of_folds(target: Path, own: Folder, winner: Refitted, config: Config, prepared: Prepared) -> Choice:
    """Write to `target` the ensemble of the models of all folds and seeds of the winning configuration.

    own: the run folder of the refit; config: that of the ensemble. An image that is held out several times, with other
    seeds or in folds that were dealt anew, counts once, with the mean of its logits. InputError where a training does
    not hold the models of its folds.
    """
    members: dict[str, Path] = {}
    tables, epochs = [], []
    with tempfile.TemporaryDirectory() as scratch:
        for model in _models(own, winner, config, prepared):
            table = _predictions(model.held_out)
            about = _scored(table, model.config).card(model.config, prepared.fingerprint, model.epoch, model.name)
            members[model.name] = Path(scratch) / model.name
            save_checkpoint(members[model.name], model.weights, about, table, _seen(prepared, model.split))
            tables.append(table)
            epochs.append(model.epoch)
        pooled = pd.concat(tables).groupby("image_id", as_index=False, sort=True)
        table = pooled.agg({"group": "first", "label": "first", "split": "first", "logit": "mean"})
        table = table.astype({"logit": np.float32})[[*PREDICTION_COLUMNS]]
        scored = _scored(table, config)
        about = scored.card(config, prepared.fingerprint, max(epochs), winner.name, out_of_fold=True)
        save_ensemble(target, members, about, table, _trained_on(prepared))
    words = f"{counted(len(members), 'model')} of {winner.name}: of every fold with {counted(len(winner.rows), 'seed')}"
    return Choice(words, tuple(members), scored, out_of_fold=True)


def _models(own: Folder, winner: Refitted, config: Config, prepared: Prepared) -> Iterator[_OfFold]:
    split = config.data.split
    for row in winner.rows:
        folder = trial_folder(own, row.number)
        held_out = read_folds(folder)
        if held_out is None or not folder.exists(STATE):
            raise InputError(
                f"{folder}: does not hold the models of its folds; remove it, and train it anew with --resume"
            )
        with folder.local_copy(STATE) as path:
            tensors, meta = load_state(path)
        trained = config.with_leaves(row.leaves, row.name)
        models = list(best_of_folds(tensors, meta))
        if {epoch for _, epoch in models} != {folder.read_json(f"{BEST}/config.json")["epoch"]}:
            raise InputError(
                f"{folder}: it was ended while it wrote its last epoch, and its {STATE} is older than its {BEST}/; "
                "remove it, and train it anew with --resume"
            )
        for rotation, (weights, epoch) in enumerate(models):
            fold = split.fold_of(rotation)
            mine = held_out[held_out["fold"] == fold]
            if mine.empty:
                raise InputError(f"{folder}: holds nothing of fold {fold}; remove it, and train it anew with --resume")
            cells = prepared.rotations[rotation]
            yield _OfFold(f"{row.name}-fold{fold}", trained, weights, epoch, mine, cells)


def _predictions(held_out: pd.DataFrame) -> pd.DataFrame:
    return held_out.assign(split="val")[[*PREDICTION_COLUMNS]].reset_index(drop=True)


def _scored(table: pd.DataFrame, config: Config) -> Logits:
    return Judge(table, ("val",), config).score([table["logit"].to_numpy()])


def _seen(prepared: Prepared, split: np.ndarray) -> pd.DataFrame:
    return seen_in(prepared.table.assign(split=split))


def _trained_on(prepared: Prepared) -> pd.DataFrame:
    """Every image that is used in some rotation, as one of the training: some member was trained on it."""
    every = pd.concat([_seen(prepared, split) for split in prepared.rotations])
    return every.assign(split="train").drop_duplicates("image_id", ignore_index=True)
