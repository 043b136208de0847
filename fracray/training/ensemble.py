"""Several networks as one: the mean of their logits, and the one network whose weights are the mean of theirs.

Knows nothing of files, of how the networks were trained, or of which are worth it.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class Ensemble(nn.Module):
    """The mean logit of several networks for each image.

    forward: (B, 1, S, S), uint8 or float, in 0..255, to (B,) float32, as of each of its `members`.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([member(images) for member in self.members]).mean(0)


def mean_weights(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of the tensors of networks of one kind, a "soup"; whole numbers are those of the first.

    Worth something only where all began from the same trained weights: Wortsman et al. 2022, arXiv 2203.05482.
    """
    first = states[0]
    return {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor.clone()
        for name, tensor in first.items()
    }
