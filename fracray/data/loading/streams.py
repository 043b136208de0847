"""Batches for one worker: shuffled, sharded over the workers, augmented again in every epoch.

Two streams give exactly the same batches: `MemoryStream` augments in the worker's own process from an array of all
images, `RayStream` has tasks of Ray Data read shards and augment them ahead of the worker. Knows nothing of models.
"""

import functools
import itertools
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np

from fracray.data.loading.augment import Augmenter
from fracray.data.loading.draws import originals
from fracray.data.loading.plan import SHUFFLE_WINDOW, Batch, Plan
from fracray.runtime.efficiency import AUGMENTATION, TRANSFORM, Meter
from fracray.runtime.resources import smallest_memory

if TYPE_CHECKING:  # needs Ray and readers of image files; a stream from memory needs neither
    from fracray.data.loading.shards import ShardFile, Shards

TASK_BYTES = 32 * 2**20  # of images that one task augments: starting a task costs as much as augmenting some 500
TASK_CPUS = 0.5  # of a task, free in addition to those of the workers; below 1, so that one core is enough
PREFETCHED_BATCHES = 4
MEMORY_SHARE = 0.25  # of a machine's memory that the decoded set may fill before Ray Data streams it instead

P = ParamSpec("P")
R = TypeVar("R")


class _Ahead(ABC):
    """What both streams share: one pass over all remaining epochs, which runs ahead from one epoch into the next."""

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
        self._next_epoch = -1  # an epoch that is left in the middle is not continued
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
    """Batches from an array of all images, (N, S, S) uint8, which is only read: many workers may share it."""

    def __init__(self, plan: Plan, images: np.ndarray, epochs: int, meter: Meter | None = None) -> None:
        super().__init__(plan, epochs, meter)
        self._images = images

    def _pass(self, epochs: Sequence[int]) -> Generator[Batch]:
        # Not a bound method: the thread must not keep a stream alive that nothing refers to any more.
        return ahead(functools.partial(_augmented, self.plan, self._images, epochs, self._meter))

    def validation(self) -> Iterator[Batch]:
        """This rank's part of the validation set, not augmented."""
        for rows, count in self.plan.val_slices():
            yield Batch(self._images[rows], self.plan.labels[rows], rows, count)


def _augmented(plan: Plan, images: np.ndarray, epochs: Sequence[int], meter: Meter) -> Iterator[Batch]:
    with meter.helper():
        gather = _counted(images.__getitem__, meter, AUGMENTATION)
        augment = _counted(Augmenter(plan.strengths, plan.seed).batch, meter, TRANSFORM)
        for epoch in epochs:
            for rows, count in plan.train_slices(epoch):
                own = originals(rows)
                images = augment(gather(own), epoch, rows, plan.pictures.of(own))
                yield Batch(images, plan.labels[own], rows, count)


def _counted(function: Callable[P, R], meter: Meter, phase: str) -> Callable[P, R]:
    """The same function; its CPU time counts as this phase."""

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with meter.helping(phase):
            return function(*args, **kwargs)

    return call


class RayStream(_Ahead):
    """The same batches, read from shards and augmented by tasks of Ray Data wherever the cluster has CPUs.

    One Ray Data execution serves all remaining epochs.
    """

    def __init__(self, plan: Plan, shards: "Shards", epochs: int, meter: Meter | None = None) -> None:
        super().__init__(plan, epochs, meter)
        self._shards = shards

    def _pass(self, epochs: Sequence[int]) -> Generator[Batch]:
        return self._execute([(epoch, True) for epoch in epochs])

    def validation(self) -> Iterator[Batch]:
        """This rank's part of the validation set, not augmented."""
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
        blocks = dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=2)
        images = _Rows(_images(blocks, self._meter), self._shards.size)
        for epoch, training in passes:
            for rows, count in self.plan.train_slices(epoch) if training else self.plan.val_slices():
                yield Batch(images.take(len(rows)), self.plan.labels[originals(rows)], rows, count)


def _images(blocks: Any, meter: Meter) -> Iterator[np.ndarray]:
    """The images of each block; the CPU seconds that its task worked are counted."""
    for block in blocks:
        meter.help(TRANSFORM, float(block["transform"].sum()))
        meter.help(AUGMENTATION, float(block["around"].sum()))
        yield block["image"]


class _Rows:
    """Cuts blocks of images (n, S, S) into runs of exactly as many images as are asked for."""

    def __init__(self, blocks: Iterator[np.ndarray], size: int) -> None:
        self._blocks = blocks
        self._rest = np.empty((0, size, size), dtype=np.uint8)

    def take(self, count: int) -> np.ndarray:
        """The next `count` images."""
        parts = [self._rest[:count]]
        self._rest = self._rest[count:]
        while (missing := count - sum(map(len, parts))) > 0:
            block = next(self._blocks)
            parts.append(block[:missing])
            self._rest = block[missing:]
        parts = [part for part in parts if len(part)] or parts[:1]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _load_and_augment(items: dict[str, np.ndarray], plan: Any, shards: "Shards") -> dict[str, np.ndarray]:
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
        own = originals(rows)
        raw = _gather(shards, own)
        since = time.thread_time()
        if training:
            raw = Augmenter(plan.strengths, plan.seed).batch(raw, int(epoch), rows, plan.pictures.of(own))
        images.append(raw)
        transform += time.thread_time() - since
    block = {"image": np.concatenate(images)}
    # CPU seconds of this task, spread over its rows: Ray Data may cut the block.
    for name, seconds in (("transform", transform), ("around", time.thread_time() - begun - transform)):
        block[name] = np.full(len(block["image"]), seconds / max(1, len(block["image"])))  # a rank's part may be empty
    return block


def _gather(shards: "Shards", rows: np.ndarray) -> np.ndarray:
    """The images of these rows, in this order, reading each shard file once."""
    images = np.empty((len(rows), shards.size, shards.size), dtype=np.uint8)
    for file in shards.files:
        inside = np.flatnonzero((rows >= file.first) & (rows < file.first + file.count))
        if len(inside):
            images[inside] = _read_file(shards, file)[rows[inside] - file.first]
    return images


@functools.lru_cache(maxsize=SHUFFLE_WINDOW)
def _read_file(shards: "Shards", file: "ShardFile") -> np.ndarray:
    # A Ray worker process runs many tasks of one window of shards: it reads each file of the window once.
    return shards.read_file(file)


def ahead(produce: Callable[[], Iterator[Batch]], depth: int = PREFETCHED_BATCHES) -> Generator[Batch]:
    """Run an iterator in a thread, at most `depth` batches ahead; its exception is raised where it is consumed."""
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(item: Batch | BaseException | None) -> None:
        if not stopped.is_set():
            ready.put(item)

    def work() -> None:
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
        while thread.is_alive():  # it may wait to put a batch into a full queue
            with suppress(queue.Empty):
                ready.get_nowait()
            thread.join(0.01)


def fits_in_memory(shards: "Shards") -> bool:
    """Whether workers may keep the decoded set: it fills at most a quarter of the smallest machine's memory."""
    return shards.nbytes <= MEMORY_SHARE * smallest_memory()
