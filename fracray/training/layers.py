"""Which parts of a network learn, and how fast: its layers from the input to the head, and the optimiser's groups.

Knows nothing of schedules, losses or data.
"""

from itertools import pairwise
from typing import Any

from torch import nn

from fracray.errors import InputError
from fracray.training.model import Backbone, Classifier

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


def stage_parameters(model: Classifier) -> list[list[nn.Parameter]]:
    """The parameters of the stem with the first stage, of each further stage, and of what follows the last one.

    A network without feature maps is one stage.
    """
    named = list(model.named_modules())
    ends = [*model.depth, *([model.last_stage] if model.last_stage else [])]
    places = [max(at for at, (name, _) in enumerate(named) if f"{name}.".startswith(f"{end}.")) for end in ends]
    bounds = [0, *(place + 1 for place in sorted(set(places))), len(named)]
    levels = [
        [parameter for _, module in named[start:stop] for parameter in module.parameters(recurse=False)]
        for start, stop in pairwise(bounds)
    ]
    return [level for level in levels if level]


def head(model: Classifier) -> list[nn.Parameter]:
    """The parameters of what gives the logit: the classifiers and, where there is one, the localiser."""
    parts = [model.get_submodule(name) for name in model.heads]
    if model.localiser is not None:
        parts.append(model.localiser)
    return [parameter for part in parts for parameter in part.parameters()]


def body(model: Classifier) -> list[nn.Parameter]:
    """The parameters that train now, without those of the head."""
    heads = {id(parameter) for parameter in head(model)}
    return [parameter for parameter in model.parameters() if parameter.requires_grad and id(parameter) not in heads]


def below_head(model: Classifier) -> list[int]:
    """How many layers each parameter lies below the head, 0 or more, in the order of `model.parameters()`.

    Layers are timm's own for its networks (blocks, mostly), and stages elsewhere. Raises InputError for a network of
    torchvision that has no stages, such as a vision transformer.
    """
    layer: dict[int, int] = {}
    for number, level in enumerate(stage_parameters(model)):
        layer |= {id(parameter): number for parameter in level}
    if isinstance(model, Backbone) and hasattr(model.network, "group_matcher"):
        from timm.models import group_parameters

        matcher = model.network.group_matcher(coarse=False)  # type: ignore[operator]
        found: Any = group_parameters(model.network, matcher, reverse=True)
        layer = {id(parameter): found[name] for name, parameter in model.network.named_parameters()}
    elif not model.depth:
        raise InputError("train.layer_decay: the layers of this network are not known; set train.layer_decay=1")
    top = max(layer.values())
    layer |= {id(parameter): top for parameter in head(model)}
    return [top - layer[id(parameter)] for parameter in model.parameters()]


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """The trainable parameters in groups of an optimiser, and of each its share of the learning rate, `lr_scale`.

    Two groups, those with `weight_decay`, then norms, biases and the like; with a `layer_decay` below 1 two for each
    layer, from the head down, whose share is that to the power of the layers between it and the head (Clark et al.
    2020, arXiv 2003.10555; for images Bao et al. 2022, arXiv 2106.08254).

    timm's `param_groups_weight_decay` takes three seconds to import, puts the groups in another order, and makes them
    one where the decay is 0: the optimiser states of earlier runs would no longer fit. Its `param_groups_layer_decay`
    does not know the networks that are not timm's, nor the localiser.
    """
    exempt: set[str] = set()
    for prefix, module in model.named_modules():
        listed = module.no_weight_decay() if hasattr(module, "no_weight_decay") else ()
        if isinstance(module, _NORMS):
            listed = [name for name, _ in module.named_parameters(recurse=False)]
        exempt |= {f"{prefix}.{name}".lstrip(".") for name in listed}
    named = list(model.named_parameters())
    layers = [0] * len(named)
    if layer_decay < 1:
        assert isinstance(model, Classifier)
        layers = below_head(model)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {(0, True): [], (0, False): []}
    for (name, parameter), layer in zip(named, layers, strict=True):
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and name not in exempt
            groups.setdefault((layer, decays), []).append(parameter)
    return [
        {"params": groups[layer, decays], "weight_decay": weight_decay * decays, "lr_scale": layer_decay**layer}
        for layer, decays in sorted(groups, key=lambda key: (key[0], not key[1]))
    ]
