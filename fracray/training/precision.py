"""In which arithmetic a network trains: float32 or bfloat16."""

import torch
from torch import nn

from fracray.config import Config
from fracray.training.depthwise import slow_in_bf16


def pick_precision(config: Config, device: torch.device, model: nn.Module) -> torch.dtype:
    """Of training: float32, or bfloat16 where the config says so or, with 'auto', where it is faster on this device.

    With CPUs that have instructions for bf16 it was measured to be faster for dense convolutions, and for the depthwise
    ones that `depthwise` replaces; others, such as ConvNeXt's of 7x7, are several times slower with it.
    """
    if config.train.precision != "auto":
        return torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native and not slow_in_bf16(model) else torch.float32
