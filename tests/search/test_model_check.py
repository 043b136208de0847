"""Every network that a space can ask for is built before launch."""

from itertools import product

import pytest

from fracray.config import Config
from fracray.errors import InputError
from fracray.search.model_check import _always_builds, check_models
from fracray.search.space_file import load_space

NAMES = "  model.name: {categorical: [fracture_cnn, tf_efficientnet_lite0]}\n"
WHEN = "when: {model.name: [tf_efficientnet_lite0]}"
FAULTS = {
    "the first of several": (
        f"  model.weights: {{categorical: [gone.safetensors, imagenet, null], {WHEN}}}\n",
        "space.yaml:4: gone.safetensors: no such file",
    ),
    "in the middle": (
        f"  model.weights: {{categorical: [null, gone.safetensors, imagenet], {WHEN}}}\n",
        "space.yaml:4: gone.safetensors: no such file",
    ),
    "under a condition that the default does not meet": (
        "  model.weights: {categorical: [gone.safetensors, null], when: {train.loss: [focal]}}\n"
        "  train.loss: {categorical: [weighted, focal]}\n",
        "space.yaml:4: gone.safetensors: no such file",
    ),
    "that one network does not have": (
        "  model.weights: {categorical: [imagenet, null]}\n",
        "space.yaml:4: model.weights = 'imagenet': fracture_cnn has no ImageNet weights",
    ),
}


def space_of(tmp_path, text):
    file = tmp_path / "space.yaml"
    file.write_text(f"base: {{data: {{size: 32}}}}\nspace:\n{text}")
    return load_space(file)


@pytest.mark.parametrize(("text", "words"), FAULTS.values(), ids=FAULTS)
def test_weights_are_refused_with_their_line(tmp_path, text, words):
    with pytest.raises(InputError) as refused:
        check_models(space_of(tmp_path, NAMES + text))
    assert words in str(refused.value)


def test_an_unknown_network_is_refused_with_its_line(tmp_path):
    with pytest.raises(InputError, match=r"space\.yaml:3: .*no_such_net"):
        check_models(space_of(tmp_path, "  model.name: {categorical: [fracture_cnn, no_such_net]}\n"))


def test_a_space_whose_networks_can_all_be_had_is_taken(tmp_path):
    text = f"{NAMES}  model.weights: {{categorical: [null, imagenet], {WHEN}}}\n  model.width: {{int: [4, 16]}}\n"
    check_models(space_of(tmp_path, text + "  model.spatial_dropout: {float: [0.0, 0.4]}\n"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("  model.freeze_stages: {int: [0, 9]}\n", "space.yaml:4: model.freeze_stages = 9: .* has 4 stages"),
        ("  model.localise: {categorical: [true, false]}\n", "space.yaml:4: model.localise: vit_tiny"),
        ("  train.layer_decay: {float: [0.7, 1.0]}\n", "space.yaml:4: train.layer_decay: the layers"),
        ("  train.head_epochs: {int: [0, 1]}\n", "space.yaml.*train.head_epochs = 1: .* random weights"),
    ],
)
def test_switches_that_do_not_fit_every_network_are_tried(tmp_path, text, words):
    name = "vit_tiny_patch16_224" if "localise" in text else "tf_efficientnet_lite0"
    name = "torchvision/swin_t" if "layer_decay" in text else name
    model = f"{{name: {name}, weights: {'imagenet' if 'stages' in text else 'null'}, spatial_dropout: 0.0}}"
    file = tmp_path / "space.yaml"
    file.write_text(
        f"base: {{data: {{size: 224}}, model: {model}}}\nspace:\n  model.dropout: {{float: [0, 0.5]}}\n{text}"
    )
    with pytest.raises(InputError, match=words):
        check_models(load_space(file))


def test_the_network_that_is_not_tried_builds_at_every_value():
    """`check_models` leaves it out, for Torch is slow to import: so this must hold."""
    from fracray.training.growth import try_network

    for width, dropped, side in product((4, 33, 512), (0.0, 0.99), (32, 2048)):
        leaves = {"model.width": width, "model.spatial_dropout": dropped, "data.size": side}
        config = Config().with_leaves(leaves, "test")
        assert _always_builds(config)
        try_network(config)
    assert not _always_builds(Config().with_leaves({"model.name": "tf_efficientnet_lite0"}, "test"))
    assert not _always_builds(Config().with_leaves({"model.weights": "gone.safetensors"}, "test"))
    assert not _always_builds(Config().with_leaves({"train.first_size": 64}, "test"))
