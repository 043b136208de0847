"""Images per second of two DDP workers against one, the batch of each worker fixed, each pinned to its own core.

Every worker runs fracray's own loop over its part of the set, augmentation included; the gradients are averaged by
gloo over loopback. The processes start before the clock does. In turn with them, two workers run separate trainings:
what those lose against twice one worker is not due to the averaging but to the machine, whose cores share caches and
memory.
"""

import argparse
import os
import socket
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from epoch import make_plan
from table import write_results

from fracray.config import Config
from fracray.data.loading.streams import MemoryStream
from fracray.runtime.console import new_console, new_table
from fracray.training.loop import Fit
from fracray.training.workers import use_cores

HERE = Path(__file__).parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def work(
    rank: int, world: int, port: int, images: int, size: int, epochs: int, cores: list[int], results: mp.Queue
) -> None:
    """One worker: `epochs` epochs and one before them, which pays for what is set up once."""
    os.sched_setaffinity(0, {cores[rank]})
    if world > 1:
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    batch = Config().train.batch_size * world
    config = Config().with_leaves(
        {"train.epochs": epochs + 1, "train.batch_size": batch, "data.size": size}, "benchmark"
    )
    pixels = np.random.default_rng(0).integers(0, 255, (images, size, size), dtype=np.uint8)
    plan = make_plan(config, pixels, rank, world)
    use_cores(config, 1)
    fit = Fit(config, MemoryStream(plan, pixels, config.train.epochs), torch.device("cpu"))
    fit.run_epoch()
    for _ in range(epochs):
        if world > 1:
            dist.barrier()
        begun = time.perf_counter()
        fit.run_epoch()
        if rank == 0:
            results.put(len(plan.train_rows) / (time.perf_counter() - begun))
    if world > 1:
        dist.destroy_process_group()


def rate(world: int, args: argparse.Namespace, apart: bool = False) -> float:
    """Images per second of `world` workers together, in one training or each in its own; the median epoch."""
    context = mp.get_context("spawn")
    results = context.Queue()
    cores = sorted(os.sched_getaffinity(0))
    settings = (free_port(), args.images, args.size, args.epochs)
    if apart:
        jobs = [(0, 1, *settings, [core], results) for core in cores[:world]]
    else:
        jobs = [(rank, world, *settings, cores, results) for rank in range(world)]
    workers = [context.Process(target=work, args=job) for job in jobs]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        if worker.exitcode:
            raise SystemExit(f"a worker of {world} ended with {worker.exitcode}")
    counted = [results.get() for _ in range(args.epochs * (world if apart else 1))]
    return median(counted) * (world if apart else 1)


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--images", type=int, default=2562, help="in memory, all but two train (default %(default)s)")
    cli.add_argument("--size", type=int, default=128, help="side in pixels (default %(default)s)")
    cli.add_argument("--epochs", type=int, default=4, help="of each turn (default %(default)s)")
    cli.add_argument("--turns", type=int, default=3, help="of one and of two workers (default %(default)s)")
    cli.add_argument("--json", type=Path, default=HERE / "results" / "workers.json", help="default %(default)s")
    args = cli.parse_args()
    if len(os.sched_getaffinity(0)) < 2:
        print("skipped: two workers need two cores, and this process has one")
        return
    turns: dict[str, list[float]] = {"one worker": [], "two workers": [], "two apart": []}
    for _ in range(args.turns):
        turns["one worker"].append(rate(1, args))
        turns["two workers"].append(rate(2, args))
        turns["two apart"].append(rate(2, args, apart=True))
    table = new_table("", "images per second", "slowest turn", "fastest turn")
    for name, rates in turns.items():
        table.add_row(name, f"{median(rates):.0f}", f"{min(rates):.0f}", f"{max(rates):.0f}")
    ratios = {
        name: [two / (2 * one) for one, two in zip(turns["one worker"], turns[name], strict=True)]
        for name in ("two workers", "two apart")
    }
    for name, shares in ratios.items():
        table.add_row(f"{name}, over twice one", f"{median(shares):.3f}", f"{min(shares):.3f}", f"{max(shares):.3f}")
    settings = {"images": args.images, "size": args.size, "epochs": args.epochs, "turns": args.turns}
    figures = {"settings": settings, "ratio": median(ratios["two workers"]), "ratios": ratios, "rates": turns}
    write_results(new_console(), "workers", table, figures, args.json)


if __name__ == "__main__":
    main()
