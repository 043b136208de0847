"""The label of each radiograph of an imported set, by table or folder, and its row of the manifest.

Compares identifiers. Must not open a picture.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isnan
from pathlib import Path
from typing import Any

from fracray.data.sources.csv_file import quoted
from fracray.data.sources.image_folder import FileIndex, RadiographFile, classes_of, plain_path
from fracray.data.sources.label_table import LabelTable, Record
from fracray.data.sources.label_words import is_empty
from fracray.errors import InputError, RunError

MAX_MISSING = 100_000  # rows of a table without a file; a table with more belongs to another folder


@dataclass(frozen=True)
class LabelMatch:
    """What table or folders say about one file: its labels (none, one or both), the first record, and notes.

    uncertain: a row has a value of --ignore. another_case: the name in the table, where that differs in case. patients,
    studies: those of all rows, in their order.
    """

    labels: frozenset[int] = frozenset()
    record: Record | None = None
    note: str = ""
    uncertain: bool = False
    another_case: str = ""
    patients: tuple[str, ...] = ()
    studies: tuple[str, ...] = ()


def by_folder(
    files: Sequence[RadiographFile],
    root: Path,
    patterns: tuple[tuple[str, ...], tuple[str, ...]] | None,
    one_class: bool = False,
) -> dict[int, LabelMatch]:
    """Matches by folder, by index of the file; `patterns` are those of each class, None for the usual names.

    InputError where no picture is of a class; with `one_class`, where none is of any, or of one with patterns.
    """
    found = {at: classes for at, file in enumerate(files) if (classes := classes_of(file.path, patterns))}
    for label, option in enumerate(("NOT_FRACTURED", "FRACTURED")):
        expected = bool(patterns[label]) if patterns is not None else not (one_class and found)
        if expected and not any(label in classes for classes in found.values()):
            folders = sorted({file.path.rpartition("/")[0] or "." for file in files})
            shown = ", ".join(folders[:20]) + (f" and {len(folders) - 20} more" if len(folders) > 20 else "")
            if patterns is None:
                raise InputError(
                    f"{root}: no dataset.csv of FracAtlas, no table of labels, and no folder with a known name for "
                    f"{option.lower().replace('_', ' ')} radiographs; its pictures are in: {shown}. Name a table with "
                    "--labels FILE.csv, or the folders with --classes NOT_FRACTURED=FOLDER FRACTURED=FOLDER"
                    f"{'; if one class is all there is, add --one-class' if found else ''}"
                )
            raise InputError(f"--classes {option}={','.join(patterns[label])}: no picture there; they are in: {shown}")
    matches = {at: LabelMatch(frozenset(classes)) for at, classes in found.items()}
    if patterns:
        lower = tuple(tuple(pattern.casefold() for pattern in those) for those in patterns)
        note = "no label: its folder and --classes differ in upper and lower case"
        for at, file in enumerate(files):
            if at not in matches and classes_of(file.path.casefold(), (lower[0], lower[1])):
                matches[at] = LabelMatch(note=note)
    return matches


def by_table(
    table: LabelTable, files: Sequence[RadiographFile], root: Path, others: Sequence[RadiographFile] = ()
) -> tuple[dict[int, LabelMatch], dict[str, Record]]:
    """Matches by table, by index of the file, and the rows without a file by what they name.

    Indices from len(files) on are those of `others`, which are no pictures: a row may name one by its path or name.
    """
    index = FileIndex(files)
    no_pictures = {key: at for at, file in enumerate(others, len(files)) for key in _names_of(file)}
    found: dict[int, LabelMatch] = {}
    renamed: dict[int, dict[str, LabelMatch]] = {}  # by file and the name in the table, which has another suffix
    missing: dict[str, Record] = {}
    rows = 0
    for record in table.records():
        rows += record.times
        keys = _spellings(record.image, root)
        key, another_case = keys[-1], ""
        at: tuple[int, ...] = ()
        for key in keys:
            if at := _files_of(key, index, table, record):
                break
            if key in no_pictures:
                at = (no_pictures[key],)
                break
        else:
            at = _files_in_another_case(keys, index, table, record)
            another_case = record.image if at else ""
        for one in at:
            match = found.get(one)
            found[one] = _another_match(match, record) if match else _first_match(record, another_case)
        if not at and (another := index.under_another_suffix(key)) is not None:
            match = renamed.setdefault(another, {}).get(key)
            renamed[another][key] = _another_match(match, record) if match else _first_match(record, "")
        elif not at:
            missing.setdefault(f"row {record.row}" if is_empty(key) else key, record)
            if len(missing) > MAX_MISSING:
                first = next(iter(missing))
                raise InputError(
                    f"{table.path}: more than {MAX_MISSING:,} rows name no file in {root} (the first is "
                    f"{quoted(first)}); name the folder of its images, or remove the other rows from the table"
                )
    _settle(renamed, files, found, missing)
    if not found:
        first = next(iter(missing), "none")
        raise InputError(
            f"{table.path}: none of its rows names a file in {root}: {table.columns['image']} says {quoted(first)}, "
            f"and one file is {files[0].path}; name the column of file names or paths with --column "
            "image=NAME"
        )
    if rows != table.tally.rows:
        raise RunError(f"{table.path}: {table.tally.rows} rows were read, and {rows} compared; please report this")
    return found, missing


def _names_of(file: RadiographFile) -> tuple[str, str]:
    path = plain_path(file.path)
    return path, path.rpartition("/")[2]


def _settle(
    renamed: Mapping[int, Mapping[str, LabelMatch]],
    files: Sequence[RadiographFile],
    found: dict[int, LabelMatch],
    missing: dict[str, Record],
) -> None:
    """Decide for each file that rows name with another suffix: pictures are often converted after the table is made.

    The rows stay without a file where the file has a row of its own, where two names mean it, or where it lies in
    another folder than the files that are named exactly: that folder may hold masks.
    """
    folders = {files[at].path.rpartition("/")[0] for at in found if at < len(files)}
    for at, rows in renamed.items():
        folder = files[at].path.rpartition("/")[0]
        if at in found or len(rows) > 1 or (folders and folder not in folders):
            for key, match in rows.items():
                if match.record:
                    missing.setdefault(key, match.record)
        else:
            ((key, match),) = rows.items()
            note = f"{match.note}; the table names {key}" if match.note else f"the table names {key}"
            found[at] = replace(match, note=note)


def _spellings(image: str, root: Path) -> list[str]:
    """How a table may name a file, as paths in the folder: unchanged, then without the folder's own path and name."""
    key = plain_path(image.replace("\\", "/")).removeprefix("./")
    below = key.removeprefix(plain_path(f"{root}/"))
    return list(dict.fromkeys((key, below, below.removeprefix(plain_path(f"{root.name}/")))))


