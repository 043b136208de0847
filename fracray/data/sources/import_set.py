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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from hashlib import file_digest
from pathlib import Path

from fracray.data.audit.scan import examine
from fracray.data.manifest import MANIFEST, Manifest
from fracray.data.sources.archive import unpack
from fracray.data.sources.clutter import beside, is_clutter
from fracray.data.sources.csv_file import quoted
from fracray.data.sources.image_folder import (
    classes_of,
    require_utf8,
)
from fracray.data.sources.import_rows import ImportOptions, read_rows, tables_in
from fracray.data.sources.pseudonyms import Pseudonyms, new_salt, read_salt
from fracray.errors import InputError, RunError
from fracray.runtime.storage import atomic_path, errors_name

SALT, FILES = "salt", "files"

_EARLIER = "imported by an earlier version, which left out TIFF, BMP, WebP and GIF: import it again to have them"

# In addition to the manifest's own columns: a file's state at import, so that a change is seen without reading it.
_BYTES, _MODIFIED = "bytes", "modified_ns"


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
        manifest = read_rows(root, options, pseudonyms, around, say)
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
    labelled_inside = options.of_a_table or tables_in(root)
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
