"""Imported sets: any folder or zip of labelled radiographs, read once into a folder that --data takes.

    DIR/manifest.parquet   one row per image, examined
    DIR/salt               what patients and studies were hashed with; to be kept by those who may know the patients
    DIR/files/             what a zip held; the files of a folder stay where they are

In the manifest patients and studies are salted hashes. Kept as they stand are the paths of the files, the table's
cells of batch, region, view, age and sex, and what rows without a file call it (beside DICOM files their number only):
they name a patient where somebody wrote one there. A DICOM file's image id is an unsalted hash of its SOP instance UID.

Must not decode a picture itself, and must not know of splits.
"""

import os
import shutil
import uuid
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from hashlib import file_digest
from math import isnan
from pathlib import Path
from typing import Any

from fracray.data.archive import unpack
from fracray.data.audit import examine
from fracray.data.duplicates import Link, connected_sets, equal
from fracray.data.folder import (
    FileIndex,
    PictureFile,
    classes_of,
    list_pictures,
    name_pictures,
    plain_path,
    require_utf8,
)
from fracray.data.fracatlas import FOLDERS, fracatlas_folders, read_fracatlas
from fracray.data.header import Header
from fracray.data.labels import LabelTable, Record, open_table, quoted
from fracray.data.manifest import Manifest, build
from fracray.data.pseudonyms import Pseudonyms, new_salt, read_salt
from fracray.errors import InputError

MANIFEST, SALT, FILES = "manifest.parquet", "salt", "files"
MAX_MISSING = 100_000  # rows of a table without a file; more, and it is the table of another folder

# Beside the manifest's own columns: how a file was found, so that a change is seen without reading it.
_BYTES, _MODIFIED = "bytes", "modified_ns"


@dataclass(frozen=True)
class Wishes:
    """What the user says of a source; None and empty where it is to be found out.

    columns: by field of `labels.FIELDS`. positive, negative: values of the label. classes: shell patterns of folders,
    not fractured first. salt: a file. licence: the terms of use, in words.
    """

    labels: Path | None = None
    columns: Mapping[str, str] | None = None
    positive: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()
    classes: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    salt: Path | None = None
    licence: str = ""

    @property
    def of_a_table(self) -> bool:
        return bool(self.labels or self.columns or self.positive or self.negative)


# ---------------------------------------------------------------- the set


def import_set(
    source: str | Path, to: str | Path, wishes: Wishes, progress: Callable[[int, int], None] | None = None
) -> Manifest:
    """Read the radiographs at `source` into the new folder `to`, all of it or nothing, and return their manifest.

    `source` is a folder or zip: of FracAtlas; with a table of labels; or with a folder per class. Its pictures are
    JPEG, PNG and DICOM. InputError for whatever is wrong with them, naming it, and where the disk is full.
    """
    source, to = user_path("PATH", str(source)).absolute(), user_path("--to", str(to)).absolute()
    if wishes.classes and wishes.of_a_table:
        raise InputError("--classes: labels come from folders or from a table; leave out the options of the other")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise InputError(f"--to {to}: exists already; name a new folder")
    partial = to.with_name(f".{uuid.uuid4().hex[:8]}.partial")
    made = [folder for folder in to.parents if not folder.exists()]
    try:
        with _writing(to):
            partial.mkdir(parents=True)
        root = _open(source, partial)
        if wishes.salt:
            salt = read_salt(wishes.salt)
        else:
            with _writing(to):
                salt = new_salt(partial / SALT)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's, of odd headers: they quote what they find
            manifest = _read(root, wishes, Pseudonyms(salt))
        manifest = replace(_stamped(examine(manifest, progress)), licence=wishes.licence or manifest.licence)
        if manifest.used.empty:
            raise InputError(
                f"{source}: no usable radiograph in it ({manifest.flow().summary()}){_first_note(manifest)}"
            )
        if manifest.root.is_relative_to(partial):
            manifest = replace(manifest, root=manifest.root.relative_to(partial))
        with _writing(to):
            if not wishes.salt and not (manifest.table["patient"] + manifest.table["study"]).any():
                (partial / SALT).unlink()  # nothing was hashed with it
            manifest.write(partial / MANIFEST)
            os.replace(partial, to)
    except OSError as error:
        what = error.filename or source
        raise InputError(f"{what}: cannot be read: {error.strerror or error}; mend it, or leave it out") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        for folder in made:
            with suppress(OSError):  # the set is in it
                folder.rmdir()
    return replace(manifest, root=to / manifest.root)


