"""Training on smaller images first: cheap epochs that learn what is coarse, then full ones for what is fine.

After Tan and Le, "EfficientNetV2", 2021 (arXiv 2104.00298). Knows nothing of radiographs on disk.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from fracray.config import Config
from fracray.errors import InputError
from fracray.training.layers import below_head
from fracray.training.model import build_model

HEAD_WORK = 0.3  # of a step that trains the head alone, which is a forward pass; 0.25 for EfficientNet-Lite0 on a CPU


def side_in(config: Config, epoch: int) -> int | None:
    """The side in pixels of the images that an epoch, counted from 0, trains on; None: the full one, as in the last."""
    grown = min(round(config.train.grow_at * config.train.epochs), config.train.epochs - 1)
    return config.train.first_size if epoch < grown else None


def work_in(config: Config, epoch: int) -> float:
    """The work of an epoch, counted from 1, as a share of one of the complete network on full images, above 0 to 1."""
    share = ((side_in(config, epoch - 1) or config.data.size) / config.data.size) ** 2
    return share * (HEAD_WORK if epoch <= config.train.head_epochs else 1)


def shrunk(images: Tensor, side: int | None) -> Tensor:
    """(n, S, S) uint8 images to (n, side, side) uint8; the same tensor where they have this side, or it is None.

    Averages over what becomes one pixel, so that thin lines stay visible.
    """
    if side is None or images.shape[-1] == side:
        return images
    levels = F.interpolate(images.float().unsqueeze(1), size=(side, side), mode="bilinear", antialias=True)
    return levels.squeeze(1).round_().clamp_(0, 255).to(torch.uint8)


def try_network(config: Config) -> None:
    """Build the network, and try it on images of every side it will see; InputError where a setting does not fit."""
    model = build_model(config.model, size=config.data.size)
    if config.train.layer_decay < 1:
        below_head(model)
    first = side_in(config, 0)
    if first is not None:
        try:
            build_model(config.model, load_weights=False, size=first)
        except InputError:
            raise InputError(
                f"train.first_size = {first}: {config.model.name} does not take images of this side; set "
                "train.first_size=null"
            ) from None
