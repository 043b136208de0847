"""What each step of a recipe brings on real radiographs, alone: trainings that differ in one step, on grouped folds.

`pack` prepares a data set once: its radiographs as squares, its table, its folds and what the no-pixel predictors reach
on each. `run` needs neither Ray nor the data set, so that it runs on a machine that has a GPU and little else: several
processes share the device, and each trains one recipe on one fold at a time with `fracray.training.loop.Fit`. Every
fold is test once and validation once. The epoch, the calibration and the threshold are chosen on validation. `show`
prints each recipe's mean over the folds and its difference from the first recipe, on the same images. With
`--rotations`, a fold has several models, each validated on another one of the other folds; together they are an
ensemble, as of `fracray.refit --members folds`. `cost` says how long a training of each recipe takes on this machine,
from an epoch on a share of the images.
"""

import argparse
import json
import math
import os
import queue
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
import yaml
from processes import end_with_parent, server
from table import write_results

from fracray.config import Config
from fracray.data.images.kept import KEPT
from fracray.data.loading.gpu_stream import DeviceStream
from fracray.data.loading.plan import Plan, make_plan
from fracray.data.loading.shards import ShardFile, Shards
from fracray.data.loading.streams import MemoryStream
from fracray.data.manifest import in_set
from fracray.metrics import (
    Array,
    GroupJackknife,
    Interval,
    auroc_over_folds,
    choose_threshold,
    fit_temperature,
    score_intervals,
)
from fracray.metrics.scores import Ranked
from fracray.runtime.console import new_console, new_table
from fracray.runtime.storage import Folder
from fracray.training.growth import work_in
from fracray.training.loop import Fit, pick_device
from fracray.training.model import float32
from fracray.training.workers import use_cores

HERE = Path(__file__).parent
FOLDS = 5
QUALITY = 95  # of the packed JPEG squares
BATCH = 64
ROUNDS = 2  # of `cost`
TABLE, PIXELS, ABOUT = "table.parquet", "squares.npz", "about.json"
CURVE = ("train_loss", "val_loss", "val_auroc", "val_average_precision", "val_accuracy", "val_balanced_accuracy")
COLUMNS = ["image_id", "label", "group", "width", "height", "brightness", "boxes", "boxes_width", "boxes_height"]


def parser() -> argparse.ArgumentParser:
    cli = argparse.ArgumentParser(
        prog="python benchmarks/ablation.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = cli.add_subparsers(dest="command", required=True)
    pack_ = commands.add_parser("pack", help="prepare a data set for `run`; needs Ray")
    pack_.add_argument("--data", required=True, help="FracAtlas folder or zip, an imported set, or phantom")
    pack_.add_argument("--size", type=int, default=384, help="largest side of the squares, px (default %(default)s)")
    pack_.add_argument("--quality", type=int, default=QUALITY, help="of their JPEG coding (default %(default)s)")
    pack_.add_argument("--to", type=Path, required=True, help="new folder for the pack")
    pack_.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of the data")
    run_ = commands.add_parser("run", help="train the recipes on the folds")
    run_.add_argument("--pack", type=Path, required=True, help="folder that `pack` wrote")
    run_.add_argument("--recipes", type=Path, default=HERE / "ablation.yaml", help="default %(default)s")
    run_.add_argument("--only", nargs="+", help="names of recipes (default: all)")
    run_.add_argument("--folds", type=int, nargs="+", default=list(range(FOLDS)), help="default 0 1 2 3 4")
    run_.add_argument(
        "--rotations", type=int, default=1, choices=range(1, FOLDS), help="models of each fold (default %(default)s)"
    )
    run_.add_argument("--seeds", type=int, nargs="+", default=[0], help="default 0")
    run_.add_argument("--processes", type=int, default=1, help="trainings at a time (default %(default)s)")
    run_.add_argument("--threads", type=int, default=1, help="Torch's threads of each (default %(default)s)")
    run_.add_argument("--budget", type=float, default=math.inf, help="seconds after which no training begins")
    run_.add_argument("--every-epoch", action="store_true", help="keep test's logits after each epoch too")
    run_.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of all recipes")
    run_.add_argument("--to", type=Path, required=True, help="file for the logits, .npz")
    show_ = commands.add_parser("show", help="print the table of one or several runs")
    show_.add_argument("runs", type=Path, nargs="+", help="files that `run` wrote, all of one pack")
    show_.add_argument("--pack", type=Path, required=True, help="folder that `pack` wrote")
    show_.add_argument("--folds", type=int, nargs="+", default=list(range(FOLDS)), help="default 0 1 2 3 4")
    show_.add_argument("--json", type=Path, default=HERE / "results" / "ablation.json", help="default %(default)s")
    cost_ = commands.add_parser("cost", help="how long a training of each recipe takes on this machine")
    cost_.add_argument("--pack", type=Path, required=True, help="folder that `pack` wrote")
    cost_.add_argument("--recipes", type=Path, default=HERE / "ablation.yaml", help="default %(default)s")
    cost_.add_argument("--only", nargs="+", help="names of recipes (default: all)")
    cost_.add_argument("--images", type=int, default=256, help="trained in the timed epoch (default %(default)s)")
    cost_.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="default: one per core")
    cost_.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of all recipes")
    cost_.add_argument("--json", type=Path, default=HERE / "results" / "ablation_cost.json", help="default %(default)s")
    return cli


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    {"pack": pack, "run": run, "show": show, "cost": cost}[args.command](args)


