"""Pictures whose grays are wrong: those that show nothing, and those that look inverted."""

from dataclasses import dataclass

import pandas as pd

from fracray.data.audit.shares import FractureShare, PictureSet, fracture_share, picture_set
from fracray.data.manifest import Manifest


@dataclass(frozen=True)
class Grays:
    """Blank pictures, and those with dark and bright exchanged against the rest of the set, with the ids of the latter.

    shown: the first of each, and why.
    """

    blank: FractureShare
    opposed: FractureShare
    opposed_ids: tuple[str, ...]
    shown: tuple[PictureSet, ...]


def find_grays(manifest: Manifest, most: int) -> Grays:
    """What the table of an examined manifest says; shows at most `most` pictures of each kind."""
    table = manifest.table
    blank, opposed = table[table["status"] == "blank"], table[table["opposed"] == 1]
    return Grays(
        blank=fracture_share("pictures that show nothing", blank["label"]),
        opposed=fracture_share("pictures that look inverted", opposed["label"]),
        opposed_ids=tuple(opposed["image_id"]),
        shown=(*_shown(blank, most, ""), *_shown(opposed, most, "dark and bright look exchanged")),
    )


def _shown(rows: pd.DataFrame, most: int, words: str) -> list[PictureSet]:
    notes = rows["note"].iloc[:most]
    return [picture_set(rows.iloc[[at]], "; ".join(filter(None, [words, note]))) for at, note in enumerate(notes)]
