"""Ray Data: decode, orient, letterbox and resize each radiograph once, into uint8 grayscale shards.

A shard set is a folder of Parquet files keyed by what is in it (files, labels, geometry). It is written under a
temporary name and renamed when whole, so a folder that exists is complete. Knows nothing of splits or training.
"""

import hashlib
import json
import os
import shutil
import uuid
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from fracray.data import imagefile
from fracray.data.letterbox import letterbox
from fracray.data.manifest import Manifest
from fracray.errors import InputError, RunError

INGEST_VERSION = 3  # raise it when the pixels of a shard, or which images share a file, would change
SHARD_BYTES = 8 * 2**20
SHARD_ROWS = 2048
TASK_PIXELS = 64_000_000  # of the files' own: 0.1 s of decoding, against some 10 ms that a task costs beside
SHARDS_WANTED = 64  # of a set that is not large; so many are shuffled with each other

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


def reduction_for(longer_side: int, size: int) -> int:
    """The scale, one over 1, 2, 4 or 8, at which a JPEG is decoded for a square of this size.

    The picture is still at least twice the target then, so that the area filter decides.
    """
    return next((factor for factor in (8, 4, 2) if longer_side >= 2 * factor * size), 1)


def decode(data: bytes, longer_side: int, size: int, known: imagefile.Known | None = None) -> np.ndarray:
    """Bytes of an image file to a letterboxed (size, size) uint8 image, by the decoder of the audit.

    A JPEG several times larger than the target is decoded at a half, quarter or eighth of its scale; what is `known` of
    it is not sought again. Raises ValueError where the bytes are no whole image.
    """
    found = imagefile.decode(data, reduction_for(longer_side, size), known)
    if found.gray is None or found.fault:
        raise ValueError(found.note or "not decodable")
    return letterbox(found.gray, size)


class UndecodableError(Exception):
    """A file that was readable when the data set was examined, and is not when it is ingested."""


_FILE = ("path", "width", "height", "exif_orientation")


@dataclass(frozen=True)
class _WriteShard:
    """The Ray Data task: a block of (row, image_id, label, *_FILE) to a shard file, and its name and rows."""

    root: str
    folder: str
    size: int

    def __call__(self, block: pa.Table) -> pa.Table:
        cv2.setNumThreads(1)  # the parallelism is Ray Data's
        warnings.simplefilter("ignore")  # what the decoders have to say of odd files, the audit says
        images = np.empty((len(block), self.size, self.size), dtype=np.uint8)
        for at, (path, *seen) in enumerate(zip(*(block[name].to_pylist() for name in _FILE), strict=True)):
            known = imagefile.Known(*seen)
            try:
                with open(os.path.join(self.root, path), "rb", buffering=0) as file:
                    images[at] = decode(file.read(), max(known.width, known.height), self.size, known)
            except (OSError, ValueError) as error:
                raise UndecodableError(f"{path}: {error}; it was readable when the data set was examined") from None
        pixels = pa.Array.from_buffers(pa.binary(self.size**2), len(images), [None, pa.py_buffer(images)])
        first, last = block["row"][0].as_py(), block["row"][-1].as_py()
        name = f"rows-{first:09d}-{last:09d}.parquet"  # a task that is run again writes the same file again
        pq.write_table(
            block.select(["row", "image_id", "label"]).append_column("image", pixels),
            os.path.join(self.folder, name),
            compression="none",
            use_dictionary=False,
            write_statistics=False,
        )
        return pa.table({"name": [name], "first": [first], "count": [len(images)]})


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
    blocks = [work.slice(start, rows) for start in range(0, len(used), rows)]
    partial = folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        partial.mkdir(parents=True)
        written = ray.data.from_arrow(blocks).map_batches(
            _WriteShard(str(manifest.root), str(partial), size),
            batch_format="pyarrow",
            batch_size=None,
            zero_copy_batch=True,
        )
        files: list[ShardFile] = []
        done = 0
        for batch in written.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            files += [ShardFile(**file) for file in batch.to_pylist()]
            done = sum(file.count for file in files)
            if progress:
                progress(done, len(used))
        if done != len(used):
            raise RunError(f"{partial}: {len(used)} radiographs went in, but {done} came out; run again")
        files.sort(key=lambda file: file.first)
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


def _rows_per_file(used: pd.DataFrame, size: int) -> int:
    """Tasks of a tenth of a second or more, in files that fit the caches of streams, and not many files of few images.

    Not by the number of CPUs: the order of training follows the files, and must not change with the machine.
    """
    pixels = float((used["width"].astype(np.int64) * used["height"]).mean())
    wanted = max(round(TASK_PIXELS / max(pixels, 1)), -(-len(used) // SHARDS_WANTED))
    return max(1, min(SHARD_ROWS, SHARD_BYTES // size**2, wanted))


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
