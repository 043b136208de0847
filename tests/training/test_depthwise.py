"""The backward pass of depthwise convolutions: the gradients of Torch's own, for every shape that networks have."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from fracray.config import ModelConfig
from fracray.training.depthwise import DepthwiseConv2d, _Depthwise, speed_up_depthwise
from fracray.training.model import build_model

SHAPES = [
    # channels, side, kernel, stride, padding
    (6, 13, 3, 1, 1),
    (6, 13, 3, 2, 1),
    (6, 14, 3, 2, 1),
    (6, 15, 3, 2, 0),
    (6, 16, 3, 2, 0),
    (6, 13, 5, 1, 2),
    (6, 13, 5, 2, 2),
    (6, 14, 5, 2, 2),
    (6, 11, 5, 2, 0),
    (6, 12, 5, 2, 0),
    (6, 5, 5, 1, 0),
    (1, 9, 3, 2, 1),
]


def gradients(convolve, images, weight, grad):
    images, weight = images.clone().requires_grad_(), weight.clone().requires_grad_()
    out = convolve(images, weight)
    out.backward(grad)
    return out.detach(), images.grad, weight.grad


@pytest.mark.parametrize(("channels", "side", "kernel", "stride", "padding"), SHAPES)
def test_gradients_are_those_of_torch(channels, side, kernel, stride, padding):
    torch.manual_seed(0)
    images, weight = torch.randn(3, channels, side, side + 2), torch.randn(channels, 1, kernel, kernel)
    grad = torch.randn_like(F.conv2d(images, weight, None, stride, padding, 1, channels))
    ours = gradients(lambda x, w: _Depthwise.apply(x, w, stride, padding), images, weight, grad)
    theirs = gradients(lambda x, w: F.conv2d(x, w, None, stride, padding, 1, channels), images, weight, grad)
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_only_the_gradients_that_are_wanted_are_computed(wanted):
    images, weight = torch.randn(2, 4, 9, 9), torch.randn(4, 1, 5, 5)
    images.requires_grad_(wanted[0])
    weight.requires_grad_(wanted[1])
    _Depthwise.apply(images, weight, 2, 2).sum().backward()
    assert (images.grad is not None, weight.grad is not None) == wanted


@pytest.mark.parametrize(
    ("name", "replaced"),
    [("tf_efficientnet_lite0", 16), ("mobilenetv3_small_100", 11), ("convnext_atto", 0), ("resnet18", 0)],
)
@torch.no_grad()
def test_a_network_computes_the_same_and_keeps_its_names(name, replaced):
    torch.manual_seed(0)
    network = timm.create_model(name, in_chans=1, num_classes=1).eval()
    fast = copy.deepcopy(network)
    speed_up_depthwise(fast)
    assert sum(isinstance(module, DepthwiseConv2d) for module in fast.modules()) == replaced
    assert list(fast.state_dict()) == list(network.state_dict())
    assert sum(p.numel() for p in fast.parameters()) == sum(p.numel() for p in network.parameters())
    images = torch.rand(2, 1, 97, 97)  # an odd side: padding is not the same on both sides
    assert torch.equal(fast(images), network(images))


def test_training_in_bf16_takes_it_and_learns_the_same():
    torch.manual_seed(0)
    network = timm.create_model("tf_efficientnet_lite0", in_chans=1, num_classes=1).eval()
    fast = copy.deepcopy(network)
    speed_up_depthwise(fast)
    taken = []
    for module in fast.modules():
        if isinstance(module, DepthwiseConv2d):
            module.register_forward_hook(lambda module, inputs, output: taken.append(type(output.grad_fn).__name__))
    images = torch.rand(4, 1, 64, 64)
    for each in (network, fast):
        with torch.autocast("cpu", torch.bfloat16):
            out = each(images)
        out.float().square().sum().backward()
    assert taken == ["_DepthwiseBackward"] * 16
    for (name, ours), theirs in zip(fast.named_parameters(), network.parameters(), strict=True):
        alike = F.cosine_similarity(ours.grad.flatten(), theirs.grad.flatten(), dim=0)
        assert alike > 0.99, name


def test_the_weight_of_a_replaced_convolution_is_the_same_parameter():
    conv = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
    network = nn.Sequential(conv)
    speed_up_depthwise(network)
    assert network[0].weight is conv.weight


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 4, 3, padding=1, groups=4),  # a bias
        nn.Conv2d(4, 8, 3, padding=1, groups=4, bias=False),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4, bias=False),
        nn.Conv2d(4, 4, 7, padding=3, groups=4, bias=False),
        nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, padding="same", groups=4, bias=False),
        nn.Conv2d(4, 4, (3, 5), padding=1, groups=4, bias=False),
        nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False),
    ],
)
def test_other_convolutions_stay(conv):
    network = nn.Sequential(conv)
    speed_up_depthwise(network)
    assert network[0] is conv


def test_a_backbone_of_fracray_has_it():
    model = build_model(ModelConfig(name="tf_efficientnet_lite0"))
    assert sum(isinstance(module, DepthwiseConv2d) for module in model.modules()) == 16
