"""The scores of a checkpoint by region, view, hardware, device, age, sex and the size of the fracture.

A score over all radiographs hides those on which the model fails. Must not know of the command line.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from fracray.data.splits.held_out import area_share
from fracray.errors import InputError
from fracray.evaluation.scoring import Scored
from fracray.metrics import Interval

FEWEST = 10  # of either class; a score of fewer says next to nothing, and may point at a patient
BANDS = (18, 40, 65)  # years: ages are those below the first, from one to the next, and from the last on
SIZES = (0.004, 0.01)  # of the picture; of the fractures of FracAtlas, 34%, 42% and 24% are small, medium, large
UNKNOWN = "unknown"
SHOWN = (
    *("auroc", "sensitivity", "specificity", "balanced_accuracy"),
    *("ece", "calibration_slope", "calibration_intercept"),
)
OF_A_SIZE = ("auroc", "sensitivity")  # negatives have no size


@dataclass(frozen=True)
class Subgroup:
    """The radiographs with one tag, and their scores by name; none where there are fewer than FEWEST of a class.

    positives, negatives: what the scores are of; of a size of fracture, the negatives are all there are.
    """

    axis: str
    name: str
    positives: int
    negatives: int
    groups: int
    scores: dict[str, Interval]
    suppressed: str = ""  # why there are no scores

    def as_dict(self) -> dict[str, Any]:
        """By name, as JSON values."""
        counts = {"axis": self.axis, "name": self.name, "images": self.positives + self.negatives}
        counts |= {"positives": self.positives, "negatives": self.negatives, "groups": self.groups}
        scores = {name: interval.as_dict() for name, interval in self.scores.items()}
        return counts | {"suppressed": self.suppressed, "scores": scores}


def _tags(table: pd.DataFrame, column: str) -> dict[str, np.ndarray]:
    """Which rows have each tag; a row may have several."""
    tags = [set(str(cell).split("+")) - {""} or {UNKNOWN} for cell in table[column]]
    count = pd.Series([tag for some in tags for tag in some]).value_counts()
    return {str(tag): np.array([tag in some for some in tags]) for tag in count.index}


def _values(table: pd.DataFrame, column: str) -> dict[str, np.ndarray]:
    cells = table[column].map(str).replace("", UNKNOWN)
    return {str(value): (cells == value).to_numpy() for value in cells.value_counts().index}


def _flags(table: pd.DataFrame, column: str) -> dict[str, np.ndarray]:
    flagged = table[column].to_numpy() == 1
    return {"no": ~flagged, "yes": flagged}


def _ages(table: pd.DataFrame, column: str) -> dict[str, np.ndarray]:
    age = table[column].to_numpy(dtype=float)
    names = [f"under {BANDS[0]}", *(f"{a} to {b - 1}" for a, b in pairwise(BANDS))]
    names.append(f"{BANDS[-1]} and over")
    band = np.searchsorted(BANDS, age, side="right")
    known = ~np.isnan(age)
    return {name: known & (band == at) for at, name in enumerate(names)} | {UNKNOWN: ~known}


def sizes_of_fractures(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Which rows (n,) of a prepared table are fractured, by the area of their boxes as a share of the picture."""
    area = np.array(
        [
            area_share(boxes, width * height) if label else np.nan
            for label, boxes, width, height in zip(
                table["label"], table["boxes"], table["boxes_width"], table["boxes_height"], strict=True
            )
        ]
    )
    low, high = SIZES
    known, fractured = ~np.isnan(area), table["label"].to_numpy() == 1
    return {
        f"below {low:.1%}": known & (area < low),
        f"{low:.1%} to {high:.1%}": known & (area >= low) & (area < high),
        f"{high:.1%} and more": known & (area >= high),
        "no box": fractured & ~known,
    }


Divide = Callable[[pd.DataFrame, str], dict[str, np.ndarray]]
AXES: dict[str, tuple[str, Divide]] = {
    "region": ("region", _tags),
    "view": ("view", _tags),
    "hardware": ("hardware", _flags),
    "multiscan": ("multiscan", _flags),
    "device": ("batch", _values),
    "age": ("age", _ages),
    "sex": ("sex", _values),
    "box": ("boxes", lambda table, _: sizes_of_fractures(table)),
}


def check_axes(table: pd.DataFrame, axes: Sequence[str], where: str) -> None:
    """InputError, naming `where`, for an axis of which nothing is known in this prepared table."""
    for axis in axes:
        if axis not in (known := [name for name in AXES if _known(table, name)]):
            raise InputError(
                f"--by {axis}: it is not known of any radiograph of {where}; known are "
                f"{', '.join(known) or 'none of these'}"
            )


def _known(table: pd.DataFrame, axis: str) -> bool:
    parts = divide(table, axis)
    return any(inside.any() for name, inside in parts.items() if name not in (UNKNOWN, "no box"))


def divide(table: pd.DataFrame, axis: str) -> dict[str, np.ndarray]:
    """The rows (n,) bool of each subgroup of an axis by its name, also of empty ones; of a tag, the frequent first."""
    column, found = AXES[axis]
    return found(table, column)


def score_subgroups(scored: Scored, axes: Sequence[str]) -> list[Subgroup]:
    """The subgroups of each axis of AXES in turn, those without a radiograph left out.

    Threshold and calibration are those of all radiographs. Region and view are tags: a radiograph counts in each of
    its own. 'box' is the size of the fracture: sensitivity, and the AUROC against all negatives.
    """
    table = scored.prepared.table.iloc[scored.rows]
    return [
        _subgroup(scored, axis, name, inside)
        for axis in axes
        for name, inside in divide(table, axis).items()
        if inside.any()
    ]


def _subgroup(scored: Scored, axis: str, name: str, inside: np.ndarray) -> Subgroup:
    of_a_size = axis == "box"
    mine = scored.only(inside | (scored.labels == 0)) if of_a_size else scored.only(inside)
    positives = int(mine.labels.sum())
    negatives = len(mine.labels) - positives
    groups = len(set(scored.groups[inside]))
    counts = {"fractured": positives, "not fractured": negatives}
    few = [f"{count} {word}" for word, count in counts.items() if count < FEWEST]
    if few:
        why = f"only {' and '.join(few)}: fewer than {FEWEST}"
        return Subgroup(axis, name, positives, negatives, groups, {}, why)
    found = mine.intervals()
    names = OF_A_SIZE if of_a_size else SHOWN
    return Subgroup(axis, name, positives, negatives, groups, {key: found[key] for key in names})
