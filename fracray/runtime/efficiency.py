"""Where a search's core-seconds go: into training and augmentation, its purpose, or into anything else.

A `Meter` counts the seconds of one process by phase; an `EfficiencyTracker` adds up those of all. Knows nothing of
models, of data or of Ray, and imports Torch only where a GPU is timed.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from fracray.runtime.timeline import FIRST_EPOCH, START, Stretch

if TYPE_CHECKING:
    import torch

TRAINING = "training"  # forward, backward, optimiser step, moving average of the weights
TRANSFORM = "transform"  # the augmentation's own arithmetic
USEFUL = (TRAINING, TRANSFORM)
STARTING = "starting"  # from the command to the first epoch, and between two trials of a process
DATA_WAIT = "data_wait"  # the training thread waits for a batch
AUGMENTATION = "augmentation"  # gathering images and handing batches over, around the transform
VALIDATION = "validation"
CHECKPOINTING = "checkpointing"
REPORTING = "reporting"  # from the end of an epoch until the search decides what is next
FINISHING = "finishing"  # from the last report to the summary
PHASES = (
    *USEFUL,
    STARTING,
    DATA_WAIT,
    AUGMENTATION,
    VALIDATION,
    CHECKPOINTING,
    REPORTING,
    FINISHING,
)
IDLE = "idle"  # also the time used by Ray and by other programs
WORDS = {
    TRAINING: "forward, backward, optimiser step",
    TRANSFORM: "augmentation's transform",
    STARTING: "starting",
    DATA_WAIT: "data wait",
    AUGMENTATION: "augmentation, around the transform",
    VALIDATION: "validation",
    CHECKPOINTING: "checkpointing",
    REPORTING: "reporting",
    FINISHING: "finishing",
    IDLE: "idle, and Ray's own work",
}
ASK_SECONDS = 5.0

Stretches: TypeAlias = "list[tuple[torch.cuda.Event, torch.cuda.Event]]"  # of a GPU's work: when each began and ended


class Meter:
    """Core-seconds of one process by phase, or device-seconds where it trains on (a share of) GPUs.

    On CPUs, work is counted in CPU time: of the calling thread or, with `threads` > 1, of the process minus its helper
    threads, because Torch's own threads then share the work. This includes what Ray's threads use at the same time.
    Waits are counted in wall time, times `cores`: this process's cores, or GPUs. So is all work on GPUs; helper threads
    cost the GPU nothing. When helpers work while the training thread waits, both are counted, so that the idle time,
    which is what remains, is somewhat too small.
    """

    def __init__(self, threads: int = 1, cores: float = 1.0, on_gpu: bool = False) -> None:
        self.cores = cores
        self._threads, self._on_gpu = threads, on_gpu
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._helped = 0.0  # CPU seconds of helpers that have ended
        self._helpers: dict[int, float] = {}  # the clocks of running helpers, and their values at the start
        self._lock = threading.Lock()

    def add(self, phase: str, seconds: float) -> None:
        """Count core-seconds that were measured elsewhere."""
        with self._lock:
            self._seconds[phase] += seconds

    def add_wall(self, phase: str, seconds: float) -> None:
        """Count seconds of wall time, for all cores of this process."""
        self.add(phase, seconds * self.cores)

    @contextmanager
    def work(self, phase: str) -> Iterator[None]:
        """Count the work of the block, done by the training thread."""
        if self._on_gpu:
            with self.waiting(phase):
                yield
            return
        begun = self._clock()
        try:
            yield
        finally:
            self.add(phase, self._clock() - begun)

    @contextmanager
    def stretch(self, phase: str, device: "torch.device", timed: Stretches) -> Iterator[None]:
        """Count the work of the block as `work` does; on a GPU append its begin and end to `timed`, to be read later.

        A GPU runs its work later than it gets it: only its own clock knows how long it took.
        """
        if device.type != "cuda":
            with self.work(phase):
                yield
            return
        import torch

        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun.record()
        yield
        ended.record()
        timed.append((begun, ended))

    @contextmanager
    def helping(self, phase: str) -> Iterator[None]:
        """Count the work of the block, done by another thread than the training thread."""
        begun = time.thread_time()
        try:
            yield
        finally:
            self.help(phase, time.thread_time() - begun)

    def help(self, phase: str, seconds: float) -> None:
        """Count CPU seconds of a helper, in this process or another; they cost a GPU nothing."""
        if not self._on_gpu:
            self.add(phase, seconds)

    @contextmanager
    def waiting(self, phase: str) -> Iterator[None]:
        """Count the wall time of the block, in which the training thread waits."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.add_wall(phase, time.perf_counter() - begun)

    @contextmanager
    def helper(self) -> Iterator[None]:
        """A block run by another thread, whose CPU time must not count as the training thread's."""
        clock = time.pthread_getcpuclockid(threading.get_ident())
        with self._lock:
            self._helpers[clock] = time.clock_gettime(clock)
        try:
            yield
        finally:
            with self._lock:
                self._helped += time.clock_gettime(clock) - self._helpers.pop(clock)

    def _clock(self) -> float:
        if self._threads == 1:
            return time.thread_time()
        with self._lock:
            helping = sum(time.clock_gettime(clock) - begun for clock, begun in self._helpers.items())
            return time.process_time() - self._helped - helping

    def take(self) -> dict[str, float]:
        """The core-seconds since the last call, by phase."""
        with self._lock:
            taken, self._seconds = self._seconds, dict.fromkeys(PHASES, 0.0)
        return taken