# ---------------------------------------------------------------- pack


def pack(args: argparse.Namespace) -> None:
    """Write the squares, the table with a column of parts for each fold, and the scores of the no-pixel predictors."""
    from fracray.data.prepare import prepare
    from fracray.runtime.ray_session import connect

    console = new_console()
    base = {"data.source": args.data, "data.size": args.size, "data.split.protocol": "kfold", **_settings(args.set)}
    base["data.split.cross_validate"] = True
    parts: dict[str, np.ndarray] = {}
    baselines = []
    with connect(None):
        for fold in range(FOLDS):
            prepared = prepare(Config().with_leaves({**base, "data.split.fold": fold}).data, console)
            parts |= {_column(fold, rotation): split for rotation, split in enumerate(prepared.rotations)}
            baselines.append([baseline.as_dict() for baseline in prepared.baselines])
    args.to.mkdir(parents=True)
    columns = [*COLUMNS, *KEPT] if prepared.shards.cropped else COLUMNS
    prepared.table[columns].assign(**parts).to_parquet(args.to / TABLE)
    coded = [_coded(square, args.quality) for square in prepared.shards.load()]
    ends = np.cumsum([len(data) for data in coded])
    np.savez(args.to / PIXELS, data=np.concatenate(coded), ends=ends, size=args.size)
    (args.to / ABOUT).write_text(json.dumps({"fingerprint": prepared.fingerprint, "baselines": baselines}, indent=1))
    console.print(f"{len(coded):,} radiographs, {ends[-1] / 2**20:.1f} MiB: {args.to}", soft_wrap=True)


def _column(fold: int, rotation: int = 0) -> str:
    """The table's column of parts where a fold is test, and the next one or, rotated, another one is validation."""
    return f"fold{fold}" + (f".{rotation}" if rotation else "")


def _coded(square: np.ndarray, quality: int) -> np.ndarray:
    done, data = cv2.imencode(".jpg", square, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    return data.ravel()


def unpacked(folder: Path, size: int) -> np.ndarray:
    """The squares (N, size, size) uint8."""
    with np.load(folder / PIXELS) as held:
        data, ends, largest = held["data"], held["ends"], int(held["size"])
    if size > largest:
        raise SystemExit(f"{folder}: holds squares of {largest} pixels, and a recipe wants {size}; pack it anew")
    squares = np.empty((len(ends), size, size), dtype=np.uint8)
    for at, (start, end) in enumerate(zip(np.r_[0, ends[:-1]], ends, strict=True)):
        square = cv2.imdecode(data[start:end], cv2.IMREAD_GRAYSCALE)
        assert square is not None
        squares[at] = square if len(square) == size else cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA)
    return squares


