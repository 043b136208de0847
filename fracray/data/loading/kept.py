"""Which part of each radiograph of a prepared table its square shows, and how much of the fractures' boxes lies in it.

Knows tables and nothing of files. Imports neither Torch nor Ray.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from fracray.data.images.kept import KEPT

if TYPE_CHECKING:
    import pandas as pd

MOST_NAMED = 20
CUT = 0.05  # share of its area that a box must lose to count as cut: boxes are drawn with a margin


def is_cropped(table: "pd.DataFrame") -> bool:
    """Whether the squares of a prepared table show parts."""
    return KEPT[0] in table


def shown(table: "pd.DataFrame") -> "pd.DataFrame":
    """What the squares show, a row each: left, top, width and height in pixels of the picture, and its brightness."""
    if not is_cropped(table):
        whole = table[[name for name in ("width", "height", "brightness") if name in table]]
        return whole.assign(left=0, top=0)
    left, top, right, bottom, brightness = (table[name] for name in KEPT)
    part = table[[]].assign(left=left, top=top, width=right - left, height=bottom - top, brightness=brightness)
    return part.astype(dict.fromkeys(("left", "top", "width", "height"), np.int64))


def boxes_shown(table: "pd.DataFrame") -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each row its boxes (n, 4) in pixels of their own size, and the share (m,) of each that is shown.

    x and y are from the corner of what is shown. A box is clipped to that; one outside of it is left out.
    """
    places = shown(table)[["left", "top", "width", "height"]].to_numpy()
    columns = (table[name] for name in ("boxes", "boxes_width", "boxes_height", "width", "height"))
    for boxes, drawn_width, drawn_height, width, height, place in zip(*columns, places, strict=True):
        found = np.array([tuple(box) for box in boxes], dtype=np.float64).reshape(-1, 4)
        if not is_cropped(table) or not len(found):
            yield found, np.ones(len(found))
            continue
        unit = drawn_width / width, drawn_height / height
        left, top, across, down = place * [*unit, *unit]
        x, y, w, h = found.T
        edges = np.stack([x - left, y - top, x + w - left, y + h - top], axis=1)
        edges = np.clip(edges, 0, [across, down, across, down])
        edges[:, 2:] -= edges[:, :2]
        shares = edges[:, 2] * edges[:, 3] / np.maximum(w * h, 1e-9)
        yield edges[shares > 0], shares


def cropping(table: "pd.DataFrame") -> dict[str, Any] | None:
    """How many of a prepared table's radiographs are cropped, and by how much; None where none may be.

    images: those that are cropped; median, largest: by which factor these are enlarged (None without any); boxes: of
    all radiographs; cut: of these, how many lose more than CUT of their area; cut_images: the radiographs of these,
    at most MOST_NAMED; more: whether there are more.
    """
    if not is_cropped(table):
        return None
    part = shown(table)
    before, after = (some[["width", "height"]].max(axis=1).to_numpy(dtype=float) for some in (table, part))
    gain = before / after
    gain = gain[gain > 1]
    shares = [shares for _, shares in boxes_shown(table)]
    cut = np.array([int((some < 1 - CUT).sum()) for some in shares], dtype=np.int64)
    return {
        "images": len(gain),
        "of": len(table),
        "median": float(np.median(gain)) if len(gain) else None,
        "largest": float(gain.max()) if len(gain) else None,
        "boxes": sum(map(len, shares)),
        "cut": int(cut.sum()),
        "cut_images": table["image_id"][cut > 0].tolist()[:MOST_NAMED],
        "more": int((cut > 0).sum()) > MOST_NAMED,
    }
