"""From the name of a data set to what a trial trains on: manifest, audit, split, shards, no-pixel baselines.

Every step is read from the cache when its input has not changed. Knows nothing of models.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from fracray.config import PHANTOM, DataConfig
from fracray.data.audit.scan import AUDIT_VERSION, examine
from fracray.data.baselines import Baseline, mean_baselines, no_pixel_baselines
from fracray.data.cache import cache_folder, note_prepared
from fracray.data.loading.ingest import ingest
from fracray.data.loading.kept import cropping
from fracray.data.loading.shards import Shards
from fracray.data.manifest import MANIFEST, Flow, Manifest, in_set, sets_named
from fracray.data.patients import KnownPatients, known_patients
from fracray.data.phantom.draw import DRAWING, write_phantoms
from fracray.data.sources.clutter import beside
from fracray.data.sources.fracatlas import PARTS_OF_A_SET, read_fracatlas
from fracray.data.sources.import_set import open_imported
from fracray.data.sources.locate import open_source
from fracray.data.splits.assign import leaks
from fracray.data.splits.divide import divide
from fracray.data.splits.set_names import is_validation
from fracray.errors import InputError
from fracray.runtime.console import progress_bar
from fracray.runtime.resources import alone
from fracray.runtime.storage import Folder, errors_name

PHANTOM_LICENCE = "drawn by fracray; no rights reserved, no patient data"
PHANTOM_NOTICE = (
    "Using the embedded phantom radiographs, which are synthetic. For FracAtlas "
    "(https://doi.org/10.6084/m9.figshare.22363012), run `python -m fracray.data download --to FracAtlas.zip` and pass "
    "its folder or zip with --data PATH."
)


@dataclass(frozen=True)
class Prepared:
    """A data set ready for training.

    table: one row per used radiograph, in the order of the shards' rows, with at least image_id, label, group and
    split (read by `fracray.data.manifest.in_set`), and where the shards are cropped with the columns KEPT.
    baselines: scores of the no-pixel predictors on it.
    """

    config: DataConfig
    manifest: Manifest
    shards: Shards
    table: pd.DataFrame
    baselines: tuple[Baseline, ...]
    split_notes: tuple[str, ...] = ()  # what the split holds out, leaves unused or borrows
    rotations: tuple[np.ndarray, ...] = ()  # the split column of each rotation a trial trains on, the first as in table

    @property
    def origin(self) -> str:
        """Where the radiographs come from, as text."""
        return origin_of(self.config)

    @property
    def flow(self) -> Flow:
        """From files found to images used."""
        return self.manifest.flow()

    @property
    def notes(self) -> tuple[str, ...]:
        """The audit's notes on single images."""
        return self.manifest.notes()

    @property
    def fingerprint(self) -> str:
        """Equal for equal files and labels."""
        return self.manifest.fingerprint()

    def rows(self, part: str) -> np.ndarray:
        """The shard rows of 'train', 'val', 'val/view', 'test', ... or 'all', ascending."""
        if part == "all":
            return np.arange(len(self.table))
        return np.flatnonzero(in_set(self.table["split"], part))

    def over_folds(self) -> "Prepared":
        """The same with the no-pixel predictors' means over the rotations, for metrics that are such means too."""
        if len(self.rotations) < 2:
            return self
        seed, sets = self.config.split.seed, [name for name in self.sets if is_validation(name)]
        each = [no_pixel_baselines(self.table.assign(split=split), sets, seed) for split in self.rotations]
        means = [mean_baselines([one for found in each for one in found if one.part == name]) for name in sets]
        return replace(self, baselines=tuple(chain.from_iterable(means)))

    @property
    def sets(self) -> tuple[str, ...]:
        """The names of the sets: train, then val and test, each followed by its other sets."""
        return sets_named(self.table["split"])

    @property
    def divided(self) -> bool:
        """Whether there are parts; there are none where a set is only evaluated."""
        return bool(self.sets)

    @cached_property
    def patients(self) -> KnownPatients:
        """What keeps images of one patient together."""
        return known_patients(self.table)

    @property
    def licence(self) -> str:
        """The terms of use of the radiographs, as text."""
        return PHANTOM_LICENCE if self.config.source == PHANTOM else self.manifest.licence or "not stated"

    def summary(self) -> dict[str, Any]:
        """What data.json keeps and the datasheet shows: JSON values only."""
        table = self.table
        near = table["component"][table["component"] != ""]
        near = near[near.duplicated(keep=False)]
        return {
            "origin": self.origin,
            "licence": self.licence,
            "fingerprint": self.fingerprint,
            "split_fingerprint": _digest(
                pd.concat([table["image_id"] + "\x1f" + split for split in self.rotations or (table["split"],)])
            ),
            "flow": self.flow.as_dict(),
            "fractured": int(table["label"].sum()),
            "ignored": self.manifest.ignored,
            "remarks": list(self.manifest.remarks),
            "notes": list(self.notes),
            "patients": self.patients.as_dict(),
            "warnings": [warning for warning in (self.patients.warning(self.divided),) if warning],
            "parts": {name: self._counts(self.rows(name)) for name in self.sets},
            "unused": int((table["split"] == "").sum()) if self.sets else 0,
            "split": list(self.split_notes),
            "straddling": len(leaks(table)),
            "near_duplicates": {"sets": int(near.nunique()), "images": len(near)},
            "groups": int(table["group"].nunique()),
            "prevalence": {
                name: _prevalence(table, column) for name, column in _DESCRIBED if table[column].nunique() > 1
            },
            "size": self.shards.size,
            "crop": cropping(table),
            "baselines": [baseline.as_dict() for baseline in self.baselines],
        }

    def _counts(self, rows: np.ndarray) -> dict[str, int]:
        mine = self.table.iloc[rows]
        return {"images": len(mine), "fractured": int(mine["label"].sum()), "groups": int(mine["group"].nunique())}