@contextmanager
def _writing(to: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"--to {to}: cannot be written: {error}; free space, or name a folder elsewhere") from None


def user_path(flag: str, text: str) -> Path:
    """The path that a user gave, with '~' resolved; InputError, naming the flag, where no file can have that name."""
    try:
        path = Path(text).expanduser()
        path.absolute().lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass  # what it is for says whether that is wrong
    except RuntimeError:
        raise InputError(f"{flag} {text}: no such user; write the path in full") from None
    except OSError as error:
        raise InputError(f"{flag} {quoted(text)}: {error.strerror}; name another path") from None
    require_utf8(path, f"{flag} ")
    return path


def open_imported(folder: Path) -> Manifest:
    """The manifest of an imported set; InputError where a file has vanished or changed since the import."""
    manifest = Manifest.read(folder / MANIFEST)
    manifest = replace(manifest, root=folder / manifest.root)
    table = manifest.table
    remedy = "restore it, or import the set again"
    if not {_BYTES, _MODIFIED} <= set(table):
        raise InputError(f"{folder / MANIFEST}: not the manifest of an imported set; import it again")
    if not manifest.root.is_dir():
        raise InputError(f"{folder}: the folder of its files, {manifest.root}, is not there; {remedy}")
    examined = table[table["sha256"] != ""]
    columns = (examined[name] for name in ("path", _BYTES, _MODIFIED, "sha256"))
    for path, size, modified, digest in zip(*columns, strict=True):
        try:
            about = (manifest.root / path).stat()
            # A set that was copied has other times: then its bytes tell.
            if about.st_size != size or (about.st_mtime_ns != modified and _digest(manifest.root / path) != digest):
                raise InputError(f"{folder}: {manifest.root / path} has changed since the import; {remedy}")
        except OSError as error:
            gone = f"{manifest.root / path} is not there any more ({error.strerror})"
            raise InputError(f"{folder}: {gone}; {remedy}") from None
    return manifest


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _open(source: Path, partial: Path) -> Path:
    """The folder that `source` is or, unpacked into `partial`, holds; the only folder in a folder stands for it."""
    if source.is_dir():
        folder = source
    elif not source.is_file():
        raise InputError(f"{source}: no such file or folder; name a folder or a zip of radiographs")
    elif not zipfile.is_zipfile(source):
        raise InputError(f"{source}: neither a folder nor a complete zip; name the folder that holds the radiographs")
    else:
        folder = partial / FILES
        unpack(source, folder)
    require_utf8(folder)
    inside = [entry for entry in folder.iterdir() if entry.name != "__MACOSX" and not entry.name.startswith(".")]
    root = inside[0] if len(inside) == 1 and inside[0].is_dir() and not inside[0].is_symlink() else folder
    require_utf8(root)
    return root


def _stamped(manifest: Manifest) -> Manifest:
    sizes, times = [], []
    for path in manifest.table["path"]:
        try:
            about = (manifest.root / path).stat() if path else None
        except OSError:
            about = None  # its row says unreadable already
        sizes.append(about.st_size if about else 0)
        times.append(about.st_mtime_ns if about else 0)
    return replace(manifest, table=manifest.table.assign(**{_BYTES: sizes, _MODIFIED: times}))


def _first_note(manifest: Manifest) -> str:
    notes = manifest.notes()
    return f"; for instance {notes[0]}" if notes else ""


# ---------------------------------------------------------------- its rows


def _read(root: Path, wishes: Wishes, pseudonyms: Pseudonyms) -> Manifest:
    if not wishes.classes and not wishes.of_a_table:
        atlases = [
            folder for folder in fracatlas_folders(root) if any((folder / "images" / name).is_dir() for name in FOLDERS)
        ]
        if len(atlases) > 1:
            names = ", ".join(folder.name for folder in atlases)
            raise InputError(f"{root}: several folders of FracAtlas: {names}; name one of them")
        if atlases:
            require_utf8(atlases[0])
            return read_fracatlas(atlases[0])
    files = list_pictures(root)
    if not files:
        raise InputError(f"{root}: no JPEG, PNG or DICOM file in it")
    ids = name_pictures(files)
    private = any(file.header for file in files)
    table = None if wishes.classes else _find_table(root, wishes)
    if table:
        found, missing = _match(table, files, root)
    else:
        found, missing = _by_folder(files, root, wishes.classes), {}
    persons = _persons(files, found)
    rows = [
        _row(file, image_id, found.get(at, _Said()), persons[at], pseudonyms)
        for at, (file, image_id) in enumerate(zip(files, ids, strict=True))
    ]
    taken = set(ids)
    for key, record in missing.items():
        # The key of a row may be an accession number: beside DICOM files it is not repeated.
        image_id = f"row {record.row}" if private or key in taken else key
        note = f"row {record.row} of {table.path.name if table else ''} names no file"
        rows.append({"image_id": image_id, "label": record.label or 0, "status": "missing", "note": note})
    return build(rows, root)


