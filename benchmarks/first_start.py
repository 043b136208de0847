"""CPU time of what a command does with new data before it trains: Ray's start, examining, dividing and ingest.

CPU time of all processes, for other work on the machine disturbs it less than seconds. The second ingest finds the
processes that the first has started, so the difference of the two is what starting them costs.
"""

import argparse
import importlib
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from processes import cpu_seconds, cpu_spent
from table import write_results

from fracray.config import DataConfig
from fracray.runtime.console import new_console, new_table
from fracray.runtime.ray_session import connect
from fracray.runtime.storage import Folder


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/first_start.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data", default=os.environ.get("FRACRAY_FRACATLAS"), help="FracAtlas' folder; default $FRACRAY_FRACATLAS"
    )
    parser.add_argument("--size", type=int, default=128, help="side of the squares, px (default %(default)s)")
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "first_start.json")
    return parser


class Steps:
    """What each step took: CPU and wall seconds."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[float, float]] = {}

    def take(self, name: str, work: Callable[[], Any]) -> Any:
        before, begun = cpu_seconds(), time.perf_counter()
        result = work()
        self.found[name] = cpu_spent(before, cpu_seconds()), time.perf_counter() - begun
        return result


def main() -> None:
    args = parser().parse_args()
    console, steps = new_console(), Steps()
    if not args.data:
        console.print("no radiographs: give --data")
        return
    with tempfile.TemporaryDirectory() as cache, ExitStack() as session:
        config = DataConfig(source=args.data, cache=cache, size=args.size)
        steps.take("start of Ray, imports", partial(_begin, session))
        _prepare(config, Path(cache), steps)
    table = new_table("step")
    for heading in ("CPU s", "seconds"):
        table.add_column(heading, justify="right")
    for name, spent in steps.found.items():
        table.add_row(name, *(f"{seconds:.2f}" for seconds in spent))
    figures = {"settings": {"size": args.size}, "steps": steps.found}
    write_results(console, "first_start", table, figures, args.json)


def _begin(session: ExitStack) -> None:
    session.enter_context(connect(None))
    importlib.import_module("fracray.data.prepare")


def _prepare(config: DataConfig, cache: Path, steps: Steps) -> None:
    from fracray.data.loading.ingest import ingest
    from fracray.data.prepare import examined
    from fracray.data.splits.divide import divide

    manifest = steps.take("examining", partial(examined, config, new_console()))
    divided = steps.take("dividing, predictors without pixels", partial(divide, manifest, config.split, True, cache))
    for name in ("ingest", "ingest again, by the same processes"):
        steps.take(name, partial(ingest, divided.manifest, config.size, Folder(cache / name), crop=config.crop))


if __name__ == "__main__":
    main()
