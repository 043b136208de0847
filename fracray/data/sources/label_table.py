"""A table of labels (CSV): the meaning of its columns, and its rows, streamed.

A table may be larger than memory: only one block is held, plus what the reader keeps. Must not know which files exist.
"""

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv

from fracray.data.images.dicom_header import view_of
from fracray.data.sources.label_fields import FIELDS
from fracray.errors import InputError, nearest

BLOCK = 2**20  # bytes that are parsed at a time, and the most that a row may have

# What the column of images holds for sure, by its name: file names, or identifiers of DICOM.
_OF_FILES = frozenset({"filename", "file", "filestem", "path", "filepath", "imagepath", "imagename"})
_OF_DICOM = frozenset({"sopinstanceuid", "accessionnumber", "accession", "studyinstanceuid"})

WORDS = (
    frozenset(
        {
            "0",
            "false",
            "no",
            "n",
            "negative",
            "neg",
            "normal",
            "non fractured",
            "not fractured",
            "no fracture",
            "healthy",
        }
    ),
    frozenset({"1", "true", "yes", "y", "positive", "pos", "abnormal", "fractured", "fracture"}),
)
_SEXES = {"f": "F", "female": "F", "w": "F", "m": "M", "male": "M", "o": "O", "other": "O", "d": "O"}


@dataclass(frozen=True)
class Record:
    """What the table says about an image; `row` is its first row (1 is the first below the header); '' for empty cells.

    times: how many rows are equal. label: 1 fractured, 0 not, None where the cell is empty. age: years, or nan.
    """

    row: int
    times: int
    image: str
    label: int | None
    patient: str
    study: str
    region: str
    view: str
    batch: str
    hardware: int
    age: float
    sex: str


@dataclass(frozen=True)
class LabelTable:
    """A CSV with a header line; `columns` by field of FIELDS, `positive` and `negative` in the form of `_word`."""

    path: Path
    delimiter: str
    columns: Mapping[str, str]
    positive: frozenset[str]
    negative: frozenset[str]

    @property
    def names_files(self) -> bool | None:
        """True if the image column holds file names, False if DICOM identifiers, None if its name does not say."""
        name = _plain(self.columns["image"])
        return True if name in _OF_FILES else False if name in _OF_DICOM else None

    def records(self) -> Iterator[Record]:
        """The rows, block by block; equal rows of a block come once.

        InputError for a table that cannot be parsed, is not UTF-8, or holds an unknown label.
        """
        wanted = sorted(set(self.columns.values()))
        inner = [f"column{at}" for at in range(len(wanted))]  # the table may have a column 'row' too
        odd: list[pacsv.InvalidRow] = []

        def refuse(row: pacsv.InvalidRow) -> str:
            odd.append(row)
            return "error"

        start = 1
        try:
            with pacsv.open_csv(
                self.path,
                pacsv.ReadOptions(block_size=BLOCK, use_threads=False),  # with threads, an invalid row has no number
                pacsv.ParseOptions(delimiter=self.delimiter, newlines_in_values=True, invalid_row_handler=refuse),
                pacsv.ConvertOptions(column_types=dict.fromkeys(wanted, pa.string()), include_columns=wanted),
            ) as reader:
                for batch in reader:
                    table = pa.Table.from_batches([batch]).select(wanted).rename_columns(inner)
                    table = table.append_column("row", pa.array(range(start, start + len(table)), pa.int64()))
                    start += len(table)
                    firsts = table.group_by(inner, use_threads=False).aggregate([("row", "min"), ("row", "count")])
                    for cells in firsts.to_pylist():
                        by_column = {column: cells[name] for column, name in zip(wanted, inner, strict=True)}
                        yield self._record(cells["row_min"], cells["row_count"], by_column)
        except (pa.ArrowInvalid, OSError) as error:
            said = str(error).splitlines()[0]
            if "UTF8" in said:
                raise InputError(f"{self.path}: not UTF-8; save the table as CSV in UTF-8") from None
            if odd:
                row = odd[0]
                raise InputError(
                    f"{self.path}, row {row.number - 1}: {quoted(row.text)} has {row.actual_columns} cells, and the "
                    f"header {row.expected_columns}; repair the row, and put cells with a {self.delimiter!r} in quotes"
                ) from None
            raise InputError(f"{self.path}, after row {start - 1}: not readable as CSV: {said}") from None

    def _record(self, row: int, times: int, cells: Mapping[str, str]) -> Record:
        said = {field: cells[self.columns[field]].strip() if field in self.columns else "" for field in FIELDS}
        return Record(
            row=row,
            times=times,
            image=said["image"],
            label=self._label(row, said["label"]),
            patient=said["patient"],
            study=said["study"],
            region=_tags(said["region"]),
            view=_tags("+".join(view_of(tag) for tag in _split(said["view"]))),
            batch=said["batch"],
            hardware=int(_word(said["hardware"]) in WORDS[1]),
            age=_years(said["age"]),
            sex=_SEXES.get(said["sex"].lower(), ""),
        )

    def _label(self, row: int, text: str) -> int | None:
        word = _word(text)
        for label, words in ((1, self.positive), (0, self.negative)):
            if word in words:
                return label
        if not word:
            return None
        raise InputError(
            f"{self.path}, row {row}: {self.columns['label']} is {quoted(text)}, which is not among the values "
            f"for fractured ({_listed(self.positive)}) or for not fractured ({_listed(self.negative)}); add it with "
            "--positive or --negative"
        )


