"""The work of a prediction, spread over the processes of a cluster by Ray Data.

Knows pictures as places in a list, and checkpoints as the bytes of their files.
"""

import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from fracray.errors import RunError
from fracray.evaluation.inference import BATCH
from fracray.prediction.familiar import Familiar
from fracray.prediction.inputs import Picture
from fracray.prediction.reading import Batch, Decoder, Sender, unpack_checkpoint
from fracray.prediction.scoring import PLACE, SCORED, SHOWN, Asked, Scorer
from fracray.runtime.memory import give_back
from fracray.runtime.ray_data import few_processes
from fracray.runtime.resources import alone, here, present
from fracray.training.checkpoint import load_checkpoint, read_seen

LARGE = 2**24  # pixels
BLOCK = 4 * BATCH  # pictures of one call, at most
SENT = 8  # files that the sender reads at a time
# By default Ray starts a process that died, and what it did, again without end: for ever with a file that kills its
# decoder. Here `predict_pictures` starts anew, with what is left, as long as that gets on.
ONCE = {"max_restarts": 0, "max_task_retries": 0}


class _Score:
    """An actor that holds the network of a checkpoint folder, and takes decoded pictures."""

    def __init__(self, folder: Path, sender: Any, asked: Asked) -> None:
        if sender is None:
            self._scorer = Scorer(load_checkpoint(folder), asked)
            return
        with tempfile.TemporaryDirectory() as scratch:
            unpack_checkpoint(ray.get(sender.checkpoint.remote()), Path(scratch))
            self._scorer = Scorer(load_checkpoint(scratch), asked)

    def __call__(self, batch: Batch) -> pa.Table:
        return self._scorer(batch)


class _DecodeAndScore(_Score):
    """As _Score, of pictures that it decodes itself: no pixel is passed between processes."""

    def __init__(self, folder: Path, sender: Any, asked: Asked, decoder: Decoder) -> None:
        super().__init__(folder, sender, asked)
        self._decoder = decoder

    def __call__(self, batch: Batch) -> pa.Table:
        # A pass at a time, so that memory does not grow with the block.
        starts = range(0, len(batch[PLACE]), BATCH)
        passes = ({name: column[start : start + BATCH] for name, column in batch.items()} for start in starts)
        return pa.concat_tables([self._pass(some) for some in passes])

    def _pass(self, batch: Batch) -> pa.Table:
        decoded = self._decoder(batch)
        if (decoded["width"].astype(np.int64) * decoded["height"]).max(initial=0) > LARGE:
            give_back()  # or each process would keep what its largest picture needed
        return super().__call__(decoded)


def _decode(batch: Batch, decoder: Decoder) -> Batch:
    return decoder(batch)


def predict_pictures(
    pictures: Sequence[Picture],
    done: np.ndarray,
    folder: Path,
    geometry: tuple[int, bool],
    asked: Asked,
    keep: Callable[[pa.Table], None],
    progress: Callable[[int, int], None],
) -> None:
    """Hand the rows (SCORED) of all pictures that are not `done`, (n,) bool, to `keep`: tables of consecutive places.

    folder: the checkpoint's; geometry: the size of its squares, and whether they are cropped. On CPUs each actor
    decodes and scores; where there are GPUs, each holds a network that scores what tasks on the CPUs decode. On a
    cluster only this machine needs the pictures and the checkpoint. Rows are kept as they come, so memory does not grow
    with their number. Where a process dies, as for want of memory, what is left is tried again, until that brings no
    further row. RunError where Ray fails.
    """
    sender = None
    if not alone():
        actor = ray.remote(max_concurrency=SENT, num_cpus=0, scheduling_strategy=here())
        sender = actor(Sender).remote(folder)
    decoder = Decoder(*geometry, Familiar.of(read_seen(folder)), SHOWN if asked.pictures else 0, sender)
    missing, total, before = ~done, len(pictures), -1
    while missing.any():
        try:
            with few_processes():
                for rows in _rows(pictures, ~missing, folder, asked, decoder, sender):
                    keep(rows)
                    missing[rows[PLACE].to_numpy()] = False
                    progress(total - int(missing.sum()), total)
        except ray.exceptions.RayError as error:
            left = int(missing.sum())
            if isinstance(error, ray.exceptions.RayTaskError) or left == before:
                first = pictures[int(missing.argmax())].path
                raise RunError(
                    f"{cause_of(error)}; give the same command again: it goes on where it was. {left:,} of {total:,} "
                    f"rows are missing, first that of {first}"
                ) from None
            before = left
            continue
        if missing.any():
            raise RunError(f"{missing.sum():,} of {total:,} rows are missing; give the same command again")


