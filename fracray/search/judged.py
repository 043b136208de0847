"""What trainings said of the validation images, as a metric takes it: of one checkpoint, or of the models of folds."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from fracray.data.manifest import in_set
from fracray.data.prepare import Prepared
from fracray.metric_names import LOWER_IS_BETTER, METRICS
from fracray.metrics import choose_threshold, cross_fitted, fit_temperature
from fracray.metrics.scores import rows_by_fold
from fracray.metrics.seeds import SeedRun
from fracray.runtime.run_folder import FOLDS
from fracray.runtime.storage import Folder
from fracray.training.checkpoint import METADATA, PREDICTIONS, read_metadata, read_predictions

JUDGED_BY = (METADATA, PREDICTIONS)  # the files of a checkpoint that `judged_set` reads


@dataclass(frozen=True)
class JudgedSet:
    """A training's saved predictions on one validation set, as the metric takes them; all (n,).

    folds: where a training has a model of each fold, the fold in which an image was held out; `threshold` is then that
    of its model, (n,).
    """

    images: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    told: np.ndarray
    threshold: float | np.ndarray
    folds: np.ndarray | None = None

    @property
    def as_run(self) -> SeedRun:
        return SeedRun(self.told, self.threshold)


def judged_set(checkpoint: Path, name: str, metric: str) -> JudgedSet:
    """The predictions of a checkpoint folder on the set of this name; `metric`: its bare name.

    On 'val', to which the calibration was fitted, loss, Brier score and calibration error are those of cross-fitted
    probabilities, as every epoch reports them.
    """
    table, card = read_predictions(checkpoint), read_metadata(checkpoint, whole=False)
    assert table is not None, "a trial's checkpoint always carries its validation predictions"
    table = table[in_set(table["split"], name)]
    labels, logits, groups = (table[column].to_numpy() for column in ("label", "logit", "group"))
    fitted_to_these = name == "val" and metric in LOWER_IS_BETTER
    told = cross_fitted(labels, logits, groups) if fitted_to_these else card.calibration.apply(logits)
    return JudgedSet(table["image_id"].to_numpy(), labels, groups, told, card.threshold)


def fold_metric(name: str) -> str | None:
    """The bare name of a reported metric that is one of the folds' 'val' images; None of another set or of several."""
    bare = name.removeprefix("val_")
    return bare if name == f"val_{bare}" and bare in (*METRICS, "loss") else None


def judged_folds(table: pd.DataFrame, metric: str, operating_point: Literal["accuracy", "balanced"]) -> JudgedSet:
    """What the models of a cross-validated trial say of the images of their folds; table: as of `read_folds`.

    Calibration and threshold are fitted within each fold, as every epoch does; `metric` as of `judged_set`.
    """
    images, labels, logits, groups, folds = (
        table[column].to_numpy() for column in ("image_id", "label", "logit", "group", "fold")
    )
    told, threshold = np.empty(len(table)), np.empty(len(table))
    for rows in rows_by_fold(folds):
        calibrated = fit_temperature(labels[rows], logits[rows]).apply(logits[rows])
        threshold[rows] = choose_threshold(labels[rows], calibrated, operating_point)
        crossed = metric in LOWER_IS_BETTER
        told[rows] = cross_fitted(labels[rows], logits[rows], groups[rows]) if crossed else calibrated
    return JudgedSet(images, labels, groups, told, threshold, folds)


def read_folds(folder: Folder) -> pd.DataFrame | None:
    """The predictions that a cross-validated trial keeps in its folder; None where there are none."""
    if not folder.exists(FOLDS):
        return None
    with folder.local_copy(FOLDS) as path:
        return pd.read_parquet(path)


def validated(prepared: Prepared) -> pd.DataFrame:
    """The images by which trainings on these data are compared: those of 'val', or of every fold's."""
    inside = [in_set(pd.Series(split), "val") for split in prepared.rotations]
    return prepared.table[np.any(inside, axis=0)]
