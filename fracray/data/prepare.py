"""From the name of a data set to what a trial trains on: manifest, audit, split, shards, no-pixel baselines.

Every step is found again in the cache when its input has not changed. Knows nothing of models.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fracray.config import PHANTOM, DataConfig
from fracray.data.audit import AUDIT_VERSION, Baseline, cross_fitted_baselines, examine, no_pixel_baselines
from fracray.data.fracatlas import read_fracatlas
from fracray.data.imported import MANIFEST, open_imported
from fracray.data.ingest import Shards, ingest
from fracray.data.manifest import Flow, Manifest
from fracray.data.phantom import DRAWING, write_phantoms
from fracray.data.sources import open_source
from fracray.data.splits import assign_splits, name_groups
from fracray.errors import InputError

PHANTOM_NOTICE = (
    "No data named: using the embedded phantom radiographs, which are synthetic. For FracAtlas "
    "(https://doi.org/10.6084/m9.figshare.22363012), run `python -m fracray.data download --to FracAtlas.zip` and give "
    "its folder or zip with --data PATH."
)


@dataclass(frozen=True)
class Prepared:
    """A data set ready for training.

    table: one row per used radiograph, in the order of the shards' rows, with at least image_id, label, group and
    split. baselines: what a predictor that sees no pixel reaches on this split.
    """

    config: DataConfig
    manifest: Manifest
    shards: Shards
    table: pd.DataFrame
    baselines: tuple[Baseline, ...]

    @property
    def origin(self) -> str:
        """Where the radiographs come from, in words."""
        drawn = self.config.phantom
        phantom = f"phantom ({drawn.count} drawn, seed {drawn.seed})"
        return phantom if self.config.source == PHANTOM else self.config.source

    @property
    def flow(self) -> Flow:
        """From files found to images used."""
        return self.manifest.flow()

    @property
    def notes(self) -> tuple[str, ...]:
        """What the audit says of single images."""
        return self.manifest.notes()

    @property
    def fingerprint(self) -> str:
        """Equal for equal files and labels."""
        return self.manifest.fingerprint()

    def rows(self, part: str) -> np.ndarray:
        """The shard rows of 'train', 'val', 'test' or 'all', ascending."""
        if part == "all":
            return np.arange(len(self.table))
        return np.flatnonzero((self.table["split"] == part).to_numpy())

    def summary(self) -> dict[str, object]:
        """What data.json keeps."""
        parts = {
            part: {"images": len(rows), "fractured": int(self.table["label"].iloc[rows].sum())}
            for part in ("train", "val", "test")
            if len(rows := self.rows(part))
        }
        return {
            "origin": self.origin,
            "fingerprint": self.fingerprint,
            "flow": self.flow.as_dict(),
            "notes": list(self.notes),
            "parts": parts,
            "groups": int(self.table["group"].nunique()),
            "size": self.shards.size,
            "baselines": [baseline.as_dict() for baseline in self.baselines],
        }


def cache_folder(config: DataConfig) -> Path:
    """Where prepared sets are kept: `data.cache`, else $FRACRAY_CACHE, else ~/.cache/fracray."""
    chosen = config.cache or os.environ.get("FRACRAY_CACHE") or "~/.cache/fracray"
    folder = Path(chosen).expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"data.cache: cannot use {folder}: {error}; set data.cache or FRACRAY_CACHE") from None
    return folder


def prepare(config: DataConfig, console: Console, split: bool = True) -> Prepared:
    """Prepare the data set that `config` names, showing progress; Ray must be up.

    With `split` False no part is assigned, for sets that are only evaluated as a whole.
    Raises InputError for whatever is wrong with the files, naming them.
    """
    cache = cache_folder(config)
    root = _phantom(config, cache, console) if config.source == PHANTOM else open_source(config.source, cache)
    manifest = _manifest(root, cache, console)
    manifest = assign_splits(manifest, config.split) if split else name_groups(manifest, config.split.block)
    with progress_bar(console, f"ingesting at {config.size} px") as step:
        shards = ingest(manifest, config.size, cache, step)
    table = manifest.used.reset_index(drop=True)
    seed = config.split.seed
    return Prepared(
        config=config,
        shards=shards,
        table=table,
        manifest=manifest,
        baselines=no_pixel_baselines(table, seed=seed) if split else cross_fitted_baselines(table, seed=seed),
    )


def _phantom(config: DataConfig, cache: Path, console: Console) -> Path:
    folder = cache / f"phantom-v{DRAWING}-{config.phantom.count}-{config.phantom.seed}"
    with progress_bar(console, "drawing phantoms") as step:
        return write_phantoms(folder, config.phantom, step)


def _manifest(root: Path, cache: Path, console: Console) -> Manifest:
    """The examined manifest of a folder: its own if it was imported, else from the cache where no file changed."""
    if (root / MANIFEST).is_file():
        return open_imported(root)
    path = cache / "manifests" / f"{_listing_key(root)}.parquet"
    if path.exists():
        return replace(Manifest.read(path), root=root)
    manifest = read_fracatlas(root)
    with progress_bar(console, "examining radiographs") as step:
        manifest = examine(manifest, step)
    try:
        manifest.write(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error}; free space, or choose another data.cache") from None
    return manifest


def _listing_key(root: Path) -> str:
    """Changes with the name, size or time of any file below `root`."""
    digest = hashlib.sha256(f"{AUDIT_VERSION}:{root}".encode())
    for folder, folders, files in os.walk(root):
        folders.sort()
        for name in sorted(files):
            path = os.path.join(folder, name)
            stat = os.stat(path, follow_symlinks=os.path.exists(path))  # of what a link leads to, where it leads
            digest.update(f"{folder}/{name}:{stat.st_size}:{stat.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:32]


class progress_bar:  # noqa: N801 - used as `with progress_bar(...)`, like the functions of contextlib
    """A progress bar that appears with its first step and is gone when the work is done."""

    def __init__(self, console: Console, what: str) -> None:
        self._bar = Progress(
            TextColumn(what),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(what, total=None)

    def __enter__(self) -> Callable[[int, int], None]:
        self._bar.start()
        return lambda done, total: self._bar.update(self._task, completed=done, total=total)

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()
