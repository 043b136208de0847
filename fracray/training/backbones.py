"""The networks of timm and torchvision, changed to take gray images and to give one logit.

Also says where in them dropout can act. Knows nothing of dropout rates, of losses or of Ray. Each library is imported
only when one of its networks is built: that takes seconds, which FractureCNN does without.
"""

import difflib
import functools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fracray.errors import InputError
from fracray.training.pretrained import (
    PACKAGES,
    hub_file,
    load_backbone,
    no_hub,
    packaged_imagenet,
    read_tensors,
    torchvision_imagenet,
)

FRACTURE_CNN = "fracture_cnn"  # the name of fracray's own network, which is in `model`
TORCHVISION = "torchvision/"  # what model.name begins with for a classifier of torchvision
HEAD_STD = 0.01  # of the weights of a new head on pretrained features
SIXTEENTH = (13, 20)  # how many times smaller than the image a map at about a sixteenth is; padding decides
SHRUNK = 0.6  # a feature map belongs to a new stage when its side is at most this share of the stage's before


@dataclass(frozen=True)
class FeatureMap:
    """A module whose output is a feature map (B, channels, H, W)."""

    module: str
    channels: int


@dataclass(frozen=True)
class Parts:
    """What the model has to know of its backbone."""

    mean: float  # of the images that the weights expect, on the scale 0..1
    std: float
    stages: tuple[str, ...]  # modules with outputs (B, C, H, W), the last stage left out; empty without feature maps
    classifiers: tuple[str, ...]  # the layers that give the logit
    maps: tuple[FeatureMap, FeatureMap] | None  # at a sixteenth of the image's resolution, and the last, coarser one
    last: str | None  # the module that ends the last stage; None without feature maps


@dataclass(frozen=True)
class _Shapes:
    """A module's first input and its output in a forward pass; () where it is no tensor."""

    before: tuple[int, ...]
    after: tuple[int, ...]


def build_backbone(name: str, weights: str | None = None, size: int | None = None) -> tuple[nn.Module, Parts]:
    """The network that `name` means, with one input channel and one logit.

    `weights`: None, 'imagenet' or a file. `size`: the side of the images in pixels, which is tried on the network.
    Raises InputError for an unknown name, weights that cannot be had or do not fit, and a size it does not take.
    """
    library = _Torchvision(name) if name.startswith(TORCHVISION) else _Timm(name)
    network = library.create(pretrained=weights == "imagenet")
    parts = library.parts(network, size)
    if weights is not None:
        for classifier in parts.classifiers:
            _calm(network.get_submodule(classifier))
    if weights is not None and weights != "imagenet":
        library.load(network, read_tensors(weights).tensors, weights)
    return network, parts


