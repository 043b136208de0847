"""Pictures that move on a terminal while something long is under way. Knows nothing of what it is."""

from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def pictures_a_second(console: Console) -> float:
    """How often a live table or bar is drawn: seldom in the log of a job, which keeps every picture of it."""
    return 2.0 if console.file.isatty() else 0.2


class progress_bar:  # noqa: N801 - used as `with progress_bar(...)`, like the functions of contextlib
    """A progress bar that appears with its first step and is gone when the work is done."""

    def __init__(self, console: Console, what: str) -> None:
        self._bar = Progress(
            TextColumn(what),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            refresh_per_second=pictures_a_second(console),
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(what, total=None)

    def __enter__(self) -> Callable[[int, int], None]:
        self._bar.start()
        return lambda done, total: self._bar.update(self._task, completed=done, total=total)

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()
