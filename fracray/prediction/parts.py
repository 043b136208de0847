"""What is kept of a prediction while it runs, and the file that it ends in.

The folder FILE.parts holds the rows so far, in files that are written in one step, and what they belong to. So a
command that was stopped, however, goes on where it was. A path and a URI take the same way. Knows tables; nothing of
networks or pictures.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from fracray.errors import InputError, RunError
from fracray.runtime.claim import CLAIMS, LOCK, claimed
from fracray.runtime.locations import around, refuse_secret
from fracray.runtime.spreadsheets import as_cell
from fracray.runtime.storage import Folder

SUFFIXES = (".csv", ".parquet", ".jsonl")
ABOUT = "about.json"
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


@dataclass(frozen=True)
class Target:
    """The file to write, in a folder on a path or a URI."""

    folder: Folder
    name: str

    @classmethod
    def of(cls, named: str) -> "Target":
        """From a path or a URI, which may end in options.

        InputError for a name without one of SUFFIXES, a URI with a password, and one that cannot be opened.
        """
        refuse_secret(named)
        is_uri = "://" in named
        address = named.partition("?")[0] if is_uri else named
        if PurePosixPath(address).suffix.lower() not in SUFFIXES:
            raise InputError(f"--to {named}: name a file that ends in {', '.join(SUFFIXES)}")
        if not is_uri:
            path = Path(named).expanduser().absolute()
            return cls(Folder(path.parent), path.name)
        if "/" not in address.partition("://")[2].strip("/"):
            raise InputError(f"--to {named}: names no folder; name a file in one, as s3://bucket/predictions.parquet")
        return cls(Folder(around(named)), unquote(address.rpartition("/")[2]))

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix.lower()

    @property
    def is_file(self) -> bool:
        info = self.folder.filesystem.get_file_info(self.folder.path(self.name))
        return bool(info.type == pafs.FileType.File)

    @property
    def parts(self) -> Folder:
        """Where its parts are kept, beside it."""
        return self.folder.sub(f"{self.name}.parts")


class Parts:
    """The folder of one prediction; made by `open_parts`."""

    def __init__(self, folder: Folder, count: int) -> None:
        self.folder, self._count = folder, count

    def done(self) -> np.ndarray:
        """Which places have their row, (count,) bool."""
        found = np.zeros(self._count, dtype=bool)
        for name in _names(self.folder):
            first, last = (int(digits) for digits in PurePosixPath(name).stem.split("-")[1:])
            found[first : last + 1] = True
        return found

    def keep(self, rows: pa.Table) -> None:
        """Write the rows of consecutive places, in one step. RunError where that fails."""
        first, last = rows["place"][0].as_py(), rows["place"][-1].as_py()
        assert last - first + 1 == len(rows), "rows of places that are not consecutive"
        stream = pa.BufferOutputStream()
        pq.write_table(rows, stream)
        with _repeated("it goes on where it was"):
            self.folder.write(f"rows-{first:09d}-{last:09d}.parquet", stream.getvalue().to_pybytes())

    def tables(self) -> Iterator[pa.Table]:
        """All rows, in the order of their places, some thousand at a time. InputError where a file is damaged."""
        waiting: list[pa.Table] = []
        for name in _names(self.folder):
            waiting.append(self._read(name))
            if sum(map(len, waiting)) >= CHUNK:
                yield pa.concat_tables(waiting).combine_chunks()
                waiting = []
        if waiting:
            yield pa.concat_tables(waiting).combine_chunks()

    def require_all(self) -> None:
        """RunError where rows are missing."""
        if missing := self._count - int(self.done().sum()):
            raise RunError(
                f"{self.folder}: {missing:,} of {self._count:,} rows are missing; give the same command again: it goes "
                "on where it was"
            )

    def remove(self) -> None:
        """Remove the parts, of a file that is written. Before their claim ends: the next one's would go too."""
        with suppress(InputError, RunError):  # they are in the way of nothing
            for name in self.folder.files():  # also what a killed write has left
                if name != LOCK and not name.startswith(f"{CLAIMS}/"):
                    self.folder.remove(name)

    def _read(self, name: str) -> pa.Table:
        try:
            return pq.read_table(pa.BufferReader(self.folder.read(name)))
        except (OSError, ValueError) as error:  # pyarrow's errors are among these
            raise InputError(
                f"{self.folder}/{name}: not readable as Parquet: {error}; remove it and give the same command again: "
                "it predicts these rows anew"
            ) from None


