"""The rows of an imported set: which pictures its folder holds, and what tables, folders and headers say of each.

Must not decode a picture, and must not know where the set is written.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fracray.data.images.kinds import READ
from fracray.data.manifest import Manifest, build
from fracray.data.sources.clutter import Beside, is_clutter
from fracray.data.sources.csv_file import quoted
from fracray.data.sources.fracatlas import FOLDERS, fracatlas_folders, read_fracatlas
from fracray.data.sources.image_folder import (
    RadiographFile,
    contents,
    list_images,
    name_images,
    require_utf8,
)
from fracray.data.sources.label_fields import patient_column
from fracray.data.sources.label_matching import LabelMatch, by_folder, by_table, row_of
from fracray.data.sources.label_table import LabelTable, open_table
from fracray.data.sources.label_words import plain_identifier
from fracray.data.sources.patient_links import link_patients
from fracray.data.sources.pseudonyms import Pseudonyms
from fracray.errors import InputError
from fracray.runtime.console import counted


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


def read_rows(
    root: Path, options: ImportOptions, pseudonyms: Pseudonyms, around: Beside, say: Callable[[str], None]
) -> Manifest:
    """A row for each picture below `root`, and for each row of a table that names none, not examined yet.

    around: what lies beside the pictures. `say` as in `import_set`. InputError names what is wrong.
    """
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
    studies = table.columns.get("study", "") if table else ""
    ids_of = link_patients(files, found, options.patient_from, options.some_without_patient, say, studies)
    if table and "patient" in table.columns and not any(match.patients for match in found.values()):
        say(f"{table.path.name}: the column of patients, '{table.columns['patient']}', is empty for every file")
    rows = [
        row_of(
            file,
            image_id,
            found.get(at, LabelMatch()),
            pseudonyms("patient", plain_identifier(ids_of[at].patient)),  # however another import writes it
            pseudonyms("study", ids_of[at].study),
        )
        for at, (file, image_id) in enumerate(zip(files, ids, strict=True))
    ]
    taken = set(ids)
    for key, record in missing.items():
        # The key of a row may be an accession number: with DICOM files it is not repeated.
        image_id = f"row {record.row}" if private or key in taken else key
        if image_id in taken and table:
            raise InputError(
                f"{table.path}, line {record.line}: names no file, and its row is kept as {image_id!r}, as "
                f"{files[ids.index(image_id)].path!r} is: rename the file, or remove the line"
            )
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
        remarks.append(f"{counted(another, 'file is', 'files are')} named in the table with other upper and lower case")
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
        tables = tables_in(root)
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


def tables_in(folder: Path) -> list[Path]:
    return sorted(
        entry
        for entry in folder.iterdir()
        if entry.suffix.lower() == ".csv" and entry.is_file() and not is_clutter(entry.name)
    )
