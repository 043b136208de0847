"""Training on a GPU: every path of it, against the CPU or the plain steps. Needs no Ray.

What needs CUDA is skipped without it; the rest runs on Torch's CPU too.
"""

import importlib.util
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing as mp

from fracray.config import AugmentConfig, Config
from fracray.data.loading import gpu_stream
from fracray.data.loading.boxes import Boxes
from fracray.data.loading.draws import Pictures
from fracray.data.loading.gpu_stream import DeviceStream
from fracray.data.loading.plan import Plan
from fracray.data.loading.streams import MemoryStream
from fracray.errors import InputError
from fracray.runtime.efficiency import TRAINING, TRANSFORM, VALIDATION, Meter
from fracray.training.checkpoint import CheckpointMetadata, load_checkpoint, load_state, save_checkpoint, save_state
from fracray.training.loop import Fit
from fracray.training.metered import MeteredFit
from fracray.training.model import build_model, float32

HAS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if HAS_GPU else torch.device("cpu")
CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not HAS_GPU, reason="no GPU that Torch can use")
SIZE, TRAIN, VAL = 64, 168, 72
STRONG = AugmentConfig(rotate=25.0, flip=0.5, vertical_flip=0.3, scale=0.2, brightness=0.3, contrast=0.3)
MIXED = {"train.mixup": 0.4, "train.cutmix": 1.0, "train.balance": 1.0}
NO_DROPOUT = {"model.dropout": 0.0, "model.spatial_dropout": 0.0}


@pytest.fixture(autouse=True)
def exact():
    """Convolutions in plain float32 and by algorithms that add up in a fixed order: runs can be compared."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = False, True
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = before


def bars(count=TRAIN + VAL, size=SIZE):
    """Bars with a dark gap (label 1, a third of them) and without, their labels, and boxes around the gaps."""
    random = np.random.default_rng(0)
    images = random.integers(20, 60, (count, size, size)).astype(np.uint8)
    labels = (np.arange(count) % 3 == 0).astype(np.float32)
    edges = []
    for image, label in zip(images, labels, strict=True):
        left, top = random.integers(size // 8, size // 2), random.integers(size // 4, size // 2)
        image[4:-4, left : left + size // 4] += 120
        if label:
            image[top : top + 6, left : left + size // 4] -= 110
            edges.append((left, top, left + size // 4, top + 6))
    return images, labels, Boxes(np.array(edges, dtype=float), np.concatenate([[0], np.cumsum(labels).astype(int)]))


def make_config(**leaves):
    base = {"data.size": SIZE, "model.width": 8, "train.epochs": 2, "train.batch_size": 16, "train.precision": "fp32"}
    return Config().with_leaves({**base, "train.lr": 1e-3, **leaves})


def make_plan(config, train=TRAIN, rank=0, world=1):
    images, labels, boxes = bars()
    val = np.arange(TRAIN, TRAIN + VAL)
    return images, Plan(
        train_rows=np.arange(train),
        val_rows=val,
        val_sets={"val": val},
        labels=labels,
        pictures=Pictures.of_images(images),
        batch_size=config.train.batch_size,
        strengths=config.augment,
        seed=config.train.seed,
        shard_rows=64,
        rank=rank,
        world=world,
        boxes=boxes if config.model.localise else None,
        balance=config.train.balance,
    )


class Watched(Fit):
    """Keeps the mean loss of every step."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.losses = []

    def _step(self, batch, step):
        total = super()._step(batch, step)
        self.losses.append(total.clone() / len(batch.labels))
        return total


def fitted(config, on_device=True, train=TRAIN, device=DEVICE):
    """A fit of all epochs, its reports, and its losses by step."""
    images, plan = make_plan(config, train)
    stream = DeviceStream(plan, images, device) if on_device else MemoryStream(plan, images, config.train.epochs)
    fit = Watched(config, stream, device)
    reports = [fit.run_epoch() for _ in range(config.train.epochs)]
    return fit, reports, np.array([float(loss) for loss in fit.losses])


def logits_of(model, images, device):
    with torch.inference_mode(), float32():
        return model.to(device)(torch.from_numpy(images).to(device).unsqueeze(1)).cpu().numpy()


