"""What `submit` sends to a cluster: the command as the head runs it, the files that it reads, and its environment.

Contacts no cluster.
"""

import importlib
import shutil
import sys
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fracray.cluster.checks import storage_problems
from fracray.cluster.files import ClusterFile
from fracray.config import PHANTOM, load_config
from fracray.errors import InputError
from fracray.runtime.locations import around
from fracray.runtime.resources import EXPECTED, promise
from fracray.runtime.run_folder import CLUSTER_FILE
from fracray.tracking.targets import SQLITE, TENSORBOARD

FILES = ("--space", "--config")  # options with a file of this machine, which is sent along
PLACES = {"--storage": "storage", "--data": "data"}  # options with a place on the cluster, as in the file's metadata


@dataclass(frozen=True)
class Submission:
    """run: name of the run; command: as the head runs it; files: by their names in the folder that it runs in."""

    run: str
    command: tuple[str, ...]
    files: Mapping[str, bytes]


def prepare(cluster: ClusterFile, verb: str, words: Sequence[str]) -> Submission:
    """The submission for `verb` with these options; what is not given comes from the cluster file's metadata.

    Raises InputError for an option or a place that the cluster could not use.
    """
    parser = importlib.import_module(f"fracray.{verb}").parser()
    if verb == "refit":
        return _refit(cluster, parser.parse_args(list(words)), words)
    options = _options(words)
    # The head parses them in the same way: a typing error is found before there is a job.
    parser.parse_args(list(words))
    given = dict(options)
    files: dict[str, bytes] = {}
    sent: list[str] = []
    for option, value in options:
        if value is None:
            sent.append(option)
            continue
        if option in PLACES and not _is_absolute(value) and (option, value) != ("--data", PHANTOM):
            raise InputError(f"{option} {value}: on a cluster give a URI, or an absolute path as its nodes see it")
        if option == "--log" and not _is_same_everywhere(value):
            raise InputError(
                f"--log {value}: lies in the job's own folder, which is removed; give an absolute path as the head "
                "sees it, or a server"
            )
        name, data = _read(option, value) if option in FILES else (value, None)
        if data is not None:
            files[name] = data
        sent += [option, name]
    if "--resume" in given and "--name" not in given:
        raise InputError("--resume: name the run with --name")
    for option, key in PLACES.items():
        place = cluster.storage if key == "storage" else cluster.data
        if option not in given and place and not (option == "--data" and "--resume" in given):
            sent += [option, place]
    if problem := next(storage_problems(cluster, given.get("--storage") or cluster.storage), None):
        raise InputError(problem)
    run = given.get("--name") or f"{verb}-{time.strftime('%Y%m%d-%H%M%S')}"
    if "--name" not in given:
        sent += ["--name", run]
    if "--address" not in given:
        sent += ["--address", "auto"]
    return Submission(run, ("python", "-m", f"fracray.{verb}", *sent), files)


def _refit(cluster: ClusterFile, args: Namespace, words: Sequence[str]) -> Submission:
    """The submission of a refit, which names its run by the place of that and has no files."""
    if not _is_absolute(args.run):
        raise InputError(f"refit {args.run}: on a cluster give a URI, or an absolute path as its nodes see it")
    if problem := next(storage_problems(cluster, around(args.run)), None):
        raise InputError(problem)
    name = PurePosixPath(args.run.partition("?")[0]).name
    address = () if args.address else ("--address", "auto")
    return Submission(name, ("python", "-m", "fracray.refit", *words, *address), {})


def _read(option: str, value: str) -> tuple[str, bytes | None]:
    """The value of --space or --config on the cluster, and the file to send.

    There is no file to send for the config of a checkpoint that only the cluster sees.
    """
    path = Path(value)
    if path.is_file():
        if option == "--config":
            load_config(value)
        else:
            from fracray.search.space_file import load_space

            load_space(value)
        return path.name, path.read_bytes()
    if option == "--config" and path.is_dir():
        from fracray.training.checkpoint import read_metadata

        return "config.yaml", read_metadata(value).config.to_yaml().encode()
    if option == "--config" and _is_absolute(value):
        return value, None
    raise InputError(f"{option} {value}: no such file here; the file is sent to the cluster")


def _is_absolute(place: str) -> bool:
    """Whether a place does not depend on the current folder: a URI or an absolute path."""
    return "://" in place or Path(place).is_absolute()


def _is_same_everywhere(target: str) -> bool:
    """Whether the place of a dashboard does not depend on the current folder."""
    kind, _, place = target.partition(":")
    if kind == TENSORBOARD:
        return _is_absolute(place)
    if place.startswith(SQLITE):
        return Path(place.removeprefix(SQLITE)).is_absolute()
    return place in ("", "databricks") or _is_absolute(place)  # '': the head's MLFLOW_TRACKING_URI


def _options(words: Sequence[str]) -> list[tuple[str, str | None]]:
    """Options with their values, None for one without: `--a b --c --d=e` as (--a, b), (--c, None), (--d, e)."""
    options: list[tuple[str, str | None]] = []
    for word in words:
        if word.startswith("--"):
            option, equals, value = word.partition("=")
            options.append((option, value if equals else None))
        elif options and options[-1][1] is None:
            options[-1] = (options[-1][0], word)
        else:
            raise InputError(f"submit: {word} belongs to no option; quote values with spaces")
    return options


def job_environment(cluster: ClusterFile, address: str | None = None) -> dict[str, str]:
    """What the job cannot find out itself: the nodes that may still start, the cluster file, the size of the terminal.

    address: the dashboard's, where the cluster was not reached through its file.
    """
    nodes = cluster.at_full_size(lambda node: node.gpus or 0.0)
    known = [node.machine for node in nodes if node.machine is not None]
    # For own machines the file gives only the number of nodes that `ray up` sets up, not their resources.
    environment = promise(known) if len(known) == len(nodes) else {EXPECTED: str(sum(node.least for node in nodes))}
    if address is None:  # the job's messages name the file in the commands that continue the run
        environment[CLUSTER_FILE] = cluster.file.origin
    if sys.stdout.isatty():
        columns, lines = shutil.get_terminal_size()
        # Rich reads these three: the job draws its table for this terminal, in its log.
        environment |= {"TTY_COMPATIBLE": "1", "COLUMNS": str(columns), "LINES": str(lines)}
    return environment