def _names(folder: Folder) -> list[str]:
    return [name for name in folder.names() if name.startswith("rows-") and name.endswith(".parquet")]


@contextmanager
def _repeated(then: str) -> Iterator[None]:
    """A RunError of the block says what the same command does, given again."""
    try:
        yield
    except RunError as error:
        raise RunError(f"{error}; mend that and give the same command again: {then}") from None


def is_begun(target: Target, about: About) -> bool:
    """Whether an earlier start has left parts of just this prediction."""
    return _read(target.parts) == asdict(about)


@contextmanager
def open_parts(target: Target, about: About, anew: bool) -> Iterator[Parts]:
    """The parts of `target`: those that an earlier start left, or none. They stay unless the block removes them.

    anew: parts of something else are removed. Else InputError for these; also where another command works on them, and
    where they cannot be written. RunError for an OSError of the block, which names it.
    """
    folder = target.parts
    with ExitStack() as held:
        try:
            held.enter_context(claimed(folder, "prediction", "--to", trace=False))
            _prepare(folder, about, anew)
        except OSError as error:
            raise InputError(f"{folder}: cannot be written: {error}; choose another --to, or free space") from None
        try:
            yield Parts(folder, about.count)
        except BrokenPipeError:  # of `fracray.predict ... | head`
            raise
        except OSError as error:
            why = str(error) or type(error).__name__
            raise RunError(f"{why}; mend that and give the same command again: it goes on where it was") from None
    if folder.is_local:
        with suppress(OSError):  # parts are left, or another command's
            Path(folder.location).rmdir()


def _prepare(folder: Folder, about: About, anew: bool) -> None:
    """Remove the parts of something else, where that is allowed, and say what the new ones belong to."""
    known = _read(folder)
    other = next((name for name, value in asdict(about).items() if known and known.get(name) != value), None)
    if other and not anew and _names(folder):
        raise InputError(
            f"{folder}: holds the rows of a prediction that was stopped, with {WORDS[other]}; give the command "
            "that was stopped, or remove these rows with --overwrite"
        )
    if other or not known:
        for name in _names(folder):
            folder.remove(name)
        folder.write_json(ABOUT, asdict(about))


def _read(folder: Folder) -> dict[str, Any]:
    try:
        found = json.loads(folder.read_if_there(ABOUT) or b"")
    except ValueError:  # none yet, or not fracray's
        return {}
    return found if isinstance(found, dict) else {}


def write_output(target: Target, tables: Iterator[pa.Table], schema: pa.Schema) -> None:
    """Write rows in the format that the suffix of `target` names, in one step. RunError where that fails."""
    with (
        _repeated("the rows are kept"),
        target.folder.building(target.name) as partial,
        _WRITERS[target.suffix](partial, schema) as write,
    ):
        for table in tables:
            write(table)


Write = Callable[[pa.Table], Any]


@contextmanager
def _csv(path: Path, schema: pa.Schema) -> Iterator[Write]:
    with pcsv.CSVWriter(str(path), schema, write_options=pcsv.WriteOptions(quoting_style="needed")) as writer:
        yield lambda table: writer.write_table(_as_cells(table))


def _as_cells(table: pa.Table) -> pa.Table:
    for at, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            cells = [None if text is None else as_cell(text) for text in table[field.name].to_pylist()]
            table = table.set_column(at, field, pa.array(cells, field.type))
    return table


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
