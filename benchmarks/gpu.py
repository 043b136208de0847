"""Images per second on one GPU against synthetic tensors on it, and trials per hour with 1 to 16 trials sharing it.

An epoch is one of `fracray.training.loop.Fit`, without its validation. The plain alternative takes the same steps over
one batch that is already on the device: the difference is what fracray's data costs. The two take turns, an epoch each.
The augmentation alone is compared with torchvision's transforms v2. Trials are those of `python -m fracray.tune`, from
the command's start to its end.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import yaml
from processes import timed
from rich.console import Console
from table import write_results
from torchvision.transforms.v2 import functional as v2

from fracray.config import Config
from fracray.data.loading import gpu_stream
from fracray.data.loading.draws import Pictures, draw, gray_lines, source_matrices
from fracray.data.loading.gpu_stream import DeviceStream
from fracray.data.loading.plan import Batch, Plan
from fracray.data.loading.streams import MemoryStream
from fracray.data.prepare import prepare
from fracray.runtime.console import new_console, new_table
from fracray.runtime.ray_session import connect
from fracray.training.loop import Fit, Stream

HERE = Path(__file__).parent
OURS, V2 = "fracray", "torchvision's transforms v2"
SYNTHETIC, ON_CPU, ON_DEVICE = "synthetic tensors", "augmented on the CPU", "augmented on the device"
VAL_IMAGES = 64
SPACE = {
    "metric": "val_accuracy",
    "sampler": {"name": "random"},
    "scheduler": {"name": "none"},
    "space": {"model.dropout": {"float": [0.0, 0.7]}, "augment.rotate": {"float": [0, 30]}},
}


def parser() -> argparse.ArgumentParser:
    cli = argparse.ArgumentParser(
        prog="python benchmarks/gpu.py",
        description="Images per second of fracray's training epoch on one GPU, its radiographs augmented on the CPU "
        "or on the GPU, against the same steps over synthetic tensors on the GPU ('ratio', of the epochs of one "
        "round); the augmentation alone, against torchvision's transforms v2; then trials per hour of a search with "
        "several trials sharing the GPU. Without a GPU it says so and ends.",
    )
    cli.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try the benchmark (default cuda)"
    )
    cli.add_argument("--model", default="fracture_cnn", help="as model.name (default %(default)s)")
    cli.add_argument(
        "--size", type=int, nargs="+", default=[128, 224], help="sides of the images, px (default 128 224)"
    )
    cli.add_argument("--batch", type=int, default=256, help="images of a step (default %(default)s)")
    cli.add_argument("--images", type=int, default=4096, help="of the resident set (default %(default)s)")
    cli.add_argument("--passes", type=int, default=16, help="over the set in an epoch (default %(default)s)")
    cli.add_argument("--precision", nargs="+", choices=("bf16", "fp32"), default=["bf16"], help="default bf16")
    cli.add_argument(
        "--compile", nargs="+", choices=("off", "on"), default=["off", "on"], help="torch.compile (default off on)"
    )
    cli.add_argument(
        "--rounds", type=int, default=5, help="epochs of each kind, in turn, after one that does not count (default 5)"
    )
    cli.add_argument(
        "--sharing", type=int, nargs="*", default=[1, 2, 4, 8, 16], help="trials at a time; none: no searches"
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
    table = new_table("what", "size", "precision", "compile", "median", "min", "max", "ratio")
    epochs = []
    for size, precision, compiled in product(args.size, args.precision, args.compile):
        epochs += time_epochs(args, device, size, precision, compiled == "on", console)
    for row in epochs:
        rates = row["images_per_second"]
        settings = (str(row["size"]), row["precision"], "on" if row["compile"] else "off")
        spread = (f"{value:,.0f}" for value in (median(rates), min(rates), max(rates)))
        table.add_row(f"images/s, {row['arm']}", *settings, *spread, f"{median(row['ratio']):.3f}")
    augmentations = [time_augmentation(args, device, size) for size in args.size]
    for row in augmentations:
        for name, rates in row["images_per_second"].items():
            ratio = median(rates) / median(row["images_per_second"][OURS])
            spread = (f"{value:,.0f}" for value in (median(rates), min(rates), max(rates)))
            table.add_row(f"images/s, augmentation alone, {name}", str(row["size"]), "", "", *spread, f"{ratio:.3f}")
    searches = time_searches(args, console)
    for row in searches:
        words = f"trials/h, {row['at_once']} at a time, {row['augmented_on']}, efficiency {row['efficiency']:.2f}"
        table.add_row(words, "128", "auto", "off", f"{row['per_hour']:,.0f}", "", "", f"{row['ratio']:.2f}")
    figures = {
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "settings": {**vars(args), "json": None},
        "epochs": epochs,
        "augmentation": augmentations,
        "searches": searches,
    }
    write_results(console, "gpu", table, figures, args.json)


# ---------------------------------------------------------------- images per second


class Synthetic:
    """The steps of a plan over one batch, images and labels on the device before the first of them."""

    def __init__(self, plan: Plan, size: int, device: torch.device) -> None:
        self.plan = plan

        def noise(rows: np.ndarray) -> torch.Tensor:
            return torch.randint(0, 256, (len(rows), size, size), dtype=torch.uint8, device=device)

        rows, count = plan.train_slices(0)[0]
        labels = torch.from_numpy(plan.labels[rows]).to(device)
        self._batch = Batch(noise(rows), labels, rows, count)
        self._validation = [Batch(noise(rows), plan.labels[rows], rows, count) for rows, count in plan.val_slices()]

    def train(self, epoch: int) -> Iterator[Batch]:
        for _ in range(self.plan.steps):
            yield self._batch

    def validation(self) -> Iterator[Batch]:
        yield from self._validation


@dataclass
class Arm:
    """A fit whose epochs are timed; rates: images a second of each epoch."""

    name: str
    fit: Fit
    rates: list[float]

    def epoch(self) -> None:
        """Train an epoch. `advance` also validates: a second validation is timed and subtracted."""
        begun = time.perf_counter()
        self.fit.advance()
        trained = time.perf_counter()
        self.fit.validate()
        seconds = (trained - begun) - (time.perf_counter() - trained)
        self.rates.append(len(self.fit.stream.plan.train_rows) / seconds)


def time_epochs(
    args: argparse.Namespace, device: torch.device, size: int, precision: str, compiled: bool, console: Console
) -> list[dict[str, Any]]:
    """The rates of the three arms under one setting; the first epoch of each, which compiles, does not count."""
    config = Config().with_leaves(
        {
            "data.size": size,
            "model.name": args.model,
            "train.batch_size": args.batch,
            "train.precision": precision,
            "train.compile": compiled,
            "train.epochs": args.rounds + 1,
        }
    )
    images = np.random.default_rng(0).integers(0, 256, (args.images, size, size), dtype=np.uint8)
    plan = plan_of(config, images, args.passes)
    from_memory = MemoryStream(plan, images, config.train.epochs)
    streams: dict[str, Stream] = {
        SYNTHETIC: Synthetic(plan, size, device),
        ON_CPU: from_memory,
        ON_DEVICE: DeviceStream(plan, images, device),
    }
    arms = [Arm(name, Fit(config, stream, device), []) for name, stream in streams.items()]
    for turn in range(args.rounds + 1):
        for arm in arms:
            arm.epoch()
        console.print(f"{size} px, {precision}, compile {compiled}: epoch {turn + 1} of {args.rounds + 1}")
    from_memory.close()
    plain = arms[0].rates[1:]
    return [
        {
            "arm": arm.name,
            "size": size,
            "precision": precision,
            "compile": compiled,
            "images_per_second": arm.rates[1:],
            "ratio": [rate / base for rate, base in zip(arm.rates[1:], plain, strict=True)],
        }
        for arm in arms
    ]


def plan_of(config: Config, images: np.ndarray, passes: int) -> Plan:
    """Epochs of several passes over a set, in complete batches.

    They are long, so that validation takes little of the time, and so do the batches that the CPU prepares while
    another arm has its turn.
    """
    val = np.arange(min(VAL_IMAGES, len(images)))
    rows = np.tile(np.arange(len(images)), passes)
    batch = config.train.batch_size
    if len(rows) < batch:
        raise SystemExit(f"--batch {batch} is more than the {len(rows)} images of an epoch (--images times --passes)")
    return Plan(
        train_rows=rows[: len(rows) // batch * batch],
        val_rows=val,
        val_sets={"val": val},
        labels=(np.arange(len(images)) % 3 == 0).astype(np.float32),
        pictures=Pictures.of_images(images),
        batch_size=batch,
        strengths=config.augment,
        seed=0,
        shard_rows=512,
    )


# ---------------------------------------------------------------- augmentation alone


def time_augmentation(args: argparse.Namespace, device: torch.device, size: int) -> dict[str, Any]:
    """Images a second of a batch's augmentation on the device, the draws made before, fracray's and torchvision's."""
    strengths = Config().augment
    rows = np.arange(args.batch)
    images = torch.randint(0, 256, (args.batch, size, size), dtype=torch.uint8, device=device)
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
    for turn in range(args.rounds + 1):
        for name, augment in arms.items():
            begun = time.perf_counter()
            results[name] = augment()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:
                rates[name].append(args.batch / (time.perf_counter() - begun))
    # Both do the same work: pixels that are interpolated may be rounded to a neighbouring gray level.
    differences = (results[OURS].int() - results[V2].int()).abs().float()
    assert differences.mean() < 1, f"the two differ by {differences.mean():.2f} gray levels on average"
    return {"size": size, "images_per_second": rates, "mean_difference": float(differences.mean())}


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


