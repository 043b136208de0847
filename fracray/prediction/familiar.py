"""How a picture compares with those of the training: what it was seen as, and whether its like was seen at all.

Knows the tables of checkpoints and the facts of files; no network.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from fracray.data.duplicates import LOOK_DIFFERING, KnownLooks, looks_alike, signs_in
from fracray.data.manifest import part_of

RARE = 0.005  # share of the training's radiographs that lie beyond a bound, at each end
WORDS = {"brightness": ("dark", "bright"), "side": ("small", "large"), "aspect": ("narrow", "wide")}
UNLIKE = "unlike"
NEIGHBOURS = 10  # to which the distance of a picture is taken
FAR = 0.95  # share of the validation radiographs that are nearer to the training's than a picture that is `unlike`
MOST, LEAST = 1000, 20  # validation radiographs that this limit is taken from
UNKNOWN = ""
PARTS = ("train", "val")
# What a small picture tells is a little off. On FracAtlas, at 128 px, 0.07 of the signs differ at most from those of
# the whole picture, the distance by 0.024 (0.004 in the mean; beyond 0.008 of the limit no flag changes), the
# brightness by 0.18.
FEW = 16  # textured tiles: with fewer, a share of signs says little
MAY_BE_SEEN = 0.27  # share of signs that differ from the nearest known picture; of copies up to 0.2, and 0.07 more
ROUGH_DISTANCE, ROUGH_BRIGHTNESS = 0.012, 0.5
ROUNDED = 0.001  # a share may be rounded by less


@dataclass(frozen=True)
class Familiar:
    """What a checkpoint keeps of its training: bounds by measure, and pixel hashes and looks by part.

    bounds: lowest and highest usual brightness, longer side (px) and aspect (width by height); none of older
    checkpoints, which do not keep them. far: the distance from the training beyond which a picture is `unlike`; nan
    where the checkpoint keeps too few looks. complete: whether there is a look for every hash.
    """

    bounds: Mapping[str, tuple[float, float]]
    hashes: Mapping[str, frozenset[str]]
    looks: Mapping[str, Sequence[bytes]]
    far: float = math.nan
    complete: bool = False

    @classmethod
    def of(cls, seen: pd.DataFrame | None) -> "Familiar":
        """From a checkpoint's list of its images (`read_seen`); without one nothing is known."""
        if seen is None:
            return cls({}, {}, {})
        parts = {part: seen[(part_of(seen["split"]) == part).to_numpy()] for part in PARTS}
        looks = {part: rows["look"].dropna().tolist() if "look" in rows else [] for part, rows in parts.items()}
        looks = {part: [one for one in known if one] for part, known in looks.items()}
        hashes = {part: frozenset(rows["pixel_hash"]) - {""} for part, rows in parts.items()}
        complete = all(len(looks[part]) == len(rows) for part, rows in parts.items())
        # Of an ensemble of folds all were trained on: then it is they that are judged, each by the others.
        own = not len(parts["val"])
        far = _far(looks["train"] if own else looks["val"], looks["train"], NEIGHBOURS + own)
        return cls(_bounds(parts["train"]), hashes, looks, far, complete)

    @cached_property
    def _known(self) -> KnownLooks:
        return KnownLooks([look for part in PARTS for look in self.looks.get(part, ())])

    def compared(self, signs: np.ndarray) -> tuple[float, bool]:
        """How unlike a picture is to the training's, and whether it may be one of these or of validation, or a copy.

        signs: a row of `signs_of`, also of a thumbnail that is not quite that of the whole picture. The first is the
        share of signs that differ to its 10th nearest (Sun et al. 2022, arXiv 2204.06507, of a network's features), 0
        to 1; nan where it is not known. The second is true of every picture that `seen_as` finds.
        """
        shares = self._known.differing(signs)
        unsure = not self.complete or not len(shares) or int(signs[0]).bit_count() < FEW
        sieved = bool(self.hashes) and (unsure or bool(shares.min() <= MAY_BE_SEEN))
        if math.isnan(self.far):
            return math.nan, sieved
        nearest = np.partition(shares[: len(self.looks["train"])], NEIGHBOURS - 1)
        return float(nearest[NEIGHBOURS - 1]), sieved

    def may_be_copy(self, signs: np.ndarray) -> bool:
        """Whether some known picture has signs as near to these, of the whole picture, as those of a copy are.

        Where none has, `seen_as` needs no look, whose hash takes longer than this.
        """
        return len(self._known) > 0 and bool(self._known.differing(signs).min() <= LOOK_DIFFERING + ROUNDED)

    def near_a_limit(self, brightness: float, distance: float) -> bool:
        """Whether what is read off a small picture is so near a limit that the whole one may be on its other side."""
        return abs(distance - self.far) <= ROUGH_DISTANCE or any(
            abs(brightness - bound) <= ROUGH_BRIGHTNESS for bound in self.bounds.get("brightness", ())
        )

    @property
    def unseen(self) -> str:
        """What `seen_as` says of a picture that is none of the known ones."""
        return "no" if self.hashes else UNKNOWN

    def seen_as(self, pixels: str, look: Callable[[], bytes]) -> str:
        """'train' or 'val' of a picture of equal pixels, 'train copy' or 'val copy' of one that looks alike, 'no'.

        look: gives the look of the whole picture, which only takes time where no pixels are equal. '' where the
        checkpoint does not list its images.
        """
        for part, hashes in self.hashes.items():
            if pixels in hashes:
                return part
        if not any(self.looks.values()) or not (found := look()):
            return self.unseen
        return next((f"{part} copy" for part in PARTS if looks_alike([found], self.looks[part])[0]), self.unseen)

    def flags(self, row: Mapping[str, Any], distance: float = math.nan) -> list[str]:
        """What is odd about a picture, from its facts and its distance: a word each."""
        blank = row["fault"] == "blank"
        holds = {"blank": blank, "refilled": row["refilled"] > 0, "header": row["note"] and not blank}
        values = _measures(row["brightness"], row["width"], row["height"])
        for name, (low, high) in self.bounds.items():
            holds |= {WORDS[name][0]: values[name] < low, WORDS[name][1]: values[name] > high}
        holds[UNLIKE] = distance > self.far  # of nan, false
        return [word for word, held in holds.items() if held]


def _far(judged: Sequence[bytes], train: Sequence[bytes], neighbours: int) -> float:
    """The share FAR of the distances of those judged to the nearest of the training's, the `neighbours`-th of each."""
    if len(judged) < LEAST or len(train) < neighbours:
        return math.nan
    some = [judged[at] for at in np.linspace(0, len(judged) - 1, min(len(judged), MOST)).astype(int)]
    known = KnownLooks(train)
    nearest = [np.partition(known.differing(signs), neighbours - 1)[neighbours - 1] for signs in signs_in(some)]
    return float(np.quantile(nearest, FAR, method="higher"))


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
