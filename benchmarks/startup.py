"""Seconds until a command has shown its help, or has refused what it was given.

The measure is a process that imports pydantic, yaml and rich as the commands use them: what any typed command line that
reads YAML pays. Commands and measure run in turns; the ratio is that of the medians.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from table import write_results

from fracray.runtime.console import new_console, new_table

HERE = Path(__file__).parent
MEASURE = "import yaml; from pydantic import BaseModel; from rich.console import Console; from rich.table import Table"
MISSPELT = "metric: val_acuracy\nspace:\n  model.dropout: {float: [0.0, 0.5]}\n"
COMMANDS = {
    "fracray --help": (["fracray", "--help"], 0),
    "tune --help": (["fracray.tune", "--help"], 0),
    "train --help": (["fracray.train", "--help"], 0),
    "fetch --help": (["fracray.fetch", "--help"], 0),
    "evaluate --help": (["fracray.evaluate", "--help"], 0),
    "data check --help": (["fracray.data", "check", "--help"], 0),
    "cluster check --help": (["fracray.cluster", "check", "--help"], 0),
    "tune --space of no file": (["fracray.tune", "--space", "nowhere.yaml"], 2),
    "tune with a misspelt metric": (["fracray.tune", "--space", "misspelt.yaml"], 2),
    "tune --set of no setting": (["fracray.tune", "--space", "misspelt.yaml", "--set", "model.dropuot=1"], 2),
    "train --data of no folder": (["fracray.train", "--data", "nowhere"], 2),
    "fetch of no run": (["fracray.fetch", "nowhere", "--to", "out"], 2),
    "evaluate of no checkpoint": (["fracray.evaluate", "nowhere"], 2),
    "data check of no folder": (["fracray.data", "check", "nowhere"], 2),
    "cluster check of no file": (["fracray.cluster", "check", "nowhere.yaml"], 2),
}


def seconds(words: list[str], folder: str, code: int) -> float:
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, check=False)
    taken = time.perf_counter() - begun
    assert done.returncode == code, f"{words}: exit code {done.returncode}: {done.stderr.decode()}"
    return taken


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--runs", type=int, default=7, help="of each, in turns (default %(default)s)")
    cli.add_argument("--json", type=Path, default=HERE / "results" / "startup.json", help="default %(default)s")
    args = cli.parse_args()
    taken: dict[str, list[float]] = {"measure": [], **{name: [] for name in COMMANDS}}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "misspelt.yaml").write_text(MISSPELT)
        for run in range(args.runs + 1):
            found = {"measure": seconds(["-c", MEASURE], folder, 0)}
            found |= {name: seconds(["-m", *words], folder, code) for name, (words, code) in COMMANDS.items()}
            if run:
                for name, value in found.items():
                    taken[name].append(value)
    table = new_table("command")
    for heading in ("seconds", "slowest", "ratio"):
        table.add_column(heading, justify="right")
    base = median(taken["measure"])
    for name, values in taken.items():
        table.add_row(name, f"{median(values):.2f}", f"{max(values):.2f}", f"{median(values) / base:.2f}")
    figures = {
        "settings": {"runs": args.runs, "measure": MEASURE},
        "seconds": taken,
        "ratio": {name: median(values) / base for name, values in taken.items()},
    }
    write_results(new_console(), "startup", table, figures, args.json)


if __name__ == "__main__":
    main()
