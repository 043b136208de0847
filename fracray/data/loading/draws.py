"""What augmentation does to an image, as a function of (seed, epoch, row), and the arithmetic of it.

The stream from memory, the tasks of Ray Data and a GPU apply the same draws. Imports neither Torch nor Ray.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from fracray.config import AugmentConfig
from fracray.data.images.letterbox import content, frame

_HALF, _BITS = np.uint64(0xFFFFFFFF), np.uint64(32)
COPY = 1 << 32  # row + k * COPY is the k-th further copy of a row in an epoch, which has draws of its own
UNIFORMS = 8  # drawn for a row, at fixed places: changing one strength does not change the draws of the others


def originals(rows: np.ndarray) -> np.ndarray:
    """The numbers in the prepared set of these rows, among which may be copies."""
    return rows % COPY


@dataclass(frozen=True)
class Pictures:
    """Where the picture of each of n letterboxed images is, and its mean gray: gray levels change inside it only."""

    frames: np.ndarray  # (n, 4) int32: first row, row after the last, first column, column after the last
    means: np.ndarray  # (n,) float32, 0 to 255

    @classmethod
    def of_sizes(cls, widths: np.ndarray, heights: np.ndarray, means: np.ndarray, size: int) -> Self:
        """Of pictures of these widths and heights, (n,), in squares of `size` pixels a side.

        Raises ValueError for a mean that is not a number from 0 to 255.
        """
        if not ((means >= 0) & (means <= 255)).all():
            raise ValueError("the mean gray of a picture is not known")
        # Each trial asks again, and of many pictures there are few sizes.
        sides = np.asarray(widths, dtype=np.int64) << 32 | np.asarray(heights, dtype=np.int64)
        sizes, which = np.unique(sides, return_inverse=True)
        placed = [frame(sides >> 32, sides & 0xFFFFFFFF, size) for sides in sizes.tolist()]
        return cls(_edges(placed)[which], means.astype(np.float32))

    @classmethod
    def of_images(cls, images: np.ndarray) -> Self:
        """As found in the images themselves, (n, H, W) uint8: equal black bands on opposite sides are no picture."""
        placed = [content(image) for image in images]
        means = [image[where].mean() for image, where in zip(images, placed, strict=True)]
        return cls(_edges(placed), np.array(means, dtype=np.float32))

    def of(self, rows: Sequence[int] | np.ndarray) -> "Pictures":
        return Pictures(self.frames[rows], self.means[rows])


def _edges(placed: Sequence[tuple[slice, slice]]) -> np.ndarray:
    edges = [(rows.start, rows.stop, columns.start, columns.stop) for rows, columns in placed]
    return np.array(edges, dtype=np.int32).reshape(-1, 4)


@dataclass(frozen=True)
class Draws:
    """What happens to each of n images: the gray levels, then flips, zoom and rotation, all about the centre."""

    flip: np.ndarray  # (n,) bool, left-right
    vertical_flip: np.ndarray  # (n,) bool, up-down
    angle: np.ndarray  # (n,) degrees, counter-clockwise
    scale: np.ndarray  # (n, 2) factors along x and y: zoom times stretch
    brightness: np.ndarray  # (n,) shares of full scale, added
    contrast: np.ndarray  # (n,) relative changes


def draw(strengths: AugmentConfig, seed: int, epoch: int, rows: Sequence[int] | np.ndarray) -> Draws:
    """The draws of these rows of the prepared set in an epoch (from 0), uniform within each strength."""
    words = random_words(seed, epoch, rows, range(UNIFORMS // 4))
    return draws_within(strengths, (words.reshape(UNIFORMS, len(rows)).astype(np.float64) + 0.5) / 2**32)


def draws_within(strengths: AugmentConfig, uniform: np.ndarray) -> Draws:
    """The draws that uniform numbers, (UNIFORMS, n) inside (0, 1), give within these strengths."""
    either_way = 2 * uniform - 1
    zoom, aspect = 1 + strengths.scale * either_way[3], np.sqrt(1 + strengths.largest_stretch * either_way[4])
    return Draws(
        flip=uniform[0] < strengths.flip,
        vertical_flip=uniform[1] < strengths.vertical_flip,
        angle=strengths.rotate * either_way[2],
        scale=np.stack([zoom * aspect, zoom / aspect], axis=1),
        brightness=strengths.brightness * either_way[5],
        contrast=strengths.contrast * either_way[6],
    )


def source_matrices(draws: Draws, height: int, width: int) -> np.ndarray:
    """(n, 2, 3) float64: from a pixel (x, y, 1) of the augmented image to its place in the original.

    Pixel centres have integer coordinates.
    """
    angle = np.deg2rad(draws.angle)
    matrices = np.empty((len(angle), 2, 3))
    matrices[:, 0, 0] = matrices[:, 1, 1] = np.cos(angle)
    matrices[:, 1, 0] = np.sin(angle)
    matrices[:, 0, 1] = -matrices[:, 1, 0]
    mirror = 1.0 - 2.0 * np.stack([draws.flip, draws.vertical_flip], axis=1)
    matrices[:, :, :2] *= (mirror / draws.scale)[:, :, None]
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    matrices[:, :, 2] = centre - matrices[:, :, :2] @ centre
    return matrices


def gray_lines(draws: Draws, means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slope and offset, each (n,) float32, of the line from a gray level to its new one.

    Brightness is added as a share of full scale (as RandomBrightnessContrast of albumentations has it); contrast
    multiplies the distance from the picture's mean gray (as its ColorJitter has it), which stays.
    """
    offsets = 255 * draws.brightness - draws.contrast * means
    return (1 + draws.contrast).astype(np.float32), offsets.astype(np.float32)


def gray_tables(draws: Draws, means: np.ndarray) -> np.ndarray:
    """(n, 256) uint8: the gray level that each level becomes, clipped to black and white, rounded down."""
    slopes, offsets = gray_lines(draws, means)
    levels = np.arange(256, dtype=np.float32) * slopes[:, None] + offsets[:, None]
    return np.minimum(np.maximum(levels, 0, out=levels), 255, out=levels).astype(np.uint8)


def random_words(seed: int, epoch: int, rows: Sequence[int] | np.ndarray, blocks: Sequence[int]) -> np.ndarray:
    """(blocks, 4, n) random 32-bit words in uint64: the key is the seed, the counter (row, epoch, block)."""
    row = np.asarray(rows, dtype=np.uint64)
    block = np.array(blocks, dtype=np.uint64)[:, None]
    key = (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF)
    words = philox([row & _HALF, row >> _BITS, np.array([epoch], dtype=np.uint64), block], key)
    return np.stack(words, axis=1)


def philox(counter: Sequence[np.ndarray], key: tuple[int, int]) -> list[np.ndarray]:
    """Philox4x32-10 (Salmon et al. 2011, doi 10.1145/2063384.2063405): four random words for each counter of four.

    All are 32-bit numbers in uint64 arrays, which are broadcast against each other. numpy's own Philox takes one
    counter at a time, at microseconds each.
    """
    a, b, c, d = counter
    for turn in range(10):
        left, right = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
        first = np.uint64((key[0] + turn * 0x9E3779B9) & 0xFFFFFFFF)
        second = np.uint64((key[1] + turn * 0xBB67AE85) & 0xFFFFFFFF)
        a, b, c, d = (right >> _BITS) ^ b ^ first, right & _HALF, (left >> _BITS) ^ d ^ second, left & _HALF
    return [a, b, c, d]
