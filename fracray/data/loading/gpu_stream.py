"""Batches of a set that is kept on a GPU and augmented there, with the draws of `fracray.data.loading.draws`.

Same interface as `streams.MemoryStream`. Runs on every device of Torch, the CPU included. Knows nothing of models and
imports no Ray.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import torch
from torch.nn import functional as F

from fracray.config import AugmentConfig
from fracray.data.loading.draws import Pictures, draw, gray_lines, originals, source_matrices
from fracray.data.loading.plan import Batch, Plan
from fracray.errors import InputError
from fracray.runtime.efficiency import TRANSFORM, Meter, Stretches

FREE_SHARE = 0.5  # of the free memory of a GPU that the set may fill; the network and its batches need the rest
BATCHES_AT_ONCE = 64  # drawn and sent to the device together, so that steps need not wait for either
IMAGES_AT_ONCE = 1024  # copied to the device

_held: dict[torch.device, tuple[np.ndarray, torch.Tensor]] = {}  # the set that this process keeps on a device


class DeviceStream:
    """The batches of `MemoryStream`, from all images (N, S, S) uint8 kept on `device` and augmented there.

    Flips and gray levels equal those of the CPU bit for bit. A warp interpolates in another order of arithmetic: about
    one pixel in 50,000 is rounded to the next gray level (measured with Torch on the CPU). Extra transforms run on the
    CPU only; a config with both is refused. Raises InputError where the set does not fit the device.
    """

    def __init__(self, plan: Plan, images: np.ndarray, device: torch.device, meter: Meter | None = None) -> None:
        self.plan = plan
        self._device, self._meter = device, meter or Meter()
        self._images = resident(images, device)

    def train(self, epoch: int) -> Iterator[Batch]:
        """This rank's augmented batches of one epoch."""
        plan, slices = self.plan, self.plan.train_slices(epoch)
        timed: Stretches = []
        for first in range(0, len(slices), BATCHES_AT_ONCE):
            chunk = slices[first : first + BATCHES_AT_ONCE]
            rows = np.concatenate([rows for rows, _ in chunk])
            pictures = plan.pictures.of(originals(rows))
            drawn = _DeviceDraws.draw(plan.strengths, plan.seed, epoch, rows, pictures, self._device)
            start = 0
            for rows, count in chunk:
                part = drawn.part(start, start + len(rows))
                start += len(rows)
                with self._meter.stretch(TRANSFORM, self._device, timed):
                    images = _augment(self._images[part.rows], part, plan.strengths)
                yield Batch(images, plan.labels[originals(rows)], rows, count)

        for begun, ended in timed:
            ended.synchronize()
            self._meter.add_wall(TRANSFORM, begun.elapsed_time(ended) / 1000)

    def validation(self) -> Iterator[Batch]:
        """This rank's part of the validation set, not augmented."""
        for rows, count in self.plan.val_slices():
            yield Batch(self._images[_to_device(rows, self._device)], self.plan.labels[rows], rows, count)

    def close(self) -> None:
        """Keeps the images on the device for the next trial of this process."""


def resident(images: np.ndarray, device: torch.device) -> torch.Tensor:
    """All images on the device: copied there once, and kept for later streams over the same array."""
    array, tensor = _held.get(device, (None, None))
    if array is images and tensor is not None:
        return tensor
    _held.pop(device, None)
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        if images.nbytes > FREE_SHARE * free:
            raise InputError(
                f"data.augment_on = gpu keeps all images on the GPU: their {images.nbytes / 2**30:.1f} GiB are more "
                f"than half of its {free / 2**30:.1f} GiB of free memory; set data.augment_on=cpu, or a smaller "
                "data.size, or fewer trials on one GPU"
            )
    tensor = torch.empty(images.shape, dtype=torch.uint8, device=device)
    for first in range(0, len(images), IMAGES_AT_ONCE):  # a copy of each part: the array may be read-only
        tensor[first : first + IMAGES_AT_ONCE] = torch.tensor(images[first : first + IMAGES_AT_ONCE])
    _held[device] = images, tensor
    return tensor


@dataclass(frozen=True)
class _DeviceDraws:
    """`fracray.data.loading.draws.Draws` of n images, as a device needs them."""

    rows: torch.Tensor  # (n,) int64, of the images
    flip: torch.Tensor  # (n,) bool
    vertical_flip: torch.Tensor  # (n,) bool
    source: torch.Tensor  # (n, 2, 3), from places in the augmented image to places in the original, corners at -1 and 1
    slope: torch.Tensor  # (n,) from a gray level to its new one
    offset: torch.Tensor  # (n,)
    frames: torch.Tensor  # (n, 4) int32, see `Pictures`

    @classmethod
    def draw(
        cls,
        strengths: AugmentConfig,
        seed: int,
        epoch: int,
        rows: np.ndarray,
        pictures: Pictures,
        device: torch.device,
    ) -> Self:
        draws = draw(strengths, seed, epoch, rows)
        # About the centre, which is Torch's origin, and along equal sides: the matrix of pixels without its shift.
        source = np.zeros((len(rows), 2, 3), dtype=np.float32)
        source[:, :, :2] = source_matrices(draws, 2, 2)[:, :, :2]
        slope, offset = gray_lines(draws, pictures.means)
        arrays = (originals(rows), draws.flip, draws.vertical_flip, source, slope, offset, pictures.frames)
        return cls(*(_to_device(array, device) for array in arrays))

    def part(self, start: int, stop: int) -> "_DeviceDraws":
        return _DeviceDraws(*(getattr(self, field.name)[start:stop] for field in fields(self)))


def _to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    # A copy from pageable memory would wait for all steps that the device has not done.
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _augment(images: torch.Tensor, drawn: _DeviceDraws, strengths: AugmentConfig) -> torch.Tensor:
    """Augment (n, S, S) uint8 images, as `fracray.data.loading.augment.Augmenter` does."""
    if not len(images):
        return images
    if strengths.regrays:
        levels = images * drawn.slope[:, None, None] + drawn.offset[:, None, None]
        images = torch.where(_inside(drawn.frames, images), levels.clamp_(0, 255).to(torch.uint8), images)
    if strengths.warps:
        grid = F.affine_grid(drawn.source, [len(images), 1, *images.shape[1:]], align_corners=True)
        levels = images.float()[:, None]
        levels = F.grid_sample(levels, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
        return levels[:, 0].round_().clamp_(0, 255).to(torch.uint8)
    images = torch.where(drawn.flip[:, None, None], images.flip(2), images)
    return torch.where(drawn.vertical_flip[:, None, None], images.flip(1), images)


def _inside(frames: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """(n, H, W) bool: the pixels of the pictures."""
    top, bottom, left, right = (edge[:, None] for edge in frames.unbind(1))
    rows, columns = (torch.arange(length, device=images.device) for length in images.shape[1:])
    return ((rows >= top) & (rows < bottom))[:, :, None] & ((columns >= left) & (columns < right))[:, None]
