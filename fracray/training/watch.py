"""A training on the screen: a line for every epoch, and within an epoch its steps, its rate and the time left.

Reads the trial's folder and what its workers tell; decides nothing. Imports no Ray.
"""

import re
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial

from rich.console import Console

from fracray.config import Config
from fracray.errors import InputError, RunError
from fracray.runtime.console import ShowsStep, duration, progress_bar
from fracray.runtime.storage import Folder
from fracray.training.epochs import EpochResult, read_epochs
from fracray.training.growth import work_in
from fracray.training.steps import Reached

LOOK_SECONDS = 0.5
HELD_OUT_ACCURACY = re.compile(r"(val/[a-z]+|worst_val)_accuracy")


class TrainingLines:
    """Prints a line for every epoch as soon as the trial's folder has it, and shows how far the next one is.

    In a terminal that is a bar, in a log a line now and then. latest: the last message of the workers. heard: is called
    with all epochs when there is a new one.
    """

    def __init__(
        self,
        folder: Folder,
        config: Config,
        console: Console,
        latest: Callable[[], Reached | None],
        heard: Callable[[Sequence[EpochResult]], None] | None = None,
    ) -> None:
        self._folder, self._epochs, self._console = folder, config.train.epochs, console
        self._work, self._latest = partial(work_in, config), latest
        self._heard = heard
        self._history: list[EpochResult] = []
        self._bar = ExitStack()
        self._step: ShowsStep | None = None
        self._in_epoch = 0  # whose bar is shown
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._done.wait(LOOK_SECONDS):
            with suppress(InputError, RunError):  # a storage that cannot be reached: the next look catches up
                self._show()
            self._show_steps()

    def _show(self) -> None:
        history = read_epochs(self._folder)
        for result in history[len(self._history) :]:
            self._end_bar()
            self._console.print(epoch_line(result, self._epochs))
        if self._heard is not None and len(history) > len(self._history):
            self._heard(history)
        self._history = history

    def _show_steps(self) -> None:
        reached = self._latest()
        if reached is None or reached.epoch <= len(self._history):
            return
        if self._step is None or reached.epoch != self._in_epoch:
            self._end_bar()
            what = f"epoch {reached.epoch} of {self._epochs}"
            self._step = self._bar.enter_context(progress_bar(self._console, what, "steps", noted=True))
            self._in_epoch = reached.epoch
        self._step(reached.steps, reached.of, steps_note(reached, self._history, self._epochs, self._work))

    def _end_bar(self) -> None:
        self._bar.close()
        self._step = None

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self._thread.join()
        self._end_bar()
        if exc[0] is None:
            self._show()


def steps_note(reached: Reached, history: list[EpochResult], epochs: int, work: Callable[[int], float]) -> str:
    """The rate within an epoch and the time left of the training: '22 images/s, about 12 min 05 s left'.

    Before the first epoch has ended it is not known how long validation takes: then 'at least'. work: of an epoch,
    counted from 1, in units of an epoch on images of the full size.
    """
    if reached.rate is None:
        return ""
    each = reached.seconds / max(1, reached.steps)
    missing = each * (reached.of - reached.steps)
    later = sum(work(epoch) for epoch in range(reached.epoch + 1, epochs + 1))
    words = "at least"
    if history:
        full = history[-1].seconds / work(history[-1].epoch)
        missing = max(missing, full * work(reached.epoch) - reached.seconds) + full * later
        words = "about"
    else:
        missing += each * reached.of / work(reached.epoch) * later
    now = "validating, " if reached.steps == reached.of else ""
    return f"{now}{reached.rate:,.{0 if reached.rate >= 10 else 1}f} images/s, {words} {duration(missing)} left"


def epoch_line(result: EpochResult, epochs: int) -> str:
    """One epoch in one line."""
    values = result.metrics
    accuracy, auroc = (values.get(name, float("nan")) for name in ("val_accuracy", "val_auroc"))
    held_out = [f"{name.replace('_', ' ')} {values[name]:.4f}" for name in values if HELD_OUT_ACCURACY.fullmatch(name)]
    return "  ".join(
        (
            f"epoch {result.epoch:>3}/{epochs}",
            f"train loss {values['train_loss']:.4f}",
            f"val loss {values['val_loss']:.4f}",
            f"val accuracy {accuracy:.4f}",
            f"val AUROC {auroc:.4f}",
            *held_out,
            f"{result.seconds:.1f} s",
            *([f"{result.workers} workers"] if result.workers > 1 else []),
        )
    )
