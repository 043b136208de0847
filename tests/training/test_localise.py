"""The head that says where: its loss against closed forms, its evidence, and that it learns where a gap is."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import distributed as dist
from torch import multiprocessing as mp

from fracray.data.loading.boxes import Boxes
from fracray.data.loading.draws import Pictures
from fracray.data.loading.streams import MemoryStream
from fracray.training.checkpoint import load_state, save_state
from fracray.training.localise import BOXED, CELLS, RARE, Localiser, map_loss
from fracray.training.loop import Fit
from fracray.training.model import build_model
from tests.training.test_loop import COUNT, SIZE, free_port, make_config, make_stream, radiographs


def with_boxes(stream):
    """The stream's plan with a box around every gap; radiographs() draws the same from the same seed."""
    random = np.random.default_rng(0)
    random.integers(20, 60, (COUNT, SIZE, SIZE))
    edges, counts = [], []
    for number in range(COUNT):
        left = random.integers(6, 18)
        if number % 3 == 0:
            top = random.integers(8, 22)
            edges.append((left, top, left + 8, top + 3))
        counts.append(int(number % 3 == 0))
    boxes = Boxes(np.array(edges, dtype=float), np.concatenate([[0], np.cumsum(counts)]))
    stream.plan = replace(stream.plan, boxes=boxes)
    return stream


def test_the_boxes_of_these_tests_lie_around_the_gaps():
    stream, (images, _) = with_boxes(make_stream(make_config())), radiographs()
    for row in range(0, COUNT, 3):
        ((left, top, right, bottom),) = stream.plan.boxes.of(row).astype(int)
        assert images[row][top:bottom, left:right].max() < 80 < images[row][top - 1, left:right].min()


def test_loss_of_a_map_in_closed_form():
    where = torch.tensor([[[0.0, 0.0], [0.0, 0.0]]])
    shares = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    # Every cell has the cross-entropy log 2, whatever its weight; found are 4 halves, of which one half is right.
    expected = CELLS * math.log(2) + 1 - (2 * 0.5 + 1) / (2 + 1 + 1)
    assert map_loss(where, shares, torch.tensor([True])).item() == pytest.approx(expected)
    # Without a box the overlap does not count.
    assert map_loss(where, 0 * shares, torch.tensor([True])).item() == pytest.approx(CELLS * math.log(2))
    assert map_loss(where, 0 * shares, torch.tensor([False])).item() == 0


def test_a_missed_cell_in_a_box_weighs_more_than_one_outside():
    shares = torch.zeros(1, 4, 4)
    shares[0, 0, 0] = 1
    sure = torch.full((1, 4, 4), -6.0)
    missed, raised = sure.clone(), sure.clone()
    sure[0, 0, 0] = missed[0, 1, 1] = raised[0, 0, 0] = 6.0
    raised[0, 1, 1] = 6.0
    known = torch.tensor([True])
    right, without, extra = (map_loss(each, shares, known).item() for each in (sure, missed * 0 - 6.0, raised))
    assert right < 0.05
    assert (without - right) / (extra - right) > BOXED / 2


def test_evidence_starts_at_nothing_and_does_not_change_with_the_number_of_cells():
    localiser = Localiser(4, 8)
    start = localiser.evidence(torch.full((2, 14, 14), math.log(RARE)))
    assert start.tolist() == pytest.approx([0.0, 0.0], abs=1e-5)
    small = torch.randn(3, 7, 7)
    large = small.repeat_interleave(2, 1).repeat_interleave(2, 2)
    torch.testing.assert_close(localiser.evidence(small), localiser.evidence(large))
    raised = small.clone()
    raised[:, 2, 2] += 5
    assert (localiser.evidence(raised) > localiser.evidence(small)).all()


LARGER = 3  # 96 pixels a side: a map of 6 x 6 cells