def _calm(classifier: nn.Module) -> None:
    """Begin a new head near a logit of 0.

    As timm draws the weights of EfficientNet's head, in -1 to 1 for one class, logits begin at some 5: the first steps
    then destroy the pretrained features, and at a learning rate of 1e-3 with frozen norms they do not come back.
    """
    for module in classifier.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.weight, std=HEAD_STD)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class _Library(ABC):
    """A library of networks, used for the one called `name`."""

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def create(self, pretrained: bool) -> nn.Module:
        """The network for one channel and one logit; InputError for an unknown name and weights not to be had."""

    @abstractmethod
    def parts(self, network: nn.Module, size: int | None) -> Parts:
        """InputError where the network does not take images of this size."""

    @abstractmethod
    def stems(self, network: nn.Module) -> tuple[str, ...]:
        """The names of the first convolutions."""

    @abstractmethod
    def heads(self, network: nn.Module) -> tuple[str, ...]:
        """The modules that a file of weights may lack, or have in another shape."""

    def load(self, network: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
        load_backbone(network, tensors, self.heads(network), self.stems(network), source)


class _Timm(_Library):
    """timm knows its own stages and classifiers."""

    def create(self, pretrained: bool) -> nn.Module:
        import timm

        known = [FRACTURE_CNN, *timm.list_models(), *timm.list_pretrained()]
        if self.name not in known:
            meant = f"neither '{FRACTURE_CNN}' nor a network of timm ('{TORCHVISION}NAME' is one of torchvision)"
            raise _unknown(self.name, meant, known)
        if not pretrained:
            return self._create()
        if (packaged := self.name.split(".")[0]) in PACKAGES:
            network = self._create()
            self.load(network, packaged_imagenet(packaged), "imagenet")
            return network
        cached = hub_file(self.name)
        overlay = {"pretrained_cfg_overlay": {"file": str(cached)}} if cached else {}
        try:
            return self._create(pretrained=True, **overlay)
        except Exception as error:  # whatever the hub's client raises, the remedy is the same
            raise no_hub(self.name, str(error)) from error

    def _create(self, **options: Any) -> nn.Module:
        import timm

        create = functools.partial(timm.create_model, self.name, in_chans=1, num_classes=1, **options)
        # Vision transformers take sizes other than their own only with this option.
        try:
            return create(dynamic_img_size=True)
        except TypeError:
            return create()

    def parts(self, network: nn.Module, size: int | None) -> Parts:
        cfg = _cfg(network)
        native = cfg["input_size"][-1]
        shapes = _trace(network, self.name, size or native, native)
        info: Any = getattr(network, "feature_info", [])
        listed = [stage for stage in getattr(info, "info", info) if stage.get("module")]
        # Channels come second in a feature map; Swin's (B, H, W, C) would lose rows of the image instead.
        ends = [
            stage["module"]
            for stage in listed
            if stage["module"] in shapes
            and len(shape := shapes[stage["module"]].after) == 4
            and shape[1] == stage["num_chs"]
        ]
        stages = tuple(end for end in ends if end != listed[-1]["module"])
        found: Any = network.get_classifier()  # type: ignore[operator]
        classifiers = found if isinstance(found, tuple) else (found,)
        named = {module: name for name, module in network.named_modules()}
        layers = tuple(named[layer] for layer in classifiers)
        maps = _maps(ends, shapes, size or native)
        return Parts(_mean(cfg["mean"]), _mean(cfg["std"]), stages, layers, maps, ends[-1] if ends else None)

    def stems(self, network: nn.Module) -> tuple[str, ...]:
        return _names(_cfg(network)["first_conv"])

    def heads(self, network: nn.Module) -> tuple[str, ...]:
        return _names(_cfg(network)["classifier"])


class _Torchvision(_Library):
    """torchvision lists neither stages nor classifiers: both are found in the network."""

    def create(self, pretrained: bool) -> nn.Module:
        from torchvision import models
        from torchvision.ops import StochasticDepth

        known = models.list_models(module=models)  # classifiers alone, without those for segmentation and the like
        if self._short not in known:
            raise _unknown(self.name, "not a classifier of torchvision", [TORCHVISION + name for name in known])
        options: dict[str, Any] = {}
        if self._short.startswith("vit_"):  # vit_h_14's default weights are for 518 pixels
            options["image_size"] = self._images.crop_size[0]
        if self._short in ("googlenet", "inception_v3"):
            options |= {"aux_logits": False, "init_weights": True}
        network = models.get_model(self._short, weights=None, num_classes=1, **options)
        for module in network.modules():
            if isinstance(module, nn.Dropout | StochasticDepth):  # fracray's own two act instead
                module.p = 0.0
        if isinstance(network, models.SqueezeNet):  # a rectified logit could not fall below 0
            network.classifier[2] = nn.Identity()
        if isinstance(network, models.MNASNet):  # it refuses tensors without torchvision's own version number
            network._load_from_state_dict = functools.partial(nn.Module._load_from_state_dict, network)
        _take_gray(network, self.stems(network)[0])
        if pretrained:
            self.load(network, torchvision_imagenet(self._short), "imagenet")
        return network

    def parts(self, network: nn.Module, size: int | None) -> Parts:
        native = self._images.crop_size[0]
        shapes = _trace(network, self.name, native, native)
        ends = _stages(network, shapes)
        if size is not None and size != native:
            _trace(network, self.name, size, native)
        mean, std = _mean(self._images.mean), _mean(self._images.std)
        if self._short in ("googlenet", "inception_v3"):
            # Given their weights, torchvision has them normalise once more, from ImageNet's values to these.
            mean = std = 0.5
        last = ends[-1] if ends else None
        return Parts(mean, std, ends[:-1], self.heads(network)[:1], _maps(ends, shapes, native), last)

    def stems(self, network: nn.Module) -> tuple[str, ...]:
        return (next(name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)),)

    def heads(self, network: nn.Module) -> tuple[str, ...]:
        layers = [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
        return (layers[-1], "aux1", "aux2", "AuxLogits")  # GoogLeNet's and Inception's help in training on ImageNet

    @property
    def _short(self) -> str:
        return self.name.removeprefix(TORCHVISION)

    @property
    def _images(self) -> Any:
        """The images that the default weights expect: crop_size, mean and std."""
        from torchvision import models

        return models.get_model_weights(self._short).DEFAULT.transforms()


def _take_gray(network: nn.Module, stem: str) -> None:
    """Replace the first convolution by one of a single channel; its weights are the sum, as in `load_backbone`."""
    colour = network.get_submodule(stem)
    assert isinstance(colour, nn.Conv2d)
    gray = nn.utils.skip_init(
        nn.Conv2d,
        1,
        colour.out_channels,
        colour.kernel_size,
        colour.stride,
        colour.padding,
        bias=colour.bias is not None,
        device=colour.weight.device,
    )
    with torch.no_grad():
        gray.weight.copy_(colour.weight.sum(1, keepdim=True))
        if colour.bias is not None:
            gray.bias.copy_(colour.bias)
    parent, _, name = stem.rpartition(".")
    setattr(network.get_submodule(parent), name, gray)


def _stages(network: nn.Module, shapes: Mapping[str, _Shapes]) -> tuple[str, ...]:
    """The last module at each resolution of the network's main path."""
    main = set(_main_path(network, shapes))
    stages: list[tuple[str, int]] = []
    interrupted = False
    for name, shape in shapes.items():
        if name not in main:
            continue
        # A square map: channels come second. Swin's (B, H, W, C) would lose rows of the image instead.
        if len(shape.after) != 4 or shape.after[2] != shape.after[3]:
            interrupted = True
        elif (side := shape.after[2]) > 1:
            if interrupted:  # what came before was cut into tokens, as in Swin
                stages, interrupted = [], False
            if stages and side > SHRUNK * stages[-1][1]:
                stages[-1] = name, stages[-1][1]
            else:
                stages.append((name, side))
    return tuple(name for name, _ in stages)


def _maps(ends: Sequence[str], shapes: Mapping[str, _Shapes], size: int) -> tuple[FeatureMap, FeatureMap] | None:
    """Of the modules that end stages, the one at a sixteenth of the image's side, and the last one if it is coarser."""
    sides = {end: shapes[end].after[2] for end in ends}
    fine = [end for end, side in sides.items() if SIXTEENTH[0] <= size / side <= SIXTEENTH[1]]
    if not fine or sides[ends[-1]] >= sides[fine[-1]]:
        return None
    found = [FeatureMap(end, shapes[end].after[1]) for end in (fine[-1], ends[-1])]
    return found[0], found[1]


def _main_path(module: nn.Module, shapes: Mapping[str, _Shapes], prefix: str = "") -> Iterable[str]:
    """The modules that are run one after another: children, and those of sequences that hold several stages."""
    for child_name, child in module.named_children():
        name = prefix + child_name
        shape = shapes.get(name, _Shapes((), ()))
        several = len(shape.before) == len(shape.after) == 4 and shape.before[2] > 2 * shape.after[2]
        if isinstance(child, nn.ModuleList) or (isinstance(child, nn.Sequential) and several):
            yield from _main_path(child, shapes, f"{name}.")
        else:
            yield name


def _trace(network: nn.Module, name: str, side: int, native: int) -> dict[str, _Shapes]:
    """Every module's shapes by name, in the order in which they end, from a forward pass that computes nothing.

    Raises InputError where the network does not take images of this side.
    """
    shapes: dict[str, _Shapes] = {}

    def note(module_name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        shapes[module_name] = _Shapes(*(tuple(x.shape) if isinstance(x, Tensor) else () for x in (*inputs[:1], output)))

    def meta(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        return {tensor_name: tensor.to("meta") for tensor_name, tensor in tensors}

    training = network.training
    hooks = [
        module.register_forward_hook(functools.partial(note, module_name))
        for module_name, module in network.named_modules()
    ]
    try:
        with torch.no_grad(), torch.device("meta"):
            state = meta(network.named_parameters()) | meta(network.named_buffers())
            torch.func.functional_call(network.eval(), state, torch.empty(2, 1, side, side))
    except (AssertionError, RuntimeError) as error:
        raise InputError(
            f"data.size = {side}: '{name}' does not take such images ({error}); set data.size={native}"
        ) from None
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    return shapes


def _unknown(name: str, what: str, known: list[str]) -> InputError:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"; near it: {', '.join(near)}" if near else ""
    return InputError(f"model.name = {name!r}: {what}{hint}")


def _cfg(network: nn.Module) -> Mapping[str, Any]:
    return network.default_cfg  # type: ignore[return-value]


def _names(entry: str | tuple[str, ...]) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else tuple(entry)


def _mean(values: Iterable[float]) -> float:
    values = tuple(values)
    return sum(values) / len(values)
