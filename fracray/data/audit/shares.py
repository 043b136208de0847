"""What the findings of an audit are made of: shares of fractures, and images that belong together."""

import math
from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class FractureShare:
    """Images with something in common, and their share of fractured ones, 0 to 1, with its 95% Wilson interval."""

    name: str
    images: int
    fractured: int
    share: float
    low: float
    high: float


@dataclass(frozen=True)
class ListedImage:
    """One image as a report shows it; `label` is 1 for fractured, `used` whether it may be trained on."""

    image_id: str
    label: int
    status: str
    used: bool


@dataclass(frozen=True)
class PictureSet:
    """Images that belong together; `words` says why."""

    images: tuple[ListedImage, ...]
    words: str


def fracture_share(name: str, labels: pd.Series) -> FractureShare:
    """The share of fractured among labels in {0, 1}; nan without a label."""
    images, fractured = len(labels), int(labels.sum())
    if not images:
        return FractureShare(name, 0, 0, math.nan, math.nan, math.nan)
    from scipy.stats import binomtest  # takes a third of a second to import

    interval = binomtest(fractured, images).proportion_ci(method="wilson")
    return FractureShare(name, images, fractured, fractured / images, float(interval.low), float(interval.high))


def shares(names: pd.Series, labels: pd.Series, most: int) -> tuple[FractureShare, ...]:
    """One share for each name, the most frequent first, those beyond `most` as 'other'."""
    counts = names.value_counts()
    order = sorted(counts.index, key=lambda name: (-counts[name], name))
    kept = order if len(order) <= most else order[: most - 1]
    found = [fracture_share(str(name), labels[names == name]) for name in kept]
    rest = ~names.isin(kept)
    return (*found, fracture_share("other", labels[rest])) if rest.any() else tuple(found)


def picture_set(rows: pd.DataFrame, words: str) -> PictureSet:
    """These rows of a manifest as images that belong together."""
    usable = (rows["status"] == "ok") & (rows["duplicate_of"] == "")
    images = zip(rows["image_id"], rows["label"].astype(int), rows["status"], usable, strict=True)
    return PictureSet(tuple(ListedImage(i, int(label), status, bool(used)) for i, label, status, used in images), words)
