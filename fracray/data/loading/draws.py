"""What augmentation does to an image, as a function of (seed, epoch, row), and the arithmetic of it.

The stream from memory, the tasks of Ray Data and a GPU apply the same draws. Imports neither Torch nor Ray.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fracray.config import AugmentConfig

_HALF, _BITS = np.uint64(0xFFFFFFFF), np.uint64(32)
UNIFORMS = 8  # drawn for a row, at fixed places: changing one strength does not change the draws of the others


@dataclass(frozen=True)
class Draws:
    """What happens to each of n images: flips, then zoom, then rotation, all about the centre, then the gray levels."""

    flip: np.ndarray  # (n,) bool, left-right
    vertical_flip: np.ndarray  # (n,) bool, up-down
    angle: np.ndarray  # (n,) degrees, counter-clockwise
    scale: np.ndarray  # (n, 2) factors along x and y, drawn separately
    brightness: np.ndarray  # (n,) shares of full scale, added
    contrast: np.ndarray  # (n,) relative changes


def draw(strengths: AugmentConfig, seed: int, epoch: int, rows: Sequence[int] | np.ndarray) -> Draws:
    """The draws of these rows of the prepared set in an epoch (from 0), uniform within each strength."""
    words = random_words(seed, epoch, rows, range(UNIFORMS // 4))
    return draws_within(strengths, (words.reshape(UNIFORMS, len(rows)).astype(np.float64) + 0.5) / 2**32)


def draws_within(strengths: AugmentConfig, uniform: np.ndarray) -> Draws:
    """The draws that uniform numbers, (UNIFORMS, n) inside (0, 1), give within these strengths."""
    either_way = 2 * uniform - 1
    return Draws(
        flip=uniform[0] < strengths.flip,
        vertical_flip=uniform[1] < strengths.vertical_flip,
        angle=strengths.rotate * either_way[2],
        scale=1 + strengths.scale * either_way[3:5].T,
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


def gray_tables(draws: Draws) -> np.ndarray:
    """(n, 256) uint8: the gray level that each level becomes, clipped to black and white, rounded down."""
    levels = np.arange(256, dtype=np.float32) * (1 + draws.contrast).astype(np.float32)[:, None]
    levels += (255 * draws.brightness).astype(np.float32)[:, None]
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
