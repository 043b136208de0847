"""From the names on a command line to checkpoints, the data they are scored on, and the part of it.

A checkpoint from elsewhere does not choose which paths are opened. Must not know of the command line's own arguments.
"""

import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from fracray import interrupts
from fracray.config import PHANTOM, Config
from fracray.data.manifest import Manifest
from fracray.data.prepare import Prepared, prepare
from fracray.errors import InputError, RunError, nearest
from fracray.runtime.claim import this_machine
from fracray.runtime.locations import data_source
from fracray.runtime.run_folder import BEST, is_in_run
from fracray.runtime.storage import Folder, errors_name
from fracray.training.card import CheckpointMetadata
from fracray.training.checkpoint import Checkpoint, copy_checkpoint, load_checkpoint, verify

PREFIX, LOCKED = (
    "fracray-checkpoint-",
    ".locked",
)  # a copy's folder, and the file that says where it is locked
COPIES, PAUSE_SECONDS = 3, 0.1  # attempts to copy a checkpoint that is replaced meanwhile, and the wait between them


def open_checkpoint(location: str) -> Checkpoint:
    """Load a checkpoint folder, or a run's best one, from a path or URI."""
    folder = _named(location)
    with _copy_of(folder) as local:
        found = load_checkpoint(local)
    # Later messages name the folder that the user knows.
    return replace(found, folder=Path(folder.location)) if folder.is_local else found


@contextmanager
def checkpoint_folder(location: str) -> Iterator[Path]:
    """A local copy of a checkpoint folder, or of a run's best one, at a path or URI, as long as the block lasts.

    So a command uses one checkpoint, also in processes that start later: a training replaces `best/` at any time.
    """
    with _copy_of(_named(location)) as local:
        yield local


def _named(location: str) -> Folder:
    """The checkpoint folder at a path or URI, or the best one of the run there."""
    folder = Folder(location)
    if folder.exists("config.yaml") and folder.exists(BEST):
        folder = folder.sub(BEST)
    elif folder.exists("trials") and not folder.exists("config.json"):
        raise InputError(
            f"{location}: a run without a best checkpoint yet; name one of {', '.join(folder.names('trials'))}"
        )
    if not folder.is_local and not folder.exists("config.json"):  # before anything is copied
        raise InputError(f"{folder}: not a checkpoint folder: no config.json in it; name a run, or its best/")
    return folder


@contextmanager
def _copy_of(folder: Folder) -> Iterator[Path]:
    _remove_left()
    with interrupts.careful(), tempfile.TemporaryDirectory(prefix=PREFIX) as scratch, _kept(Path(scratch)):
        copy = Path(scratch) / (folder.name.strip(".") or "checkpoint")  # never `..`, which leads out of it
        with errors_name(folder.location, copy):
            _fetch(folder, copy)
            yield copy


def _fetch(folder: Folder, copy: Path) -> None:
    """Copy a checkpoint as it is at one moment. InputError as `verify`, RunError where it cannot be copied."""
    for left in reversed(range(COPIES)):
        try:
            if folder.is_local:
                copy_checkpoint(folder.location, copy)
            else:
                folder.download("", copy)
                verify(copy)
            return
        except (InputError, OSError) as error:
            shutil.rmtree(copy, ignore_errors=True)
            if not left:
                if isinstance(error, InputError):
                    raise
                remedy = ""
                if error.errno in (errno.ENOSPC, errno.EDQUOT) or str(copy.parent) in str(error):
                    remedy = "; free space there, or set TMPDIR"
                raise RunError(f"{folder}: cannot be copied to {copy.parent}: {error}{remedy}") from None
            time.sleep(PAUSE_SECONDS)


@contextmanager
def _kept(folder: Path) -> Iterator[None]:
    """Keep a temporary folder from systemd-tmpfiles, which removes what is old, but not below a folder with a lock.

    A server needs its checkpoint for weeks: a process that was lost reads it again.
    """
    opened = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a disk without locks
            fcntl.flock(opened, fcntl.LOCK_EX)
            (folder / LOCKED).write_text(this_machine())
        yield
    finally:
        os.close(opened)


def _remove_left() -> None:
    """Remove the copies of commands of this machine that were killed: they were locked, and nobody holds them any more.

    Where machines share a disk, one may know nothing of another's locks.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{LOCKED}"):
        with suppress(OSError):  # another user's, or removed meanwhile
            if left.read_text() != this_machine():
                continue
            opened = os.open(left.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left.parent, ignore_errors=True)
            finally:
                os.close(opened)


def paths_to_open(data: str | None, location: str, metadata: CheckpointMetadata) -> dict[str, str | None]:
    """The settings of where the data and the cache are, for a checkpoint at `location` and the data that was named.

    InputError where a checkpoint from outside of its run would choose the data.
    """
    trained_on = metadata.config.data.source
    if is_in_run(location):
        return {"data.source": data_source(data) if data else trained_on}
    if not data and trained_on != PHANTOM:
        raise InputError(
            f"{location}: was trained on {trained_on!r}; name the data with --data: only a run, or a checkpoint inside "
            "of its run, chooses what is opened"
        )
    return {"data.source": data_source(data) if data else PHANTOM, "data.cache": None}


def prepare_part(
    config: Config, manifest: Manifest, trained_on: str, split: str | None, console: Console
) -> tuple[Prepared, str]:
    """The data set and the part of it to score; data that was never seen has no parts and is scored in full.

    trained_on: the fingerprint of the training's data. InputError for a part that there is not.
    """
    known = manifest.fingerprint() == trained_on
    if split == "all" or (not known and split is None):
        return prepare(config.data, console, split=False, manifest=manifest), "all"
    if not known:
        raise InputError(
            f"--split {split}: {config.data.source} is not the data this checkpoint was trained on, so it has no "
            f"{split} part; score all of it with --split all"
        )
    prepared = prepare(config.data, console, manifest=manifest)
    if split is not None and split not in prepared.sets:
        raise InputError(
            f"--split {split}: there is no such set{nearest(split, prepared.sets)}; there are "
            f"{', '.join(prepared.sets)} and all"
        )
    return prepared, split or "test"


def who(checkpoints: Sequence[Checkpoint]) -> str:
    """What is scored, in words: a trial and its epoch, an ensemble, or the folds."""
    if len(checkpoints) > 1:
        folds = sorted(checkpoint.metadata.config.data.split.fold for checkpoint in checkpoints)
        of = checkpoints[0].metadata.config.data.split.folds
        return f"{len(folds)} of {of} folds ({', '.join(map(str, folds))}), each by the checkpoint that never saw it"
    only = checkpoints[0]
    if only.members:
        names = ", ".join(member.metadata.trial for member in only.members)
        return f"the ensemble of {len(only.members)} ({names})" if len(only.members) > 1 else names
    return f"{only.metadata.trial or only.folder.name}, epoch {only.metadata.epoch}"


def on_what(part: str, prepared: Prepared, trained_on: str) -> str:
    """What it is scored on, in words; trained_on: the fingerprint of the training's data."""
    if prepared.fingerprint != trained_on:
        return f"{prepared.origin}, without what its training is known to have seen"
    return "all radiographs" if part == "all" else f"the set {part}"
