"""The radiographs that an export is compared on: those of the checkpoint's validation, where they are at hand.

They are told by their pixels. Must not run a network.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from fracray.config import PHANTOM
from fracray.data.images.decode import inspect, read_file
from fracray.data.images.square import picture_of, square_of
from fracray.data.phantom.draw import as_jpeg, draw_phantom, phantom_id
from fracray.errors import InputError
from fracray.prediction.inputs import find_pictures
from fracray.prediction.reading import FAULTS
from fracray.runtime.console import counted
from fracray.training.checkpoint import Checkpoint

COMPARED = 96  # radiographs at most: whole batches of 1, 3 and 32
Files = Mapping[str, Callable[[], bytes | None]]  # how to read a file, by image id


@dataclass(frozen=True)
class Sample:
    """Squares (n, S, S) uint8; `stored` (n,) float32, their logits in the checkpoint's validation, None without.

    words: what they are.
    """

    squares: np.ndarray
    stored: np.ndarray | None
    words: str


def phantoms(checkpoint: Checkpoint) -> Files:
    """The phantoms that a checkpoint was validated on; of one trained on radiographs, some others."""
    data = checkpoint.metadata.config.data
    places = range(COMPARED)
    if data.source == PHANTOM and checkpoint.predictions is not None:
        places = range(data.phantom.count)
    return {phantom_id(place): partial(_drawn, place, data.phantom.seed) for place in places}


def _drawn(place: int, seed: int) -> bytes:
    return as_jpeg(draw_phantom(place, seed))


def radiographs(path: str, cache: Path, progress: Callable[[int, int], None]) -> Files:
    """The radiographs in a folder, a zip or an imported set; InputError as `find_pictures`."""
    found = find_pictures([path], cache, progress).pictures
    return {one.image_id: partial(_bytes, one.file) for one in found if one.file}


def _bytes(file: str) -> bytes | None:
    return read_file(Path(file))[0]


def gather(checkpoint: Checkpoint, files: Files, named: str, progress: Callable[[int, int], None]) -> Sample:
    """COMPARED of these files at most: those that the checkpoint was validated on or, without any, others.

    Of the first, the lowest, the highest, and evenly between. Pictures that share the id of one of the validation but
    not its pixels are none of these. named: where they are from. InputError where no file can be read.
    """
    data = checkpoint.metadata.config.data
    validated = _validated(checkpoint)
    at_hand = validated[validated.index.isin(list(files))].sort_values("logit", kind="stable")
    squares, logits, strange = [], [], 0
    chosen = at_hand.iloc[_spread(len(at_hand))]
    for number, (name, row) in enumerate(chosen.iterrows()):
        read = _read(files[str(name)](), data.size, data.crop)
        if read and read[1] == row["pixel_hash"]:
            squares.append(read[0])
            logits.append(row["logit"])
        else:
            strange += 1
        progress(number + 1, len(chosen))
    if squares:
        words = f"{len(squares)} of the {len(validated):,} radiographs of its validation, in {named}"
        words += f" ({strange} others there have other pixels)" if strange else ""
        return Sample(np.stack(squares), np.array(logits, dtype=np.float32), words)
    names = list(files)
    spread = [names[place] for place in _spread(len(names))]
    reads = [_read(files[name](), data.size, data.crop) for name in spread]
    squares = [read[0] for read in reads if read]
    if not squares:
        raise InputError(
            f"{named}: none of {counted(len(spread), 'radiograph')} tried can be read; name others with --data"
        )
    words = f"{counted(len(squares), 'radiograph')} in {named}"
    words += "" if checkpoint.metadata.out_of_fold else ", not of its validation"
    return Sample(np.stack(squares), None, words)


def _validated(checkpoint: Checkpoint) -> pd.DataFrame:
    """The columns logit and pixel_hash of a checkpoint's validation, by image id; empty where it keeps none.

    Out-of-fold logits are those of some members, and not what the checkpoint gives.
    """
    if checkpoint.predictions is None or checkpoint.seen is None or checkpoint.metadata.out_of_fold:
        return pd.DataFrame({"logit": [], "pixel_hash": []})
    hashes = checkpoint.seen.drop_duplicates("image_id").set_index("image_id")["pixel_hash"]
    logits = checkpoint.predictions.drop_duplicates("image_id").set_index("image_id")["logit"]
    return pd.concat([logits, hashes], axis=1, join="inner")


def _spread(count: int) -> np.ndarray:
    """COMPARED places of so many at most, evenly from the first to the last."""
    return np.unique(np.linspace(0, max(0, count - 1), min(count, COMPARED)).round().astype(int))


def _read(file: bytes | None, size: int, crop: bool) -> tuple[np.ndarray, str] | None:
    """The square of a file and the hash of its pixels, as the training has them; None where it holds no sound one."""
    if file is None:
        return None
    seen, picture = inspect(file)
    if seen.fault in FAULTS or picture.gray is None:
        return None
    return square_of(*picture_of(file, size, crop), size, crop)[0], seen.pixel_hash
