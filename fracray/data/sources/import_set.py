"""Imported sets: any folder or zip of labelled radiographs, read once into a folder that --data accepts.

    DIR/manifest.parquet   one row per image, examined
    DIR/salt               the salt of the patients' and studies' hashes; only those who may know the patients keep it
    DIR/files/             the content of a zip; the files of a folder stay where they are

In the manifest patients and studies are salted hashes. Kept unchanged are the paths of the files, the table's
cells of batch, region, view, age and sex, and the file names in rows without a file (with DICOM files, only the row's
number): they name a patient if somebody wrote one there. A DICOM file's image id is an unsalted hash of its SOP
instance UID.

Must not decode a picture itself, and must not know of splits.
"""

import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from hashlib import file_digest
from pathlib import Path

from fracray.data.audit.scan import examine
from fracray.data.images.kinds import READ
from fracray.data.manifest import MANIFEST, Manifest, build
from fracray.data.sources.archive import unpack
from fracray.data.sources.clutter import Beside, beside, is_clutter
from fracray.data.sources.csv_file import quoted
from fracray.data.sources.fracatlas import FOLDERS, fracatlas_folders, read_fracatlas
from fracray.data.sources.image_folder import (
    RadiographFile,
    classes_of,
    contents,
    list_images,
    name_images,
    require_utf8,
)
from fracray.data.sources.label_fields import patient_column
from fracray.data.sources.label_matching import LabelMatch, by_folder, by_table, row_of
from fracray.data.sources.label_table import LabelTable, open_table
from fracray.data.sources.patient_links import link_patients
from fracray.data.sources.pseudonyms import Pseudonyms, new_salt, read_salt
from fracray.errors import InputError, RunError
from fracray.runtime.storage import atomic_path, errors_name

SALT, FILES = "salt", "files"

_EARLIER = (
    "imported by an earlier version, which left out TIFF, BMP, WebP and GIF without a word and cut colour of 16 bits "
    "to 8; to have them right, import the set again"
)

# In addition to the manifest's own columns: a file's state at import, so that a change is seen without reading it.
_BYTES, _MODIFIED = "bytes", "modified_ns"


@dataclass(frozen=True)
class ImportOptions:
    """What the user says about a source; None or empty: find it out.

    columns: by field of `labels.FIELDS`. positive, negative, ignore: values of the label. one_class: labels of one
    class only are no error. classes: shell patterns of folders, not fractured first; one may be empty with `one_class`.
    patient_from: a pattern of `PatientPattern`. some_without_patient: files that it does not fit have no patient. salt:
    a file. licence: the terms of use.
    """

    labels: Path | None = None
    columns: Mapping[str, str] | None = None
    positive: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    one_class: bool = False
    classes: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    patient_from: str = ""
    some_without_patient: bool = False
    salt: Path | None = None
    licence: str = ""

    @property
    def of_a_table(self) -> bool:
        return bool(self.labels or self.columns or self.positive or self.negative or self.ignore)


# ---------------------------------------------------------------- the set


