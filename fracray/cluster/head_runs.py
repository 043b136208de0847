"""Runs on the disk of a cluster's head: what is needed to rank their trials, and the best checkpoints, copied here.

Knows where a run folder keeps what; ranks nothing and verifies nothing.
"""

import shlex
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from fracray.cluster.files import LAUNCHER, SLURM, ClusterFile, read_cluster
from fracray.cluster.ray_cli import copy_from_head, run_on_head
from fracray.errors import InputError, RunError
from fracray.runtime.locations import below
from fracray.runtime.run_folder import BEST, EPOCHS


def place_of(cluster: ClusterFile, run: str) -> str:
    """Where a run is, as the cluster's machines name it: a plain name stands for one below the file's storage."""
    if "://" in run or run.startswith(("/", "~/")):
        return run
    if not cluster.storage:
        raise InputError(
            f"{run}: {cluster.file.origin} does not say where runs are kept (metadata.storage); give the run's whole "
            "path on the head, or its URI"
        )
    return below(cluster.storage, run)


@dataclass(frozen=True)
class HeadRun:
    """A run on a head, and the part of it that is here: `local` holds its config and what tells its trials' scores."""

    cluster: ClusterFile
    place: str
    local: Path
    scratch: str  # a folder on the head, which is copied here as often as something was put into it

    def __str__(self) -> str:
        return f"{self.place} on the head of {self.cluster.file.origin}"

    def bring(self, trials: Sequence[str]) -> None:
        """Copy the checkpoints of these trials too."""
        self.gather(" ".join(shlex.quote(f"trials/{trial}/{BEST}") for trial in trials))
        self.copy()

    def gather(self, names: str) -> None:
        """Put files and folders of the run (patterns of the shell), if it is one, into the scratch folder."""
        run, scratch = _quoted(self.place), shlex.quote(self.scratch)
        run_on_head(
            self.cluster,
            f"umask 077; mkdir -p {scratch} && if test -f {run}/config.yaml; then "
            f"cd {run} && shopt -s nullglob && cp -rL --parents -t {scratch} {names}; fi || "
            f"{{ rm -rf {scratch}; false; }}",
        )

    def copy(self) -> None:
        """Bring here what is in the scratch folder."""
        copy_from_head(self.cluster, self.scratch, str(self.local))


@contextmanager
def opened_on_head(file: str, run: str) -> Iterator[HeadRun | str]:
    """A run that a cluster file's machines see, as its URI where it has one, and as a part of it here where not.

    Folders made for it here and on the head end with the block. RunError where the head is out of reach.
    """
    cluster = read_cluster(file)
    place = place_of(cluster, run)
    if "://" in place:
        yield place
        return
    if cluster.kind == SLURM:
        raise InputError(f"{file}: Slurm's nodes share the folder of {place}: fetch it by its path where that is seen")
    if cluster.kind != LAUNCHER:
        raise InputError(
            f"{file}: a {cluster.kind} has no SSH by which {place} could be fetched; copy the run from its head's pod "
            "by `kubectl cp` and fetch it from there, or keep runs in a bucket and give the URI"
        )
    with tempfile.TemporaryDirectory(prefix="fracray-") as local:
        found = HeadRun(cluster, place, Path(local) / "run", f"/tmp/fracray-{uuid.uuid4().hex}")
        found.local.mkdir()
        found.gather(f"config.yaml trials/*/{EPOCHS} trials/*/{BEST}/config.json")
        try:
            found.copy()
            yield found
        except InputError as error:
            told = str(error)
            if str(found.local) not in told:
                raise
            raise InputError(f"{file}: on its head: {told.replace(str(found.local), place)}") from None
        finally:
            with suppress(RunError):
                run_on_head(cluster, f"rm -rf {shlex.quote(found.scratch)}")


def _quoted(path: str) -> str:
    """For the head's shell, which knows its own home."""
    return f'"$HOME"/{shlex.quote(path[2:])}' if path.startswith("~/") else shlex.quote(path)
