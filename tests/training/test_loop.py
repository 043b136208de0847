"""The loop alone, without Ray: learning, determinism, resumption, and ranks that give equal results."""

import copy
import itertools
import math
import socket
from dataclasses import replace
from functools import wraps

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import brier_score_loss, log_loss
from torch import distributed as dist
from torch import multiprocessing as mp

from fracray.config import Config
from fracray.data.loading.draws import Pictures
from fracray.data.loading.plan import Plan
from fracray.data.loading.streams import MemoryStream
from fracray.metrics import cross_fitted, fit_temperature, score
from fracray.runtime.efficiency import PHASES, Meter
from fracray.training.checkpoint import load_state, save_state
from fracray.training.cross_validation import Folds
from fracray.training.loop import Fit, dropout_seed
from fracray.training.loss import batch_loss
from fracray.training.metered import MeteredFit
from fracray.training.model import build_model
from fracray.training.optimizer import AdamW, _plain
from fracray.training.precision import pick_precision
from fracray.training.schedule import learning_rate

SIZE = 32
COUNT = 160


def radiographs(count=COUNT, seed=0):
    """Bars with (label 1) and without a dark gap, (count, SIZE, SIZE) uint8, and labels."""
    rng = np.random.default_rng(seed)
    images = rng.integers(20, 60, (count, SIZE, SIZE)).astype(np.uint8)
    labels = (np.arange(count) % 3 == 0).astype(np.float32)
    for image, label in zip(images, labels, strict=True):
        left = rng.integers(6, 18)
        image[2:30, left : left + 8] += 120
        if label:
            top = rng.integers(8, 22)
            image[top : top + 3, left : left + 8] -= 110
    return images, labels


def make_config(**leaves):
    return Config().with_leaves(
        {
            "data.size": SIZE,
            "model.width": 8,
            "train.epochs": 3,
            "train.batch_size": 16,
            "train.precision": "fp32",
            "train.lr": 5e-3,
            **leaves,
        }
    )


def make_stream(config, rank=0, world=1, train=120, count=COUNT):
    images, labels = radiographs(count)
    plan = Plan(
        train_rows=np.arange(train),
        val_rows=np.arange(train, count),
        val_sets={"val": np.arange(train, count)},
        labels=labels,
        pictures=Pictures.of_images(images),
        batch_size=config.train.batch_size,
        strengths=config.augment,
        seed=config.train.seed,
        shard_rows=64,
        rank=rank,
        world=world,
    )
    return MemoryStream(plan, images, config.train.epochs)


def replace_groups(stream, groups):
    stream.plan = replace(stream.plan, groups=groups)
    return stream


def make_folds(config):
    """Three models, each validated on another third of the first 150 images."""
    images, labels = radiographs()
    thirds = np.array_split(np.arange(150), 3)
    plans = [
        Plan(
            train_rows=np.setdiff1d(np.arange(150), third),
            val_rows=third,
            val_sets={"val": third},
            labels=labels,
            pictures=Pictures.of_images(images),
            batch_size=config.train.batch_size,
            strengths=config.augment,
            seed=config.train.seed,
            shard_rows=64,
        )
        for third in thirds
    ]
    return [Fit(config, MemoryStream(plan, images, config.train.epochs)) for plan in plans]


def run(config, **kwargs):
    fit = Fit(config, make_stream(config, **kwargs))
    return fit, [fit.run_epoch() for _ in range(config.train.epochs)]


def comparable(reports):
    return [report.metrics for report in reports]


# ---------------------------------------------------------------- learning


@pytest.mark.parametrize("loss", ["weighted", "focal", "plain"])
def test_it_learns(loss):
    _, reports = run(make_config(**{"train.loss": loss, "train.epochs": 20}))
    assert reports[-1].metrics["val_auroc"] > 0.9
    assert reports[-1].metrics["train_loss"] < 0.9 * reports[0].metrics["train_loss"]


def test_reported_metrics_are_those_of_the_reported_predictions():
    fit, reports = run(make_config())
    for report in reports:
        seen = report.validation
        assert list(seen.rows) == list(range(120, COUNT))
        assert list(seen.labels) == list(fit.stream.plan.labels[120:])
        honest = cross_fitted(seen.labels, seen.logits)
        scores = score(seen.labels, seen.calibration.apply(seen.logits), seen.threshold, cross_fitted=honest)
        for name, value in scores.as_dict("val_").items():
            assert report.metrics[name] == pytest.approx(value, nan_ok=True)
        assert report.metrics["val_loss"] == pytest.approx(log_loss(seen.labels, honest), rel=1e-5)


