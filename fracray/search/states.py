"""How far a trial is. Imports nothing that takes long."""

from enum import StrEnum


class State(StrEnum):
    """The state of a trial."""

    RUNNING = "running"
    DONE = "done"
    STOPPED = "stopped early"
    DIVERGED = "diverged"
    FAILED = "failed"
    INTERRUPTED = "interrupted"

    @property
    def finished(self) -> bool:
        """Whether the trial ended with a result."""
        return self in (State.DONE, State.STOPPED)

    @property
    def ended(self) -> bool:
        """Whether no epoch follows."""
        return self not in (State.RUNNING, State.INTERRUPTED)
