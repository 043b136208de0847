"""The console: tables, cells and progress in one style. Knows nothing of what is shown."""

import os
import sys
import time
from math import isnan
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # rich takes a while to import, and a command that refuses its arguments needs none of it
    from rich.console import Console
    from rich.table import Table

LINE_SECONDS = 15.0  # between two lines of progress in a log


def new_console() -> "Console":
    """Standard output; as wide as the terminal, or wide enough for the tables where it goes to a file.

    Without markup and emoji: names of files and settings may hold brackets, and `gpu.yaml:100:` would lose its line.
    """
    from rich.console import Console

    known_width = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(highlight=False, markup=False, emoji=False, width=None if known_width else 120)


def new_table(*headings: str) -> "Table":
    """A table in fracray's style, which stays readable when it is copied as text."""
    from rich import box
    from rich.table import Table

    return Table(*headings, box=box.SIMPLE_HEAD, pad_edge=False)


def score_cell(value: float | None) -> str:
    """A score with three decimals; empty where there is none."""
    return "" if value is None or isnan(value) else f"{value:.3f}"


def setting_cell(value: Any) -> str:
    """A setting's value in a table."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def share_bar(share: float) -> str:
    """A bar for a share between 0 and 1."""
    return "█" * round(share * 30)


def counted(number: int, one: str, many: str = "") -> str:
    """'1 image' or '2,345 images'; `many` where the plural is not `one` with an s, as in 'image is', 'images are'."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def duration(seconds: float) -> str:
    """'5 s', '3 min 05 s' or '2 h 03 min'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def refresh_rate(console: "Console") -> float:
    """How often a second a live table or bar is drawn: rarely in the log of a job, which keeps every drawing."""
    return 2.0 if console.file.isatty() else 0.2


class ShowsStep(Protocol):
    """What a progress bar is told: how much is done, and a few words on it."""

    def __call__(self, done: int, total: int, note: str = "") -> None: ...


class progress_bar:  # noqa: N801 - used as `with progress_bar(...)`, like the functions of contextlib
    """A progress bar that appears with its first step and disappears when the work is done.

    Where the output goes to a file there is no bar, but a line every LINE_SECONDS, with the time left. With `noted`
    each step brings a note, which stands where the time left is shown otherwise.
    """

    def __init__(self, console: "Console", what: str, unit: str = "", noted: bool = False) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn(what, markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit, markup=False),
            TextColumn("{task.fields[note]}", markup=False) if noted else TimeRemainingColumn(),
            console=console,
            refresh_per_second=refresh_rate(console),
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(what, total=None, note="")
        self._what, self._unit, self._said = what, unit and f" {unit}", time.monotonic()
        self._first: tuple[float, int] | None = None  # when the first step was done, and what was done by then

    def __enter__(self) -> ShowsStep:
        self._bar.start()
        return self._step

    def _step(self, done: int, total: int, note: str = "") -> None:
        self._bar.update(self._task, completed=done, total=total, note=note)
        now = time.monotonic()
        since, before = self._first = self._first or (now, done)
        if self._bar.disable and now - self._said > LINE_SECONDS:
            left = f"about {duration((total - done) * (now - since) / (done - before))} left" if done > before else ""
            words = ", ".join(filter(None, (f"{self._what}: {done:,} of {total:,}{self._unit}", note or left)))
            self._bar.console.print(words, soft_wrap=True)
            self._said = now

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()
