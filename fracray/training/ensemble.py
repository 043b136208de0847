"""Several networks as one: the mean of their logits, and the one network whose weights are the mean of theirs.

Knows nothing of files, of how the networks were trained, or of which are worth it.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, overload

import torch
from torch import Tensor, nn
from torch.nn import functional

from fracray.training.model import Classifier


class Ensemble(nn.Module):
    """The mean logit of several networks for each image.

    forward: (B, 1, S, S), uint8 or float, in 0..255, to (B,) float32, as of each of its `members`;
    `forward(images, True)` gives the mean map of fracture logits too, where each member has a map.
    """

    def __init__(self, members: Sequence[Classifier]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.localises = all(member.localises for member in members)

    @overload
    def forward(self, images: Tensor, where: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(self, images: Tensor, where: Literal[True]) -> tuple[Tensor, Tensor]: ...
    def forward(self, images: Tensor, where: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        if not where:
            return torch.stack([member(images) for member in self.members]).mean(0)
        logits, maps = zip(*(member(images, True) for member in self.members), strict=True)
        finest = max((found.shape[1:] for found in maps), key=lambda shape: shape[0])
        sized = [functional.interpolate(found.unsqueeze(1), finest, mode="bilinear").squeeze(1) for found in maps]
        return torch.stack(logits).mean(0), torch.stack(sized).mean(0)


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
