"""What ranks tell each other: sums of gradients in one message a step, equal weights on all, and a rank that dies."""

import math
import os
import time

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing as mp
from torch import nn
from torch.profiler import ProfilerActivity, profile

from fracray.training import loop
from fracray.training.loop import Fit
from fracray.training.ranks import GradientSum
from tests.training.test_loop import comparable, free_port, make_config, make_stream

EXACT = {"model.freeze_norm": True, "model.dropout": 0.0, "model.spatial_dropout": 0.0, "train.epochs": 1}
RUNS = {
    "fp32": {"train.epochs": 2},
    "bf16": {"train.epochs": 2, "train.precision": "bf16"},
    "clipped": {**EXACT, "train.clip_norm": 0.05},
    "clipped bf16": {**EXACT, "train.clip_norm": 0.05, "train.precision": "bf16"},
    "still": {**EXACT, "model.freeze_norm": False, "train.lr": 1e-9},
}
TRAIN = 113  # seven batches of 16, and one image, of which the second rank has none


class Noting(Fit):
    """Keeps the gradients of its first step as the optimiser gets them: added up and clipped."""

    def __init__(self, *args):
        super().__init__(*args)
        self.gradients = {}
        step = self.optimizer.step

        def noted():
            self.gradients = self.gradients or {n: p.grad.clone() for n, p in self.model.named_parameters()}
            step()

        self.optimizer.step = noted


def trained(leaves, rank=0, world=1):
    config = make_config(**leaves)
    fit = Noting(config, make_stream(config, rank, world, TRAIN))
    reports = [fit.run_epoch() for _ in range(config.train.epochs)]
    weights, averaged = (network.state_dict() for network in (fit.model, fit.averaged))
    return {"gradients": fit.gradients, "reports": comparable(reports), "weights": weights, "averaged": averaged}


def messages(rank, world):
    """The messages of an epoch, by kind, and its steps; the backend itself records them."""
    config = make_config()
    fit = Fit(config, make_stream(config, rank, world, TRAIN))
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        fit.run_epoch()
    counts = {event.key: event.count for event in recorded.key_averages() if event.key.startswith("gloo:")}
    return counts, fit.stream.plan.steps


def layers(rank):
    """Gradients of a network, some of whose layers have none or get theirs later, before and after the exchange."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 1))
    network = network.to(memory_format=torch.channels_last)
    unused = nn.Parameter(torch.zeros(3))
    parameters, exchange, seen = [*network.parameters(), unused], GradientSum(torch.float32), []
    for frozen in (True, False, True):
        for parameter in network[0].parameters():
            parameter.requires_grad_(not frozen)
        for parameter in parameters:
            parameter.grad = None
        network(torch.full((2, 2, 5, 5), 1.0 + rank)).sum().backward()
        before = [None if p.grad is None else p.grad.clone() for p in parameters]
        exchange.exchange(parameters)
        after = [None if p.grad is None else p.grad.clone() for p in parameters]
        seen.append((before, after))
    return seen


def rank_main(rank, world, port, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    found = {name: trained(leaves, rank, world) for name, leaves in RUNS.items()}
    found |= {"messages": messages(rank, world), "layers": layers(rank)}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(rank_main, (2, free_port(), str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("name", RUNS)
def test_both_have_the_same_weights_and_statistics_to_the_last_bit(ranks, name):
    first, second = (found[name] for found in ranks)
    for kind in ("weights", "averaged"):
        for entry, tensor in first[kind].items():
            if "num_batches" not in entry:  # the rank without an image of the last batch has seen a batch less
                assert torch.equal(tensor, second[kind][entry]), entry
    assert first["reports"] == second["reports"]
    assert math.isfinite(first["reports"][-1]["train_loss"])


def test_the_statistics_are_those_of_one_rank_that_sees_all_images(ranks):
    ours, alone = ranks[0]["still"], trained(RUNS["still"])
    for kind in ("weights", "averaged"):
        mine, theirs = (found[kind]["stem.1.running_mean"] for found in (ours, alone))
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "off"), [("clipped", 1e-4), ("clipped bf16", 0.02)])
def test_clipped_gradients_are_those_of_one_rank(ranks, name, off):
    ours, alone = ranks[0][name]["gradients"], trained(RUNS[name])["gradients"]
    ours, alone = (torch.cat([tensor.flatten() for tensor in kept.values()]) for kept in (ours, alone))
    assert alone.norm() == pytest.approx(0.05, rel=1e-3)  # so they were clipped
    assert (ours - alone).norm() < off * alone.norm()


def test_a_step_is_one_message_and_the_end_of_an_epoch_two(ranks):
    counts, steps = ranks[0]["messages"]
    assert counts == {"gloo:all_reduce": steps + 2}


def test_layers_without_gradients_keep_none_and_the_others_are_added_up(ranks):
    first, second = (found["layers"] for found in ranks)
    for (mine, ours), (others, _), learning in zip(first, second, (4, 6, 4), strict=True):
        assert sum(gradient is not None for gradient in ours) == learning
        for one, other, both in zip(mine, others, ours, strict=True):
            assert (one is None) == (both is None)
            if one is not None:
                assert torch.equal(one + other, both)
                assert both.abs().max() > 0


def unlike_rank(rank, world, port, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    config = make_config(**{"train.epochs": 1})
    loop.pick_precision = lambda *_: torch.bfloat16 if rank == 0 else torch.float32  # machines of two kinds
    fit = Fit(config, make_stream(config, rank, world, TRAIN))
    report = fit.run_epoch()
    torch.save((fit.precision, report.metrics["train_loss"]), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_machines_of_two_kinds_train_in_one_arithmetic(tmp_path):
    mp.spawn(unlike_rank, (2, free_port(), str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2))
    assert first == second
    assert first[0] is torch.float32
    assert math.isfinite(first[1])


def dying_rank(rank, world, port, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    config = make_config()
    fit = Fit(config, make_stream(config, rank, world))
    step = fit._step
    if rank == 1:
        fit._step = lambda batch, number: os._exit(0) if number == 2 else step(batch, number)
    begun = time.monotonic()
    try:
        fit.run_epoch()
    except RuntimeError as error:
        torch.save((str(error), time.monotonic() - begun), f"{folder}/error.pt")


def test_a_rank_whose_partner_has_died_ends_with_an_error_at_once(tmp_path):
    mp.spawn(dying_rank, (2, free_port(), str(tmp_path)), nprocs=2)
    said, seconds = torch.load(tmp_path / "error.pt", weights_only=False)
    assert "closed by peer" in said or "reset by peer" in said
    assert seconds < 120
