"""Whether cost per radiograph stays what it is while a set grows a hundredfold: ingest, second start, epochs, memory.

Drawing 400,000 phantoms would take hours. A few hundred are drawn and shrunk; each picture of the set is one of them,
turned, zoomed and shifted at random, under a random smooth shadow and its own noise, so that no two are duplicates
or near duplicates. What is trained on them does not matter here: nothing is scored.
"""

import argparse
import csv
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import cv2
import numpy as np
import torch
from processes import PeakMemory, cpu_seconds, cpu_spent
from table import write_results

from fracray.config import Config
from fracray.data.loading.ingest import ingest
from fracray.data.loading.plan import make_plan
from fracray.data.loading.streams import MemoryStream, RayStream
from fracray.data.phantom.draw import draw_phantom
from fracray.data.prepare import Prepared, examined, prepare
from fracray.data.sources.fracatlas import FLAGS, FOLDERS
from fracray.runtime.console import new_console, new_table
from fracray.runtime.ray_session import connect
from fracray.runtime.storage import Folder
from fracray.training.loop import Fit

HERE = Path(__file__).parent
ORIGINALS = 200
WRITTEN_AT_ONCE = 2_000
EPOCHS = 2  # of each stream, whose start counts
STARTS = 3
WARM = 10_000


# ---------------------------------------------------------------- the set


@dataclass(frozen=True)
class Original:
    """A phantom, shrunk to (side, side) uint8, and the columns of its row."""

    image: np.ndarray
    flags: tuple[int, ...]


def draw_original(index: int, side: int) -> Original:
    cv2.setNumThreads(1)
    drawn = draw_phantom(index, seed=0)
    said = {drawn.study.region, drawn.view} | {name for name in ("hardware", "multiscan") if getattr(drawn, name)}
    said |= {"fractured"} if drawn.label else set()
    image = cv2.resize(drawn.image, (side, side), interpolation=cv2.INTER_AREA)
    return Original(image, tuple(int(flag in said) for flag in FLAGS))


def copy_of(original: Original, number: int) -> np.ndarray:
    """The picture of this number, which no other picture is a near duplicate of: (side, side) uint8."""
    rng = np.random.default_rng(number)
    side = len(original.image)
    warp = np.asarray(cv2.getRotationMatrix2D((side / 2, side / 2), rng.uniform(0, 360), rng.uniform(0.7, 1.4)), float)
    warp[:, 2] += rng.uniform(-side / 6, side / 6, 2)
    image = cv2.warpAffine(original.image, warp, (side, side), borderMode=cv2.BORDER_REFLECT).astype(np.float32)
    clouds = rng.uniform(-70, 70, (6, 6)).astype(np.float32)
    image = image + cv2.resize(clouds, (side, side), interpolation=cv2.INTER_CUBIC)
    return np.clip(image + rng.normal(0, 5, image.shape), 0, 255).astype(np.uint8)


