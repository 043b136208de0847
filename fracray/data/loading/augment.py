"""Strengths to augmented radiographs: one affine warp and one lookup table each, drawn anew for every epoch.

The draw depends on (seed, epoch, row) alone, never on who augments, on which device, in which order or in how many
processes: the worker's own memory stream, Ray Data's tasks and a GPU (`gpu_stream`) apply the same draws.
Imports neither Torch nor Ray.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from fracray.config import AugmentConfig

UNIFORMS = 8  # drawn for a row, at fixed places: a strength that changes leaves the draws of all others as they are


@dataclass(frozen=True)
class Draws:
    """What happens to each of n images: flips, then zoom, then rotation, all about the centre, then the gray levels."""

    flip: np.ndarray  # (n,) bool, left-right
    vertical_flip: np.ndarray  # (n,) bool, upside down
    angle: np.ndarray  # (n,) degrees, counter-clockwise
    scale: np.ndarray  # (n, 2) factors along x and y, drawn apart
    brightness: np.ndarray  # (n,) shares of full scale, added
    contrast: np.ndarray  # (n,) relative changes


def draw(strengths: AugmentConfig, seed: int, epoch: int, rows: Sequence[int] | np.ndarray) -> Draws:
    """The draws of these rows of the prepared set in an epoch (from 0), uniform within each strength."""
    uniform = _uniforms(seed, epoch, np.asarray(rows, dtype=np.uint64))
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
    """(n, 2, 3) float64: from a pixel (x, y, 1) of the augmented image to its place in the original; centres of pixels
    are whole numbers."""
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
    """(n, 256) uint8: the gray level that each level becomes, cut off at black and white, fractions dropped."""
    levels = np.arange(256, dtype=np.float32)
    contrast = (1 + draws.contrast).astype(np.float32)[:, None]
    brightness = (255 * draws.brightness).astype(np.float32)[:, None]
    return np.clip(levels * contrast + brightness, 0, 255).astype(np.uint8)


class Augmenter:
    """Applies its strengths to batches of radiographs on the CPU, releasing the interpreter for all but a few
    microseconds an image."""

    def __init__(self, strengths: AugmentConfig, seed: int) -> None:
        self._strengths, self._seed = strengths, seed
        cv2.setNumThreads(1)  # the parallelism is that of workers and tasks

    def batch(self, images: np.ndarray, epoch: int, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Augment (n, H, W) uint8 images into a new array; an augmentation that is off returns `images` itself.

        `rows` are the images' numbers in the prepared set, `epoch` counts from 0. A warp fills with black what comes
        from outside the image, and interpolates linearly; flips alone move pixels without changing any.
        """
        strengths = self._strengths
        if not (strengths.warps or strengths.flips or strengths.regrays):
            return images
        draws = draw(strengths, self._seed, epoch, rows)
        height, width = images.shape[1:]
        augmented = np.empty(images.shape, dtype=np.uint8)
        if strengths.warps:
            flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
            matrices = source_matrices(draws, height, width)
            for image, into, matrix in zip(images, augmented, matrices, strict=True):
                cv2.warpAffine(image, matrix, (width, height), into, flags)
        else:
            augmented[:] = images
            augmented[draws.flip] = augmented[draws.flip, :, ::-1]
            augmented[draws.vertical_flip] = augmented[draws.vertical_flip, ::-1]
        if strengths.regrays:
            for image, table in zip(augmented, gray_tables(draws), strict=True):
                cv2.LUT(image, table, image)
        return augmented


def _uniforms(seed: int, epoch: int, rows: np.ndarray) -> np.ndarray:
    """(UNIFORMS, n) float64 inside (0, 1): the generator is keyed by the seed and counts rows and epochs."""
    half = np.uint64(0xFFFFFFFF)
    blocks = UNIFORMS // 4
    counter = [
        np.tile(rows & half, blocks),
        np.tile(rows >> np.uint64(32), blocks),
        np.full(blocks * len(rows), epoch, dtype=np.uint64),
        np.repeat(np.arange(blocks, dtype=np.uint64), len(rows)),
    ]
    words = philox(counter, (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF))
    uniform = (np.stack(words).astype(np.float64) + 0.5) / 2**32
    return uniform.reshape(4, blocks, len(rows)).swapaxes(0, 1).reshape(UNIFORMS, len(rows))


def philox(counter: Sequence[np.ndarray], key: tuple[int, int]) -> list[np.ndarray]:
    """Philox4x32-10 (Salmon et al. 2011, doi 10.1145/2063384.2063405): four random words for each counter of four.

    All are 32-bit numbers in uint64 arrays. numpy's own Philox takes one counter at a time, at microseconds each.
    """
    a, b, c, d = counter
    half, bits = np.uint64(0xFFFFFFFF), np.uint64(32)
    for turn in range(10):
        left, right = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
        first = np.uint64((key[0] + turn * 0x9E3779B9) & 0xFFFFFFFF)
        second = np.uint64((key[1] + turn * 0xBB67AE85) & 0xFFFFFFFF)
        a, b, c, d = (right >> bits) ^ b ^ first, right & half, (left >> bits) ^ d ^ second, left & half
    return [a, b, c, d]
