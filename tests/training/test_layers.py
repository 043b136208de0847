"""Learning rates by depth, and the head first: which parameters move, how far, and that the default is as it was."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fracray.config import Config, ModelConfig
from fracray.errors import InputError
from fracray.training.checkpoint import load_state, save_state
from fracray.training.growth import try_network
from fracray.training.layers import below_head, head, parameter_groups
from fracray.training.loop import Fit, dropout_seed
from fracray.training.loss import batch_loss
from fracray.training.model import build_model
from fracray.training.schedule import Rates, learning_rate
from tests.training.test_localise import with_boxes
from tests.training.test_loop import make_config, make_stream


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of weights for `make_config`'s network: the head first needs some."""
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    torch.manual_seed(1)
    save_file({key: value.contiguous() for key, value in build_model(make_config().model).state_dict().items()}, path)
    return str(path)


def named_layers(model):
    return dict(zip(dict(model.named_parameters()), below_head(model), strict=True))


# ---------------------------------------------------------------- layers


def test_layers_of_fracture_cnn_are_its_stages():
    layers = named_layers(build_model(ModelConfig(width=8, localise=True)))
    for name, layer in layers.items():
        part = name.split(".")[0]
        number = {"stem": 3, "head": 0, "localiser": 0}.get(part)
        assert layer == (3 - int(name.split(".")[1]) if number is None else number), name


def test_layers_of_timms_networks_are_those_of_timms_own_groups():
    """timm 1.0's `param_groups_layer_decay`, which knows its networks but no localiser."""
    from timm.optim import param_groups_layer_decay

    model = build_model(ModelConfig(name="tf_efficientnet_lite0", localise=True))
    ours = {}
    for group in parameter_groups(model, 0.05, 0.8):
        ours |= {id(parameter): (group["lr_scale"], group["weight_decay"]) for parameter in group["params"]}
    theirs = param_groups_layer_decay(model.network, 0.05, layer_decay=0.8)
    assert len(theirs) > 30
    for group in theirs:
        for parameter in group["params"]:
            assert ours[id(parameter)] == pytest.approx((group["lr_scale"], group["weight_decay"]))
    assert {ours[id(parameter)][0] for parameter in model.localiser.parameters()} == {1.0}


def test_layers_of_torchvisions_networks_are_its_stages():
    layers = named_layers(build_model(ModelConfig(name="torchvision/resnet18")))
    ends = {"conv1": 5, "bn1": 5, "layer1": 4, "layer2": 3, "layer3": 2, "layer4": 1, "fc": 0}
    assert layers == {name: ends[name.split(".")[1]] for name in layers}


def test_a_network_without_layers_is_refused():
    config = Config().with_leaves({"model.name": "torchvision/vit_b_16", "model.spatial_dropout": 0.0})
    config = config.with_leaves({"data.size": 224})
    try_network(config)
    with pytest.raises(InputError, match=r"train\.layer_decay: .* not known; set train\.layer_decay=1"):
        try_network(config.with_leaves({"train.layer_decay": 0.7}))


# ---------------------------------------------------------------- the learning rate by depth


def test_groups_have_the_rate_to_the_power_of_their_layer():
    model = build_model(ModelConfig(width=8))
    groups = parameter_groups(model, 0.05, 0.5)
    assert [group["lr_scale"] for group in groups] == [1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]
    assert [group["weight_decay"] for group in groups] == [0.05, 0.0] * 4
    every = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(every) == sorted(map(id, model.parameters()))
    assert {id(parameter) for group in groups[:2] for parameter in group["params"]} == set(map(id, head(model)))


def test_rates_are_those_of_the_schedule_times_the_scales():
    config = make_config(**{"train.warmup": 0.2}).train
    rates = Rates(config, torch.device("cpu"), [1.0, 0.5, 0.25])
    for step in (0, 17, 59):
        rates.set(step, 60)
        assert rates.lrs == [learning_rate(config, step, 60) * scale for scale in (1, 0.5, 0.25)]


def test_a_first_step_moves_each_layer_by_its_rate():
    """Adam's first step is the learning rate itself in each coordinate whose gradient is not tiny."""
    config = make_config(**{"train.layer_decay": 0.5, "train.weight_decay": 0.0, "train.warmup": 0.0})
    fit = Fit(config, make_stream(config))
    before = {name: tensor.detach().clone() for name, tensor in fit.model.named_parameters()}
    fit._train_mode()
    fit._step(next(iter(fit.stream.train(0))), 0)
    layers = named_layers(fit.model)
    for name, tensor in fit.model.named_parameters():
        moved = (tensor.detach() - before[name]).abs().max().item()
        assert moved == pytest.approx(config.train.lr * 0.5 ** layers[name], rel=1e-3), name
    assert fit._rate() == pytest.approx(config.train.lr)  # what is reported is the head's


