"""The labels in doubt as one self-contained HTML page that a radiologist can go through.

Reads the pictures that are shown, and decides nothing. The page loads nothing from elsewhere and runs nothing. Boxes
are drawn over the pictures, so that they can be hidden.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd
from markupsafe import Markup

from fracray import __version__
from fracray.data.audit.doubtful import Doubtful
from fracray.data.images.decode import preview
from fracray.data.manifest import Box, Manifest
from fracray.runtime.page import page_environment, picture_uri

MOST_SHOWN = 100  # doubtful images, and likewise sets of the audit
MOST_TOGETHER = 4  # pictures side by side
PICTURE = 448  # px, longer side of a picture on the page
MOST_BYTES = 4_300_000  # of all pictures: with the rest, the page stays below 5 MB


@dataclass(frozen=True)
class _Picture:
    """A picture as data URI, its boxes in pixels of `width` x `height`, and its row of the list."""

    about: pd.Series
    uri: Markup | None
    width: int
    height: int
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class _Entry:
    """Pictures side by side: a doubtful one and its twins, or those that the audit holds against each other."""

    pictures: tuple[_Picture, ...]
    more: int  # that are not shown
    words: tuple[str, ...]


class _Album:
    """The pictures of a set, until they are MOST_BYTES together."""

    def __init__(self, doubtful: Doubtful, manifest: Manifest) -> None:
        self._rows = doubtful.table.set_index("image_id", drop=False)
        self._files = manifest.table.set_index("image_id")
        self._root = manifest.root
        self._bytes = 0
        self.full = False

    def entry(self, ids: Iterable[str]) -> _Entry:
        ids = list(ids)
        shown = tuple(self._picture(image_id) for image_id in ids[:MOST_TOGETHER])
        words = tuple(f"{one}: {text}" for one in ids[:MOST_TOGETHER] if (text := self._rows.loc[one, "audit"]))
        return _Entry(shown, len(ids) - len(shown), words)

    def _picture(self, image_id: str) -> _Picture:
        file = self._files.loc[image_id]
        pixels = preview(self._root / file["path"], PICTURE) if file["path"] and not self.full else None
        uri = None if pixels is None else picture_uri(pixels)
        if uri is not None and self._bytes + len(uri) > MOST_BYTES:
            self.full, uri = True, None
        self._bytes += len(uri or "")
        size = int(file["boxes_width"]), int(file["boxes_height"])
        if pixels is not None and not all(size):  # without boxes, and cut too short for the audit
            size = pixels.shape[1], pixels.shape[0]
        return _Picture(self._rows.loc[image_id], uri, *size, tuple(file["boxes"]))


def doubtful_page(doubtful: Doubtful, manifest: Manifest, origin: str, models: str) -> str:
    """The page; origin: where the radiographs come from; models: in words, what gave the probabilities."""
    album = _Album(doubtful, manifest)
    judged = doubtful.judged
    first = [album.entry((row.image_id, *row.twins)) for row in judged.head(MOST_SHOWN).itertuples()]
    sets = [tuple(ids) for ids in _sets(doubtful.found)]
    found = [album.entry(ids) for ids in sets[:MOST_SHOWN]]
    page = page_environment("fracray.data.audit").get_template("doubtful.html")
    return page.render(
        doubtful=doubtful,
        judged=judged,
        origin=origin,
        models=models,
        first=first,
        sets=len(sets),
        found=found,
        full=album.full,
        version=__version__,
        fingerprint=manifest.fingerprint(),
    )


def _sets(found: pd.DataFrame) -> list[list[str]]:
    """The images that the audit names, those of one set of pictures together, in the order of their ids."""
    sets: dict[str, list[str]] = {}
    for image_id, name in sorted(zip(found["image_id"], found["set"], strict=True)):
        sets.setdefault(name or f"\0{image_id}", []).append(image_id)
    return list(sets.values())
