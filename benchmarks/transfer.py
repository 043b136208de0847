"""Images per second of transfer learning on a CPU: fracray's networks against the same ones of timm alone.

A step is forward, loss, backward and AdamW on a batch that lies in memory. Four ways of the same network take turns, a
step each, in one process: timm's in fp32 (the plain alternative), timm's under bf16 autocast, fracray's (which chooses
the precision and has its own backward pass of depthwise convolutions), and fracray's with its stem and first stages
frozen. Then the forward pass of a network that no longer trains, in fp32: timm's, and fracray's with batch norm folded
into its convolutions. Speeds are medians over the rounds of the plain alternative's time to that of the way in the
same round.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch
from table import write_results
from torch import nn
from torch.nn import functional as F

from fracray.config import Config
from fracray.runtime.console import new_console, new_table
from fracray.training.folding import folded
from fracray.training.model import build_model, freeze_stages, train_mode
from fracray.training.precision import pick_precision

HERE = Path(__file__).parent
CPU = torch.device("cpu")
PLAIN, LOOKS = "timm, fp32", "forward pass: "


def step_of(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, bf16: bool) -> Callable[[], None]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(images)
        loss = F.binary_cross_entropy_with_logits(logits.flatten().float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def ways(name: str, size: int, batch: int) -> dict[str, Callable[[], None]]:
    """A step of each way on equal images."""
    images = torch.randint(0, 256, (batch, 1, size, size), dtype=torch.uint8)
    scaled, labels = images.float() / 127.5 - 1, (torch.arange(batch) % 2).float()
    found = {}
    for label, bf16 in ((PLAIN, False), ("timm, bf16", True)):
        plain = timm.create_model(name, in_chans=1, num_classes=1).to(memory_format=torch.channels_last).train()
        found[label] = step_of(plain, scaled.to(memory_format=torch.channels_last), labels, bf16)
    for label, stages in (("fracray", 0), ("fracray, 2 stages frozen", 2)):
        leaves = {"model.name": name, "model.weights": "imagenet", "model.freeze_stages": stages}
        config = Config().with_leaves(leaves, "benchmark")
        ours = build_model(config.model).to(memory_format=torch.channels_last)
        freeze_stages(ours, stages)
        train_mode(ours, norm_frozen=False)
        found[label] = step_of(ours, images, labels, pick_precision(config, CPU, ours) is torch.bfloat16)
    return found


def looks(name: str, size: int, batch: int) -> dict[str, Callable[[], None]]:
    """The forward pass of each way on equal images."""
    images = torch.randint(0, 256, (batch, 1, size, size), dtype=torch.uint8)
    config = Config().with_leaves({"model.name": name, "model.weights": "imagenet"}, "benchmark")
    ours = build_model(config.model).to(memory_format=torch.channels_last).eval()
    plain = timm.create_model(name, in_chans=1, num_classes=1).to(memory_format=torch.channels_last).eval()
    quick = folded(ours, size)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in quick.modules()), f"{name}: not folded"

    def bare() -> None:
        with torch.inference_mode():
            plain((images.float() / 127.5 - 1).to(memory_format=torch.channels_last))

    def look() -> None:
        with torch.inference_mode():
            quick(images)

    return {LOOKS + PLAIN: bare, LOOKS + "fracray": look}


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--networks", nargs="+", default=["tf_efficientnet_lite0", "tf_efficientnet_lite2"])
    cli.add_argument("--size", type=int, default=224, help="side of the images in pixels (default %(default)s)")
    cli.add_argument("--batch", type=int, default=32, help="images of a step (default %(default)s)")
    cli.add_argument("--rounds", type=int, default=7, help="timed steps of each way (default %(default)s)")
    cli.add_argument("--threads", type=int, default=1, help="Torch's threads (default %(default)s)")
    cli.add_argument("--json", type=Path, default=HERE / "results/transfer.json")
    args = cli.parse_args()
    torch.set_num_threads(args.threads)
    console = new_console()
    table = new_table("network", "way", "images/s", "speed, to timm in fp32", "least", "most")
    figures: dict[str, Any] = {}
    for name in args.networks:
        steps = ways(name, args.size, args.batch) | looks(name, args.size, args.batch)
        seconds: dict[str, list[float]] = {way: [] for way in steps}
        for round_ in range(args.rounds + 1):
            for way, step in steps.items():
                begun = time.perf_counter()
                step()
                if round_:  # the first pays for what is set up once
                    seconds[way].append(time.perf_counter() - begun)
        figures[name] = {}
        for way, mine in seconds.items():
            alternative = seconds[LOOKS + PLAIN if way.startswith(LOOKS) else PLAIN]
            ratios = [plain / own for plain, own in zip(alternative, mine, strict=True)]
            figures[name][way] = {
                "images_per_s": args.batch / median(mine),
                "speed": median(ratios),
                "least": min(ratios),
                "most": max(ratios),
            }
            shown = (median(ratios), min(ratios), max(ratios))
            table.add_row(name, way, f"{args.batch / median(mine):.1f}", *(f"{ratio:.2f}" for ratio in shown))
    settings = {"size": args.size, "batch": args.batch, "rounds": args.rounds, "threads": args.threads}
    write_results(console, "transfer", table, {"settings": settings, "networks": figures}, args.json)


if __name__ == "__main__":
    main()
