"""Images per second of two workers of one training against two trainings apart, and against one worker alone.

The batch of each worker is fixed, and each is pinned to its own core. Every worker runs fracray's own loop over its
part of the set, augmentation included; the gradients are added up by gloo over loopback. The same two processes take
the three in turns, an epoch at a time, after one that pays for what is set up once.

What two trainings apart lose against twice one worker is due to the machine, whose cores share caches and memory. What
two workers lose against two trainings apart is due to the exchange, and to waiting for each other. Other work on the
machine makes workers wait: CPU seconds per image do not count it, and the share of its core that a worker got tells
how much there was.
"""

import argparse
import os
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from epoch import make_plan
from table import write_results

from fracray.config import Config
from fracray.data.loading.plan import Batch
from fracray.data.loading.streams import MemoryStream
from fracray.runtime.console import new_console, new_table
from fracray.training.loop import Fit
from fracray.training.workers import use_cores

HERE = Path(__file__).parent
ONE, TWO, APART = ARMS = ("one worker", "two workers", "two apart")


@dataclass(frozen=True)
class Turn:
    """What one process did in one turn of an arm: images that it trained on, seconds of wall and of CPU time."""

    arm: str
    turn: int
    images: int
    wall: float
    cpu: float


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class OneEpoch(MemoryStream):
    """Does not run ahead into the next epoch, which would be augmented while another arm is timed."""

    def train(self, epoch: int) -> Iterator[Batch]:
        self.close()
        return super().train(epoch)


def make_fit(args: argparse.Namespace, rank: int, world: int) -> Fit:
    """A training on `world` workers whose own batches are as large as one worker's, and so is the set."""
    leaves = {"train.batch_size": Config().train.batch_size * world, "data.size": args.size, "model.name": args.model}
    config = Config().with_leaves({**leaves, "train.epochs": 1 + args.turns}, "benchmark")
    shape = (args.images * world + 2, args.size, args.size)
    pixels = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    plan = make_plan(config, pixels, rank, world)
    return Fit(config, OneEpoch(plan, pixels, 1), torch.device("cpu"))


def work(rank: int, port: int, args: argparse.Namespace, results: mp.Queue) -> None:
    """One of the two processes: all turns of all arms."""
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank]})
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    use_cores(Config(), 1)
    fits = {ONE: make_fit(args, 0, 1), TWO: make_fit(args, rank, 2), APART: make_fit(args, 0, 1)}
    for fit in fits.values():
        fit.run_epoch()
    for turn in range(args.turns):
        for arm in (*ARMS[turn % 3 :], *ARMS[: turn % 3]):
            dist.barrier()
            if arm == ONE and rank:
                continue
            begun, spent = time.perf_counter(), time.process_time()
            fits[arm].run_epoch()
            wall, cpu = time.perf_counter() - begun, time.process_time() - spent
            results.put(Turn(arm, turn, args.images, wall, cpu))
    dist.destroy_process_group()


def measured(args: argparse.Namespace) -> list[Turn]:
    """All turns of both processes."""
    results = mp.get_context("spawn").Queue()
    mp.spawn(work, (free_port(), args, results), nprocs=2)
    return [results.get() for _ in range(args.turns * (1 + 2 + 2))]


def by_turn(turns: Sequence[Turn], arm: str) -> list[list[Turn]]:
    """The turns of an arm in their order, each with its one or two processes."""
    mine = [turn for turn in turns if turn.arm == arm]
    return [[turn for turn in mine if turn.turn == number] for number in range(1 + max(turn.turn for turn in mine))]


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--images", type=int, default=1280, help="of each worker's epoch (default %(default)s)")
    cli.add_argument("--size", type=int, default=128, help="side in pixels (default %(default)s)")
    cli.add_argument("--model", default="fracture_cnn", help="default %(default)s")
    cli.add_argument("--turns", type=int, default=15, help="of each of the three (default %(default)s)")
    cli.add_argument("--json", type=Path, default=HERE / "results" / "workers.json", help="default %(default)s")
    args = cli.parse_args()
    if len(os.sched_getaffinity(0)) < 2:
        print("skipped: two workers need two cores, and this process has one")
        return
    load = [os.getloadavg()[0]]
    turns = measured(args)
    load.append(os.getloadavg()[0])

    parts = {arm: by_turn(turns, arm) for arm in ARMS}
    rates = {arm: [sum(one.images / one.wall for one in both) for both in parts[arm]] for arm in ARMS}
    cpu = {
        arm: [1000 * sum(one.cpu for one in both) / sum(one.images for one in both) for both in parts[arm]]
        for arm in ARMS
    }
    share = median(one.cpu / one.wall for both in parts[APART] for one in both)
    pairs = {
        "two workers, over two apart": (rates[TWO], rates[APART]),
        "two workers, over twice one": (rates[TWO], [2 * rate for rate in rates[ONE]]),
        "two apart, over twice one": (rates[APART], [2 * rate for rate in rates[ONE]]),
        "CPU time of an image: two workers, over two apart": (cpu[TWO], cpu[APART]),
    }
    ratios = {name: [over / under for over, under in zip(*pair, strict=True)] for name, pair in pairs.items()}

    table = new_table("", "median", "lowest turn", "highest turn")
    for arm in ARMS:
        row = (median(rates[arm]), min(rates[arm]), max(rates[arm]))
        table.add_row(f"images a second, {arm}", *(f"{rate:.0f}" for rate in row))
    for arm in ARMS:
        row = (median(cpu[arm]), min(cpu[arm]), max(cpu[arm]))
        table.add_row(f"CPU ms of an image, {arm}", *(f"{each:.3f}" for each in row))
    for name, shares in ratios.items():
        table.add_row(name, f"{median(shares):.3f}", f"{min(shares):.3f}", f"{max(shares):.3f}")
    table.add_row("share of its core that a worker apart got", f"{share:.2f}", "", "")
    figures = {
        "settings": {name: value for name, value in vars(args).items() if name != "json"},
        "load": {"before": load[0], "after": load[1], "share_of_core": share},
        "medians": {name: median(shares) for name, shares in ratios.items()},
        "ratios": ratios,
        "rates": rates,
        "cpu_ms_per_image": cpu,
    }
    write_results(new_console(), "workers", table, figures, args.json)


if __name__ == "__main__":
    main()
