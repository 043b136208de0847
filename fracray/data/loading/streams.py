"""Batches for one worker: shuffled, sharded over the workers, augmented anew each epoch.

Two streams give the very same batches, image for image: `MemoryStream` augments in the worker's own process
from an array it shares read-only, `RayStream` has Ray Data's tasks read shards and augment them ahead of the
worker. Which images stand in which batch is arithmetic on (seed, epoch, rank), so no rank waits for another
to learn it, and no image is lost or counted twice when the set does not divide. Knows nothing of models.
"""

import functools
import itertools
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from fracray.config import AugmentConfig, Config
from fracray.data.loading.augment import Augmenter
from fracray.data.loading.ingest import ShardFile, Shards
from fracray.data.manifest import in_set, part_of, sets_named
from fracray.runtime.efficiency import AUGMENTATION, TRANSFORM, Meter

SHUFFLE_WINDOW = 64  # shards mixed with each other at a time; a set of fewer shards is shuffled as a whole
TASK_BYTES = 32 * 2**20  # of images that one task augments: starting a task costs as much as augmenting some 500
TASK_CPUS = 0.5  # of Ray's, which must be left beside the workers: on one core too
PREFETCHED_BATCHES = 4
MEMORY_SHARE = 0.25  # of a machine's memory that the decoded set may fill before Ray Data streams it instead


@dataclass(frozen=True)
class Batch:
    """One worker's part of one global batch.

    images: (n, S, S) uint8; labels: (n,) float32 of 0 and 1; rows: (n,) int64, the images' numbers in the
    shard set; global_count: images in the batch over all workers. n may be 0 in an epoch's last batch.
    """

    images: np.ndarray
    labels: np.ndarray
    rows: np.ndarray
    global_count: int


