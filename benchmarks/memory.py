"""What it brings that freed memory is kept: steps and forward passes of a network on a CPU, by how the C library does.

Each way runs in processes of its own, in turn, as these settings cannot be taken back: memory as glibc has it; kept
(`fracray.runtime.memory.keep_freed_memory`), as in a trial, `predict`, `evaluate` and `serve`; and kept for work that
is done in a thread, as Ray Train's workers do it, with the thread's own arena and with one for all (ONE_ARENA).
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from table import write_results
from transfer import LOOKS, looks, ways

from fracray.runtime.console import new_console, new_table
from fracray.runtime.memory import ONE_ARENA, keep_freed_memory

HERE = Path(__file__).parent
STEP, FORWARD = "fracray", f"{LOOKS}fracray"  # of `transfer.py`
GLIBC, KEPT, THREAD, ONE = "as glibc has it", "kept", "kept, in a thread", "kept, in a thread, one arena"
WAYS = (GLIBC, KEPT, THREAD, ONE)


def measured(args: argparse.Namespace) -> dict[str, float]:
    """Milliseconds an image in this process, the median of the rounds, of a step and of a forward pass."""
    found: dict[str, float] = {}

    def run() -> None:
        torch.set_num_threads(args.threads)
        made: tuple[tuple[str, Callable[[str, int, int], Any], int], ...] = (
            (STEP, ways, args.batch),
            (FORWARD, looks, 2 * args.batch),
        )
        for name, make, batch in made:
            step = make(args.network, args.size, batch)[name]
            step()
            seconds = []
            for _ in range(args.rounds):
                begun = time.perf_counter()
                step()
                seconds.append(time.perf_counter() - begun)
            found[name] = 1000 * median(seconds) / batch

    if args.way != GLIBC:
        keep_freed_memory()
    if args.way in (THREAD, ONE):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    else:
        run()
    return found


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--network", default="tf_efficientnet_lite0", help="(default %(default)s)")
    cli.add_argument("--size", type=int, default=224, help="side of the images in pixels (default %(default)s)")
    cli.add_argument("--batch", type=int, default=32, help="images of a step; a forward pass has twice as many")
    cli.add_argument("--rounds", type=int, default=5, help="timed in each process (default %(default)s)")
    cli.add_argument("--turns", type=int, default=3, help="processes of each way (default %(default)s)")
    cli.add_argument("--threads", type=int, default=1, help="Torch's threads (default %(default)s)")
    cli.add_argument("--json", type=Path, default=HERE / "results/memory.json")
    cli.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)  # of one of the processes
    args = cli.parse_args()
    if args.way:
        print(json.dumps(measured(args)))
        return
    words = [f"--{name}={getattr(args, name)}" for name in ("network", "size", "batch", "rounds", "threads")]
    times: dict[str, dict[str, list[float]]] = {way: {STEP: [], FORWARD: []} for way in WAYS}
    for _ in range(args.turns):
        for way in WAYS:
            environment = {**os.environ, **(ONE_ARENA if way == ONE else {})}
            command = [sys.executable, __file__, *words, f"--way={way}"]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
            for name, value in json.loads(done.stdout).items():
                times[way][name].append(value)
    table = new_table("memory", "step, ms an image", "ratio", "forward pass, ms an image", "ratio")
    for way, mine in times.items():
        cells = []
        for name in (STEP, FORWARD):
            ratios = [own / plain for own, plain in zip(mine[name], times[GLIBC][name], strict=True)]
            cells += [f"{median(mine[name]):.2f}", f"{median(ratios):.2f}"]
        table.add_row(way, *cells)
    names = ("network", "size", "batch", "rounds", "turns", "threads")
    settings = {name: getattr(args, name) for name in names}
    write_results(new_console(), "memory", table, {"settings": settings, "ms_an_image": times}, args.json)


if __name__ == "__main__":
    main()
