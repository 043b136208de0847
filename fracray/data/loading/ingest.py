"""Ray Data: decode, orient, letterbox and resize each radiograph once, into uint8 grayscale shards.

A shard set is a folder of Parquet files, on a path or a URI, whose name is a hash of what is in it (files, labels,
which of them are used, geometry). Its index is written last: a set with an index is complete. Knows nothing of splits
or of training.
"""

import hashlib
import os
import shutil
import time
import uuid
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from fracray.data.images.crop import CROP_VERSION
from fracray.data.images.decode import KnownGeometry
from fracray.data.images.kept import KEPT, Kept
from fracray.data.images.square import decode, decode_part
from fracray.data.loading.shards import INDEX, ShardFile, Shards, open_shards
from fracray.data.manifest import Manifest, text_of
from fracray.errors import InputError, RunError
from fracray.runtime.ray_data import few_processes
from fracray.runtime.resources import alone, capacity, here
from fracray.runtime.storage import Folder

INGEST_VERSION = 5  # raise it when the pixels of a shard, or which images share a file, would change
SHARD_BYTES = 8 * 2**20
SHARD_ROWS = 2048
FILE_PIXELS = 64_000_000  # least number of pixels of the original radiographs in a shard file: 0.1 to 0.2 s of decoding
# A CPU is idle for 0.1 to 0.2 s after every task: Ray Data's executor looks for finished ones ten times a second.
TASK_PIXELS = 20 * FILE_PIXELS
READ_AHEAD = 4  # radiographs that are being sent to a task from the machine that has them
SHARDS_WANTED = 64  # of a set that is not large; this many are shuffled with each other

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class _Written:
    """A shard file, or why it was not written. Ray would turn an exception into the text of a traceback."""

    file: ShardFile
    undecodable: str = ""
    unwritable: str = ""

    @staticmethod
    def table(written: "list[_Written]") -> pa.Table:
        return pa.Table.from_pylist([asdict(one.file) | asdict(one) for one in written]).drop_columns("file")

    @classmethod
    def read(cls, batch: pa.Table) -> "list[_Written]":
        return [
            cls(ShardFile(row["name"], row["first"], row["count"]), row["undecodable"], row["unwritable"])
            for row in batch.to_pylist()
        ]


class _Reader:
    """Sends radiographs from the machine that has them to tasks on machines that cannot read them."""

    def __init__(self, root: str) -> None:
        self._root = root

    def read(self, path: str) -> bytes | str:
        """The bytes of a file, or the reason why they cannot be read."""
        try:
            return _read(self._root, path)
        except OSError as error:
            return str(error)


def _read(root: str, path: str) -> bytes:
    with open(os.path.join(root, path), "rb", buffering=0) as file:
        return file.read()


_KNOWN = ("width", "height", "exif_orientation")


