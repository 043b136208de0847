"""The claim on a run: only one command at a time works in a run folder, on a disk or in an object store.

On a disk the claim is a lock of the operating system on `run.lock`, which ends with its process. In an object store
(pyarrow.fs offers no conditional write) and on a disk without locks, a claim is a file of its own in `claims/`: a
command writes one, then lists all, and removes its own if there is another one. Of two commands at least one finds the
other's, as S3, Google Cloud Storage and Azure list all that was written. A file counts no more when its process has
ended, or when it was not renewed in time. Knows nothing of what a run contains.
"""

import errno
import fcntl
import json
import os
import platform
import random
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from fracray.errors import InputError, RunError
from fracray.runtime.storage import Folder

LOCK, CLAIMS = "run.lock", "claims"
RENEW_SECONDS, LAPSE_SECONDS = 15.0, 120.0  # a claim in a store is renewed, and lapses when it was not
ROUNDS = 6  # tries of commands that claim a run at the same moment
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL)


@dataclass(frozen=True)
class Claim:
    """Who works in a run: a process, by the time of its start too, as its number is used again.

    machine: the boot and the process namespace in which the number counts: containers may share the name of their host.
    """

    host: str
    pid: int
    started: float
    machine: str
    since: str

    @staticmethod
    def own() -> "Claim":
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        return Claim(platform.node(), os.getpid(), psutil.Process().create_time(), this_machine(), since)

    @staticmethod
    def read(text: bytes) -> "Claim | None":
        """A claim from its file; None where that is damaged."""
        try:
            return Claim(**json.loads(text))
        except (ValueError, TypeError):
            return None

    def write(self) -> str:
        return json.dumps(asdict(self))

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"

    @property
    def ended(self) -> bool | None:
        """Whether its process has ended; None where only another machine can tell."""
        if self.machine != this_machine():
            return None
        try:
            return abs(psutil.Process(self.pid).create_time() - self.started) > 1.0
        except psutil.NoSuchProcess:
            return True


def this_machine() -> str:
    """The boot and the process namespace of this process."""
    parts = []
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts) or platform.node()


@contextmanager
def claimed(run: Folder, what: str = "run", option: str = "--name", trace: bool = True) -> Iterator[None]:
    """Hold a run for this command. InputError, and nothing is written in the run, where another command holds it.

    what, option: for that error, what the folder is of, and the option that names another one. trace: on a disk,
    whether an empty lock file stays; without, nothing of the claim is left in the folder.
    Raises OSError or RunError where the folder cannot be written to; RunError where another command has taken the run
    over, as this process did not run for LAPSE_SECONDS (a laptop that slept).
    """
    try:
        if run.is_local:
            with _locked(run, trace) as locked:
                if locked:
                    yield
                    return
        try:
            with _marked(run):
                yield
        finally:
            if run.is_local and not trace:
                with suppress(OSError):  # another command has claimed it since
                    Path(run.path(CLAIMS)).rmdir()
    except _BusyError as busy:
        raise InputError(
            f"{run}: another command works in this {what}{busy.who}; wait until it ends, stop it with Ctrl-C, or "
            f"choose another {option}{busy.then}"
        ) from None


def in_work(run: Folder) -> bool:
    """Whether a command works in a run at present; True also where only another machine could tell. Changes nothing."""
    found = [Claim.read(run.read(LOCK))] if run.exists(LOCK) else []
    for name, written in run.written(CLAIMS).items():
        if not written or time.time() - written < LAPSE_SECONDS:
            with suppress(InputError):  # removed in the meantime
                found.append(Claim.read(run.read(f"{CLAIMS}/{name}")))
    return any(claim is not None and not claim.ended for claim in found)


class _BusyError(Exception):
    """Another command holds it; then: what else can be done."""

    def __init__(self, other: Claim | None, then: str = "") -> None:
        super().__init__()
        self.who, self.then = f" ({other})" if other else "", then


# ---------------------------------------------------------------- on a disk


@contextmanager
def _locked(run: Folder, trace: bool) -> Iterator[bool]:
    """Hold the lock of a run on a disk; False where the disk has no locks. Its file stays with `trace`."""
    path = Path(run.path(LOCK))
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+", buffering=0) as file:  # leaves what the other command wrote
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            raise _BusyError(Claim.read(file.read())) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            if not trace:
                path.unlink(missing_ok=True)
            yield False
            return
        if not _is_at(path, file.fileno()):  # the other command has just ended, and removed it
            raise _BusyError(None)
        file.truncate(0)
        file.write(Claim.own().write().encode())
        try:
            yield True
        finally:
            with suppress(OSError):  # the text only says who holds it; closing the file releases it
                file.truncate(0)
                if not trace:
                    path.unlink()


def _is_at(path: Path, file: int) -> bool:
    """Whether an open file still has this path."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


# ---------------------------------------------------------------- in a store


@contextmanager
def _marked(run: Folder) -> Iterator[None]:
    """Hold a run by a file in it, which is renewed until the block ends."""
    own = Claim.own().write()
    name = _stake(run, own)
    ended, lost = threading.Event(), threading.Event()

    def renew() -> None:
        while not ended.wait(RENEW_SECONDS):
            with suppress(InputError, RunError):  # a store that cannot be reached: the next time
                if name not in run.names(CLAIMS):
                    lost.set()
                    os.kill(os.getpid(), signal.SIGINT)
                    return
                run.write(f"{CLAIMS}/{name}", own)

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    except KeyboardInterrupt:
        if lost.is_set():
            raise RunError(
                f"{run}: this command stood still for more than {LAPSE_SECONDS / 60:.0f} minutes, and another one has "
                "taken the run over"
            ) from None
        raise
    finally:
        ended.set()
        thread.join()
        with suppress(InputError, RunError):  # it lapses
            run.remove(f"{CLAIMS}/{name}")


def _stake(run: Folder, own: str) -> str:
    """Write a claim that is the only one, and return its name."""
    known = _others(run, None)
    for _ in range(ROUNDS):
        here = [claim for claim in known.values() if claim is not None and claim.ended is False]
        if here:
            raise _BusyError(here[0])
        name = f"{uuid.uuid4().hex}.json"
        run.write(f"{CLAIMS}/{name}", own)
        found = _others(run, name)
        if not found:
            return name
        run.remove(f"{CLAIMS}/{name}")
        if still := known.keys() & found.keys():  # it was there before this one, and stays
            lapse = f"; if that process was killed, repeat this command in {LAPSE_SECONDS / 60:.0f} minutes"
            raise _BusyError(found[still.pop()], lapse)
        time.sleep(random.uniform(0.2, 1.0))  # the other one has found this one too
        left = run.names(CLAIMS)
        known = {name: claim for name, claim in found.items() if name in left}
    raise _BusyError(None)


def _others(run: Folder, own: str | None) -> dict[str, Claim | None]:
    """The claims of other commands that count, by the names of their files; those that do not are removed.

    own: the name of this command's claim, whose time of writing is the storage's present.
    """
    times = run.written(CLAIMS)
    now = times.pop(own, None) if own else None
    found: dict[str, Claim | None] = {}
    for name, written in times.items():
        try:
            claim = Claim.read(run.read(f"{CLAIMS}/{name}"))
        except InputError:  # removed in the meantime
            continue
        ended = claim.ended if claim else None
        if ended is None and written and now is not None:
            ended = now - written > LAPSE_SECONDS
        if not ended:
            found[name] = claim
        elif own:
            run.remove(f"{CLAIMS}/{name}")
    return found