def unpack(folder: Path, wanted: Sequence["Training"], scratch: Path) -> None:
    """Write the squares of each side that the trainings want into `scratch`, for all processes."""
    scratch.mkdir(parents=True, exist_ok=True)
    for size in sorted({training.config.data.size for training in wanted}):
        np.save(scratch / f"{size}.npy", unpacked(folder, size))


# ---------------------------------------------------------------- run


@dataclass(frozen=True)
class Training:
    """One recipe on one fold with one seed."""

    recipe: str
    fold: int
    seed: int
    config: Config
    rotation: int = 0

    @property
    def column(self) -> str:
        return _column(self.fold, self.rotation)

    @property
    def key(self) -> str:
        return f"{self.recipe}/{self.column.removeprefix('fold')}/{self.seed}"


def trainings(
    args: argparse.Namespace, folds: Sequence[int], seeds: Sequence[int], rotations: int = 1
) -> list[Training]:
    """Recipe after recipe, so that a budget ends with complete ones."""
    recipes = yaml.safe_load(args.recipes.read_text())
    base: dict[str, Any] = recipes["base"]
    steps: dict[str, dict[str, Any]] = recipes["steps"]
    more = _settings(args.set)
    chosen = args.only or list(steps)
    if unknown := set(chosen) - set(steps):
        raise SystemExit(f"{args.recipes}: no step is called {', '.join(sorted(unknown))}")
    return [
        Training(
            name, fold, seed, Config().with_leaves({**base, **steps[name], **more, "train.seed": seed}, name), rotation
        )
        for seed in seeds
        for name in chosen
        for rotation in range(rotations)
        for fold in folds
    ]


def _settings(words: Sequence[str]) -> dict[str, Any]:
    return {name: yaml.safe_load(value) for name, _, value in (word.partition("=") for word in words)}


def run(args: argparse.Namespace) -> None:
    """Train all; the logits of validation and test are written as each training is done."""
    console = new_console()
    begun = time.monotonic()
    wanted = trainings(args, args.folds, args.seeds, args.rotations)
    scratch = args.to.with_suffix(".squares")
    unpack(args.pack, wanted, scratch)
    console.print(f"{len(wanted)} trainings, {args.processes} at a time; unpacked in {time.monotonic() - begun:.0f} s")
    context = server()
    todo, done = context.Queue(), context.Queue()
    for training in wanted:
        todo.put(training)
    given = (todo, done, args.pack, scratch, args.threads, begun + args.budget, args.every_epoch)
    workers = [context.Process(target=_work, args=given, daemon=True) for _ in range(args.processes)]
    for worker in workers:
        worker.start()
    held: dict[str, np.ndarray] = {}
    while any(worker.is_alive() for worker in workers) or not done.empty():
        try:
            key, arrays = done.get(timeout=1)
        except queue.Empty:
            continue
        if isinstance(arrays, str):
            console.print(f"{key}: {arrays}", style="red", markup=False, soft_wrap=True)
            continue
        held |= {f"{key}/{name}": array for name, array in arrays.items()}
        partial = args.to.with_suffix(".partial.npz")  # a kill in the middle loses nothing
        np.savez(partial, **held)  # type: ignore[arg-type]
        partial.replace(args.to)
        words = f"validation AUROC {float(arrays['val_auroc']):.3f} in epoch {int(arrays['epoch'])}"
        console.print(
            f"{time.monotonic() - begun:5.0f} s  {key}: {words}, {float(arrays['seconds']):.0f} s",
            markup=False,
            highlight=False,
        )
    if lost := [training.key for training in wanted if f"{training.key}/epoch" not in held]:
        console.print(f"{len(lost)} of {len(wanted)} trainings are missing: {', '.join(lost)}", style="yellow")
    console.print(f"written: {args.to}", soft_wrap=True)