# ---------------------------------------------------------------- the loop


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("graphs", [pytest.param("on", marks=needs_gpu), "off"])
def test_it_learns(precision, channels_last, graphs):
    leaves = {"train.precision": precision, "train.channels_last": channels_last, "train.graphs": graphs}
    fit, reports, losses = fitted(make_config(**{**leaves, "train.epochs": 8, "train.lr": 5e-3}))
    assert next(fit.averaged.parameters()).device == DEVICE
    assert np.isfinite(losses).all()
    assert reports[-1].metrics["train_loss"] < 0.9 * reports[0].metrics["train_loss"]
    assert reports[-1].metrics["val_auroc"] > 0.75


def test_the_device_stream_gives_the_pictures_of_the_cpus_stream():
    config = make_config().model_copy(update={"augment": STRONG})
    images, plan = make_plan(config)
    differing = total = 0
    both = zip(MemoryStream(plan, images, 1).train(1), DeviceStream(plan, images, DEVICE).train(1), strict=True)
    for ours, theirs in both:
        assert np.array_equal(ours.rows, theirs.rows)
        assert np.array_equal(ours.labels, theirs.labels)
        difference = np.abs(ours.images.astype(int) - theirs.images.cpu().numpy().astype(int))
        assert difference.max() <= 1
        differing, total = differing + np.count_nonzero(difference), total + difference.size
    assert differing < 1e-3 * total


@pytest.mark.parametrize("leaves", [{}, MIXED], ids=["plain", "mixed"])
def test_augmenting_on_the_device_trains_as_augmenting_on_the_cpu_does(leaves):
    config = make_config(**NO_DROPOUT, **leaves)
    (_, _, ours), (_, _, theirs) = (fitted(config, on_device) for on_device in (True, False))
    # A pixel in 50,000 has another gray level: the losses start equal, and part slowly.
    assert np.allclose(ours[:5], theirs[:5], atol=2e-3)
    assert ours.mean() == pytest.approx(theirs.mean(), abs=0.02)


@needs_gpu
def test_a_set_that_does_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr(gpu_stream, "FREE_SHARE", 1e-9)
    images, plan = make_plan(make_config())
    with pytest.raises(InputError, match=r"GiB of free memory; set data\.augment_on=cpu"):
        DeviceStream(plan, images.copy(), DEVICE)


def test_the_loss_of_the_first_steps_is_that_of_the_cpu():
    config = make_config(**NO_DROPOUT, **{"train.epochs": 1})
    (_, _, ours), (_, _, theirs) = (fitted(config, False, device=device) for device in (DEVICE, CPU))
    assert np.allclose(ours[:5], theirs[:5], atol=1e-3)


def test_time_is_counted():
    config = make_config(**{"train.epochs": 1})
    images, plan = make_plan(config)
    meter = Meter(torch.get_num_threads(), on_gpu=HAS_GPU)
    fit = MeteredFit(config, DeviceStream(plan, images, DEVICE, meter), DEVICE, "val_accuracy", "max", meter)
    begun = time.perf_counter()
    fit.run_epoch()
    wall, taken = time.perf_counter() - begun, meter.take()
    assert all(taken[phase] > 0 for phase in (TRAINING, TRANSFORM, VALIDATION))
    assert not HAS_GPU or sum(taken.values()) < 1.1 * wall