@dataclass(frozen=True)
class Plan:
    """What a stream delivers: which rows, in what order, cut into which batches for which rank."""

    train_rows: np.ndarray
    val_rows: np.ndarray  # of every validation set, each once
    val_sets: dict[str, np.ndarray]  # the rows of each set by its name: 'val', 'val/view', ...
    labels: np.ndarray  # of every row of the shard set, (N,) float32
    batch_size: int  # over all ranks
    strengths: AugmentConfig
    seed: int
    shard_rows: int  # rows of a shard file, the unit in which a large set is shuffled
    rank: int = 0
    world: int = 1

    @property
    def steps(self) -> int:
        """Training batches of an epoch, the same on every rank."""
        return -(-len(self.train_rows) // self.batch_size)

    def order(self, epoch: int) -> np.ndarray:
        """The training rows in this epoch's order: shards shuffled, then rows within windows of shards."""
        random = np.random.default_rng((self.seed, epoch))
        shard = self.train_rows // self.shard_rows
        shards = random.permutation(np.unique(shard))
        place = np.empty(int(shard.max()) + 1, dtype=np.int64)
        place[shards] = np.arange(len(shards)) // SHUFFLE_WINDOW
        rows = random.permutation(self.train_rows)
        return rows[np.argsort(place[rows // self.shard_rows], kind="stable")]

    def train_slices(self, epoch: int) -> list[tuple[np.ndarray, int]]:
        """This rank's rows of every batch of an epoch, with the batch's size over all ranks."""
        return self._slices(self.order(epoch), self.batch_size)

    def val_slices(self) -> list[tuple[np.ndarray, int]]:
        return self._slices(self.val_rows, max(self.batch_size, 64 * self.world))

    def _slices(self, rows: np.ndarray, batch_size: int) -> list[tuple[np.ndarray, int]]:
        batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
        return [(np.array_split(batch, self.world)[self.rank], len(batch)) for batch in batches]


class _Ahead(ABC):
    """What both streams share: one pass over all remaining epochs, which runs ahead across their borders."""

    def __init__(self, plan: Plan, epochs: int, meter: Meter | None) -> None:
        self.plan = plan
        self._epochs = epochs
        self._meter = meter or Meter()
        self._running: Generator[Batch] | None = None
        self._next_epoch = -1

    def train(self, epoch: int) -> Iterator[Batch]:
        """This rank's augmented batches of one epoch; epochs asked for in order come out of one pass."""
        if self._running is None or epoch != self._next_epoch:
            self.close()
            self._running = self._pass(range(epoch, max(self._epochs, epoch + 1)))
        self._next_epoch = -1  # an epoch left in the middle is not gone on with
        yield from itertools.islice(self._running, self.plan.steps)
        self._next_epoch = epoch + 1

    def close(self) -> None:
        """Stop what still runs ahead."""
        if self._running is not None:
            self._running.close()
            self._running = None

    @abstractmethod
    def _pass(self, epochs: Sequence[int]) -> Generator[Batch]:
        """This rank's augmented batches of these epochs."""


class MemoryStream(_Ahead):
    """Batches from an array of all images, (N, S, S) uint8, which is only read: it may be shared by many workers."""

    def __init__(self, plan: Plan, images: np.ndarray, epochs: int, meter: Meter | None = None) -> None:
        super().__init__(plan, epochs, meter)
        self._images = images

    def _pass(self, epochs: Sequence[int]) -> Generator[Batch]:
        # Not a bound method: the thread must not keep a stream alive that nobody asks any more.
        return ahead(functools.partial(_augmented, self.plan, self._images, epochs, self._meter), self._meter)

    def validation(self) -> Iterator[Batch]:
        """This rank's part of the validation set, as it is."""
        for rows, count in self.plan.val_slices():
            yield Batch(self._images[rows], self.plan.labels[rows], rows, count)


def _augmented(plan: Plan, images: np.ndarray, epochs: Sequence[int], meter: Meter) -> Iterator[Batch]:
    augmenter = Augmenter(plan.strengths, plan.seed)
    for epoch in epochs:
        for rows, count in plan.train_slices(epoch):
            with meter.helping(AUGMENTATION):
                batch = images[rows]
            with meter.helping(TRANSFORM):
                batch = augmenter.batch(batch, epoch, rows)
            yield Batch(batch, plan.labels[rows], rows, count)


class RayStream(_Ahead):
    """The same batches, read from shards and augmented by Ray Data's tasks wherever the cluster has CPUs.

    One Ray Data execution serves all remaining epochs.
    """

    def __init__(self, plan: Plan, shards: Shards, epochs: int, meter: Meter | None = None) -> None:
        super().__init__(plan, epochs, meter)
        self._shards = shards

    def _pass(self, epochs: Sequence[int]) -> Generator[Batch]:
        return self._execute([(epoch, True) for epoch in epochs])

    def validation(self) -> Iterator[Batch]:
        """This rank's part of the validation set, as it is."""
        yield from self._execute([(0, False)])

    def _execute(self, passes: list[tuple[int, bool]]) -> Generator[Batch]:
        import ray

        items = []
        each = max(1, TASK_BYTES * self.plan.world // (self.plan.batch_size * self._shards.size**2))
        for epoch, training in passes:
            steps = self.plan.steps if training else len(self.plan.val_slices())
            items += [
                {"epoch": epoch, "training": training, "first": first, "last": min(first + each, steps)}
                for first in range(0, steps, each)
            ]
        task = functools.partial(_load_and_augment, plan=ray.put(self.plan), shards=self._shards)
        dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            task, batch_size=None, batch_format="numpy", num_cpus=TASK_CPUS
        )
        dataset.context.execution_options.preserve_order = True
        dataset.context.enable_progress_bars = False
        dataset.context.print_on_execution_start = False
        pixels = _Rows(dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=2), self._meter)
        for epoch, training in passes:
            for rows, count in self.plan.train_slices(epoch) if training else self.plan.val_slices():
                images = pixels.take(len(rows), self._shards.size)
                yield Batch(images, self.plan.labels[rows], rows, count)


class _Rows:
    """Cuts a stream of blocks of images into runs of exactly n images."""

    def __init__(self, blocks: Any, meter: Meter) -> None:
        self._blocks = iter(blocks)
        self._meter = meter
        self._rest: np.ndarray | None = None

    def take(self, count: int, size: int) -> np.ndarray:
        parts: list[np.ndarray] = []
        missing = count
        while missing:
            if self._rest is None or not len(self._rest):
                block = next(self._blocks)
                self._rest = block["image"]
                self._meter.help(TRANSFORM, float(block["transform"].sum()))
                self._meter.help(AUGMENTATION, float(block["around"].sum()))
            part, self._rest = self._rest[:missing], self._rest[missing:]
            parts.append(part)
            missing -= len(part)
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty((0, size, size), dtype=np.uint8)


def _load_and_augment(items: dict[str, np.ndarray], plan: Any, shards: Shards) -> dict[str, np.ndarray]:
    import ray

    begun = time.thread_time()
    plan = ray.get(plan)
    images = []
    transform = 0.0
    for epoch, training, first, last in zip(
        *(items[key] for key in ("epoch", "training", "first", "last")), strict=True
    ):
        slices = (plan.train_slices(int(epoch)) if training else plan.val_slices())[first:last]
        rows = np.concatenate([rows for rows, _ in slices])
        raw = _gather(shards, rows)
        since = time.thread_time()
        images.append(Augmenter(plan.strengths, plan.seed).batch(raw, int(epoch), rows) if training else raw)
        transform += time.thread_time() - since
    block = {"image": np.concatenate(images)}
    # CPU seconds of this task, spread over its rows: the block may be cut on its way.
    for name, seconds in (("transform", transform), ("around", time.thread_time() - begun - transform)):
        block[name] = np.full(len(block["image"]), seconds / len(block["image"]))
    return block


def _gather(shards: Shards, rows: np.ndarray) -> np.ndarray:
    """The images of these rows, in this order, reading each shard file once."""
    images = np.empty((len(rows), shards.size, shards.size), dtype=np.uint8)
    for file in shards.files:
        inside = np.flatnonzero((rows >= file.first) & (rows < file.first + file.count))
        if len(inside):
            images[inside] = _read_file(shards, file)[rows[inside] - file.first]
    return images


@functools.lru_cache(maxsize=SHUFFLE_WINDOW)
def _read_file(shards: Shards, file: ShardFile) -> np.ndarray:
    # A Ray worker process runs many tasks of one window of shards: it reads each file of the window once.
    return shards.read_file(file)


def ahead(produce: Callable[[], Iterator[Batch]], meter: Meter, depth: int = PREFETCHED_BATCHES) -> Generator[Batch]:
    """Run an iterator in a thread, at most `depth` batches ahead; its exception is raised where it is consumed."""
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(item: Batch | BaseException | None) -> None:
        if not stopped.is_set():
            ready.put(item)

    def work() -> None:
        with meter.helper():
            try:
                for batch in produce():
                    put(batch)
                    if stopped.is_set():
                        return
                put(None)
            except BaseException as error:
                put(error)

    thread = threading.Thread(target=work, daemon=True, name="augment-ahead")
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        while thread.is_alive():  # it may stand before a full queue
            with suppress(queue.Empty):
                ready.get_nowait()
            thread.join(0.01)


def make_plan(config: Config, table: Any, shards: Shards, rank: int = 0, world: int = 1) -> Plan:
    """The plan of a config over a prepared table (a row per image of the shard set, with `label` and `split`)."""
    split = table["split"]
    return Plan(
        train_rows=np.flatnonzero(in_set(split, "train")),
        val_rows=np.flatnonzero((part_of(split) == "val").to_numpy()),
        val_sets={name: np.flatnonzero(in_set(split, name)) for name in sets_named(split) if name[:3] == "val"},
        labels=table["label"].to_numpy().astype(np.float32),
        batch_size=config.train.batch_size,
        strengths=config.augment,
        seed=config.train.seed,
        shard_rows=shards.files[0].count,
        rank=rank,
        world=world,
    )


def fits_in_memory(shards: Shards) -> bool:
    """Whether a worker may keep the decoded set: it fills at most a quarter of the machine's memory."""
    import psutil

    return shards.nbytes <= MEMORY_SHARE * psutil.virtual_memory().total
