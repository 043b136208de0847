"""The findings of an audit: counts, sets of pictures, shares of fractures, scores of shortcuts.

What they are, and nothing of how they are found (find.py) or judged (verdicts.py).
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

from fracray.data.audit.grays import Grays
from fracray.data.audit.shares import FractureShare, PictureSet
from fracray.data.baselines import IdLeak, Shortcut
from fracray.data.manifest import Flow
from fracray.data.patients import KnownPatients


@dataclass(frozen=True)
class SetCount:
    """Sets of two or more similar images: their number, their images in total, and the images of the largest."""

    sets: int
    images: int
    largest: int


@dataclass(frozen=True)
class Files:
    """From files found to images used. `left_out` has the ids by status, for every status but 'ok'."""

    flow: Flow
    decoded: int
    left_out: tuple[tuple[str, tuple[str, ...]], ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Formats:
    """How the decodable files are stored, displayed size in pixels. `turned` need their EXIF rotation applied."""

    sizes: tuple[FractureShare, ...]
    smallest: int
    largest: int
    modes: tuple[FractureShare, ...]
    orientations: tuple[FractureShare, ...]
    turned: tuple[str, ...]


@dataclass(frozen=True)
class Duplicates:
    """Equal bytes, equal pixels as displayed, and near duplicates; each includes those before it. Largest sets first.

    near includes truncated files and the files they were cut from.
    """

    byte: SetCount
    pixel: SetCount
    near: SetCount
    shown: tuple[PictureSet, ...]


@dataclass(frozen=True)
class Conflicts:
    """Images left out because their labels contradict each other or the evidence, together with identical images."""

    images: int
    sets: tuple[PictureSet, ...]


@dataclass(frozen=True)
class CutPictures:
    """Pictures without their lower end: truncated files, and files saved again with the lost rows filled."""

    truncated: FractureShare
    refilled: FractureShare
    refilled_rows: tuple[tuple[str, int], ...]
    shown: tuple[PictureSet, ...]


@dataclass(frozen=True)
class Breakdown:
    """Prevalence among the used images by the values of one property."""

    name: str
    values: tuple[FractureShare, ...]


@dataclass(frozen=True)
class Blocks:
    """Prevalence by file number in the series `prefix`, in blocks of `size`; all files with a label, used or not.

    run: the longest series of consecutive listed images that are all fractured, as (first id, last id, images).
    """

    prefix: str
    size: int
    values: tuple[FractureShare, ...]
    run: tuple[str, str, int]


@dataclass(frozen=True)
class Prevalence:
    """The share of fractured images: of all used ones, by property, and by file number."""

    overall: FractureShare
    breakdowns: tuple[Breakdown, ...]
    blocks: Blocks | None


@dataclass(frozen=True)
class Shortcuts:
    """Scores of no-pixel predictors on used images; `groups` are duplicates and blocks of `block` file numbers.

    guard: numbers next to another part whose images a split leaves out.
    """

    block: int
    guard: int
    groups: int
    scores: tuple[Shortcut, ...]
    leaks: tuple[IdLeak, ...]


@dataclass(frozen=True)
class Findings:
    """All findings of one audit."""

    origin: str
    fingerprint: str
    files: Files
    formats: Formats
    duplicates: Duplicates
    conflicts: Conflicts
    cut: CutPictures
    grays: Grays
    prevalence: Prevalence
    shortcuts: Shortcuts
    patients: KnownPatients

    def as_dict(self) -> dict[str, Any]:
        """For JSON: NaN (no interval, not scored) becomes None."""
        return _plain(asdict(self))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value
