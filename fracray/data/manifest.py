"""The manifest: one row per radiograph, with what is known of it and whether it is used.

Holds the schema, its checks, the flow from files found to images used, and reading and writing (Parquet). Must not
know where the rows come from, how images are decoded, or how splits are drawn.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fracray.errors import InputError, RunError
from fracray.runtime.storage import atomic_path

Box = tuple[float, float, float, float]

STATUSES = ("ok", "truncated", "blank", "conflict", "missing", "unreadable", "unlisted", "uncertain")
UNLABELLED = ("unlisted", "uncertain")  # the label of their rows is 0 and means nothing
MANIFEST = "manifest.parquet"  # in an imported set and in a run
PARTS = ("train", "val", "test")
# Why an image that was found is not used, by the step of the flow.
REASONS = {
    "missing": "listed, but no file",
    "unlisted": "a file without a label",
    "uncertain": "its label is a value of --ignore",
    "unreadable": "not a picture of a kind that is read, damaged, or too large",
    "truncated": "the file is cut short",
    "blank": "the picture shows nothing",
    "conflict": "evidence or identical pictures disagree on the label",
    "duplicate": "identical to an image that is used",
}
# Why a used image is in no part, where parts are assigned, by the step of the flow.
UNUSED = {
    "guard": "within data.split.guard file numbers of a later part",
    "held_out": "held out of training, but in a group with training images",
    "tied": "shares duplicates, a patient or a study with a later part",
    "over_budget": "more than the training budget",
    "not_in_file": "without a part in the split that was read",
    "unstated": "left out by a version that did not say why",
}
# Uniform rows or columns at the edges of the displayed picture, px.
BORDERS = tuple(f"{shade}_{side}" for shade in ("black", "white") for side in ("top", "bottom", "left", "right"))

SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),  # unique: the file's name, its path where names repeat, letters for DICOM
        ("path", pa.string()),  # relative to the root, with forward slashes; '' when missing
        ("label", pa.int8()),  # 1 fractured, 0 not; 0 where the status is one of UNLABELLED
        ("group", pa.string()),  # in one part only of a grouped split; '' until splits are assigned
        ("split", pa.string()),  # its sets: train; val, val/view, ... joined by '+'; test, ...; '' when unused
        ("unused", pa.string()),  # why a used image is in no part: one of UNUSED; else ''
        ("status", pa.string()),  # one of STATUSES
        ("duplicate_of", pa.string()),  # image_id of the identical image that is used instead, or ''
        ("component", pa.string()),  # first image_id of the exact and near duplicates it belongs to, or ''
        ("width", pa.int32()),  # pixels, as displayed (after EXIF); 0 until examined
        ("height", pa.int32()),
        ("exif_orientation", pa.int8()),  # 1 to 8; 1 is upright; 0 until examined
        ("batch", pa.string()),  # manufacturer and model where known, else 'large' (over 1,000 px) or 'small'
        ("region", pa.string()),  # tags joined by '+': hand, leg, hip, shoulder, mixed
        ("view", pa.string()),  # tags joined by '+': frontal, lateral, oblique
        ("hardware", pa.int8()),  # 1 when metal is visible
        ("multiscan", pa.int8()),  # 1 when the picture shows several exposures
        ("patient", pa.string()),  # salted hash of the patient id, '' where unknown; in one part only
        ("study", pa.string()),  # salted hash of the study id, or ''
        ("age", pa.float32()),  # years at the examination; nan when unknown
        ("sex", pa.string()),  # F, M, O (DICOM's codes), or ''
        ("brightness", pa.float32()),  # mean gray of the displayed picture, 0 to 255; nan until examined
        ("opposed", pa.int8()),  # 1 when dark and bright look exchanged, against the rest of the set
        ("mode", pa.string()),  # how the file stores its pixels, as Pillow names it: L, RGB ...; '' until examined
        *((border, pa.int32()) for border in BORDERS),
        ("refilled", pa.int32()),  # rows at the bottom that only repeat one block: a truncated JPEG, saved again
        ("boxes", pa.list_(pa.list_(pa.float64()))),  # fractures as x, y, w, h in pixels of boxes_width x boxes_height
        ("boxes_width", pa.int32()),  # size of the picture that the boxes refer to; width and height once examined
        ("boxes_height", pa.int32()),
        ("note", pa.string()),  # why a label was corrected or an image is not used; what is odd about its header
        ("sha256", pa.string()),  # of the file's bytes; '' until examined
        ("pixel_hash", pa.string()),  # sha256 of size and gray pixels as displayed; '' when not decodable
        ("look", pa.binary()),  # by which a copy is known that was encoded again: see `duplicates.look`; b'' if unknown
    ]
)
_ROOT = b"fracray.root"
_LICENCE = b"fracray.licence"
_AUDIT = b"fracray.audit"
_LATER = ("opposed", "look", "unused")  # columns that manifests of older versions lack
_IGNORED = b"fracray.ignored"
_REMARKS = b"fracray.remarks"


@dataclass(frozen=True, kw_only=True)
class Flow:
    """Counts from images found (listed or on disk) to images used, and on to those in parts; each is counted once.

    RunError where found is not used and every reason of REASONS together, or, where parts are assigned, used is not
    in_parts and every reason of UNUSED: then an image was lost, or counted twice.
    """

    found: int
    missing: int
    unlisted: int
    uncertain: int = 0
    unreadable: int
    truncated: int
    blank: int
    conflict: int
    duplicate: int
    used: int
    guard: int = 0
    held_out: int = 0
    tied: int = 0
    over_budget: int = 0
    not_in_file: int = 0
    unstated: int = 0
    in_parts: int = 0

    def __post_init__(self) -> None:
        counts = self.as_dict()
        found, divided = (sum(counts[name] for name in reasons) for reasons in (REASONS, UNUSED))
        lost = self.found != self.used + found or self.in_parts + divided not in (0, self.used)
        if lost or min(counts.values()) < 0:
            raise RunError(
                f"the counts of the images do not add up: {counts}; please report this as a fault of fracray"
            )

    def lines(self) -> tuple[str, ...]:
        """The flow for printing, one count and its meaning per line, without reasons that removed nothing."""
        counts = self.as_dict()
        reasons, unused = (
            [(-counts[name], f"{name.replace('_', ' ')}: {why}") for name, why in all_.items() if counts[name]]
            for all_ in (REASONS, UNUSED)
        )
        steps = [(self.found, "images found"), *reasons, (self.used, "images used"), *unused]
        steps += [(self.in_parts, "images in parts")] * bool(self.in_parts)
        return tuple(f"{count:>7,} {meaning}" for count, meaning in steps)

    def summary(self) -> str:
        """The flow in one line, for errors."""
        counts = {name.replace("_", " "): count for name, count in self.as_dict().items()}
        return ", ".join(f"{name} {count:,}" for name, count in counts.items() if count or name == "used")

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


@dataclass(frozen=True)
class Manifest:
    """Columns of SCHEMA, and those of dataset.csv prefixed `csv_`, or size and time of an import's files.

    root: the folder that its paths are relative to.
    licence: the terms of use as text, '' when not stated.
    audit: the version of the audit that examined it, 0 where that is not known.
    ignored: files beside the images that belong to an operating system, and are not among the images found.
    remarks: sentences on the set as a whole, such as what its folder holds, and how its labels were read.
    """

    table: pd.DataFrame
    root: Path
    licence: str = ""
    audit: int = 0
    ignored: int = 0
    remarks: tuple[str, ...] = ()

    @property
    def used(self) -> pd.DataFrame:
        """The rows that may be trained and evaluated on: status ok and no duplicate of another row."""
        return self.table[_is_used(self.table)]

    def flow(self) -> Flow:
        used = self.used
        status, unused = self.table["status"].value_counts(), used["unused"].value_counts()
        counts = {name: int(status.get(name, 0)) for name in STATUSES}
        ok = counts.pop("ok")
        counts |= {name: int(unused.get(name, 0)) for name in UNUSED}
        in_parts = int((used["split"] != "").sum())
        return Flow(found=len(self.table), duplicate=ok - len(used), used=len(used), in_parts=in_parts, **counts)

    def notes(self) -> tuple[str, ...]:
        """Notes on single images, one line each: 'IMG0003298: dataset.csv says 0, ...'."""
        noted = self.table[self.table["note"] != ""]
        return tuple(f"{row.image_id}: {row.note}" for row in noted.itertuples())

    def causes(self, status: str, most: int = 10) -> tuple[str, ...]:
        """Why images have a status, the most frequent cause first: 'unreadable: 12 (scan7 ...): of kind HEIC ...'."""
        rows = self.table[self.table["status"] == status]
        causes = sorted(rows.groupby("note")["image_id"], key=lambda cause: -len(cause[1]))
        lines = [
            f"{status}: {len(ids):,} ({ids.iloc[0]}{' ...' * (len(ids) > 1)}): {note or 'its cause is not known'}"
            for note, ids in causes[:most]
        ]
        rest = sum(len(ids) for _, ids in causes[most:])
        return (*lines, f"{status}: {rest:,} of other causes") if rest else tuple(lines)

    def fingerprint(self) -> str:
        """sha256 (hex) over image_id, file hash and label of every row: equal for equal data in any folder."""
        columns = [self.table[name] for name in ("image_id", "sha256", "label")]
        return hashlib.sha256(text_of(columns, "\x1f", "\x1e")).hexdigest()

    def write(self, path: str | Path) -> None:
        """Write as Parquet, atomically: a reader sees the old file or the complete new one."""
        extra = pa.Table.from_pandas(self.table.drop(columns=SCHEMA.names), preserve_index=False)
        core = pa.Table.from_pandas(self.table[SCHEMA.names], schema=SCHEMA, preserve_index=False)
        for name in extra.column_names:
            core = core.append_column(name, extra[name])
        core = core.replace_schema_metadata(
            {
                _ROOT: str(self.root).encode(),
                _LICENCE: self.licence.encode(),
                _AUDIT: str(self.audit).encode(),
                _IGNORED: str(self.ignored).encode(),
                _REMARKS: json.dumps(self.remarks).encode(),
            }
        )
        with atomic_path(Path(path)) as partial:
            pq.write_table(core, partial)

    @classmethod
    def read(cls, path: str | Path) -> "Manifest":
        """Read what `write` wrote; InputError when the file is absent, not Parquet, or does not have the schema."""
        try:
            arrow = pq.read_table(path)
        except FileNotFoundError:
            raise InputError(f"{path}: no such manifest") from None
        except (OSError, pa.ArrowInvalid) as error:
            raise InputError(f"{path}: not readable as a Parquet manifest: {error}") from None
        remedy = "create it again from its data"
        metadata = arrow.schema.metadata or {}
        younger = [name for name in _LATER if name not in arrow.column_names]
        for name in younger:
            field = SCHEMA.field(name)
            arrow = arrow.append_column(field, pa.array([_unknown(field)] * len(arrow), field.type))
        absent = [name for name in SCHEMA.names if name not in arrow.column_names]
        if absent or _ROOT not in metadata:
            raise InputError(f"{path}: not a manifest: it lacks {', '.join(absent) or 'its root'}; {remedy}")
        for field in SCHEMA:
            if arrow.schema.field(field.name).type != field.type:
                found = arrow.schema.field(field.name).type
                raise InputError(f"{path}: column {field.name} is {found}, not {field.type}; {remedy}")
        boxes = _boxes(arrow["boxes"].combine_chunks())
        if boxes is None:
            raise InputError(f"{path}: a box is not of four numbers: x, y, width, height; {remedy}")
        at = arrow.column_names.index("boxes")
        table = arrow.remove_column(at).to_pandas()
        table.insert(at, "boxes", pd.Series(boxes, dtype=object))
        unknown = set(table["status"].unique()) - set(STATUSES)
        for cell in table["split"].unique():
            parts = {name.partition("/")[0] for name in sets_of(cell)}
            if len(parts) > 1 or not parts <= set(PARTS):
                unknown.add(cell)
        if unknown:
            raise InputError(f"{path}: unknown status or split {', '.join(sorted(unknown))}; {remedy}")
        if reasons := set(table["unused"].unique()) - {"", *UNUSED}:
            raise InputError(f"{path}: unknown reason of an unused image: {', '.join(sorted(reasons))}; {remedy}")
        if "unused" in younger and (table["split"] != "").any():
            table.loc[_is_used(table) & (table["split"] == ""), "unused"] = "unstated"
        if table["image_id"].duplicated().any():
            raise InputError(f"{path}: image_id is not unique; {remedy}")
        return cls(
            table,
            Path(metadata[_ROOT].decode()),
            metadata.get(_LICENCE, b"").decode(),
            int(metadata.get(_AUDIT, b"0")),
            int(metadata.get(_IGNORED, b"0")),
            tuple(json.loads(metadata.get(_REMARKS, b"[]"))),
        )


def build(rows: Sequence[dict[str, Any]], root: Path) -> Manifest:
    """A manifest from rows that may leave out unknown columns; asserts unique ids and known statuses."""
    unknown = {field.name: _unknown(field) for field in SCHEMA}
    extra = dict.fromkeys(name for row in rows for name in row if name not in unknown)
    columns = {name: [row.get(name, value) for row in rows] for name, value in unknown.items()}
    table = pd.DataFrame(columns | {name: [row.get(name, math.nan) for row in rows] for name in extra})
    for field in SCHEMA:
        if field.name != "boxes":
            table[field.name] = table[field.name].astype(
                "str" if field.type == pa.string() else field.type.to_pandas_dtype()
            )
    assert not table["image_id"].duplicated().any(), "image_id must be unique"
    assert set(table["status"]) <= set(STATUSES), "unknown status"
    assert table["label"].isin((0, 1)).all(), "label outside 0/1"
    return Manifest(table, root)


def _is_used(table: pd.DataFrame) -> pd.Series:
    return (table["status"] == "ok") & (table["duplicate_of"] == "")


def _unknown(field: pa.Field) -> Any:
    if field.name == "boxes":
        return ()
    if field.type == pa.string():
        return ""
    if field.type == pa.binary():
        return b""
    return math.nan if pa.types.is_floating(field.type) else 0


def _boxes(column: pa.ListArray) -> list[tuple[Box, ...]] | None:
    """The boxes of every row; None where one is not of four numbers."""
    flat = column.flatten()
    if not pc.all(pc.equal(flat.value_lengths(), 4), min_count=0).as_py():
        return None
    numbers = iter(flat.flatten().tolist())
    boxes = list(zip(numbers, numbers, numbers, numbers, strict=True))
    found: list[tuple[Box, ...]] = [()] * len(column)
    counts = column.value_lengths().to_numpy()
    stops = np.cumsum(counts)
    for row in np.flatnonzero(counts).tolist():  # most have none
        found[row] = tuple(boxes[stops[row] - counts[row] : stops[row]])
    return found


def text_of(columns: Sequence[pd.Series], between: str, behind: str) -> memoryview:
    """Rows as UTF-8: the cells of each with `between` between them and `behind` after the last."""
    text = pa.large_string()
    ends = [pa.scalar(end, text) for end in (*[between] * (len(columns) - 1), behind)]
    cells = (pa.array(column).cast(text) for column in columns)
    rows = pc.binary_join_element_wise(*chain.from_iterable(zip(cells, ends, strict=True)), pa.scalar("", text))
    if isinstance(rows, pa.ChunkedArray):
        rows = rows.combine_chunks()
    length = pc.sum(pc.binary_length(rows), min_count=0).as_py()
    return memoryview(rows.buffers()[2] or b"")[:length]


def sets_of(split: str) -> list[str]:
    """The sets that a cell of `split` names."""
    return split.split("+") if split else []


def part_of(split: pd.Series) -> pd.Series:
    """train, val, test or '' for each cell of `split`: all sets of an image belong to one part."""
    return split.str.split(r"[+/]", n=1, regex=True).str[0].fillna("")


def in_set(split: pd.Series, name: str) -> np.ndarray:
    """Which images, (n,) bool, are in the set of this name: 'train', 'val', 'val/view', ..."""
    members = {cell: name in sets_of(cell) for cell in split.unique()}
    return split.map(members).to_numpy(dtype=bool)


def sets_named(split: pd.Series) -> tuple[str, ...]:
    """The names of all sets, in the order train, val, the other sets of val, test, the other sets of test."""
    found = {name for cell in split.unique() for name in sets_of(cell)}
    return tuple(sorted(found, key=lambda name: (PARTS.index(name.partition("/")[0]), name)))
