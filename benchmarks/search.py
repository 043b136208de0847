"""Trials per hour and efficiency of fracray's search against the plain recipe of Ray's guides (`plain_recipe.py`).

Both search the same seven settings on the same radiographs, parts, network, precision and epochs, without early
stopping, each in a separate process, one after the other in turns. Efficiency is the CPU time inside forward,
backward and optimiser steps and inside the augmentation's transform, over wall time times cores, of the complete
command: starting Ray and Python included. fracray's data set is ingested before; the recipe decodes in every epoch.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import yaml
from processes import timed
from table import write_results

from fracray.config import PHANTOM, Config
from fracray.data.prepare import prepare
from fracray.runtime.console import new_console, new_table
from fracray.runtime.efficiency import FINISHING
from fracray.runtime.ray_session import connect

HERE = Path(__file__).parent
IMAGES = 1143  # of which some 750 train and 170 validate, and the rest is kept for tests


def subset(data: Path, folder: Path, images: int) -> Path:
    """A FracAtlas of the first `images` radiographs of every third stretch of 50 file numbers, as links."""
    table = pd.read_csv(data / "dataset.csv")
    numbers = table["image_id"].str.extract(r"(\d+)")[0].astype(int)
    there = {path.name: path for path in (data / "images").glob("*/*")}
    table = table[(numbers // 50 % 3 == 0) & table["image_id"].isin(list(there))].head(images)
    for name in table["image_id"]:
        link = folder / "images" / there[name].parent.name / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(there[name].resolve())
    table.to_csv(folder / "dataset.csv", index=False)
    return folder


def write_parts(source: str, path: Path, size: int = 128) -> dict[str, int]:
    """The files and labels of train and val for the recipe; ingests the set for fracray, at `size` px, on the way."""
    console = new_console()
    config = Config().with_leaves({"data.source": source, "data.size": size}, "benchmark")
    with connect(None):
        prepared = prepare(config.data, console)
    parts: dict[str, dict[str, list[Any]]] = {}
    for part in ("train", "val"):
        rows = prepared.table.iloc[prepared.rows(part)]
        files = [str(prepared.manifest.root / name) for name in rows["path"]]
        parts[part] = {"path": files, "label": [int(label) for label in rows["label"]]}
    path.write_text(json.dumps(parts))
    return {part: len(columns["label"]) for part, columns in parts.items()}


def run_recipe(parts: Path, trials: int, epochs: int, scratch: Path) -> dict[str, float]:
    target = scratch / "plain.json"
    command = [sys.executable, str(HERE / "plain_recipe.py"), "--parts", str(parts), "--to", str(target)]
    command += ["--trials", str(trials), "--epochs", str(epochs), "--storage", str(scratch / "plain")]
    wall = timed(command)
    results = json.loads(target.read_text())
    useful = results["training"] + results["transform"]
    return {"wall": wall, "per_hour": trials / wall * 3600, "efficiency": useful / (wall * cores())}


def run_fracray(source: str, space: Path, trials: int, scratch: Path, name: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "fracray.tune", "--space", str(space), "--data", source]
    command += ["--trials", str(trials), "--storage", str(scratch), "--name", name]
    wall = timed(command)
    report = json.loads((scratch / name / "efficiency.json").read_text())
    # The command's wall time, which is a little longer than the time that its efficiency covers.
    share = report["wall_seconds"] / wall
    shares = {phase: value * share for phase, value in report["shares"].items()}
    shares[FINISHING] += 1 - share
    return {
        "wall": wall,
        "per_hour": trials / wall * 3600,
        "efficiency": report["efficiency"] * share,
        "shares": shares,
    }


def cores() -> int:
    return len(os.sched_getaffinity(0))


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--data", help="FracAtlas; default $FRACRAY_FRACATLAS, or phantoms")
    cli.add_argument(
        "--images", type=int, default=IMAGES, help="radiographs, two thirds of them train (default %(default)s)"
    )
    cli.add_argument("--epochs", type=int, default=3, help="of every trial (default %(default)s)")
    cli.add_argument("--trials", type=int, default=200, help="of fracray, each round (default %(default)s)")
    cli.add_argument("--plain-trials", type=int, default=6, help="of the recipe, each round (default %(default)s)")
    cli.add_argument("--rounds", type=int, default=2, help="turns of both (default %(default)s)")
    cli.add_argument("--json", type=Path, default=HERE / "results" / "search.json", help="default %(default)s")
    args = cli.parse_args()
    data = args.data or os.environ.get("FRACRAY_FRACATLAS")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        source = str(subset(Path(data), scratch / "atlas", args.images)) if data else PHANTOM
        os.environ["FRACRAY_CACHE"] = str(scratch / "cache")
        sizes = write_parts(source, scratch / "parts.json")
        space = yaml.safe_load((HERE.parent / "search_spaces" / "reg.yaml").read_text())
        sampler = {**space["sampler"], "name": "tpe"}  # as in earlier results, whatever the number of trials
        space |= {"epochs": args.epochs, "sampler": sampler, "scheduler": {"name": "none"}}
        (scratch / "space.yaml").write_text(yaml.safe_dump(space))
        plain, ours = [], []
        for turn in range(args.rounds):
            plain.append(run_recipe(scratch / "parts.json", args.plain_trials, args.epochs, scratch / f"r{turn}"))
            print(f"recipe, round {turn + 1}: {plain[-1]}", flush=True)
            ours.append(run_fracray(source, scratch / "space.yaml", args.trials, scratch, f"search{turn}"))
            print(f"fracray, round {turn + 1}: {ours[-1]}", flush=True)
    table = new_table("", "plain recipe", "fracray", "ratio")
    figures: dict[str, Any] = {"settings": {**vars(args), "json": None, "data": None, "parts": sizes}}
    for key, words in (("per_hour", "trials per hour"), ("efficiency", "efficiency")):
        theirs, mine = median(row[key] for row in plain), median(row[key] for row in ours)
        ratio = [
            mine_ / theirs_ for mine_, theirs_ in zip((r[key] for r in ours), (r[key] for r in plain), strict=True)
        ]
        table.add_row(words, f"{theirs:.3g}", f"{mine:.3g}", f"{median(ratio):.2f}")
        figures[key] = {"plain": theirs, "fracray": mine, "ratio": ratio}
    for phase in ours[0]["shares"]:
        table.add_row(f"  {phase}", "", f"{median(row['shares'][phase] for row in ours):.3f}", "")
    figures["rounds"] = {"plain": plain, "fracray": ours}
    write_results(new_console(), "search", table, figures, args.json)


if __name__ == "__main__":
    main()
