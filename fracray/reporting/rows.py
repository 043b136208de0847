"""The predictions that a checkpoint keeps, beside the rows of a manifest: what functions of `evaluation` take."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from fracray.data.baselines import Baseline
from fracray.data.loading.shards import Shards
from fracray.data.manifest import Manifest
from fracray.data.prepare import Prepared
from fracray.reporting.subject import Validation
from fracray.runtime.storage import Folder
from fracray.training.card import CheckpointMetadata


def rows_of(found: Validation, table: pd.DataFrame) -> np.ndarray | None:
    """The row of each prediction in a table of used images; None where the table is of other images."""
    place = pd.Series(np.arange(len(table)), index=table["image_id"])
    names = found.table["image_id"]
    return place[names].to_numpy() if names.isin(place.index).all() else None


def unread(card: CheckpointMetadata, manifest: Manifest, table: pd.DataFrame, rivals: Sequence[Baseline]) -> Prepared:
    """A table of radiographs as a prepared set of which no picture is opened: its shards are none."""
    config = card.config.data
    return Prepared(config, manifest, Shards(Folder("."), config.size, ()), table, tuple(rivals))
