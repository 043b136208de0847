"""A CSV file as spreadsheets, statistics programs and hospitals write it: encoding, delimiter, header, rows by line.

A file may be larger than memory: one row is held at a time. Must not know what the columns mean.
"""

import codecs
import csv
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TextIO

from fracray.errors import InputError
from fracray.runtime.spreadsheets import of_cell

LONGEST = 2**20  # characters of a line
DELIMITERS = ",;\t|"

# How other programs' files begin, and what to do with them.
_NO_CSV = {
    b"PK\x03\x04": "an Excel workbook or a zip, not a CSV; save the sheet as 'CSV UTF-8'",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook, not a CSV; save the sheet as 'CSV UTF-8'",
}


@dataclass(frozen=True)
class CsvFile:
    """A CSV with the names of its columns in the first line, or in the second below a spreadsheet's `sep=;`."""

    path: Path
    encoding: str
    delimiter: str
    header: tuple[str, ...]

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[int, int, tuple[str, ...]]]:
        """Of every row that is not blank: its number (1 is the first below the header), its line, and its cells of
        `columns`, without surrounding space and the apostrophe of `as_cell`.

        InputError, with the line, for a file that cannot be parsed or decoded, and a row of too many or too few cells.
        """
        at = [self.header.index(column) for column in columns]
        with _opened(self.path, self.encoding) as lines, _faults_named(self.path, lines):
            reader, header = _begun(lines, self.delimiter)
            row = 0
            while True:
                line = lines.number + 1
                cells = next(reader, None)
                if cells is None:
                    return
                if not any(cell.strip() for cell in cells):
                    continue
                row += 1
                # Spreadsheets write more delimiters than the header has: only cells that say something are too many.
                if len(cells) < len(header) or any(cell.strip() for cell in cells[len(header) :]):
                    raise InputError(
                        f"{self.path}, line {line}: {quoted(self.delimiter.join(cells))} has {len(cells)} cells, and "
                        f"the header {len(header)}; repair the line, and put cells with a {self.delimiter!r} in quotes"
                    )
                yield row, line, tuple(of_cell(cells[index].strip()).strip() for index in at)


def open_csv(path: Path) -> CsvFile:
    """Find encoding, delimiter and header. UTF-8 and, where the file says so, UTF-16 are read.

    The delimiter is what a first line `sep=;` says, else the most frequent of DELIMITERS in the header. InputError
    for what is not a file, not a text, or has a column twice.
    """
    try:
        if not path.is_file():
            raise InputError(f"{path}: no such table; name a CSV file with --labels")
        with open(path, "rb") as raw:
            start = raw.read(4)
    except OSError as error:
        raise InputError(f"{path}: not readable: {os.strerror(error.errno or 0)}") from None
    for magic, what in _NO_CSV.items():
        if start.startswith(magic):
            raise InputError(f"{path}: {what}")
    encoding = "utf-16" if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    with _opened(path, encoding) as lines, _faults_named(path, lines):
        first = next(lines, "")
        delimiter = _announced(first)
        line = first if delimiter is None else next(lines, "")
        if "\0" in line:
            raise InputError(f"{path}: not readable as CSV: it has zero bytes; save the table as CSV in UTF-8")
        if not line.strip():
            raise InputError(f"{path}: not readable as CSV: no header line with the names of its columns")
        unquoted = re.sub(r'"[^"]*"', "", line)
        if delimiter and delimiter not in unquoted:
            raise InputError(
                f"{path}, line 1: says that {delimiter!r} is between cells, and the header in line 2 has none; correct "
                "line 1, or remove it"
            )
        delimiter = delimiter or max(DELIMITERS, key=unquoted.count)
    with _opened(path, encoding) as lines, _faults_named(path, lines):
        header = _begun(lines, delimiter)[1]
    twice = sorted({column for column in header if column and header.count(column) > 1})
    if twice:
        raise InputError(f"{path}: the column '{twice[0]}' appears twice; rename one")
    return CsvFile(path, encoding, delimiter, tuple(header))


def quoted(text: str, most: int = 60) -> str:
    """A text of a table for a message: in quotes, on one line, shortened."""
    return repr(text if len(text) <= most else f"{text[:most]}...")


# ---------------------------------------------------------------- lines


class _Lines:
    """The lines of an open file, with the number of the last one that was handed out."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self._path, self._file, self.number = path, file, 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._file.readline(LONGEST)
        if not line:
            raise StopIteration
        self.number += 1
        if len(line) >= LONGEST and line[-1] not in "\r\n":
            raise InputError(f"{self._path}, line {self.number}: longer than {LONGEST:,} characters; is this a CSV?")
        return line


@contextmanager
def _opened(path: Path, encoding: str) -> Iterator[_Lines]:
    try:
        file = open(path, encoding=encoding, newline="")  # noqa: SIM115 - closed below
    except OSError as error:
        raise InputError(f"{path}: not readable: {os.strerror(error.errno or 0)}") from None
    with file:
        yield _Lines(path, file)


@contextmanager
def _faults_named(path: Path, lines: _Lines) -> Iterator[None]:
    """What reading and parsing raise, as an InputError with the line."""
    try:
        yield
    except UnicodeError as error:
        raise _undecodable(path, error) from None
    except csv.Error as error:
        quote = "; close the quote that is open there" if "end of data" in str(error) or "limit" in str(error) else ""
        raise InputError(f"{path}, line {lines.number}: not readable as CSV: {error}{quote}") from None
    except OSError as error:
        raise InputError(f"{path}: not readable: {os.strerror(error.errno or 0)}") from None


def _undecodable(path: Path, error: UnicodeError) -> InputError:
    if "utf-16" in str(error).lower():
        return InputError(f"{path}: not UTF-16, although it begins so; save the table as CSV in UTF-8")
    with open(path, "rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST), b""), start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return InputError(f"{path}, line {number}: not UTF-8; save the table as CSV in UTF-8")
    return InputError(f"{path}: not UTF-8; save the table as CSV in UTF-8")


def _announced(line: str) -> str | None:
    """The delimiter of a spreadsheet's first line, `sep=;`, which may be in quotes and have delimiters behind it."""
    found = re.fullmatch(r'"?sep *= *(?P<sep>[^\w\s"\']|\t)"?(?P=sep)*\s*', line, re.IGNORECASE)
    return found["sep"] if found else None


def _begun(lines: _Lines, delimiter: str) -> tuple[Iterator[list[str]], list[str]]:
    """The reader of the rows, and the names of the columns, which it has read; a line `sep=;` is skipped."""
    first = next(lines, "")
    reader = csv.reader(lines if _announced(first) else chain([first], lines), delimiter=delimiter, strict=True)
    return reader, [column.strip() for column in next(reader, [])]
