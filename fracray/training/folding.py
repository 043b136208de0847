"""Networks that no longer train: the batch norm after a convolution becomes part of it.

In evaluation mode batch norm is a factor and a summand for each channel, which the convolution before it can have in
its weights. On a CPU a third of the time of EfficientNet-Lite0 goes into batch norm otherwise. Knows nothing of Ray.
"""

import copy
import sys
from collections import Counter
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from fracray.training.model import float32

Network = TypeVar("Network", bound=nn.Module)
Pairs = tuple[tuple[str, str], ...]  # names of a convolution and of the batch norm that takes its output, and only that

AGREE = 1e-3  # of the largest logit: rounding is a thousand times smaller, an output that is used elsewhere is not


def foldable(network: nn.Module, side: int) -> Pairs:
    """The convolutions whose output goes to a batch norm and nowhere else, found on a random image of this side.

    network: (B, 1, S, S) uint8 to (B,) logits. None where the network with all of them folded, tried with random batch
    norms, gives other logits.
    """
    generator = torch.Generator().manual_seed(0)
    tried = _with_random_norms(network, generator)
    device = next(tried.parameters()).device
    image = torch.randint(0, 256, (2, 1, side, side), dtype=torch.uint8, generator=generator).to(device)
    with torch.inference_mode(), float32():
        pairs, logits = _pairs(tried, image)
        apart = (folded(tried, pairs)(image) - logits).abs().max()
        return pairs if apart <= AGREE * logits.abs().max() else ()  # never where the weights are not finite


def folded(network: Network, pairs: Pairs) -> Network:
    """A copy of the network for evaluation alone, with these batch norms in their convolutions.

    In float32 it gives the same but for rounding.
    """
    found = copy.deepcopy(network).eval().requires_grad_(False)
    for conv_name, norm_name in pairs:
        conv, norm = found.get_submodule(conv_name), found.get_submodule(norm_name)
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        exact = [None if tensor is None else tensor.double() for tensor in _tensors(conv, norm)]
        weight, bias = fuse_conv_bn_weights(*exact[:4], norm.eps, *exact[4:])  # type: ignore[arg-type]
        conv.weight.copy_(weight)  # keeps its layout in memory
        conv.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=False)
        found.set_submodule(norm_name, _after(norm))
    return found


def _tensors(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor | None, ...]:
    return conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias


def _after(norm: nn.BatchNorm2d) -> nn.Module:
    """What a batch norm does besides."""
    return nn.Sequential(norm.get_submodule("drop"), norm.get_submodule("act")) if _acts(norm) else nn.Identity()


def _acts(module: nn.Module) -> bool:
    """Whether it is timm's batch norm with dropout and activation; a network that has one has imported timm."""
    return "timm.layers" in sys.modules and type(module) is sys.modules["timm.layers"].BatchNormAct2d


def _with_random_norms(network: nn.Module, generator: torch.Generator) -> nn.Module:
    """A copy whose batch norms all do something, as those of an untrained network do not."""
    tried = copy.deepcopy(network).eval().requires_grad_(False)
    for norm in (module for module in tried.modules() if isinstance(module, nn.BatchNorm2d)):
        for tensor, low, high in (
            (norm.running_mean, -0.2, 0.2),
            (norm.running_var, 0.5, 1.5),
            (norm.weight, 0.5, 1.5),
            (norm.bias, -0.2, 0.2),
        ):
            if tensor is not None:
                tensor.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))
    return tried


def _pairs(network: nn.Module, image: Tensor) -> tuple[Pairs, Tensor]:
    """Which batch norms take the output of one convolution each, as often as it is computed; and the logits."""
    made: dict[int, tuple[str, Tensor]] = {}  # the tensor is kept, so that no other one gets its number
    took: dict[str, set[str | None]] = {}
    runs: Counter[str] = Counter()
    hooks = []

    def watch(name: str) -> Any:
        def ran(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            runs[name] += 1
            if isinstance(module, nn.Conv2d):
                made[id(output)] = (name, output)
            else:
                took.setdefault(name, set()).add(made.get(id(inputs[0]), (None, output))[0])

        return ran

    for name, module in network.named_modules():
        hooked = module._forward_hooks or module._forward_pre_hooks
        if not hooked and (isinstance(module, nn.Conv2d) or type(module) is nn.BatchNorm2d or _acts(module)):
            hooks.append(module.register_forward_hook(watch(name)))
    try:
        logits: Tensor = network(image)
    finally:
        for hook in hooks:
            hook.remove()
    pairs = []
    for norm, convs in took.items():
        conv, *others = convs
        if conv is not None and not others and runs[conv] == runs[norm]:
            pairs.append((conv, norm))
    return tuple(pairs), logits
