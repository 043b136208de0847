"""Strengths to an albumentations pipeline, drawn anew for every image and epoch.

The draw depends on (seed, epoch, image) alone, never on who augments, in which order or in how many processes:
the worker's own memory stream and Ray Data's tasks give the same pixels. Imports neither Torch nor Ray.
"""

import os
import random
from collections.abc import Sequence

import numpy as np

from fracray.config import AugmentConfig

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import asks the network for a newer version otherwise

import albumentations as A
import cv2


def build_pipeline(strengths: AugmentConfig) -> A.Compose:
    """The albumentations pipeline of these strengths; a strength of 0 leaves its transform out.

    Rotation (degrees) and scaling (relative) are one affine warp with black fill, brightness (share of full
    scale) and contrast (relative) one lookup table; images are (H, W) uint8.
    """
    transforms: list[A.BasicTransform] = []
    if strengths.flip:
        transforms.append(A.HorizontalFlip(p=strengths.flip))
    if strengths.vertical_flip:
        transforms.append(A.VerticalFlip(p=strengths.vertical_flip))
    if strengths.rotate or strengths.scale:
        transforms.append(
            A.Affine(
                rotate=(-strengths.rotate, strengths.rotate),
                scale=(1 - strengths.scale, 1 + strengths.scale),
                interpolation=cv2.INTER_LINEAR,
                p=1.0,
            )
        )
    if strengths.brightness or strengths.contrast:
        transforms.append(
            A.RandomBrightnessContrast(brightness_limit=strengths.brightness, contrast_limit=strengths.contrast, p=1.0)
        )
    return A.Compose(transforms)


class Augmenter:
    """Applies one pipeline to images of shape (H, W), dtype uint8, with a reproducible draw for each."""

    def __init__(self, strengths: AugmentConfig, seed: int) -> None:
        self._pipeline = build_pipeline(strengths)
        self._off = not self._pipeline.transforms
        self._seed = seed
        # Both generators are handed over once and reseeded in place for each image: albumentations' own
        # set_random_seed builds new ones for every transform, which costs more than the warp itself.
        self._bits = np.random.Philox(key=0)
        self._state = self._bits.state
        self._python = random.Random()
        self._pipeline.set_random_state(np.random.Generator(self._bits), self._python)

    def __call__(self, image: np.ndarray, epoch: int, row: int) -> np.ndarray:
        """Augment one image; `row` is its number in the prepared set, `epoch` counts from 0."""
        if self._off:
            return image
        self._reseed(epoch, row)
        return self._pipeline(image=image)["image"]

    def batch(self, images: np.ndarray, epoch: int, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Augment (N, H, W) uint8 images into a new array; an augmentation that is off returns `images` itself."""
        if self._off:
            return images
        augmented = np.empty_like(images)
        for slot, row in enumerate(rows):
            augmented[slot] = self(images[slot], epoch, int(row))
        return augmented

    def _reseed(self, epoch: int, row: int) -> None:
        # A counter-based generator (Salmon et al. 2011, doi 10.1145/2063384.2063405) takes any key at no cost.
        key = self._state["state"]["key"]
        counter = self._state["state"]["counter"]
        key[0], key[1] = self._seed, epoch
        counter[:] = (0, 0, row, 0)
        self._state["buffer_pos"] = 4
        self._state["has_uint32"] = 0
        self._bits.state = self._state
        self._python.seed(int(self._bits.random_raw()))
