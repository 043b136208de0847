"""Images per second on one GPU against synthetic tensors on it, and of many small trials that share it.

An epoch is one of `fracray.training.loop.Fit`, without its validation: its steps one by one, as CUDA graphs, or
compiled. The plain alternative takes the same steps over one batch that is already on the device: the difference is
what fracray's data costs. The two take turns, an epoch each. The augmentation alone is compared with torchvision's
transforms v2. Needs the checkout on PYTHONPATH and Torch with torchvision; Ray only for `--sharing`.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from gpu_sharing import noise, plan_of, time_processes, time_searches, time_streams, train_epoch
from rich.console import Console
from table import write_results
from torchvision.transforms.v2 import functional as v2

from fracray.config import Config
from fracray.data.loading import gpu_stream
from fracray.data.loading.draws import Pictures, draw, gray_lines, source_matrices
from fracray.data.loading.gpu_stream import DeviceStream
from fracray.data.loading.plan import Batch, Plan
from fracray.data.loading.streams import MemoryStream
from fracray.runtime.console import new_console, new_table
from fracray.training.loop import Fit, Stream

HERE = Path(__file__).parent
OURS, V2 = "fracray", "torchvision's transforms v2"
SYNTHETIC, ON_CPU, ON_DEVICE = "synthetic tensors", "augmented on the CPU", "augmented on the device"
COMPILE_SECONDS = 40.0  # that torch.compile may take: not begun with less


@dataclass(frozen=True)
class Network:
    """What is trained: NAME:SIZE:BATCH, a network by `model.name`, the side of its images in pixels, and a batch."""

    name: str
    size: int
    batch: int

    @classmethod
    def parse(cls, text: str) -> "Network":
        name, size, batch = text.rsplit(":", 2)
        return cls(name, int(size), int(batch))


def parser() -> argparse.ArgumentParser:
    cli = argparse.ArgumentParser(
        prog="python benchmarks/gpu.py",
        description="Images per second of fracray's training epoch on one GPU, its radiographs augmented on the CPU "
        "or on the GPU, against the same steps over synthetic tensors on the GPU ('ratio', of the epochs of one "
        "round); the augmentation alone, against torchvision's transforms v2; then small trials that share the GPU, "
        "against one alone. Without a GPU it says so and ends.",
    )
    cli.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try the benchmark (default cuda)"
    )
    cli.add_argument(
        "--networks",
        type=Network.parse,
        nargs="*",
        default=[Network("fracture_cnn", 128, 256), Network("tf_efficientnet_lite0", 224, 32)],
        help="NAME:SIZE:BATCH of each (default fracture_cnn:128:256 tf_efficientnet_lite0:224:32)",
    )
    cli.add_argument("--images", type=int, default=1024, help="of the resident set (default %(default)s)")
    cli.add_argument("--epoch-steps", type=int, default=64, help="steps of an epoch (default %(default)s)")
    cli.add_argument("--precision", nargs="+", choices=("bf16", "fp32"), default=["bf16"], help="default bf16")
    cli.add_argument(
        "--steps",
        nargs="+",
        choices=("graphs", "eager", "compile"),
        default=["graphs", "eager", "compile"],
        help="how steps are taken (default: all; graphs need a GPU); compile comes last",
    )
    cli.add_argument(
        "--rounds", type=int, default=3, help="epochs of each kind, in turn, after one that does not count (default 3)"
    )
    cli.add_argument(
        "--processes", type=int, nargs="*", default=[1, 4, 8, 16], help="that share the GPU; none: not measured"
    )
    cli.add_argument("--window", type=float, default=3.0, help="seconds of each number of processes (default 3)")
    cli.add_argument("--budget", type=float, default=95.0, help="seconds; what does not fit is left out (default 95)")
    cli.add_argument(
        "--sharing", type=int, nargs="*", default=[], help="trials at a time of a search with Ray each; default: none"
    )
    cli.add_argument("--trials", type=int, default=32, help="of each search (default %(default)s)")
    cli.add_argument("--epochs", type=int, default=3, help="of each trial (default %(default)s)")
    cli.add_argument("--phantoms", type=int, default=2000, help="radiographs of the searches (default %(default)s)")
    cli.add_argument("--json", type=Path, default=HERE / "results" / "gpu.json", help="default %(default)s")
    return cli


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    console = new_console()
    if args.device == "cuda" and not torch.cuda.is_available():
        console.print("skipped: this machine has no GPU that Torch can use")
        return
    device = torch.device("cuda", 0) if args.device == "cuda" else torch.device("cpu")
    until = time.perf_counter() + args.budget
    figures: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "settings": {**vars(args), "json": None, "networks": [vars(network) for network in args.networks]},
        "epochs": [],
        "augmentation": [],
        "processes": [],
        "streams": [],
        "searches": [],
    }

    def left() -> float:
        return until - time.perf_counter()

    def epochs(kinds: Sequence[str], least: float) -> None:
        for kind, network, precision in product(kinds, args.networks, args.precision):
            if left() < least:
                console.print(f"left out, for want of time: {network.name}, {precision}, {kind}")
                continue
            figures["epochs"] += time_epochs(args, device, network, precision, kind, console, left)

    epochs([kind for kind in args.steps if kind == "eager" or (kind == "graphs" and device.type == "cuda")], 10.0)
    figures["augmentation"] = [time_augmentation(args.rounds, device, network) for network in args.networks]
    size = args.networks[0].size if args.networks else 128
    shared = (args.processes, args.window, size, device, console)
    figures["streams"] = time_streams(*shared, left())
    figures["processes"] = time_processes(*shared, left())
    epochs([kind for kind in args.steps if kind == "compile"], COMPILE_SECONDS)
    figures["searches"] = time_searches(
        args.sharing, args.trials, args.epochs, args.phantoms, device.type == "cuda", console
    )
    write_results(console, "gpu", table_of(figures), figures, args.json)


def table_of(figures: dict[str, Any]) -> Any:
    table = new_table("what", "network, side, batch", "precision", "steps", "median", "min", "max", "ratio")

    def spread(rates: Sequence[float]) -> list[str]:
        return [f"{value:,.0f}" for value in (median(rates), min(rates), max(rates))]

    for row in figures["epochs"]:
        shape = f"{row['network']}, {row['size']}, {row['batch']}"
        table.add_row(
            f"images/s, {row['arm']}",
            shape,
            row["precision"],
            row["steps"],
            *spread(row["images_per_second"]),
            f"{median(row['ratio']):.3f}",
        )
    for row in figures["augmentation"]:
        for name, rates in row["images_per_second"].items():
            ratio = median(rates) / median(row["images_per_second"][OURS])
            shape = f"{row['size']}, {row['batch']}"
            table.add_row(f"images/s, augmentation alone, {name}", shape, "", "", *spread(rates), f"{ratio:.3f}")
    for what in ("processes", "streams"):
        for row in figures[what]:
            trials = f"images/s, small trials in {row[what]} {what}"
            table.add_row(
                trials,
                "fracture_cnn, 64",
                "auto",
                row.get("steps", "graphs"),
                f"{row['images_per_second']:,.0f}",
                "",
                "",
                f"{row['ratio']:.2f}",
            )
    for row in figures["searches"]:
        words = f"trials/h, {row['at_once']} at a time, {row['augmented_on']}, efficiency {row['efficiency']:.2f}"
        table.add_row(
            words, "fracture_cnn, 128", "auto", "auto", f"{row['per_hour']:,.0f}", "", "", f"{row['ratio']:.2f}"
        )
    return table


# ---------------------------------------------------------------- images per second


class Synthetic:
    """The steps of a plan over one batch, images and labels on the device before the first of them."""

    def __init__(self, plan: Plan, size: int, device: torch.device) -> None:
        self.plan = plan
        rows, count = plan.train_slices(0)[0]
        images = torch.randint(0, 256, (len(rows), size, size), dtype=torch.uint8, device=device)
        self._batch = Batch(images, torch.from_numpy(plan.labels[rows]).to(device), rows, count)  # type: ignore[arg-type]

    def train(self, epoch: int) -> Iterator[Batch]:
        for _ in range(self.plan.steps):
            yield self._batch

    def validation(self) -> Iterator[Batch]:
        yield from ()


@dataclass
class Arm:
    """A fit whose epochs are timed; rates: images a second of each epoch."""

    name: str
    fit: Fit
    rates: list[float]

    def epoch(self) -> None:
        begun = time.perf_counter()
        train_epoch(self.fit)
        self.rates.append(len(self.fit.stream.plan.train_rows) / (time.perf_counter() - begun))


def time_epochs(
    args: argparse.Namespace,
    device: torch.device,
    network: Network,
    precision: str,
    kind: str,
    console: Console,
    left: Any,
) -> list[dict[str, Any]]:
    """The rates of the arms under one setting; the first epoch of each, which compiles or records, does not count."""
    config = Config().with_leaves(
        {
            "data.size": network.size,
            "model.name": network.name,
            "train.batch_size": network.batch,
            "train.precision": precision,
            "train.compile": kind == "compile",
            "train.graphs": "on" if kind == "graphs" else "off",
            "train.epochs": args.rounds + 1,
        }
    )
    images = noise(args.images, network.size)
    plan = plan_of(config, images, args.epoch_steps)
    # One core augments far fewer images than a GPU trains on: shorter epochs.
    from_memory = MemoryStream(plan_of(config, images, max(1, args.epoch_steps // 4)), images, config.train.epochs)
    streams: dict[str, Stream] = {
        SYNTHETIC: Synthetic(plan, network.size, device),
        ON_DEVICE: DeviceStream(plan, images, device),
    }
    if kind != "compile":
        streams[ON_CPU] = from_memory
    arms = [Arm(name, Fit(config, stream, device), []) for name, stream in streams.items()]
    for turn in range(args.rounds + 1):
        begun = time.perf_counter()
        for arm in arms:
            arm.epoch()
        console.print(
            f"{network.name}, {network.size} px, {precision}, {kind}: epoch {turn + 1} of {args.rounds + 1}, "
            f"{time.perf_counter() - begun:.1f} s; "
            + ", ".join(f"{arm.name} {arm.rates[-1]:,.0f} images/s" for arm in arms)
        )
        if turn and left() < 0:
            break
    from_memory.close()
    plain = arms[0].rates[1:]
    return [
        {
            "arm": arm.name,
            "network": network.name,
            "size": network.size,
            "batch": network.batch,
            "precision": precision,
            "steps": kind,
            "first_epoch_images_per_second": arm.rates[0],
            "images_per_second": arm.rates[1:],
            "ratio": [rate / base for rate, base in zip(arm.rates[1:], plain, strict=True)],
        }
        for arm in arms
    ]


# ---------------------------------------------------------------- augmentation alone


def time_augmentation(rounds: int, device: torch.device, network: Network) -> dict[str, Any]:
    """Images a second of a batch's augmentation on the device, the draws made before, fracray's and torchvision's."""
    strengths = Config().augment
    rows, size = np.arange(network.batch), network.size
    images = torch.randint(0, 256, (len(rows), size, size), dtype=torch.uint8, device=device)
    pictures = Pictures.of_images(images.cpu().numpy())
    drawn = gpu_stream._DeviceDraws.draw(strengths, 0, 0, rows, pictures, device)
    draws = draw(strengths, 0, 0, rows)
    warps = source_matrices(draws, size, size)
    warps[:, :, 2] += 0.5 - 0.5 * warps[:, :, :2].sum(2)  # torchvision's centres of pixels are at halves
    matrices = warps.reshape(len(rows), 6).tolist()
    slopes, offsets = (values.tolist() for values in gray_lines(draws, pictures.means))
    arms = {
        OURS: lambda: gpu_stream._augment(images, drawn, strengths),
        V2: lambda: augment_with_v2(images, matrices, slopes, offsets),
    }
    rates: dict[str, list[float]] = {name: [] for name in arms}
    results = {}
    for turn in range(rounds + 1):
        for name, augment in arms.items():
            begun = time.perf_counter()
            results[name] = augment()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:
                rates[name].append(len(rows) / (time.perf_counter() - begun))
    # Both do the same work: pixels that are interpolated may be rounded to a neighbouring gray level.
    differences = (results[OURS].int() - results[V2].int()).abs().float()
    assert differences.mean() < 1, f"the two differ by {differences.mean():.2f} gray levels on average"
    return {
        "size": size,
        "batch": network.batch,
        "images_per_second": rates,
        "mean_difference": float(differences.mean()),
    }


def augment_with_v2(
    images: torch.Tensor, matrices: list[list[float]], slopes: list[float], offsets: list[float]
) -> torch.Tensor:
    """fracray's gray levels, of pictures without black bands, and warp out of torchvision's functions, which take the
    parameters of a single image.

    Its affine has one scale for both axes, so `perspective` does the warp, flips included.
    """
    factors, shifts = (torch.tensor(values, device=images.device)[:, None, None] for values in (slopes, offsets))
    levels = (images * factors + shifts).clamp_(0, 255).floor_()
    changed = [
        v2.perspective(image[None], None, None, coefficients=[*matrix, 0.0, 0.0])
        for image, matrix in zip(levels, matrices, strict=True)
    ]
    return torch.cat(changed).round_().to(torch.uint8)


if __name__ == "__main__":
    main()
