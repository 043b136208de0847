"""The loss of every image. Knows nothing of networks, data or Ray."""

import torch
from torch import Tensor
from torch.nn import functional as F

from fracray.config import TrainConfig


def mixed_loss(logits: Tensor, labels: Tensor, config: TrainConfig, positive_weight: float) -> Tensor:
    """Loss of every image, (n,), whose label lies between 0 and 1: `batch_loss` of each class, with its share."""
    intact, fractured = (
        batch_loss(logits, torch.full_like(labels, label), config, positive_weight) for label in (0.0, 1.0)
    )
    return torch.lerp(intact, fractured, labels)


def batch_loss(logits: Tensor, labels: Tensor, config: TrainConfig, positive_weight: float) -> Tensor:
    """Loss of every image, (n,): binary cross-entropy, weighted by class, or focal (Lin et al. 2017, arXiv 1708.02002).

    `positive_weight` is negatives over positives in an epoch; labels are 0. and 1.
    """
    targets = labels * (1 - 2 * config.label_smoothing) + config.label_smoothing
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    if config.loss == "plain":
        return losses
    if config.loss == "focal":
        # torchvision's sigmoid_focal_loss rounds 1 - p to 0 where an image is certain: for focal_gamma below 1 its
        # gradient is then nan. It would also smooth this factor with the labels.
        missed = torch.sigmoid((1 - 2 * labels) * logits)
        losses = losses * missed**config.focal_gamma
    # Both classes have the same total weight, and the mean weight is 1 for any imbalance.
    return losses * torch.where(labels > 0.5, (1 + positive_weight) / 2, (1 + positive_weight) / (2 * positive_weight))
