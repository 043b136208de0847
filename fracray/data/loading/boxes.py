"""Where the fractures are in the images of a batch, after the augmentation that the images had.

Boxes become a coarse map of the share of each cell that lies in one. The draws are a function of (seed, epoch, row), so
the map is made by whoever trains, and no stream has to carry it. Imports neither Torch nor Ray.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Self

import cv2
import numpy as np

from fracray.data.images.kept import KEPT
from fracray.data.images.letterbox import frame
from fracray.data.loading.augment import Augmenter
from fracray.data.loading.draws import originals
from fracray.data.loading.kept import boxes_shown, shown

if TYPE_CHECKING:
    import pandas as pd

    from fracray.data.loading.plan import Plan


@dataclass(frozen=True)
class Boxes:
    """The fractures' boxes of every row of a shard set, in pixels of its squares.

    edges: (m, 4) float64 of left, top, right, bottom, from 0 to the side of the square; first: (N + 1,) int64, the
    boxes of row i are those from first[i] to first[i + 1].
    """

    edges: np.ndarray
    first: np.ndarray

    @classmethod
    def of_table(cls, table: "pd.DataFrame", size: int) -> Self | None:
        """Of a prepared table, whose boxes (x, y, w, h) are in pixels of their own size; None if it has none.

        Where the squares show parts of the radiographs, a box is what of it is shown.
        """
        boxed = np.flatnonzero(table["boxes"].map(len))
        counts = np.zeros(len(table), dtype=np.int64)
        edges = []
        columns = ["boxes", "boxes_width", "boxes_height", "width", "height", *(name for name in KEPT if name in table)]
        some = table[columns].iloc[boxed]
        sizes = some[["boxes_width", "boxes_height", "width", "height"]].to_numpy()
        parts = shown(some)[["width", "height"]].to_numpy()
        for row, full, part, (inside, _) in zip(boxed, sizes, parts, boxes_shown(some), strict=True):
            rows, across = frame(int(part[0]), int(part[1]), size)
            drawn = part * full[:2] / full[2:]  # what is shown, in the boxes' own pixels
            scale = (across.stop - across.start) / drawn[0], (rows.stop - rows.start) / drawn[1]
            for x, y, w, h in inside:
                left, top = across.start + x * scale[0], rows.start + y * scale[1]
                edges.append((left, top, left + w * scale[0], top + h * scale[1]))
            counts[row] = len(inside)
        if not counts.any():
            return None
        return cls(np.array(edges, dtype=np.float64).reshape(-1, 4), np.concatenate([[0], np.cumsum(counts)]))

    def of(self, row: int) -> np.ndarray:
        """The edges (n, 4) of one row's boxes."""
        return self.edges[self.first[row] : self.first[row + 1]]


class BoxMaps:
    """Maps of `cells` x `cells` for the images that a plan with boxes delivers, which have sides of `size` pixels."""

    def __init__(self, plan: "Plan", size: int, cells: int) -> None:
        assert plan.boxes is not None
        self._plan, self._boxes, self._size, self.cells = plan, plan.boxes, size, cells

    @cached_property
    def _augmenter(self) -> Augmenter:
        return Augmenter(self._plan.strengths, self._plan.seed)

    def of(self, rows: Sequence[int] | np.ndarray, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Shares (n, cells, cells) float32, 0 to 1, of these rows as augmented in this epoch; and what is known, (n,).

        Not known is where the fracture of an image is that is labelled fractured and has no box.
        """
        boxed, masks, known = self._moved(np.asarray(rows, dtype=np.int64), epoch)
        return self._shares(boxed, masks, len(known)), known

    def cut(
        self, rows: Sequence[int] | np.ndarray, epoch: int, window: tuple[float, float, float, float]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `of`, shares of what lies outside of a window and of what lies inside, then what is known.

        window: top, bottom, left and right edge, as shares of the side.
        """
        boxed, masks, known = self._moved(np.asarray(rows, dtype=np.int64), epoch)
        top, bottom, left, right = (round(edge * self._size) for edge in window)
        inside = np.zeros_like(masks)
        inside[:, top:bottom, left:right] = masks[:, top:bottom, left:right]
        return self._shares(boxed, masks - inside, len(known)), self._shares(boxed, inside, len(known)), known

    def _moved(self, rows: np.ndarray, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The places in `rows` of those with boxes, their boxes' masks (m, S, S) uint8 as augmented, what is known."""
        own = originals(rows)
        boxed = np.flatnonzero(self._boxes.first[own + 1] > self._boxes.first[own])
        known = self._plan.labels[own] == 0
        known[boxed] = True
        masks = np.zeros((len(boxed), self._size, self._size), dtype=np.uint8)
        for mask, row in zip(masks, own[boxed], strict=True):
            for left, top, right, bottom in self._boxes.of(row):
                # At least a pixel: a box may be smaller than that once the image is scaled down.
                across = slice(int(left), max(int(left) + 1, round(right)))
                mask[int(top) : max(int(top) + 1, round(bottom)), across] = 255
        return boxed, self._augmenter.masks(masks, epoch, rows[boxed]) if len(boxed) else masks, known

    def _shares(self, places: np.ndarray, masks: np.ndarray, count: int) -> np.ndarray:
        """Shares (count, cells, cells) float32 of each cell, 0 to 1, in the masks at these places; 0 elsewhere."""
        shares = np.zeros((count, self.cells, self.cells), dtype=np.float32)
        for at, mask in zip(places, masks, strict=True):
            shares[at] = cv2.resize(mask, (self.cells, self.cells), interpolation=cv2.INTER_AREA) / np.float32(255)
        return shares
