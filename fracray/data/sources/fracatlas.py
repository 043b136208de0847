"""FracAtlas' layout: its table, its two class folders and its boxes, read into manifest rows and reconciled.

Reads metadata, and the first bytes of files that no table lists. Must not decode an image, and must not know of other
layouts or of splits.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from os.path import isfile
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from fracray.data.images.kinds import promises_picture
from fracray.data.manifest import Box, Manifest, build
from fracray.data.sources.clutter import is_clutter
from fracray.data.sources.csv_file import open_csv
from fracray.data.sources.image_folder import require_utf8, what_is
from fracray.errors import InputError
from fracray.runtime.console import counted

REGIONS = ("hand", "leg", "hip", "shoulder")
VIEWS = ("frontal", "lateral", "oblique")
FLAGS = (*REGIONS, "mixed", "hardware", "multiscan", "fractured", *VIEWS)
LICENCE = (
    "not stated here; the images published as FracAtlas are CC BY 4.0 (Abedeen et al., Scientific Data 10, 521, 2023, "
    "doi 10.1038/s41597-023-02432-4)"
)
FOLDERS = ("Non_fractured", "Fractured")  # indexed by label
CSV_SAYS = "dataset.csv says"  # in the note on a label for which table, folder and boxes do not speak with one voice
_LONGEST = 2**31  # above any side of a picture, px
COCO = Path("Annotations", "COCO JSON", "COCO_fracture_masks.json")
PARTS_OF_A_SET = ("images", COCO.parts[0])  # folders; the table lies beside them


def fracatlas_folders(folder: Path) -> list[Path]:
    """The folders that hold a dataset.csv: `folder` alone, or else those directly below it, sorted."""
    if (folder / "dataset.csv").is_file():
        return [folder]
    below = sorted(child for child in folder.iterdir() if child.is_dir() and not is_clutter(child.name))
    return [child for child in below if isfile(child / "dataset.csv")]  # not in one that may not be opened


@dataclass(frozen=True)
class _CocoImage:
    """What the COCO file says about one image: the size on which boxes were drawn, and the boxes."""

    width: int
    height: int
    boxes: tuple[Box, ...]


def read_fracatlas(root: Path) -> Manifest:
    """Read dataset.csv, the two class folders and the COCO boxes into a manifest; no image is decoded.

    The label is dataset.csv's where the folder agrees. If they disagree, a box means fractured. A file in both folders
    takes dataset.csv's label where that agrees with the boxes. Everything else gets status 'conflict', as does a box on
    an image that csv and folder call not fractured. Each such case has a note.
    InputError names file, line and column of what cannot be read.
    Source: Abedeen et al., Scientific Data 10, 521 (2023), doi 10.1038/s41597-023-02432-4.
    """
    root = Path(root)
    csv = _read_table(root / "dataset.csv")
    folders = [_list_folder(root / "images" / name) for name in FOLDERS]
    stems = [_by_stem(names) for names in folders]
    listed = frozenset(csv["image_id"])
    if not any(folders):
        raise InputError(f"{root / 'images'}: no image in {' or '.join(FOLDERS)}; name the folder of FracAtlas")
    drawings, strays = _of_images(_read_coco(root / COCO), listed, root / COCO)
    in_any_case = _in_any_case(folders[0] | folders[1])
    rows: dict[str, dict[str, Any]] = {}
    names: dict[str, str] = {}
    numeric = {column: _as_numbers(csv[column]) for column in csv}
    for index, (line, record) in enumerate(zip(csv.index, csv.to_dict("records"), strict=True)):
        name = record["image_id"]
        image_id = Path(name).stem
        if names.setdefault(image_id, name) != name:
            raise InputError(
                f"{root / 'dataset.csv'}, line {line}: '{name}' and '{names[image_id]}' share an id; rename one"
            )
        file = _file_of(name, in_any_case)
        file = file if any(file in folder for folder in folders) else _renamed(name, stems, listed)
        row = _reconcile(name, file, int(record["fractured"]), folders, drawings)
        row |= {
            "image_id": image_id,
            "region": _tags(record, REGIONS) or _tags(record, ("mixed",)),
            "view": _tags(record, VIEWS),
            "hardware": int(record["hardware"]),
            "multiscan": int(record["multiscan"]),
            **{f"csv_{column}": values.iloc[index] for column, values in numeric.items()},
        }
        rows[image_id] = _listed_again(rows[image_id], row) if image_id in rows else row
    taken = listed | {PurePosixPath(row["path"]).name for row in rows.values()}
    beside = sorted((name, label) for label in (0, 1) for name in folders[label] - taken)
    kinds = {(name, label): what_is(root / "images" / FOLDERS[label] / name) for name, label in beside}
    further = [name for (name, _), (_, picture) in kinds.items() if picture]
    unlisted = sorted(set(further))
    for name in unlisted:
        require_utf8(root / "images" / FOLDERS[name in folders[1]] / name)
        image_id = name if Path(name).stem in rows else Path(name).stem
        rows[image_id] = {
            "image_id": image_id,
            "path": f"images/{FOLDERS[name in folders[1]]}/{name}",
            "label": int(name in folders[1]),
            "status": "unlisted",
            "note": "not in dataset.csv",
            "boxes": (),
        }
    remark = _contents(sum(map(len, folders)), [kind for kind, picture in kinds.values() if not picture], len(further))
    return replace(build(list(rows.values()), root), licence=LICENCE, remarks=(remark, *strays))


def _read_table(path: Path) -> pd.DataFrame:
    """The rows of dataset.csv as text, by line."""
    if not isfile(path):
        raise InputError(f"{path}: no such file; name a folder in FracAtlas' layout")
    file = open_csv(path)
    columns = [column for column in file.header if column]
    for column in ("image_id", *FLAGS):
        if column not in columns:
            raise InputError(f"{path}: column {column} is missing; it has {', '.join(columns)}")
    rows = list(file.rows(columns))
    if not rows:
        raise InputError(f"{path}: lists no image; expected one line per image")
    csv = pd.DataFrame([cells for _, _, cells in rows], [line for _, line, _ in rows], columns, dtype=str)
    for line, name in csv["image_id"].items():
        if not name or name != PurePosixPath(name.replace("\\", "/")).name:
            raise InputError(f"{path}, line {line}: image_id '{name}' is not a bare file name")
    for column in FLAGS:
        bad = csv.index[~csv[column].isin(("0", "1"))]
        if len(bad):
            raise InputError(f"{path}, line {bad[0]}: {column} is '{csv[column][bad[0]]}'; it must be 0 or 1")
    return csv


def _as_numbers(values: pd.Series) -> pd.Series:
    try:
        return pd.to_numeric(values)
    except (ValueError, TypeError):
        return values


def _list_folder(folder: Path) -> frozenset[str]:
    try:
        if not folder.is_dir():
            return frozenset()
        return frozenset(file.name for file in folder.iterdir() if not is_clutter(file.name) and file.is_file())
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed: {error.strerror}; repair it, or leave it out") from None


def _contents(files: int, others: Sequence[str], unlisted: int) -> str:
    """What the folders of images hold, so that the counts add up; `others`: the kinds of what is no picture."""
    parts = [f"{files - len(others) - unlisted:,} of pictures in dataset.csv"]
    parts += [f"{unlisted:,} other pictures"] if unlisted else []
    parts += [f"{count:,} {kind}" for kind, count in Counter(others).most_common()]
    return f"{files:,} files in the folders of images: {', '.join(parts)}"


def _by_stem(names: frozenset[str]) -> dict[str, list[str]]:
    stems: dict[str, list[str]] = {}
    for name in names:
        stems.setdefault(PurePosixPath(name).stem, []).append(name)
    return stems


def _renamed(name: str, stems: Sequence[Mapping[str, list[str]]], listed: frozenset[str]) -> str:
    """The file that has a listed name but for the suffix, as IMG1.png for IMG1.jpg; the name itself where none has.

    A file that is listed itself, one of several, and one that is not named like a picture are not meant.
    """
    stem = PurePosixPath(name).stem
    files = {file for folder in stems for file in folder.get(stem, ()) if file == stem or promises_picture(file)}
    return files.pop() if len(files) == 1 and promises_picture(name) and not files & listed else name


def _read_coco(path: Path) -> list[tuple[str, _CocoImage]] | None:
    """The pictures by the names of their files, without folders; None where there is no COCO file."""
    try:
        if not path.is_file():
            return None
        tree = json.loads(path.read_text("utf-8-sig"))
        images = {image["id"]: image for image in tree["images"]}
        boxes: dict[Any, list[Box]] = {key: [] for key in images}
        for annotation in tree["annotations"]:
            x, y, width, height = (float(value) for value in annotation["bbox"])
            if not all(map(isfinite, (x, y, width, height))):
                raise ValueError(f"a box is {annotation['bbox']}")
            boxes[annotation["image_id"]].append((x, y, width, height))
        return [
            (_base_name(image), _CocoImage(_side(image, "width"), _side(image, "height"), tuple(boxes[key])))
            for key, image in images.items()
        ]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{path}: not readable as COCO annotations ({type(error).__name__}: {error}); restore or remove the file"
        ) from None


def _base_name(image: Mapping[str, Any]) -> str:
    return PurePosixPath(str(image["file_name"]).replace("\\", "/")).name


def _side(image: Mapping[str, Any], name: str) -> int:
    side = float(image[name])
    if not 0 <= side < _LONGEST:
        raise ValueError(f"{image['file_name']}: {name} is {image[name]}")
    return int(side)


def _of_images(
    drawn: Sequence[tuple[str, _CocoImage]] | None, listed: frozenset[str], path: Path
) -> tuple[dict[str, _CocoImage] | None, tuple[str, ...]]:
    """What COCO says of each image of dataset.csv, and a sentence on boxes of no such image.

    COCO may name a picture in another case, or with another suffix, and more than once.
    """
    if drawn is None:
        return None, ()
    in_any_case, stems, own = _in_any_case(listed), [_by_stem(listed)], frozenset(name for name, _ in drawn)
    found: dict[str, _CocoImage] = {}
    strays: Counter[str] = Counter()
    for name, drawing in drawn:
        image = _file_of(name, in_any_case)
        image = image if image in listed else _renamed(name, stems, own)
        if image in listed:
            found[image] = _joined(found[image], drawing, f"{path}: {name}") if image in found else drawing
        elif drawing.boxes:
            strays[name] += len(drawing.boxes)
    if not strays:
        return found, ()
    boxes, pictures = counted(strays.total(), "box", "boxes"), counted(len(strays), "picture")
    return found, (
        f"{boxes} of {pictures} in {path.name} belong{'s' * (strays.total() == 1)} to no image of dataset.csv "
        f"(such as {next(iter(strays))!r})",
    )


def _joined(one: _CocoImage, other: _CocoImage, where: str) -> _CocoImage:
    """Two entries of one picture."""
    if not (one.boxes and other.boxes):
        return one if one.boxes else other
    if (one.width, one.height) != (other.width, other.height):
        sizes = f"{one.width} x {one.height} and of {other.width} x {other.height}"
        raise InputError(f"{where} has boxes on pictures of {sizes}; correct one of the two entries")
    return replace(one, boxes=one.boxes + other.boxes)


def _reconcile(
    name: str, file: str, listed: int, folders: list[frozenset[str]], drawings: Mapping[str, _CocoImage] | None
) -> dict[str, Any]:
    """Label, status, path and boxes of one listed image, from csv, folder and box; `file` is the name of its file."""
    drawing = (drawings or {}).get(name, _CocoImage(0, 0, ()))
    in_folder = [label for label in (0, 1) if file in folders[label]]
    label, status, note = listed, "ok", ""
    boxed = bool(drawing.boxes)
    count = f"{len(drawing.boxes)} box{'es' * (len(drawing.boxes) > 1)}"
    if not in_folder:
        status, note = "missing", "in neither class folder"
    elif len(in_folder) == 2:
        note = f"in both class folders; {CSV_SAYS} {listed}, {count if boxed else 'no box'}"
        if drawings is None or boxed != bool(listed):
            status = "conflict"
    elif in_folder == [listed]:
        if boxed and not listed:
            status, note = "conflict", f"{count}, but dataset.csv and folder say 0"
    elif boxed:
        label, note = 1, f"{CSV_SAYS} {listed}, folder {FOLDERS[in_folder[0]]}, {count}: taken as fractured"
    else:
        status, note = "conflict", f"{CSV_SAYS} {listed}, folder {FOLDERS[in_folder[0]]}, no box"
    place = in_folder[0] if len(in_folder) == 1 else label
    if file != name:
        note = f"{note}{'; ' if note else ''}the file is named {file!r}"
    return {
        "path": f"images/{FOLDERS[place]}/{file}" if in_folder else "",
        "label": label,
        "status": status,
        "note": note,
        "boxes": drawing.boxes,
        "boxes_width": drawing.width,
        "boxes_height": drawing.height,
    }


def _in_any_case(names: frozenset[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        found.setdefault(name.casefold(), []).append(name)
    return found


def _file_of(name: str, in_any_case: Mapping[str, Sequence[str]]) -> str:
    """The name of an image's file: `name`, or the only one that differs from it in upper and lower case."""
    alike = in_any_case.get(name.casefold(), ())
    return alike[0] if name not in alike and len(alike) == 1 else name


def _tags(record: Mapping[Any, Any], names: tuple[str, ...]) -> str:
    return "+".join(name for name in names if record[name] == "1")


def _listed_again(first: dict[str, Any], again: dict[str, Any]) -> dict[str, Any]:
    """One row for an image that dataset.csv lists twice: the first, or a conflict when the labels differ."""
    agree = first["csv_fractured"] == again["csv_fractured"]
    words = f"listed again in dataset.csv with {'the same' if agree else 'the other'} label"
    note = f"{first['note']}; {words}" if first["note"] else words
    status = first["status"] if agree or first["status"] == "missing" else "conflict"
    return first | {"status": status, "note": note}
