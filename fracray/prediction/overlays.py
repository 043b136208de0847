"""Writes the overlays of a prediction as PNG files. Knows rows with encoded pictures, and no network."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa

from fracray.errors import InputError, RunError
from fracray.prediction.inputs import Picture
from fracray.prediction.scoring import HEATMAP, PLACE
from fracray.runtime.storage import atomic_path


def keeper(keep: Callable[[pa.Table], None], folder: str, pictures: Sequence[Picture]) -> Callable[[pa.Table], None]:
    """`keep`, which first writes the overlays of its rows to a folder, as IMAGE_ID.png, and keeps the rows without.

    InputError where the folder cannot be made; the function raises RunError where there is no room.
    """
    root = Path(folder).expanduser()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--heatmaps {folder}: cannot be made: {error.strerror}; name another folder") from None
    names = file_names([one.image_id for one in pictures])

    def write(rows: pa.Table) -> None:
        try:
            for place, data in zip(rows[PLACE].to_pylist(), rows[HEATMAP].to_pylist(), strict=True):
                if data is not None:
                    with atomic_path(root / names[place]) as partial:
                        partial.write_bytes(data)
        except OSError as error:
            raise RunError(
                f"--heatmaps {folder}: cannot be written: {error}; free space and give the same command again"
            ) from None
        at = rows.schema.get_field_index(HEATMAP)
        keep(rows.set_column(at, rows.schema.field(at), pa.nulls(len(rows), pa.binary())))

    return write


def file_names(ids: Sequence[str]) -> list[str]:
    """A file name for each image id, without separators of folders; of ids that would share one, with their place."""
    names: list[str] = []
    used: set[str] = set()
    for place, image_id in enumerate(ids):
        plain = re.sub(r"[^\w.-]+", "_", image_id)[:100].lstrip(".") or "image"
        name = plain if plain.casefold() not in used else f"{plain}-{place}"
        used.add(name.casefold())
        names.append(f"{name}.png")
    return names
