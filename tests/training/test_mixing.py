"""Mixup and CutMix: images, labels and boxes against closed forms and pixels, and the training that uses them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import distributed as dist
from torch import multiprocessing as mp
from torch.nn import functional as F

from fracray import train
from fracray.config import AugmentConfig, Config
from fracray.data.loading.boxes import Boxes
from fracray.data.loading.plan import Batch
from fracray.errors import InputError
from fracray.search.space_file import load_space
from fracray.training import inputs
from fracray.training.checkpoint import load_state, save_state
from fracray.training.inputs import Inputs
from fracray.training.localise import map_loss
from fracray.training.loop import Fit
from fracray.training.loss import batch_loss, mixed_loss
from fracray.training.mixing import Mix, draw_mix
from fracray.training.model import build_model
from tests.training.test_localise import with_boxes
from tests.training.test_loop import SIZE, free_port, make_config, make_stream

CPU = torch.device("cpu")
BOTH = {"train.mixup": 0.4, "train.cutmix": 1.0}


def drawn(count=8, side=32, **leaves):
    return [draw_mix(make_config(**leaves).train, count, side, 0, step, 0) for step in range(2000)]


# ---------------------------------------------------------------- the draws


def test_a_draw_is_a_function_of_seed_epoch_step_and_rank():
    config = make_config(**BOTH).train
    places = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    first, again = ([draw_mix(config, 8, 32, *place) for place in places] for _ in range(2))
    first.append(draw_mix(make_config(**BOTH, **{"train.seed": 1}).train, 8, 32, 0, 0, 0))
    assert [(mix.share, *mix.partners) for mix in first[:4]] == [(mix.share, *mix.partners) for mix in again]
    assert len({(mix.share, *mix.partners) for mix in first}) == len(first)


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_shares_of_mixup_are_from_the_beta_distribution(alpha):
    mixes = drawn(**{"train.mixup": alpha})
    assert all(mix.window is None for mix in mixes)
    assert all(sorted(mix.partners) == list(range(8)) for mix in mixes)
    assert stats.kstest([mix.share for mix in mixes], stats.beta(alpha, alpha).cdf).pvalue > 0.01


def test_a_window_has_the_partners_share_of_the_pixels():
    side = 64
    for mix in drawn(side=side, **{"train.cutmix": 1.0}):
        top, bottom, left, right = mix.window
        assert 0 <= top <= bottom <= side
        assert 0 <= left <= right <= side
        assert mix.share == 1 - (bottom - top) * (right - left) / side**2
    # Windows that the edge does not cut off: a uniform share, so that their sides' square is uniform too.
    whole = [m.window for m in drawn(side=1024, **{"train.cutmix": 1.0}) if m.window[0] and m.window[2]]
    assert all(w[1] - w[0] == w[3] - w[2] for w in whole if w[1] < 1024 and w[3] < 1024)


def test_of_both_kinds_half_of_the_batches_have_either():
    cut = np.mean([mix.window is not None for mix in drawn(**BOTH)])
    assert cut == pytest.approx(0.5, abs=0.05)


# ---------------------------------------------------------------- images and labels

IMAGES = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
PARTNERS = np.array([1, 2, 0])


def test_mixup_blends():
    mix, partners = Mix(PARTNERS, 0.75, None), torch.from_numpy(PARTNERS)
    blended = 0.75 * IMAGES.float() + 0.25 * IMAGES[[1, 2, 0]].float()
    torch.testing.assert_close(mix.images(IMAGES, partners), blended)
    labels = mix.labels(torch.tensor([1.0, 0.0, 1.0]), partners)
    assert labels.tolist() == [0.75, 0.25, 1.0]


def test_cutmix_pastes_whole_pixels():
    mix, partners = Mix(PARTNERS, 1 - 15 / 64, (1, 4, 3, 8)), torch.from_numpy(PARTNERS)
    mixed = mix.images(IMAGES, partners)
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[1:4, 3:8] = True
    for image, own, partner in zip(mixed, IMAGES, IMAGES[[1, 2, 0]], strict=True):
        assert torch.equal(image[inside], partner[inside].float())
        assert torch.equal(image[~inside], own[~inside].float())
    torch.testing.assert_close(mix.labels(torch.tensor([1.0, 0.0, 0.0]), partners), torch.tensor([49, 0, 15]) / 64)
    assert IMAGES.dtype == torch.uint8  # the stream's own images are as they were


@pytest.mark.parametrize("loss", ["weighted", "focal", "plain"])
def test_the_loss_is_that_of_both_labels_with_their_shares(loss):
    config = make_config(**{"train.loss": loss, "train.label_smoothing": 0.05}).train
    logits = torch.tensor([-1.5, 0.3, 2.0, 0.0])
    own, theirs, share = torch.tensor([1.0, 0.0, 1.0, 0.0]), torch.tensor([0.0, 0.0, 1.0, 1.0]), 0.3
    parts = [batch_loss(logits, labels, config, 4.0) for labels in (own, theirs)]
    soft = share * own + (1 - share) * theirs
    torch.testing.assert_close(mixed_loss(logits, soft, config, 4.0), share * parts[0] + (1 - share) * parts[1])
    torch.testing.assert_close(mixed_loss(logits, own, config, 4.0), parts[0])
    if loss == "plain":
        plain = make_config(**{"train.loss": loss}).train
        expected = F.binary_cross_entropy_with_logits(logits, soft, reduction="none")
        torch.testing.assert_close(mixed_loss(logits, soft, plain, 4.0), expected)


# ---------------------------------------------------------------- maps

WHITE = 96  # side in pixels of pictures that are white in their boxes and black elsewhere: 6 x 6 cells


def white_boxes(config, rows=24):
    """A plan over pictures that show their boxes, on whole pixels, and the pictures; every third has one."""
    random = np.random.default_rng(1)
    pictures, edges = np.zeros((rows, WHITE, WHITE), np.uint8), []
    for picture in pictures[::3]:
        (left, top), (w, h) = random.integers(0, 60, 2), random.integers(10, 36, 2)
        picture[top : top + h, left : left + w] = 255
        edges.append((left, top, left + w, top + h))
    labels = (np.arange(rows) % 3 == 0).astype(np.float32)
    boxes = Boxes(np.array(edges, dtype=float), np.concatenate([[0], np.cumsum(labels).astype(int)]))
    plan = replace(
        make_stream(config).plan,
        labels=labels,
        boxes=boxes,
        strengths=AugmentConfig(**dict.fromkeys(("rotate", "flip", "scale", "brightness", "contrast"), 0.0)),
    )
    return plan, pictures


def seen(images, cells):
    return F.adaptive_avg_pool2d(images[:, None] / 255, cells)[:, 0]


def mixed_inputs(config, side=None, unknown=(), step=0):
    plan, pictures = white_boxes(config)
    labels = plan.labels.copy()
    labels[list(unknown)] = 1  # fractured, and without a box
    plan = replace(plan, labels=labels)
    rows = np.arange(len(labels))
    given = Inputs(config, plan, build_model(config.model).eval(), CPU).of(
        Batch(pictures, labels, rows, len(rows)), 0, step, side
    )
    return given, draw_mix(config.train, len(rows), side or WHITE, 0, step, 0)


@pytest.mark.parametrize(("side", "near"), [(None, 1 / 255), (48, 0.02)])
def test_what_cutmix_pastes_is_in_the_map_as_it_is_in_the_pixels(side, near):
    config = make_config(**{"model.localise": True, "train.cutmix": 1.0})
    pasted = 0
    for step in range(12):
        (images, _, shares, known, _, nothing), mix = mixed_inputs(config, side, step=step)
        found = seen(images, shares.shape[-1])
        assert (shares - found).abs().max() <= near + 1e-6
        assert known.tolist() == [1.0] * len(known)
        assert not nothing.any()
        pasted += ((found.amax((1, 2)) > 0.3) & (torch.arange(len(found)) % 3 > 0)).sum()
        assert mix.window is not None
    assert pasted > 5  # boxes in pictures that had none


def test_of_mixup_both_maps_count_with_their_shares():
    config = make_config(**{"model.localise": True, "train.mixup": 1.0})
    (images, labels, own, weights, theirs, rest), mix = mixed_inputs(config, step=1)
    assert 0.05 < mix.share < 0.95
    torch.testing.assert_close(weights, torch.full_like(weights, mix.share))
    torch.testing.assert_close(rest, torch.full_like(rest, 1 - mix.share))
    torch.testing.assert_close(seen(images, 6), mix.share * own + (1 - mix.share) * theirs, rtol=0, atol=1 / 255)
    torch.testing.assert_close(theirs, own[torch.from_numpy(mix.partners)])
    # The loss is that of both maps, each with its share, as that of the labels is.
    where, known = torch.randn(24, 6, 6), torch.ones(24)
    both = map_loss(where, own, weights) + map_loss(where, theirs, rest)
    expected = mix.share * map_loss(where, own, known) + (1 - mix.share) * map_loss(where, theirs, known)
    torch.testing.assert_close(both, expected)
    plain = torch.arange(24) % 3 == 0
    torch.testing.assert_close(labels, mix.share * plain + (1 - mix.share) * plain[torch.from_numpy(mix.partners)])


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_what_is_not_known_of_an_image_or_its_partner_teaches_nothing(kind):
    config = make_config(**{"model.localise": True, f"train.{kind}": 1.0})
    (_, _, _, weights, _, rest), mix = mixed_inputs(config, unknown=(4,))
    holders = {4, int(np.flatnonzero(mix.partners == 4)[0])}
    assert set(np.flatnonzero(weights.numpy() == 0)) == ({4} if kind == "mixup" else holders)
    assert set(np.flatnonzero(rest.numpy() == 0)) == (holders - {4} if kind == "mixup" else set(range(24)))


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("leaves", [{"train.mixup": 0.4}, {"train.cutmix": 1.0}, BOTH], ids=["mixup", "cutmix", "both"])
def test_it_learns(leaves):
    config = make_config(**leaves, **{"train.epochs": 20, "model.localise": True})
    fit = Fit(config, with_boxes(make_stream(config)))
    reports = [fit.run_epoch() for _ in range(20)]
    assert reports[-1].metrics["val_auroc"] > 0.85
    assert reports[-1].metrics["train_loss"] < reports[0].metrics["train_loss"]


class Watched(Fit):
    """Notes what every step is given."""

    def _update(self, *given, **more):
        self.given = [*getattr(self, "given", []), [(tuple(t.shape), t.dtype) for t in given]]
        return super()._update(*given, **more)


def test_inputs_of_all_complete_batches_are_alike_so_that_a_graph_can_take_them():
    config = make_config(**BOTH, **{"model.localise": True})
    fit = Watched(config, with_boxes(make_stream(config)))
    kinds = {draw_mix(config.train, 16, SIZE, 0, step, 0).window is None for step in range(7)}
    fit.run_epoch()
    complete = [given for given in fit.given if given[1][0] == (16,)]
    assert kinds == {True, False}
    assert len(complete) == 7
    assert all(given == complete[0] for given in complete)
    assert len(complete[0]) == 6


def test_a_resumed_training_mixes_as_the_uninterrupted_one(tmp_path):
    config = make_config(**BOTH, **{"model.localise": True, "train.balance": 0.8})

    def stream():
        made = with_boxes(make_stream(config))
        made.plan = replace(made.plan, balance=0.8)
        return made

    whole, first = Fit(config, stream()), Fit(config, stream())
    expected = [whole.run_epoch().metrics for _ in range(3)]
    first.run_epoch()
    save_state(tmp_path / "state.safetensors", *first.state())
    resumed = Fit(config, stream())
    resumed.load_state(*load_state(tmp_path / "state.safetensors"))
    assert [resumed.run_epoch().metrics for _ in range(2)] == expected[1:]


def test_validation_and_the_default_mix_nothing(monkeypatch):
    def refuse(*_):
        raise AssertionError("mixed")

    monkeypatch.setattr(inputs, "draw_mix", refuse)
    Fit(make_config(), make_stream(make_config())).run_epoch()
    config = make_config(**BOTH)
    fit = Fit(config, make_stream(config))
    fit.validate()
    with pytest.raises(AssertionError, match="mixed"):
        fit.run_epoch()


def rank_main(rank, world, port, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    torch.manual_seed(1)
    weights = f"{folder}/{rank}.safetensors"
    leaves = {"model.localise": True, "train.epochs": 3, "model.weights": weights}
    save_state(weights, build_model(make_config(**{"model.localise": True}).model).state_dict(), {})
    # The head first, then all, at rates by depth. 113 images in batches of 16: in the last batch one rank has none.
    config = make_config(**BOTH, **leaves, **{"train.balance": 1.0, "train.layer_decay": 0.7, "train.head_epochs": 1})
    stream = with_boxes(make_stream(config, rank, world, train=113))
    stream.plan = replace(stream.plan, balance=1.0)
    fit = Fit(config, stream)
    reports = [fit.run_epoch().metrics for _ in range(3)]
    weights = {name: tensor.detach() for name, tensor in fit.model.named_parameters()}
    torch.save((reports, weights), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_train_one_network_with_all_of_the_recipe(tmp_path):
    mp.spawn(rank_main, (2, free_port(), str(tmp_path)), nprocs=2)
    (first, ours), (second, theirs) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first == second
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert all(np.isfinite(report["train_loss"]) for report in first)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_a_batch_of_one_image_for_a_worker_has_no_partner(kind):
    with pytest.raises(InputError, match=rf"train\.{kind} = 0\.2: mixes the images that a worker has.*batch_size = 3"):
        Config().with_leaves({f"train.{kind}": 0.2, "train.batch_size": 3, "search.workers_per_trial": 2})


def test_a_search_of_batches_too_small_to_mix_is_refused_before_it_begins(tmp_path):
    text = (
        "workers_per_trial: 2\nspace:\n  train.batch_size: {categorical: [2, 16]}\n"
        "  train.mixup: {float: [0.0, 0.4]%s}\n"
    )
    (tmp_path / "space.yaml").write_text(text % "")
    with pytest.raises(InputError, match=r"space\.yaml:4: train\.mixup = 0\.4: mixes .*batch_size = 2"):
        load_space(tmp_path / "space.yaml")
    (tmp_path / "space.yaml").write_text(text % ", when: {train.batch_size: [16]}")
    load_space(tmp_path / "space.yaml")


def test_a_training_on_too_many_workers_to_mix_is_refused(tmp_path):
    settings = ("--set", "train.mixup=0.2", "--set", "train.batch_size=6", "--storage", str(tmp_path))
    with pytest.raises(InputError, match=r"--workers 2-4: train\.mixup = 0\.2: mixes the images that a worker has"):
        train.main(["--workers", "2-4", *settings])
    assert not list(tmp_path.iterdir())
