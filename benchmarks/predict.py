"""How fast radiographs are predicted on: fracray.predict against decoding and forward passes alone on all cores.

The plain alternative does as little as can be done: a pool of processes, one a core, holds the network and the bytes
of the files; each decodes (`cv2.imdecode` to gray), resizes into the square, passes batches through the network and
forgets the logits; once at full scale, as one would write it, and once at the reduced scale at which fracray decodes
for the square. fracray reads the files, decodes at the reduced scale, judges each picture by a small copy, and decodes
it whole where that leaves a doubt (exposure, copies of the training's, distance), and writes rows.
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from processes import cpu_seconds, cpu_spent
from table import write_results

from fracray.data.images.jpeg import REDUCED
from fracray.data.images.letterbox import letterbox
from fracray.data.images.square import reduction_for
from fracray.evaluation.inference import BATCH, network
from fracray.prediction.inputs import Picture, find_pictures
from fracray.prediction.parts import About, Target, open_parts
from fracray.prediction.running import predict_pictures
from fracray.prediction.scoring import Asked, slim
from fracray.runtime.console import new_console, new_table
from fracray.runtime.ray_session import connect
from fracray.training.checkpoint import load_checkpoint

WORKER_NICENESS = 15  # Ray's default for its workers: on a machine with other work both get the same low priority

_held: list[tuple[bytes, int]] = []
_network: list[Any] = []


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/predict.py",
        description="Images per second of fracray.predict from files (the time from its first finished rows to its "
        "last) and of decoding with forward passes alone, on all cores, in turn. 'ratio' is predict over those at full "
        "scale, 'same scale' over those at the reduced scale; 'CPU ratio' is 'ratio' in the CPU time an image takes, "
        "which other work on the machine disturbs less; 'with start' counts predict's processes and imports too.",
    )
    parser.add_argument("checkpoint", help="a checkpoint folder")
    parser.add_argument("--data", default=os.environ.get("FRACRAY_FRACATLAS"), help="a folder; $FRACRAY_FRACATLAS")
    parser.add_argument("--images", type=int, default=4000, help="files are repeated up to this number (default 4000)")
    parser.add_argument("--repetitions", type=int, default=3, help="of each, in turn (default 3)")
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "predict.json")
    return parser


# ---------------------------------------------------------------- decoding and forward passes alone


def _hold(paths: list[str], checkpoint: str) -> None:
    import torch

    os.nice(WORKER_NICENESS)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    for path in paths:
        data = Path(path).read_bytes()
        found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
        if found is not None:
            _held.append((data, max(found.shape)))
    _network.append((network(load_checkpoint(checkpoint)), load_checkpoint(checkpoint).metadata.config.data.size))


def _score(numbers: range, reduce: bool) -> float:
    """CPU seconds spent."""
    begun = time.process_time()
    run, size = _network[0]
    squares = []
    for number in numbers:
        data, side = _held[number % len(_held)]
        flag = REDUCED[reduction_for(side, size) if reduce else 1]
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
        assert picture is not None
        squares.append(letterbox(picture, size))
    run(np.stack(squares))
    return time.process_time() - begun


def alone(pool: Pool, count: int, reduce: bool) -> tuple[float, float]:
    """Images per second, and CPU seconds an image."""
    begun = time.perf_counter()
    parts = [(range(first, min(first + BATCH, count)), reduce) for first in range(0, count, BATCH)]
    spent = sum(pool.starmap(_score, parts, chunksize=1))
    return count / (time.perf_counter() - begun), spent / count


# ---------------------------------------------------------------- predict


def predicted(pictures: list[Picture], checkpoint: Path, geometry: tuple[int, bool]) -> tuple[float, float, float]:
    """Images per second between its first rows and its last; the same with its start; CPU seconds an image."""
    marks: list[tuple[float, int]] = []
    spent: list[dict[int, float]] = []
    with tempfile.TemporaryDirectory() as scratch:
        about = About("", "", len(pictures), 0.9, "", "", "")
        with open_parts(Target.of(f"{scratch}/out.csv"), about, anew=False) as parts:
            begun = time.perf_counter()

            def keep(rows: pa.Table) -> None:
                parts.keep(slim(rows))
                spent.append(cpu_seconds())
                marks.append((time.perf_counter(), len(rows)))

            done = np.zeros(len(pictures), dtype=bool)
            predict_pictures(pictures, done, checkpoint, geometry, Asked(), keep, lambda done, total: None)
    steady = sum(rows for _, rows in marks[1:])
    seconds = marks[-1][0] - marks[0][0]
    return steady / seconds, len(pictures) / (marks[-1][0] - begun), cpu_spent(spent[0], spent[-1]) / steady


def main() -> None:
    args = parser().parse_args()
    console = new_console()
    if not args.data:
        console.print("no radiographs: give --data")
        return
    with tempfile.TemporaryDirectory() as scratch:
        found = find_pictures([args.data], Path(scratch), lambda done, total: None).pictures
    pictures = [found[number % len(found)] for number in range(args.images)]
    config = load_checkpoint(args.checkpoint).metadata.config.data
    cores = len(os.sched_getaffinity(0))
    figures: dict[str, list[float]] = {name: [] for name in ("full", "reduced", "predict", "with_start")}
    cpu: dict[str, list[float]] = {name: [] for name in ("full", "reduced", "predict")}
    files = [one.file for one in found[: args.images]]
    with (
        connect(None),
        multiprocessing.get_context("spawn").Pool(cores, _hold, (files, args.checkpoint)) as pool,
    ):
        alone(pool, cores * BATCH, reduce=True)  # until they are up
        for turn in range(args.repetitions):
            for name, reduce in (("full", False), ("reduced", True)):
                speed, spent = alone(pool, args.images, reduce)
                figures[name].append(speed)
                cpu[name].append(spent)
            steady, whole, spent = predicted(pictures, Path(args.checkpoint).absolute(), (config.size, config.crop))
            figures["predict"].append(steady)
            figures["with_start"].append(whole)
            cpu["predict"].append(spent)
            speeds = ", ".join(f"{name} {values[-1]:,.0f}/s" for name, values in figures.items())
            console.print(f"  turn {turn + 1}: {speeds}")
    ratios = {
        "ratio": [ours / plain for ours, plain in zip(figures["predict"], figures["full"], strict=True)],
        "same_scale": [ours / plain for ours, plain in zip(figures["predict"], figures["reduced"], strict=True)],
        "cpu_ratio": [plain / ours for ours, plain in zip(cpu["predict"], cpu["full"], strict=True)],
    }
    table = new_table("images")
    for heading in ("alone /s", "alone, reduced /s", "predict /s", "with start /s", "ratio", "same scale", "CPU ratio"):
        table.add_column(heading, justify="right")
    medians = [f"{statistics.median(values):,.0f}" for values in figures.values()]
    table.add_row(f"{args.images:,}", *medians, *(f"{statistics.median(values):.2f}" for values in ratios.values()))
    settings = {"images": args.images, "size": config.size, "crop": config.crop}
    write_results(console, "predict", table, {"settings": settings, "speeds": figures, "cpu": cpu, **ratios}, args.json)


if __name__ == "__main__":
    main()
