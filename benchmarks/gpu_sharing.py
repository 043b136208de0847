"""Many trials on one GPU: processes that each train one, streams of one process, and searches of `fracray.tune`."""

import json
import os
import queue
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from processes import server, timed
from rich.console import Console

from fracray.config import Config
from fracray.data.loading.draws import Pictures
from fracray.data.loading.gpu_stream import DeviceStream
from fracray.data.loading.plan import Batch, Plan
from fracray.training.loop import Fit

BATCH, STEPS = 64, 32  # of a small trial, and of an epoch of it
PATIENCE = 60.0  # longest wait, s, for the slowest process to be ready
SPACE = {
    "metric": "val_accuracy",
    "sampler": {"name": "random"},
    "scheduler": {"name": "none"},
    "space": {"model.dropout": {"float": [0.0, 0.7]}, "augment.rotate": {"float": [0, 30]}},
}


def plan_of(config: Config, images: np.ndarray, steps: int) -> Plan:
    """Epochs of `steps` complete batches over the images, which come as often as that takes."""
    val = np.arange(min(64, len(images)))
    return Plan(
        train_rows=np.resize(np.arange(len(images)), steps * config.train.batch_size),
        val_rows=val,
        val_sets={"val": val},
        labels=(np.arange(len(images)) % 3 == 0).astype(np.float32),
        pictures=Pictures.of_images(images),
        batch_size=config.train.batch_size,
        strengths=config.augment,
        seed=config.train.seed,
        shard_rows=512,
    )


def small_trial(size: int, graphs: bool, device: torch.device, seed: int, images: np.ndarray) -> Fit:
    """A trial of fracture_cnn, whose set is on the device; its steps are warmed up, or recorded."""
    config = Config().with_leaves(
        {
            "data.size": size,
            "train.batch_size": BATCH,
            "train.epochs": 10**6,
            "train.seed": seed,
            "train.graphs": "auto" if graphs else "off",
        }
    )
    fit = Fit(config, DeviceStream(plan_of(config, images, STEPS), images, device), device)
    train_epoch(fit)
    return fit


def noise(count: int, size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size), dtype=np.uint8)


def train_epoch(fit: Fit) -> None:
    """An epoch without its validation; the device has done it all when this returns."""
    fit._train_epoch(fit.epochs_done)
    fit.epochs_done += 1


# ---------------------------------------------------------------- processes


def time_processes(
    counts: Sequence[int], window: float, size: int, device: torch.device, console: Console, budget: float
) -> list[dict[str, Any]]:
    """Images a second of all together, for each number of processes; all are started once, and the others wait."""
    if not counts:
        return []
    until = time.perf_counter() + budget
    kinds = ("graphs", "eager") if device.type == "cuda" else ("eager",)
    stages = [(kind, count) for kind in kinds for count in sorted(counts)]
    context = server()
    barrier, results = context.Barrier(max(counts)), context.Queue()
    arguments = (stages, window, size, str(device), barrier, results)
    processes = [context.Process(target=_share, args=(index, *arguments), daemon=True) for index in range(max(counts))]
    for process in processes:
        process.start()
    rows: list[dict[str, Any]] = []
    try:
        for kind, count in stages:
            rates: list[float] = []
            while len(rates) < count:
                try:
                    rates.append(results.get(timeout=1))
                except queue.Empty:
                    if time.perf_counter() > until or any(process.exitcode for process in processes):
                        raise TimeoutError from None
            first = next((row for row in rows if row["steps"] == kind), None)
            rate = sum(rates)
            rows.append({"processes": count, "steps": kind, "images_per_second": rate, "each": rates})
            rows[-1]["ratio"] = rate / first["images_per_second"] if first else 1.0
            console.print(f"{count} process(es), {kind}: {rate:,.0f} images/s, {rows[-1]['ratio']:.2f} of the first")
    except TimeoutError:
        console.print("the processes did not come to an end: out of time, or one of them failed")
    finally:
        for process in processes:
            process.join(timeout=5 if len(rows) == len(stages) else 0)
            if process.is_alive():
                process.kill()
    return rows