# ---------------------------------------------------------------- trials per hour


def time_searches(args: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    """A search for each number of trials at a time, augmented on the CPU and on the GPU; ratios are to the first."""
    rows: list[dict[str, Any]] = []
    places = ("cpu", "gpu") if args.device == "cuda" else ("cpu",)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["FRACRAY_CACHE"] = str(Path(scratch) / "cache")
        space = Path(scratch) / "space.yaml"
        space.write_text(yaml.safe_dump({**SPACE, "trials": args.trials, "epochs": args.epochs}))
        if args.sharing:  # the phantoms are drawn and ingested before the clock runs
            config = Config().with_leaves({"data.phantom.count": args.phantoms})
            with connect(None):
                prepare(config.data, console)
        for at_once, place in product(args.sharing, places):
            seconds = timed(search_command(args, space, Path(scratch), at_once, place))
            rate = args.trials / seconds * 3600
            report = json.loads((Path(scratch) / "runs" / name_of(at_once, place) / "efficiency.json").read_text())
            rows.append(
                {
                    "at_once": at_once,
                    "augmented_on": place,
                    "seconds": seconds,
                    "per_hour": rate,
                    "efficiency": report["efficiency"],
                }
            )
            console.print(f"{at_once} trial(s) at a time, augmented on the {place}: {rate:,.0f} trials an hour")
    for row in rows:
        row["ratio"] = row["per_hour"] / rows[0]["per_hour"]
    return rows


def name_of(at_once: int, place: str) -> str:
    return f"{place}-{at_once}"


def search_command(args: argparse.Namespace, space: Path, scratch: Path, at_once: int, place: str) -> list[str]:
    """The search's command; its trials share the machine's cores and its GPU."""
    share = 1 / at_once
    cpus = np.floor(len(os.sched_getaffinity(0)) * share * 100) / 100
    words = ["--space", str(space), "--storage", str(scratch / "runs"), "--name", name_of(at_once, place)]
    words += ["--concurrent", str(at_once), "--cpus-per-trial", f"{cpus:g}"]
    words += ["--set", f"data.phantom.count={args.phantoms}", "--set", f"data.augment_on={place}"]
    if args.device == "cuda":
        words += ["--gpus-per-trial", f"{np.floor(share * 1e4) / 1e4:g}"]
    return [sys.executable, "-m", "fracray.tune", *words]


if __name__ == "__main__":
    main()
