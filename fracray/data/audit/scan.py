"""The audit: decodes every file once and finds truncated, unreadable, blank, identical, similar, contradictory ones.

Fills the manifest's sizes, modes, borders, hashes, statuses and duplicate components. Must not know of splits, of
models, or of Ray.
"""

import os
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fracray.data.audit.polarity import opposed
from fracray.data.duplicates import THUMB, Pair, connected_sets, equal, near_duplicates
from fracray.data.images.decode import HEAD, FileInspection, fit_boxes, inspect_file
from fracray.data.manifest import BORDERS, UNLABELLED, Manifest
from fracray.errors import InputError

# Part of the key of cached audits: raise it when the same files would get another result.
AUDIT_VERSION = 9

MOST_NAMED = 5  # images named in one note
_AT_ONCE = 4096  # files passed to the threads at a time
LARGE = 1000  # px; FracAtlas' devices deliver 454 or more than 2,000 px on the longer side

_Cells = dict[str, list[Any]]

# The columns that the audit writes; all others stay as they were read.
_FILLED = (
    "status",
    "note",
    "duplicate_of",
    "component",
    "width",
    "height",
    "exif_orientation",
    "batch",
    "boxes",
    "boxes_width",
    "boxes_height",
    "sha256",
    "pixel_hash",
    "look",
    "brightness",
    "opposed",
    "mode",
    *BORDERS,
    "refilled",
)


# ---------------------------------------------------------------- all files


def examine(
    manifest: Manifest, progress: Callable[[int, int], None] | None = None, workers: int | None = None
) -> Manifest:
    """Decode every file once, on `workers` threads (default: one per CPU); check each alone and against the others.

    Each file alone: truncated; unreadable (of no kind that is read, or declared too large and therefore not decoded);
    blank (it shows nothing: see `images.blank`); else its size, orientation, hashes, and its boxes scaled and turned to
    the picture as displayed. A blank picture is compared with no other one: all of its kind are alike.
    Against the others: the *same picture* has equal pixels as displayed, or is a truncated file whose bytes begin
    another file, or a copy that agrees in every textured tile (encoded again). Where labels differ within a set of same
    pictures, all members get the status 'conflict', because nothing shows which label is wrong; truncated members keep
    their status, but their label counts. Of readable files with equal pixels and label, the first in the table is used
    and the others are its duplicates. Near duplicates (perceptual hash, then tile by tile) only get the same
    `component`, as do all of the above. `opposed` is set as in `polarity`. Raises nothing for
    bad files. `progress` is called with (files done, files).
    """
    table = manifest.table.copy()
    cells: _Cells = {name: table[name].tolist() for name in ("image_id", "label", *_FILLED)}
    rows = [row for row, path in enumerate(table["path"]) if path and cells["status"][row] not in UNLABELLED]
    paths = [manifest.root / table["path"].iloc[row] for row in rows]
    inspections: list[FileInspection] = []
    thumbnails = _ThumbnailFile()
    # The audit reports odd files, not Pillow's or pydicom's warnings; around the pool: filters are per process.
    with warnings.catch_warnings(), ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        warnings.simplefilter("ignore")
        for start in range(0, len(paths), _AT_ONCE):
            for seen in pool.map(inspect_file, paths[start : start + _AT_ONCE]):
                if seen.fault != "blank":
                    thumbnails.keep(len(inspections), seen)
                inspections.append(replace(seen, thumb=None))
                if progress:
                    progress(len(inspections), len(paths))
    for row, seen in zip(rows, inspections, strict=True):
        _fill(cells, row, seen)
    # Blank pictures are all alike, without being copies of each other.
    inspections = [
        replace(seen, sha256="", head="", pixel_hash="") if seen.fault == "blank" else seen for seen in inspections
    ]
    exact = equal(seen.pixel_hash for seen in inspections)
    twins = _cut_from(paths, inspections)
    copies, inverted = thumbnails.compared(inspections)
    for at in inverted | {other for first, other in exact if first in inverted}:
        cells["opposed"][rows[at]] = 1
    same = exact + twins + [(a, b) for a, b, share in copies if share == 1.0]
    for members in connected_sets(len(rows), same):
        _find_conflict(cells, [rows[member] for member in members])
    for members in connected_sets(len(rows), exact):
        usable = [rows[member] for member in members if cells["status"][rows[member]] == "ok"]
        for row in usable[1:]:
            cells["duplicate_of"][row] = cells["image_id"][usable[0]]
    near = same + [(a, b) for a, b, _ in copies] + equal(seen.sha256 for seen in inspections)
    for members in connected_sets(len(rows), near):
        for member in members:
            cells["component"][rows[member]] = cells["image_id"][rows[members[0]]]
    for name in _FILLED:
        table[name] = pd.Series(cells[name], index=table.index, dtype=table[name].dtype)
    return replace(manifest, table=table, audit=AUDIT_VERSION)


