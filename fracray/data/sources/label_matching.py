"""The label of each radiograph of an imported set, by table or folder, and its row of the manifest.

Compares identifiers. Must not open a picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isnan
from pathlib import Path
from typing import Any

from fracray.data.sources.image_folder import FileIndex, RadiographFile, classes_of, plain_path
from fracray.data.sources.label_table import LabelTable, Record, quoted
from fracray.errors import InputError

MAX_MISSING = 100_000  # rows of a table without a file; a table with more belongs to another folder


@dataclass(frozen=True)
class LabelMatch:
    """What table or folders say about one file: its labels (none, one or both), the first record, and a note."""

    labels: frozenset[int] = frozenset()
    record: Record | None = None
    note: str = ""


def by_folder(
    files: Sequence[RadiographFile], root: Path, patterns: tuple[tuple[str, ...], tuple[str, ...]] | None
) -> dict[int, LabelMatch]:
    """Matches by folder, by index of the file; `patterns` are those of each class, None for the usual names.

    InputError where no picture is of a class.
    """
    found = {at: classes for at, file in enumerate(files) if (classes := classes_of(file.path, patterns))}
    for label, option in enumerate(("NOT_FRACTURED", "FRACTURED")):
        if not any(label in classes for classes in found.values()):
            folders = sorted({file.path.rpartition("/")[0] or "." for file in files})
            shown = ", ".join(folders[:20]) + (f" and {len(folders) - 20} more" if len(folders) > 20 else "")
            if patterns is None:
                raise InputError(
                    f"{root}: no dataset.csv of FracAtlas, no table of labels, and no folder with a known name for "
                    f"{option.lower().replace('_', ' ')} radiographs; its pictures are in: {shown}. Name a table with "
                    "--labels FILE.csv, or the folders with --classes NOT_FRACTURED=FOLDER FRACTURED=FOLDER"
                )
            raise InputError(f"--classes {option}={','.join(patterns[label])}: no picture there; they are in: {shown}")
    return {at: LabelMatch(frozenset(classes)) for at, classes in found.items()}


def by_table(
    table: LabelTable, files: Sequence[RadiographFile], root: Path
) -> tuple[dict[int, LabelMatch], dict[str, Record]]:
    """Matches by table, by index of the file, and the rows without a file by what they name."""
    index = FileIndex(files)
    found: dict[int, LabelMatch] = {}
    missing: dict[str, Record] = {}
    for record in table.records():
        key = ""
        at: tuple[int, ...] = ()
        for key in _spellings(record.image, root):
            if at := _files_of(key, index, table, record):
                break
        for one in at:
            found[one] = _another_match(found[one], record) if one in found else _first_match(record)
        if not at:
            missing.setdefault(key or f"row {record.row}", record)
            if len(missing) > MAX_MISSING:
                first = next(iter(missing))
                raise InputError(
                    f"{table.path}: more than {MAX_MISSING:,} rows name no file in {root} (the first is "
                    f"{quoted(first)}); name the folder of its images, or remove the other rows from the table"
                )
    if not found:
        first = next(iter(missing), "none")
        raise InputError(
            f"{table.path}: none of its rows names a file in {root}: {table.columns['image']} says {quoted(first)}, "
            f"and one file is {files[0].path}; name the column of file names or paths with --column "
            "image=NAME"
        )
    return found, missing


def _spellings(image: str, root: Path) -> list[str]:
    """How a table may name a file, as paths in the folder: unchanged, then without the folder's own path and name."""
    key = plain_path(image.replace("\\", "/")).removeprefix("./")
    below = key.removeprefix(plain_path(f"{root}/"))
    return list(dict.fromkeys((key, below, below.removeprefix(plain_path(f"{root.name}/")))))


def _files_of(key: str, index: FileIndex, table: LabelTable, record: Record) -> tuple[int, ...]:
    """The files that a key means: one by its name or SOP instance UID, or all of a study; InputError if ambiguous."""
    named, instance, study = index.named.get(key, ()), index.instances.get(key, ()), index.studies.get(key, ())
    files, where = index.files, f"{table.path}, row {record.row}: {quoted(record.image)}"
    by_header = instance or study
    if named and by_header and set(named) != set(by_header):
        if table.names_files is None:
            other = next((at for at in by_header if at not in named), by_header[0])
            raise InputError(
                f"{where} is the name of {files[named[0]].path}, and an identifier in the header of "
                f"{files[other].path}; name the column 'filename' or 'accession', or name files by their "
                "path in the folder"
            )
        named = named if table.names_files else ()
    one = named or instance
    if len(one) > 1:
        alike = " and ".join(files[at].path for at in one[:2])
        raise InputError(
            f"{where} may be any of {len(one)} files, {alike} among them; name files by their path in the folder"
        )
    return one or study


def _first_match(record: Record) -> LabelMatch:
    labels = frozenset() if record.label is None else frozenset({record.label})
    return LabelMatch(labels, record, _again(labels) if record.times > 1 else "")


def _another_match(match: LabelMatch, record: Record) -> LabelMatch:
    """The first record is kept; every label counts."""
    labels = match.labels | (frozenset() if record.label is None else {record.label})
    return replace(match, labels=labels, note=_again(labels))


def _again(labels: frozenset[int]) -> str:
    return f"listed again with the {'other' if len(labels) == 2 else 'same'} label"


def row_of(file: RadiographFile, image_id: str, match: LabelMatch, patient: str, study: str) -> dict[str, Any]:
    """The manifest row of a file, with the hashes of its patient and study; the table's values before the header's."""
    record, header = match.record, file.header
    age = header.age if header and (record is None or isnan(record.age)) else record.age if record else float("nan")
    status, note = "ok", match.note
    if not match.labels:
        status, note = "unlisted", "no label"
    elif len(match.labels) == 2:
        status, note = "conflict", note or "in folders of both classes"
    return {
        "image_id": image_id,
        "path": file.path,
        "label": max(match.labels, default=0),
        "status": status,
        "note": note,
        "patient": patient,
        "study": study,
        "batch": (record.batch if record else "") or (header.device if header else ""),
        "region": (record.region if record else "") or (header.region if header else ""),
        "view": (record.view if record else "") or (header.view if header else ""),
        "hardware": record.hardware if record else 0,
        "sex": (record.sex if record else "") or (header.sex if header else ""),
        "age": age,
    }
