"""The mean with the mirror image: when it is taken, of what, and that training does not know of it."""

import json

import numpy as np
import pytest
import torch

from fracray.config import ModelConfig
from fracray.evaluation.inference import looking_network, network
from fracray.evaluation.maps import grad_cam
from fracray.metrics import Calibration
from fracray.training.checkpoint import CheckpointMetadata, load_checkpoint, save_checkpoint
from fracray.training.ensemble import Ensemble
from fracray.training.loop import Fit
from fracray.training.model import build_model
from tests.training.test_loop import make_config, make_stream, radiographs

SIZE = 64


def pair(name="fracture_cnn", **settings):
    """The same weights without and with the mirror image, in evaluation mode."""
    torch.manual_seed(0)
    fields = {"name": name, "width": 8, "localise": True, **settings}
    plain, mirrors = build_model(ModelConfig(**fields)), build_model(ModelConfig(**fields, mirror=True))
    mirrors.load_state_dict(plain.state_dict())
    return plain.eval(), mirrors.eval()


def pictures(count=3, size=SIZE):
    return torch.randint(0, 256, (count, 1, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["fracture_cnn", "tf_efficientnet_lite0", "torchvision/resnet18"])
@torch.inference_mode()
def test_logits_and_maps_are_means_of_both(name):
    plain, mirrors = pair(name)
    images = pictures()
    (logits, found), (turned, back) = plain(images, True), plain(images.flip(3), True)
    assert not torch.allclose(logits, turned)
    mean, where = mirrors(images, True)
    torch.testing.assert_close(mean, (logits + turned) / 2)
    torch.testing.assert_close(where, (found + back.flip(2)) / 2)
    assert torch.equal(mirrors(images), mean)


@torch.inference_mode()
def test_an_ensemble_has_each_members_own():
    plain, mirrors = pair()
    images = pictures()
    torch.testing.assert_close(Ensemble([plain, mirrors])(images), (plain(images) + mirrors(images)) / 2)


def test_training_does_not_know_of_it_and_validation_does():
    config = make_config(**{"train.epochs": 1})
    mirrors = config.with_leaves({"model.mirror": True})
    ours, theirs = (Fit(each, make_stream(each)) for each in (config, mirrors))
    (report, mirrored) = (fit.run_epoch() for fit in (ours, theirs))
    assert report.metrics["train_loss"] == mirrored.metrics["train_loss"]
    for name, tensor in ours.averaged.state_dict().items():
        assert torch.equal(tensor, theirs.averaged.state_dict()[name]), name
    images = torch.from_numpy(radiographs()[0][mirrored.validation.rows]).unsqueeze(1)
    with torch.inference_mode():
        expected = (ours.averaged(images) + ours.averaged(images.flip(3))) / 2
    np.testing.assert_allclose(mirrored.validation.logits, expected.numpy(), atol=1e-5)
    assert mirrored.validation.calibration != report.validation.calibration  # fitted to these logits


def saved(folder, model, config):
    metadata = CheckpointMetadata(
        config=config, threshold=0.5, calibration=Calibration(1.0, 0.0), metrics={}, data_fingerprint="x", epoch=1
    )
    save_checkpoint(folder, model.state_dict(), metadata)
    return folder


def test_a_checkpoint_opens_as_it_was_validated_and_an_older_one_without(tmp_path):
    config = make_config(**{"model.mirror": True, "model.localise": True, "data.size": SIZE})
    plain, mirrors = pair()
    folder = saved(tmp_path / "checkpoint", mirrors, config)
    images = pictures()[:, 0].numpy()
    with torch.inference_mode():
        expected, without = mirrors(pictures(), True), plain(pictures())
    np.testing.assert_allclose(network(load_checkpoint(folder))(images), expected[0], atol=1e-5)
    for ours, theirs in zip(looking_network(load_checkpoint(folder))(images), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    card = json.loads((folder / "config.json").read_text())
    del card["config"]["model"]["mirror"]  # as an older version wrote it
    (folder / "config.json").write_text(json.dumps(card))
    np.testing.assert_allclose(network(load_checkpoint(folder))(images), without, atol=1e-5)


@pytest.mark.parametrize("name", ["fracture_cnn", "tf_efficientnet_lite0"])
def test_grad_cam_is_the_mean_of_both(name):
    plain, mirrors = pair(name)
    images = pictures(size=128)
    both = (grad_cam(plain, images) + grad_cam(plain, images.flip(3)).flip(2)) / 2
    assert both.amax() > 0
    torch.testing.assert_close(grad_cam(mirrors, images), both)
