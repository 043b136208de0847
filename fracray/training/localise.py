"""The head that says where a fracture is: a coarse map of logits, trained on the fractures' boxes.

What it finds is evidence for the image's own logit too, so that the place teaches the label. Knows nothing of
backbones, of radiographs on disk or of Ray.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHANNELS = 128
RARE = 0.02  # a cell's probability of a fracture at the start: few lie in a box
BOXED = 10.0  # weight of a cell that lies in a box; one that lies outside has 1
CELLS = 4.0  # weight of the cross-entropy of the cells; the overlap has 1


class Localiser(nn.Module):
    """From two feature maps, at a sixteenth of the image's resolution and at the last one, to a map of fracture logits.

    The coarse map knows the context, the fine one the place: they are added as in a feature pyramid (Lin et al. 2017,
    doi 10.1109/CVPR.2017.106).
    """

    def __init__(self, fine: int, coarse: int) -> None:
        super().__init__()
        self.fine = nn.Conv2d(fine, CHANNELS, 1)
        self.coarse = nn.Conv2d(coarse, CHANNELS, 1)
        self.mix = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.dropout = nn.Dropout2d(0.1)
        self.out = nn.Conv2d(CHANNELS, 1, 1)
        nn.init.constant_(self.out.bias, math.log(RARE / (1 - RARE)))  # type: ignore[arg-type]
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """(B, fine, h, w) and (B, coarse, h', w') to (B, h, w) float32 logits."""
        raised = F.interpolate(self.coarse(coarse), size=fine.shape[2:], mode="bilinear")
        mixed = F.relu(self.mix(F.relu(self.fine(fine) + raised)))
        return self.out(self.dropout(mixed)).float().squeeze(1)

    def evidence(self, where: Tensor) -> Tensor:
        """What a map (B, h, w) adds to the image's logit, (B,): a smooth maximum, weighted; about 0 at the start.

        The log of the mean of the exponentials (Pinheiro and Collobert 2015, doi 10.1109/CVPR.2015.7298780) does not
        change with the number of cells.
        """
        cells = where.shape[1] * where.shape[2]
        return self.weight * (torch.logsumexp(where.flatten(1), 1) - math.log(cells) - math.log(RARE))


def map_loss(where: Tensor, shares: Tensor, known: Tensor) -> Tensor:
    """Loss (B,) of maps of logits (B, h, w) against the shares of their cells in a box; 0 where not `known`, (B,).

    Cross-entropy of the cells, those in a box weighing more, plus, where there is a box, the Dice loss of the overlap
    (Milletari et al. 2016, doi 10.1109/3DV.2016.79).
    """
    weights = 1 + (BOXED - 1) * shares
    crossed = F.binary_cross_entropy_with_logits(where, shares, reduction="none") * weights
    cells = crossed.sum((1, 2)) / weights.sum((1, 2))
    found = torch.sigmoid(where)
    both, either = (found * shares).sum((1, 2)), (found + shares).sum((1, 2))
    overlap = (1 - (2 * both + 1) / (either + 1)) * (shares.flatten(1).amax(1) > 0)
    return (CELLS * cells + overlap) * known
