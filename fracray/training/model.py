"""The networks: FractureCNN and any backbone, with dropout before the head and spatial dropout between stages.

A network takes a batch of gray uint8 images, as stored in the shards. It normalises them itself and returns one logit
for each image. Knows nothing of radiographs on disk, of losses, of optimisers or of Ray.
"""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from fracray.config import ModelConfig
from fracray.errors import InputError
from fracray.training.backbones import FRACTURE_CNN, Parts, build_backbone
from fracray.training.depthwise import speed_up_depthwise
from fracray.training.localise import Localiser
from fracray.training.pretrained import LOCALISER, PACKAGED, load_backbone, read_tensors


class Classifier(nn.Module):
    """A network from gray images to one fracture logit each; it holds its normalisation and its two dropouts.

    forward: (B, 1, S, S), uint8 or float, in 0..255, to (B,) float32; `forward(images, True)` gives the map of
    fracture logits too, (B, h, w) float32, of a network with a `localiser`. The buffers `mean` and `std`, of shape
    (1, 1, 1, 1), are on the scale 0..1. `depth`: the modules that end its stages, from the input on, but the last;
    `last_stage`: the one that ends the last, whose output is (B, C, h, w); None in a network without feature maps.
    `heads`: the modules that give the logit. With `model.mirror`, in evaluation mode, logits and maps are the mean of
    those of the image and its mirror image.
    """

    mean: Tensor
    std: Tensor
    localiser: Localiser | None
    depth: tuple[str, ...]
    last_stage: str | None
    heads: tuple[str, ...]

    def __init__(self, config: ModelConfig, mean: float, std: float, places: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((1, 1, 1, 1), mean))
        self.register_buffer("std", torch.full((1, 1, 1, 1), std))
        self.dropout = _HeadDropout(config.dropout)
        self.spatial_dropout = nn.ModuleList(_StageDropout(config.spatial_dropout) for _ in range(places))
        self.localiser = None
        self.mirrors = config.mirror

    @property
    def localises(self) -> bool:
        """Whether it gives a map."""
        return self.localiser is not None

    @overload
    def forward(self, images: Tensor, where: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(self, images: Tensor, where: Literal[True]) -> tuple[Tensor, Tensor]: ...
    def forward(self, images: Tensor, where: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        logits, found = self._look_once(images)
        if self.mirrors and not self.training:
            mirrored, turned = self._look_once(images.flip(3))
            logits = (logits + mirrored) / 2
            found = None if found is None or turned is None else (found + turned.flip(2)) / 2
        if not where:
            return logits
        assert found is not None, "a network without a localiser has no map"
        return logits, found

    def _look_once(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """The logits, and the map of a network with a localiser."""
        logits, fine, coarse = self.look(self.normalise(images))
        logits = logits.squeeze(1).float()
        if self.localiser is None:
            return logits, None
        found = self.localiser(fine, coarse)
        return logits + self.localiser.evidence(found), found

    @abstractmethod
    def look(self, images: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Normalised images to logits (B, 1), and, for a localiser, the maps at a sixteenth and the last one."""

    def normalise(self, images: Tensor) -> Tensor:
        assert images.shape[1:2] == (1,), f"expected (B, 1, S, S), got {tuple(images.shape)}"
        return (images.to(self.mean.dtype) / 255 - self.mean) / self.std


class _HeadDropout(nn.Dropout):
    def before(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self(inputs[0]), *inputs[1:])


class _StageDropout(nn.Dropout2d):
    def after(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        return self(output)


class _Tap(nn.Module):
    """Keeps the output of the module that it is hooked to, until it is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: Tensor | None = None

    def after(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        self.kept = output

    def take(self) -> Tensor:
        kept, self.kept = self.kept, None
        assert kept is not None
        return kept


class FractureCNN(Classifier):
    """A compact residual CNN: strided stem, three residual stages, average and maximum pooling, one linear logit.

    The stem has a 4x4 kernel with stride 4, and each stage begins by halving the resolution. So all 3x3 convolutions
    run at an eighth of the input's resolution or less, which makes the network fast on a CPU. A fracture is a small
    local cue: the head sees the maximum over the image and not only the average. `width` is the number of channels
    of the first stage.
    Residual blocks after He et al., "Deep Residual Learning", 2016 (doi 10.1109/CVPR.2016.90); spatial dropout
    after Tompson et al., 2015 (doi 10.1109/CVPR.2015.7298664).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, mean=0.5, std=0.25, places=2)
        width = config.width
        self.depth, self.last_stage, self.heads = ("stages.0", "stages.1"), "stages.2", ("head",)
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, 4, stride=4, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        self.stages = nn.ModuleList(
            [
                _Residual(width, width),
                _Residual(width, 2 * width),
                _Residual(2 * width, 4 * width),
            ]
        )
        self.head = nn.Linear(2 * 4 * width, 1)
        if config.localise:
            self.localiser = Localiser(2 * width, 4 * width)

    def look(self, images: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        drop_early, drop_late = self.spatial_dropout
        fine = self.stages[1](drop_early(self.stages[0](self.stem(images))))
        maps = self.stages[2](drop_late(fine))
        pooled = torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], dim=1)
        return self.head(self.dropout(pooled)), fine, maps


class _Residual(nn.Module):
    """Two 3x3 convolutions and a strided 1x1 shortcut, added; halves the resolution."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, out_channels, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        # Strided, with no average pool before it: the pool's backward pass is slow in bf16 on a CPU.
        self.shortcut = nn.Sequential(
            nn.Conv2d(channels, out_channels, 1, stride=2, bias=False), nn.BatchNorm2d(out_channels)
        )

    def forward(self, maps: Tensor) -> Tensor:
        return torch.relu_(self.body(maps) + self.shortcut(maps))


class Backbone(Classifier):
    """A network of timm or torchvision, with fracray's two dropouts.

    Dropout acts before its classifier. Spatial dropout acts on the (B, C, H, W) outputs of its stages, the last one
    excepted; networks without such maps get none.
    """

    def __init__(self, config: ModelConfig, network: nn.Module, parts: Parts) -> None:
        super().__init__(config, parts.mean, parts.std, places=len(parts.stages))
        speed_up_depthwise(network)
        self.network = network
        self.depth = tuple(f"network.{stage}" for stage in parts.stages)
        self.last_stage = parts.last and f"network.{parts.last}"
        self.heads = tuple(f"network.{classifier}" for classifier in parts.classifiers)
        # Hooks are bound methods of submodules: a deep copy of the model (EMA) then hooks its own dropouts.
        for drop, stage in zip(self.spatial_dropout, parts.stages, strict=True):
            assert isinstance(drop, _StageDropout)
            network.get_submodule(stage).register_forward_hook(drop.after)
        for classifier in parts.classifiers:
            network.get_submodule(classifier).register_forward_pre_hook(self.dropout.before)
        self.taps = nn.ModuleList()
        if config.localise:
            if parts.maps is None:
                raise InputError(
                    f"model.localise: {config.name} has no feature maps at a sixteenth of the image's resolution; set "
                    "model.localise=false"
                )
            for map_of in parts.maps:
                tap = _Tap()
                network.get_submodule(map_of.module).register_forward_hook(tap.after)
                self.taps.append(tap)
            self.localiser = Localiser(*(map_of.channels for map_of in parts.maps))

    def look(self, images: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        logits = self.network(images)
        if not self.taps:
            return logits, None, None
        fine, coarse = (tap.take() for tap in self.taps if isinstance(tap, _Tap))
        return logits, fine, coarse


def build_model(config: ModelConfig, load_weights: bool = True, size: int | None = None) -> Classifier:
    """Build the network that `config` names, from torch's global random state.

    `load_weights=False` ignores `config.weights`: the caller loads a checkpoint's tensors. `size`, the side of the
    images in pixels, if given, is tried on the network. Raises InputError for an unknown name, weights that cannot
    be had or do not fit, spatial dropout in a network without feature maps, and a size it does not take.
    """
    weights = config.weights if load_weights else None
    if config.freeze_stages and load_weights and weights is None:
        raise InputError("model.freeze_stages: freezes random weights; set model.weights, or model.freeze_stages=0")
    model = _fracture_cnn(config, weights) if config.name == FRACTURE_CNN else _backbone(config, weights, size)
    if config.freeze_stages > len(model.depth):
        raise InputError(
            f"model.freeze_stages = {config.freeze_stages}: {config.name} has {len(model.depth)} stages before its "
            f"last one; set it to at most {len(model.depth)}"
        )
    return model


def _backbone(config: ModelConfig, weights: str | None, size: int | None) -> Backbone:
    network, parts = build_backbone(config.name, weights, size)
    if not parts.stages and config.spatial_dropout > 0:
        raise InputError(
            f"model.spatial_dropout: {config.name} has no feature maps to drop; set model.spatial_dropout=0"
        )
    model = Backbone(config, network, parts)
    if model.localiser is not None and weights is not None and weights != "imagenet":
        held = read_tensors(weights).tensors
        own = {name: held.get(f"{LOCALISER}.{name}") for name in model.localiser.state_dict()}
        if all(tensor is not None for tensor in own.values()):
            model.localiser.load_state_dict(own)
    return model


def _fracture_cnn(config: ModelConfig, weights: str | None) -> FractureCNN:
    model = FractureCNN(config)
    if weights == "imagenet":
        raise InputError(
            f"model.weights = 'imagenet': {FRACTURE_CNN} has no ImageNet weights; "
            f"set model.weights=null, or model.name={PACKAGED}"
        )
    if weights is not None:
        load_backbone(model, read_tensors(weights).tensors, heads=("head",), stems=("stem.0",), source=weights)
    return model


def freeze_stages(model: Classifier, stages: int) -> None:
    """Keep the stem and the first stages as they are: no gradients and, in `train_mode`, no new statistics of norms."""
    if not stages:
        return
    named = list(model.named_modules())
    end = model.depth[stages - 1]
    last = max(at for at, (name, _) in enumerate(named) if name == end or name.startswith(f"{end}."))
    for _, module in named[: last + 1]:
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)


def train_mode(model: nn.Module, norm_frozen: bool) -> None:
    """Training mode; batch norm that is frozen, alone or with its stage, stays in evaluation mode."""
    model.train()
    freeze_norm(model, everywhere=norm_frozen)


def freeze_norm(model: nn.Module, everywhere: bool = True) -> None:
    """Put batch norm into evaluation mode, so that its statistics do not change; else only what is frozen already."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            frozen = module.weight is not None and not module.weight.requires_grad
            if everywhere or frozen:
                module.eval()


@contextmanager
def float32() -> Iterator[None]:
    """Plain float32 in this block: the logits of one image agree to about 1e-5 on every machine and in every batch.

    With bfloat16, or the TF32 that a GPU's convolutions use unless they are told not to, they do not: an image near the
    decision threshold may then fall on its other side.
    """
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