@dataclass(frozen=True)
class Efficiency:
    """How the core-seconds (on GPUs: device-seconds) of a run were used.

    wall: seconds; cores: of the cluster, or its GPUs, on average. seconds: core-seconds by phase; the rest was idle, or
    used by Ray and by other programs on the machines. start: what was done until the first epoch, as
    `Timeline.as_dict` has it, in seconds after the command.
    """

    wall: float
    cores: float
    seconds: Mapping[str, float]
    unit: str = "CPU"
    start: Mapping[str, Any] | None = None

    @property
    def available(self) -> float:
        """Core-seconds that could be used."""
        return self.wall * self.cores

    @property
    def value(self) -> float:
        """Share of the available time spent on training and on the augmentation's transform, 0 to 1."""
        return self.share(*USEFUL)

    def share(self, *phases: str) -> float:
        return sum(self.seconds.get(phase, 0.0) for phase in phases) / self.available if self.available else 0.0

    @property
    def idle(self) -> float:
        return max(0.0, 1.0 - self.share(*PHASES))

    def shares(self) -> dict[str, float]:
        """The share of each phase in the order of PHASES, then the idle share."""
        return {**{phase: self.share(phase) for phase in PHASES}, IDLE: self.idle}

    @property
    def first_epoch(self) -> float | None:
        """Seconds from the command to the first epoch; None where that is not known."""
        lanes = (self.start or {}).values()
        return min((one["begun"] for lane in lanes for one in lane if one["name"] == FIRST_EPOCH), default=None)

    def as_dict(self) -> dict[str, Any]:
        """For efficiency.json: JSON values only."""
        return {
            "efficiency": self.value,
            "wall_seconds": self.wall,
            "cores": self.cores,
            "unit": self.unit,
            "shares": self.shares(),
            "first_epoch_seconds": self.first_epoch,
            "start": self.start,
        }


class EfficiencyTracker:
    """Adds up the seconds that the trials of a search report, from the moment its command began.

    `cores` returns what is available now: the cluster's GPUs where trials run on them (`unit`), else its CPUs. It is
    called every few seconds, because clusters grow and shrink.
    """

    def __init__(self, begun: float, cores: Callable[[], float], unit: str) -> None:
        self._begun = self._counted = begun  # seconds since 1970, as are the other times
        self._ask, self._unit = cores, unit
        self._cores = cores()
        self._available = 0.0  # core-seconds until _counted
        self._starting: float | None = None  # core-seconds until the first epoch began
        self._last = begun
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._first: float | None = None  # when the first epoch was reported
        self._processes = 0

    def started(self, stretches: Sequence[Stretch]) -> None:
        """Note how a process that trains came to its first epoch, unless it began after another's first one."""
        if self._first is not None and min(one.begun for one in stretches) < self._first:
            self._processes += 1
            START.add(f"trial process {self._processes}", *stretches)

    def tell(self, core_seconds: Mapping[str, float], took: float) -> None:
        """Add the phases of an epoch that was just reported; `took`: its seconds of wall time."""
        self._last = time.time()
        if self._starting is None:
            self._count(self._last)
            self._first = self._last
            self._starting = max(0.0, self._available - took * self._cores)
        for phase in PHASES:
            self._seconds[phase] += core_seconds.get(phase, 0.0)

    def look(self) -> None:
        """Ask again what is available, if the last time was some seconds ago; call it often."""
        if (now := time.time()) - self._counted > ASK_SECONDS:
            self._count(now)

    def _count(self, now: float) -> None:
        self._available += (now - self._counted) * self._cores
        self._counted, self._cores = now, self._ask()

    def efficiency(self) -> Efficiency | None:
        """How all core-seconds until now were used; None before the first epoch is reported."""
        if self._starting is None:
            return None
        now = time.time()
        seconds = dict(self._seconds)
        seconds[STARTING] += self._starting
        seconds[FINISHING] += (now - self._last) * self._cores
        self._count(now)
        start, wall = START.as_dict(self._begun), now - self._begun
        return Efficiency(wall, self._available / wall, seconds, self._unit, start)
