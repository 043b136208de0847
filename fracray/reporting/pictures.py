"""Radiographs as a page shows them: with their boxes, and under the map of where a network looks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from markupsafe import Markup
from rich.console import Console

from fracray.config import PHANTOM, DataConfig
from fracray.data.images.decode import preview
from fracray.data.images.kept import Kept
from fracray.data.images.letterbox import frame, letterbox
from fracray.data.images.square import decode, decode_part
from fracray.data.loading.boxes import Boxes
from fracray.data.manifest import Manifest
from fracray.data.prepare import examined
from fracray.errors import InputError
from fracray.evaluation.inference import half_the_cpus
from fracray.evaluation.maps import WORDS, glowing, maps, methods, over_square
from fracray.evaluation.opening import paths_to_open
from fracray.reporting.subject import Judged, Subject
from fracray.runtime.page import picture_uri
from fracray.runtime.run_folder import is_in_run
from fracray.training.checkpoint import load_checkpoint

SIDE = 192  # px, the longer side of a picture on the page
BOX = (40, 140, 255)  # BGR: orange


@dataclass(frozen=True)
class Shown:
    """A radiograph as data URIs: with its boxes, if it has any, and under the map; None without a map."""

    plain: Markup
    looked: Markup | None
    boxes: int
    words: str  # what the map is


def images_at_hand(subject: Subject, data: str | None, console: Console) -> Manifest | None:
    """The examined files that a checkpoint was trained on; None where they are not at hand and were not named.

    data: as typed; InputError where it is not the data of the training. A checkpoint from outside of a run does not
    choose which paths are opened: see `paths_to_open`.
    """
    if subject.judged is None:
        return None
    config, expected = subject.judged.card.config, subject.judged.card.data_fingerprint
    if data is None and config.data.source != PHANTOM and not is_in_run(subject.location):
        return None
    config = config.with_leaves(paths_to_open(data, subject.location, subject.judged.card), "--data")
    try:
        manifest = examined(config.data, console)
    except InputError:
        if data is not None:
            raise
        return None  # the data was moved since, or is on another machine
    if manifest.fingerprint() == expected:
        return manifest
    if data is not None:
        raise InputError(
            f"--data {data}: not the data that {subject.location} was trained on; name that, or leave it out"
        )
    return None


def show(images: Manifest, names: Sequence[str], judged: Judged) -> dict[str, Shown]:
    """These radiographs by image_id, without those that cannot be decoded; with a map where the network has one."""
    table = images.table.set_index("image_id", drop=False)
    table = table.loc[[name for name in names if name in table.index]]
    grays = {
        name: preview(images.root / path, SIDE)
        for name, path in zip(table["image_id"], table["path"], strict=True)
        if path
    }
    known = [name for name, gray in grays.items() if gray is not None]
    if not known:
        return {}
    table = table.loc[known].reset_index(drop=True)
    boxes = Boxes.of_table(table, SIDE)
    words, looks = _maps(images.root, table, judged)
    shown = {}
    for row, name in enumerate(known):
        gray = grays[name]
        assert gray is not None
        square = letterbox(gray, SIDE)
        inside = frame(int(table["width"].iloc[row]), int(table["height"].iloc[row]), SIDE)
        edges = boxes.of(row) if boxes is not None else np.empty((0, 4))
        plain = _boxed(cv2.cvtColor(square, cv2.COLOR_GRAY2BGR), edges)
        looked = glowing(square, looks[name]) if name in looks else None
        shown[name] = Shown(
            picture_uri(np.ascontiguousarray(plain[inside])),
            None if looked is None else picture_uri(np.ascontiguousarray(looked[inside])),
            len(edges),
            words,
        )
    return shown


def _maps(root: Path, table: pd.DataFrame, judged: Judged) -> tuple[str, dict[str, np.ndarray]]:
    """Maps over the letterboxed pictures, (SIDE, SIDE) in 0..1, by image_id, and what they are.

    The network gets the squares that it was trained on: of a cropped set, the parts that are kept. None where the
    network has no map, and of an ensemble whose models were trained on these pictures.
    """
    if judged.card.out_of_fold:
        return "", {}
    checkpoint = load_checkpoint(judged.folder)
    found = methods(checkpoint.model)
    if not found:
        return "", {}
    squares, kept = zip(*squares_of(root, table, judged.card.config.data), strict=True)
    with half_the_cpus():
        shown = maps(checkpoint.model, found[0], torch.from_numpy(np.stack(squares))[:, None]).numpy()
    sizes = zip(table["width"], table["height"], strict=True)
    placed = [over_picture(one, part, *map(int, size)) for one, part, size in zip(shown, kept, sizes, strict=True)]
    return WORDS[found[0]], dict(zip(table["image_id"], placed, strict=True))


def squares_of(root: Path, table: pd.DataFrame, data: DataConfig) -> Iterator[tuple[np.ndarray, Kept | None]]:
    """The squares (S, S) uint8 that a network of this configuration gets of these files, each with the part it shows.

    That is None where a square shows all of the picture.
    """
    for path, width, height in zip(table["path"], table["width"], table["height"], strict=True):
        read, longer = (root / path).read_bytes(), max(int(width), int(height))
        yield decode_part(read, longer, data.size) if data.crop else (decode(read, longer, data.size), None)


def over_picture(found: np.ndarray, part: Kept | None, width: int, height: int) -> np.ndarray:
    """A map (cells, cells) of a square, over the whole letterboxed picture: (SIDE, SIDE) in 0..1, 0 outside the part.

    From 0 at its lowest place to 1 at its highest; 0 everywhere for a map that is the same everywhere.
    """
    if part is None:
        return over_square(found, frame(width, height, SIDE), SIDE)
    inside = frame(part.right - part.left, part.bottom - part.top, SIDE)
    level = over_square(found, inside, SIDE)
    down, across = frame(width, height, SIDE)
    top, bottom = (down.start + round(at * (down.stop - down.start) / height) for at in (part.top, part.bottom))
    left, right = (across.start + round(at * (across.stop - across.start) / width) for at in (part.left, part.right))
    placed = np.zeros_like(level)
    placed[top:bottom, left:right] = cv2.resize(level[inside], (right - left, bottom - top))
    return placed


def _boxed(picture: np.ndarray, edges: np.ndarray) -> np.ndarray:
    for left, top, right, bottom in edges:
        cv2.rectangle(picture, (int(left), int(top)), (round(right), round(bottom)), BOX, 1)
    return picture