def test_frozen_stages_stay(tmp_path):
    from safetensors.torch import save_file

    weights = tmp_path / "model.safetensors"
    save_file(
        {name: tensor.contiguous() for name, tensor in build_model(make_config().model).state_dict().items()}, weights
    )
    config = make_config(**{"model.weights": str(weights), "model.freeze_stages": 1, "train.epochs": 1})
    images, plan = make_plan(config)
    fit = Fit(config, DeviceStream(plan, images, DEVICE), DEVICE)
    before = {name: tensor.clone() for name, tensor in fit.model.state_dict().items()}
    fit.run_epoch()
    changed = {name for name, tensor in fit.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert not {name for name in changed if name.startswith(("stem.", "stages.0."))}
    assert {"head.weight", "stages.1.body.0.weight", "stages.1.body.1.running_mean"} <= changed


# ---------------------------------------------------------------- graphs


@needs_gpu
@pytest.mark.parametrize(
    "leaves",
    [
        NO_DROPOUT,
        {**NO_DROPOUT, "train.loss": "focal", "train.ema": 0.0},
        {**NO_DROPOUT, "train.clip_norm": 0.0, "train.channels_last": False},
        {"model.dropout": 0.4, "model.spatial_dropout": 0.2},  # the draws are those of ordinary steps
        {**NO_DROPOUT, **MIXED, "train.layer_decay": 0.7},
    ],
    ids=["plain", "focal", "unclipped", "dropout", "mixed"],
)
def test_graphs_give_the_losses_of_ordinary_steps(leaves):
    (by_graph, graphed, ours), (_, plain, theirs) = (
        fitted(make_config(**leaves, **{"train.graphs": graphs})) for graphs in ("on", "off")
    )
    assert by_graph._graphed.recorded
    assert len(ours) == 22  # of an epoch's 11 the last has half of a batch, and is no replay
    assert np.allclose(ours, theirs, atol=1e-4)
    for mine, other in zip(graphed, plain, strict=True):
        assert mine.metrics["val_loss"] == pytest.approx(other.metrics["val_loss"], abs=1e-3)
        assert mine.metrics["lr"] == pytest.approx(other.metrics["lr"], rel=1e-5)


@needs_gpu
def test_a_recording_of_the_head_alone_ends_with_its_epochs(tmp_path):
    from safetensors.torch import save_file

    weights = tmp_path / "model.safetensors"
    save_file(
        {name: tensor.contiguous() for name, tensor in build_model(make_config().model).state_dict().items()}, weights
    )
    leaves = {"model.weights": str(weights), "train.head_epochs": 1, "train.layer_decay": 0.7}
    (fit, _, ours), (_, _, theirs) = (
        fitted(make_config(**NO_DROPOUT, **leaves, **{"train.graphs": graphs})) for graphs in ("on", "off")
    )
    assert fit._graphed.recorded
    assert np.allclose(ours, theirs, atol=1e-4)


@needs_gpu
def test_every_replay_drops_anew_and_the_seed_says_what():
    off = {f"augment.{name}": 0.0 for name in ("rotate", "flip", "scale", "brightness", "contrast")}
    leaves = {"train.batch_size": TRAIN, "train.epochs": 20, "train.lr": 1e-9, "model.dropout": 0.5, **off}
    fit, _, losses = fitted(make_config(**leaves))  # a step an epoch, always of the same images and weights
    assert fit._graphed.recorded
    assert len({round(float(loss), 6) for loss in losses}) == len(losses)
    _, _, again = fitted(make_config(**leaves))
    assert np.allclose(losses, again, atol=1e-5)
    fit, _, longer = fitted(make_config(**{**leaves, "train.batch_size": 16, "train.epochs": 2}))
    assert len({round(float(loss), 6) for loss in longer}) == len(longer)


@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_with_graphs_repeats_itself_and_resumes(precision, tmp_path):
    config = make_config(**{"train.epochs": 4, "train.precision": precision})
    _, whole, losses = fitted(config)
    _, _, again = fitted(config)
    near = 1e-5 if precision == "fp32" else 1e-3
    assert np.allclose(losses, again, atol=near)
    images, plan = make_plan(config)
    first = Fit(config, DeviceStream(plan, images, DEVICE), DEVICE)
    first.run_epoch(), first.run_epoch()
    save_state(tmp_path / "state.safetensors", *first.state())
    resumed = Watched(config, DeviceStream(plan, images, DEVICE), DEVICE)
    resumed.load_state(*load_state(tmp_path / "state.safetensors"))
    reports = [resumed.run_epoch(), resumed.run_epoch()]
    assert np.allclose([float(loss) for loss in resumed.losses], losses[22:], atol=10 * near)
    assert [report.epoch for report in reports] == [3, 4]
    assert reports[-1].metrics["val_loss"] == pytest.approx(whole[-1].metrics["val_loss"], abs=100 * near)
    # A state is loaded into a fit that has recorded its steps: its optimiser's tensors are others now.
    resumed.load_state(*load_state(tmp_path / "state.safetensors"))
    resumed.losses.clear()
    resumed.run_epoch()
    assert np.allclose([float(loss) for loss in resumed.losses], losses[22:33], atol=10 * near)


@needs_gpu
def test_a_network_that_waits_for_the_gpu_is_trained_without_graphs():
    config = make_config(**{"train.epochs": 1})
    images, plan = make_plan(config)

    def waiting(fit):
        return lambda images: fit.model(images * int(images.max().item() >= 0))

    plain = Watched(config.with_leaves({"train.graphs": "off"}), DeviceStream(plan, images, DEVICE), DEVICE)
    plain.run_epoch()
    fit = Watched(config, DeviceStream(plan, images, DEVICE), DEVICE)
    fit._forward = waiting(fit)
    with pytest.warns(UserWarning, match="one by one"):
        fit.run_epoch()
    assert not fit._graphed.recorded
    assert np.allclose([float(loss) for loss in fit.losses], [float(loss) for loss in plain.losses], atol=1e-4)
    fit = Fit(config.with_leaves({"train.graphs": "on"}), DeviceStream(plan, images, DEVICE), DEVICE)
    fit._forward = waiting(fit)
    with pytest.raises(InputError, match=r"train\.graphs = on: .* cannot be recorded"):
        fit.run_epoch()


@needs_gpu
def test_a_recording_that_fails_leaves_the_training_as_it_was():
    config = make_config(**NO_DROPOUT, **{"train.epochs": 1})
    images, plan = make_plan(config)
    plain = Watched(config.with_leaves({"train.graphs": "off"}), DeviceStream(plan, images, DEVICE), DEVICE)
    plain.run_epoch()
    fit = Watched(config, DeviceStream(plan, images, DEVICE), DEVICE)
    step = fit.optimizer.step

    def refusing():  # after the backward pass, while it is recorded
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError("not while recording")
        step()

    fit.optimizer.step = refusing
    with pytest.warns(UserWarning, match="not while recording"):
        fit.run_epoch()
    assert np.allclose([float(loss) for loss in fit.losses], [float(loss) for loss in plain.losses], atol=1e-4)


@pytest.mark.parametrize("graphs", [pytest.param("on", marks=needs_gpu), "off"])
def test_the_map_is_trained_on_boxes(graphs):
    config = make_config(**{"model.localise": True, "train.epochs": 6, "train.lr": 5e-3, "train.graphs": graphs})
    fit, reports, losses = fitted(config)
    assert np.isfinite(losses).all()
    assert reports[-1].metrics["train_loss"] < reports[0].metrics["train_loss"]
    images, labels, boxes = bars()
    rows = [row for row in range(TRAIN, TRAIN + VAL) if labels[row]]
    with torch.inference_mode(), float32():
        where = fit.averaged(torch.from_numpy(images[rows]).to(DEVICE).unsqueeze(1), True)[1].sigmoid().cpu().numpy()
    inside = []
    for row, cells in zip(rows, where, strict=True):
        left, top, right, bottom = (boxes.of(row)[0] * len(cells) / SIZE).astype(int)
        inside.append(cells[top : bottom + 1, left : right + 1].mean() > cells.mean())
    assert np.mean(inside) > 0.7


@needs_gpu
@pytest.mark.parametrize("leaves", [{}, MIXED], ids=["plain", "mixed"])
def test_graphs_train_the_map_as_ordinary_steps_do(leaves):
    config = make_config(**NO_DROPOUT, **{"model.localise": True, **leaves})
    fits = [fitted(config.with_leaves({"train.graphs": graphs})) for graphs in ("on", "off")]
    # The map's own dropout stays, and the gradient of its interpolation is added up in no fixed order.
    assert np.allclose(fits[0][2], fits[1][2], atol=1e-3)


# ---------------------------------------------------------------- the same weights elsewhere


@pytest.mark.parametrize("name", ["fracture_cnn", "tf_efficientnet_lite0"])
def test_validation_on_the_gpu_is_that_on_the_cpu(name):
    config = make_config(**{"model.name": name, "train.precision": "bf16", "train.epochs": 1})
    if not HAS_GPU and name != "fracture_cnn":
        pytest.skip("no GPU that Torch can use")
    fit, (report,), _ = fitted(config, train=64)
    seen = report.validation
    logits = logits_of(fit.averaged, bars()[0][seen.rows], CPU)
    assert np.abs(logits - seen.logits).max() < 1e-4
    ours, theirs = (seen.calibration.apply(values) >= seen.threshold for values in (seen.logits, logits))
    near = np.abs(seen.calibration.apply(logits) - seen.threshold) < 1e-4
    assert np.array_equal(ours[~near], theirs[~near])


def test_a_checkpoint_opens_on_the_cpu_and_gives_the_same_logits(tmp_path):
    fit, reports, _ = fitted(make_config())
    best = max((report for report in reports if report.is_best), key=lambda report: report.epoch)
    seen = best.validation
    metadata = CheckpointMetadata(
        config=fit.config,
        threshold=seen.threshold,
        calibration=seen.calibration,
        metrics=best.metrics,
        data_fingerprint="bars",
        epoch=best.epoch,
        versions={"torch": torch.__version__},
    )
    save_checkpoint(tmp_path / "best", fit.best_weights, metadata)
    opened = load_checkpoint(tmp_path / "best")
    assert next(opened.model.parameters()).device == CPU
    logits = logits_of(opened.model, bars()[0][seen.rows], CPU)
    assert np.abs(logits - seen.logits).max() < 1e-4


# ---------------------------------------------------------------- two processes


def rank_main(rank, backend, folder):
    torch.set_num_threads(1)
    dist.init_process_group(backend, init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    # 161 images in batches of 16: the last batch has one image, and a rank none.
    config = make_config(**{"train.epochs": 1})
    images, plan = make_plan(config, train=161, rank=rank, world=2)
    fit = Fit(config, DeviceStream(plan, images, DEVICE), DEVICE)
    metrics = fit.run_epoch().metrics
    weights = {name: tensor.cpu() for name, tensor in fit.model.state_dict().items() if "running" not in name}
    torch.save((metrics, weights), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("backend", [pytest.param("nccl", marks=needs_gpu), "gloo"])
def test_two_processes_share_the_device(backend, tmp_path, monkeypatch):
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "lo")
    processes = mp.spawn(rank_main, (backend, str(tmp_path)), nprocs=2, join=False)
    until = time.monotonic() + 180
    try:
        while not processes.join(timeout=1):
            assert time.monotonic() < until, "two processes did not come to an end"
    except (mp.ProcessRaisedException, mp.ProcessExitedException) as error:
        if backend == "nccl" and "NCCL" in str(error):
            pytest.skip("NCCL does not let two processes share a GPU: " + str(error).strip().splitlines()[-1])
        raise
    finally:
        for process in processes.processes:
            if process.is_alive():
                process.kill()
    (first, weights), (second, others) = (torch.load(Path(tmp_path) / f"{rank}.pt") for rank in (0, 1))
    assert first == second
    assert all(torch.equal(weights[name], others[name]) for name in weights)


# ---------------------------------------------------------------- compilation, which takes longest


@needs_gpu
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="torch.compile needs triton on a GPU")
def test_a_compiled_network_trains_as_the_plain_one():
    leaves = {**NO_DROPOUT, "train.epochs": 1}
    plain, compiled = (fitted(make_config(**leaves, **{"train.compile": on}), train=160) for on in (False, True))
    assert compiled[0]._graphed is None
    assert np.allclose(plain[2][:5], compiled[2][:5], atol=1e-3)
    assert compiled[1][-1].metrics["val_loss"] == pytest.approx(plain[1][-1].metrics["val_loss"], abs=0.05)


def test_the_boxes_of_these_tests_are_around_the_gaps():
    images, labels, boxes = bars()
    for row in np.flatnonzero(labels):
        left, top, right, bottom = boxes.of(row)[0].astype(int)
        assert images[row][top:bottom, left:right].max() < 80 < images[row][top - 1, left:right].min()
    assert replace(boxes, first=boxes.first).first[-1] == labels.sum()