def open_table(
    path: Path, given: Mapping[str, str], positive: Sequence[str] = (), negative: Sequence[str] = ()
) -> LabelTable:
    """Find delimiter and columns of a table in its first line; `given` names columns by field of FIELDS.

    Without `positive` and `negative`, labels are the usual words (WORDS); words given for one side are removed
    from the other. InputError if it is not a file or lacks a column, listing its columns.
    """
    header, delimiter = _header(path)
    columns = dict(given)
    for field, column in given.items():
        if column not in header:
            hint = nearest(column, header)
            raise InputError(f"--column {field}={column}: {path} has no such column{hint}; it has {_shown(header)}")
    plain = {_plain(column): column for column in reversed(header)}
    for field, names in FIELDS.items():
        known = next((plain[name] for name in names if name in plain and plain[name] not in columns.values()), None)
        if known and field not in columns:
            columns[field] = known
    for field, what in (("image", "names the image file"), ("label", "says whether it is fractured")):
        if field not in columns:
            raise InputError(
                f"{path}: no column {what}; the table has {_shown(header)}; name one with --column {field}=NAME"
            )
    yes, no = frozenset(map(_word, positive)), frozenset(map(_word, negative))
    if yes & no:
        raise InputError(f"--positive and --negative: '{min(yes & no)}' cannot be both")
    return LabelTable(path, delimiter, columns, yes or WORDS[1] - no, no or WORDS[0] - yes)


def _header(path: Path) -> tuple[list[str], str]:
    try:
        if not path.is_file():
            raise InputError(f"{path}: no such table; name a CSV file with --labels")
        with open(path, "rb") as file:
            start = file.read(BLOCK)
    except OSError as error:
        raise InputError(f"{path}: not readable: {os.strerror(error.errno or 0)}") from None
    line = start.removeprefix(b"\xef\xbb\xbf").partition(b"\n")[0]
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8; save the table as CSV in UTF-8") from None
    if not text.strip() or "\0" in text:
        raise InputError(f"{path}: not readable as CSV: no header line with the names of its columns")
    delimiter = max(",;\t", key=text.count)
    try:
        with pacsv.open_csv(
            pa.py_buffer(start.removeprefix(b"\xef\xbb\xbf")[: len(line)] + b"\n"),
            parse_options=pacsv.ParseOptions(delimiter=delimiter),
        ) as reader:
            header = list(reader.schema.names)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: not readable as CSV: {str(error).splitlines()[0]}") from None
    twice = sorted({column for column in header if header.count(column) > 1})
    if twice:
        raise InputError(f"{path}: the column '{twice[0]}' appears twice; rename one")
    return header, delimiter


def _plain(column: str) -> str:
    return re.sub(r"[\W_]", "", column.lower())


def quoted(text: str, most: int = 60) -> str:
    """A text of a table for a message: in quotes, on one line, shortened."""
    return repr(text if len(text) <= most else f"{text[:most]}...")


def _word(text: str) -> str:
    """A label for comparison: lower case, '-' and '_' as spaces, 1.0 as 1."""
    word = " ".join(re.sub(r"[-_]", " ", text.lower()).split())
    return word[:-2] if re.fullmatch(r"\d+\.0", word) else word


def _listed(words: frozenset[str]) -> str:
    return ", ".join(f"'{word}'" for word in sorted(words))


def _shown(header: Sequence[str], most: int = 40) -> str:
    return ", ".join(header[:most]) + (f" and {len(header) - most} more" if len(header) > most else "")


def _split(text: str) -> list[str]:
    return [tag.strip() for tag in re.split(r"[+,;/]", text) if tag.strip()]


def _tags(text: str) -> str:
    return "+".join(sorted({tag.lower() for tag in _split(text)}))


def _years(text: str) -> float:
    try:
        years = float(text)
    except ValueError:
        return math.nan
    return years if 0 <= years <= 130 else math.nan
