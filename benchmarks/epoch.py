"""Images per second of a fracray worker against a bare PyTorch loop over tensors in memory; of augmentation alone.

fracray's worker gathers, augments and trains, with its learning-rate schedule, gradient clipping and moving average of
the weights. The bare loop trains the same network at the same precision and batch size on the very same images, which
were augmented in advance: forward, loss, backward, AdamW. One Torch thread each, in turns, in one process: first with
all cores of the machine, of which fracray's augmenting thread takes a second one, then pinned to one, as in a search
that fills the machine.

Augmentation alone is measured on one core, in turns: fracray's, the stock transforms of albumentations of the same
strengths, and fracray's with one extra transform on every second image. Ratios are to fracray's without extra.
"""

import argparse
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from table import write_results
from torch.nn import functional as F

from fracray.config import AugmentConfig, Config
from fracray.data.images.letterbox import letterbox
from fracray.data.loading.augment import Augmenter
from fracray.data.loading.draws import Pictures
from fracray.data.loading.plan import Plan
from fracray.data.loading.streams import MemoryStream
from fracray.data.phantom.draw import draw_phantom
from fracray.runtime.console import new_console, new_table
from fracray.training.metered import MeteredFit
from fracray.training.model import build_model
from fracray.training.precision import pick_precision
from fracray.training.workers import use_cores

EXTRA = {"CLAHE": {"clip_limit": [1, 4], "p": 0.5}}
HERE = Path(__file__).parent
CPU = torch.device("cpu")


def make_plan(config: Config, images: np.ndarray, rank: int = 0, world: int = 1) -> Plan:
    """All images but the last two train: validation is not what is measured. Every other image is fractured."""
    count = len(images)
    return Plan(
        train_rows=np.arange(count - 2),
        val_rows=np.arange(count - 2, count),
        val_sets={"val": np.arange(count - 2, count)},
        labels=(np.arange(count) % 2).astype(np.float32),
        pictures=Pictures.of_images(images),
        batch_size=config.train.batch_size,
        strengths=config.augment,
        seed=config.train.seed,
        shard_rows=512,
        rank=rank,
        world=world,
    )


