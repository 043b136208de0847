"""Whether a checkpoint looks at the fracture: peaks and energy of its maps in the boxes, and the sanity check.

Beside a map stand pointers that see no pixel: a cell of the picture at random, its middle, and the place where the
fractures of the training part most often are. Must not know of the command line.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import nan
from typing import Any, Protocol

import numpy as np
from rich.console import Console
from scipy.stats import rankdata

from fracray.data.loading.boxes import Boxes
from fracray.errors import InputError
from fracray.evaluation.inference import over_rows
from fracray.evaluation.localisation import (
    mean_interval,
    peak_hits,
    picture_cells,
    points,
    touched_cells,
    usual_places,
    usual_words,
)
from fracray.evaluation.maps import Method, maps, methods, over_images, randomised
from fracray.evaluation.scoring import Scored
from fracray.evaluation.subgroups import FEWEST, sizes_of_fractures
from fracray.metrics import GroupJackknife, Interval
from fracray.training.checkpoint import Checkpoint
from fracray.training.loop import pick_device

CENTRE_SPREAD = 0.25  # of the centre prior: its standard deviation, as a share of the picture's sides
SANITY_IMAGES = 100  # whose maps are compared before and after weights are randomised
SANITY_DRAWS = 3  # of the weights, averaged


@dataclass(frozen=True)
class Pointer:
    """Shares of radiographs whose highest cell touches a box (hit), and of the map's sum inside the boxes (energy)."""

    hit: Interval
    energy: Interval

    def as_dict(self) -> dict[str, Any]:
        """By name, as JSON values."""
        return {"hit": self.hit.as_dict(), "energy": self.energy.as_dict()}


@dataclass(frozen=True)
class Looked:
    """A map and the pointers without pixels on some of the fractured radiographs with boxes.

    pointers: by name ('map', 'random', 'centre', 'usual'), none where there are fewer than FEWEST images; hit_gain,
    energy_gain: the map's less those of the usual place, with the interval of the difference.
    """

    name: str
    images: int
    pointers: dict[str, Pointer]
    hit_gain: Interval
    energy_gain: Interval

    def as_dict(self) -> dict[str, Any]:
        """By name, as JSON values."""
        return {
            "name": self.name,
            "images": self.images,
            "pointers": {name: pointer.as_dict() for name, pointer in self.pointers.items()},
            "hit_gain": self.hit_gain.as_dict(),
            "energy_gain": self.energy_gain.as_dict(),
        }


@dataclass(frozen=True)
class Sanity:
    """Rank correlations of a radiograph's map with those of the same network with random weights, from the head down.

    images: how many radiographs, those whose map points somewhere; empty: the others, whose map is the same everywhere
    and could be alike to nothing; levels: by what is random; others: the correlation of the maps of two radiographs,
    which a map has that does not depend on the image. Without images there are no levels.
    """

    images: int
    empty: int
    levels: dict[str, Interval]
    others: Interval

    def as_dict(self) -> dict[str, Any]:
        """By name, as JSON values."""
        levels = [{"random": name, "similarity": found.as_dict()} for name, found in self.levels.items()]
        counts = {"images": self.images, "empty": self.empty}
        return counts | {"levels": levels, "of_two_radiographs": self.others.as_dict()}


@dataclass(frozen=True)
class Saliency:
    """One kind of map: the side of it in cells, what it finds by subset ('all' first; () without boxes), its check."""

    method: Method
    cells: int
    looked: tuple[Looked, ...]
    sanity: Sanity
    usual_place: str = ""  # in words, where the pointer 'usual' points

    def as_dict(self) -> dict[str, Any]:
        """A tree of JSON values."""
        looked = [one.as_dict() for one in self.looked]
        about = {"method": self.method, "cells": self.cells, "usual_place": self.usual_place}
        return about | {"looked": looked, "sanity": self.sanity.as_dict()}


class OverRows(Protocol):
    """What a function makes of the squares (B, S, S) uint8 of these rows, in their order, as `inference.over_rows`."""

    def __call__(self, run: Callable[[np.ndarray], np.ndarray], rows: np.ndarray, words: str) -> np.ndarray: ...


@dataclass(frozen=True)
class Check:
    """How thorough the sanity check is: on how many radiographs, and over how many draws of the weights."""

    images: int = SANITY_IMAGES
    draws: int = SANITY_DRAWS
    seed: int = 0


