"""Which images are in which batch: arithmetic on (seed, epoch, rank), so that no rank waits for another.

Every image is used once in an epoch, also where the set cannot be divided evenly; with `train.balance` the rarer class
more often, and the other one less. Imports neither Torch nor Ray.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fracray.config import AugmentConfig, Config
from fracray.data.loading.boxes import Boxes
from fracray.data.loading.draws import COPY, Pictures, originals
from fracray.data.loading.kept import shown
from fracray.data.manifest import in_set, part_of, sets_named
from fracray.data.splits.set_names import is_validation

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from fracray.data.loading.shards import Shards

BALANCING = 1  # tells the draw of the rows from that of their order, which has the same seed and epoch
SHUFFLE_WINDOW = 64  # shards mixed with each other at a time; a set of fewer shards is shuffled in one


@dataclass(frozen=True)
class Batch:
    """One worker's part of one global batch.

    images: (n, S, S) uint8, an array, or a tensor where the stream augments on a GPU; labels: (n,) float32, 0 or 1;
    rows: (n,) int64, the images' numbers in the shard set, of further copies as COPY has them; global_count: images in
    the batch over all workers. n may be 0 in the last batch of an epoch.
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
    balance: float = 0.0  # of the classes of an epoch: 0: as they are, 1: half of the images are of each

    @property
    def steps(self) -> int:
        """Training batches of an epoch, the same on every rank."""
        return -(-len(self.train_rows) // self.batch_size)

    @property
    def class_counts(self) -> tuple[int, int]:
        """How many images of an epoch are not fractured, and how many are; together as many as the training rows."""
        count, fractured = len(self.train_rows), int((self.labels[self.train_rows] == 1).sum())
        if self.balance and 0 < fractured < count:
            fractured = round((1 - self.balance) * fractured + self.balance * count / 2)
        return count - fractured, fractured

    def drawn(self, epoch: int) -> np.ndarray:
        """The rows of this epoch, ascending, with COPY.

        Of a class of m images that has n in the epoch, each image is there n // m times, and n % m of them, drawn anew
        in each epoch, once more.
        """
        if not self.balance:
            return self.train_rows
        random = np.random.default_rng((self.seed, epoch, BALANCING))
        parts = []
        for label, count in enumerate(self.class_counts):
            rows = self.train_rows[self.labels[self.train_rows] == label]
            if len(rows):
                full, more = divmod(count, len(rows))
                parts += [rows + copy * COPY for copy in range(full)]
                parts.append(random.permutation(rows)[:more] + full * COPY)
        return np.sort(np.concatenate(parts))

    def order(self, epoch: int) -> np.ndarray:
        """The rows of this epoch in their order: shards shuffled, then rows within windows of shards."""
        random = np.random.default_rng((self.seed, epoch))
        shard = self.train_rows // self.shard_rows
        shards = random.permutation(np.unique(shard))
        place = np.empty(int(shard.max()) + 1, dtype=np.int64)
        place[shards] = np.arange(len(shards)) // SHUFFLE_WINDOW
        rows = random.permutation(self.drawn(epoch))
        return rows[np.argsort(place[originals(rows) // self.shard_rows], kind="stable")]

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
        balance=config.train.balance,
    )