def _files_of(key: str, index: FileIndex, table: LabelTable, record: Record) -> tuple[int, ...]:
    """The files that a key means: one by its name or SOP instance UID, or all of a study; InputError if ambiguous."""
    named, instance, study = index.named.get(key, ()), index.instances.get(key, ()), index.studies.get(key, ())
    files, where = index.files, f"{table.path}, line {record.line}: {quoted(record.image)}"
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


def _files_in_another_case(keys: Sequence[str], index: FileIndex, table: LabelTable, record: Record) -> tuple[int, ...]:
    """The file whose name differs from a key in upper and lower case only; InputError if there are several."""
    at = next((one for key in keys if (one := index.in_another_case(key))), ())
    if len(at) > 1:
        alike = " and ".join(index.files[one].path for one in at[:2])
        raise InputError(
            f"{table.path}, line {record.line}: {quoted(record.image)} differs from {alike} in upper and lower case "
            "only; write the name as it is in the folder"
        )
    return at


def _first_match(record: Record, another_case: str) -> LabelMatch:
    labels = frozenset() if record.label is None else frozenset({record.label})
    note = _again(labels) if record.times > 1 else ""
    return LabelMatch(
        labels, record, note, record.uncertain, another_case, _with((), record.patient), _with((), record.study)
    )


def _another_match(match: LabelMatch, record: Record) -> LabelMatch:
    """The first record is kept; every label, patient and study counts."""
    labels = match.labels | (frozenset() if record.label is None else {record.label})
    return replace(
        match,
        labels=labels,
        note=_again(labels),
        uncertain=match.uncertain or record.uncertain,
        patients=_with(match.patients, record.patient),
        studies=_with(match.studies, record.study),
    )


def _with(names: tuple[str, ...], name: str) -> tuple[str, ...]:
    return names if not name or name in names else (*names, name)


def _again(labels: frozenset[int]) -> str:
    if not labels:
        return "listed again, without a label"
    return f"listed again with the {'other' if len(labels) == 2 else 'same'} label"


def row_of(file: RadiographFile, image_id: str, match: LabelMatch, patient: str, study: str) -> dict[str, Any]:
    """The manifest row of a file, with the hashes of its patient and study; the table's values before the header's."""
    record, header = match.record, file.header
    age = header.age if header and (record is None or isnan(record.age)) else record.age if record else float("nan")
    status, note = "ok", match.note
    if len(match.labels) == 2:
        status, note = "conflict", note or "in folders of both classes"
    elif match.uncertain:
        status = "uncertain"
        note = f"uncertain in one row, labelled {max(match.labels)} in another" if match.labels else ""
    elif not match.labels:
        status, note = "unlisted", note or "no label"
    if match.another_case:
        named = f"named {quoted(match.another_case)} in the table" if not header else "named in another case"
        note = f"{note}; {named}" if note else named
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