def _rows(
    pictures: Sequence[Picture], done: np.ndarray, folder: Path, asked: Asked, decoder: Decoder, sender: Any
) -> Iterator[pa.Table]:
    """The rows of what is not done, a table for each block of consecutive places, as they come."""
    gpus, cpus = int(present("GPU")), max(1, int(present("CPU")))
    blocks = list(_blocks(pictures, done, cpus, BATCH if asked.pictures else BLOCK))
    # Ray 2.60 has no named parameters for ONCE.
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
    data = ray.data.from_arrow(list(blocks))
    # A block is a batch: what is done in one call. Ray Data would else cut and join them.
    common: dict[str, Any] = {"batch_size": None, "batch_format": "numpy"}
    if gpus:
        workers = min(gpus, len(blocks))
        scored = data.map_batches(_decode, fn_kwargs={"decoder": decoder}, **common).map_batches(
            _Score,
            fn_constructor_args=(folder, sender, asked),
            num_gpus=1,
            num_cpus=0,
            compute=_pool(workers),
            **ONCE,
            **common | {"batch_size": BATCH},  # Ray Data demands one with GPUs; `_whole` sorts what it joins
        )
    else:
        workers = min(cpus, len(blocks))
        scored = data.map_batches(
            _DecodeAndScore,
            fn_constructor_args=(folder, sender, asked, decoder),
            num_cpus=1,
            compute=_pool(workers),
            **ONCE,
            **common,
        )
    ends = {block[PLACE][0].as_py(): len(block) for block in blocks}
    return _whole(scored.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0), ends, SCORED)


def cause_of(error: BaseException) -> str:
    """What went wrong in a process of Ray, in a line: the first error in the tracebacks that its message quotes."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in lines if re.match(r"[\w.]*(Error|Exception)\w*: ", line)), lines[0])


def _pool(workers: int) -> Any:
    return ray.data.ActorPoolStrategy(min_size=1, max_size=workers, initial_size=workers)


def _blocks(pictures: Sequence[Picture], done: np.ndarray, cpus: int, largest: int) -> Iterator[pa.Table]:
    """What is left to do, as tables of consecutive places: two for each CPU, of a forward pass, or of many of them.

    The more there is to do, the larger they are, up to `largest`, as each costs Ray and the disk some time.
    """
    left = np.flatnonzero(~done)
    most = max(1, min(largest, max(min(BATCH, -(-len(left) // (2 * cpus))), -(-len(left) // (8 * cpus)))))
    for run in np.split(left, np.flatnonzero(np.diff(left) > 1) + 1):
        for start in range(0, len(run), most):
            places = run[start : start + most]
            some = [pictures[place] for place in places]
            columns: Mapping[str, list[str]] = {
                name: [getattr(one, name) for one in some] for name in ("path", "file", "image_id", "error")
            }
            yield pa.table(
                {PLACE: pa.array(places, pa.int64())} | {n: pa.array(c, pa.string()) for n, c in columns.items()}
            )


def _whole(batches: Iterator[pa.Table], ends: Mapping[int, int], schema: pa.Schema) -> Iterator[pa.Table]:
    """The rows of each block as one table, in whatever pieces Ray Data hands them on; ends: rows by first place."""
    starts = np.array(sorted(ends))
    waiting: dict[int, list[pa.Table]] = {}
    for batch in batches:
        table = batch.select(schema.names).cast(schema)
        first = starts[np.searchsorted(starts, table[PLACE].to_numpy(), side="right") - 1]
        for start in np.unique(first):
            waiting.setdefault(int(start), []).append(table.filter(pa.array(first == start)))
            if sum(map(len, waiting[int(start)])) == ends[int(start)]:
                yield pa.concat_tables(waiting.pop(int(start))).sort_by(PLACE).combine_chunks()