_DESCRIBED = (("region", "region"), ("view", "view"), ("device", "batch"), ("hardware", "hardware"), ("sex", "sex"))


def _prevalence(table: pd.DataFrame, column: str) -> dict[str, dict[str, int]]:
    cells = table.groupby(table[column].map(str))["label"].agg(["size", "sum"])
    return {str(name): {"images": int(size), "fractured": int(ill)} for name, size, ill in cells.itertuples()}


def _digest(lines: pd.Series) -> str:
    return hashlib.sha256("\x1e".join(lines).encode()).hexdigest()


def origin_of(config: DataConfig) -> str:
    """Where the radiographs of a config come from, as text."""
    drawn = config.phantom
    return f"phantom ({drawn.count} drawn, seed {drawn.seed})" if config.source == PHANTOM else config.source


def prepare(
    config: DataConfig,
    console: Console,
    split: bool = True,
    manifest: Manifest | None = None,
    shelf: Folder | None = None,
) -> Prepared:
    """Prepare the data set that `config` names, showing progress; Ray must be running.

    With `split` False no part is assigned: for sets that are only evaluated. `manifest` is the result of `examined` for
    this set, if the caller has it. On a cluster of several machines the shards are kept in `shelf`, which all of them
    can read; everything else, and the shards of a single machine, in the cache of this machine.
    Raises InputError for any fault of the files, naming them.
    """
    cache = cache_folder(config)
    manifest = manifest or examined(config, console)
    with errors_name(config.source, manifest.root):  # as the user typed it, not where the set keeps its files
        divided = divide(manifest, config.split, split, cache)
    with progress_bar(console, f"ingesting at {config.size} px") as step:
        place = Folder(cache) if shelf is None or alone() else shelf
        shards = ingest(divided.manifest, config.size, place, step, shelf is not None, config.crop)
    note_prepared(config)
    table, kept = divided.manifest.used.reset_index(drop=True), shards.kept()
    return Prepared(
        config=config,
        shards=shards,
        table=table if kept is None else pd.concat([table, kept], axis=1),
        manifest=divided.manifest,
        baselines=divided.baselines,
        split_notes=divided.notes,
        rotations=divided.rotations,
    )


def examined(config: DataConfig, console: Console) -> Manifest:
    """The manifest of the data set that `config` names, each file decoded and checked once, without groups and parts.

    Read from the cache where no file changed. Raises InputError for what cannot be read as a data set.
    """
    cache = cache_folder(config)
    if config.source == PHANTOM:
        drawn = _phantom(config, cache, console)
        return _manifest(drawn, cache, console, drawn)
    with progress_bar(console, f"downloading {config.source} (MiB)") as step:
        root = open_source(config.source, cache, step)
    copied = _copied_to(root, cache)
    with errors_name(config.source, copied or root):
        return _manifest(root, cache, console, copied or root)


def shards_as(prepared: Prepared, config: DataConfig, console: Console) -> Shards:
    """The same radiographs, row by row, at the size of another config and cropped as there; Ray must be running."""
    if (config.size, config.crop) == (prepared.shards.size, prepared.shards.cropped):
        return prepared.shards
    with progress_bar(console, f"ingesting at {config.size} px") as step:
        place = Folder(cache_folder(prepared.config))
        return ingest(prepared.manifest, config.size, place, step, shared=False, crop=config.crop)