def score_saliency(checkpoint: Checkpoint, scored: Scored, check: Check, console: Console) -> tuple[Saliency, ...]:
    """Each map of the checkpoint on the scored radiographs. InputError for a network that has no map."""
    found = methods(checkpoint.model)
    if not found:
        name = checkpoint.metadata.config.model.name
        raise InputError(f"--saliency: {name} has neither a localiser nor feature maps for Grad-CAM; leave it out")

    def over(run: Callable[[np.ndarray], np.ndarray], rows: np.ndarray, words: str) -> np.ndarray:
        return over_rows(run, scored.prepared.shards, rows, words, console)

    return look_over(checkpoint, found, scored, over, check, console)


def look_over(
    checkpoint: Checkpoint,
    kinds: Sequence[Method],
    scored: Scored,
    over: OverRows,
    check: Check,
    console: Console,
) -> tuple[Saliency, ...]:
    """These maps of the checkpoint on the scored radiographs, whose squares `over` reads."""
    model = checkpoint.model.to(pick_device())
    prepared, result = scored.prepared, []
    boxes = Boxes.of_table(prepared.table, prepared.shards.size)
    boxed = np.zeros(len(scored.rows), dtype=bool)
    if boxes is not None:
        boxed = (scored.labels == 1) & (boxes.first[scored.rows + 1] > boxes.first[scored.rows])
    for method in kinds:
        looked: tuple[Looked, ...] = ()
        if boxes is not None and boxed.any():
            rows = scored.rows[boxed]
            look = partial(over_images, look=partial(maps, model, method))
            shown = over(look, rows, "looking where")
            looked = tuple(look_at(shown, boxes, scored.only(boxed)))
        sanity, cells = _sanity(checkpoint, scored, method, over, check, console)
        result.append(Saliency(method, cells, looked, sanity, "" if boxes is None else usual_words(prepared, boxes)))
    return tuple(result)


# ---- peaks and energy ----------------------------------------------------------------------------------------------


def look_at(shown: np.ndarray, boxes: Boxes, scored: Scored) -> Iterator[Looked]:
    """The maps (n, cells, cells), 0 or above, of fractured radiographs with boxes: all, by call, and by box size."""
    prepared, size, cells = scored.prepared, scored.prepared.shards.size, shown.shape[-1]
    touched = np.stack([touched_cells(boxes, row, size, cells) for row in scored.rows])
    shares = np.stack([box_shares(boxes, row, size, cells) for row in scored.rows])
    picture = np.stack([picture_cells(prepared, row, cells) for row in scored.rows]).astype(float)
    random = picture / picture.sum((1, 2), keepdims=True)
    usual = np.broadcast_to(usual_places(prepared, boxes, cells), shown.shape)
    priors = {"map": shown, "centre": np.stack([_centre(one) for one in picture]), "usual": usual}
    values = {name: (peak_hits(prior, touched), _energy(prior, shares)) for name, prior in priors.items()}
    values["map"] = (values["map"][0] * points(shown), values["map"][1])
    # A cell of the picture at random hits as often as cells are touched.
    values["random"] = ((random * touched).sum((1, 2)), _energy(random, shares))
    called = scored.probabilities >= scored.thresholds
    sizes = sizes_of_fractures(prepared.table.iloc[scored.rows])
    everything = np.ones(len(scored.rows), dtype=bool)
    subsets = {"all": everything, "called fractured": called, "missed": ~called}
    subsets |= {f"box {name}": inside for name, inside in sizes.items()}
    for name, inside in subsets.items():
        if inside.any():
            yield _looked(name, values, inside, scored.groups)


def _looked(
    name: str, values: Mapping[str, tuple[np.ndarray, np.ndarray]], inside: np.ndarray, groups: np.ndarray
) -> Looked:
    count, unknown = int(inside.sum()), Interval(nan, nan, nan)
    if count < FEWEST:
        return Looked(name, count, {}, unknown, unknown)
    jackknife = GroupJackknife(np.ones(count), groups[inside])
    order = ("map", "random", "centre", "usual")
    pointers = {which: Pointer(*(mean_interval(jackknife, each[inside]) for each in values[which])) for which in order}
    gains = (
        mean_interval(jackknife, (ours - usual)[inside], "number")
        for ours, usual in zip(values["map"], values["usual"], strict=True)
    )
    return Looked(name, count, pointers, *gains)


