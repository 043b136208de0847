"""The guard band: images whose file number is next to one of another part, and which therefore go unused.

Pictures of one patient have neighbouring file numbers, and a block of numbers ends anywhere. Knows parts and numbers:
nothing of labels, sets or pixels.
"""

import numpy as np
import pandas as pd

from fracray.config import SplitConfig
from fracray.data.file_numbers import number_files
from fracray.data.splits.groups import PERSON


def in_guard_band(used: pd.DataFrame, part: np.ndarray, config: SplitConfig) -> np.ndarray:
    """Which of the used images, (n,) bool, go unused so that no two parts are next to each other.

    used: rows as `groups.in_order` gives them; part: (n,) index of the part, the last is test; -1 in none. Afterwards
    no two images without a known patient or study whose numbers are of one series and at most `config.guard_size` apart
    are in different parts. Of two such images the one of the earlier part goes: there are most training images, and the
    test set stays whole, whatever the guard. What goes unused itself keeps nothing away. Duplicates of an image in the
    band go with it: they show the same patient.
    """
    band = np.zeros(len(used), dtype=bool)
    files = number_files(used)
    number = files["number"].to_numpy()
    numbered = (number >= 0) & (used[list(PERSON)] == "").all(axis=1).to_numpy()
    if config.protocol == "blocks":  # there a small folder takes the place of the number
        numbered &= (used["folder"] == "").to_numpy()
    component = used["component"].to_numpy()
    for later in range(part.max(), 0, -1):
        edge, earlier = numbered & ~band & (part == later), (part >= 0) & (part < later)
        near = np.zeros(len(used), dtype=bool)
        for rows in files.groupby("series").indices.values():
            kept = np.sort(number[rows[edge[rows]]])
            near[rows] = _within(number[rows], kept, config.guard_size)
        near &= numbered & earlier
        copies = np.isin(component, component[near & (component != "")])
        band |= near | (copies & earlier)
    return band


def _within(number: np.ndarray, kept: np.ndarray, distance: int) -> np.ndarray:
    """Which numbers are at most `distance` from one of `kept`, which ascends: (n,) bool."""
    first = np.searchsorted(kept, number - distance, side="left")
    return first < np.searchsorted(kept, number + distance, side="right")
