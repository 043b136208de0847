"""Ctrl-C and SIGTERM in a process that runs a command, from the first import of fracray to the end of the process.

Python's own answer, an exception at any place, ends in a traceback while modules are imported: before a command has
begun there is nobody to catch it, and libraries turn it into other errors, or lose it and go on. This module imports
next to nothing, as an interruption before `take_over` still ends in a traceback.
"""

from __future__ import annotations

import atexit
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any

EXIT_CODE = 130
AGAIN = "give the same command again"
LOOK_SECONDS = 0.05  # how often is looked whether an import has ended


class _Process:
    """What this process does with the two signals."""

    ours = False  # it runs a command: a program that uses the package keeps its own handlers
    running = False  # the command has begun, so that an exception is caught
    code: int | None = None  # the command has ended with it
    at_stake = 0  # blocks that clean up after themselves
    asked = False  # the user wants it to end
    terminated = False  # by SIGTERM
    bell: int | None = None  # where the number of every signal is read as soon as it comes
    apart: bool | None = None  # new processes leave the group; None: no process has been told so yet


def take_over() -> None:
    """Answer both signals in this process, if it runs a command of fracray. Called at the first import."""
    if _Process.ours or not _runs_a_command():
        return
    with suppress(ValueError):  # not the main thread
        _Process.ours = True
        listen()
        _hang_bell()
        sys.unraisablehook = _unraisable


def listen() -> None:
    """Answer both signals from now on; libraries set handlers of their own."""
    if _Process.ours:
        signal.signal(signal.SIGINT, _answer)
        signal.signal(signal.SIGTERM, _answer)


def begin() -> None:
    """The command begins: from here on it ends by a KeyboardInterrupt."""
    _Process.running = True


def end(code: int) -> None:
    """The command has ended; a signal now only shortens the end of the process."""
    _Process.running, _Process.code = False, code


def leave(code: int) -> None:
    """End this process after an interruption, if it is a command's: libraries that were stopped half-way may crash it.

    What they have registered for the exit still runs.
    """
    if _Process.ours:
        with suppress(Exception):
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def asked() -> bool:
    """Whether one of the signals came: the errors that follow come from it."""
    return _Process.asked or terminated()


def terminated() -> bool:
    """Whether SIGTERM came to this process, even where Python has not got round to answer it: a library's C++ runs."""
    if _Process.bell is not None:
        with suppress(BlockingIOError):
            if signal.SIGTERM in os.read(_Process.bell, 4096):
                _Process.terminated = True
    return _Process.terminated


def terminates(seconds: float) -> bool:
    """Wait so long for SIGTERM, and say at once when it comes, or came before."""
    deadline = time.monotonic() + seconds
    while not terminated() and (left := deadline - time.monotonic()) > 0:
        select.select([] if _Process.bell is None else [_Process.bell], [], [], left)
    return _Process.terminated


@contextmanager
def careful() -> Iterator[None]:
    """A block that cleans up after itself, so that the process must not end without leaving it."""
    _Process.at_stake += 1
    try:
        yield
    finally:
        _Process.at_stake -= 1


def unbroken(work: Callable[[], None]) -> None:
    """Do `work` to its end: an interruption is raised afterwards.

    Only the main thread is interrupted, so another one does it. After a second Ctrl-C nobody waits for that.
    """
    import threading
    from concurrent.futures import ThreadPoolExecutor

    if threading.current_thread() is not threading.main_thread():
        work()
        return
    with ThreadPoolExecutor(1) as helper:
        helper.submit(work).result()


@contextmanager
def remedy(words: Callable[[], str]) -> Iterator[None]:
    """After an interruption in this block, tell the user what `words()` says: what to type next."""
    with careful():
        try:
            yield
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt) or (
                asked() and isinstance(error, Exception | SystemExit)
            )
            if not interrupted or (isinstance(error, KeyboardInterrupt) and error.args):
                raise
            said = ""
            with suppress(Exception):  # the storage may be out of reach
                said = words()
            raise KeyboardInterrupt(*([said] if said else [])) from None


@contextmanager
def children_spared() -> Iterator[None]:
    """Processes that start in this block do not get Ctrl-C, which a terminal sends to all; this process ends them.

    Its own waits until the block ends.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def children_apart() -> Iterator[None]:
    """Processes that start in this block, and those that they start, get no signal that is sent to this one's group.

    `timeout` and shells send theirs to all of it. Only where the block's processes end with this one by themselves.
    """
    if _Process.apart is None:
        os.register_at_fork(after_in_child=_leave_group)
    _Process.apart = True
    try:
        yield
    finally:
        _Process.apart = False


def _leave_group() -> None:
    if _Process.apart:
        os.setsid()


def _hang_bell() -> None:
    _Process.bell, rope = os.pipe()
    os.set_blocking(_Process.bell, False)
    os.set_blocking(rope, False)
    signal.set_wakeup_fd(rope, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1) and None)  # its signals are its own


def _runs_a_command() -> bool:
    """Whether this is `python -m fracray...` or the script `fracray`, as long as their modules are imported."""
    if sys.argv[:1] != ["-m"]:  # Python puts the module's path here once it has found it
        return os.path.basename(sys.argv[0] if sys.argv else "") == "fracray"
    names = [second for first, second in pairwise(sys.orig_argv) if first == "-m"]
    names += [word.removeprefix("-m") for word in sys.orig_argv]
    return any(name.partition(".")[0] == "fracray" for name in names)


def _answer(signum: int, frame: FrameType | None) -> None:
    again = _Process.asked and signum != signal.SIGALRM
    _Process.asked = True
    if _Process.code is not None:
        with suppress(Exception):
            sys.stdout.flush()
        os._exit(_Process.code)
    if not _Process.running or (_in_import(frame) and (again or not _Process.at_stake)):
        shown = "\x1b[?25h" if sys.stderr.isatty() else ""  # a progress bar hides the cursor
        os.write(sys.stderr.fileno(), f"{shown}interrupted; {AGAIN}\n".encode())
        os._exit(EXIT_CODE)
    if _in_import(frame):
        _look_again()
        return
    raise KeyboardInterrupt


def _look_again() -> None:
    signal.signal(signal.SIGALRM, _answer)
    signal.setitimer(signal.ITIMER_REAL, LOOK_SECONDS)


def _in_import(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _unraisable(problem: Any) -> None:
    """Python drops an exception that is raised in a finaliser: raise this one again, elsewhere."""
    if problem.exc_type is KeyboardInterrupt:
        _look_again()
    else:
        sys.__unraisablehook__(problem)
