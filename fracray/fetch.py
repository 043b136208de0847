"""python -m fracray.fetch: bring the best checkpoints out of a run, local or remote, as portable folders.

What arrives is verified by the hashes in each checkpoint's config.json before it gets its final name.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import isnan, nan
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from fracray.errors import InputError, run_verb
from fracray.metric_names import REPORTED, mode_of
from fracray.runtime.arguments import command
from fracray.runtime.locations import require_local

if TYPE_CHECKING:  # a command imports Torch and Ray only once its arguments are read and its files are found
    from rich.console import Console

    from fracray.cluster.head_runs import HeadRun
    from fracray.config import SearchConfig
    from fracray.runtime.storage import Folder
    from fracray.training.epochs import EpochResult


@dataclass(frozen=True)
class RankedTrial:
    """A trial that kept a checkpoint, with the metric at the checkpoint's epoch.

    place: of the checkpoint, in the run.
    """

    trial: str
    value: float
    place: str


def parser() -> argparse.ArgumentParser:
    cli = command(
        "fetch",
        "Copy the best checkpoints of a run into DIR, one folder each, verified by hash. Of a search that was refitted "
        "the ensemble comes first, unless --metric asks for trials.",
        "  python -m fracray.fetch runs/atlas --to checkpoints\n"
        "  python -m fracray.fetch s3://bucket/runs/atlas --top 3 --metric val_auroc --to checkpoints\n"
        "  python -m fracray.fetch runs/atlas/refit --top 9 --to members\n"
        "  python -m fracray.fetch atlas --cluster cluster/local.yaml --to checkpoints\n",
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
    cli.add_argument("--to", required=True, metavar="DIR", help="folder that receives them; created if needed")
    return cli


def main(argv: Sequence[str]) -> None:
    args = parser().parse_args(argv)
    if args.top < 1:
        raise InputError(f"--top {args.top}: at least one checkpoint must be fetched")
    if args.cluster is None:
        require_local(args.run, "no such run folder")

    from fracray.runtime.console import new_console
    from fracray.runtime.run_folder import open_run

    console = new_console()
    if args.cluster is None:
        _fetch_best(open_run(args.run), args, console)
        return

    from fracray.cluster.head_runs import opened_on_head

    with ExitStack() as stack:
        with console.status("asking the head"):
            found = stack.enter_context(opened_on_head(args.cluster, args.run))
        if isinstance(found, str):
            _fetch_best(open_run(found), args, console)
        else:
            _fetch_best(open_run(str(found.local)), args, console, found)


def _fetch_best(run: Folder, args: argparse.Namespace, console: Console, head: HeadRun | None = None) -> None:
    """Copy the checkpoints asked for out of a run; of a run on a head, only a part is here yet."""
    from rich.progress import track

    from fracray.runtime.console import new_table
    from fracray.runtime.run_folder import data_words, stored_config
    from fracray.search.space import check_metric

    config = stored_config(run)
    search = config.search
    metric = args.metric or search.metrics[0]
    epochs, lost = last_epochs(run)
    if args.metric:
        check_metric(metric, _reported(epochs), "--metric")
    found = rank(epochs, metric, search)
    if not args.metric:
        found = [*ensemble(run, metric), *found]
    if not found:
        why = "all trials diverged or failed" if lost else "no trial has finished an epoch yet"
        raise InputError(f"{run}: {why}, so there is no checkpoint to fetch")
    if head is not None:
        with console.status("fetching"):
            head.copy_folders([trial.place for trial in found[: args.top]])

    from fracray.training.checkpoint import read_metadata

    table = new_table("rank", "trial", metric, "epoch", "folder")
    for place, trial in enumerate(track(found[: args.top], "fetching", console=console, transient=True), start=1):
        target = Path(args.to) / trial.trial
        fetch_checkpoint(run, trial.place, target)
        table.add_row(str(place), trial.trial, f"{trial.value:.4f}", str(read_metadata(target).epoch), str(target))
    console.print(
        f"{min(args.top, len(found))} of {len(found)} checkpoints of {head or run}, verified"
        f"{f'; left out: {lost} of trials that diverged or failed' if lost else ''}:",
        soft_wrap=True,
    )
    console.print(table)
    first = quote(str(Path(args.to) / found[0].trial))
    data = data_words(config.data.source)  # a checkpoint outside of its run does not choose what is opened
    console.print(f"next:\n  python -m fracray.evaluate {first}{data} --split test", soft_wrap=True)


def ensemble(run: Folder, metric: str) -> list[RankedTrial]:
    """The ensemble that a refit has made the best checkpoint of its search; empty where there is none."""
    from fracray.runtime.run_folder import BEST, ensemble_card

    card = ensemble_card(run)
    if card is None:
        return []
    value = card["metrics"].get(metric)
    return [RankedTrial("ensemble", nan if value is None else value, BEST)]


def last_epochs(run: Folder) -> tuple[dict[str, EpochResult], int]:
    """The last epoch of each trial that kept a checkpoint, by the trial's name, and how many others are left out.

    These are the trials of a search or a refit that diverged or failed: they are never its best.
    """
    from fracray.search.states import State
    from fracray.training.epochs import saved_epochs

    epochs = {name: saved_epochs(run.sub(f"trials/{name}")) for name in run.names("trials")}
    histories = {name: history for name, history in epochs.items() if history}
    states = _states(run)
    if states is None:  # of one training, which keeps the best epoch before the loss diverged
        return {name: history[-1] for name, history in histories.items()}, 0
    # The table may be older than what the trials have written.
    good = {
        name: history[-1]
        for name, history in histories.items()
        if not history[-1].diverged and states.get(name) not in (State.DIVERGED, State.FAILED)
    }
    return good, len(histories) - len(good)


def _states(run: Folder) -> dict[str, str] | None:
    """The states of the trials of a search or a refit, by their names; None where the run is of one training."""
    from fracray.runtime.run_folder import TRIALS

    data = run.read_if_there(TRIALS)
    if data is None:
        return None
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(pa.BufferReader(data), columns=["trial", "state"]).to_pydict()
    return dict(zip(table["trial"], table["state"], strict=True))


def _reported(epochs: Mapping[str, EpochResult]) -> list[str]:
    """The metrics of the best epoch that any trial has reported."""
    endings = tuple(f"_{metric}" for metric in REPORTED)
    return list(dict.fromkeys(name for result in epochs.values() for name in result.best if name.endswith(endings)))


def rank(epochs: Mapping[str, EpochResult], metric: str, search: SearchConfig) -> list[RankedTrial]:
    """The trials that have a value of this metric, the best first; ties as in the search, then by name.

    Those that break a constraint of the search come last.
    """
    from fracray.runtime.run_folder import BEST
    from fracray.search.constraints import rank_key

    search = search.model_copy(update={"metric": metric, "mode": mode_of(metric)})
    found = [
        (rank_key(result.value, search), RankedTrial(name, result.value(metric), f"trials/{name}/{BEST}"))
        for name, result in sorted(epochs.items())
        if not isnan(result.value(metric))
    ]
    return [trial for _, trial in sorted(found, key=lambda one: one[0], reverse=True)]


def fetch_checkpoint(run: Folder, place: str, target: Path) -> None:
    """Copy a checkpoint of a run to `target`; an equal one that is there already is kept, another one is refused."""
    from fracray.runtime.storage import atomic_path
    from fracray.training.checkpoint import METADATA, verify

    other = InputError(f"{target}: exists already and is another checkpoint; remove it or choose another --to")
    try:
        with atomic_path(target, replace=False) as partial:
            run.download(place, partial)
            try:
                verify(partial)
            except InputError as error:  # the fault is in the run's file, and the copy is about to be removed
                raise InputError(str(error).replace(str(partial), f"{run}/{place}")) from None
            if target.exists() and not _same(partial, target):
                raise other
            card = (partial / METADATA).read_bytes()  # holds the hashes of all files
        if (target / METADATA).read_bytes() != card:  # another command was faster
            raise other
    except OSError as error:
        raise InputError(f"--to {target.parent}: cannot be written: {error}") from None


def _same(fresh: Path, present: Path) -> bool:
    names = [file.relative_to(fresh) for file in fresh.rglob("*") if file.is_file()]
    return present.is_dir() and all(
        (present / name).is_file() and (present / name).read_bytes() == (fresh / name).read_bytes() for name in names
    )


if __name__ == "__main__":
    raise SystemExit(run_verb(main))
