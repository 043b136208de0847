"""Whether the map of a checkpoint points at the fracture: its highest cell beside the boxes of the radiographs.

Beside the hits stand those of two pointers that see no pixel: a cell of the picture at random, and the place where the
fractures of the training part most often are. Must not know of the command line.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.console import Console

from fracray.data.images.letterbox import frame
from fracray.data.loading.boxes import Boxes
from fracray.data.loading.kept import shown
from fracray.data.prepare import Prepared
from fracray.evaluation.inference import predict_maps
from fracray.metrics import GroupJackknife, Interval, Scale
from fracray.training.checkpoint import Checkpoint


@dataclass(frozen=True)
class Localisation:
    """Shares of fractured radiographs with boxes whose pointed cell touches a box, with 95% intervals over groups.

    images: how many there are; cells: of a side of the map; usual_place: in words, where the third pointer points.
    """

    images: int
    cells: int
    hit: Interval
    random: Interval
    usual: Interval
    usual_place: str

    def as_dict(self) -> dict[str, Any]:
        """By name, as JSON values."""
        shares = {name: getattr(self, name).as_dict() for name in ("hit", "random", "usual")}
        return asdict(self) | shares


def score_localisation(
    checkpoint: Checkpoint, prepared: Prepared, rows: np.ndarray, console: Console
) -> Localisation | None:
    """How often the map points at a fracture on these rows; None without a map, or without boxes on these rows."""
    boxes = Boxes.of_table(prepared.table, prepared.shards.size)
    labels = prepared.table["label"].to_numpy()
    if not checkpoint.model.localises or boxes is None:
        return None
    boxed = rows[(labels[rows] == 1) & (boxes.first[rows + 1] > boxes.first[rows])]
    if not len(boxed):
        return None
    maps = predict_maps(checkpoint, prepared.shards, boxed, console)
    cells = maps.shape[-1]
    touched = np.stack([touched_cells(boxes, row, prepared.shards.size, cells) for row in boxed])
    in_picture = np.stack([picture_cells(prepared, row, cells) for row in boxed])
    hits = peak_hits(maps, touched) * points(maps)
    random = (touched & in_picture).sum((1, 2)) / in_picture.sum((1, 2))
    jackknife = GroupJackknife(np.ones(len(boxed)), prepared.table["group"].to_numpy()[boxed])
    at_usual = peak_hits(np.broadcast_to(usual_places(prepared, boxes, cells), maps.shape), touched)
    hit, by_chance, at_place = (mean_interval(jackknife, values) for values in (hits, random, at_usual))
    return Localisation(len(boxed), cells, hit, by_chance, at_place, usual_words(prepared, boxes))


def touched_cells(boxes: Boxes, row: int, size: int, cells: int) -> np.ndarray:
    """(cells, cells) bool: the cells that a box of this row touches."""
    side = size / cells
    first = np.arange(cells) * side
    touched = np.zeros((cells, cells), dtype=bool)
    for left, top, right, bottom in boxes.of(row):
        down, across = ((first < high) & (first + side > low) for low, high in ((top, bottom), (left, right)))
        touched |= np.outer(down, across)
    return touched


def picture_cells(prepared: Prepared, row: int, cells: int) -> np.ndarray:
    """(cells, cells) bool: the cells whose centre lies in the picture, and not in the black beside it."""
    size = prepared.shards.size
    width, height = shown(prepared.table.iloc[[row]])[["width", "height"]].to_numpy(dtype=int)[0]
    centres = (np.arange(cells) + 0.5) * size / cells
    inside_of = []
    for part in frame(width, height, size):
        inside = (centres >= part.start) & (centres < part.stop)
        inside[np.abs(centres - (part.start + part.stop) / 2).argmin()] = True  # also of a picture thinner than a cell
        inside_of.append(inside)
    return np.outer(*inside_of)


def peak_hits(found: np.ndarray, touched: np.ndarray) -> np.ndarray:
    """(n,) 1.0 where the highest cell of a map (n, cells, cells) is touched; of several highest ones, the share."""
    peaks = found == found.max((1, 2), keepdims=True)
    return (peaks & touched).sum((1, 2)) / peaks.sum((1, 2))


def points(found: np.ndarray) -> np.ndarray:
    """(n,) bool: whether a map (n, cells, cells) points anywhere; one that is the same everywhere does not."""
    return found.max((1, 2)) > found.min((1, 2))


def usual_places(prepared: Prepared, boxes: Boxes, cells: int) -> np.ndarray:
    """(cells, cells): in how many radiographs of the training part a box touches a cell.

    Without any, the middle: 1 at its one cell, or at the four around it.
    """
    train = _boxed_of_training(prepared, boxes)
    if len(train):
        return np.sum([touched_cells(boxes, row, prepared.shards.size, cells) for row in train], axis=0).astype(float)
    middle = np.abs(np.arange(cells) - (cells - 1) / 2) < 1
    return np.outer(middle, middle).astype(float)


def usual_words(prepared: Prepared, boxes: Boxes) -> str:
    """What the pointer of `usual_places` points at."""
    known = len(_boxed_of_training(prepared, boxes))
    return "the most frequent place of the training part" if known else "the middle of the image"


def _boxed_of_training(prepared: Prepared, boxes: Boxes) -> np.ndarray:
    train = prepared.rows("train") if "train" in prepared.sets else np.empty(0, dtype=np.int64)
    return train[boxes.first[train + 1] > boxes.first[train]]


def mean_interval(jackknife: GroupJackknife, values: np.ndarray, scale: Scale = "share") -> Interval:
    """The mean of values, (n,), with its 95% interval over the groups of these images."""
    with np.errstate(invalid="ignore"):  # with a single group, nothing is left without it
        left_out = jackknife.values(lambda weights: {"": weights @ values / weights.sum(1)})[""]
    return jackknife.interval(float(values.mean()), left_out, "all", scale)
