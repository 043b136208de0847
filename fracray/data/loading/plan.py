"""Which images are in which batch: arithmetic on (seed, epoch, rank), so that no rank waits for another.

Every image is used once in an epoch, also where the set cannot be divided evenly. Imports neither Torch nor Ray.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fracray.config import AugmentConfig, Config
from fracray.data.loading.boxes import Boxes
from fracray.data.loading.draws import Pictures
from fracray.data.loading.kept import shown
from fracray.data.manifest import in_set, part_of, sets_named
from fracray.data.splits.set_names import is_validation

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from fracray.data.loading.shards import Shards

SHUFFLE_WINDOW = 64  # shards mixed with each other at a time; a set of fewer shards is shuffled in one


@dataclass(frozen=True)
class Batch:
    """One worker's part of one global batch.

    images: (n, S, S) uint8, an array, or a tensor where the stream augments on a GPU; labels: (n,) float32, 0 or 1;
    rows: (n,) int64, the images' numbers in the shard set; global_count: images in the batch over all workers. n may
    be 0 in the last batch of an epoch.
    """

    images: "np.ndarray | torch.Tensor"
    labels: np.ndarray
    rows: np.ndarray
    global_count: int


@dataclass(frozen=True)
class Plan:
    """What a stream delivers: which rows, in what order, cut into which batches for which rank."""

    train_rows: np.ndarray
    val_rows: np.ndarray  # of all validation sets, each row once
    val_sets: dict[str, np.ndarray]  # the rows of each set by its name: 'val', 'val/view', ...
    labels: np.ndarray  # of every row of the shard set, (N,) float32
    pictures: Pictures  # of every row
    batch_size: int  # over all ranks
    strengths: AugmentConfig
    seed: int
    shard_rows: int  # rows of a shard file, the unit in which a large set is shuffled
    rank: int = 0
    world: int = 1
    groups: np.ndarray | None = None  # of every row of the shard set, (N,) int64; without them each row is its own
    boxes: Boxes | None = None  # of every row; None: the set has none

    @property
    def steps(self) -> int:
        """Training batches of an epoch, the same on every rank."""
        return -(-len(self.train_rows) // self.batch_size)

    def order(self, epoch: int) -> np.ndarray:
        """The training rows in the order of this epoch: shards shuffled, then rows within windows of shards."""
        random = np.random.default_rng((self.seed, epoch))
        shard = self.train_rows // self.shard_rows
        shards = random.permutation(np.unique(shard))
        place = np.empty(int(shard.max()) + 1, dtype=np.int64)
        place[shards] = np.arange(len(shards)) // SHUFFLE_WINDOW
        rows = random.permutation(self.train_rows)
        return rows[np.argsort(place[rows // self.shard_rows], kind="stable")]

    def train_slices(self, epoch: int) -> list[tuple[np.ndarray, int]]:
        """This rank's rows of every batch of an epoch, with the size of the batch over all ranks."""
        return self._slices(self.order(epoch), self.batch_size)

    def val_slices(self) -> list[tuple[np.ndarray, int]]:
        """This rank's rows of every validation batch, with the size of the batch over all ranks."""
        return self._slices(self.val_rows, max(self.batch_size, 64 * self.world))

    def _slices(self, rows: np.ndarray, batch_size: int) -> list[tuple[np.ndarray, int]]:
        batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
        return [(np.array_split(batch, self.world)[self.rank], len(batch)) for batch in batches]


def make_plan(config: Config, table: "pd.DataFrame", shards: "Shards", rank: int = 0, world: int = 1) -> Plan:
    """The plan of a config over a prepared table (a row for each image of the shard set, with `label` and `split`)."""
    split = table["split"]
    width, height, brightness = (shown(table)[name].to_numpy() for name in ("width", "height", "brightness"))
    return Plan(
        train_rows=np.flatnonzero(in_set(split, "train")),
        val_rows=np.flatnonzero((part_of(split) == "val").to_numpy()),
        val_sets={name: np.flatnonzero(in_set(split, name)) for name in sets_named(split) if is_validation(name)},
        labels=table["label"].to_numpy().astype(np.float32),
        pictures=Pictures.of_sizes(width, height, brightness, shards.size),
        batch_size=config.train.batch_size,
        strengths=config.augment,
        seed=config.train.seed,
        shard_rows=shards.files[0].count,
        rank=rank,
        world=world,
        groups=np.unique(table["group"].to_numpy(), return_inverse=True)[1],
        boxes=Boxes.of_table(table, shards.size) if config.model.localise else None,
    )
