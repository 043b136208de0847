"""Training on smaller images first: which epochs, which pixels, and that nothing else changes."""

import cv2
import numpy as np
import pytest
import torch

from fracray.config import Config
from fracray.errors import InputError
from fracray.training.checkpoint import load_state, save_state
from fracray.training.growth import shrunk, side_in, try_network
from fracray.training.loop import Fit
from tests.training.test_localise import with_boxes
from tests.training.test_loop import SIZE, make_config, make_stream

SMALL = SIZE // 2
GROWING = {"train.first_size": SMALL, "train.epochs": 4, "train.grow_at": 0.5}


def config_of(**leaves):
    return Config().with_leaves({"data.size": 224, **{f"train.{name}": value for name, value in leaves.items()}})


@pytest.mark.parametrize(
    ("leaves", "sides"),
    [
        ({"epochs": 4}, [None] * 4),
        ({"epochs": 5, "first_size": 96}, [96, 96, 96, None, None]),
        ({"epochs": 4, "first_size": 96, "grow_at": 0.0}, [None] * 4),
        ({"epochs": 3, "first_size": 96, "grow_at": 0.99}, [96, 96, None]),
        ({"epochs": 1, "first_size": 96}, [None]),  # what is kept has seen the full size
    ],
)
def test_the_side_of_each_epoch(leaves, sides):
    config = config_of(**leaves)
    assert [side_in(config, epoch) for epoch in range(config.train.epochs)] == sides


def test_a_first_size_above_the_full_one_is_refused():
    with pytest.raises(InputError, match=r"train\.first_size.*320 is more than data\.size = 224"):
        config_of(first_size=320)


def test_a_side_that_the_network_does_not_take_is_refused():
    config = config_of(first_size=96)
    try_network(config)
    # A transformer's places are for one side.
    vit = config.with_leaves({"model.name": "torchvision/vit_b_16", "model.spatial_dropout": 0.0})
    with pytest.raises(InputError, match=r"train\.first_size = 96: torchvision/vit_b_16 does not take"):
        try_network(vit)


def test_shrinking_averages():
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64), dtype=np.uint8)
    halved = shrunk(torch.from_numpy(images), 32)
    assert halved.dtype == torch.uint8
    assert halved.shape == (3, 32, 32)
    blocks = np.stack([cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA) for image in images])
    # The filter of half the resolution is a little wider than a block of four pixels.
    assert np.corrcoef(halved.numpy().ravel(), blocks.ravel())[0, 1] > 0.9
    assert abs(float(halved.float().mean()) - images.mean()) < 0.5
    flat = torch.full((2, 50, 50), 255, dtype=torch.uint8)
    assert torch.equal(shrunk(flat, 33), torch.full((2, 33, 33), 255, dtype=torch.uint8))


def test_the_full_size_is_passed_on_untouched():
    images = torch.randint(0, 256, (2, 40, 40), dtype=torch.uint8)
    assert shrunk(images, 40) is shrunk(images, None) is images


class Watched(Fit):
    """Notes the side of what the network trains on, of its map's targets, and of what it is validated on."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.trained, self.validated = [], []
        self.averaged.register_forward_pre_hook(
            lambda module, inputs: self.validated.append(inputs[0].shape[-1]) if len(inputs) == 1 else None
        )

    def _update(self, images, labels, *maps, **more):
        self.trained.append((self.epochs_done, images.shape[-1], maps[0].shape[-1] if maps else None))
        return super()._update(images, labels, *maps, **more)


def test_an_epoch_trains_on_its_side_and_validates_on_the_full_one():
    config = make_config(**GROWING)
    fit = Watched(config, make_stream(config))
    while not fit.done:
        fit.run_epoch()
    assert {(epoch, side) for epoch, side, _ in fit.trained} == {(0, SMALL), (1, SMALL), (2, SIZE), (3, SIZE)}
    assert set(fit.validated) == {SIZE}


def test_the_maps_of_boxes_grow_with_the_images():
    config = make_config(**GROWING, **{"model.localise": True})
    fit = Watched(config, with_boxes(make_stream(config)))
    while not fit.done:
        fit.run_epoch()
    sides = {epoch: cells for epoch, _, cells in fit.trained}
    assert sides[0] == sides[1]
    assert sides[2] == sides[3] == 2 * sides[0]


def test_a_resumed_training_grows_where_the_uninterrupted_one_does(tmp_path):
    config = make_config(**GROWING)
    whole, first = (Fit(config, make_stream(config)) for _ in range(2))
    expected = [whole.run_epoch().metrics for _ in range(4)]
    first.run_epoch()
    save_state(tmp_path / "state.safetensors", *first.state())
    resumed = Fit(config, make_stream(config))
    resumed.load_state(*load_state(tmp_path / "state.safetensors"))
    assert [resumed.run_epoch().metrics for _ in range(3)] == expected[1:]


def test_smaller_images_are_what_makes_the_difference():
    growing, plain = make_config(**GROWING), make_config(**{"train.epochs": 4})
    assert Fit(growing, make_stream(growing)).run_epoch().metrics != Fit(plain, make_stream(plain)).run_epoch().metrics
