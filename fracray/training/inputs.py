"""What a step trains on, as tensors on the device: images, labels and maps of where the boxes are, mixed where asked.

Knows no losses.
"""

import numpy as np
import torch
from torch import Tensor

from fracray.config import Config
from fracray.data.loading.boxes import BoxMaps
from fracray.data.loading.plan import Batch, Plan
from fracray.training.growth import shrunk
from fracray.training.mixing import Mix, draw_mix, mixes
from fracray.training.model import Classifier


class Inputs:
    """The inputs of one fit's steps; `network` is of the kind that is trained, so that its maps have as many cells."""

    def __init__(self, config: Config, plan: Plan, network: Classifier, device: torch.device) -> None:
        self._config, self._plan, self._device = config, plan, device
        self._targets: MapTargets | None = None
        if config.model.localise and plan.boxes is not None and config.train.box_weight > 0:
            self._targets = MapTargets(plan, network, device)

    def of(self, batch: Batch, epoch: int, step: int, side: int | None) -> list[Tensor]:
        """Images (n, side, side), labels (n,), and, where the map is trained, `MapTargets.of`; step: within the epoch.

        side: of the images that are trained on, in pixels; None: as the stream has them. The last batch of an epoch may
        have fewer images than ranks: without one, this is an image that the step counts with weight 0.
        """
        images, labels = shrunk(to_device(batch.images, self._device), side), to_device(batch.labels, self._device)
        mix = None
        if not len(labels):
            images = torch.zeros((1, *images.shape[1:]), dtype=torch.uint8, device=self._device)
            labels = torch.zeros(1, device=self._device)
        elif mixes(self._config.train):
            mix = draw_mix(self._config.train, len(labels), images.shape[-1], epoch, step, self._plan.rank)
            partners = to_device(mix.partners, self._device)
            images, labels = mix.images(images, partners), mix.labels(labels, partners)
        maps: list[np.ndarray] = []
        if self._targets is not None:
            maps = self._targets.of(batch.rows, epoch, batch.images.shape[-1], images.shape[-1], mix)
        return [images, labels, *(to_device(array, self._device) for array in maps)]


def to_device(array: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """The array on the device, where a stream may have it already."""
    if isinstance(array, Tensor):
        return array
    # Ray's shared arrays are read-only, and torch warns about tensors over such memory.
    tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor


class MapTargets:
    """What maps are trained against; the network tells how many cells they have for images of a size."""

    def __init__(self, plan: Plan, network: Classifier, device: torch.device) -> None:
        self._plan, self._network, self._device = plan, network, device
        self._held: tuple[int, BoxMaps] | None = None  # for images of this side

    def of(self, rows: np.ndarray, epoch: int, whole: int, side: int, mix: Mix | None) -> list[np.ndarray]:
        """Shares of each cell in a box, (n, cells, cells), and what is known or how much it weighs, (n,).

        whole: the side in pixels of the stream's images; side: of those that are trained on. With a `mix` two more
        follow, the partners': of mixup theirs with the rest of the weight. What CutMix pastes is in the first ones, and
        known where both images' are; the others weigh nothing, so that batches of both kinds look alike. Without rows
        it is one map that weighs nothing.
        """
        maps = self._maps(whole, side)
        if not len(rows):
            return [np.zeros((1, maps.cells, maps.cells), dtype=np.float32), np.zeros(1, dtype=np.float32)]
        if mix is None:
            return [*maps.of(rows, epoch)]
        if mix.window is None:
            shares, known = maps.of(rows, epoch)
            own, theirs = np.float32(mix.share), np.float32(1 - mix.share)
            return [shares, known * own, shares[mix.partners], known[mix.partners] * theirs]
        top, bottom, left, right = (edge / side for edge in mix.window)
        outside, inside, known = maps.cut(rows, epoch, (top, bottom, left, right))
        both = (known & known[mix.partners]).astype(np.float32)
        pasted = np.minimum(outside + inside[mix.partners], 1)  # both are rounded
        return [pasted, both, np.zeros_like(outside), np.zeros_like(both)]

    def _maps(self, whole: int, side: int) -> BoxMaps:
        if self._held is None or self._held[0] != side:
            with torch.no_grad():
                blank = torch.zeros((1, 1, side, side), dtype=torch.uint8, device=self._device)
                where = self._network(blank, True)[1]
            self._held = side, BoxMaps(self._plan, whole, where.shape[-1])
        return self._held[1]
