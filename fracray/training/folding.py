"""Networks that no longer train: the batch norm after a convolution becomes part of it.

In evaluation mode batch norm is a factor and a summand for each channel, which the convolution before it can have in
its weights. On a CPU a third of the time of EfficientNet-Lite0 goes into batch norm otherwise. Knows nothing of Ray.
"""

import copy
import sys
from collections import Counter
from collections.abc import Iterable
from itertools import chain
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.nn.utils.parametrize import is_parametrized

from fracray.training.model import float32

Network = TypeVar("Network", bound=nn.Module)
Pairs = tuple[tuple[str, str], ...]  # names of a convolution and of the batch norm that takes its output, and only that

AGREE = 1e-3  # of the logit: rounding is a thousand times smaller, an output that is used elsewhere is not
_known: WeakKeyDictionary[nn.Module, Pairs] = WeakKeyDictionary()


def folded(network: Network, side: int) -> Network:
    """A copy of the network for evaluation alone, with batch norms in their convolutions wherever that is possible.

    network: (B, 1, S, S) uint8 to (B,) logits, tried on a random image of `side` pixels. In float32 the copy gives the
    same logits but for rounding. It shares all tensors that are not folded, and no state of a forward pass: each thread
    can have one.
    """
    if network not in _known:
        _known[network] = foldable(network, side)
    return _folded(network, _known[network])


def twin(network: Network) -> Network:
    """A copy for evaluation alone that shares all tensors and no state of a forward pass."""
    return _sharing(network, chain(network.parameters(), network.buffers()))


def foldable(network: nn.Module, side: int) -> Pairs:
    """The convolutions whose output goes to a batch norm and nowhere else.

    None where the network with all of them folded, tried with batch norms that are changed at random, gives other
    logits.
    """
    if not any(_is_norm(module) for module in network.modules()):
        return ()
    generator = torch.Generator().manual_seed(0)
    tried = _with_changed_norms(network, generator)
    device = next(tried.parameters()).device
    image = torch.randint(0, 256, (1, 1, side, side), dtype=torch.uint8, generator=generator).to(device)
    with torch.inference_mode(), float32():
        pairs, logits = _pairs(tried, image)
        apart = (_folded(tried, pairs)(image) - logits).abs().max()
        # Never where logits are all zero, which would show nothing, or not finite.
        return pairs if apart < AGREE * logits.abs().max() else ()


def _folded(network: Network, pairs: Pairs) -> Network:
    found = twin(network)
    fuse: Any = fuse_conv_bn_weights  # its types allow fewer absent tensors than its code
    for conv_name, norm_name in pairs:
        conv, norm = found.get_submodule(conv_name), found.get_submodule(norm_name)
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        tensors = conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias
        exact = [None if tensor is None else tensor.double() for tensor in tensors]
        weight, bias = fuse(*exact[:4], norm.eps, *exact[4:])
        held = torch.empty_like(conv.weight, requires_grad=False)  # in the layout that it has in memory
        conv.weight = nn.Parameter(held.copy_(weight.detach()), requires_grad=False)
        conv.bias = nn.Parameter(bias.detach().to(held.dtype), requires_grad=False)
        found.set_submodule(norm_name, _after(norm))
    return found


def _sharing(network: Network, tensors: Iterable[Tensor]) -> Network:
    """A copy in evaluation mode that has these very tensors of the network."""
    return copy.deepcopy(network, {id(tensor): tensor for tensor in tensors}).eval()


def _after(norm: nn.BatchNorm2d) -> nn.Module:
    """What a batch norm does besides."""
    return nn.Sequential(norm.get_submodule("drop"), norm.get_submodule("act")) if _acts(norm) else nn.Identity()


def _acts(module: nn.Module) -> bool:
    """Whether it is timm's batch norm with dropout and activation; a network that has one has imported timm."""
    return "timm.layers" in sys.modules and type(module) is sys.modules["timm.layers"].BatchNormAct2d


def _is_norm(module: nn.Module) -> bool:
    """Whether it is a batch norm that can be folded."""
    return (type(module) is nn.BatchNorm2d or _acts(module)) and module.running_mean is not None


@torch.no_grad()
def _with_changed_norms(network: nn.Module, generator: torch.Generator) -> nn.Module:
    """A copy whose batch norms all do something, as those of an untrained network do not."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    own = {id(tensor) for norm in norms for tensor in chain(norm.parameters(), norm.buffers())}
    tensors = chain(network.parameters(), network.buffers())
    tried = _sharing(network, [tensor for tensor in tensors if id(tensor) not in own])

    def factors(like: Tensor) -> Tensor:
        return (torch.rand(like.shape, generator=generator) + 0.5).to(like.device)

    for norm in (module for module in tried.modules() if isinstance(module, nn.BatchNorm2d)):
        if norm.running_mean is None or norm.running_var is None:
            continue
        norm.running_mean.add_(norm.running_var.sqrt() * (factors(norm.running_mean) - 1))
        norm.running_var.mul_(factors(norm.running_var))
        if norm.weight is not None:
            norm.weight.mul_(factors(norm.weight)).add_(norm.weight == 0)  # 0: as a residual branch may begin
            norm.bias.add_(norm.weight.abs() * (factors(norm.bias) - 1))
    return tried


def _pairs(network: nn.Module, image: Tensor) -> tuple[Pairs, Tensor]:
    """Which batch norms take the output of one convolution each, as often as it is computed; and the logits."""
    took: dict[str, set[str | None]] = {}
    runs: Counter[str] = Counter()
    hooks = []

    def watch(name: str) -> Any:
        def ran(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            runs[name] += 1
            if isinstance(module, nn.Conv2d):
                output.made_by = name  # type: ignore[attr-defined]
            else:
                took.setdefault(name, set()).add(getattr(inputs[0], "made_by", None))

        return ran

    for name, module in network.named_modules():
        hooked = module._forward_hooks or module._forward_pre_hooks
        conv = isinstance(module, nn.Conv2d) and not is_parametrized(module)
        if not hooked and (conv or _is_norm(module)):
            hooks.append(module.register_forward_hook(watch(name)))
    try:
        logits: Tensor = network(image)
    finally:
        for hook in hooks:
            hook.remove()
    pairs = []
    for norm, convs in took.items():
        conv_name, *others = convs
        if conv_name is not None and not others and runs[conv_name] == runs[norm]:
            pairs.append((conv_name, norm))
    return tuple(pairs), logits
