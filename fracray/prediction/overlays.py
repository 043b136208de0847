"""Writes the overlays of a prediction as PNG files. Knows rows with encoded pictures, and no network."""

import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa

from fracray.errors import RunError
from fracray.prediction.inputs import Picture
from fracray.prediction.scoring import HEATMAP, PLACE
from fracray.runtime.storage import atomic_path


def writer(root: Path, pictures: Sequence[Picture]) -> Callable[[pa.Table], pa.Table]:
    """A function that writes the overlays of rows to a folder, as IMAGE_ID.png, and gives the rows back.

    It raises RunError where there is no room.
    """
    names = file_names([one.image_id for one in pictures])

    def write(rows: pa.Table) -> pa.Table:
        try:
            for place, data in zip(rows[PLACE].to_pylist(), rows[HEATMAP].to_pylist(), strict=True):
                if data is not None:
                    with atomic_path(root / names[place]) as partial:
                        partial.write_bytes(data)
        except OSError as error:
            raise RunError(
                f"--heatmaps {root}: cannot be written: {error}; free space and give the same command again"
            ) from None
        return rows

    return write


def file_names(ids: Sequence[str]) -> list[str]:
    """A file name for each image id, without separators of folders; of ids that would share one, with a number.

    An id that may be a file's name keeps it, so that no overlay bears the id of another radiograph.
    """
    plain = [re.sub(r"[^\w.-]+", "_", image_id)[:100].lstrip(".") or "image" for image_id in ids]
    names: dict[int, str] = {}
    used: set[str] = set()
    for place in sorted(range(len(ids)), key=lambda place: plain[place] != ids[place]):  # in order, such ids first
        others = (f"{plain[place]}-{number}" for number in itertools.count(place))
        name = next(one for one in itertools.chain([plain[place]], others) if one.casefold() not in used)
        used.add(name.casefold())
        names[place] = f"{name}.png"
    return [names[place] for place in range(len(ids))]
