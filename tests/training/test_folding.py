"""Batch norm as part of the convolution before it: the same logits and maps, and where it is not possible."""

import pytest
import torch
from torch import nn

from fracray.config import Config
from fracray.training.ensemble import Ensemble
from fracray.training.folding import _with_changed_norms, foldable, folded
from fracray.training.model import build_model

SIDE = 64


def built(name, **more):
    torch.manual_seed(0)
    leaves = {"model.name": name, "model.width": 8, **{f"model.{key}": value for key, value in more.items()}}
    network = build_model(Config().with_leaves(leaves).model, size=SIDE)
    # As after a training: batch norms that do something.
    return _with_changed_norms(network, torch.Generator().manual_seed(1)).to(memory_format=torch.channels_last)


def test_all_norms_here_do_something():
    assert all((norm.weight != 0).all() and (norm.bias != 0).all() for norm in norms(built("resnet18")))


def norms(network):
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def images():
    return torch.randint(0, 256, (5, 1, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


@torch.inference_mode()
def assert_alike(ours, theirs, maps):
    for one, other in (
        zip(ours(images(), True), theirs(images(), True), strict=True) if maps else [(ours(images()), theirs(images()))]
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))


@pytest.mark.parametrize(
    ("name", "more", "left"),
    [
        ("fracture_cnn", {}, 0),
        ("fracture_cnn", {"localise": True, "mirror": True}, 0),
        ("tf_efficientnet_lite0", {"localise": True}, 0),
        ("resnet18", {"localise": True}, 0),
        ("torchvision/densenet121", {}, 62),  # norms of several maps together, before their convolution
        ("convnext_atto", {}, 0),  # has none
    ],
)
def test_a_folded_network_says_the_same(name, more, left):
    network = built(name, **more)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    ours = folded(network, SIDE)
    assert len(norms(ours)) == left
    assert_alike(ours, network, network.localises)
    assert all(torch.equal(tensor, network.state_dict()[key]) for key, tensor in before.items())
    weights = [module.weight for module in ours.modules() if isinstance(module, nn.Conv2d)]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


def test_a_network_that_has_trained_on_is_folded_anew():
    network = built("fracture_cnn")
    before = folded(network, SIDE)
    network.load_state_dict(_with_changed_norms(network, torch.Generator().manual_seed(3)).state_dict())
    assert_alike(folded(network, SIDE), network, False)
    with pytest.raises(AssertionError), torch.inference_mode():
        torch.testing.assert_close(before(images()), network(images()))


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_efficientnet_lite2"])
def test_trained_weights_are_folded_completely(name):
    network = built(name, weights="imagenet", localise=True)
    ours = folded(network, SIDE)
    assert norms(ours) == []
    assert_alike(ours, network, True)


def test_what_is_not_folded_is_shared_and_two_copies_share_no_state():
    network = built("tf_efficientnet_lite0", localise=True)
    ours, other = folded(network, SIDE), folded(network, SIDE)
    assert ours.localiser.weight is network.localiser.weight
    assert ours.taps[0] is not other.taps[0] is not network.taps[0]
    plain = built("convnext_atto")
    copied = folded(plain, SIDE)
    assert copied is not plain
    assert all(one is copied.get_parameter(key) for key, one in plain.named_parameters())


def test_the_members_of_an_ensemble_are_folded():
    together = Ensemble([built("fracture_cnn"), built("tf_efficientnet_lite0")])
    ours = folded(together, SIDE)
    assert norms(ours) == []
    assert_alike(ours, together, False)


class _Net(nn.Module):
    """A convolution and a batch norm, `used` in one of several ways."""

    def __init__(self, used):
        super().__init__()
        self.used = used
        self.conv, self.norm, self.other = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x):
        x = x.float() / 255
        made = self.conv(x)
        if self.used == "beside":  # the convolution's output goes elsewhere too
            found = self.norm(made) + made
        elif self.used == "by two":
            found = self.norm(made) * self.other(made)
        elif self.used == "by two runs":
            found = self.norm(made) + self.norm(self.conv(x.flip(3)).flip(3))
        elif self.used == "changed first":
            found = self.norm(made.relu())
        else:
            found = self.norm(made).relu()
        return found.mean((1, 2, 3))


@pytest.mark.parametrize(
    ("used", "folds"),
    [("alone", True), ("by two runs", False), ("beside", False), ("by two", False), ("changed first", False)],
)
def test_only_a_norm_that_alone_takes_what_a_convolution_gives_is_folded(used, folds):
    torch.manual_seed(0)
    network = _with_changed_norms(_Net(used), torch.Generator().manual_seed(1))
    pairs = foldable(network, SIDE)
    assert pairs == ((("conv", "norm"),) if folds else ())
    with torch.inference_mode():
        torch.testing.assert_close(folded(network, SIDE)(images()), network(images()))


def test_a_convolution_that_runs_again_without_its_norm_is_left_out_alone():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3)
            self.next, self.last = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

        def forward(self, x):
            x = x.float() / 255
            return self.last(self.next(self.norm(self.conv(x)) + self.conv(x.flip(3)))).mean((1, 2, 3))

    torch.manual_seed(0)
    network = _with_changed_norms(Twice(), torch.Generator().manual_seed(1))
    assert foldable(network, SIDE) == (("next", "last"),)


def test_logits_that_are_all_zero_show_nothing():
    network = built("fracture_cnn")
    nn.init.zeros_(network.head.weight)
    nn.init.zeros_(network.head.bias)
    assert foldable(network, SIDE) == ()


def test_a_module_with_a_hook_stays_as_it_is():
    network = built("fracture_cnn")
    network.stem[1].register_forward_hook(lambda module, inputs, output: output + 1)
    ours = folded(network, SIDE)
    assert norms(ours) == [ours.stem[1]]
    assert_alike(ours, network, False)