def _find_table(root: Path, wishes: Wishes) -> LabelTable | None:
    """The table that is named, or the only one in the folder; None where there is none."""
    path = wishes.labels
    if path is None:
        tables = sorted(entry for entry in root.iterdir() if entry.suffix.lower() == ".csv" and entry.is_file())
        if len(tables) > 1:
            names = ", ".join(entry.name for entry in tables)
            raise InputError(f"{root}: several tables: {names}; say which holds the labels with --labels")
        if not tables:
            if wishes.of_a_table:
                raise InputError(f"{root}: no CSV in it; name the table of labels with --labels FILE.csv")
            return None
        path = tables[0]
    elif not path.is_file() and (root / path).is_file():
        path = root / path
    require_utf8(path)
    return open_table(path, wishes.columns or {}, wishes.positive, wishes.negative)


@dataclass(frozen=True)
class _Said:
    """What table or folders say of one file: its labels (none, one or both), the first record, and a remark."""

    labels: frozenset[int] = frozenset()
    record: Record | None = None
    note: str = ""


def _by_folder(
    files: Sequence[PictureFile], root: Path, patterns: tuple[tuple[str, ...], tuple[str, ...]] | None
) -> dict[int, _Said]:
    found = {at: classes for at, file in enumerate(files) if (classes := classes_of(file.path, patterns))}
    for label, option in enumerate(("NOT_FRACTURED", "FRACTURED")):
        if not any(label in classes for classes in found.values()):
            folders = sorted({file.path.rpartition("/")[0] or "." for file in files})
            shown = ", ".join(folders[:20]) + (f" and {len(folders) - 20} more" if len(folders) > 20 else "")
            if patterns is None:
                raise InputError(
                    f"{root}: no dataset.csv of FracAtlas, no table of labels, and no folder known to hold "
                    f"{option.lower().replace('_', ' ')} radiographs; its pictures lie in: {shown}. Name a table with "
                    "--labels FILE.csv, or the folders with --classes NOT_FRACTURED=FOLDER FRACTURED=FOLDER"
                )
            raise InputError(f"--classes {option}={','.join(patterns[label])}: no picture there; they lie in: {shown}")
    return {at: _Said(frozenset(classes)) for at, classes in found.items()}


def _match(table: LabelTable, files: Sequence[PictureFile], root: Path) -> tuple[dict[int, _Said], dict[str, Record]]:
    """What the table says by number of the file, and its rows without a file by what they name."""
    index = FileIndex(files)
    found: dict[int, _Said] = {}
    missing: dict[str, Record] = {}
    for record in table.records():
        key = ""
        at: tuple[int, ...] = ()
        for key in _spellings(record.image, root):
            if at := _meant(key, index, table, record):
                break
        for one in at:
            found[one] = _said_again(found[one], record) if one in found else _first_said(record)
        if not at:
            missing.setdefault(key or f"row {record.row}", record)
            if len(missing) > MAX_MISSING:
                first = next(iter(missing))
                raise InputError(
                    f"{table.path}: more than {MAX_MISSING:,} rows name no file in {root} (the first is "
                    f"{quoted(first)}); name the folder of its images, or cut the table to those that are there"
                )
    if not found:
        first = next(iter(missing), "none")
        raise InputError(
            f"{table.path}: none of its rows names a file in {root}: {table.columns['image']} says {quoted(first)}, "
            f"and there is for instance {files[0].path}; name the column of file names or paths with --column "
            "image=NAME"
        )
    return found, missing


def _spellings(image: str, root: Path) -> list[str]:
    """How a table may name a file, as paths in the folder: as it stands, then less the folder's own path and name."""
    key = plain_path(image.replace("\\", "/")).removeprefix("./")
    below = key.removeprefix(plain_path(f"{root}/"))
    return list(dict.fromkeys((key, below, below.removeprefix(plain_path(f"{root.name}/")))))


