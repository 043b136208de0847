"""Held-out sets: the radiographs that differ in device, view, region, hardware, severity or exposure.

Reads the manifest's columns only. Must not know of groups or parts (`assign.py` assigns those), of pixels or models.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from fracray.config import SplitConfig
from fracray.data.manifest import Box
from fracray.errors import InputError

WANTED_SHARE = 0.25  # of the images that an axis holds out when no value is named
SUBTLE_SHARE = 1 / 3  # of the fractured images with boxes: those with the smallest area
ONE_CLASS = 0.95  # prevalence of a class from which images with hardware (or without) count as all of that class
EXPOSED_SHARE = 0.10  # of the images: the darkest, and as many of the brightest


@dataclass(frozen=True)
class HeldOutSet:
    """The images that one axis holds out of training.

    mask: (n,) bool over the used images; description: such as 'lateral'. one_class: nearly all are of one class by
    definition, such as small fractures and fractures with metal, so a set of them borrows images of the other class.
    """

    axis: str
    mask: np.ndarray
    description: str
    one_class: bool = False


def hold_out(used: pd.DataFrame, config: SplitConfig, where: str) -> tuple[HeldOutSet, ...]:
    """The held-out set of each axis in `config.held_out`, in that order.

    device: every batch but the most common one. view, region: the tag whose share of the images is nearest to a
    quarter; an image with several tags is held out if one of them is. hardware: visible metal. The config may name
    another value for these. severity: a single fracture whose box is among the third with the smallest area relative to
    the picture. exposure: the darkest and the brightest tenth by mean gray.
    InputError, naming `where`, for data without such columns and for values that no image, or every image, has.
    """
    return tuple(_hold_out(used, axis, value, where) for axis, value in config.held_out)


def _hold_out(used: pd.DataFrame, axis: str, value: str | None, where: str) -> HeldOutSet:
    if axis in ("severity", "exposure"):
        if value is not None:
            raise InputError(f"{where}: the held-out set {axis} takes no value, but '{value}' is given; leave it out")
        held = _subtle(used, where) if axis == "severity" else _exposed(used, where)
    else:
        held = _tagged(used, axis, value, where)
    share = held.mask.mean()
    if share in (0.0, 1.0):
        images = "every image" if share else "no image"
        raise InputError(
            f"{where}: the held-out set {axis} ({held.description}) contains {images}; "
            "name another value or leave it out of data.split.shifts"
        )
    return held


def _tagged(used: pd.DataFrame, axis: str, value: str | None, where: str) -> HeldOutSet:
    column: dict[str, Literal["batch", "view", "region", "hardware"]] = {
        "device": "batch",
        "view": "view",
        "region": "region",
        "hardware": "hardware",
    }
    cells = used[column[axis]].map(str)
    tags = cells.str.get_dummies("+").astype(bool) if axis in ("view", "region") else pd.get_dummies(cells, dtype=bool)
    tags = tags.drop(columns="", errors="ignore")
    if len(tags.columns) < 2:
        known = f"all images are {tags.columns[0]}" if len(tags.columns) else f"no image has a {column[axis]}"
        raise InputError(f"{where}: {axis} cannot be held out: {known}; leave it out of data.split")
    # A manufacturer's name may contain a '+': the complete value is tried first.
    named = None if value is None else [value] if value in tags.columns else value.split("+")
    chosen = named or _default(tags, axis)
    for name in chosen:
        if name not in tags.columns:
            raise InputError(f"{where}: no image has {axis} '{name}'; there are {', '.join(tags.columns)}")
    description = "visible metal" if axis == "hardware" and chosen == ["1"] else " and ".join(chosen)
    mask = tags[chosen].any(axis=1).to_numpy()
    prevalence = used["label"].to_numpy()[mask].mean()
    return HeldOutSet(axis, mask, description, axis == "hardware" and max(prevalence, 1 - prevalence) > ONE_CLASS)


def _default(tags: pd.DataFrame, axis: str) -> list[str]:
    if axis == "device":
        most_common = tags.sum().idxmax()
        return [name for name in tags.columns if name != most_common]
    if axis == "hardware":
        return ["1"]
    return [str((tags.mean() - WANTED_SHARE).abs().idxmin())]


def _subtle(used: pd.DataFrame, where: str) -> HeldOutSet:
    area = np.array(
        [
            area_share(boxes, width * height) if label else np.nan
            for label, boxes, width, height in zip(
                used["label"], used["boxes"], used["boxes_width"], used["boxes_height"], strict=True
            )
        ]
    )
    if np.isnan(area).all():
        raise InputError(
            f"{where}: the held-out set severity needs fracture boxes, and this data has none; leave it out"
        )
    small = area <= np.nanquantile(area, SUBTLE_SHARE)
    single = used["boxes"].map(len).to_numpy() == 1
    return HeldOutSet("severity", small & single, "a single small fracture", one_class=True)


def area_share(boxes: Sequence[Box], picture: int) -> float:
    """The boxes' area as a share of the picture's; nan without a box."""
    return sum(width * height for _, _, width, height in boxes) / picture if len(boxes) and picture else np.nan


def _exposed(used: pd.DataFrame, where: str) -> HeldOutSet:
    brightness = used["brightness"].to_numpy(dtype=float)
    if np.isnan(brightness).any():
        raise InputError(
            f"{where}: the held-out set exposure needs the brightness of every image; prepare the data again"
        )
    low, high = np.quantile(brightness, [EXPOSED_SHARE, 1 - EXPOSED_SHARE])
    return HeldOutSet("exposure", (brightness < low) | (brightness > high), "the darkest and brightest tenth")
