"""Seconds from the command of a search to its first epoch, and what was done in them: a table and a picture.

Searches two trials of one epoch on prepared data, some times, and reads what each search has kept about its start. The
picture is of the run whose first epoch began in the median time: one row for each thread or process.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
from processes import timed
from table import write_results

from fracray.runtime.console import new_console, new_table
from fracray.runtime.timeline import FIRST_EPOCH

HERE = Path(__file__).parent
SPACE = HERE.parent / "search_spaces" / "reg.yaml"


def start(source: str | None, scratch: Path, name: str) -> dict[str, Any]:
    """The efficiency of one search, with its start."""
    command = [sys.executable, "-m", "fracray.tune", "--space", str(SPACE), "--trials", "2", "--epochs", "1"]
    timed([*command, "--storage", str(scratch), "--name", name, *(["--data", source] if source else [])])
    found: dict[str, Any] = json.loads((scratch / name / "efficiency.json").read_text())
    return found


def draw(run: dict[str, Any], path: Path) -> None:
    """One row of bars for each lane, in seconds after the command."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    lanes = run["start"]
    names = list(dict.fromkeys(one["name"] for lane in lanes.values() for one in lane))
    colours = {name: plt.get_cmap("tab20")(place % 20) for place, name in enumerate(names)}
    figure, axes = plt.subplots(figsize=(11, 1 + 0.55 * len(lanes) + 0.2 * len(names)), layout="constrained")
    for row, stretches in enumerate(lanes.values()):
        for one in stretches:
            axes.barh(row, one["ended"] - one["begun"], left=one["begun"], color=colours[one["name"]], height=0.7)
    for name, colour in colours.items():
        axes.barh(0, 0, color=colour, label=name)
    axes.axvline(run["first_epoch_seconds"], color="black", linestyle=":")
    axes.set_yticks(range(len(lanes)), list(lanes))
    axes.invert_yaxis()
    axes.set_xlim(0, run["first_epoch_seconds"] * 1.15)
    axes.set_xlabel(f"seconds after the command; the first epoch begins after {run['first_epoch_seconds']:.1f} s")
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.25), ncols=3, frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--data", help="default: phantoms, drawn before the first run unless $FRACRAY_CACHE has them")
    cli.add_argument("--runs", type=int, default=5, help="searches that count (default %(default)s)")
    cli.add_argument("--json", type=Path, default=HERE / "results" / "search_start.json", help="default %(default)s")
    args = cli.parse_args()
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("FRACRAY_CACHE", str(Path(folder) / "cache"))
        start(args.data, Path(folder), "prepares")
        for number in range(args.runs):
            runs.append(start(args.data, Path(folder), f"run{number}"))
            print(f"run {number + 1}: first epoch after {runs[-1]['first_epoch_seconds']:.2f} s", flush=True)
    runs.sort(key=lambda run: run["first_epoch_seconds"])
    shown = runs[(len(runs) - 1) // 2]
    table = new_table("lane", "what")
    for heading in ("begins", "ends"):
        table.add_column(heading, justify="right")
    for lane, stretches in shown["start"].items():
        for one in stretches:
            ends = "" if one["name"] == FIRST_EPOCH else f"{one['ended']:.2f}"
            table.add_row(lane, one["name"], f"{one['begun']:.2f}", ends)
    seconds = [run["first_epoch_seconds"] for run in runs]
    table.add_row("first epoch", f"median of {len(runs)}", f"{median(seconds):.2f}", "")
    draw(shown, args.json.with_suffix(".png"))
    figures = {
        "settings": {"data": args.data and "given", "runs": args.runs},
        "first_epoch_seconds": seconds,
        "start": shown["start"],
    }
    write_results(new_console(), "search_start", table, figures, args.json)


if __name__ == "__main__":
    main()
