"""Radiographs with a checkpoint's probabilities: a part and its held-out sets, or the pooled folds of one division.

Images that a checkpoint was trained or validated on are never scored as new. Must not know of the command line.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from rich.console import Console

from fracray.data.baselines import mean_baselines
from fracray.data.duplicates import looks_alike
from fracray.data.manifest import part_of
from fracray.data.prepare import Prepared
from fracray.errors import InputError
from fracray.evaluation.inference import predict
from fracray.metrics import CalibrationError, Interval, auroc_over_folds, cross_fitted, score_intervals
from fracray.training.checkpoint import PREDICTIONS, Checkpoint, CheckpointMetadata


@dataclass(frozen=True)
class Scored:
    """Radiographs with their scores: rows (n,) of the prepared set, probabilities (n,), thresholds (n,).

    cross_fitted (n,): where the calibration was fitted to these very radiographs, the probabilities by which it is
    judged.
    """

    prepared: Prepared
    rows: np.ndarray
    probabilities: np.ndarray
    thresholds: np.ndarray
    folds: np.ndarray | None = None  # (n,) the fold of the model that scored each image, with several models
    cross_fitted: np.ndarray | None = None

    @property
    def labels(self) -> np.ndarray:
        return self.prepared.table["label"].to_numpy()[self.rows]

    @property
    def groups(self) -> np.ndarray:
        return self.prepared.table["group"].to_numpy()[self.rows]

    @property
    def told(self) -> np.ndarray:
        """The probabilities (n,) by which the calibration is judged."""
        return self.probabilities if self.cross_fitted is None else self.cross_fitted

    def only(self, inside: np.ndarray) -> "Scored":
        """Those of them where `inside`, (n,) bool, holds."""
        folds, crossed = (None if each is None else each[inside] for each in (self.folds, self.cross_fitted))
        rows, probabilities, thresholds = (each[inside] for each in (self.rows, self.probabilities, self.thresholds))
        return Scored(self.prepared, rows, probabilities, thresholds, folds, crossed)

    def intervals(self) -> dict[str, Interval]:
        """The scores with their intervals, and the calibration's slope and intercept: see `metrics.score_intervals`."""
        intervals = score_intervals(self.labels, self.probabilities, self.groups, self.thresholds, self.cross_fitted)
        if self.folds is not None:  # models of different folds differ in scale: rank within folds
            intervals["auroc"] = auroc_over_folds(self.labels, self.probabilities, self.groups, self.folds)
        return intervals

    def perfect_ece(self, seed: int) -> float:
        """The calibration error that a perfectly calibrated model stays below in 95% of the draws, on these groups."""
        return CalibrationError(self.labels, self.told, self.groups).perfect(seed)


def score_part(
    checkpoint: Checkpoint, prepared: Prepared, part: str, console: Console
) -> tuple[Scored, dict[str, Scored]]:
    """The part, and its held-out sets by name; a radiograph in several of them is scored once.

    On 'val', an ensemble of folds has the scores that it was stored with.
    """
    metadata = checkpoint.metadata
    if judged_out_of_fold(metadata, part, prepared):
        return _out_of_fold(checkpoint, prepared), {}
    sets = {part: prepared.rows(part)} | {
        name: prepared.rows(name) for name in prepared.sets if name.startswith(f"{part}/")
    }
    if prepared.fingerprint != metadata.data_fingerprint:
        sets = {part: unseen(checkpoint, prepared, sets[part], console)}
    elif part not in ("train", "all"):
        file = prepared.config.split.file
        changed = f"{file} has changed since the training" if file else "the split is not that of the training"
        refuse_seen(
            checkpoint, prepared, sets[part], f"{checkpoint.folder}: {changed}; use the manifest.parquet of its run"
        )
    rows = np.unique(np.concatenate(list(sets.values())))
    logits = predict(checkpoint, prepared.shards, rows, console)
    probabilities = metadata.calibration.apply(logits)
    found = {}
    for name, members in sets.items():
        inside = np.searchsorted(rows, members)
        one = Scored(prepared, members, probabilities[inside], np.full(len(members), metadata.threshold))
        if name == "val":  # what the calibration was fitted to
            one = replace(one, cross_fitted=cross_fitted(one.labels, logits[inside], one.groups))
        found[name] = one
    return found.pop(part), found


def judged_out_of_fold(metadata: CheckpointMetadata, part: str, prepared: Prepared) -> bool:
    """Whether the part's scores are those stored: each radiograph was trained on by other members of the ensemble."""
    return part == "val" and metadata.out_of_fold and prepared.fingerprint == metadata.data_fingerprint


