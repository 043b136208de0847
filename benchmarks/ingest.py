"""How fast radiographs are ingested: fracray's Ray Data stage against OpenCV's decoder alone on all cores.

The plain alternative does as little as can be done: the files' bytes are in the memory of a pool of processes, one a
core, each decodes (`cv2.imdecode` to gray), resizes into the square, and forgets the result; once at full scale, as
one would write it, and once at the reduced scale at which fracray decodes. fracray reads the files, decodes and judges
them in Ray Data's tasks, and writes shards to disk.
"""

import argparse
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from processes import PeakMemory, cpu_seconds, cpu_spent
from table import write_results

from fracray.config import DataConfig
from fracray.data.images.jpeg import REDUCED
from fracray.data.images.letterbox import letterbox
from fracray.data.images.square import reduction_for
from fracray.data.loading.ingest import ingest
from fracray.data.manifest import Manifest
from fracray.data.prepare import examined
from fracray.data.sources.import_rows import ImportOptions
from fracray.data.sources.import_set import import_set
from fracray.runtime.console import new_console, new_table
from fracray.runtime.ray_session import connect
from fracray.runtime.storage import Folder


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/ingest.py",
        description="Images per second of fracray's ingest (Ray Data: read, decode, resize, write shards) and of "
        "cv2.imdecode with the resize alone, on all cores, interleaved. 'ratio' is ingest over OpenCV, with the "
        "worker processes up; 'same scale' is that over OpenCV at ingest's own reduced scale, 'CPU ratio' the same of "
        "the CPU time an image takes, which other work on the machine disturbs less; 'first' is the first ingest "
        "after Ray's start, its processes' imports included.",
    )
    parser.add_argument(
        "--data", default=os.environ.get("FRACRAY_FRACATLAS"), help="FracAtlas' folder; default $FRACRAY_FRACATLAS"
    )
    parser.add_argument("--fullres", help="a folder of full-size JPEGs in a folder per class; left out where not given")
    parser.add_argument("--size", type=int, default=128, help="side of the squares, px (default 128)")
    parser.add_argument("--seconds", type=float, default=12.0, help="files are repeated until OpenCV takes this long")
    parser.add_argument("--repetitions", type=int, default=5, help="of each of the two, in turn (default 5)")
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "ingest.json")
    return parser


# ---------------------------------------------------------------- OpenCV alone

WORKER_NICENESS = 15  # Ray's default for its workers: on a machine with other work both get the same low priority

_held: list[tuple[bytes, int]] = []


def _hold(paths: list[tuple[str, int]]) -> None:
    os.nice(WORKER_NICENESS)
    cv2.setNumThreads(1)
    _held[:] = [(Path(path).read_bytes(), side) for path, side in paths]


def _decode(numbers: range, size: int, reduce: bool) -> float:
    """CPU seconds spent."""
    begun = time.process_time()
    for number in numbers:
        data, side = _held[number % len(_held)]
        flag = REDUCED[reduction_for(side, size) if reduce else 1]
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
        assert image is not None
        letterbox(image, size)
    return time.process_time() - begun