def _meant(key: str, index: FileIndex, table: LabelTable, record: Record) -> tuple[int, ...]:
    """The files that a key means: one by its name or SOP instance UID, or all of a study; InputError for a doubt."""
    named, instance, study = index.named.get(key, ()), index.instances.get(key, ()), index.studies.get(key, ())
    files, where = index.files, f"{table.path}, row {record.row}: {quoted(record.image)}"
    by_header = instance or study
    if named and by_header and set(named) != set(by_header):
        if table.names_files is None:
            other = next((at for at in by_header if at not in named), by_header[0])
            raise InputError(
                f"{where} is the name of {files[named[0]].path}, and an identifier in the header of "
                f"{files[other].path}; call the column 'filename' or 'accession', as it means, or name files by their "
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


def _first_said(record: Record) -> _Said:
    labels = frozenset() if record.label is None else frozenset({record.label})
    return _Said(labels, record, _again(labels) if record.times > 1 else "")


def _said_again(said: _Said, record: Record) -> _Said:
    """The first record stands; every label counts."""
    labels = said.labels | (frozenset() if record.label is None else {record.label})
    return replace(said, labels=labels, note=_again(labels))


def _again(labels: frozenset[int]) -> str:
    return f"listed again with the {'other' if len(labels) == 2 else 'same'} label"


def _placeholder(files: Sequence[PictureFile]) -> str:
    """The patient id in the headers of several studies, and no other: 'ANONYMOUS' or the like, which ties nothing."""
    headers = [file.header for file in files if file.header and file.header.patient]
    patients = {header.patient for header in headers}
    return patients.pop() if len(patients) == 1 and len({header.study for header in headers}) > 1 else ""


@dataclass(frozen=True)
class _Person:
    """The identifiers of one file's patient and study, the table's before the header's; '' where there are none."""

    patients: tuple[str, str] = ("", "")
    studies: tuple[str, str] = ("", "")

    @property
    def patient(self) -> str:
        return self.patients[0] or self.patients[1]

    @property
    def study(self) -> str:
        return self.studies[0] or self.studies[1]


def _persons(files: Sequence[PictureFile], found: Mapping[int, _Said]) -> list[_Person]:
    """Whose each file is: files that share any identifier, by table or header, get the first patient among them."""
    placeholder = _placeholder(files)
    persons = []
    for at, file in enumerate(files):
        record, header = found.get(at, _Said()).record, file.header or Header()
        by_header = "" if header.patient == placeholder else header.patient
        persons.append(
            _Person(
                (record.patient if record else "", by_header),
                (record.study if record else "", header.study),
            )
        )
    links: list[Link] = []
    for kind in ("patients", "studies"):
        ids = [identifier for person in persons for identifier in getattr(person, kind)]
        links += [(one // 2, other // 2) for one, other in equal(ids)]
    for together in connected_sets(len(files), links):
        patient = next((persons[at].patient for at in together if persons[at].patient), "")
        if not patient and len({persons[at].study for at in together}) > 1:
            patient = persons[together[0]].study  # nothing else ties studies that are one by table and header
        for at in together:
            persons[at] = replace(persons[at], patients=(patient, ""))
    return persons


def _row(file: PictureFile, image_id: str, said: _Said, person: _Person, pseudonyms: Pseudonyms) -> dict[str, Any]:
    """The manifest row of a file: the table's word before that of the header."""
    record, header = said.record, file.header
    age = header.age if header and (record is None or isnan(record.age)) else record.age if record else float("nan")
    status, note = "ok", said.note
    if not said.labels:
        status, note = "unlisted", "no label"
    elif len(said.labels) == 2:
        status, note = "conflict", note or "in folders of both classes"
    return {
        "image_id": image_id,
        "path": file.path,
        "label": max(said.labels, default=0),
        "status": status,
        "note": note,
        "patient": pseudonyms("patient", person.patient),
        "study": pseudonyms("study", person.study),
        "batch": (record.batch if record else "") or (header.device if header else ""),
        "region": (record.region if record else "") or (header.region if header else ""),
        "view": (record.view if record else "") or (header.view if header else ""),
        "hardware": record.hardware if record else 0,
        "sex": (record.sex if record else "") or (header.sex if header else ""),
        "age": age,
    }
