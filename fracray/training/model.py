"""The networks: FractureCNN and any timm backbone, with dropout before the head and spatial dropout between stages.

A network takes a batch of gray images as they lie in the shards, uint8, normalises it itself and returns one logit
an image. Knows nothing of radiographs on disk, of losses, of optimisers or of Ray.
"""

import difflib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fracray.config import ModelConfig
from fracray.errors import InputError
from fracray.training.pretrained import PACKAGED, hub_file, load_backbone, no_hub, packaged_imagenet, read_tensors

FRACTURE_CNN = "fracture_cnn"
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


class Classifier(nn.Module):
    """A network from gray images to one fracture logit each, with its normalisation and its two dropout rates.

    forward: (B, 1, S, S), uint8 or float, in 0..255, to (B,) float32. The buffers `mean` and `std`, of shape
    (1, 1, 1, 1), are on the scale 0..1.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig, mean: float, std: float, places: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((1, 1, 1, 1), mean))
        self.register_buffer("std", torch.full((1, 1, 1, 1), std))
        self.dropout = _HeadDropout(config.dropout)
        self.spatial_dropout = nn.ModuleList(_StageDropout(config.spatial_dropout) for _ in range(places))

    def normalise(self, images: Tensor) -> Tensor:
        assert images.shape[1:2] == (1,), f"expected (B, 1, S, S), got {tuple(images.shape)}"
        return (images.to(self.mean.dtype) / 255 - self.mean) / self.std


class _HeadDropout(nn.Dropout):
    def before(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self(inputs[0]), *inputs[1:])


class _StageDropout(nn.Dropout2d):
    def after(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        return self(output)


class FractureCNN(Classifier):
    """A compact residual CNN: strided stem, three residual stages, average and maximum pooling, one linear logit.

    The 4x4 stride-4 stem and a halving at the entry of each stage keep all 3x3 convolutions at an eighth of the
    input's resolution and below, which is what makes it fast on a CPU. A fracture is a small local cue: beside
    the average over the image the head sees the maximum. `width` is the number of channels of the first stage.
    Residual blocks after He et al., "Deep Residual Learning", 2016 (doi 10.1109/CVPR.2016.90); spatial dropout
    after Tompson et al., 2015 (doi 10.1109/CVPR.2015.7298664).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, mean=0.5, std=0.25, places=2)
        width = config.width
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

    def forward(self, images: Tensor) -> Tensor:
        maps = self.stages[0](self.stem(self.normalise(images)))
        for drop, stage in zip(self.spatial_dropout, self.stages[1:], strict=True):
            maps = stage(drop(maps))
        pooled = torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], dim=1)
        return self.head(self.dropout(pooled)).squeeze(1).float()


class _Residual(nn.Module):
    """Two 3x3 convolutions beside a strided 1x1 shortcut; halves the resolution."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, out_channels, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        # Strided, without an average pool before it: the pool's backward pass is slow in bf16 on a CPU.
        self.shortcut = nn.Sequential(
            nn.Conv2d(channels, out_channels, 1, stride=2, bias=False), nn.BatchNorm2d(out_channels)
        )

    def forward(self, maps: Tensor) -> Tensor:
        return torch.relu_(self.body(maps) + self.shortcut(maps))


class Backbone(Classifier):
    """A timm network with one input channel and one logit, and fracray's two dropouts in place of timm's own.

    Dropout sits before timm's classifier; spatial dropout acts on the (B, C, H, W) outputs of the stages that timm
    lists in `feature_info`, the last one excepted. Networks without such maps get no spatial dropout.
    """

    def __init__(self, config: ModelConfig, network: nn.Module, stages: tuple[str, ...]) -> None:
        cfg: Mapping[str, Any] = network.default_cfg  # type: ignore[assignment]
        super().__init__(config, _average(cfg["mean"]), _average(cfg["std"]), places=len(stages))
        self.network = network
        # Hooks are bound methods of submodules: a deep copy of the model (EMA) then hooks its own dropouts.
        for drop, stage in zip(self.spatial_dropout, stages, strict=True):
            assert isinstance(drop, _StageDropout)
            network.get_submodule(stage).register_forward_hook(drop.after)
        for classifier in _classifiers(network):
            classifier.register_forward_pre_hook(self.dropout.before)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(self.normalise(images)).squeeze(1).float()


def build_model(config: ModelConfig, load_weights: bool = True, size: int | None = None) -> Classifier:
    """Build the network that `config` names, from torch's global random state.

    `load_weights=False` leaves `config.weights` alone: a checkpoint's own tensors follow. `size`, the side of the
    images in pixels, if given, is tried on the network. Raises InputError for an unknown name, weights that cannot
    be had or do not fit, spatial dropout in a network without feature maps, and a size it does not take.
    """
    if config.name == FRACTURE_CNN:
        model: Classifier = FractureCNN(config)
        if load_weights and config.weights == "imagenet":
            raise InputError(
                f"model.weights = 'imagenet': {FRACTURE_CNN} has no ImageNet weights; "
                f"set model.weights=null, or model.name={PACKAGED}"
            )
        if load_weights and config.weights is not None:
            tensors = read_tensors(config.weights).tensors
            load_backbone(model, tensors, heads=("head",), stems=("stem.0",), source=config.weights)
        return model
    stages = _stages(config.name, size)
    if not stages and config.spatial_dropout > 0:
        raise _no_feature_maps(config.name)
    return Backbone(config, _network(config, load_weights), stages)


def freeze_norm(model: nn.Module) -> None:
    """Put batch norm into evaluation mode, so that its running statistics stay; call it after each `model.train()`."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The trainable parameters in two optimiser groups: with `weight_decay`, and norms, biases and the like without."""
    exempt: set[str] = set()
    for prefix, module in model.named_modules():
        listed = module.no_weight_decay() if hasattr(module, "no_weight_decay") else ()
        if isinstance(module, _NORMS):
            listed = [name for name, _ in module.named_parameters(recurse=False)]
        exempt |= {f"{prefix}.{name}".lstrip(".") for name in listed}
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[parameter.ndim > 1 and name not in exempt].append(parameter)
    return [{"params": groups[True], "weight_decay": weight_decay}, {"params": groups[False], "weight_decay": 0.0}]