def import_set(
    source: str | Path,
    to: str | Path,
    options: ImportOptions,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Manifest:
    """Read the radiographs at `source` into the new folder `to`, completely or not at all; return their manifest.

    `source` is a folder or zip: of FracAtlas; with a table of labels; or with a folder per class. Its images are
    of the kinds in `data.images.kinds`. `say` receives what is doubtful about patients, a line each, which may quote
    their ids and is not kept. InputError names what is wrong with the images; also for a full disk.
    """
    source, to = user_path("PATH", str(source)).absolute(), user_path("--to", str(to)).absolute()
    if options.classes and options.of_a_table:
        raise InputError("--classes: labels come from folders or from a table; leave out the options of the other")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise InputError(f"--to {to}: exists already; name a new folder")
    made = [folder for folder in to.parents if not folder.exists()]
    try:
        with _writing(to), atomic_path(to) as partial:
            try:
                with _writing(to):
                    partial.mkdir(parents=True)
                if options.salt:
                    salt = read_salt(options.salt)
                else:
                    with _writing(to):
                        salt = new_salt(partial / SALT)
                with errors_name(str(source), partial / FILES):
                    manifest = _examined(source, partial, options, Pseudonyms(salt), progress, say)
                if manifest.root.is_relative_to(partial):
                    manifest = replace(manifest, root=manifest.root.relative_to(partial))
                with _writing(to):
                    if not options.salt and not (manifest.table["patient"] + manifest.table["study"]).any():
                        (partial / SALT).unlink()  # nothing was hashed with it
                    manifest.write(partial / MANIFEST)
                if to.exists() and any(to.iterdir()):  # filled by another command in the meantime
                    raise InputError(f"--to {to}: exists already; name a new folder")
            except OSError as error:
                what = str(error.filename or source).replace(str(partial / FILES), str(source))
                raise InputError(
                    f"{what}: cannot be read: {error.strerror or error}; repair it, or leave it out"
                ) from None
    finally:
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
        pass  # the caller decides whether that is wrong
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
        raise InputError(f"{folder}: the folder of its files, {manifest.root}, does not exist; {remedy}")
    if not manifest.remarks:
        manifest = replace(manifest, remarks=(_EARLIER,))
    examined = table[table["sha256"] != ""]
    columns = (examined[name] for name in ("path", _BYTES, _MODIFIED, "sha256"))
    for path, size, modified, digest in zip(*columns, strict=True):
        try:
            about = (manifest.root / path).stat()
            # A copied set has other times: compare its content.
            if about.st_size != size or (about.st_mtime_ns != modified and _digest(manifest.root / path) != digest):
                raise InputError(f"{folder}: {manifest.root / path} has changed since the import; {remedy}")
        except OSError as error:
            gone = f"{manifest.root / path} no longer exists ({error.strerror})"
            raise InputError(f"{folder}: {gone}; {remedy}") from None
    return manifest


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _examined(
    source: Path,
    partial: Path,
    options: ImportOptions,
    pseudonyms: Pseudonyms,
    progress: Callable[[int, int], None] | None,
    say: Callable[[str], None],
) -> Manifest:
    """The manifest of what is in the folder or zip `source`, with every file decoded once."""
    folder, root = _open(source, partial, options)
    around = beside(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's warnings about odd headers quote their text
        manifest = _read(root, options, pseudonyms, around, say)
    _refuse_one_class(manifest, source, options)
    rows = len(manifest.table)
    manifest = _stamped(examine(manifest, progress))
    if len(manifest.table) != rows:
        raise RunError(f"{source}: {rows} rows before they were examined, {len(manifest.table)} after")
    if manifest.used.empty:
        raise InputError(f"{source}: no usable radiograph in it ({manifest.flow().summary()}){_first_note(manifest)}")
    _refuse_one_class(manifest, source, options)
    return replace(manifest, licence=options.licence or manifest.licence, ignored=around.ignored)


def _refuse_one_class(manifest: Manifest, source: Path, options: ImportOptions) -> None:
    """InputError where the used images are all of one class, unless the user said that they are."""
    labels = manifest.used["label"].unique()
    if options.one_class or len(labels) != 1:
        return
    word, other = ("fractured", "not fractured") if labels[0] else ("not fractured", "fractured")
    said = "".join(f"; {remark}" for remark in manifest.remarks[:3])
    raise InputError(
        f"{source}: all {len(manifest.used):,} usable radiographs are {word}, and none is {other} "
        f"({manifest.flow().summary()}){said}. A classifier needs both: correct --column label=NAME, --positive, "
        "--negative ('' is an empty cell) or --classes. If it is so (a set that is only evaluated or predicted), add "
        "--one-class"
    )


def _open(source: Path, partial: Path, options: ImportOptions) -> tuple[Path, Path]:
    """The folder `source`, or the one with its content, extracted into `partial`; and the folder of the radiographs.

    That is the only folder in it, unless its name is what says the class of all.
    """
    if source.is_dir():
        folder = source
    elif not source.is_file():
        raise InputError(f"{source}: no such file or folder; name a folder or a zip of radiographs")
    elif not zipfile.is_zipfile(source):
        raise InputError(
            f"{source}: neither a folder nor a complete zip; name the folder that holds the radiographs, or their zip"
        )
    else:
        folder = partial / FILES
        unpack(source, folder)
    require_utf8(folder)
    inside = [entry for entry in folder.iterdir() if not is_clutter(entry.name)]
    if len(inside) != 1 or not inside[0].is_dir() or inside[0].is_symlink():
        return folder, folder
    root = inside[0]
    require_utf8(root)
    labelled_inside = options.of_a_table or _tables_in(root)
    return folder, folder if not labelled_inside and classes_of(f"{root.name}/any", options.classes) else root


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


def _read(
    root: Path, options: ImportOptions, pseudonyms: Pseudonyms, around: Beside, say: Callable[[str], None]
) -> Manifest:
    remarks = _on_archives(around)
    if not options.classes and not options.of_a_table:
        atlases = [
            folder for folder in fracatlas_folders(root) if any((folder / "images" / name).is_dir() for name in FOLDERS)
        ]
        if len(atlases) > 1:
            names = ", ".join(folder.name for folder in atlases)
            raise InputError(f"{root}: several folders of FracAtlas: {names}; name one of them")
        if atlases:
            require_utf8(atlases[0])
            if options.patient_from:
                raise InputError(
                    f"--patient-from: {atlases[0]} is read as FracAtlas, which knows no patient; name its table too, "
                    "with --labels dataset.csv"
                )
            atlas = read_fracatlas(atlases[0])
            if column := patient_column(name.removeprefix("csv_") for name in atlas.table if name.startswith("csv_")):
                say(
                    f"dataset.csv has the column '{column}', but a FracAtlas folder is read without patients; to keep "
                    "them, import with --labels dataset.csv"
                )
            return replace(atlas, remarks=(*atlas.remarks, *remarks))
    files, others = list_images(root)
    if not files:
        packed = f"; unpack {', '.join(around.archives[:5])}, and name the folder" if around.archives else ""
        raise InputError(f"{root}: no picture in it ({contents(files, others)}); {READ} is read{packed}")
    remarks = [contents(files, others), *remarks]
    ids = name_images(files)
    private = any(file.header for file in files)
    table = None if options.classes else _find_table(root, options)
    if table:
        found, missing = by_table(table, files, root, others)
        # Files that are named as radiographs and are none get a row, which the audit calls unreadable.
        named = [at for at in sorted(found) if at >= len(files)]
        found |= {len(files) + place: found.pop(at) for place, at in enumerate(named)}
        files += [others[at - len(ids)] for at in named]
        ids += [file.path for file in files[len(ids) :]]
        remarks = [remarks[0], *_on_table(table, found), *remarks[1:]]
    else:
        found, missing = by_folder(files, root, options.classes, options.one_class), {}
    ids_of = link_patients(files, found, options.patient_from, options.some_without_patient, say)
    if table and "patient" in table.columns and not any(match.patients for match in found.values()):
        say(f"{table.path.name}: the column of patients, '{table.columns['patient']}', is empty for every file")
    rows = [
        row_of(
            file,
            image_id,
            found.get(at, LabelMatch()),
            pseudonyms("patient", ids_of[at].patient),
            pseudonyms("study", ids_of[at].study),
        )
        for at, (file, image_id) in enumerate(zip(files, ids, strict=True))
    ]
    taken = set(ids)
    for key, record in missing.items():
        # The key of a row may be an accession number: with DICOM files it is not repeated.
        image_id = f"row {record.row}" if private or key in taken else key
        note = f"line {record.line} of {table.path.name if table else ''} names no file"
        rows.append({"image_id": image_id, "label": record.label or 0, "status": "missing", "note": note})
    return replace(build(rows, root), remarks=tuple(remarks + _on_names(files)))


def _on_table(table: LabelTable, found: Mapping[int, LabelMatch]) -> list[str]:
    """How the table was read: its columns, the values of the label, and what was not understood."""
    columns = ", ".join(f"{name} from {quoted(column)}" for name, column in table.columns.items())
    tally = table.tally
    values = ", ".join(
        f"{quoted(text)} {meaning} in {count:,}" for (text, meaning), count in tally.values.most_common()
    )
    remarks = [f"{table.path.name}, {tally.rows:,} rows: {columns}", f"values of the label: {values}"]
    remarks += [
        f"{count:,} cells of {name} are not understood and left out, such as {quoted(tally.examples[name])}"
        for name, count in tally.unread.items()
    ]
    if another := sum(bool(match.another_case) for match in found.values()):
        remarks.append(f"{another:,} files are named in the table with other upper and lower case")
    return remarks


def _on_archives(around: Beside) -> list[str]:
    if not around.archives:
        return []
    more = f" and {len(around.archives) - 5:,} more" if len(around.archives) > 5 else ""
    return [
        f"archives that are not opened: {', '.join(around.archives[:5])}{more}; unpack them to have what is in them"
    ]


def _on_names(files: Sequence[RadiographFile]) -> list[str]:
    """Files that are one on the disks of Windows and macOS."""
    alike: dict[str, list[str]] = {}
    for file in files:
        alike.setdefault(file.path.casefold(), []).append(file.path)
    several = [paths for paths in alike.values() if len(paths) > 1]
    if not several:
        return []
    shown = "; ".join(" and ".join(paths[:3]) for paths in several[:3])
    return [f"names that differ in upper and lower case only, in {len(several):,} cases: {shown}"]


def _find_table(root: Path, options: ImportOptions) -> LabelTable | None:
    """The table that is named, or the only one in the folder; None where there is none."""
    path = options.labels
    if path is None:
        tables = _tables_in(root)
        if len(tables) > 1:
            names = ", ".join(entry.name for entry in tables)
            raise InputError(f"{root}: several tables: {names}; choose the one with the labels by --labels")
        if not tables:
            if options.of_a_table:
                raise InputError(f"{root}: no CSV in it; name the table of labels with --labels FILE.csv")
            return None
        path = tables[0]
    elif not path.is_file() and (root / path).is_file():
        path = root / path
    require_utf8(path)
    return open_table(path, options.columns or {}, options.positive, options.negative, options.ignore)


def _tables_in(folder: Path) -> list[Path]:
    return sorted(
        entry
        for entry in folder.iterdir()
        if entry.suffix.lower() == ".csv" and entry.is_file() and not is_clutter(entry.name)
    )