@dataclass(frozen=True)
class _WriteShards:
    """The Ray Data task: a block of (row, image_id, label, path, *_KNOWN) to shard files of `rows` each; their names.

    reader: a _Reader on the only machine that has the radiographs; None where tasks find them below `root`.
    """

    root: str
    folder: Folder
    size: int
    rows: int
    reader: Any
    crop: bool = False

    def __call__(self, block: pa.Table) -> pa.Table:
        cv2.setNumThreads(1)  # the parallelism is Ray Data's
        warnings.simplefilter("ignore")  # the audit reports what is odd about a file
        written = []
        for start in range(0, len(block), self.rows):
            written.append(self._write(block.slice(start, self.rows)))
            if written[-1].undecodable or written[-1].unwritable:
                break
        return _Written.table(written)

    def _bytes(self, paths: list[str]) -> Iterator[bytes]:
        if self.reader is None:
            yield from (_read(self.root, path) for path in paths)
            return
        coming: deque[Any] = deque()
        for path in [*paths, *[None] * READ_AHEAD]:
            if path is not None:
                coming.append(self.reader.read.remote(path))
            if coming and (path is None or len(coming) > READ_AHEAD):
                data = ray.get(coming.popleft())
                if isinstance(data, str):
                    raise OSError(data)
                yield data

    def _write(self, rows: pa.Table) -> _Written:
        first, last = rows["row"][0].as_py(), rows["row"][-1].as_py()
        # A task that runs a second time writes the same files again.
        shard = ShardFile(f"rows-{first:09d}-{last:09d}.parquet", first, len(rows))
        images = np.empty((len(rows), self.size, self.size), dtype=np.uint8)
        paths = rows["path"].to_pylist()
        data = self._bytes(paths)
        kept: list[Kept] = []
        for at, (path, *seen) in enumerate(zip(paths, *(rows[name].to_pylist() for name in _KNOWN), strict=True)):
            known = KnownGeometry(*seen)
            side = max(known.width, known.height)
            try:
                if self.crop:
                    images[at], part = decode_part(next(data), side, self.size, known)
                    kept.append(part)
                else:
                    images[at] = decode(next(data), side, self.size, known)
            except (OSError, ValueError) as error:
                return _Written(shard, undecodable=f"{path}: {error}")
        pixels = pa.Array.from_buffers(pa.binary(self.size**2), len(images), [None, pa.py_buffer(images)])
        table = rows.select(["row", "image_id", "label"]).append_column("image", pixels)
        for name, values in zip(KEPT, zip(*kept, strict=True), strict=False):  # there are none without crop
            table = table.append_column(name, pa.array(values, pa.float32() if name == KEPT[-1] else pa.int32()))
        try:
            pq.write_table(
                table,
                self.folder.path(shard.name),
                filesystem=self.folder.filesystem,
                compression="none",
                use_dictionary=False,
                write_statistics=False,
            )
        except OSError as error:
            return _Written(shard, unwritable=str(error))
        return _Written(shard)


def fingerprint(manifest: Manifest, size: int, crop: bool = False) -> str:
    """The key of a shard set: files, labels, which of them are used, and geometry, in 32 hex digits."""
    text = f"{INGEST_VERSION}:{size}:{manifest.fingerprint()}{f':crop {CROP_VERSION}' if crop else ''}:"
    digest = hashlib.sha256(text.encode())
    # Shards hold the used rows by position, and the manifest's fingerprint does not say which rows are used.
    digest.update(text_of([manifest.used["image_id"]], "", "\x1e"))
    return digest.hexdigest()[:32]


def ingest(
    manifest: Manifest,
    size: int,
    place: Folder,
    progress: Progress | None = None,
    shared: bool = True,
    crop: bool = False,
) -> Shards:
    """Find the shards of these radiographs at this size in `place`, or write them there with Ray Data.

    crop: the part of each radiograph that holds its anatomy (`images.crop`), instead of all of it.
    On a cluster of several machines only this one needs the radiographs, which it sends to the others; all must be
    able to write to `place`. Where it is not `shared`, this machine does all the work.
    Raises InputError where no radiograph is usable or the disk is full, RunError where a file was changed or removed
    since the data set was examined, or where what is found in `place` is not of these radiographs.
    """
    folder = place.sub(f"shards/{fingerprint(manifest, size, crop)}")
    if not folder.exists(INDEX):
        _write(manifest, size, folder, progress, shared, crop)
    shards = open_shards(folder)
    if shards.count != len(manifest.used):
        raise RunError(
            f"{folder}: holds {shards.count:,} images, not the {len(manifest.used):,} that are used; remove it, and "
            "run again"
        )
    return shards