def write_pictures(numbers: range, originals: list[Original], images: Path) -> list[tuple[object, ...]]:
    """Save pictures of these numbers in their class folders; returns the rows of dataset.csv."""
    cv2.setNumThreads(1)
    fractured = FLAGS.index("fractured")
    rows: list[tuple[object, ...]] = []
    for number in numbers:
        original = originals[number % len(originals)]
        name = f"IMG{number:07d}.jpg"
        data = cv2.imencode(".jpg", copy_of(original, number), [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
        (images / FOLDERS[original.flags[fractured]] / name).write_bytes(data.tobytes())
        rows.append((name, *original.flags))
    return rows


def write_set(root: Path, count: int, side: int) -> Path:
    """A folder in FracAtlas' layout with `count` pictures of `side` px."""
    for name in FOLDERS:
        (root / "images" / name).mkdir(parents=True)
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        originals = list(pool.map(partial(draw_original, side=side), range(ORIGINALS), chunksize=10))
        parts = [range(first, min(first + WRITTEN_AT_ONCE, count)) for first in range(0, count, WRITTEN_AT_ONCE)]
        rows = pool.map(partial(write_pictures, originals=originals, images=root / "images"), parts)
        with (root / "dataset.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(("image_id", *FLAGS))
            for written in rows:
                table.writerows(written)
    return root


# ---------------------------------------------------------------- what it costs


@dataclass(frozen=True)
class Cost:
    """What a set of `images` costs: wall seconds, CPU seconds of all processes, and bytes at their peak."""

    images: int
    used: int
    draw: float
    examine: float
    examine_cpu: float
    ingest: float
    ingest_cpu: float
    divide: float
    second_start: float
    second_start_cpu: float
    memory_epoch: float
    memory_epoch_cpu: float
    ray_epoch: float
    ray_epoch_cpu: float
    idle_bytes: int
    examine_bytes: int
    ingest_bytes: int
    second_start_bytes: int
    memory_epoch_bytes: int
    ray_epoch_bytes: int
    decoded_bytes: int


@dataclass(frozen=True)
class Spent:
    seconds: float
    cpu: float
    peak: int


def measure(work: Callable[[], object]) -> Spent:
    with PeakMemory() as memory:
        before, begun = cpu_seconds(), time.perf_counter()
        work()
        seconds = time.perf_counter() - begun
        spent = cpu_spent(before, cpu_seconds())
    return Spent(seconds, spent, memory.peak)


def cost_of(count: int, size: int, scratch: Path) -> Cost:
    """Draw a set, prepare it twice, and train on it; in a separate process, whose memory can be measured."""
    begun = time.perf_counter()
    root = write_set(scratch / "set", count, size)
    draw = time.perf_counter() - begun
    config = Config().with_leaves(
        {
            "data.source": str(root),
            "data.size": size,
            "data.cache": str(scratch / "cache"),
            "model.width": 4,
            "train.batch_size": 256,
            "train.epochs": EPOCHS,
        }
    )
    console = new_console()
    torch.set_num_threads(1)  # so small a network gains nothing by two, which wait for one another
    with connect(None):
        idle = measure(lambda: time.sleep(1)).peak
        looked = measure(lambda: examined(config.data, console))
        decoded = _ingested(config, scratch)
        divided = measure(lambda: prepare(config.data, console))
        starts = [measure(lambda: prepare(config.data, console)) for _ in range(STARTS)]
        prepared = prepare(config.data, console)
        epochs = {}
        for name in ("memory", "ray"):
            fit = Fit(config, _stream(name, config, prepared))
            epochs[name] = measure(partial(_train, fit))
    return Cost(
        images=count,
        used=prepared.flow.used,
        draw=draw,
        examine=looked.seconds,
        examine_cpu=looked.cpu,
        ingest=decoded.seconds,
        ingest_cpu=decoded.cpu,
        divide=divided.seconds,
        second_start=median(one.seconds for one in starts),
        second_start_cpu=median(one.cpu for one in starts),
        memory_epoch=epochs["memory"].seconds / EPOCHS,
        memory_epoch_cpu=epochs["memory"].cpu / EPOCHS,
        ray_epoch=epochs["ray"].seconds / EPOCHS,
        ray_epoch_cpu=epochs["ray"].cpu / EPOCHS,
        idle_bytes=idle,
        examine_bytes=looked.peak,
        ingest_bytes=decoded.peak,
        second_start_bytes=max(one.peak for one in starts),
        memory_epoch_bytes=epochs["memory"].peak,
        ray_epoch_bytes=epochs["ray"].peak,
        decoded_bytes=prepared.shards.nbytes,
    )


def _ingested(config: Config, scratch: Path) -> Spent:
    manifest = examined(config.data, new_console())
    # Ray's workers start and import once, whatever the size of the set.
    ingest(replace(manifest, table=manifest.used.iloc[:WARM]), config.data.size, Folder(scratch / "warm"))
    return measure(lambda: ingest(manifest, config.data.size, Folder(scratch / "cache")))


def _train(fit: Fit) -> None:
    for _ in range(EPOCHS):
        fit.run_epoch()


def _stream(name: str, config: Config, prepared: Prepared) -> MemoryStream | RayStream:
    plan = make_plan(config, prepared.table, prepared.shards)
    if name == "memory":
        return MemoryStream(plan, prepared.shards.load(), EPOCHS)
    return RayStream(plan, prepared.shards, EPOCHS)


# ---------------------------------------------------------------- the table


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument(
        "--counts",
        default="4000,40000,400000",
        help="sizes, separated by commas (default %(default)s, which takes 3 GB of disk and a quarter of an hour)",
    )
    cli.add_argument("--size", type=int, default=32, help="side of the pictures, px (default %(default)s)")
    cli.add_argument("--scratch", type=Path, help="folder for the sets (default the system's for temporary files)")
    cli.add_argument("--json", type=Path, default=HERE / "results" / "scale.json", help="default %(default)s")
    args = cli.parse_args()
    console = new_console()
    costs: list[Cost] = []
    for count in map(int, args.counts.split(",")):
        scratch = Path(tempfile.mkdtemp(dir=args.scratch))
        try:
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as alone:
                costs.append(alone.submit(cost_of, count, args.size, scratch).result())
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        console.print(f"{costs[-1]}", soft_wrap=True)
    table = new_table("")
    for cost in costs:
        table.add_column(f"{cost.images:,}", justify="right")
    table.add_column("last / first", justify="right")
    per_image = {
        "examine": "examine, µs an image",
        "ingest": "ingest, µs an image",
        "divide": "groups, parts, baselines, µs an image",
        "memory_epoch": "epoch from memory, µs an image",
        "ray_epoch": "epoch by Ray Data, µs an image",
    }
    for name, words in per_image.items():
        for kind, suffix in ((words, ""), ("  of CPU", "_cpu")):
            if hasattr(costs[0], name + suffix):
                values = [getattr(cost, name + suffix) / cost.images * 1e6 for cost in costs]
                table.add_row(kind, *(f"{value:,.0f}" for value in values), f"{values[-1] / values[0]:.2f}")
    for name, words in (("second_start", "second start, s"), ("second_start_cpu", "  of CPU")):
        table.add_row(words, *(f"{getattr(cost, name):.2f}" for cost in costs), "")
    memory = {
        "idle": "memory before, MiB",
        "examine": "  peak of examine",
        "ingest": "  peak of ingest",
        "second_start": "  peak of the second start",
        "memory_epoch": "  peak of epochs from memory",
        "ray_epoch": "  peak of epochs by Ray Data",
        "decoded": "the decoded set, MiB",
    }
    for name, words in memory.items():
        table.add_row(words, *(f"{getattr(cost, f'{name}_bytes') / 2**20:,.0f}" for cost in costs), "")
    settings = {"counts": args.counts, "size": args.size, "originals": ORIGINALS, "cores": len(os.sched_getaffinity(0))}
    write_results(console, "scale", table, {"settings": settings, "sets": [asdict(cost) for cost in costs]}, args.json)


if __name__ == "__main__":
    main()
