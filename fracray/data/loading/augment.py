"""The training augmentation: strengths become draws, and draws become augmented radiographs.

The engine is albumentations: `build_pipeline` makes its pipeline, of one lookup table of gray levels, one affine warp,
and the transforms named in `augment.extra`. In training the draws depend on (seed, epoch, row) alone, never on who
augments, on which device, in which order or in how many processes: the stream from memory, the tasks of Ray Data and a
GPU (`gpu_stream`) apply the same draws. Imports neither Torch nor Ray; albumentations, which imports Torch, only where
a pipeline is built.
"""

import random
import zlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from fracray.config import AugmentConfig
from fracray.config.extra_transforms import make_transform
from fracray.data.loading.draws import Pictures, draw, gray_tables, random_words, source_matrices
from fracray.data.loading.pixels import NEAREST, regray, warp

if TYPE_CHECKING:
    import albumentations as A


def build_pipeline(strengths: AugmentConfig, **options: Any) -> "A.Compose":
    """The augmentation as a pipeline of albumentations: `build_pipeline(config.augment)(image=image)["image"]`.

    It holds `GrayLevels`, where the strengths change those, a `Warp`, where they flip or warp, and the transforms of
    `augment.extra` in their order. It takes gray uint8 images (H, W) and draws from its own random state (`seed`).
    `options` go to `A.Compose`: `bbox_params` for boxes, `seed`, ... `A.to_dict` and `A.from_dict` save and restore it;
    another process must import `fracray.data.loading.transforms` first.
    """
    import albumentations as A

    from fracray.data.loading.transforms import GrayLevels, Warp

    transforms: list[A.BasicTransform] = []
    if strengths.regrays:  # first: what comes from outside the picture must not tell the draw
        transforms.append(GrayLevels(strengths.brightness, strengths.contrast))
    if strengths.warps or strengths.flips:
        flips = strengths.flip, strengths.vertical_flip
        transforms.append(Warp(strengths.rotate, *flips, strengths.scale, strengths.largest_stretch))
    transforms += [make_transform(name, arguments) for name, arguments in strengths.extra.items()]
    return A.Compose(transforms, **options)


class Augmenter:
    """Augments batches of radiographs on the CPU; without extra transforms it holds the interpreter lock for only a few
    microseconds per image."""

    def __init__(self, strengths: AugmentConfig, seed: int) -> None:
        self._strengths, self._seed = strengths, seed
        self._moves = strengths.warps or strengths.flips
        self._extra = []
        if strengths.extra:  # albumentations takes a second to import, and is not needed for the rest
            pipeline = build_pipeline(strengths)
            named = zip(strengths.extra, pipeline.transforms[len(pipeline) - len(strengths.extra) :], strict=True)
            self._extra = [_Reseeded(name, transform) for name, transform in named if transform.p > 0]
        cv2.setNumThreads(1)  # workers and tasks run in parallel already

    def batch(
        self, images: np.ndarray, epoch: int, rows: Sequence[int] | np.ndarray, pictures: Pictures | None = None
    ) -> np.ndarray:
        """Augment (n, H, W) uint8 images into a new array; an augmentation that is off returns `images` itself.

        `rows` are the images' numbers in the prepared set, `epoch` counts from 0, `pictures` says where in the images
        the pictures are (None: look). Gray levels change inside the picture only. A warp interpolates linearly, and
        what comes from outside the image is black; flips alone move pixels without changing them.
        """
        moves, regrays = self._moves, self._strengths.regrays
        augmented = images
        if moves or regrays:
            draws = draw(self._strengths, self._seed, epoch, rows)
            augmented = np.empty(images.shape, dtype=np.uint8)
        before = images
        if regrays:
            pictures = pictures or Pictures.of_images(images)
            tables, frames = gray_tables(draws, pictures.means), pictures.frames.tolist()
            before = np.empty(images.shape, dtype=np.uint8) if moves else augmented
            for image, into, table, frame in zip(images, before, tables, frames, strict=True):
                regray(image, table, frame, into)
        if self._strengths.warps:
            matrices = source_matrices(draws, *images.shape[1:])
            for image, into, matrix in zip(before, augmented, matrices, strict=True):
                warp(image, False, False, matrix, into)  # the flips are part of the matrix
        elif moves:
            for image, into, flip, vertical in zip(before, augmented, draws.flip, draws.vertical_flip, strict=True):
                warp(image, flip, vertical, None, into)
        if self._extra and augmented is images:
            augmented = images.copy()
        for transform in self._extra:
            transform.batch(augmented, self._seed, epoch, rows)
        return augmented

    def masks(self, masks: np.ndarray, epoch: int, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Move the pixels of (n, H, W) uint8 masks as those of the images of these rows are moved, into a new array.

        Gray levels stay; the nearest pixel decides, and outside is 0.
        """
        moved = masks.copy()
        if self._moves:
            draws = draw(self._strengths, self._seed, epoch, rows)
            matrices = source_matrices(draws, *masks.shape[1:])
            for mask, into, matrix in zip(masks, moved, matrices, strict=True):
                warp(mask, matrix=matrix, dst=into, interpolation=NEAREST)
        for transform in self._extra:
            transform.masks(moved, self._seed, epoch, rows)
        return moved


class _Reseeded:
    """A transform of albumentations whose draws are a function of (seed, epoch, row) and of its name: adding or
    removing another transform does not change them."""

    def __init__(self, name: str, transform: "A.BasicTransform") -> None:
        self._transform = transform
        self._block = zlib.crc32(name.encode()) | 2**31  # no block of `draw`
        self._bits, self._random = np.random.PCG64(0), random.Random()  # 0 fixes the increment, which is not reseeded
        transform.set_random_state(np.random.Generator(self._bits), self._random)

    def batch(self, images: np.ndarray, seed: int, epoch: int, rows: Sequence[int] | np.ndarray) -> None:
        """Augment (n, H, W) uint8 images in place."""
        for at in self._each(seed, epoch, rows):
            images[at] = self._transform(image=images[at])["image"]

    def masks(self, masks: np.ndarray, seed: int, epoch: int, rows: Sequence[int] | np.ndarray) -> None:
        """Move (n, H, W) uint8 masks in place, as `batch` moves the images; transforms of gray levels alone move none.

        What is drawn must not depend on gray levels, which are not known here: no geometric transform's does.
        """
        import albumentations as A

        if isinstance(self._transform, A.DualTransform):
            unseen = np.zeros(masks.shape[1:], dtype=np.uint8)
            for at in self._each(seed, epoch, rows):
                masks[at] = self._transform(image=unseen, mask=masks[at])["mask"]

    def _each(self, seed: int, epoch: int, rows: Sequence[int] | np.ndarray) -> Iterator[int]:
        """The places of these rows, each with the random state of its row."""
        state: Any = self._bits.state
        for at, words in enumerate(random_words(seed, epoch, rows, [self._block])[0].T.tolist()):
            state["state"]["state"] = sum(word << 32 * place for place, word in enumerate(words))
            state["has_uint32"] = 0
            self._bits.state = state
            self._random.seed(state["state"]["state"])
            yield at
