"""Decoded pictures to rows of the output, with a checkpoint. The second half of a prediction.

Must not open a radiograph, and knows nothing of how the work is spread over processes.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import pyarrow as pa
import torch

from fracray.data.images.kept import KEPT, Kept
from fracray.data.images.letterbox import frame
from fracray.data.manifest import in_set
from fracray.evaluation.inference import BATCH, looking_network
from fracray.evaluation.maps import glowing, maps, methods, over_square, stretched
from fracray.metrics import ConformalSets, fit_conformal
from fracray.prediction.reading import Batch
from fracray.training.checkpoint import METADATA, Checkpoint
from fracray.training.loop import pick_device

HASH_DIGITS = 16
COLUMNS = pa.schema(
    [
        ("path", pa.string()),
        ("image_id", pa.string()),
        ("sop_instance_uid", pa.string()),
        ("study_instance_uid", pa.string()),
        ("logit", pa.float32()),
        ("probability", pa.float64()),
        ("threshold", pa.float64()),
        ("call", pa.int8()),
        ("operating_point", pa.string()),
        ("conformal", pa.string()),
        ("flags", pa.string()),
        ("distance", pa.float32()),
        ("seen_in_training", pa.string()),
        ("peak_x", pa.float32()),
        ("peak_y", pa.float32()),
        ("checkpoint", pa.string()),
        ("error", pa.string()),
    ]
)
SHOWN = 512  # px, the longer side of an overlay
PLACE, HEATMAP, MAP, PART, DICOM_OUT = "place", "heatmap", "map", "part", "dicom_out"
DICOM_WRITTEN = "written"  # in DICOM_OUT; else why there are no results
# Of one step of the work, null unless asked: the overlay as PNG, the map of the square, and the part of the picture
# that the square shows (left, top, right, bottom).
_PICTURES = {HEATMAP: pa.binary(), MAP: pa.list_(pa.list_(pa.float32())), PART: pa.list_(pa.int32())}
# Of each row its place in the list of inputs, and at last what became of its DICOM results.
SCORED = pa.schema([(PLACE, pa.int64()), *COLUMNS, *_PICTURES.items(), (DICOM_OUT, pa.string())])


@dataclass(frozen=True)
class Asked:
    """What of a prediction the user chose: the coverage of the conformal sets, overlays, DICOM results."""

    coverage: float = 0.9
    heatmaps: bool = False
    dicom: bool = False

    @property
    def pictures(self) -> bool:
        """Whether overlays are drawn."""
        return self.heatmaps or self.dicom


def slim(rows: pa.Table) -> pa.Table:
    """Rows of SCORED without their pictures, to be kept."""
    for name in _PICTURES:
        at = rows.schema.get_field_index(name)
        rows = rows.set_column(at, SCORED.field(name), pa.nulls(len(rows), SCORED.field(name).type))
    return rows


def hash_of(folder: Path) -> str:
    """What identifies a checkpoint folder: of its config.json, which holds the hashes of its other files."""
    return hashlib.sha256((folder / METADATA).read_bytes()).hexdigest()[:HASH_DIGITS]


def conformal_of(checkpoint: Checkpoint, coverage: float) -> ConformalSets | None:
    """The conformal limits from the validation logits that a checkpoint keeps; None where it keeps none."""
    if checkpoint.predictions is None:
        return None
    kept = checkpoint.predictions[in_set(checkpoint.predictions["split"], "val")]
    return fit_conformal(kept["label"], kept["logit"], kept["group"], coverage)


class Draw(Protocol):
    """A map (h, w), 0 or above, of a square as PNG, or what stands for none.

    kept, sides: the part of the picture that the square shows, and the picture's width and height; shown: the square
    of the same part that the decoder was asked for.
    """

    def __call__(
        self, found: np.ndarray | None, kept: Kept, sides: tuple[int, int], shown: np.ndarray
    ) -> bytes | None: ...


class Scorer:
    """Batches of `Decoder` to tables of SCORED, by one checkpoint on this process' device.

    draw: what is made of the maps, where pictures are asked for.
    """

    def __init__(self, checkpoint: Checkpoint, asked: Asked, draw: Draw | None = None) -> None:
        self._metadata, self._model = checkpoint.metadata, checkpoint.model
        self._hash = hash_of(checkpoint.folder)
        self._run = looking_network(checkpoint)
        self._conformal = conformal_of(checkpoint, asked.coverage)
        found = methods(checkpoint.model)
        self._overlay = found[0] if asked.pictures and found else None
        self._asked, self._draw = asked, draw or overlay

    def __call__(self, batch: Batch) -> pa.Table:
        sound = np.flatnonzero(batch["error"] == "")
        cells: dict[str, list[Any]] = {name: [None] * len(batch["error"]) for name in SCORED.names}
        cells |= {name: batch[name].tolist() for name in (PLACE, "path", "image_id", "error")}
        cells |= {name: [uid or None for uid in batch[name]] for name in ("sop_instance_uid", "study_instance_uid")}
        cells["checkpoint"] = [self._hash] * len(batch["error"])
        for start in range(0, len(sound), BATCH):
            self._fill(cells, batch, sound[start : start + BATCH])
        return pa.table([pa.array(cells[field.name], field.type) for field in SCORED], schema=SCORED)

    def _fill(self, cells: dict[str, list[Any]], batch: Batch, sound: np.ndarray) -> None:
        """Write what the network says of these pictures into their cells."""
        squares = np.ascontiguousarray(batch["square"][sound])
        logits, where = self._run(squares)
        probabilities = self._metadata.calibration.apply(logits)
        overlays = self._overlays(squares, where)
        for number, at in enumerate(sound.tolist()):
            logit, probability, distance = float(logits[number]), float(probabilities[number]), batch["distance"][at]
            if not math.isfinite(logit):
                cells["error"][at] = "the network gives no finite logit"
                continue
            found: dict[str, Any] = {
                "logit": logit,
                "probability": probability,
                "threshold": self._metadata.threshold,
                "call": int(probability >= self._metadata.threshold),
                "operating_point": self._metadata.config.train.operating_point,
                "conformal": None if self._conformal is None else self._conformal.words(logit),
                "flags": batch["flags"][at],
                "distance": None if math.isnan(distance) else float(distance),
                "seen_in_training": batch["seen_in_training"][at],
            }
            kept = Kept(*(batch[name][at] for name in KEPT))
            if where is not None and (peak := peak_of(where[number], kept, squares.shape[-1])):
                found |= {"peak_x": peak[0], "peak_y": peak[1]}
            if self._asked.pictures:
                shown = None if overlays is None else overlays[number]
                sides = int(batch["width"][at]), int(batch["height"][at])
                found[HEATMAP] = self._draw(shown, kept, sides, batch["shown"][at])
                if self._asked.dicom:
                    found |= {MAP: None if shown is None else list(shown), PART: [int(edge) for edge in kept[:4]]}
            for name, value in found.items():
                cells[name][at] = value

    def _overlays(self, squares: np.ndarray, where: np.ndarray | None) -> Sequence[np.ndarray] | None:
        if self._overlay is None:
            return None
        if where is not None:
            return list(1 / (1 + np.exp(-where)))
        images = torch.from_numpy(squares).unsqueeze(1).to(pick_device())
        return list(maps(self._model, self._overlay, images).cpu().numpy())


def peak_of(where: np.ndarray, kept: Kept, size: int) -> tuple[float, float] | None:
    """The centre of the highest cell of a map (h, w) of a square, in pixels of the picture as displayed: x, y.

    Of the cells that show the picture, not only the black around it; of several highest ones the first; within the
    part that the square shows. None for a map that is the same everywhere: it points at nothing.
    """
    if where.max() == where.min():
        return None
    across, down = kept.right - kept.left, kept.bottom - kept.top
    rows, columns = frame(int(across), int(down), size)
    shown = np.ix_(_cells(rows, where.shape[0], size), _cells(columns, where.shape[1], size))
    inside = np.full(where.shape, -np.inf, dtype=where.dtype)
    inside[shown] = where[shown]
    row, column = np.unravel_index(inside.argmax(), where.shape)
    x = ((column + 0.5) * size / where.shape[1] - columns.start) / (columns.stop - columns.start)
    y = ((row + 0.5) * size / where.shape[0] - rows.start) / (rows.stop - rows.start)
    return float(kept.left + np.clip(x, 0, 1) * across), float(kept.top + np.clip(y, 0, 1) * down)


def _cells(pixels: slice, count: int, size: int) -> np.ndarray:
    """Which of `count` cells along a square of `size` hold some of these pixels, as numbers."""
    return np.arange(pixels.start * count // size, -(-pixels.stop * count // size))


def overlay(found: np.ndarray | None, kept: Kept, sides: tuple[int, int], shown: np.ndarray) -> bytes:
    """The part of a picture that a square shows, under the map of another square of it if there is one, as PNG."""
    inside = _inside(kept, len(shown))
    level = over_square(np.zeros((1, 1)) if found is None else found, inside, len(shown))
    return _png(np.ascontiguousarray(glowing(shown, level)[inside]))


def strength(found: np.ndarray | None, kept: Kept, sides: tuple[int, int], shown: np.ndarray) -> bytes | None:
    """The map on the whole picture, of at most SHOWN px, as gray PNG: 255 where it is highest, 0 lowest and outside."""
    if found is None:
        return None
    scale = min(1.0, SHOWN / max(sides))
    width, height = (max(1, round(side * scale)) for side in sides)
    left, top, right, bottom = (round(float(edge) * scale) for edge in kept[:4])
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    inside = _inside(kept, SHOWN)
    level = over_square(found, inside, SHOWN)[inside]
    part = cv2.resize(level, (right - left, bottom - top), interpolation=cv2.INTER_AREA)
    picture = np.zeros((max(height, bottom), max(width, right)), np.uint8)
    picture[top:bottom, left:right] = np.rint(255 * stretched(part))  # again, as a mean is below the highest place
    return _png(np.ascontiguousarray(picture[:height, :width]))


def _inside(kept: Kept, side: int) -> tuple[slice, slice]:
    """Where in a square of this side the part of the picture is."""
    return frame(int(kept.right - kept.left), int(kept.bottom - kept.top), side)


def _png(picture: np.ndarray) -> bytes:
    written, data = cv2.imencode(".png", picture)
    assert written, "OpenCV encodes PNG"
    return bytes(data)
