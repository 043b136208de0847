"""Maps of where a network looks: the localiser's own, and Grad-CAM of any network with feature maps.

Also the same network with weights that know nothing, for the sanity check of such maps. Knows no radiographs on disk,
boxes or scores.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any, Literal

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fracray.evaluation.inference import BATCH
from fracray.training.ensemble import Ensemble
from fracray.training.layers import stage_parameters
from fracray.training.loop import pick_device
from fracray.training.model import Classifier, float32

Method = Literal["localiser", "grad_cam"]
WORDS: dict[Method, str] = {"localiser": "the map of the localiser", "grad_cam": "Grad-CAM"}
GLOW = (60, 60, 255)  # BGR: red
STRONGEST = 0.65  # how much of a pixel the map may cover


def methods(model: Classifier | Ensemble) -> tuple[Method, ...]:
    """The maps that this network has: of an ensemble, those that each member has."""
    members = _members(model)
    found: list[Method] = ["localiser"] if model.localises else []
    if all(member.last_stage for member in members):
        found.append("grad_cam")
    return tuple(found)


def maps(model: Classifier | Ensemble, method: Method, images: Tensor) -> Tensor:
    """Maps (B, h, w) float32, 0 or above, of images (B, 1, S, S) on the network's device; in evaluation mode.

    Of the localiser, the probability of a fracture in each cell. Of Grad-CAM, 1 at the highest cell, or 0 everywhere
    where nothing speaks for a fracture; of an ensemble, the mean over its members at the finest resolution of theirs.
    """
    if method == "localiser":
        with torch.inference_mode(), float32():
            return model(images, True)[1].sigmoid()
    found = [_scaled(grad_cam(member, images)) for member in _members(model)]
    finest = max((one.shape[1:] for one in found), key=lambda shape: shape[0])
    sized = [F.interpolate(one.unsqueeze(1), finest, mode="bilinear").squeeze(1) for one in found]
    return torch.stack(sized).mean(0)


def grad_cam(model: Classifier, images: Tensor) -> Tensor:
    """Grad-CAM (B, h, w) float32 of the fracture's logit at the end of the last stage, 0 or above.

    Each channel of the last stage's output counts by the mean of the logit's gradient over its cells; what speaks
    against a fracture is cut off. Source: Selvaraju et al. 2017, doi 10.1109/ICCV.2017.74.
    """
    assert model.last_stage is not None, "Grad-CAM needs feature maps"
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        # A leaf of the graph: only what follows is differentiated. The copy may be changed in place.
        kept.append(output.detach().requires_grad_())
        return kept[-1].clone()

    # Before other hooks, so that a localiser's tap gets the copy too.
    hook = model.get_submodule(model.last_stage).register_forward_hook(keep, prepend=True)
    try:
        with torch.enable_grad(), float32():
            logits = model(images)
            gradients = torch.autograd.grad(logits.sum(), kept)
    finally:
        hook.remove()
    looks = [
        F.relu((gradient.mean((2, 3), keepdim=True) * maps_kept).sum(1)).detach().float()
        for gradient, maps_kept in zip(gradients, kept, strict=True)
    ]
    if not model.mirrors:
        (found,) = looks
        return found
    plain, mirrored = looks  # each of half the logit: their sum is a mean
    return plain + mirrored.flip(2)


def _scaled(found: Tensor) -> Tensor:
    highest = found.amax((1, 2), keepdim=True)
    return torch.where(highest > 0, found / highest, torch.zeros_like(found))


def over_images(images: np.ndarray, look: Callable[[Tensor], Tensor]) -> np.ndarray:
    """What `look` makes of images (n, S, S) uint8, (n, ...) float32; it takes (B, 1, S, S) on the device."""
    device = pick_device()
    batches = (
        torch.from_numpy(images[start : start + BATCH]).unsqueeze(1).to(device)
        for start in range(0, len(images), BATCH)
    )
    return np.concatenate([look(batch).float().cpu().numpy() for batch in batches])


def stretched(part: np.ndarray) -> np.ndarray:
    """A part of a map, (h, w), from 0 at its lowest place to 1 at its highest; 0 where it is the same everywhere."""
    low, high = float(part.min()), float(part.max())
    # Less is what resizing rounds.
    return (part - low) / (high - low) if high - low > 1e-6 * max(abs(low), abs(high)) else np.zeros_like(part)


def over_square(found: np.ndarray, inside: tuple[slice, slice], side: int) -> np.ndarray:
    """A map (h, w) of a square over a larger one, (side, side) float32: `stretched` inside, where the picture is.

    So the border of the square, whose cells may be the highest, does not say how strong the colours in the picture are.
    """
    level = np.zeros((side, side), dtype=np.float32)
    large = cv2.resize(found.astype(np.float32), (side, side), interpolation=cv2.INTER_LINEAR)
    level[inside] = stretched(large[inside])
    return level


def glowing(square: np.ndarray, level: np.ndarray) -> np.ndarray:
    """A gray picture (H, W) uint8 under a map (H, W) in 0..1: (H, W, 3) uint8, BGR."""
    weight = STRONGEST * level
    gray = cv2.cvtColor(square, cv2.COLOR_GRAY2BGR).astype(np.float32)
    return (gray * (1 - weight[..., None]) + np.array(GLOW, dtype=np.float32) * weight[..., None]).astype(np.uint8)


# ---- weights that know nothing -------------------------------------------------------------------------------------


def randomised(model: Classifier | Ensemble, seed: int) -> Iterator[tuple[str, Classifier | Ensemble]]:
    """The network with more and more of its weights drawn at random, from the head down, each with what is random.

    The cascade of Adebayo et al. 2018 (arXiv 1810.03292). A tensor of weights is drawn from a normal distribution
    around 0 of the same root mean square, and a vector (norms, biases) from one of the same mean and spread, so that
    activations keep their size, which batch norm's statistics depend on. The same copy is yielded each time, changed.
    """
    ours = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    parts = [stage_parameters(member)[::-1] for member in _members(ours)]  # from the head down
    steps = max(map(len, parts))
    for step in range(steps):
        for levels in parts:
            # Of members with fewer stages, all are random earlier.
            for parameter in levels[step] if step < len(levels) else ():
                _draw(parameter, generator)
        stages = "" if not step else " and the last stage" if step == 1 else f" and the last {step} stages"
        yield ("all weights" if step == steps - 1 else f"the head{stages}"), ours


def _draw(parameter: nn.Parameter, generator: torch.Generator) -> None:
    with torch.no_grad():
        noise = torch.randn(parameter.shape, generator=generator).to(parameter)
        if parameter.ndim > 1:
            parameter.copy_(noise * parameter.square().mean().sqrt())
        elif parameter.numel() > 1:
            parameter.copy_(parameter.mean() + noise * parameter.std())


def _members(model: Classifier | Ensemble) -> list[Classifier]:
    members = model.members if isinstance(model, Ensemble) else [model]
    return [member for member in members if isinstance(member, Classifier)]
