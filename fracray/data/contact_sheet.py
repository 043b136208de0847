"""Contact sheets: prepared radiographs side by side in one picture, as they are, augmented, corrupted,
or whole with what is kept of them.

Must not know of arguments.
"""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torchvision.utils import make_grid

from fracray.config import Config
from fracray.data.images.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from fracray.data.images.decode import preview
from fracray.data.images.letterbox import frame, letterbox
from fracray.data.loading.augment import Augmenter
from fracray.data.loading.kept import shown
from fracray.data.loading.plan import make_plan
from fracray.data.prepare import Prepared

COLUMNS, EPOCHS = 8, 3


def draw_plain(prepared: Prepared, config: Config, count: int) -> np.ndarray:
    """`count` radiographs, chosen by train.seed: (height, width) uint8."""
    rows = _chosen(prepared, config, count)
    return contact_sheet(prepared.shards.load()[rows], COLUMNS, _names(prepared, rows))


def draw_augmented(prepared: Prepared, config: Config, count: int) -> np.ndarray:
    """Each of `count` radiographs, followed by EPOCHS draws of the training augmentation."""
    rows = _chosen(prepared, config, count)
    images, augmenter = prepared.shards.load()[rows], Augmenter(config.augment, config.train.seed)
    pictures = make_plan(config, prepared.table, prepared.shards).pictures.of(rows)
    drawn = [augmenter.batch(images, epoch, rows, pictures) for epoch in range(EPOCHS)]
    tiles = np.stack([images, *drawn], axis=1).reshape(-1, *images.shape[1:])
    epochs = [f"epoch {epoch}" for epoch in range(1, EPOCHS + 1)]
    return contact_sheet(tiles, COLUMNS, [words for name in _names(prepared, rows) for words in (name, *epochs)])


def draw_corrupted(prepared: Prepared, config: Config, count: int) -> np.ndarray:
    """A row for each corruption: each of `count` radiographs clean, then at every severity."""
    rows = _chosen(prepared, config, count)
    images, names, seed = prepared.shards.load()[rows], prepared.table["image_id"].iloc[rows], config.train.seed
    tiles, captions = [], []
    for corruption in CORRUPTIONS:
        for image, name in zip(images, names, strict=True):
            tiles += [image, *(corrupt(image, corruption.name, severity, seed, name) for severity in SEVERITIES)]
            captions += [corruption.name, *(f"{s}: {corruption.values[s - 1]:.3g}" for s in SEVERITIES)]
    return contact_sheet(tiles, len(rows) * (1 + len(SEVERITIES)), captions)


def draw_crops(prepared: Prepared, config: Config, count: int) -> np.ndarray:
    """`count` of the radiographs that data.crop cuts, whole, with a frame around what is kept; others where none is."""
    table, size = prepared.table, prepared.shards.size
    part = shown(table)
    gain = (table[["width", "height"]].max(axis=1) / part[["width", "height"]].max(axis=1)).to_numpy()
    rows = np.flatnonzero(gain > 1) if (gain > 1).any() else np.arange(len(table))
    rows = np.sort(np.random.default_rng(config.train.seed).permutation(rows)[:count])
    tiles = []
    for row in rows:
        entry, kept = table.iloc[row], part.iloc[row]
        picture = preview(prepared.manifest.root / entry["path"], size)
        assert picture is not None, f"{entry['path']} was decoded a moment ago"
        tile = letterbox(picture, size)
        down, across = frame(entry["width"], entry["height"], size)
        scale = (across.stop - across.start) / entry["width"], (down.stop - down.start) / entry["height"]
        first = across.start + kept["left"] * scale[0], down.start + kept["top"] * scale[1]
        last = first[0] + kept["width"] * scale[0] - 1, first[1] + kept["height"] * scale[1] - 1
        cv2.rectangle(tile, [*map(round, first)], [*map(round, last)], 255)
        tiles.append(tile)
    names = [f"{table['image_id'].iloc[row]} x{gain[row]:.2f}" for row in rows]
    return contact_sheet(tiles, COLUMNS, names)


def contact_sheet(images: Sequence[np.ndarray] | np.ndarray, columns: int, captions: Sequence[str]) -> np.ndarray:
    """Tile gray images, (H, W) uint8 of one size, into one uint8 picture, each with its caption below it."""
    tiles = np.pad(np.stack(list(images)), ((0, 0), (0, 16), (0, 0)))
    for tile, caption in zip(tiles, captions, strict=True):
        cv2.putText(tile, caption, (3, len(tile) - 4), cv2.FONT_HERSHEY_SIMPLEX, 0.36, 230, 1, cv2.LINE_AA)
    return make_grid(torch.from_numpy(tiles)[:, None], columns)[0].numpy()


def _chosen(prepared: Prepared, config: Config, count: int) -> np.ndarray:
    return np.sort(np.random.default_rng(config.train.seed).permutation(len(prepared.table))[:count])


def _names(prepared: Prepared, rows: np.ndarray) -> list[str]:
    shown = prepared.table.iloc[rows]
    return [
        f"{name} {'fractured' if label else ''}" for name, label in zip(shown["image_id"], shown["label"], strict=True)
    ]