# ---- timm: names, stages, weights ---------------------------------------------------------------------------------


def _network(config: ModelConfig, load_weights: bool) -> nn.Module:
    weights = config.weights if load_weights else None
    if weights == "imagenet" and config.name.split(".")[0] != PACKAGED:
        cached = hub_file(config.name)
        overlay = {"pretrained_cfg_overlay": {"file": str(cached)}} if cached else {}
        try:
            return _create(config.name, pretrained=True, **overlay)
        except Exception as error:  # whatever the hub's client raises, the remedy is the same
            raise no_hub(config.name, str(error)) from error
    network = _create(config.name)
    if weights is None:
        return network
    tensors = packaged_imagenet() if weights == "imagenet" else read_tensors(weights).tensors
    cfg: Mapping[str, Any] = network.default_cfg  # type: ignore[assignment]
    load_backbone(network, tensors, _names(cfg["classifier"]), _names(cfg["first_conv"]), weights)
    return network


def _create(name: str, **pretrained: Any) -> nn.Module:
    """timm's network; InputError for a name it does not know."""
    import timm  # three seconds of import, which FractureCNN does without

    known = [FRACTURE_CNN, *timm.list_models(), *timm.list_pretrained()]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"; near it: {', '.join(near)}" if near else ""
        raise InputError(f"model.name = {name!r}: neither '{FRACTURE_CNN}' nor a network of timm{hint}")
    # Vision transformers take sizes other than their own only when asked to.
    options: dict[str, Any] = {"in_chans": 1, "num_classes": 1, **pretrained}
    try:
        return timm.create_model(name, dynamic_img_size=True, **options)
    except TypeError:
        return timm.create_model(name, **options)


def _stages(name: str, size: int | None) -> tuple[str, ...]:
    """The modules of a timm network that spatial dropout follows, found with a forward pass that computes nothing."""
    with torch.device("meta"):
        network = _create(name).eval()
    cfg: Mapping[str, Any] = network.default_cfg  # type: ignore[assignment]
    info: Any = getattr(network, "feature_info", [])
    listed = [stage for stage in getattr(info, "info", info) if stage.get("module")]
    shapes: dict[str, tuple[int, ...]] = {}
    modules = dict(network.named_modules())
    for stage in listed:

        def note(module: nn.Module, inputs: Any, output: Any, name: str = stage["module"]) -> None:
            shapes[name] = tuple(output.shape) if isinstance(output, Tensor) else ()

        if stage["module"] in modules:
            modules[stage["module"]].register_forward_hook(note)
    side = size or cfg["input_size"][-1]
    try:
        with torch.no_grad():
            network(torch.empty(2, 1, side, side, device="meta"))
    except (AssertionError, RuntimeError) as error:
        raise InputError(
            f"data.size = {side}: '{name}' does not take such images ({error}); set data.size={cfg['input_size'][-1]}"
        ) from None
    # Channels come second in a feature map; Swin's (B, H, W, C) would lose rows of the image instead.
    return tuple(
        stage["module"]
        for stage in listed[:-1]
        if len(shape := shapes.get(stage["module"], ())) == 4 and shape[1] == stage["num_chs"]
    )


def _no_feature_maps(name: str) -> InputError:
    return InputError(f"model.spatial_dropout: {name} has no feature maps to drop; set model.spatial_dropout=0")


def _classifiers(network: nn.Module) -> tuple[nn.Module, ...]:
    found: Any = network.get_classifier()  # type: ignore[operator]
    return found if isinstance(found, tuple) else (found,)


def _names(entry: str | tuple[str, ...]) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else tuple(entry)


def _average(values: tuple[float, ...]) -> float:
    return sum(values) / len(values)
