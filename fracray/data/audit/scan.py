"""The audit: decodes every file once and finds what is truncated, unreadable, identical, nearly so, or contradictory.

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

from fracray.data.duplicates import THUMB, Link, connected_sets, equal, near_duplicates
from fracray.data.images.decode import HEAD, FileInspection, fit_boxes, inspect_file
from fracray.data.manifest import BORDERS, Manifest
from fracray.errors import InputError

# Part of the key of cached audits: raise it when the same files would be judged otherwise.
AUDIT_VERSION = 6

MOST_NAMED = 5  # images that a note on one of them names
_AT_ONCE = 4096  # files given to the threads at a time
LARGE = 1000  # px; FracAtlas' machines deliver either 454 or more than 2,000 on the longer side

_Cells = dict[str, list[Any]]

# What the audit writes; every other column stays as it was read.
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
    "brightness",
    "mode",
    *BORDERS,
    "refilled",
)


# ---------------------------------------------------------------- all files


def examine(
    manifest: Manifest, progress: Callable[[int, int], None] | None = None, workers: int | None = None
) -> Manifest:
    """Decode every file once, on `workers` threads (default: one per CPU), and judge each alone and against the others.

    Each file alone: truncated; unreadable (no JPEG, PNG or DICOM, or announced too large, and then not decoded); else
    its size, orientation, hashes, and its boxes scaled and turned to the picture as displayed.
    Against the others: the *same picture* is one with equal pixels as displayed, a truncated file whose bytes begin
    another file, or a copy whose every textured tile agrees (encoded again). Where labels differ within a set of same
    pictures, all its members become status 'conflict', for nothing tells which label is wrong; those truncated stay so,
    and their label counts. Of readable files with equal pixels and label, the first in the table is used and the others
    are its duplicates. Near duplicates (perceptual hash, then tile by tile) are only joined to one `component`, with
    all of the above. Raises nothing for bad files. `progress` is called with files done and in all.
    """
    table = manifest.table.copy()
    cells: _Cells = {name: table[name].tolist() for name in ("image_id", "label", *_FILLED)}
    rows = [row for row, path in enumerate(table["path"]) if path and cells["status"][row] != "unlisted"]
    paths = [manifest.root / table["path"].iloc[row] for row in rows]
    looks: list[FileInspection] = []
    thumbs = _Thumbs()
    # Odd files are judged here, not warned of by Pillow or pydicom; set around the pool, for filters are the process's.
    with warnings.catch_warnings(), ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        warnings.simplefilter("ignore")
        for start in range(0, len(paths), _AT_ONCE):
            for seen in pool.map(inspect_file, paths[start : start + _AT_ONCE]):
                thumbs.keep(len(looks), seen)
                looks.append(replace(seen, thumb=None))
                if progress:
                    progress(len(looks), len(paths))
    for row, seen in zip(rows, looks, strict=True):
        _fill(cells, row, seen)
    exact = equal(seen.pixel_hash for seen in looks)
    twins = _cut_from(paths, looks)
    copies = thumbs.copies()
    same = exact + twins + [(a, b) for a, b, share in copies if share == 1.0]
    for members in connected_sets(len(rows), same):
        _find_conflict(cells, [rows[member] for member in members])
    for members in connected_sets(len(rows), exact):
        usable = [rows[member] for member in members if cells["status"][rows[member]] == "ok"]
        for row in usable[1:]:
            cells["duplicate_of"][row] = cells["image_id"][usable[0]]
    near = same + [(a, b) for a, b, _ in copies] + equal(seen.sha256 for seen in looks)
    for members in connected_sets(len(rows), near):
        for member in members:
            cells["component"][rows[member]] = cells["image_id"][rows[members[0]]]
    for name in _FILLED:
        table[name] = pd.Series(cells[name], index=table.index, dtype=table[name].dtype)
    return replace(manifest, table=table)


def _fill(cells: _Cells, row: int, seen: FileInspection) -> None:
    """Write what one file alone tells into its row."""
    cells["sha256"][row], cells["pixel_hash"][row] = seen.sha256, seen.pixel_hash
    cells["width"][row], cells["height"][row] = seen.width, seen.height
    cells["exif_orientation"][row], cells["brightness"][row] = seen.orientation, seen.brightness
    cells["mode"][row], cells["refilled"][row] = seen.mode, seen.refilled
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
        _note(cells, row, seen.note)


def _note(cells: _Cells, row: int, words: str) -> None:
    said = cells["note"][row]
    if words not in said:
        cells["note"][row] = f"{said}; {words}" if said else words


def _find_conflict(cells: _Cells, same: Sequence[int]) -> None:
    """Note it where the labels of rows of the same picture differ, and take those that were usable out of use."""
    label = cells["label"]
    by_label = {value: [cells["image_id"][row] for row in same if label[row] == value] for value in (0, 1)}
    for row in same:
        if others := by_label[1 - label[row]]:
            more = f" and {len(others) - MOST_NAMED:,} more" if len(others) > MOST_NAMED else ""
            named = f"{', '.join(others[:MOST_NAMED])}{more}"
            _note(cells, row, f"labelled {label[row]}, but the same picture as {named}, labelled otherwise")
            if cells["status"][row] == "ok":
                cells["status"][row] = "conflict"


def _cut_from(paths: Sequence[Path], looks: Sequence[FileInspection]) -> list[Link]:
    """Links from each truncated file to the files that begin with all its bytes."""
    heads = defaultdict(list)
    for at, seen in enumerate(looks):
        if seen.head:
            heads[seen.head].append(at)
    links: list[Link] = []
    for at, seen in enumerate(looks):
        if seen.fault == "truncated":
            data = paths[at].read_bytes()
            # A stub that ends within its tables has no picture: it begins every file of its kind.
            if len(data) >= HEAD:
                links += [(at, o) for o in heads[seen.head] if o != at and paths[o].read_bytes().startswith(data)]
    return links


class _Thumbs:
    """The thumbnails of all pictures, in a temporary file: 4 KiB each, which memory need not hold.

    Of pictures with equal pixels the first is enough: the others are linked to it already, and all pairs would be many.
    Raises InputError where that file does not fit.
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

    def copies(self) -> list[tuple[int, int, float]]:
        """Pairs of files that show the same exposure, with the share of tiles that agree; to be asked once."""
        with self._file:
            if not self._at:
                return []
            with _full_disk():
                self._file.flush()
            thumbs = np.memmap(self._file, np.uint8, "r", shape=(len(self._at), THUMB, THUMB))
            pairs = near_duplicates(thumbs, np.array(self._hashes, dtype=np.uint64))
        return [(self._at[a], self._at[b], share) for a, b, share in pairs]


@contextmanager
def _full_disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{tempfile.gettempdir()}: cannot hold the pictures that are compared, 4 KiB each: {error.strerror}; free "
            "space there, or set TMPDIR to another folder"
        ) from None