def _share(
    index: int, stages: Sequence[tuple[str, int]], window: float, size: int, where: str, barrier: Any, results: Any
) -> None:
    torch.set_num_threads(1)
    device = torch.device(where)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    images = noise(1024, size)
    fits = {kind: small_trial(size, kind == "graphs", device, index, images) for kind, _ in stages}
    for kind, count in stages:
        barrier.wait(PATIENCE + window)
        if index < count:
            done, begun = 0, time.perf_counter()
            while time.perf_counter() - begun < window:
                train_epoch(fits[kind])
                done += STEPS * BATCH
            results.put(done / (time.perf_counter() - begun))
    barrier.wait(PATIENCE + window)


# ---------------------------------------------------------------- streams of one process


def time_streams(
    counts: Sequence[int], window: float, size: int, device: torch.device, console: Console, budget: float
) -> list[dict[str, Any]]:
    """Trials of one process, each with its steps as graphs on a stream of its own, in turn; images a second together.

    What could be reached without processes: their dropout is not reproducible here, as the trials share a generator.
    """
    rows: list[dict[str, Any]] = []
    if device.type != "cuda":
        return rows
    until = time.perf_counter() + budget
    images = noise(1024, size)
    fits = [small_trial(size, True, device, seed, images) for seed in range(max(counts, default=0))]
    streams = [torch.cuda.Stream(device) for _ in fits]
    for count in sorted(counts):
        if time.perf_counter() + window > until:
            break
        batches = [_endless(fit) for fit in fits[:count]]
        torch.cuda.synchronize(device)
        done, begun = 0, time.perf_counter()
        while time.perf_counter() - begun < window:
            for _ in range(STEPS):
                for fit, stream, batch in zip(fits, streams, batches, strict=False):
                    with torch.cuda.stream(stream):
                        fit._step(next(batch), 0)
            done += STEPS * BATCH * count
            torch.cuda.synchronize(device)  # else Python runs ahead of the device
        rate = done / (time.perf_counter() - begun)
        rows.append({"streams": count, "images_per_second": rate})
        rows[-1]["ratio"] = rate / rows[0]["images_per_second"]
        console.print(f"{count} stream(s) of one process: {rate:,.0f} images/s, {rows[-1]['ratio']:.2f} of the first")
    return rows


def _endless(fit: Fit) -> Iterator[Batch]:
    while True:
        yield from fit.stream.train(0)


# ---------------------------------------------------------------- searches


def time_searches(
    sharing: Sequence[int], trials: int, epochs: int, phantoms: int, on_gpu: bool, console: Console
) -> list[dict[str, Any]]:
    """A search for each number of trials at a time, augmented on the CPU and on the GPU; ratios are to the first."""
    rows: list[dict[str, Any]] = []
    if not sharing:
        return rows
    if find_spec("ray") is None:
        console.print("no searches: Ray is not installed here")
        return rows
    from fracray.data.prepare import prepare
    from fracray.runtime.ray_session import connect

    places = ("cpu", "gpu") if on_gpu else ("cpu",)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["FRACRAY_CACHE"] = str(Path(scratch) / "cache")
        space = Path(scratch) / "space.yaml"
        space.write_text(yaml.safe_dump({**SPACE, "trials": trials, "epochs": epochs}))
        with connect(None):  # the phantoms are drawn and ingested before the clock runs
            prepare(Config().with_leaves({"data.phantom.count": phantoms}).data, console)
        for at_once, place in product(sharing, places):
            seconds = timed(_search_command(on_gpu, phantoms, space, Path(scratch), at_once, place))
            rate = trials / seconds * 3600
            report = json.loads((Path(scratch) / "runs" / f"{place}-{at_once}" / "efficiency.json").read_text())
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


def _search_command(on_gpu: bool, phantoms: int, space: Path, scratch: Path, at_once: int, place: str) -> list[str]:
    """The search's command; its trials share the machine's cores and its GPU."""
    share = 1 / at_once
    cpus = np.floor(len(os.sched_getaffinity(0)) * share * 100) / 100
    words = ["--space", str(space), "--storage", str(scratch / "runs"), "--name", f"{place}-{at_once}"]
    words += ["--concurrent", str(at_once), "--cpus-per-trial", f"{cpus:g}"]
    words += ["--set", f"data.phantom.count={phantoms}", "--set", f"data.augment_on={place}"]
    if on_gpu:
        words += ["--gpus-per-trial", f"{np.floor(share * 1e4) / 1e4:g}"]
    return [sys.executable, "-m", "fracray.tune", *words]
