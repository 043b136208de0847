"""Mixing the images of a batch with each other: mixup blends two, CutMix pastes a window of one into another.

Mixup: Zhang et al. 2018 (arXiv 1710.09412). CutMix: Yun et al. 2019 (doi 10.1109/ICCV.2019.00612). The draws are a
function of (seed, epoch, step, rank). timm's `Mixup` draws from numpy's global state, and knows neither one logit nor
maps. Knows nothing of networks or of Ray.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fracray.config import TrainConfig

MIXING = 2  # tells these draws from all others that have the same seed


@dataclass(frozen=True)
class Mix:
    """How a batch is mixed: image i with image partners[i], all in the same way.

    share: of the image itself in the label, 0 to 1; the rest is its partner's. window: of CutMix, the top, bottom, left
    and right edge, in pixels, of what is the partner's; None: mixup, the share is that of each pixel.
    """

    partners: np.ndarray
    share: float
    window: tuple[int, int, int, int] | None

    def images(self, images: Tensor, partners: Tensor) -> Tensor:
        """Mix (n, S, S) uint8 into float32; `partners`: these on the images' device."""
        if self.window is None:
            return torch.lerp(images[partners].float(), images.float(), self.share)
        top, bottom, left, right = self.window
        mixed = images.float()
        mixed[:, top:bottom, left:right] = images[partners, top:bottom, left:right].float()
        return mixed

    def labels(self, labels: Tensor, partners: Tensor) -> Tensor:
        """Mix (n,) labels, 0. and 1., into what lies between."""
        return torch.lerp(labels[partners], labels, self.share)


def mixes(config: TrainConfig) -> bool:
    """Whether batches are mixed."""
    return config.mixup > 0 or config.cutmix > 0


def draw_mix(config: TrainConfig, count: int, side: int, epoch: int, step: int, rank: int) -> Mix:
    """The draw for a batch of `count` images of `side` pixels; `step` counts within the epoch.

    Where both kinds are on, each batch has one of them, either with the same probability, as timm has it.
    """
    random = np.random.default_rng((config.seed, epoch, step, rank, MIXING))
    partners = random.permutation(count)
    cuts = config.cutmix > 0 and (not config.mixup or random.random() < 0.5)
    alpha = config.cutmix if cuts else config.mixup
    share = float(random.beta(alpha, alpha))
    if not cuts:
        return Mix(partners, share, None)
    edges = []
    for centre in random.integers(side, size=2).tolist():
        half = int(side * np.sqrt(1 - share)) // 2
        edges += [max(0, centre - half), min(side, centre + half)]
    top, bottom, left, right = edges
    # The label has the shares of the pixels: the window may be cut off at the edge of the image.
    return Mix(partners, 1 - (bottom - top) * (right - left) / side**2, (top, bottom, left, right))