def enlarged(stream):
    images = radiographs()[0].repeat(LARGER, axis=1).repeat(LARGER, axis=2)
    boxes = stream.plan.boxes
    plan = replace(stream.plan, boxes=replace(boxes, edges=boxes.edges * LARGER), pictures=Pictures.of_images(images))
    return MemoryStream(plan, images, 20), images


def test_it_learns_where_from_the_boxes():
    config = make_config(**{"model.localise": True, "train.epochs": 10})
    stream, images = enlarged(with_boxes(make_stream(config)))
    fit = Fit(config, stream)
    reports = [fit.run_epoch() for _ in range(10)]
    assert reports[-1].metrics["val_auroc"] > 0.9
    rows = [row for row in range(120, COUNT) if stream.plan.labels[row]]
    with torch.inference_mode():
        _, where = fit.averaged(torch.from_numpy(images[rows]).unsqueeze(1), True)
    inside, chance = [], []
    for row, cells in zip(rows, where.numpy(), strict=True):
        side = len(images[row]) / len(cells)
        ((left, top, right, bottom),) = stream.plan.boxes.of(row)
        first = np.arange(len(cells)) * side
        touches = np.outer((first < bottom) & (first + side > top), (first < right) & (first + side > left))
        inside.append(touches.flat[cells.argmax()])
        chance.append(touches.mean())
    assert np.mean(chance) < 0.15
    assert np.mean(inside) > 0.8


def test_boxes_change_nothing_where_they_are_not_used():
    config = make_config(**{"train.epochs": 1})
    plain, boxed = Fit(config, make_stream(config)), Fit(config, with_boxes(make_stream(config)))
    assert plain.run_epoch().metrics == boxed.run_epoch().metrics
    config = make_config(**{"train.epochs": 1, "model.localise": True, "train.box_weight": 0.0})
    plain, boxed = Fit(config, make_stream(config)), Fit(config, with_boxes(make_stream(config)))
    assert plain.run_epoch().metrics == boxed.run_epoch().metrics


def rank_main(rank, world, port, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    config = make_config(**{"model.localise": True, "train.epochs": 2})
    # 113 images in batches of 16: the last batch has one image, and one rank none.
    fit = Fit(config, with_boxes(make_stream(config, rank, world, train=113)))
    torch.save([fit.run_epoch().metrics for _ in range(2)], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_learn_where_together_and_one_may_have_no_image(tmp_path):
    mp.spawn(rank_main, (2, free_port(), str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first == second
    assert first[1]["train_loss"] < first[0]["train_loss"]


def test_a_resumed_training_with_a_map_goes_on_as_if_it_had_not_stopped(tmp_path):
    config = make_config(**{"model.localise": True})
    whole = Fit(config, with_boxes(make_stream(config)))
    expected = [whole.run_epoch().metrics for _ in range(3)]
    first = Fit(config, with_boxes(make_stream(config)))
    first.run_epoch()
    save_state(tmp_path / "state.safetensors", *first.state())
    resumed = Fit(config, with_boxes(make_stream(config)))
    resumed.load_state(*load_state(tmp_path / "state.safetensors"))
    assert [resumed.run_epoch().metrics for _ in range(2)] == expected[1:]


def test_frozen_stages_stay_through_a_training(tmp_path):
    weights = tmp_path / "model.safetensors"
    save_file(
        {key: tensor.contiguous() for key, tensor in build_model(make_config().model).state_dict().items()}, weights
    )
    config = make_config(**{"model.weights": str(weights), "model.freeze_stages": 1, "train.epochs": 1})
    fit = Fit(config, make_stream(config, train=113))  # the last batch has one image, which has no statistics
    before = {key: tensor.clone() for key, tensor in fit.model.state_dict().items()}
    fit.run_epoch()
    changed = {key for key, tensor in fit.model.state_dict().items() if not torch.equal(tensor, before[key])}
    assert not {key for key in changed if key.startswith(("stem.", "stages.0."))}
    assert {"head.weight", "stages.1.body.0.weight", "stages.1.body.1.running_mean"} <= changed
