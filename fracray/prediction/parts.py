"""What is kept of a prediction while it runs, and the file that it ends in.

The folder FILE.parts holds the rows so far, in files that are written in one step, and what they belong to. So a
command that was stopped, however, goes on where it was. Knows tables; nothing of networks or pictures.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from fracray.errors import InputError, RunError
from fracray.runtime.storage import atomic_path

SUFFIXES = (".csv", ".parquet", ".jsonl")
ABOUT, LOCK = "about.json", "lock"
CHUNK = 65_536  # rows in memory at a time, and of a group of rows in Parquet


@dataclass(frozen=True)
class About:
    """What the rows of a folder belong to: only rows of the same are continued."""

    checkpoint: str
    inputs: str
    count: int
    coverage: float
    heatmaps: str  # the folder, or ''
    dicom_out: str  # as heatmaps
    version: str


WORDS = {
    "checkpoint": "another checkpoint",
    "inputs": "other inputs",
    "count": "other inputs",
    "coverage": "another --coverage",
    "heatmaps": "another --heatmaps",
    "dicom_out": "another --dicom-out",
    "version": "another version of fracray",
}


class Parts:
    """The folder of one prediction; made by `open_parts`."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self._count = folder, count

    def done(self) -> np.ndarray:
        """Which places have their row, (count,) bool."""
        found = np.zeros(self._count, dtype=bool)
        for first, last, _ in self._files():
            found[first : last + 1] = True
        return found

    def keep(self, rows: pa.Table) -> None:
        """Write the rows of consecutive places, in one step. RunError where there is no room."""
        first, last = rows["place"][0].as_py(), rows["place"][-1].as_py()
        assert last - first + 1 == len(rows), "rows of places that are not consecutive"
        try:
            with atomic_path(self.folder / f"rows-{first:09d}-{last:09d}.parquet") as partial:
                pq.write_table(rows, partial)
        except OSError as error:
            raise RunError(
                f"{self.folder}: cannot be written: {error}; free space and give the same command again: it goes on "
                "where it was"
            ) from None

    def tables(self) -> Iterator[pa.Table]:
        """All rows, in the order of their places, some thousand at a time."""
        waiting: list[pa.Table] = []
        for _, _, path in self._files():
            waiting.append(pq.read_table(path))
            if sum(map(len, waiting)) >= CHUNK:
                yield pa.concat_tables(waiting).combine_chunks()
                waiting = []
        if waiting:
            yield pa.concat_tables(waiting).combine_chunks()

    def _files(self) -> list[tuple[int, int, Path]]:
        names = sorted(self.folder.glob("rows-*.parquet"))
        return [(*map(int, path.stem.split("-")[1:]), path) for path in names]  # type: ignore[misc]


def folder_of(target: Path) -> Path:
    """Where the parts of a file are kept, beside it."""
    return target.with_name(f"{target.name}.parts")


def is_begun(target: Path, about: About) -> bool:
    """Whether an earlier start has left parts of just this prediction."""
    return _read(folder_of(target)) == asdict(about)


@contextmanager
def open_parts(target: Path, about: About, anew: bool) -> Iterator[Parts]:
    """The parts of the file `target`: those that an earlier start left, or none; they stay where the block fails.

    anew: parts of something else are removed. Else InputError for these; also where another command works on them.
    """
    folder = folder_of(target)
    try:
        folder.mkdir(exist_ok=True)
        lock = filelock.FileLock(folder / LOCK)
        with lock.acquire(timeout=0):
            known = _read(folder)
            other = next((name for name, value in asdict(about).items() if known and known.get(name) != value), None)
            if other and not anew:
                raise InputError(
                    f"{folder}: holds the rows of a prediction that was stopped, with {WORDS[other]}; give the command "
                    "that was stopped, or remove the folder"
                )
            if other or not known:
                for path in folder.glob("rows-*.parquet"):
                    path.unlink()
                with atomic_path(folder / ABOUT) as partial:
                    partial.write_text(json.dumps(asdict(about), indent=1))
            yield Parts(folder, about.count)
    except filelock.Timeout:
        raise InputError(f"{folder}: another predict writes to it now; wait for it, or choose another --to") from None
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error}; choose another --to, or free space") from None


def _read(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / ABOUT).read_text())
    except (FileNotFoundError, ValueError):  # none yet, or not fracray's
        return {}
    return found if isinstance(found, dict) else {}


def write_output(target: Path, tables: Iterator[pa.Table], schema: pa.Schema) -> None:
    """Write rows in the format that the suffix of `target` names, in one step. RunError where there is no room."""
    try:
        with atomic_path(target) as partial, _WRITERS[target.suffix.lower()](partial, schema) as write:
            for table in tables:
                write(table)
    except OSError as error:
        raise RunError(
            f"{target}: cannot be written: {error}; free space and give the same command again: the rows are kept"
        ) from None


def remove(folder: Path) -> None:
    """Remove the parts of a file that is written."""
    shutil.rmtree(folder, ignore_errors=True)


Write = Callable[[pa.Table], Any]


@contextmanager
def _csv(path: Path, schema: pa.Schema) -> Iterator[Write]:
    with pcsv.CSVWriter(str(path), schema, write_options=pcsv.WriteOptions(quoting_style="needed")) as writer:
        yield writer.write_table


@contextmanager
def _parquet(path: Path, schema: pa.Schema) -> Iterator[Write]:
    with pq.ParquetWriter(str(path), schema) as writer:
        yield writer.write_table


@contextmanager
def _lines(path: Path, schema: pa.Schema) -> Iterator[Write]:
    with open(path, "w", encoding="utf-8") as file:

        def write(table: pa.Table) -> None:
            for row in table.to_pylist():
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

        yield write


_WRITERS = dict(zip(SUFFIXES, (_csv, _parquet, _lines), strict=True))
