"""A faster backward pass for depthwise convolutions in bfloat16 on a CPU; the gradients are the same.

oneDNN computes the gradient of a strided depthwise convolution, and that of 5x5 kernels, in bfloat16 by its slow
reference code: 60% of a training step of EfficientNet-Lite0. Both are written here as convolutions that it computes
fast. Knows nothing of networks as a whole, nor of Ray.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution that shares its weight with the one it replaces; `same`: pads as TensorFlow does.

    forward: (B, C, H, W) to (B, C, H', W'), as the replaced one. Only training in bfloat16 on a CPU takes another way.
    """

    def __init__(self, replaced: nn.Conv2d) -> None:
        super().__init__(
            replaced.in_channels,
            replaced.out_channels,
            replaced.kernel_size,  # type: ignore[arg-type]
            replaced.stride,  # type: ignore[arg-type]
            replaced.padding,  # type: ignore[arg-type]
            groups=replaced.groups,
            bias=False,
            device="meta",
        )
        self.weight = replaced.weight
        self.same = _pads_as_tensorflow(replaced)

    def forward(self, input: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        padding = int(self.padding[0])
        if self.same:
            height, width = (max(0, (-(-side // stride) - 1) * stride + kernel - side) for side in input.shape[2:])
            if height or width:
                input = F.pad(input, (width // 2, width - width // 2, height // 2, height - height // 2))
            padding = 0
        weight = self.weight
        if input.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            input, weight = (tensor.to(torch.get_autocast_dtype("cpu")) for tensor in (input, weight))
        if input.device.type == "cpu" and input.dtype is torch.bfloat16 and torch.is_grad_enabled():
            return _Depthwise.apply(input, weight, stride, padding)
        return F.conv2d(input, weight, self.bias, stride, padding, 1, self.groups)


class _Depthwise(torch.autograd.Function):
    """Depthwise convolution of (B, C, H, W) by (C, 1, k, k); H and W are padded by less than k."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(images, weight, None, stride, padding, 1, images.shape[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        images, weight = ctx.saved_tensors
        grad = grads[0].contiguous(memory_format=torch.channels_last)
        of_images = of_weight = None
        if ctx.needs_input_grad[0]:
            of_images = _of_images(grad, images.shape, weight, ctx.stride, ctx.padding)
        if ctx.needs_input_grad[1]:
            of_weight = _of_weight(grad, images, weight, ctx.stride, ctx.padding)
        return of_images, of_weight, None, None


def _of_images(grad: Tensor, shape: torch.Size, weight: Tensor, stride: int, padding: int) -> Tensor:
    """The gradient of the images: that of the output, spread out by the stride, convolved with the turned kernel."""
    kernel = weight.shape[2]
    if stride > 1:
        height, width = (side + 2 * padding - kernel + 1 for side in shape[2:])
        # Allocated with the channels last: making it so afterwards copies all of it.
        spread = grad.new_zeros(grad.shape[0], height, width, grad.shape[1]).permute(0, 3, 1, 2)
        spread[:, :, ::stride, ::stride] = grad
        grad = spread
    return F.conv2d(grad, weight.flip(2, 3), None, 1, kernel - 1 - padding, 1, grad.shape[1])


def _of_weight(grad: Tensor, images: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """The gradient of the kernels; that of 5x5 ones in four overlapping parts of 3x3."""
    if weight.shape[2] != 5:
        return _native_of_weight(grad, images, weight, stride, padding)
    if padding:
        images = F.pad(images, (padding,) * 4)
    height, width = ((side - 1) * stride + 3 for side in grad.shape[2:])
    part = weight[:, :, :3, :3].contiguous()
    found = torch.empty_like(weight)
    for top in (0, 2):
        for left in (0, 2):
            seen = images[:, :, top : top + height, left : left + width].contiguous(memory_format=torch.channels_last)
            found[:, :, top : top + 3, left : left + 3] = _native_of_weight(grad, seen, part, stride, 0)
    return found


def _native_of_weight(grad: Tensor, images: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    gradients = torch.ops.aten.convolution_backward(
        grad,
        images,
        weight,
        None,
        [stride, stride],
        [padding, padding],
        [1, 1],
        False,
        [0, 0],
        images.shape[1],
        [False, True, False],
    )
    return gradients[1]


def speed_up_depthwise(network: nn.Module) -> None:
    """Replace, in place, the depthwise convolutions that gain; parameters, their names and what is computed stay."""
    for parent in list(network.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, nn.Conv2d) and _gains(module):
                setattr(parent, name, DepthwiseConv2d(module).train(module.training))


def slow_in_bf16(network: nn.Module) -> bool:
    """Whether it has depthwise convolutions whose backward pass in bfloat16 is oneDNN's own, on a CPU."""
    return any(
        isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1
        for module in network.modules()
        if not isinstance(module, DepthwiseConv2d)
    )


def _gains(conv: nn.Conv2d) -> bool:
    """Whether it is depthwise, square, of 3x3 or 5x5 and without bias, so that `_Depthwise` does the same."""
    return (
        conv.groups == conv.in_channels == conv.out_channels > 1
        and conv.bias is None
        and conv.kernel_size in ((3, 3), (5, 5))
        and conv.stride in ((1, 1), (2, 2))
        and conv.dilation == (1, 1)
        and conv.padding_mode == "zeros"
        and (type(conv) is nn.Conv2d or _pads_as_tensorflow(conv))
        and (_pads_as_tensorflow(conv) or conv.padding in ((0, 0), (1, 1), (2, 2)))
    )


def _pads_as_tensorflow(conv: nn.Conv2d) -> bool:
    return type(conv).__name__ == "Conv2dSame"  # timm's: its class is imported only where timm is
