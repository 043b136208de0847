"""Minutes until a validation AUROC is reached, from the start of each command, on one machine.

Three commands, in turn: the plain recipe of Ray's guides (`plain_recipe.py`), transfer learning with fixed defaults
(`fixed_defaults.py`), and a search of fracray. Each trains on the same radiographs and validates on the same others,
and is stopped after `--seconds`. The levels are the plain recipe's best AUROC, and `--level`. fracray's data set has
been ingested before; the other two decode the files in every epoch.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import yaml
from search import write_parts
from table import write_results

from fracray.config import PHANTOM
from fracray.runtime.console import new_console, new_table
from fracray.runtime.storage import Folder
from fracray.training.epochs import read_epochs

HERE = Path(__file__).parent
PLAIN, FIXED, OURS = "plain recipe", "fixed defaults", "fracray"
Curve = list[tuple[float, float]]  # seconds since the command's start, and the best AUROC so far


def main(argv: Sequence[str] | None = None) -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--data", help="FracAtlas; default $FRACRAY_FRACATLAS, or phantoms")
    cli.add_argument("--seconds", type=float, default=900.0, help="of each command (default %(default)s)")
    cli.add_argument("--level", type=float, default=0.88, help="AUROC to reach (default %(default)s)")
    cli.add_argument("--epochs", type=int, default=12, help="of a trial of the plain recipe (default %(default)s)")
    cli.add_argument("--space", type=Path, default=HERE.parent / "search_spaces" / "fracatlas.yaml")
    cli.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of fracray's search")
    cli.add_argument("--json", type=Path, default=HERE / "results" / "quality.json", help="default %(default)s")
    args = cli.parse_args(argv)
    source = args.data or os.environ.get("FRACRAY_FRACATLAS") or PHANTOM
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        os.environ["FRACRAY_CACHE"] = str(scratch / "cache")
        alike = ("data.split.protocol=grouped", "search.refit.top=0")  # the others' parts, and no time kept back
        settings = [word for setting in (*alike, *args.set) for word in ("--set", setting)]
        ours = [sys.executable, "-m", "fracray.tune", "--space", str(args.space), "--data", source, *settings]
        sizes = write_parts(
            source, scratch / "parts.json", yaml.safe_load(args.space.read_text())["base"]["data"]["size"]
        )
        given = ["--parts", str(scratch / "parts.json")]
        recipe = [*given, "--trials", "1000", "--epochs", str(args.epochs), "--to", str(scratch / "plain.json")]
        curves = {
            PLAIN: printed("plain_recipe.py", [*recipe, "--storage", str(scratch / "plain")], args.seconds),
            FIXED: printed("fixed_defaults.py", given, args.seconds),
        }
        trials = Folder(str(scratch / "ours"))
        ours += ["--time-budget", str(args.seconds), "--storage", str(scratch), "--name", "ours"]
        curves[OURS] = run(ours, args.seconds, lambda: reported(trials))
    if not all(curves.values()):
        raise SystemExit("no epoch ended in time; give --seconds more")
    levels = {"the plain recipe's best": curves[PLAIN][-1][1], f"{args.level:g}": args.level}
    table = new_table("minutes to validation AUROC", *curves, "fracray against plain", "against fixed")
    rows = []
    for name, level in levels.items():
        reached = {arm: first(curve, level) for arm, curve in curves.items()}
        ratios = [ratio(reached[OURS], reached[other]) for other in (PLAIN, FIXED)]
        table.add_row(
            f"{name}: {level:.3f}",
            *("not" if at is None else f"{at / 60:.1f}" for at in reached.values()),
            *("" if value is None else f"{value:.2f}" for value in ratios),
        )
        rows.append({"name": name, "level": level, "seconds": reached, "ratios": {PLAIN: ratios[0], FIXED: ratios[1]}})
    best = {arm: curve[-1][1] for arm, curve in curves.items()}
    table.add_row("best", *(f"{value:.3f}" for value in best.values()), "", "")
    figures = {"settings": {**vars(args), "data": None, "space": args.space.name, "json": None, "parts": sizes}}
    write_results(new_console(), "quality", table, {**figures, "levels": rows, "curves": curves}, args.json)


def first(curve: Curve, level: float) -> float | None:
    """When the level is reached, s; None: not in time."""
    return next((at for at, value in curve if value >= level), None)


def ratio(mine: float | None, theirs: float | None) -> float | None:
    return None if mine is None or theirs is None else mine / theirs


def printed(script: str, words: Sequence[str], seconds: float) -> Curve:
    """The curve of a script that prints a line of JSON after each epoch."""
    with tempfile.NamedTemporaryFile("r", suffix=".txt") as said:
        return run([sys.executable, str(HERE / script), *words], seconds, lambda: list(lines(said.name)), said.name)


def lines(path: str) -> Iterator[float]:
    for line in Path(path).read_text().splitlines():
        if line.startswith('{"epoch"'):
            yield json.loads(line)["val_auroc"]


def reported(run: Folder) -> list[float]:
    return [
        float(epoch.metrics["val_auroc"])
        for name in run.names("trials")
        for epoch in read_epochs(run.sub(f"trials/{name}"))
    ]


def run(command: Sequence[str], seconds: float, look: Callable[[], list[float]], to: str | None = None) -> Curve:
    """Run a command for at most so long; `look` gives the AUROC of each epoch that has ended."""
    begun = time.monotonic()
    curve: Curve = []
    with open(to or os.devnull, "w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.DEVNULL, start_new_session=True)
        while process.poll() is None and time.monotonic() - begun < seconds:
            time.sleep(0.5)
            if (values := look()) and (not curve or max(values) > curve[-1][1]):
                curve.append((time.monotonic() - begun, max(values)))
                arm = command[2] if command[1] == "-m" else Path(command[1]).name
                print(f"{arm}: {curve[-1][1]:.3f} after {curve[-1][0]:.0f} s", flush=True)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        elif process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return curve


if __name__ == "__main__":
    main()
