"""Runs on the disk of a cluster's head: copies here the files that rank the trials, then the best checkpoints.

Knows the files of a run folder. Ranks nothing and verifies nothing.
"""

import shlex
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from fracray.cluster.files import RAY_UP, SLURM, ClusterFile, read_cluster
from fracray.cluster.ray_cli import copy_from_head, run_on_head
from fracray.errors import InputError, RunError
from fracray.runtime.locations import below
from fracray.runtime.run_folder import BEST, EPOCHS, TRIALS


def place_of(cluster: ClusterFile, run: str) -> str:
    """Where a run is, as the cluster's nodes see it: a plain name is a folder in the file's storage."""
    if "://" in run or run.startswith(("/", "~/")):
        return run
    if not cluster.storage:
        raise InputError(
            f"{run}: {cluster.file.origin} does not say where runs are kept (metadata.storage); give the run's "
            "absolute path on the head, or its URI"
        )
    return below(cluster.storage, run)


@dataclass(frozen=True)
class HeadRun:
    """A run on a head, and its local copy: the config, the epochs of all trials, and the checkpoints of some.

    scratch: a folder on the head with the files to copy.
    """

    cluster: ClusterFile
    place: str
    local: Path
    scratch: str

    def __str__(self) -> str:
        return f"{self.place} on the head of {self.cluster.file.origin}"

    def copy_folders(self, places: Sequence[str]) -> None:
        """Copy these folders of the run to `local`."""
        self.gather(" ".join(map(shlex.quote, places)))
        self.copy()

    def gather(self, names: str) -> None:
        """Copy files and folders of the run (shell patterns) into the scratch folder; nothing where it is not a run."""
        run, scratch = _quoted(self.place), shlex.quote(self.scratch)
        run_on_head(
            self.cluster,
            f"umask 077; mkdir -p {scratch} && if test -f {run}/config.yaml; then "
            f"cd {run} && shopt -s nullglob && cp -rL --parents -t {scratch} {names}; fi || "
            f"{{ rm -rf {scratch}; false; }}",
        )

    def copy(self) -> None:
        """Copy the scratch folder to `local`."""
        copy_from_head(self.cluster, self.scratch, str(self.local))


@contextmanager
def opened_on_head(file: str, run: str) -> Iterator[HeadRun | str]:
    """A run that the nodes of a cluster file see: its URI where it has one, else a partial local copy.

    Temporary folders here and on the head are deleted at the end. RunError where the head does not answer.
    """
    cluster = read_cluster(file)
    place = place_of(cluster, run)
    if "://" in place:
        yield place
        return
    if cluster.kind == SLURM:
        raise InputError(f"{file}: Slurm's nodes share {place}; run fetch with this path on a machine that sees it")
    if cluster.kind != RAY_UP:
        raise InputError(
            f"{file}: a {cluster.kind} has no SSH to fetch {place}; copy the run from the head's pod with "
            "`kubectl cp` and fetch from the copy, or keep runs in a bucket and give the URI"
        )
    with tempfile.TemporaryDirectory(prefix="fracray-") as local:
        found = HeadRun(cluster, place, Path(local) / "run", f"/tmp/fracray-{uuid.uuid4().hex}")
        found.local.mkdir()
        # As patterns, the last two may name no file: not every run has them.
        if_there = " ".join(f"{name[:-1]}[{name[-1]}]" for name in (f"{BEST}/config.json", TRIALS))
        found.gather(f"config.yaml trials/*/{EPOCHS} trials/*/{BEST}/config.json {if_there}")
        try:
            found.copy()
            yield found
        except InputError as error:
            message = str(error)
            if str(found.local) not in message:
                raise
            raise InputError(f"{file}: on its head: {message.replace(str(found.local), place)}") from None
        finally:
            with suppress(RunError):
                run_on_head(cluster, f"rm -rf {shlex.quote(found.scratch)}")


def _quoted(path: str) -> str:
    """Quoted for the head's shell; ~ is the home on the head."""
    return f'"$HOME"/{shlex.quote(path[2:])}' if path.startswith("~/") else shlex.quote(path)