# ---------------------------------------------------------------- the head first


def changed(fit, before):
    return {name for name, tensor in fit.model.state_dict().items() if not torch.equal(tensor, before[name])}


def copied(fit):
    return {name: tensor.clone() for name, tensor in fit.model.state_dict().items()}


def test_the_head_alone_trains_first_and_then_all(weights):
    config = make_config(
        **{"model.weights": weights, "train.head_epochs": 2, "train.epochs": 3, "model.localise": True}
    )
    # 113 images: the last batch has one, which has no batch statistics.
    fit = Fit(config, with_boxes(make_stream(config, train=113)))
    start = copied(fit)
    for _ in range(2):
        before = copied(fit)
        fit.run_epoch()
        assert {name.split(".")[0] for name in changed(fit, before)} == {"head", "localiser"}
        for name, tensor in fit.averaged.state_dict().items():
            if not name.startswith(("head.", "localiser.")):
                torch.testing.assert_close(tensor, start[name], rtol=1e-5, atol=1e-6)
    before = copied(fit)
    fit.run_epoch()
    assert changed(fit, before) >= {"stem.0.weight", "stem.1.running_mean", "stages.2.body.0.weight", "head.weight"}


def test_frozen_stages_stay_so_after_the_head(weights):
    config = make_config(
        **{"model.weights": weights, "train.head_epochs": 1, "train.epochs": 2, "model.freeze_stages": 1}
    )
    fit = Fit(config, make_stream(config))
    before = copied(fit)
    fit.run_epoch(), fit.run_epoch()
    parts = {".".join(name.split(".")[:2]) for name in changed(fit, before)}
    assert parts == {"stages.1", "stages.2", "head.weight", "head.bias"}


def test_a_training_resumed_after_the_head_is_the_uninterrupted_one(weights, tmp_path):
    leaves = {"model.weights": weights, "train.head_epochs": 1, "train.layer_decay": 0.7}
    config = make_config(**leaves)
    whole, first = (Fit(config, make_stream(config)) for _ in range(2))
    expected = [whole.run_epoch().metrics for _ in range(3)]
    first.run_epoch()
    save_state(tmp_path / "state.safetensors", *first.state())
    resumed = Fit(config, make_stream(config))
    resumed.load_state(*load_state(tmp_path / "state.safetensors"))
    assert [resumed.run_epoch().metrics for _ in range(2)] == expected[1:]


@pytest.mark.parametrize(
    ("leaves", "why"),
    [
        ({"train.head_epochs": 1}, r"train\.head_epochs = 1: trains a head on random weights; set model\.weights"),
        ({"train.head_epochs": 4, "train.epochs": 4, "model.weights": "imagenet"}, "leaves none of the 4 epochs"),
    ],
)
def test_a_head_that_cannot_come_first_is_refused(leaves, why):
    with pytest.raises(InputError, match=why):
        Config().with_leaves(leaves)


# ---------------------------------------------------------------- the default


def plain_losses(config, stream):
    """The losses of the epochs' steps by a loop of its own, as fracray trained before it knew any of these settings."""
    torch.manual_seed(config.train.seed)
    model = build_model(config.model).to(memory_format=torch.channels_last).train()
    # Of a plain convolutional network, norms and biases are what has one dimension.
    decayed, spared = ([p for p in model.parameters() if (p.ndim > 1) is many] for many in (True, False))
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.train.weight_decay}, {"params": spared, "weight_decay": 0.0}],
        betas=(0.9, 0.99),
    )
    labels = stream.plan.labels[stream.plan.train_rows]
    losses, step, total = [], 0, config.train.epochs * stream.plan.steps
    for epoch in range(config.train.epochs):
        torch.manual_seed(dropout_seed(config.train.seed, epoch, 0))
        for batch in stream.train(epoch):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config.train, step, total)
            loss = batch_loss(
                model(torch.from_numpy(batch.images).unsqueeze(1)),
                torch.from_numpy(batch.labels),
                config.train,
                float((labels == 0).sum() / (labels == 1).sum()),
            ).sum()
            optimizer.zero_grad()
            (loss / len(batch.labels)).backward()
            nn.utils.clip_grad_norm_(model.parameters(), config.train.clip_norm)
            optimizer.step()
            losses.append(loss.item())
            step += 1
    return losses


class Watched(Fit):
    """Keeps the loss of every step."""

    def _step(self, batch, step):
        total = super()._step(batch, step)
        self.losses = [*getattr(self, "losses", []), total.item()]
        return total


def test_losses_of_the_default_are_to_the_bit_what_they_were():
    config = make_config()
    fit = Watched(config, make_stream(config))
    for _ in range(config.train.epochs):
        fit.run_epoch()
    assert fit.losses == plain_losses(config, make_stream(config))