def _fill(cells: _Cells, row: int, seen: FileInspection) -> None:
    """Write the inspection of one file into its row."""
    cells["sha256"][row], cells["pixel_hash"][row] = seen.sha256, seen.pixel_hash
    cells["look"][row] = seen.look
    cells["width"][row], cells["height"][row] = seen.width, seen.height
    cells["exif_orientation"][row], cells["brightness"][row] = seen.orientation, seen.brightness
    cells["mode"][row], cells["refilled"][row], cells["opposed"][row] = seen.mode, seen.refilled, 0
    for name, width in zip(BORDERS, seen.borders, strict=True):
        cells[name][row] = width
    cells["duplicate_of"][row] = cells["component"][row] = ""
    if seen.width:
        cells["batch"][row] = cells["batch"][row] or ("large" if max(seen.width, seen.height) > LARGE else "small")
        drawn, shown = (cells["boxes_width"][row], cells["boxes_height"][row]), (seen.width, seen.height)
        if all(drawn):
            cells["boxes"][row] = fit_boxes(cells["boxes"][row], drawn, shown, seen.orientation)
        cells["boxes_width"][row], cells["boxes_height"][row] = shown
    if seen.fault:
        cells["status"][row] = seen.fault
    if seen.fault == "blank":  # an older audit compared blank pictures with each other
        kept = [part for part in cells["note"][row].split("; ") if SAME_PICTURE not in part]
        cells["note"][row] = "; ".join(kept)
    _add_note(cells, row, seen.note)


SAME_PICTURE = "but the same picture as"


def _add_note(cells: _Cells, row: int, text: str) -> None:
    note = cells["note"][row]
    if text not in note:
        cells["note"][row] = f"{note}; {text}" if note else text


def _find_conflict(cells: _Cells, same: Sequence[int]) -> None:
    """Where labels of rows of the same picture differ, add a note, and set the status of usable ones to conflict."""
    label = cells["label"]
    by_label = {value: [cells["image_id"][row] for row in same if label[row] == value] for value in (0, 1)}
    for row in same:
        if others := by_label[1 - label[row]]:
            more = f" and {len(others) - MOST_NAMED:,} more" if len(others) > MOST_NAMED else ""
            named = f"{', '.join(others[:MOST_NAMED])}{more}"
            _add_note(cells, row, f"labelled {label[row]}, {SAME_PICTURE} {named}, with the other label")
            if cells["status"][row] == "ok":
                cells["status"][row] = "conflict"


def _cut_from(paths: Sequence[Path], inspections: Sequence[FileInspection]) -> list[Pair]:
    """Pairs of a truncated file and a file that begins with all its bytes."""
    heads = defaultdict(list)
    for at, seen in enumerate(inspections):
        if seen.head:
            heads[seen.head].append(at)
    pairs: list[Pair] = []
    for at, seen in enumerate(inspections):
        if seen.fault == "truncated":
            data = paths[at].read_bytes()
            # A file that ends within its tables has no picture: every file of its kind begins like it.
            if len(data) >= HEAD:
                pairs += [(at, o) for o in heads[seen.head] if o != at and paths[o].read_bytes().startswith(data)]
    return pairs


class _ThumbnailFile:
    """The thumbnails of all pictures in a temporary file, 4 KiB each, to save memory.

    Of pictures with equal pixels only the first is kept: the others are paired with it already.
    Raises InputError where the disk is full.
    """

    def __init__(self) -> None:
        with _full_disk():
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `copies`
        self._at: list[int] = []
        self._hashes: list[int] = []
        self._seen: set[str] = set()

    def keep(self, at: int, seen: FileInspection) -> None:
        if seen.thumb is None or seen.pixel_hash in self._seen:
            return
        if seen.pixel_hash:
            self._seen.add(seen.pixel_hash)
        with _full_disk():
            self._file.write(seen.thumb.tobytes())
        self._at.append(at)
        self._hashes.append(seen.phash)

    def compared(self, seen: Sequence[FileInspection]) -> tuple[list[tuple[int, int, float]], set[int]]:
        """Pairs of files that show the same exposure, with the share of tiles that agree, and the files whose dark and
        bright look exchanged; call it once."""
        with self._file:
            if not self._at:
                return [], set()
            with _full_disk():
                self._file.flush()
            thumbs = np.memmap(self._file, np.uint8, "r", shape=(len(self._at), THUMB, THUMB))
            pairs = near_duplicates(thumbs, np.array(self._hashes, dtype=np.uint64))
            whole = np.flatnonzero([not seen[at].fault for at in self._at])
            inverted = whole[opposed(thumbs, whole)]
        return [(self._at[a], self._at[b], share) for a, b, share in pairs], {self._at[at] for at in inverted}


@contextmanager
def _full_disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{tempfile.gettempdir()}: no room for the thumbnails to compare, 4 KiB each: {error.strerror}; free "
            "space there, or set TMPDIR to another folder"
        ) from None