def test_loss_brier_score_and_calibration_error_are_those_of_calibrations_that_saw_other_groups():
    """In-sample ones are too good, by which a trial is ranked: the calibration was fitted to the same labels."""
    groups = np.arange(COUNT) // 4
    fit = Fit(make_config(), replace_groups(make_stream(make_config()), groups))
    report = fit.run_epoch()
    seen, metrics = report.validation, report.metrics
    honest = cross_fitted(seen.labels, seen.logits, groups[seen.rows])
    assert metrics["val_brier"] == pytest.approx(brier_score_loss(seen.labels, honest))
    assert metrics["val_ece"] == pytest.approx(score(seen.labels, honest, 0.5, groups[seen.rows]).ece, nan_ok=True)
    assert metrics["val_brier"] > brier_score_loss(seen.labels, seen.calibration.apply(seen.logits))
    assert seen.calibration == fit_temperature(seen.labels, seen.logits)  # what is stored is fitted to all of them


def test_held_out_sets_are_scored_by_the_calibration_of_val():
    stream = make_stream(make_config())
    sets = {"val": np.arange(120, 150), "val/view": np.arange(150, COUNT)}
    stream.plan = replace(stream.plan, val_sets=sets)
    report = Fit(make_config(), stream).run_epoch()
    seen = report.validation
    held_out = seen.rows >= 150
    told = seen.calibration.apply(seen.logits[held_out])
    assert report.metrics["val/view_brier"] == pytest.approx(brier_score_loss(seen.labels[held_out], told))


def test_best_is_the_best_epoch_and_of_equal_ones_that_of_lower_loss():
    fit, reports = run(make_config(**{"train.epochs": 6}))
    best = max(reports, key=lambda r: (r.metrics["val_accuracy"], -r.metrics["val_loss"]))
    assert fit.best == best.metrics
    assert [r.is_best for r in reports][best.epoch - 1]
    rebuilt = copy.deepcopy(fit.averaged)
    rebuilt.load_state_dict(fit.best_weights)
    images = torch.from_numpy(radiographs()[0][120:]).unsqueeze(1)
    with torch.inference_mode():
        assert np.allclose(rebuilt(images).numpy(), best.validation.logits, atol=1e-5)


def test_a_loss_that_is_not_finite_is_reported():
    _, reports = run(make_config(**{"train.lr": 1e18, "train.clip_norm": 0, "train.ema": 0, "train.epochs": 2}))
    assert reports[-1].diverged
    assert not reports[-1].is_best


# ---------------------------------------------------------------- determinism and resumption


def test_equal_seeds_give_equal_metrics_and_different_seeds_different_ones():
    (one, first), (two, second) = run(make_config()), run(make_config())
    assert comparable(first) == comparable(second)
    for name, tensor in one.averaged.state_dict().items():
        assert torch.equal(tensor, two.averaged.state_dict()[name]), name
    assert comparable(first) != comparable(run(make_config(**{"train.seed": 1}))[1])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_is_the_uninterrupted_run(tmp_path, precision):
    config = make_config(**{"train.epochs": 4, "train.precision": precision})
    uninterrupted, reports = run(config)
    begun = Fit(config, make_stream(config))
    for _ in range(2):
        begun.run_epoch()
    save_state(tmp_path / "state.safetensors", *begun.state())
    del begun
    resumed = Fit(config, make_stream(config))
    resumed.load_state(*load_state(tmp_path / "state.safetensors"))
    assert resumed.epochs_done == 2
    rest = [resumed.run_epoch() for _ in range(2)]
    assert comparable(rest) == comparable(reports[2:])
    assert resumed.best == uninterrupted.best
    for name, tensor in uninterrupted.best_weights.items():
        assert torch.equal(tensor, resumed.best_weights[name]), name
    for name, tensor in uninterrupted.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
    for ours, theirs in zip(rest, reports[2:], strict=True):
        assert np.array_equal(ours.validation.logits, theirs.validation.logits)


# ---------------------------------------------------------------- the arithmetic


def test_validation_is_in_float32_whatever_the_training():
    fit, reports = run(make_config(**{"train.precision": "bf16", "train.epochs": 6}))
    images = torch.from_numpy(radiographs()[0][120:]).unsqueeze(1)
    with torch.inference_mode():
        exact = fit.averaged(images).numpy()
        with torch.autocast("cpu", torch.bfloat16):
            assert np.abs(fit.averaged(images).float().numpy() - exact).max() > 1e-3
    assert np.allclose(reports[-1].validation.logits, exact, atol=1e-5)


