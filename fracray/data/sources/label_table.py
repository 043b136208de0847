"""A table of labels (CSV): the meaning of its columns, and its rows, streamed.

A table may be larger than memory: only one block is held, plus what the reader keeps. Must not know which files exist.
"""

import math
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fracray.data.images.dicom_header import view_of
from fracray.data.sources.csv_file import CsvFile, open_csv, quoted
from fracray.data.sources.label_fields import FIELDS
from fracray.data.sources.label_words import WORDS, identifier, is_empty, label_word
from fracray.errors import InputError, nearest

BLOCK = 2**20  # characters of the rows that are compared at a time
MOST_VALUES = 50  # of the label, that are counted one by one

# What the column of images holds for sure, by its name: file names, or identifiers of DICOM.
_OF_FILES = frozenset({"filename", "file", "filestem", "path", "filepath", "imagepath", "imagename"})
_OF_DICOM = frozenset({"sopinstanceuid", "accessionnumber", "accession", "studyinstanceuid"})

_SEXES = {"f": "F", "female": "F", "w": "F", "m": "M", "male": "M", "o": "O", "other": "O", "d": "O"}
_AGE = re.compile(r"(?P<number>[0-9]{1,6}([.,][0-9]{1,9})?) *(?P<unit>y|yrs?|years?|m|months?|w|weeks?|d|days?)?")
_UNITS = {"": 1.0, "y": 1.0, "m": 1 / 12, "w": 7 / 365.25, "d": 1 / 365.25}  # of an age, as DICOM writes it: 006M


@dataclass(frozen=True)
class Record:
    """What the table says about an image; '' for empty cells.

    row: its first row, 1 is the first below the header. line: the line of the file where that begins. times: how many
    rows are equal. label: 1 fractured, 0 not, None where the cell is empty or `uncertain`. age: years, or nan.
    """

    row: int
    line: int
    times: int
    image: str
    label: int | None
    uncertain: bool
    patient: str
    study: str
    region: str
    view: str
    batch: str
    hardware: int
    age: float
    sex: str


@dataclass
class Tally:
    """What was met while the rows were read.

    values: rows by the label's cell, as written, and its meaning. unread: cells of other columns that were not
    understood, by field, and the first of each.
    """

    rows: int = 0
    values: Counter[tuple[str, str]] = field(default_factory=Counter)
    unread: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LabelTable:
    """A CSV with a header line; `columns` by field of FIELDS, the values of the label in the form of `label_word`."""

    file: CsvFile
    columns: Mapping[str, str]
    positive: frozenset[str]
    negative: frozenset[str]
    ignored: frozenset[str] = frozenset()
    tally: Tally = field(default_factory=Tally, compare=False)

    @property
    def path(self) -> Path:
        return self.file.path

    @property
    def names_files(self) -> bool | None:
        """True if the image column holds file names, False if DICOM identifiers, None if its name does not say."""
        name = _plain(self.columns["image"])
        return True if name in _OF_FILES else False if name in _OF_DICOM else None

    def records(self) -> Iterator[Record]:
        """The rows, block by block; equal rows of a block come once.

        InputError, with the line, for a table that cannot be parsed, is not UTF-8, or holds an unknown label.
        """
        block: dict[tuple[str, ...], list[int]] = {}
        size = 0
        for row, line, cells in self.file.rows(list(self.columns.values())):
            self.tally.rows += 1
            if known := block.get(cells):
                known[2] += 1
                continue
            block[cells] = [row, line, 1]
            size += 64 + sum(map(len, cells))
            if size > BLOCK:
                yield from self._records(block)
                block, size = {}, 0
        yield from self._records(block)

    def _records(self, block: Mapping[tuple[str, ...], Sequence[int]]) -> Iterator[Record]:
        for cells, (row, line, times) in block.items():
            said = dict.fromkeys(FIELDS, "") | dict(zip(self.columns, cells, strict=True))
            meaning = self._meaning(said["label"])
            if meaning is None:
                raise self._unknown_label(line, said["label"])
            values = self.tally.values
            value = (said["label"], meaning)
            values[value if value in values or len(values) < MOST_VALUES else ("other values", meaning)] += times
            said |= {name: "" for name, text in said.items() if name not in ("image", "label") and is_empty(text)}
            yield Record(
                row=row,
                line=line,
                times=times,
                image=said["image"],
                label={"fractured": 1, "not fractured": 0}.get(meaning),
                uncertain=meaning == "uncertain",
                patient=self._identifier("patient", said["patient"]),
                study=self._identifier("study", said["study"]),
                region=_tags(said["region"]),
                view=_tags("+".join(view_of(tag) for tag in _split(said["view"]))),
                batch=said["batch"],
                hardware=self._hardware(said["hardware"]),
                age=self._age(said["age"]),
                sex=self._sex(said["sex"]),
            )

    # ------------------------------------------------------------ cells

    def _meaning(self, text: str) -> str | None:
        """'fractured', 'not fractured', 'uncertain', 'no label', or None where the value is not known."""
        word = label_word(text, decimal_comma=self.file.delimiter != ",")
        words = (word, "") if is_empty(text) else (word,)
        for known, meaning in (
            (self.positive, "fractured"),
            (self.negative, "not fractured"),
            (self.ignored, "uncertain"),
        ):
            if known.intersection(words):
                return meaning
        return "no label" if "" in words else None

    def _unknown_label(self, line: int, text: str) -> InputError:
        """The error for the first unknown value, which also counts all of them."""
        at = list(self.columns).index("label")
        unknown: Counter[str] = Counter()
        rows = 0
        for _, _, cells in self.file.rows(list(self.columns.values())):
            rows += 1
            if self._meaning(cells[at]) is None and (cells[at] in unknown or len(unknown) < MOST_VALUES):
                unknown[cells[at]] += 1
        others = [f"{quoted(value, 20)} ({count:,})" for value, count in unknown.most_common() if value != text]
        more = ""
        if others:
            more = f"; other such values: {', '.join(others[:5])}{' and more' if len(others) > 5 else ''}"
        if len(others) > 5:
            more += "; if this is not the column of labels, name it with --column label=NAME"
        return InputError(
            f"{self.path}, line {line}: {self.columns['label']} is {quoted(text)}, which is not among the values for "
            f"fractured ({_listed(self.positive)}) or for not fractured ({_listed(self.negative)}), in "
            f"{unknown[text]:,} of {rows:,} rows; say what it means with --positive, --negative or --ignore, such as "
            f"--ignore={_as_option(text)}{more}"
        )

    def _hardware(self, text: str) -> int:
        word = label_word(text)
        if word and word not in WORDS[0] | WORDS[1]:
            self._unread("hardware", text)
        return int(word in WORDS[1])

    def _age(self, text: str) -> float:
        years = _years(text)
        if text and math.isnan(years):
            self._unread("age", text)
        return years

    def _sex(self, text: str) -> str:
        if text and text.lower() not in _SEXES:
            self._unread("sex", text)
        return _SEXES.get(text.lower(), "")

    def _identifier(self, name: str, text: str) -> str:
        found = identifier(text)
        if text and not found:
            self._unread(name, text)
        return found

    def _unread(self, name: str, text: str) -> None:
        self.tally.unread[name] += 1
        self.tally.examples.setdefault(name, text)


