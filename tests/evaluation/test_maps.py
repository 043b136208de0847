"""Grad-CAM against closed forms, finite differences and the package grad-cam; weights that know nothing."""

import copy
from itertools import pairwise

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from fracray.config import ModelConfig
from fracray.evaluation.maps import grad_cam, maps, methods, randomised
from fracray.training.ensemble import Ensemble
from fracray.training.model import build_model

LITE = {"name": "tf_efficientnet_lite0"}


def network(seed=0, **settings):
    torch.manual_seed(seed)
    model = build_model(ModelConfig(**{"width": 8, **settings})).eval()
    for parameter in model.parameters():  # a new head says next to nothing
        if parameter.ndim > 1:
            parameter.data *= 1.5
    return model


def pictures(count=3, size=128):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 1, size, size), dtype=np.uint8))


def last_maps(model, images):
    kept = []
    hook = model.get_submodule(model.last_stage).register_forward_hook(lambda *call: kept.append(call[2].detach()))
    with torch.no_grad():
        model(images)
    hook.remove()
    return kept[0]


def test_of_average_pooling_it_is_the_class_activation_map():
    """Selvaraju et al. 2017, section 3.1: with a linear head on the average, Grad-CAM is CAM, over the cells."""
    model = network()
    channels = model.head.in_features // 2
    model.head.weight.data[:, channels:] = 0  # of the maximum
    images = pictures()
    features = last_maps(model, images)
    known = torch.relu(torch.einsum("c,bchw->bhw", model.head.weight[0, :channels].detach(), features)) / 16
    assert features.shape[2:] == (4, 4)
    assert known.max() > 0
    assert torch.allclose(grad_cam(model, images), known, atol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"localise": True}, {**LITE, "localise": True}])
def test_channels_count_by_what_the_logit_gains_from_them(settings):
    """By finite differences of the whole network, so that a localiser's share of the logit is in it."""
    model = network(**settings)
    images = pictures(1, 64)
    features = last_maps(model, images)
    count, step, cells = features.shape[1], 1e-2, features.shape[2] * features.shape[3]
    with torch.no_grad():
        gains = []
        for sign in (1, -1):
            shifts = sign * step * torch.eye(count)[:, :, None, None]
            hook = model.get_submodule(model.last_stage).register_forward_hook(
                lambda module, inputs, output, shifts=shifts: output + shifts, prepend=True
            )
            gains.append(torch.cat([model(images.expand(count, -1, -1, -1))]).double())
            hook.remove()
    weights = (gains[0] - gains[1]) / (2 * step) / cells
    known = torch.relu(torch.einsum("c,bchw->bhw", weights.float(), features))
    assert torch.allclose(grad_cam(model, images), known, atol=0.02 * float(known.max()) + 1e-5)


@pytest.mark.parametrize("settings", [{}, {"localise": True}, LITE, {"name": "torchvision/resnet18"}])
def test_it_is_that_of_the_package_grad_cam(settings):
    package = pytest.importorskip("pytorch_grad_cam", reason="the package grad-cam is not installed")
    model = network(**settings)
    images = pictures(4).float()

    class AsClasses(nn.Module):  # the package takes (B, classes)
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, batch):
            return self.model(batch).unsqueeze(1)

    with package.GradCAM(AsClasses(), [model.get_submodule(model.last_stage)]) as theirs:
        theirs.compute_input_gradient = False
        known = theirs(images, [package.utils.model_targets.ClassifierOutputTarget(0)] * 4)
    ours = grad_cam(model, images)
    side = known.shape[-1]

    def scaled(one):
        return (one - one.min()) / (1e-7 + (one - one.min()).max())

    # Theirs is scaled to 0 to 1, enlarged to the picture and scaled again.
    enlarged = [scaled(cv2.resize(scaled(one), (side, side))) for one in ours.numpy()]
    assert np.abs(np.stack(enlarged) - known).max() < 1e-3


def test_the_maps_of_a_network_are_those_it_has():
    assert methods(network()) == ("grad_cam",)
    assert methods(network(localise=True)) == ("localiser", "grad_cam")
    assert methods(network(name="vit_tiny_patch16_224", spatial_dropout=0)) == ()
    both = Ensemble([network(localise=True), network(1)])
    assert methods(both) == ("grad_cam",)
    images = pictures()
    one, other = (maps(member, "grad_cam", images) for member in both.members)
    assert torch.allclose(maps(both, "grad_cam", images), (one + other) / 2)
    assert set(one.amax((1, 2)).tolist()) <= {0.0, 1.0}
    model = network(localise=True)
    where = maps(model, "localiser", images)
    assert torch.allclose(where, torch.sigmoid(model(images, True)[1]))


def test_grad_cam_leaves_the_network_as_it_was():
    model = network(localise=True)
    model.requires_grad_(False)  # frozen stages have no gradients
    before = model(pictures())
    assert grad_cam(model, pictures()).shape == (3, 4, 4)
    assert torch.equal(model(pictures()), before)
    assert not model.get_submodule(model.last_stage)._forward_hooks


@pytest.mark.parametrize("settings", [{"localise": True}, LITE])
def test_weights_become_random_from_the_head_down(settings):
    model = network(**settings)
    before = copy.deepcopy(model.state_dict())
    changed, names = [], []
    for name, ours in randomised(model, 0):
        names.append(name)
        state = ours.state_dict()
        changed.append({key for key, value in state.items() if not torch.equal(value, before[key])})
        weights = [(value, before[key]) for key, value in state.items() if key in changed[-1] and value.numel() > 500]
        for now, then in weights:
            assert now.square().mean().sqrt() == pytest.approx(float(then.square().mean().sqrt()), rel=0.2)
    assert names[0] == "the head"
    assert names[1] == "the head and the last stage"
    assert names[-1] == "all weights"
    assert len(names) == len(model.depth) + 2
    assert all(less < more for less, more in pairwise(changed))
    assert not any(key.startswith(model.last_stage) for key in changed[0])
    assert any(key.startswith(model.last_stage) for key in changed[1])
    # All that is more than one number, and not the statistics of batch norm.
    assert changed[-1] == {key for key, value in model.named_parameters() if value.numel() > 1 and value.std() > 0}
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    again = [copy.deepcopy(ours.state_dict()) for _, ours in randomised(model, 0)]
    assert all(torch.equal(value, state[key]) for key, value in again[-1].items())