def _work(todo: Any, done: Any, folder: Path, scratch: Path, threads: int, deadline: float, every_epoch: bool) -> None:
    end_with_parent()
    torch.set_num_threads(threads)
    table = pd.read_parquet(folder / TABLE)
    held: dict[int, np.ndarray] = {}  # DeviceStream keeps a set on the device as long as it is the same array
    while time.monotonic() < deadline:
        try:
            training: Training = todo.get(timeout=1)
        except queue.Empty:
            return
        size = training.config.data.size
        if size not in held:
            held = {size: np.load(scratch / f"{size}.npy", mmap_mode="r")}
        try:
            done.put((training.key, train(training, table, held[size], every_epoch)))
        except Exception as error:
            done.put((training.key, repr(error)))


def train(training: Training, table: pd.DataFrame, squares: np.ndarray, every_epoch: bool) -> dict[str, np.ndarray]:
    """Logits of validation and test, of the pictures and of their mirror images, by the best epoch's weights.

    With `every_epoch` also `epochs_test`, test's logits (epochs, n) by the averaged weights of each epoch.
    """
    begun = time.monotonic()
    config, device = training.config, pick_device()
    split = table[training.column]
    rows = {part: np.flatnonzero(in_set(split, part)) for part in ("val", "test")}
    fit = Fit(config, _stream(config, plan_of(config, table, split), squares, device), device, "val_loss", "min")
    curve, tested = [], []
    while not fit.done:
        report = fit.run_epoch()
        if report.diverged:
            raise ArithmeticError(f"diverged in epoch {report.epoch}")
        curve.append([report.metrics[name] for name in CURVE])
        if every_epoch:
            tested.append(logits_of(fit.averaged, squares, rows["test"], device, mirrored=False))
    fit.averaged.load_state_dict(fit.best_weights)
    found: dict[str, Any] = {
        "epoch": fit.best["epoch"],
        "val_auroc": fit.best["val_auroc"],
        "curve": curve,
        "seconds": time.monotonic() - begun,
    }
    if every_epoch:
        found["epochs_test"] = tested
    for part, members in rows.items():
        found[f"{part}_rows"] = members
        for name, mirrored in (("logits", False), ("mirrored", True)):
            found[f"{part}_{name}"] = logits_of(fit.averaged, squares, members, device, mirrored)
    return {name: np.asarray(value) for name, value in found.items()}


def _stream(config: Config, plan: Plan, squares: np.ndarray, device: torch.device) -> DeviceStream | MemoryStream:
    """Batches from a set on the device; on a CPU, which has no use for that, as a trial of a search gets them."""
    if device.type != "cpu":
        return DeviceStream(plan, squares, device)
    use_cores(config, torch.get_num_threads())
    return MemoryStream(plan, squares, config.train.epochs)


def plan_of(config: Config, table: pd.DataFrame, split: pd.Series) -> Plan:
    """The plan over a pack: a set of shards of a single file, which is not read."""
    shards = Shards(Folder(""), config.data.size, (ShardFile("", 0, len(table)),))
    return make_plan(config, table.assign(split=split), shards)


@torch.inference_mode()
def logits_of(
    model: torch.nn.Module, squares: np.ndarray, rows: np.ndarray, device: torch.device, mirrored: bool
) -> np.ndarray:
    found = []
    for start in range(0, len(rows), BATCH):
        images = torch.from_numpy(squares[rows[start : start + BATCH]]).unsqueeze(1).to(device)
        with float32():
            found.append(model(images.flip(3) if mirrored else images).cpu().numpy())
    return np.concatenate(found)


# ---------------------------------------------------------------- show