def _out_of_fold(checkpoint: Checkpoint, prepared: Prepared) -> Scored:
    metadata, kept = checkpoint.metadata, checkpoint.predictions
    if kept is None:
        raise InputError(
            f"{checkpoint.folder}: has no {PREDICTIONS}, which holds what is known of its validation; copy the folder "
            "as the refit wrote it"
        )
    rows = pd.Index(prepared.table["image_id"]).get_indexer(pd.Index(kept["image_id"]))
    if rows.min() < 0:
        raise InputError(
            f"{checkpoint.folder}: {(rows < 0).sum()} of the {len(rows)} radiographs of its validation are no longer "
            "used; refit with this version of fracray, or use --split test"
        )
    order = np.argsort(rows)
    logits, rows = kept["logit"].to_numpy()[order], rows[order]
    found = Scored(
        prepared.over_folds(), rows, metadata.calibration.apply(logits), np.full(len(rows), metadata.threshold)
    )
    return replace(found, cross_fitted=cross_fitted(found.labels, logits, found.groups))


def unseen(checkpoint: Checkpoint, prepared: Prepared, rows: np.ndarray, console: Console) -> np.ndarray:
    """The rows whose pictures were neither trained nor validated on; says how many were."""
    if checkpoint.seen is None:
        console.print("note: the checkpoint does not list the images of its training; make sure that none is scored")
        return rows
    known = set(checkpoint.seen["pixel_hash"]) - {""}
    same = prepared.table["pixel_hash"].iloc[rows].isin(known).to_numpy()
    if "look" in checkpoint.seen:
        seen = same | looks_alike(prepared.table["look"].iloc[rows].tolist(), checkpoint.seen["look"].tolist())
    else:
        seen = same
        console.print("note: the checkpoint is of an older version: copies that were encoded again cannot be found")
    if seen.all():
        raise InputError(
            f"{prepared.config.source}: each of its {len(rows)} radiographs was trained or validated on; "
            "name data that the checkpoint has not seen"
        )
    if seen.any():
        were = "was" if seen.sum() == 1 else "were"
        console.print(
            f"note: {seen.sum()} of {len(rows)} radiographs {were} trained or validated on, {same.sum()} with equal "
            f"pixels and {(seen & ~same).sum()} as copies that look alike (encoded again, rescaled); they are left out",
            style="yellow",
        )
    return rows[~seen]


def refuse_seen(checkpoint: Checkpoint, prepared: Prepared, rows: np.ndarray, complaint: str) -> None:
    """InputError of `complaint` where a checkpoint was trained on these rows, or validated on others than 'val'.

    This finds a split file that has changed since the training, and a reference of another split.
    """
    if checkpoint.seen is None:
        return
    pictures = prepared.table["pixel_hash"].iloc[rows]
    validated = (part_of(checkpoint.seen["split"]) == "val").to_numpy()
    trained = pictures.isin(set(checkpoint.seen["pixel_hash"][~validated]) - {""}).to_numpy()
    validated_on = pictures.isin(set(checkpoint.seen["pixel_hash"][validated]) - {""}).to_numpy()
    seen = trained | (validated_on & (part_of(prepared.table["split"].iloc[rows]) != "val").to_numpy())
    if seen.any():
        raise InputError(f"{complaint}: {seen.sum()} of these {len(rows)} radiographs were trained or validated on")


def pool_folds(folds: Sequence[Scored]) -> Scored:
    """The test folds of one division as one set; the no-pixel predictors get their mean over the folds."""
    if len(folds) == 1:
        return folds[0]
    rows = np.concatenate([fold.rows for fold in folds])
    assert len(set(rows)) == len(rows), "folds overlap"
    rivals = [baseline for fold in folds for baseline in fold.prepared.baselines if baseline.part == "test"]
    return Scored(
        prepared=replace(folds[0].prepared, baselines=mean_baselines(rivals)),
        rows=rows,
        probabilities=np.concatenate([fold.probabilities for fold in folds]),
        thresholds=np.concatenate([fold.thresholds for fold in folds]),
        folds=np.repeat(np.arange(len(folds)), [len(fold.rows) for fold in folds]),
    )


def check_folds(locations: Sequence[str], metadata_of_folds: Sequence[CheckpointMetadata]) -> None:
    """InputError unless these are checkpoints of different folds of one division."""
    first = metadata_of_folds[0].config.data
    for location, metadata in zip(locations, metadata_of_folds, strict=True):
        data = metadata.config.data
        if data.split.protocol != "kfold" or data.split.file:
            protocol = "a split from a file" if data.split.file else f"protocol {data.split.protocol}"
            raise InputError(
                f"{location}: was trained on {protocol}; only checkpoints of data.split.protocol="
                "kfold are scored together"
            )
        same = data.model_copy(update={"split": data.split.model_copy(update={"fold": first.split.fold})}) == first
        if not same or metadata.data_fingerprint != metadata_of_folds[0].data_fingerprint:
            raise InputError(
                f"{location}: was trained on other data or other folds than {locations[0]}; "
                "name checkpoints that differ in data.split.fold alone"
            )
    folds = [metadata.config.data.split.fold for metadata in metadata_of_folds]
    if len(set(folds)) < len(folds):
        raise InputError(f"the checkpoints are of folds {', '.join(map(str, folds))}; name each fold once")
