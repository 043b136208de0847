"""How a picture compares with those of the training: what it was seen as, and whether its like was seen at all.

Knows the tables of checkpoints and the facts of files; no network.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from fracray.data.duplicates import look_distances, looks_alike
from fracray.data.manifest import part_of

RARE = 0.005  # share of the training's radiographs that lie beyond a bound, at each end
WORDS = {"brightness": ("dark", "bright"), "side": ("small", "large"), "aspect": ("narrow", "wide")}
UNLIKE = "unlike"
NEIGHBOURS = 10  # to which the distance of a picture is taken
FAR = 0.95  # share of the validation radiographs that are nearer to the training's than a picture that is `unlike`
MOST, LEAST = 1000, 20  # validation radiographs that this limit is taken from
UNKNOWN = ""


@dataclass(frozen=True)
class Familiar:
    """What a checkpoint keeps of its training: bounds by measure, and pixel hashes and looks by part.

    bounds: lowest and highest usual brightness, longer side (px) and aspect (width by height); none of older
    checkpoints, which do not keep them. far: the distance (see `look_distances`) from the training beyond which a
    picture is `unlike`; nan where the checkpoint keeps too few looks.
    """

    bounds: Mapping[str, tuple[float, float]]
    hashes: Mapping[str, frozenset[str]]
    looks: Mapping[str, Sequence[bytes]]
    far: float = math.nan

    @classmethod
    def of(cls, seen: pd.DataFrame | None) -> "Familiar":
        """From a checkpoint's list of its images (`read_seen`); without one nothing is known."""
        if seen is None:
            return cls({}, {}, {})
        parts = {part: seen[(part_of(seen["split"]) == part).to_numpy()] for part in ("train", "val")}
        looks = {part: rows["look"].dropna().tolist() if "look" in rows else [] for part, rows in parts.items()}
        hashes = {part: frozenset(rows["pixel_hash"]) - {""} for part, rows in parts.items()}
        return cls(_bounds(parts["train"]), hashes, looks, _far(looks["val"], looks["train"]))

    def distances(self, looks: Sequence[bytes]) -> np.ndarray:
        """How unlike each picture is to the training's, (n,) float32, 0 to 1; nan where it is not known."""
        if math.isnan(self.far):
            return np.full(len(looks), np.nan, dtype=np.float32)
        return look_distances(looks, self.looks["train"], NEIGHBOURS)

    def seen_as(self, pixel_hashes: Sequence[str], looks: Sequence[bytes]) -> list[str]:
        """For each picture 'train' or 'val' of equal pixels, 'train copy' or 'val copy' of one that looks alike, 'no'.

        '' where the checkpoint does not list its images.
        """
        if not self.hashes:
            return [UNKNOWN] * len(pixel_hashes)
        alike = {part: looks_alike(looks, known) for part, known in self.looks.items()}
        found = []
        for at, pixels in enumerate(pixel_hashes):
            same = [part for part, known in self.hashes.items() if pixels in known]
            near = [f"{part} copy" for part, known in alike.items() if known[at]]
            found.append([*same, *near, "no"][0])
        return found

    def flags(self, row: Mapping[str, Any], distance: float = math.nan) -> list[str]:
        """What is odd about a picture, from its facts and its distance: a word each."""
        blank = row["fault"] == "blank"
        holds = {"blank": blank, "refilled": row["refilled"] > 0, "header": row["note"] and not blank}
        for name, (low, high) in self.bounds.items():
            value = _measures(row["brightness"], row["width"], row["height"])[name]
            holds |= {WORDS[name][0]: value < low, WORDS[name][1]: value > high}
        holds[UNLIKE] = distance > self.far  # of nan, false
        return [word for word, held in holds.items() if held]


def _far(val: Sequence[bytes], train: Sequence[bytes]) -> float:
    known = [look for look in val if look]
    if len(known) < LEAST:
        return math.nan
    some = [known[at] for at in np.linspace(0, len(known) - 1, min(len(known), MOST)).astype(int)]
    return float(np.quantile(look_distances(some, train, NEIGHBOURS), FAR, method="higher"))


def _measures(brightness: Any, width: Any, height: Any) -> dict[str, Any]:
    brightness = np.asarray(brightness, dtype=np.float32)  # as the checkpoint keeps it
    return {"brightness": brightness, "side": np.maximum(width, height), "aspect": width / height}


def _bounds(train: pd.DataFrame) -> dict[str, tuple[float, float]]:
    columns = ["brightness", "width", "height"]
    if not set(columns) <= set(train):
        return {}
    known = train[columns].dropna()
    known = known[(known[["width", "height"]] > 0).all(axis=1)]
    if known.empty:
        return {}
    measures = _measures(*(known[name].to_numpy(dtype=np.float64) for name in columns))
    return {
        name: (
            float(np.quantile(values, RARE, method="lower")),
            float(np.quantile(values, 1 - RARE, method="higher")),
        )
        for name, values in measures.items()
    }