@dataclass(frozen=True)
class Held:
    """A recipe's held-out images, of all folds: what the models that never saw them say.

    rows, folds, probabilities (calibrated), and the thresholds for accuracy and for balanced accuracy: (n,) each.
    """

    rows: np.ndarray
    folds: np.ndarray
    probabilities: np.ndarray
    for_accuracy: np.ndarray
    for_balanced: np.ndarray

    @classmethod
    def of(cls, folds: Mapping[int, Sequence[np.ndarray]], labels: np.ndarray) -> "Held":
        """folds: of each, validation's rows and logits, then test's rows and logits."""
        columns: list[list[np.ndarray]] = [[] for _ in range(5)]
        for fold, (val_rows, val, rows, test) in sorted(folds.items()):
            calibration = fit_temperature(labels[val_rows], val)
            told = calibration.apply(val)
            of_accuracy = choose_threshold(labels[val_rows], told, "accuracy")
            of_balanced = choose_threshold(labels[val_rows], told, "balanced")
            n = len(rows)
            parts = (
                rows,
                np.full(n, fold),
                calibration.apply(test),
                np.full(n, of_accuracy),
                np.full(n, of_balanced),
            )
            for column, part in zip(columns, parts, strict=True):
                column.append(part)
        return cls(*(np.concatenate(column) for column in columns))


Logits = dict[tuple[str, int, int], dict[str, np.ndarray]]  # by recipe, fold and seed


def show(args: argparse.Namespace) -> None:
    """Print a row for each recipe: what the models say of the images that they never saw, over all folds."""
    console = new_console()
    table = pd.read_parquet(args.pack / TABLE)
    labels, groups = table["label"].to_numpy(), np.unique(table["group"].to_numpy(), return_inverse=True)[1]
    found = read_runs(args.runs)
    recipes = list(dict.fromkeys(recipe for recipe, _, _ in found))
    rows = []
    first: Held | None = None
    for recipe in recipes:
        for mirrored in (False, True):
            seeds = sorted({seed for name, _, seed in found if name == recipe})
            for members in [seeds[:1]] if len(seeds) == 1 else [[seed] for seed in seeds] + [seeds]:
                if mirrored and len(members) < len(seeds):
                    continue
                held = _held(found, recipe, args.folds, members, mirrored, labels)
                if held is None:
                    continue
                first = first or held
                name = f"{recipe}{', and its mirror image' if mirrored else ''}"
                trained = [found[recipe, fold, seed] for fold in args.folds for seed in members]
                rows.append(_row(name, members, trained, held, first, labels, groups))
    models = read_rotations(args.runs)
    for recipe in dict.fromkeys(recipe for recipe, _ in models):
        together = {fold: models[recipe, fold] for fold in args.folds if (recipe, fold) in models}
        if first is None or len({len(each) for each in together.values()}) != 1 or len(together) < len(args.folds):
            continue
        for mirrored in (False, True):
            held = Held.of({fold: _out_of_fold(each, mirrored) for fold, each in together.items()}, labels)
            trained = [one for each in together.values() for one in each]
            name = (
                f"{recipe}, {len(trained) // len(together)} models of each fold{', and mirrored' if mirrored else ''}"
            )
            rows.append(_row(name, [], trained, held, first, labels, groups))
    shown = new_table("recipe", "seeds", "AUROC", "AP", "accuracy", "balanced", "calibration", "gain in AUROC", "min")
    for row in rows:
        texts = [_text(row[name]) for name in ("auroc", "average_precision", "accuracy", "balanced_accuracy", "ece")]
        shown.add_row(
            row["recipe"], str(len(row["seeds"]) or ""), *texts, _text(row["gain"], "+.3f"), f"{row['minutes']:.1f}"
        )
    about = json.loads((args.pack / ABOUT).read_text())
    write_results(
        console,
        "ablation",
        shown,
        {"baselines": [about["baselines"][fold] for fold in args.folds], "folds": args.folds, "rows": rows},
        args.json,
    )


def read_runs(files: Sequence[Path]) -> Logits:
    """The trainings of the first rotation."""
    return {(recipe, fold, seed): arrays for (recipe, fold, turn, seed), arrays in _read(files).items() if not turn}


def read_rotations(files: Sequence[Path]) -> dict[tuple[str, int], list[dict[str, np.ndarray]]]:
    """The trainings of all rotations and seeds, by recipe and fold, of the recipes that have several rotations."""
    found = _read(files)
    several = {recipe for recipe, _, rotation, _ in found if rotation}
    models: dict[tuple[str, int], list[dict[str, np.ndarray]]] = {}
    for (recipe, fold, _, _), arrays in found.items():
        if recipe in several:
            models.setdefault((recipe, fold), []).append(arrays)
    return models


