"""Ray Data: decode, orient, letterbox and resize each radiograph once, into uint8 grayscale shards.

A shard set is a folder of Parquet files keyed by what is in it (files, labels, geometry). It is written under a
temporary name and renamed when whole, so a folder that exists is complete. Knows nothing of splits or training.
"""

import hashlib
import json
import os
import shutil
import threading
import uuid
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from fracray.data import imagefile
from fracray.data.letterbox import letterbox
from fracray.data.manifest import Manifest
from fracray.errors import InputError, RunError

INGEST_VERSION = 2  # raise it when the pixels of a shard would change
SHARD_BYTES = 16 * 2**20
SHARD_ROWS = 512

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ShardFile:
    """One Parquet file: the `count` consecutive rows from `first` on."""

    name: str
    first: int
    count: int


@dataclass(frozen=True)
class Shards:
    """A complete set of shards: row i is the i-th used radiograph of the manifest."""

    folder: Path
    size: int
    files: tuple[ShardFile, ...]

    @property
    def count(self) -> int:
        return sum(file.count for file in self.files)

    @property
    def nbytes(self) -> int:
        """Bytes of the decoded images."""
        return self.count * self.size * self.size

    def read_file(self, file: ShardFile) -> np.ndarray:
        """The images of one file, (count, size, size) uint8, read-only."""
        column = pq.read_table(self.folder / file.name, columns=["image"]).column("image").combine_chunks()
        pixels = np.frombuffer(column.buffers()[1], dtype=np.uint8)
        offset = column.offset * self.size * self.size
        return pixels[offset : offset + file.count * self.size**2].reshape(file.count, self.size, self.size)

    def load(self) -> np.ndarray:
        """All images, (count, size, size) uint8."""
        images = np.empty((self.count, self.size, self.size), dtype=np.uint8)
        for file in self.files:
            images[file.first : file.first + file.count] = self.read_file(file)
        return images


def decode(data: bytes, longer_side: int, size: int) -> np.ndarray:
    """Bytes of an image file to a letterboxed (size, size) uint8 image, by the decoder of the audit.

    A JPEG several times larger than the target is decoded at a half, quarter or eighth of its scale. Raises ValueError
    where the bytes are no whole image.
    """
    # Still at least twice the target, so that the area filter decides.
    reduction = next((factor for factor in (8, 4, 2) if longer_side >= 2 * factor * size), 1)
    found = imagefile.decode(data, reduction)
    if found.gray is None or found.fault:
        raise ValueError(found.note or "not decodable")
    return letterbox(found.gray, size)


class UndecodableError(Exception):
    """A file that was readable when the data set was examined, and is not when it is ingested."""


@dataclass(frozen=True)
class _DecodeBlock:
    """The Ray Data task: a block of (row, path, longer_side, ...) to a block of shard rows."""

    root: str
    size: int

    def __call__(self, block: pa.Table) -> pa.Table:
        cv2.setNumThreads(1)  # the parallelism is Ray Data's
        warnings.simplefilter("ignore")  # what the decoders have to say of odd files, the audit says
        images = []
        for path, longer_side in zip(block["path"].to_pylist(), block["longer_side"].to_pylist(), strict=True):
            try:
                images.append(decode((Path(self.root) / path).read_bytes(), longer_side, self.size).tobytes())
            except (OSError, ValueError) as error:
                raise UndecodableError(f"{path}: {error}; it was readable when the data set was examined") from None
        pixels = pa.array(images, type=pa.binary(self.size * self.size))
        return block.select(["row", "image_id", "label"]).append_column("image", pixels)


def fingerprint(manifest: Manifest, size: int) -> str:
    """The key of a shard set: files, labels and geometry, in 32 hex digits."""
    text = f"{INGEST_VERSION}:{size}:{manifest.fingerprint()}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def ingest(manifest: Manifest, size: int, cache: Path, progress: Progress | None = None) -> Shards:
    """Find the shards of these radiographs at this size in `cache`, or write them with Ray Data.

    Raises InputError where no radiograph is usable or the disk is full, RunError where a file changed or vanished
    meanwhile.
    """
    folder = cache / "shards" / fingerprint(manifest, size)
    if not folder.is_dir():
        _write(manifest, size, folder, progress)
    return open_shards(folder)


def open_shards(folder: Path) -> Shards:
    """Open a complete shard set by its folder."""
    index = json.loads((folder / "index.json").read_text())
    return Shards(folder, index["size"], tuple(ShardFile(**file) for file in index["files"]))


def _write(manifest: Manifest, size: int, folder: Path, progress: Progress | None) -> None:
    used = manifest.used
    if used.empty:
        raise InputError(f"{manifest.root}: no usable radiograph is left ({manifest.flow().summary()})")
    rows_per_file = max(1, min(SHARD_ROWS, SHARD_BYTES // size**2))
    work = pa.table(
        {
            "row": pa.array(np.arange(len(used), dtype=np.int64)),
            "image_id": pa.array(used["image_id"].tolist(), pa.string()),
            "label": pa.array(used["label"].tolist(), pa.int8()),
            "path": pa.array(used["path"].tolist(), pa.string()),
            "longer_side": pa.array(used[["width", "height"]].max(axis=1).astype(int).tolist(), pa.int32()),
        }
    )
    blocks = [work.slice(start, rows_per_file) for start in range(0, len(used), rows_per_file)]
    partial = folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        partial.mkdir(parents=True)
        dataset = ray.data.from_arrow(blocks).map_batches(
            _DecodeBlock(str(manifest.root), size), batch_format="pyarrow", batch_size=None, zero_copy_batch=True
        )
        with _FileCounter(partial, rows_per_file, len(used), progress):
            dataset.write_parquet(str(partial), compression="none")
        files: list[ShardFile] = []
        for path in partial.glob("*.parquet"):
            rows = pq.read_table(path, columns=["row"]).column("row").to_numpy()
            files.append(ShardFile(path.name, int(rows[0]), len(rows)))
        files.sort(key=lambda file: file.first)
        if sum(file.count for file in files) != len(used):
            raise RunError(f"{partial}: {len(used)} radiographs went in, but fewer came out; run again")
        index = {"size": size, "files": [asdict(file) for file in files]}
        (partial / "index.json").write_text(json.dumps(index, indent=1))
        _rename(partial, folder)
    except (OSError, ray.exceptions.RayTaskError) as error:
        if isinstance(error, OSError):  # a task's too: Ray raises it as what it was
            fault = f"{folder.parent}: cannot write shards: {_reason(error)}"
            raise InputError(f"{fault}; free space or choose another data.cache") from None
        raise RunError(_reason(error)) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _reason(error: BaseException) -> str:
    """What the task itself said: Ray hands the error of a task on as the text of its traceback."""
    _, named, said = str(error).rpartition(f"{UndecodableError.__name__}: ")
    return said.strip() if named else str(error).strip().splitlines()[-1]


def _rename(partial: Path, folder: Path) -> None:
    try:
        os.rename(partial, folder)
    except OSError:
        if not folder.is_dir():  # otherwise another process was faster with the very same shards
            raise


class _FileCounter:
    """Reports progress by counting finished shard files, since the writing itself happens in Ray's processes."""

    def __init__(self, folder: Path, rows_per_file: int, total: int, progress: Progress | None) -> None:
        self._folder, self._rows, self._total, self._progress = folder, rows_per_file, total, progress
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._done.wait(0.3):
            finished = len(list(self._folder.glob("*.parquet")))
            if self._progress:
                self._progress(min(finished * self._rows, self._total), self._total)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self._thread.join()
        if self._progress and exc[0] is None:
            self._progress(self._total, self._total)
