"""A complete set of shards: Parquet files of uint8 grayscale images in one folder, and the reading of them.

`ingest.py` writes them. Knows nothing of image files, of Ray, of splits or of training.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from fracray.data.images.kept import KEPT
from fracray.runtime.storage import Folder

INDEX = "index.json"  # written last: a set with an index is complete


@dataclass(frozen=True)
class ShardFile:
    """One Parquet file: the `count` consecutive rows from `first` on."""

    name: str
    first: int
    count: int


@dataclass(frozen=True)
class Shards:
    """A complete set of shards: row i is the i-th used radiograph of the manifest.

    cropped: whether the images show a part of their radiographs each, which is stored with them.
    """

    folder: Folder
    size: int
    files: tuple[ShardFile, ...]
    cropped: bool = False

    @property
    def count(self) -> int:
        return sum(file.count for file in self.files)

    @property
    def nbytes(self) -> int:
        """Bytes of the decoded images."""
        return self.count * self.size * self.size

    def read_file(self, file: ShardFile) -> np.ndarray:
        """The images of one file, (count, size, size) uint8, read-only."""
        table = pq.read_table(self.folder.path(file.name), columns=["image"], filesystem=self.folder.filesystem)
        column = table.column("image").combine_chunks()
        pixels = np.frombuffer(column.buffers()[1], dtype=np.uint8)
        offset = column.offset * self.size * self.size
        return pixels[offset : offset + file.count * self.size**2].reshape(file.count, self.size, self.size)

    def load(self) -> np.ndarray:
        """All images, (count, size, size) uint8."""
        images = np.empty((self.count, self.size, self.size), dtype=np.uint8)
        for file in self.files:
            images[file.first : file.first + file.count] = self.read_file(file)
        return images

    def kept(self) -> pd.DataFrame | None:
        """What is kept of every radiograph, a row each with the columns KEPT; None where they are whole."""
        if not self.cropped:
            return None
        paths = [self.folder.path(file.name) for file in self.files]
        return pq.read_table(paths, columns=[*KEPT], filesystem=self.folder.filesystem).to_pandas()


def open_shards(folder: Folder) -> Shards:
    """Open a complete shard set by its folder."""
    index = folder.read_json(INDEX)
    files = tuple(ShardFile(**file) for file in index["files"])
    return Shards(folder, index["size"], files, index.get("cropped", False))