def _read(files: Sequence[Path]) -> dict[tuple[str, int, int, int], dict[str, np.ndarray]]:
    """Complete trainings by recipe, fold, rotation and seed."""
    found: dict[tuple[str, int, int, int], dict[str, np.ndarray]] = {}
    for file in files:
        with np.load(file) as held:
            for key in held.files:
                recipe, division, seed, name = key.split("/")
                fold, _, rotation = division.partition(".")
                found.setdefault((recipe, int(fold), int(rotation or 0), int(seed)), {})[name] = held[key]
    return {key: arrays for key, arrays in found.items() if "epoch" in arrays}


def _logits(one: Mapping[str, np.ndarray], part: str, mirrored: bool) -> np.ndarray:
    plain = one[f"{part}_logits"]
    return (plain + one[f"{part}_mirrored"]) / 2 if mirrored else plain


def _out_of_fold(models: Sequence[Mapping[str, np.ndarray]], mirrored: bool) -> tuple[np.ndarray, ...]:
    """As of `Held.of`: validation's images with the logits of those that did not see them, test's with those of all."""
    rows = np.concatenate([one["val_rows"] for one in models])
    held_out = pd.Series(np.concatenate([_logits(one, "val", mirrored) for one in models])).groupby(rows).mean()
    test = models[0]["test_rows"]
    assert all((one["test_rows"] == test).all() for one in models)
    return (
        held_out.index.to_numpy(),
        held_out.to_numpy(),
        test,
        np.mean([_logits(one, "test", mirrored) for one in models], axis=0),
    )


def _held(
    found: Logits, recipe: str, wanted: Sequence[int], seeds: Sequence[int], mirrored: bool, labels: np.ndarray
) -> Held | None:
    """None where a wanted fold is missing: folds differ more than recipes do."""
    folds: dict[int, tuple[np.ndarray, ...]] = {}
    for fold in wanted:
        members = [found[recipe, fold, seed] for seed in seeds if (recipe, fold, seed) in found]
        if len(members) < len(seeds):
            return None
        logits = []
        for part in ("val", "test"):
            mean = np.mean([_logits(member, part, mirrored) for member in members], axis=0)
            logits += [members[0][f"{part}_rows"], mean]
        folds[fold] = tuple(logits)
    return Held.of(folds, labels)


def _row(
    name: str,
    seeds: Sequence[int],
    trained: Sequence[Mapping[str, np.ndarray]],
    held: Held,
    first: Held,
    labels: np.ndarray,
    groups: np.ndarray,
) -> dict[str, Any]:
    y, group = labels[held.rows], groups[held.rows]
    values = score_intervals(y, held.probabilities, group, held.for_accuracy)
    balanced = score_intervals(y, held.probabilities, group, held.for_balanced)["balanced_accuracy"]
    return {
        "recipe": name,
        "seeds": list(seeds),
        "images": len(y),
        "groups": len(np.unique(group)),
        "auroc": auroc_over_folds(y, held.probabilities, group, held.folds).as_dict(),
        **{metric: values[metric].as_dict() for metric in ("average_precision", "accuracy", "brier", "ece")},
        "balanced_accuracy": balanced.as_dict(),
        "gain": _gain(held, first, y, group).as_dict(),
        "val_auroc": float(np.mean([training["val_auroc"] for training in trained])),
        "epoch": float(np.mean([training["epoch"] for training in trained])),
        "minutes": float(sum(training["seconds"] for training in trained)) / 60,
    }


def _gain(held: Held, first: Held, labels: np.ndarray, groups: np.ndarray) -> Interval:
    """The mean over the folds of AUROC less that of the first recipe, with the same groups left out of both."""
    assert (held.rows == first.rows).all(), "the runs are of different packs"
    jackknife = GroupJackknife(labels, groups)

    def statistic(weights: Array) -> dict[str, Array]:
        return {"gain": _auroc(held, labels, weights) - _auroc(first, labels, weights)}

    value = float(statistic(np.ones((1, len(labels))))["gain"][0])
    return jackknife.interval(value, jackknife.values(statistic)["gain"], "both", "number")