class Pool:
    """OpenCV alone, in one process a core, which holds the bytes of all files already."""

    def __init__(self, manifest: Manifest, size: int) -> None:
        used = manifest.used
        sides = used[["width", "height"]].max(axis=1).tolist()
        paths = [(str(manifest.root / path), side) for path, side in zip(used["path"], sides, strict=True)]
        self._size, self._cores = size, len(os.sched_getaffinity(0))
        self._pool = multiprocessing.get_context("spawn").Pool(self._cores, _hold, (paths,))
        self.seconds(64 * self._cores, reduce=True)  # until they are up

    def seconds(self, count: int, reduce: bool) -> tuple[float, float]:
        """Wall and CPU time for `count` images."""
        step = max(1, min(64, count // (8 * self._cores)))
        begun = time.perf_counter()
        parts = [(range(first, min(first + step, count)), self._size, reduce) for first in range(0, count, step)]
        spent = sum(self._pool.starmap(_decode, parts, chunksize=1))
        return time.perf_counter() - begun, spent

    def close(self) -> None:
        self._pool.terminate()
        self._pool.join()


# ---------------------------------------------------------------- the comparison


@dataclass(frozen=True)
class Figures:
    """Images per second, and bytes; the lists hold a value per repetition."""

    images: int
    plain: list[float]  # OpenCV at full scale
    alone: list[float]  # OpenCV at the scale of ingest
    warm: list[float]
    alone_cpu: list[float]  # seconds an image
    warm_cpu: list[float]
    first: float
    memory_before: int
    memory_peak: int
    decoded_bytes: int

    @property
    def ratios(self) -> list[float]:
        return [ours / theirs for ours, theirs in zip(self.warm, self.plain, strict=True)]

    @property
    def same_scale(self) -> list[float]:
        return [ours / theirs for ours, theirs in zip(self.warm, self.alone, strict=True)]

    @property
    def cpu_ratios(self) -> list[float]:
        """Of the CPU time that ingest takes an image, the share that OpenCV alone takes."""
        return [theirs / ours for ours, theirs in zip(self.warm_cpu, self.alone_cpu, strict=True)]


def repeated(manifest: Manifest, times: int) -> Manifest:
    """The used radiographs of a set, `times` over under new ids: the same files, and more work."""
    copies = [manifest.used.assign(image_id=manifest.used["image_id"] + f"-{copy}") for copy in range(times)]
    return replace(manifest, table=pd.concat(copies, ignore_index=True))


def compare(manifest: Manifest, size: int, seconds: float, repetitions: int, say: Callable[[str], None]) -> Figures:
    """Ingest and pool in turn over the same images."""
    count = len(manifest.used)
    with tempfile.TemporaryDirectory() as scratch, connect(None):
        begun = time.perf_counter()
        ingest(manifest, size, Folder(scratch))
        first = time.perf_counter() - begun
        shutil.rmtree(Path(scratch) / "shards")
        pool = Pool(manifest, size)
        try:
            trial = min(count, 2_000)
            times = max(1, round(seconds / (pool.seconds(trial, reduce=True)[0] / trial) / count))
            many = repeated(manifest, times)
            total = times * count
            say(f"{count:,} images, {times} times over")
            plain, alone, warm, alone_cpu, warm_cpu = [], [], [], [], []
            for turn in range(repetitions):
                plain.append(total / pool.seconds(total, reduce=False)[0])
                wall, cpu = pool.seconds(total, reduce=True)
                alone.append(total / wall)
                alone_cpu.append(cpu / total)
                before, begun = cpu_seconds(), time.perf_counter()
                shards = ingest(many, size, Folder(scratch))
                warm.append(total / (time.perf_counter() - begun))
                warm_cpu.append(cpu_spent(before, cpu_seconds()) / total)
                assert shards.count == total
                shutil.rmtree(shards.folder.location)
                speeds = f"OpenCV {plain[-1]:,.0f}/s, reduced {alone[-1]:,.0f}/s, ingest {warm[-1]:,.0f}/s"
                say(f"  turn {turn + 1}: {speeds}")
        finally:
            pool.close()
        with PeakMemory() as memory:  # in a separate turn, because measuring memory takes time
            ingest(many, size, Folder(scratch))
    return Figures(
        total, plain, alone, warm, alone_cpu, warm_cpu, count / first, memory.before, memory.peak, total * size * size
    )


def main() -> None:
    args = parser().parse_args()
    console = new_console()
    sets: dict[str, Manifest] = {}
    with tempfile.TemporaryDirectory() as scratch:
        if args.data:
            sets["FracAtlas"] = examined(DataConfig(source=args.data, cache=scratch), console)
        if args.fullres:
            sets["full size"] = import_set(args.fullres, Path(scratch) / "fullres", ImportOptions())
        if not sets:
            console.print("no radiographs: give --data or --fullres")
            return
        found = {}
        for name, manifest in sets.items():
            console.print(f"{name} at {args.size} px")
            found[name] = compare(manifest, args.size, args.seconds, args.repetitions, console.print)
    table = new_table("set")
    for heading in (
        "images",
        "OpenCV /s",
        "ingest /s",
        "ratio",
        "[min, max]",
        "same scale",
        "CPU ratio",
        "first /s",
        "peak MiB",
        "before MiB",
    ):
        table.add_column(heading, justify="right")
    for name, one in found.items():
        low, high = min(one.ratios), max(one.ratios)
        speeds = [f"{statistics.median(values):,.0f}" for values in (one.plain, one.warm)]
        ratio = (
            f"{statistics.median(one.ratios):.2f}",
            f"[{low:.2f}, {high:.2f}]",
            f"{statistics.median(one.same_scale):.2f}",
            f"{statistics.median(one.cpu_ratios):.2f}",
        )
        memory = [f"{value / 2**20:,.0f}" for value in (one.memory_peak, one.memory_before)]
        table.add_row(name, f"{one.images:,}", *speeds, *ratio, f"{one.first:,.0f}", *memory)
    figures = {
        "settings": {"size": args.size, "seconds": args.seconds, "repetitions": args.repetitions},
        "sets": {
            name: asdict(one) | {"ratios": one.ratios, "same_scale": one.same_scale, "cpu_ratios": one.cpu_ratios}
            for name, one in found.items()
        },
    }
    write_results(console, "ingest", table, figures, args.json)


if __name__ == "__main__":
    main()