def test_folds_report_the_mean_of_models_trained_alone_and_keep_their_common_best_epoch():
    config = make_config(**{"train.epochs": 4})
    alone = make_folds(config)
    separate = [[fit.advance().metrics for fit in alone] for _ in range(4)]
    folds = Folds(make_folds(config))
    reports = [folds.run_epoch() for _ in range(4)]
    assert folds.done
    for report, metrics in zip(reports, separate, strict=True):
        for name in ("val_accuracy", "val_auroc", "val_loss", "train_loss"):
            assert report.metrics[name] == pytest.approx(np.mean([one[name] for one in metrics]))
        assert report.kept_metrics == metrics[0]
    means = [(-report.metrics["val_accuracy"], report.metrics["val_loss"]) for report in reports]
    assert reports[int(np.argmin([mean[0] + 1e-9 * mean[1] for mean in means]))].metrics == folds.best
    assert [report.is_best for report in reports] == [mean == min(means[: at + 1]) for at, mean in enumerate(means)]


def test_resumed_folds_are_the_uninterrupted_ones(tmp_path):
    config = make_config(**{"train.epochs": 4})
    uninterrupted = Folds(make_folds(config))
    expected = [uninterrupted.run_epoch() for _ in range(4)]
    first = Folds(make_folds(config))
    for _ in range(2):
        first.run_epoch()
    save_state(tmp_path / "state.safetensors", *first.state())
    resumed = Folds(make_folds(config))
    resumed.load_state(*load_state(tmp_path / "state.safetensors"))
    assert comparable([resumed.run_epoch() for _ in range(2)]) == comparable(expected[2:])
    assert resumed.best == uninterrupted.best
    for name, tensor in uninterrupted.best_weights.items():
        assert torch.equal(tensor, resumed.best_weights[name]), name


def test_learning_rate_warms_up_and_falls_to_zero():
    config = make_config(**{"train.lr": 1.0, "train.warmup": 0.1}).train
    rates = [learning_rate(config, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5)
    assert rates[99] < 0.001
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


def test_the_optimizer_is_pytorchs_bit_by_bit():
    networks, optimizers = [], []
    for kind in (AdamW, torch.optim.AdamW):
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
        groups = [{"params": network[0].parameters(), "weight_decay": 0.1}, {"params": network[2].parameters()}]
        networks.append(network)
        optimizers.append(kind(groups, lr=0.01, betas=(0.9, 0.99)))
    for step in range(6):
        for network, optimizer in zip(networks, optimizers, strict=True):
            optimizer.zero_grad(set_to_none=True)
            network(torch.arange(12.0).reshape(3, 4) + step).square().mean().backward()
            optimizer.step()
            if step == 2:
                optimizer.load_state_dict(optimizer.state_dict())
        for ours, theirs in zip(*(network.parameters() for network in networks), strict=True):
            assert torch.equal(ours, theirs)
    assert not any(parameter.grad.requires_grad for parameter in networks[0].parameters())
    assert str(optimizers[0].state_dict()) == str(optimizers[1].state_dict())


def test_a_method_of_another_torch_that_has_no_wrapper_is_taken_as_it_is():
    def wrapped():
        pass

    assert _plain(wrapped) is wrapped
    assert _plain(wraps(wrapped)(lambda: None)) is wrapped


def test_learning_rates_are_those_of_timms_schedule():
    from timm.scheduler import CosineLRScheduler

    config = make_config(**{"train.lr": 0.01, "train.warmup": 0.15}).train
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.01)
    warmup = 0.15 * 50
    theirs = CosineLRScheduler(
        optimizer,
        t_initial=50 - warmup,
        warmup_t=warmup,
        warmup_lr_init=0.01 / (warmup + 1),
        warmup_prefix=True,
        t_in_epochs=False,
    )
    for step in range(50):
        theirs.step_update(step)
        assert learning_rate(config, step, 50) == pytest.approx(optimizer.param_groups[0]["lr"])


def test_weighted_loss_gives_both_classes_the_same_weight():
    config = make_config().train
    logits = torch.zeros(10)
    labels = torch.tensor([1.0] * 2 + [0.0] * 8)
    losses = batch_loss(logits, labels, config, positive_weight=4.0)
    assert losses[:2].sum() == pytest.approx(losses[2:].sum().item())
    assert losses.mean() == pytest.approx(math.log(2))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_is_torchvisions_with_class_weights(gamma):
    from torchvision.ops import sigmoid_focal_loss

    config = make_config(**{"train.loss": "focal", "train.focal_gamma": gamma}).train
    logits = torch.linspace(-8, 8, 65).repeat(2)
    labels = torch.cat([torch.zeros(65), torch.ones(65)])
    ours = batch_loss(logits, labels, config, positive_weight=3.0)
    theirs = sigmoid_focal_loss(logits, labels, alpha=-1, gamma=gamma) * torch.where(labels > 0.5, 2.0, 2 / 3)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