def _auroc(held: Held, labels: np.ndarray, weights: Array) -> Array:
    each = []
    for fold in np.unique(held.folds):
        rows = np.flatnonzero(held.folds == fold)
        each.append(Ranked(labels[rows], held.probabilities[rows], 0.5).scores(weights[:, rows])["auroc"])
    return np.mean(each, axis=0)


def _text(interval: Mapping[str, float | None], form: str = ".3f") -> str:
    value, low, high = (interval[name] for name in ("value", "low", "high"))
    between = "" if low is None or high is None else f" [{low:{form}}, {high:{form}}]"
    return "not known" if value is None else f"{value:{form}}{between}"


# ---------------------------------------------------------------- cost


def cost(args: argparse.Namespace) -> None:
    """Print a row for each recipe: the minutes of this machine that a training on the first fold takes.

    A search trains one trial a core, so --processes trainings run side by side, and the minutes are those of one of
    them divided by their number. All recipes are timed once, then all again, so that a busy minute shows.
    """
    console, table = new_console(), pd.read_parquet(args.pack / TABLE)
    wanted = trainings(args, [0], [0])
    if short := [training.recipe for training in wanted if training.config.train.epochs < 3]:
        raise SystemExit(f"{', '.join(short)}: too few epochs; the second of at least three is timed")
    seconds: dict[str, list[float]] = {training.recipe: [] for training in wanted}
    with tempfile.TemporaryDirectory() as scratch:
        unpack(args.pack, wanted, Path(scratch))
        for training in wanted * ROUNDS:
            with ProcessPoolExecutor(args.processes, server(), end_with_parent) as pool:
                given = (training, table, Path(scratch), args.images)
                each = [pool.submit(_seconds, *given) for _ in range(args.processes)]
                seconds[training.recipe].append(fmean(one.result() for one in each))
            words = f"{training.recipe}: {seconds[training.recipe][-1]:.0f} s"
            console.print(words, markup=False, highlight=False)
    rows = list[dict[str, Any]]()
    for training in wanted:
        least, *_, most = sorted(each / args.processes / 60 for each in seconds[training.recipe])
        epochs = training.config.train.epochs
        rows.append({"recipe": training.recipe, "epochs": epochs, "minutes": least, "most": most})
    shown = new_table("recipe", "epochs", "minutes", "in a busier round", "to the first recipe")
    for row in rows:
        figures = [row["minutes"], row["most"], row["minutes"] / rows[0]["minutes"]]
        shown.add_row(row["recipe"], str(row["epochs"]), *(f"{figure:.1f}" for figure in figures))
    settings = {"images": args.images, "processes": args.processes, "set": args.set}
    write_results(console, "ablation cost", shown, {"settings": settings, "rows": rows}, args.json)


def _seconds(training: Training, table: pd.DataFrame, scratch: Path, images: int) -> float:
    """What a training takes on all images, from its second epoch and that one's validation on evenly chosen ones.

    The first epoch pays for what is set up once.
    """
    config, split = training.config, table[training.column]
    epochs = config.train.epochs
    use_cores(config, 1)
    trained = int(in_set(split, "train").sum())
    kept = split.where(split.groupby(split).cumcount() % max(1, trained // images) == 0, "")
    squares = np.load(scratch / f"{config.data.size}.npy", mmap_mode="r")
    stream = MemoryStream(plan_of(config, table, kept), squares, epochs)
    fit = Fit(config, stream, torch.device("cpu"), "val_loss", "min")
    fit.run_epoch()
    seconds = fit.run_epoch().seconds * trained / int(in_set(kept, "train").sum())
    stream.close()
    return seconds * sum(work_in(config, epoch) for epoch in range(1, epochs + 1)) / work_in(config, 2)


if __name__ == "__main__":
    main()
