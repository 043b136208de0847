"""CUDA graphs on a machine without a GPU: when they are used, and what changes from step to step as tensors."""

import pytest
import torch

from fracray.config import Config
from fracray.errors import InputError
from fracray.training.average import MovingAverage
from fracray.training.graphs import uses_graphs
from fracray.training.loop import Fit
from fracray.training.schedule import Rates, decay, learning_rate
from tests.training.test_loop import make_config, make_stream

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("leaves", "device", "world", "used"),
    [
        ({}, GPU, 1, True),
        ({"train.graphs": "on"}, GPU, 1, True),
        ({"train.graphs": "off"}, GPU, 1, False),
        ({}, CPU, 1, False),
        ({}, GPU, 2, False),
        ({"train.compile": True}, GPU, 1, False),
        ({"train.graphs": "off", "train.compile": True}, CPU, 2, False),
    ],
)
def test_auto_uses_them_where_one_worker_has_a_gpu_and_compiles_nothing(leaves, device, world, used):
    assert uses_graphs(Config().with_leaves(leaves), device, world) is used


@pytest.mark.parametrize(
    ("leaves", "device", "world", "why"),
    [
        ({}, CPU, 1, "there is no GPU"),
        ({}, GPU, 2, "the training has 2 workers"),
        ({"train.compile": True}, GPU, 1, "train.compile = true"),
    ],
)
def test_on_is_refused_where_they_cannot_be(leaves, device, world, why):
    with pytest.raises(InputError, match=rf"train\.graphs = on: .*{why}; set auto"):
        uses_graphs(Config().with_leaves({"train.graphs": "on", **leaves}), device, world)


def test_a_fit_without_a_gpu_says_so():
    config = make_config(**{"train.graphs": "on"})
    with pytest.raises(InputError, match="there is no GPU"):
        Fit(config, make_stream(config), CPU)


def test_an_average_whose_weight_is_a_tensor_is_that_of_the_number():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4))
    model[1].num_batches_tracked += 3
    by_number, by_tensor = (torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4)) for _ in range(2))
    by_tensor.load_state_dict(by_number.state_dict())
    MovingAverage(by_number, model).update(0.3)
    weight = torch.tensor(1.0)
    average = MovingAverage(by_tensor, model)
    weight.fill_(0.3)
    average.update(weight)
    for name, tensor in by_tensor.state_dict().items():
        torch.testing.assert_close(tensor, by_number.state_dict()[name], rtol=1e-6, atol=1e-7)
    assert int(by_tensor[1].num_batches_tracked) == 3


def test_the_rates_of_a_step_are_the_schedules():
    config = make_config(**{"train.ema": 0.9, "train.warmup": 0.2}).train
    rates = Rates(config, CPU)
    for step in (0, 3, 40):
        rates.set(step, 60)
        assert rates.lrs == [learning_rate(config, step, 60)]
        assert rates.average == 1 - decay(0.9, step)
    assert decay(0.9, 0) == 0.1
    assert decay(0.9, 10**6) == 0.9
    assert decay(0.0, 5) == 0.0


def test_tensors_that_a_fit_loads_are_those_that_its_average_moves(tmp_path):
    config = make_config(**{"train.epochs": 1})
    first, second = (Fit(config, make_stream(config)) for _ in range(2))
    first.run_epoch()
    tensors, meta = first.state()
    second.load_state(tensors, {**meta, "epochs_done": 0})
    before = second.averaged.state_dict()["stem.0.weight"].clone()
    second.run_epoch()
    assert not torch.equal(second.averaged.state_dict()["stem.0.weight"], before)