def test_focal_loss_smooths_the_cross_entropy_alone():
    leaves = {"train.loss": "focal", "train.focal_gamma": 2.0, "train.label_smoothing": 0.1}
    ours = batch_loss(torch.tensor([2.0]), torch.tensor([1.0]), make_config(**leaves).train, positive_weight=1.0)
    probability = 1 / (1 + math.exp(-2))
    smoothed = -(0.9 * math.log(probability) + 0.1 * math.log(1 - probability))
    assert ours.item() == pytest.approx((1 - probability) ** 2 * smoothed)


@pytest.mark.parametrize("gamma", [0.3, 1.0, 2.0])
def test_focal_loss_has_a_gradient_where_the_network_is_certain(gamma):
    config = make_config(**{"train.loss": "focal", "train.focal_gamma": gamma}).train
    logits = torch.tensor([-40.0, -20.0, 20.0, 40.0]).repeat(2).requires_grad_()
    labels = torch.tensor([0.0] * 4 + [1.0] * 4)
    batch_loss(logits, labels, config, positive_weight=3.0).sum().backward()
    assert logits.grad.isfinite().all()


def test_label_smoothing_is_symmetric():
    config = make_config(**{"train.loss": "plain", "train.label_smoothing": 0.1}).train
    ours = batch_loss(torch.tensor([2.0, -2.0]), torch.tensor([1.0, 0.0]), config, 1.0)
    expected = -(0.9 * math.log(1 / (1 + math.exp(-2))) + 0.1 * math.log(1 / (1 + math.exp(2))))
    assert ours.tolist() == pytest.approx([expected, expected])


@pytest.mark.parametrize("name", ["fracture_cnn", "tf_efficientnet_lite0"])
def test_precision_auto_is_bf16_where_the_cpu_has_instructions_for_it(name):
    cpu = torch.device("cpu")
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    config = make_config(**{"train.precision": "auto", "model.name": name})
    chosen = pick_precision(config, cpu, build_model(config.model))
    assert chosen is (torch.bfloat16 if native else torch.float32)
    assert pick_precision(make_config(**{"train.precision": "bf16"}), cpu, build_model(config.model)) is torch.bfloat16


def test_precision_auto_is_fp32_where_bf16_is_slow_on_a_cpu():
    """ConvNeXt's depthwise convolutions of 7x7 take several times as long in bf16."""
    config = make_config(**{"train.precision": "auto", "model.name": "convnext_atto"})
    assert pick_precision(config, torch.device("cpu"), build_model(config.model)) is torch.float32


def test_averaged_weights_follow_the_formula():
    config = make_config(**{"train.ema": 0.9, "train.epochs": 1, "train.batch_size": 120})
    fit = Fit(config, make_stream(config))
    before = fit.averaged.state_dict()["stem.0.weight"].clone()
    fit.run_epoch()  # one step: decay min(0.9, 1/10)
    after, trained = fit.averaged.state_dict()["stem.0.weight"], fit.model.state_dict()["stem.0.weight"]
    assert torch.allclose(after, 0.1 * before + 0.9 * trained, atol=1e-6)


def test_averaged_weights_are_those_of_timms_moving_average():
    from timm.utils import ModelEmaV3

    fit = Fit(config := make_config(**{"train.ema": 0.5}), make_stream(config))
    theirs = ModelEmaV3(fit.model, decay=0.5, use_warmup=True, warmup_gamma=9.0, warmup_power=1.0)
    step = fit.optimizer.step
    steps = itertools.count()

    def stepped():
        step()
        theirs.update(fit.model, next(steps) + 2)

    fit.optimizer.step = stepped
    fit.run_epoch()
    for name, tensor in theirs.module.state_dict().items():
        torch.testing.assert_close(fit.averaged.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)


def test_every_epoch_and_rank_has_its_own_dropout():
    seeds = {dropout_seed(*key) for key in itertools.product(range(3), range(20), range(4))}
    assert len(seeds) == 3 * 20 * 4
    assert dropout_seed(0, 1, 2) == dropout_seed(0, 1, 2)
    assert all(0 <= seed < 2**64 for seed in seeds)


