"""What a command did until its first training step, second by second. Knows nothing of what that is."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

COMMAND, IMPORTS = "command", "command's imports"  # lanes
FIRST_EPOCH = "first epoch"


@dataclass(frozen=True)
class Stretch:
    """What was done from `begun` to `ended`, in seconds since 1970."""

    name: str
    begun: float
    ended: float


@dataclass
class Timeline:
    """Stretches by lane: what one thread or process does, one after another. Threads may add to it at once."""

    lanes: dict[str, list[Stretch]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, lane: str, *stretches: Stretch) -> None:
        with self._lock:
            self.lanes.setdefault(lane, []).extend(stretches)

    @contextmanager
    def stretch(self, name: str, lane: str = COMMAND) -> Iterator[None]:
        """Note how long the block took."""
        begun = time.time()
        try:
            yield
        finally:
            self.add(lane, Stretch(name, begun, time.time()))

    def as_dict(self, zero: float) -> dict[str, list[dict[str, Any]]]:
        """The lanes in JSON values, in seconds after `zero`; without what ended before it, as of an earlier command."""
        lanes = {
            lane: [
                {"name": one.name, "begun": round(one.begun - zero, 3), "ended": round(one.ended - zero, 3)}
                for one in sorted(stretches, key=lambda one: one.begun)
                if one.ended >= zero
            ]
            for lane, stretches in self.lanes.items()
        }
        return {lane: stretches for lane, stretches in lanes.items() if stretches}


START = Timeline()  # of this process' command