class Bare:
    """The loop of any PyTorch tutorial."""

    def __init__(self, config: Config) -> None:
        self.model = build_model(config.model).to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.train.lr)
        self.bf16 = pick_precision(config, CPU, self.model) is torch.bfloat16

    def epoch(self, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
        self.model.train()
        begun = time.perf_counter()
        for images, labels in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
                logits = self.model(images)
            loss = F.binary_cross_entropy_with_logits(logits.float(), labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return time.perf_counter() - begun


def compare(model: str, size: int, count: int, epochs: int) -> dict[str, list[float]]:
    """Seconds of every epoch of fracray's worker and of the bare loop, in turns, in this process."""
    config = Config().with_leaves({"train.epochs": epochs + 1, "data.size": size, "model.name": model}, "benchmark")
    drawn = [letterbox(draw_phantom(index, seed=0).image, size) for index in range(min(count, 64))]
    images = np.stack([drawn[index % len(drawn)] for index in range(count)])
    plan = make_plan(config, images)
    meter = use_cores(config, 1)
    search = config.search
    fit = MeteredFit(config, MemoryStream(plan, images, config.train.epochs), CPU, "val_accuracy", search.mode, meter)
    bare = Bare(config)
    augmenter = Augmenter(config.augment, config.train.seed)
    seconds: dict[str, list[float]] = {"fracray": [], "bare": []}
    for epoch in range(epochs + 1):
        batches = [
            (
                torch.from_numpy(augmenter.batch(images[rows], epoch, rows, plan.pictures.of(rows))).unsqueeze(1),
                torch.from_numpy(plan.labels[rows]),
            )
            for rows, _ in plan.train_slices(epoch)
        ]
        plain = bare.epoch(batches)
        begun = time.perf_counter()
        fit.run_epoch()
        ours = time.perf_counter() - begun
        if epoch:  # the first pays for what is set up once
            seconds["fracray"].append(ours)
            seconds["bare"].append(plain)
    return seconds


def stock(strengths: AugmentConfig) -> Callable[..., dict[str, np.ndarray]]:
    """A pipeline of albumentations' own transforms that does what the fused ones do."""
    import albumentations as A

    scale = (1 - strengths.scale, 1 + strengths.scale)
    pipeline: Callable[..., dict[str, np.ndarray]] = A.Compose(
        [
            A.HorizontalFlip(p=strengths.flip),
            A.Affine(rotate=(-strengths.rotate, strengths.rotate), scale=scale, p=1.0),
            A.RandomBrightnessContrast(strengths.brightness, 0.0, p=1.0),
            A.ColorJitter((1, 1), (1 - strengths.contrast, 1 + strengths.contrast), (1, 1), (0, 0), p=1.0),
        ]
    )
    return pipeline


def augmentation(size: int, rounds: int, batch: int = 64) -> dict[str, list[float]]:
    """CPU seconds an image of augmentation alone, in every round."""
    config = Config()
    images = np.stack([letterbox(draw_phantom(index, seed=0).image, size) for index in range(batch)])
    rows = np.arange(batch)
    pipeline = stock(config.augment)
    pictures = Pictures.of_images(images)
    plain = Augmenter(config.augment, 0)
    extra = Augmenter(config.with_leaves({"augment.extra": EXTRA}).augment, 0)
    arms: dict[str, Callable[[int], object]] = {
        "fused": lambda epoch: plain.batch(images, epoch, rows, pictures),
        "stock": lambda epoch: np.stack([pipeline(image=image)["image"] for image in images]),
        "one extra": lambda epoch: extra.batch(images, epoch, rows, pictures),
    }
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for epoch in range(rounds + 1):
        for arm, augment in arms.items():
            begun = time.thread_time()
            augment(epoch)
            if epoch:  # the first pays for what is set up once
                seconds[arm].append((time.thread_time() - begun) / batch)
    return seconds


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--images", type=int, default=1602, help="radiographs (default %(default)s)")
    cli.add_argument("--size", type=int, default=128, help="side in pixels (default %(default)s)")
    cli.add_argument("--model", default="fracture_cnn", help="or a timm backbone (default %(default)s)")
    cli.add_argument("--epochs", type=int, default=12, help="of each, in turns (default %(default)s)")
    cli.add_argument("--rounds", type=int, default=50, help="of augmentation alone, in turns (default %(default)s)")
    cli.add_argument("--json", type=Path, default=HERE / "results" / "epoch.json", help="default %(default)s")
    args = cli.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    table = new_table("", "images per second", "slowest", "fastest")
    figures: dict[str, Any] = {
        "settings": {"images": args.images, "size": args.size, "model": args.model, "epochs": args.epochs},
        "cores": len(cores),
    }
    for name, given in (("cores to spare", cores), ("one core", cores[:1])):
        with ProcessPoolExecutor(1, get_context("spawn"), os.sched_setaffinity, (0, given)) as pool:
            seconds = pool.submit(compare, args.model, args.size, args.images, args.epochs).result()
        for loop, taken in seconds.items():
            rates = [(args.images - 2) / second for second in taken]
            table.add_row(f"{loop}, {name}", f"{median(rates):.0f}", f"{min(rates):.0f}", f"{max(rates):.0f}")
        ratios = [plain / ours for plain, ours in zip(seconds["bare"], seconds["fracray"], strict=True)]
        table.add_row(f"ratio, {name}", f"{median(ratios):.3f}", f"{min(ratios):.3f}", f"{max(ratios):.3f}")
        figures[name] = {"ratio": median(ratios), "ratios": ratios, "seconds": seconds}
    with ProcessPoolExecutor(1, get_context("spawn"), os.sched_setaffinity, (0, cores[:1])) as pool:
        alone = pool.submit(augmentation, args.size, args.rounds).result()
    for arm, taken in alone.items():
        rates = [1 / second for second in taken]
        table.add_row(f"augmentation, {arm}", f"{median(rates):.0f}", f"{min(rates):.0f}", f"{max(rates):.0f}")
    alone_figures: dict[str, Any] = {"extra": EXTRA, "seconds_an_image": alone}
    for arm in ("stock", "one extra"):
        ratios = [fused / other for fused, other in zip(alone["fused"], alone[arm], strict=True)]
        table.add_row(f"ratio, {arm}", f"{median(ratios):.3f}", f"{min(ratios):.3f}", f"{max(ratios):.3f}")
        alone_figures[f"ratio, {arm}"] = median(ratios)
    figures["augmentation"] = alone_figures
    write_results(new_console(), "epoch", table, figures, args.json)


if __name__ == "__main__":
    main()
