"""python -m fracray.fetch: bring the best checkpoints out of a run, local or remote, as portable folders.

What arrives is verified by the hashes in each checkpoint's config.json before it gets its final name.
"""

import argparse
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import inf, isnan, nan
from pathlib import Path
from shlex import quote

from rich.console import Console
from rich.progress import track

from fracray.cluster.head_runs import HeadRun, opened_on_head
from fracray.errors import InputError, run_verb
from fracray.metrics import REPORTED, lower_is_better
from fracray.runtime.run_folder import BEST, open_run, stored_config, vouched_epochs
from fracray.runtime.show import new_console, new_table
from fracray.runtime.storage import Folder
from fracray.search.space import check_metric
from fracray.training.checkpoint import read_metadata, verify


@dataclass(frozen=True)
class RankedTrial:
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
        "  python -m fracray.fetch s3://bucket/runs/atlas --top 3 --metric val_auroc --to checkpoints\n"
        "  python -m fracray.fetch atlas --cluster cluster/local.yaml --to checkpoints\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cli.add_argument("run", help="a run folder of tune or train, as a path or URI")
    cli.add_argument(
        "--top", type=int, default=1, metavar="K", help="how many of the best trials (default %(default)s)"
    )
    cli.add_argument("--metric", help="ranked by this metric at each trial's best epoch (default: the searched one)")
    cli.add_argument(
        "--cluster",
        metavar="FILE",
        help="the cluster file of `ray up` on whose head's own disk the run is; a plain name is one below its storage",
    )
    cli.add_argument("--to", required=True, metavar="DIR", help="folder that receives them; made if need be")
    return cli


def main(argv: Sequence[str]) -> None:
    args = parser().parse_args(argv)
    console = new_console()
    if args.top < 1:
        raise InputError(f"--top {args.top}: at least one checkpoint must be fetched")
    if args.cluster is None:
        _fetch_best(open_run(args.run), args, console)
        return
    with ExitStack() as stack:
        with console.status("asking the head"):
            found = stack.enter_context(opened_on_head(args.cluster, args.run))
        if isinstance(found, str):
            _fetch_best(open_run(found), args, console)
        else:
            _fetch_best(open_run(str(found.local)), args, console, found)


def _fetch_best(run: Folder, args: argparse.Namespace, console: Console, head: HeadRun | None = None) -> None:
    """Copy the checkpoints asked for out of a run, of which only a part is here where it is on a head."""
    search = stored_config(run).search
    metric = args.metric or (search.metric if isinstance(search.metric, str) else search.metric[0])
    epochs = last_epochs(run)
    if args.metric:
        check_metric(metric, _reported(epochs), "--metric")
    found = rank(epochs, metric)
    if not found:
        raise InputError(f"{run}: no trial has finished an epoch yet, so there is no checkpoint to fetch")
    if head is not None:
        with console.status("fetching"):
            head.copy_checkpoints([trial.trial for trial in found[: args.top]])
    table = new_table("rank", "trial", metric, "epoch", "folder")
    for place, trial in enumerate(track(found[: args.top], "fetching", console=console, transient=True), start=1):
        target = Path(args.to) / trial.trial
        fetch(run, trial.trial, target)
        table.add_row(str(place), trial.trial, f"{trial.value:.4f}", str(read_metadata(target).epoch), str(target))
    console.print(
        f"{min(args.top, len(found))} of {len(found)} checkpoints of {head or run}, verified:", soft_wrap=True
    )
    console.print(table)
    first = quote(str(Path(args.to) / found[0].trial))
    console.print(f"next:\n  python -m fracray.evaluate {first} --split test", soft_wrap=True)


def last_epochs(run: Folder) -> dict[str, dict[str, float]]:
    """What each trial that kept a checkpoint reported at its epoch, under best_* too, by the trial's name."""
    epochs = {name: vouched_epochs(run.sub(f"trials/{name}")) for name in run.names("trials")}
    return {name: history[-1] for name, history in epochs.items() if history}


def _reported(epochs: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The metrics of the best epoch that any trial has reported."""
    names = dict.fromkeys(name for epoch in epochs.values() for name in epoch if name.startswith("best_"))
    endings = tuple(f"_{metric}" for metric in REPORTED)
    return [name.removeprefix("best_") for name in names if name.endswith(endings)]


def rank(epochs: Mapping[str, Mapping[str, float]], metric: str) -> list[RankedTrial]:
    """The trials that reached a value of this metric, best first; as in the search, ties go to the lower loss."""
    found = [
        RankedTrial(trial, float(epoch[f"best_{metric}"]), float(epoch.get("best_val_loss", inf)))
        for trial, epoch in epochs.items()
        if not isnan(epoch.get(f"best_{metric}", nan))
    ]
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