def _phantom(config: DataConfig, cache: Path, console: Console) -> Path:
    folder = cache / f"phantom-v{DRAWING}-{config.phantom.count}-{config.phantom.seed}"
    with progress_bar(console, "drawing phantoms") as step:
        return write_phantoms(folder, config.phantom, step)


def _copied_to(root: Path, cache: Path) -> Path | None:
    """The folder of the cache that a zip or a URI was copied to, if `root` is in one."""
    for place in (cache / "archives", cache / "downloads"):
        if root.is_relative_to(place):
            return place / root.relative_to(place).parts[0]
    return None


def _manifest(root: Path, cache: Path, console: Console, outer: Path) -> Manifest:
    """The examined manifest of a folder: its own if it was imported, else from the cache where no file changed.

    outer: `root`, or the folder around it that was made for it.
    """
    if (root / MANIFEST).is_file():
        return _imported(root, cache, console)
    path = cache / "manifests" / f"{_listing_key(root)}.parquet"
    if path.exists():
        return replace(Manifest.read(path), root=root)
    return _examine(replace(read_fracatlas(root), ignored=beside(outer).ignored), path, console)


def _examine(manifest: Manifest, path: Path, console: Console) -> Manifest:
    """The manifest examined, and kept at `path`."""
    with progress_bar(console, "examining radiographs") as step:
        manifest = examine(manifest, step)
    try:
        manifest.write(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error}; free space, or choose another data.cache") from None
    return manifest


def _imported(root: Path, cache: Path, console: Console) -> Manifest:
    """The manifest of an imported set; examined again, once, where another version did that at its import.

    What was left out stays out, for its first status may be lost; what is found now is left out too.
    """
    manifest = open_imported(root)
    if manifest.audit == AUDIT_VERSION:
        return manifest
    digest = hashlib.sha256((root / MANIFEST).read_bytes())
    digest.update(f"{AUDIT_VERSION}:{root}".encode())
    path = cache / "manifests" / f"{digest.hexdigest()[:32]}.parquet"
    again = replace(Manifest.read(path), root=manifest.root) if path.exists() else _examine(manifest, path, console)
    blank = again.flow().blank
    shown = f"{blank:,} of its pictures show{'s' * (blank == 1)} nothing and {'is' if blank == 1 else 'are'} left out"
    console.print(
        f"note: {root} was imported by another version of fracray, so it was examined again"
        f"{f': {shown}' if blank else ''}; import it again to keep the result with it",
        style="yellow",
        soft_wrap=True,
        markup=False,
    )
    return again


def _listing_key(root: Path) -> str:
    """Changes with the name, size or time of any file below `root`, and of those behind links to what a set holds.

    What cannot be listed is no error here: the readers name it where it matters to them.
    """
    digest = hashlib.sha256(f"{AUDIT_VERSION}:{root}".encode())
    found: dict[tuple[int, int], str] = {}  # the path of every folder; links may lead to one again, also in circles
    folders = [str(root)]
    while folders:
        folder = folders.pop()
        try:
            with _opened(folder) as handle:
                about = os.fstat(handle)
                first = found.setdefault((about.st_dev, about.st_ino), folder)
                lines, below = _listing(folder, handle, str(root)) if first == folder else ([f"{folder}:{first}\n"], [])
        except OSError as error:
            lines, below = [f"{folder}:{error.strerror}\n"], []
        digest.update("".join(sorted(lines)).encode(errors="surrogateescape"))
        folders += sorted(below, reverse=True)
    return digest.hexdigest()[:32]


def _listing(folder: str, handle: int, root: str) -> tuple[list[str], list[str]]:
    """A line for each file of an opened folder, and the paths of the folders in it.

    Of links to folders only those are followed that lead to the set's own: another one may lead to all of a disk.
    """
    lines, below = [], []
    with os.scandir(handle) as entries:  # by its handle a file is found sooner
        for entry in entries:
            path = f"{folder}/{entry.name}"
            try:
                if entry.is_dir():
                    inside = path.removeprefix(f"{root}/").partition("/")[0] in PARTS_OF_A_SET
                    if inside or not entry.is_symlink():
                        below.append(path)
                    continue
                about = entry.stat()  # of the target of a link
            except OSError:
                about = entry.stat(follow_symlinks=False)  # a broken link
            lines.append(f"{path}:{about.st_size}:{about.st_mtime_ns}\n")
    return lines, below


@contextmanager
def _opened(folder: str) -> Iterator[int]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        yield handle
    finally:
        os.close(handle)
