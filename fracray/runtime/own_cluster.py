"""Looks after the servers of a command's own Ray cluster, without which the command would wait forever."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import psutil

from fracray import interrupts

KILLED = "failed: the Ray cluster of this command was killed (was the machine short of memory?)"
SERVERS = ("raylet", "gcs_server")  # a cluster cannot run without either of them
LOOK_SECONDS = 0.1
HEAR_SECONDS = 2.0  # a signal to all processes may reach this one after the servers
HOLD_SECONDS = 0.5  # by then it has ended those of Ray's processes that do not wait for anything
LEAVE_SECONDS = 1.5  # for the command to leave its block by itself, and again once it has been interrupted ...
END_SECONDS = 8.0  # ... and from there to the end of the process


class OwnCluster:
    """Ends this process, with exit code 1 or 130, where it would go on without its cluster.

    Ray reports the death of a server to the driver only after 15 s to a minute, and Tune then waits forever for free
    resources. The driver meanwhile blocks in Ray's C++ code, which no exception interrupts. So the process exits; what
    is lost is what a killed driver loses, and `--resume` continues from there.

    SIGTERM to all processes (systemd, Slurm) also ends Ray's own, the first at once and its raylet ten seconds later,
    or earlier. That is an interruption as Ctrl-C is, only that nothing can be waited for. Ray's C++ code however ends
    the driver with exit code 1 as soon as it finds the raylet's object store closed, and tells nobody: so the servers
    are stopped before they can close; the kernel kills them when this process has ended, as Ray has asked it to.
    A process that only waits shows whether SIGTERM came to all: if so, it ends. It also ends with this process, by the
    pipe from it.
    """

    def __init__(self, remedy: Callable[[], str]) -> None:
        self._remedy = remedy
        self._processes: list[int] = []
        self._servers: list[int] = []
        self._starts = True
        self._witness = subprocess.Popen(
            ["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
        )
        self._closing, self._ended, self._held = threading.Event(), threading.Event(), threading.Event()
        self.hopeless = False  # the cluster ends, and the block is to be left
        threading.Thread(target=self._look, daemon=True).start()

    def is_up(self) -> None:
        children = psutil.Process().children()
        self._servers = [child.pid for child in children if child.name() in SERVERS]
        self._processes = [child.pid for child in children]
        self._starts = False

    def closes(self) -> bool:
        """The block is left, and from here on servers may end. False where all end already: Ray would wait for them."""
        if interrupts.terminated():
            self._held.wait(HOLD_SECONDS + HEAR_SECONDS)  # Ray cannot end servers that are stopped
        alive = not (self.hopeless or (interrupts.terminated() and self._told_to_end()))
        self._closing.set()
        if alive:
            self._ended.set()
        self._witness.kill()  # its pipe may be open in a process that was forked meanwhile
        self._witness.wait()
        return alive

    def _look(self) -> None:
        try:
            ends = self._ends()
        finally:
            self._held.set()
        if not ends:
            return
        if not self._closing.wait(LEAVE_SECONDS):
            self.hopeless = True
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
            if not self._closing.wait(LEAVE_SECONDS):
                self._end("interrupted", interrupts.EXIT_CODE)
        if not self._ended.wait(END_SECONDS):
            self._end("interrupted", interrupts.EXIT_CODE)

    def _ends(self) -> bool:
        """Wait for the end of the block (False) or of the cluster (True, unless it was killed: then of the process)."""
        while not self._closing.is_set():
            if self._held.is_set():
                self._closing.wait(LOOK_SECONDS)
            elif interrupts.terminates(LOOK_SECONDS) and not self._closing.is_set():
                self._hold()
            if interrupts.terminated() and self._told_to_end():
                return True
            if any(map(_has_ended, self._servers)):
                if not any(map(_was_killed, self._servers)):
                    interrupts.terminates(HEAR_SECONDS)
                if self._closing.is_set():
                    return False
                if not interrupts.terminated():
                    self._end(KILLED, 1)
                return True
        return False

    def _hold(self) -> None:
        """Stop the servers until it is known whether SIGTERM came to them too; if so, for ever."""
        self._signal_servers(signal.SIGSTOP)
        _wait_for(self._told_to_end, HOLD_SECONDS)
        if not self._told_to_end():
            self._signal_servers(signal.SIGCONT)
        self._held.set()

    def _signal_servers(self, word: signal.Signals) -> None:
        for server in self._servers:
            with suppress(ProcessLookupError):
                os.kill(server, word)

    def _told_to_end(self) -> bool:
        return self._starts or any(map(_has_ended, self._processes))

    def _end(self, words: str, code: int) -> None:
        try:
            with suppress(Exception):  # the remedy may read from a storage that cannot be reached
                words += f"; {self._remedy()}"
            sys.stdout.flush()
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # keeps Ray's last lines off the terminal
            self._signal_servers(signal.SIGSTOP)  # killed here, they would close the store
            for child in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    if child.pid not in self._servers:
                        child.kill()
            show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # a live table hides it
            os.write(sys.stderr.fileno(), f"{show_cursor}{words}\n".encode())
        finally:
            os._exit(code)


def _has_ended(child: int) -> bool:
    try:
        return _end_of(child) is not None
    except ChildProcessError:  # Ray has waited for it first
        return True


def _was_killed(child: int) -> bool:
    """By SIGKILL, as by a machine that is short of memory: no other signal explains it."""
    with suppress(ChildProcessError):
        end = _end_of(child)
        return end is not None and (end.si_code, end.si_status) == (os.CLD_KILLED, signal.SIGKILL)
    return False


def _end_of(child: int) -> os.waitid_result | None:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT | os.WNOHANG)


def _wait_for(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS / 10)
