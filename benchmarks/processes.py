"""Processes measured: a command's wall time, and what this process and all that it started, Ray's included, use."""

import multiprocessing
import os
import subprocess
import threading
import time
from collections.abc import Sequence
from multiprocessing.context import ForkServerContext
from types import TracebackType

import psutil

EVERY = 0.25  # seconds between two looks


def timed(command: Sequence[str]) -> float:
    """Wall seconds of a command; SystemExit with its last output if it failed."""
    begun = time.perf_counter()
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-3000:]}")
    return time.perf_counter() - begun


class PeakMemory:
    """`with PeakMemory() as memory: ...`, then `memory.peak` and `memory.before`, in bytes.

    Counted is what the processes hold in memory (Linux' PSS: a page that several of them share is counted once).
    """

    def __init__(self) -> None:
        self.before = self.peak = _held()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._over.wait(EVERY):
            self.peak = max(self.peak, _held())

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        self.peak = max(self.peak, _held())


def cpu_seconds() -> dict[int, float]:
    """CPU time by process so far, s; compare two with `cpu_spent`."""
    spent = {}
    for process in _tree():
        try:
            times = process.cpu_times()
            spent[process.pid] = times.user + times.system
        except psutil.Error:  # ended meanwhile
            continue
    return spent


def cpu_spent(before: dict[int, float], after: dict[int, float]) -> float:
    """CPU seconds between two looks; what a process spent that ended between them is not counted."""
    return sum(value - before.get(pid, 0.0) for pid, value in after.items())


def _tree() -> list[psutil.Process]:
    this = psutil.Process()
    return [this, *this.children(recursive=True)]


def _held() -> int:
    total = 0
    for process in _tree():
        try:
            total += process.memory_full_info().pss
        except psutil.Error:  # ended meanwhile
            continue
    return total


def server() -> ForkServerContext:
    """Where processes are started that have the slow imports behind them.

    On a machine that has not imported them yet, each process would take half a minute for them, all at once.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "timm", "torchvision", "fracray.training.loop"])
    return context


def end_with_parent() -> None:
    """Called in such a process: it ends when the one that started it ends, however that was."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