def _write(manifest: Manifest, size: int, folder: Folder, progress: Progress | None, shared: bool, crop: bool) -> None:
    used = manifest.used
    if used.empty:
        raise InputError(f"{manifest.root}: no usable radiograph is left ({manifest.flow().summary()})")
    rows = _rows_per_file(used, size)
    work = pa.table(
        {
            "row": pa.array(np.arange(len(used), dtype=np.int64)),
            "image_id": pa.array(used["image_id"].tolist(), pa.string()),
            "label": pa.array(used["label"].tolist(), pa.int8()),
            "path": pa.array(used["path"].tolist(), pa.string()),
            "width": pa.array(used["width"].to_numpy()),
            "height": pa.array(used["height"].to_numpy()),
            "exif_orientation": pa.array(used["exif_orientation"].to_numpy()),
        }
    )
    blocks = [work.slice(start, count) for start, count in _tasks(used, rows, int(capacity("CPU")))]
    reader, where = None, {}
    if not alone():
        on_this_machine = {"num_cpus": 0, "scheduling_strategy": here()}  # Ray may count no free CPU on it
        if shared:
            reader = ray.remote(max_concurrency=2 * READ_AHEAD, **on_this_machine)(_Reader).remote(str(manifest.root))
        else:
            where = {"concurrency": min(len(blocks), os.cpu_count() or 1), **on_this_machine}
    try:
        with _filling(folder) as partial, few_processes():
            written = ray.data.from_arrow(blocks).map_batches(
                _WriteShards("" if reader else str(manifest.root), partial, size, rows, reader, crop),
                batch_format="pyarrow",
                batch_size=None,
                zero_copy_batch=True,
                **where,
            )
            files: list[ShardFile] = []
            for batch in written.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                for one in _Written.read(batch):
                    if one.undecodable:
                        raise RunError(
                            f"{one.undecodable}; it was readable when the data set was examined: restore the file, or "
                            "import the set again"
                        )
                    if one.unwritable:
                        raise OSError(one.unwritable)
                    files.append(one.file)
                if progress:
                    progress(sum(file.count for file in files), len(used))
            if (done := sum(file.count for file in files)) != len(used):
                raise RunError(f"{partial}: {done} of {len(used)} radiographs were written; run again")
            files.sort(key=lambda file: file.first)
            index: dict[str, Any] = {"size": size, "files": [asdict(file) for file in files]}
            partial.write_json(INDEX, index | {"cropped": True} if crop else index)
    except OSError as error:
        choice = "--storage" if reader else "data.cache"
        raise InputError(f"{folder}: cannot write shards: {error}; free space or choose another {choice}") from None
    except ray.exceptions.RayTaskError as error:
        raise RunError(str(error).strip().splitlines()[-1]) from None


@contextmanager
def _filling(folder: Folder) -> Iterator[Folder]:
    """A folder to write a shard set into; on a disk it gets its final name when it is complete."""
    if not folder.is_local:  # its index is written last, and a second writer writes the same files
        yield folder
        return
    complete = Path(folder.location)
    partial = complete.with_name(f"{complete.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        partial.mkdir(parents=True)
        yield Folder(partial)
        _rename(partial, complete)
    finally:
        _remove(partial)


def _remove(folder: Path) -> None:
    """Remove a folder into which tasks that are being stopped may still write."""
    for _ in range(50):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)


def _rows_per_file(used: pd.DataFrame, size: int) -> int:
    """Images of a shard file: few enough for the caches of the streams, and enough to have few files.

    Does not depend on the number of CPUs: the order of training follows the files and must not change with the machine.
    """
    wanted = max(round(FILE_PIXELS / _mean_pixels(used)), -(-len(used) // SHARDS_WANTED))
    return max(1, min(SHARD_ROWS, SHARD_BYTES // size**2, wanted))


def _tasks(used: pd.DataFrame, rows: int, cpus: int) -> list[tuple[int, int]]:
    """First row and number of rows of every task: complete files, many in the first tasks and few in the last ones.

    Each task takes half of a CPU's share of what is left, so that all CPUs end at the same time (guided
    self-scheduling, Polychronopoulos and Kuck 1987, doi:10.1109/TC.1987.5009495).
    """
    most = max(1, round(TASK_PIXELS / (_mean_pixels(used) * rows)))
    tasks, start = [], 0
    while start < len(used):
        files = -(-(len(used) - start) // rows)
        count = min(rows * max(1, min(most, files // (2 * max(cpus, 1)))), len(used) - start)
        tasks.append((start, count))
        start += count
    return tasks


def _mean_pixels(used: pd.DataFrame) -> float:
    return max(1.0, float((used["width"].astype(np.int64) * used["height"]).mean()))


def _rename(partial: Path, folder: Path) -> None:
    try:
        os.rename(partial, folder)
    except OSError:
        if not folder.is_dir():  # otherwise another process has written the same shards first
            raise
