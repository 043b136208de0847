"""fracray.evaluation.inference: a checkpoint as a function."""

import numpy as np
import pytest
import torch

from fracray.config import Config
from fracray.evaluation import inference
from fracray.metrics import Calibration
from fracray.training.checkpoint import CheckpointMetadata, load_checkpoint, save_checkpoint
from fracray.training.model import build_model


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 63])
def test_images_that_fill_a_batch_of_a_gpu_change_no_result(tmp_path, monkeypatch, count):
    config = Config().with_leaves({"data.size": 32, "model.width": 8, "model.localise": True})
    model = build_model(config.model)
    card = CheckpointMetadata(config, 0.5, Calibration(), {}, "0", 1)
    save_checkpoint(tmp_path / "net", model.state_dict(), card)
    checkpoint = load_checkpoint(tmp_path / "net")
    images = np.random.default_rng(0).integers(0, 256, (count, 32, 32), dtype=np.uint8)
    plain = [inference.network(checkpoint)(images), inference.map_network(checkpoint)(images)]
    both = inference.looking_network(checkpoint)(images)
    passed, rounded = [], inference._in_batch
    assert rounded(count, torch.device("cpu")) == count

    def as_on_a_gpu(many, device):
        passed.append(rounded(many, torch.device("cuda")))
        return passed[-1]

    monkeypatch.setattr(inference, "_in_batch", as_on_a_gpu)
    filled = [inference.network(checkpoint)(images), inference.map_network(checkpoint)(images)]
    for found, known in zip([*filled, *inference.looking_network(checkpoint)(images)], [*plain, *both], strict=True):
        assert len(found) == count
        np.testing.assert_allclose(found, known, atol=1e-5)
    assert passed == [{1: 1, 2: 2, 3: 4, 5: 8, 8: 8, 63: 64}[count]] * 3