def test_counting_time_changes_no_number_and_finds_it_all():
    config = make_config()
    meter = Meter(torch.get_num_threads())
    _, plain = run(config)
    fit = MeteredFit(config, make_stream(config), torch.device("cpu"), "val_accuracy", "max", meter)
    assert comparable([fit.run_epoch() for _ in range(3)]) == comparable(plain)
    taken = meter.take()
    assert set(taken) == set(PHASES)
    assert {phase for phase in PHASES if taken[phase]} == {"training", "validation", "data_wait"}


# ---------------------------------------------------------------- ranks


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Recording(Fit):
    """Keeps the gradients, as reduced over the ranks, and the global loss of every step."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gradients, self.losses = [], []
        step = self.optimizer.step

        def recorded():
            self.gradients.append({n: p.grad.clone() for n, p in self.model.named_parameters()})
            step()

        self.optimizer.step = recorded

    def _step(self, batch, step):
        total = super()._step(batch, step).clone()
        if self.world > 1:
            dist.all_reduce(total)
        self.losses.append(float(total) / batch.global_count)
        return total / self.world  # _train_epoch sums over the ranks again


def recorded_run(config, rank, world, train):
    fit = Recording(config, make_stream(config, rank, world, train))
    reports = [fit.run_epoch() for _ in range(config.train.epochs)]
    return fit, reports


def rank_main(rank, world, port, config, train, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    fit, reports = recorded_run(config, rank, world, train)
    torch.save(
        {"gradients": fit.gradients, "losses": fit.losses, "reports": comparable(reports)}, f"{folder}/{rank}.pt"
    )
    dist.destroy_process_group()


def on_ranks(world, config, train, folder):
    mp.spawn(rank_main, (world, free_port(), config, train, str(folder)), nprocs=world)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    # 118 does not divide by 16, nor the last batch of 6 by 4; freeze_norm, because batch norm sees only its own rank.
    config = make_config(
        **{"model.freeze_norm": True, "model.dropout": 0.0, "model.spatial_dropout": 0.0, "train.clip_norm": 0.0}
    )
    alone, reports = recorded_run(config, 0, 1, 118)
    return alone, reports, on_ranks(2, config, 118, tmp_path_factory.mktemp("ranks"))


def test_two_workers_have_one_workers_gradients(two_ranks):
    alone, _, ranks = two_ranks
    for rank in ranks:
        for name, gradient in alone.gradients[0].items():
            assert (gradient - rank["gradients"][0][name]).abs().max() < 1e-5, name
            assert gradient.abs().max() > 0


def test_two_workers_have_one_workers_loss_curve(two_ranks):
    alone, _, ranks = two_ranks
    steps = alone.stream.plan.steps
    assert len(alone.losses) == 3 * steps
    for rank in ranks:
        assert rank["losses"][:steps] == pytest.approx(alone.losses[:steps], abs=1e-3)


def test_metrics_are_of_the_complete_set_on_every_rank(two_ranks):
    _, reports, ranks = two_ranks
    assert [{**m} for m in ranks[0]["reports"]] == [{**m} for m in ranks[1]["reports"]]
    first, theirs = reports[0].metrics, ranks[0]["reports"][0]
    assert theirs["val_n"] == first["val_n"] == COUNT - 118
    for name in ("train_loss", "val_loss", "val_auroc"):
        assert theirs[name] == pytest.approx(first[name], abs=1e-3)


def test_an_epoch_whose_last_batch_is_smaller_than_the_world_neither_hangs_nor_loses_an_image(tmp_path):
    # 113 = 7 batches of 16 and one image: two of three ranks get none of it.
    config = make_config(
        **{"model.freeze_norm": True, "model.dropout": 0.0, "model.spatial_dropout": 0.0, "train.epochs": 1}
    )
    alone, _ = recorded_run(config, 0, 1, 113)
    ranks = on_ranks(3, config, 113, tmp_path)
    assert ranks[0]["losses"] == pytest.approx(alone.losses, abs=1e-3)


def test_a_last_batch_of_one_image_is_trained_on():
    # 113 = 7 batches of 16 and one; at 32 pixels the last feature map has one place, and so no variance.
    fit, reports = run(make_config(**{"train.epochs": 1, "train.batch_size": 16}), train=113)
    assert fit.stream.plan.steps == 8
    assert math.isfinite(reports[0].metrics["train_loss"])
    assert fit.model.training
    assert all(module.training for module in fit.model.modules())


def test_an_epoch_reports_what_the_commands_print():
    _, reports = run(make_config(**{"train.epochs": 1}))
    frame = pd.DataFrame(comparable(reports))
    assert {"epoch", "train_loss", "lr", "val_loss", "val_accuracy", "val_auroc"} <= set(frame.columns)
