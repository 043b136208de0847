"""How far a training is within its epoch: its first worker counts, and tells now and then whoever shows it.

Imports neither Torch nor Ray.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

TELL_SECONDS = 1.0  # between two messages: a message costs a tenth of a millisecond


@dataclass(frozen=True)
class Reached:
    """How far an epoch is.

    epoch: counted from 1; steps: done, of `of`; seconds: since its first batch was asked for; rate: images a second
    over all workers, without the first step, which also warms up; None while there was no second one.
    """

    epoch: int
    steps: int
    of: int
    seconds: float
    rate: float | None = None


class StepCounter:
    """Counts the steps of an epoch, those of all models of a cross-validation together.

    Once every TELL_SECONDS it calls `tell`, and at the last step of an epoch of which it has told before. `of`: the
    steps of an epoch.
    """

    def __init__(self, of: int, tell: Callable[[Reached], None]) -> None:
        self._of, self._tell = of, tell
        self._epoch = 0

    def begin(self, epoch: int) -> None:
        """A model begins an epoch, counted from 1."""
        if epoch == self._epoch:  # another model of a cross-validation
            return
        self._epoch, self._steps, self._images = epoch, 0, 0
        self._began = self._told = self._warm = time.monotonic()
        self._spoke = False

    def step(self, images: int, unfinished: Callable[[], int]) -> None:
        """A step on so many images, of all workers; `unfinished`: the steps that a GPU has been given and not done."""
        self._steps += 1
        now = time.monotonic()
        if self._steps == 1:
            self._warm = now
        else:
            self._images += images
        if now - self._told < TELL_SECONDS and not (self._spoke and self._steps == self._of):
            return
        self._told, self._spoke = now, True
        done = max(0, self._steps - unfinished())
        rate = None
        if done > 1 and now > self._warm:
            rate = self._images * (done - 1) / (self._steps - 1) / (now - self._warm)
        self._tell(Reached(self._epoch, done, self._of, now - self._began, rate))


class Latest:
    """Keeps the last message of a training: an actor between the worker that counts and the command that shows."""

    def __init__(self) -> None:
        self._reached: Reached | None = None

    def put(self, reached: Reached) -> None:
        self._reached = reached

    def get(self) -> Reached | None:
        return self._reached
