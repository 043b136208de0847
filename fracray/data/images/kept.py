"""Which part of a radiograph a square shows, as shards and tables keep it. Imports no reader of image files."""

from typing import NamedTuple


class Kept(NamedTuple):
    """The part of a radiograph that a square shows: its edges in pixels of the picture as displayed, its mean gray."""

    left: int
    top: int
    right: int  # the column after its last
    bottom: int
    brightness: float


KEPT = tuple(f"kept_{name}" for name in Kept._fields)  # the columns of shards and prepared tables