def open_table(
    path: Path,
    given: Mapping[str, str],
    positive: Sequence[str] = (),
    negative: Sequence[str] = (),
    ignored: Sequence[str] = (),
) -> LabelTable:
    """Find delimiter and columns of a table in its first line; `given` names columns by field of FIELDS.

    Without `positive` and `negative`, labels are the usual words (WORDS); words given for one meaning are removed
    from the others. InputError if it is not a file or lacks a column, listing its columns; and where several columns
    may be the label.
    """
    file = open_csv(path)
    header = file.header
    columns = dict(given)
    for name, column in given.items():
        if column not in header:
            hint = nearest(column, header)
            raise InputError(f"--column {name}={column}: {path} has no such column{hint}; it has {_shown(header)}")
    plain = {_plain(column): column for column in reversed(header)}
    for name, names in FIELDS.items():
        known = [plain[one] for one in names if one in plain and plain[one] not in columns.values()]
        if known and name not in columns:
            columns[name] = known[0]
            alike = [column for column in header if _plain(column) == _plain(known[0])]
            if len(alike) > 1 or (name == "label" and len(known) > 1):
                may = alike if len(alike) > 1 else known
                raise InputError(
                    f"{path}: the columns {', '.join(may)} may all be the {name}; choose one with --column {name}=NAME"
                )
    for name, what in (("image", "names the image file"), ("label", "says whether it is fractured")):
        if name not in columns:
            raise InputError(
                f"{path}: no column {what}; the table has {_shown(header)}; name one with --column {name}=NAME"
            )
    yes, no, neither = (frozenset(map(label_word, words)) for words in (positive, negative, ignored))
    for one, other, flags in (
        (yes, no, "--positive and --negative"),
        (yes, neither, "--positive and --ignore"),
        (no, neither, "--negative and --ignore"),
    ):
        if one & other:
            raise InputError(f"{flags}: '{min(one & other)}' cannot be both")
    columns = {name: columns[name] for name in FIELDS if name in columns}
    return LabelTable(file, columns, yes or WORDS[1] - no - neither, no or WORDS[0] - yes - neither, neither)


# ---------------------------------------------------------------- texts


def _plain(column: str) -> str:
    return re.sub(r"[\W_]", "", column.lower())


def _as_option(text: str, most: int = 60) -> str:
    """A value of the label as it is typed behind an option: quoted for the shell, and with a comma once more."""
    if len(text) > most or not text.isprintable():
        return "VALUE"
    cell = '"' + text.replace('"', '""') + '"' if "," in text or text.startswith('"') else text
    return shlex.quote(cell) if "'" in cell else f"'{cell}'"


def _listed(words: frozenset[str]) -> str:
    return ", ".join(f"'{word}'" for word in sorted(words))


def _shown(header: Sequence[str], most: int = 40) -> str:
    return ", ".join(header[:most]) + (f" and {len(header) - most} more" if len(header) > most else "")


def _split(text: str) -> list[str]:
    return [tag.strip() for tag in re.split(r"[+,;/]", text) if tag.strip()]


def _tags(text: str) -> str:
    return "+".join(sorted({tag.lower() for tag in _split(text)}))


def _years(text: str) -> float:
    """An age in years, from a number (of years) or DICOM's form (045Y, 006M); nan for other texts, and beyond 130."""
    found = _AGE.fullmatch(text.lower())
    if not found:
        return math.nan
    years = float(found["number"].replace(",", ".")) * _UNITS[(found["unit"] or "")[:1]]
    return years if years <= 130 else math.nan
