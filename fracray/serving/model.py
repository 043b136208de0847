"""What a model's process does: batches of decoded pictures to rows. Knows no HTTP and opens no radiograph."""

import base64
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from fracray.prediction.reading import Batch
from fracray.prediction.scoring import COLUMNS, HEATMAP, Asked, Scorer, strength
from fracray.serving.card import model_card
from fracray.training.checkpoint import load_checkpoint
from fracray.training.loop import pick_device

# In a forward pass of one thread on a CPU. What passes between its layers stays in the cache, in memory that was used
# before: a thread's own arena gives larger blocks back, and the kernel clears new pages at every layer, which takes as
# long as the arithmetic.
PART_PIXELS = 4 * 224 * 224


class Model:
    """Lives in a process of its own. threads: of a CPU, for the network; coverage: of the conformal sets.

    On CPUs each thread takes parts of a batch by itself: all on one batch would wait for each other at every layer, and
    spin while they wait, since decoders and the server use the same CPUs.
    """

    def __init__(self, folder: Path, threads: int, coverage: float) -> None:
        _use_cpus(threads)
        checkpoint = load_checkpoint(folder)
        self._threads = threads
        self._part = max(1, PART_PIXELS // checkpoint.metadata.config.data.size**2)
        self._on_cpu = pick_device().type == "cpu"
        self._each = ThreadPoolExecutor(threads, initializer=_use_cpus, initargs=(1,))
        self._card = model_card(checkpoint, coverage)
        # A network with a map keeps it for a moment during a forward pass, so each thread has one of its own.
        self._plain: SimpleQueue[Scorer] = SimpleQueue()
        for _ in range(threads if self._on_cpu else 1):
            self._plain.put(Scorer(checkpoint, Asked(coverage)))
        self._mapped: SimpleQueue[Scorer] = SimpleQueue()
        self._mapped.put(Scorer(checkpoint, Asked(coverage, heatmaps=True), strength))

    def card(self) -> dict[str, Any]:
        """As `model_card`."""
        return self._card

    def rows(self, batches: Sequence[Batch], mapped: Sequence[bool]) -> list[dict[str, Any]]:
        """The row of each batch of one, as `fracray.predict` writes it; with `heatmap` (base64 of a PNG, or None) where
        `mapped`."""
        found: list[dict[str, Any]] = [{} for _ in batches]
        for wanted, scorers in ((False, self._plain), (True, self._mapped)):
            places = [at for at, one in enumerate(mapped) if one == wanted]
            if not places:
                continue
            taken = [batches[at] for at in places]
            apart = self._on_cpu and len(taken) >= self._threads and not wanted  # a map needs the network for itself
            rows = self._in_parts(scorers, taken) if apart else _joined(scorers, taken)
            for at, row in zip(places, rows, strict=True):
                found[at] = {name: row[name] for name in COLUMNS.names}
                if wanted:
                    found[at][HEATMAP] = row[HEATMAP] and base64.b64encode(row[HEATMAP]).decode()
        return found

    def _in_parts(self, scorers: "SimpleQueue[Scorer]", batches: Sequence[Batch]) -> list[dict[str, Any]]:
        """As `_joined`, each thread by itself."""
        part = min(self._part, -(-len(batches) // self._threads))
        parts = [batches[start : start + part] for start in range(0, len(batches), part)]
        return [row for rows in self._each.map(lambda some: _joined(scorers, some), parts) for row in rows]


def _joined(scorers: "SimpleQueue[Scorer]", batches: Sequence[Batch]) -> list[dict[str, Any]]:
    """The rows of batches of one, from one batch of all, by a scorer that nobody else uses meanwhile."""
    scorer = scorers.get()
    try:
        found: pa.Table = scorer({name: np.concatenate([one[name] for one in batches]) for name in batches[0]})
    finally:
        scorers.put(scorer)
    return found.to_pylist()


def _use_cpus(count: int) -> None:
    """Let Torch use so many CPUs in what this thread computes."""
    torch.set_num_threads(count)
    torch.get_num_threads()  # at its first look a thread takes what was set last, by whichever thread