def _energy(found: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """The share of each map's sum that lies in the boxes; 0.0 for an empty map (Wang et al. 2020, Score-CAM)."""
    with np.errstate(invalid="ignore"):
        return np.nan_to_num((found * shares).sum((1, 2)) / found.sum((1, 2)))


def box_shares(boxes: Boxes, row: int, size: int, cells: int) -> np.ndarray:
    """(cells, cells) in 0..1: the share of each cell that lies in a box of this row; overlaps count once at most."""
    side = size / cells
    first = np.arange(cells) * side
    shares = np.zeros((cells, cells))
    for left, top, right, bottom in boxes.of(row):
        down, across = (
            np.clip(np.minimum(first + side, high) - np.maximum(first, low), 0, None) / side
            for low, high in ((top, bottom), (left, right))
        )
        shares += np.outer(down, across)
    return np.minimum(shares, 1.0)


def _centre(picture: np.ndarray) -> np.ndarray:
    """A normal distribution in the middle of the picture, whose cells are given as (cells, cells)."""
    weights = []
    for axis in (1, 0):
        inside = np.flatnonzero(picture.any(axis=axis))
        middle, side = (inside[0] + inside[-1]) / 2, inside[-1] - inside[0] + 1
        weights.append(np.exp(-0.5 * ((np.arange(len(picture)) - middle) / (CENTRE_SPREAD * side)) ** 2))
    return np.outer(*weights) * picture


# ---- the sanity check ----------------------------------------------------------------------------------------------


def _sanity(
    checkpoint: Checkpoint, scored: Scored, method: Method, over: OverRows, check: Check, console: Console
) -> tuple[Sanity, int]:
    """The check on some of the scored radiographs, and the side of the map in cells."""
    prepared = scored.prepared
    kept = spread(len(scored.rows), check.images)
    rows = scored.rows[kept]
    device, images = pick_device(), over(lambda batch: batch, rows, "reading")

    def of(model: Any) -> np.ndarray:
        return over_images(images, partial(maps, model, method))

    trained = of(checkpoint.model.to(device))
    cells, pointing = trained.shape[-1], points(trained)
    rows, images, trained, groups = (each[pointing] for each in (rows, images, trained, scored.groups[kept]))
    empty = int((~pointing).sum())
    if not len(rows):
        return Sanity(0, empty, {}, Interval(nan, nan, nan)), cells
    inside = np.stack([picture_cells(prepared, row, cells) for row in rows])
    drawn: dict[str, list[np.ndarray]] = {}
    with console.status("checking the maps") as status:
        for draw in range(check.draws):
            for name, model in randomised(checkpoint.model.cpu(), check.seed + draw):
                status.update(f"checking the maps with random weights, draw {draw + 1} of {check.draws}: {name}")
                drawn.setdefault(name, []).append(similarity(trained, of(model.to(device)), inside))
    checkpoint.model.to(device)
    jackknife = GroupJackknife(np.ones(len(rows)), groups)
    levels = {name: mean_interval(jackknife, np.mean(found, axis=0), "number") for name, found in drawn.items()}
    # The next radiograph of another group, as those of a group may show the same bone.
    other = np.array([_elsewhere(groups, at) for at in range(len(rows))])
    both = inside & inside[other]
    others = mean_interval(jackknife, similarity(trained, trained[other], both), "number")
    return Sanity(len(rows), empty, levels, others), cells


def spread(count: int, most: int) -> np.ndarray:
    """At most `most` of the places 0 to count - 1, ascending, at equal distances."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.intp))


def _elsewhere(groups: np.ndarray, at: int) -> int:
    """The place of the next image, around the end, that is of another group; `at` itself if there is none."""
    turned = np.roll(groups != groups[at], -at)
    return int((at + turned.argmax()) % len(groups))


def similarity(one: Sequence[np.ndarray] | np.ndarray, two: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Spearman's rank correlations (n,) of maps (n, h, w) over the cells where `inside` holds.

    0 where a map is the same everywhere: then it says nothing that could be alike.
    """
    found = np.zeros(len(one))
    for at, (a, b, cells) in enumerate(zip(one, two, inside, strict=True)):
        ranks = np.stack([rankdata(a[cells]), rankdata(b[cells])])
        if cells.sum() > 1 and (ranks.std(1) > 0).all():
            found[at] = np.corrcoef(ranks)[0, 1]
    return found
