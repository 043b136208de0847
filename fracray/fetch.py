"""python -m fracray.fetch: bring the best checkpoints out of a run, local or remote, as portable folders.

What arrives is verified by the hashes in each checkpoint's config.json before it gets its final name.
"""

import argparse
import os
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isnan
from pathlib import Path
from shlex import quote

from rich.progress import track

from fracray.checkpoint import read_card, verify
from fracray.errors import InputError, run_verb
from fracray.metrics import REPORTED, lower_is_better
from fracray.run import BEST, EPOCHS, Folder, open_run, stored_config
from fracray.show import new_console, new_table
from fracray.space import check_metric


@dataclass(frozen=True)
class Found:
    """A trial of a run that kept a checkpoint, with the metric and the validation loss at the checkpoint's epoch."""

    trial: str
    value: float
    loss: float


def parser() -> argparse.ArgumentParser:
    cli = argparse.ArgumentParser(
        prog="python -m fracray.fetch",
        description="Copy the best checkpoints of a run into DIR, one folder each, verified by hash.",
        epilog="examples:\n"
        "  python -m fracray.fetch runs/atlas --to checkpoints\n"
        "  python -m fracray.fetch s3://bucket/runs/atlas --top 3 --metric val_auroc --to checkpoints\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cli.add_argument("run", help="a run folder of tune or train, as a path or URI")
    cli.add_argument(
        "--top", type=int, default=1, metavar="K", help="how many of the best trials (default %(default)s)"
    )
    cli.add_argument("--metric", help="ranked by this metric at each trial's best epoch (default: the searched one)")
    cli.add_argument("--to", required=True, metavar="DIR", help="folder that receives them; made if need be")
    return cli


def main(argv: Sequence[str]) -> None:
    args = parser().parse_args(argv)
    console = new_console()
    if args.top < 1:
        raise InputError(f"--top {args.top}: at least one checkpoint must be fetched")
    run = open_run(args.run)
    search = stored_config(run).search
    metric = args.metric or (search.metric if isinstance(search.metric, str) else search.metric[0])
    if args.metric:
        check_metric(metric, _reported(run), "--metric")
    found = rank(run, metric)
    if not found:
        raise InputError(f"{run}: no trial has finished an epoch yet, so there is no checkpoint to fetch")
    table = new_table("rank", "trial", metric, "epoch", "folder")
    for place, trial in enumerate(track(found[: args.top], "fetching", console=console, transient=True), start=1):
        target = Path(args.to) / trial.trial
        fetch(run, trial.trial, target)
        table.add_row(str(place), trial.trial, f"{trial.value:.4f}", str(read_card(target).epoch), str(target))
    console.print(f"{min(args.top, len(found))} of {len(found)} checkpoints of {run}, verified:", soft_wrap=True)
    console.print(table)
    first = quote(str(Path(args.to) / found[0].trial))
    console.print(f"next:\n  python -m fracray.evaluate {first} --split test", soft_wrap=True)


def _reported(run: Folder) -> list[str]:
    """The metrics that the run's trials have reported; none while no epoch is finished."""
    names: dict[str, None] = {}
    for trial in run.names("trials"):
        if run.exists(f"trials/{trial}/{EPOCHS}"):
            last = run.read_json(f"trials/{trial}/{EPOCHS}")[-1]
            best = (name.removeprefix("best_") for name in last if name.startswith("best_"))
            names |= dict.fromkeys(name for name in best if name.endswith(tuple(f"_{metric}" for metric in REPORTED)))
    return list(names)


def rank(run: Folder, metric: str) -> list[Found]:
    """The trials of a run that kept a checkpoint, best first; as in the search, ties go to the lower loss."""
    found = []
    for trial in run.names("trials"):
        folder = run.sub(f"trials/{trial}")
        if folder.exists(EPOCHS) and folder.exists(f"{BEST}/config.json"):
            history = folder.read_json(EPOCHS)
            value = history[-1].get(f"best_{metric}")
            if value is not None and not isnan(value):
                found.append(Found(trial, float(value), float(history[-1].get("best_val_loss", inf))))
    sign = 1 if lower_is_better(metric) else -1
    return sorted(found, key=lambda entry: (sign * entry.value, entry.loss, entry.trial))


def fetch(run: Folder, trial: str, target: Path) -> None:
    """Copy one trial's checkpoint to `target`; one that is there already and whole is left, another is refused."""
    source = run.sub(f"trials/{trial}")
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        source.download(BEST, partial)
        try:
            verify(partial)
        except InputError as error:  # the culprit is the run's file, not the copy that is about to go
            raise InputError(str(error).replace(str(partial), f"{source}/{BEST}")) from None
        if target.exists():
            if _same(partial, target):
                return
            raise InputError(f"{target}: is there already and is another checkpoint; remove it or choose another --to")
        os.rename(partial, target)
    except OSError as error:
        raise InputError(f"--to {target.parent}: cannot be written: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _same(fresh: Path, present: Path) -> bool:
    names = {file.name for file in fresh.iterdir()}
    return present.is_dir() and all(
        (present / name).is_file() and (present / name).read_bytes() == (fresh / name).read_bytes() for name in names
    )


if __name__ == "__main__":
    raise SystemExit(run_verb(main))
