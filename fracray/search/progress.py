"""A search while it runs: a live table of trials, the best so far, the time left, and trials.parquet.

Listens to Tune and decides nothing.
"""

import time
from collections.abc import Callable, Collection
from contextlib import suppress
from math import isnan
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle, tune
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fracray.runtime.console import counted, duration, new_table, refresh_rate, setting_cell
from fracray.runtime.efficiency import EfficiencyTracker
from fracray.runtime.storage import Folder
from fracray.search.constraints import standing
from fracray.search.messages import Suggestion, TrialReport
from fracray.search.space import SearchSpace
from fracray.search.states import State
from fracray.search.trials_table import Ledger, TrialRow, best_row, write_trials

ROWS_SHOWN = 18
SAVE_SECONDS = 5.0  # trials.parquet is written at most this often, and at the end
SAVE_SHARE = 0.01  # largest share of the driver's time for writing it: the table grows with the search


class SearchProgress(tune.Callback):
    """Shows the search on a terminal as a live table, elsewhere as a line per finished trial."""

    def __init__(
        self,
        space: SearchSpace,
        run: Folder,
        ledger: Ledger,
        budget: int,
        tracker: EfficiencyTracker,
        console: Console,
        time_budget: float | None,
        heard: Callable[[TrialRow], None] | None = None,
    ) -> None:
        """`budget`: the number of trials in all; `time_budget`: the seconds after which they are stopped.

        `heard` is called with every row that is new or has changed.
        """
        self._run, self._ledger, self._console = run, ledger, console
        self._paths = [dimension.path for dimension in space.dimensions]
        self._metric, self._search = space.metrics[0], space.config.search
        self._epochs, self._budget, self._time_budget = space.config.train.epochs, budget, time_budget
        self._tracker = tracker
        self.rows: dict[int, TrialRow] = {}
        # What is said after each trial is kept here: adding it up over all rows would take ever longer.
        self._open: dict[int, TrialRow] = {}  # the rows that have not ended
        self._best: TrialRow | None = None
        self._finished_trials = self._finished_epochs = 0
        self._heard = heard
        self.then: Callable[[], object] | None = None  # called once, when an epoch is reported
        for row in ledger.rows().values():
            self._keep(row)
        self._started = time.monotonic()
        self._ran = 0  # epochs since this driver started
        self._save_again = 0.0
        self._live = Live(
            get_renderable=self._render,
            console=console,
            refresh_per_second=refresh_rate(console),
            transient=True,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks with the experiment, and never reads them

    def __enter__(self) -> "SearchProgress":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._console.is_terminal:
            self._live.stop()
            self._console.print(self._table())
        self._save(always=True)

    def unfinished(self, apart_from: Collection[int] = ()) -> bool:
        """Whether a trial has begun and not ended, apart from those of these numbers."""
        return any(number not in apart_from for number in self._open)

    @property
    def elapsed(self) -> float:
        """Seconds since the trials began to run."""
        return time.monotonic() - self._started

    # Tune's events

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self._tracker.look()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        started = Suggestion.from_tune(trial.config)
        before = self.rows.get(started.number)
        history = before.history if before else ()
        self._keep(TrialRow(started.number, started.leaves, State.RUNNING, history))
        # Before its folder holds anything: if the driver were killed now, another trial would get this number.
        self._ledger.send()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        report = TrialReport.from_tune(result)
        if report.result is None:
            return
        number = Suggestion.from_tune(trial.config).number
        row = self.rows[number]
        if report.ran or report.result.epoch > len(row.history):  # a trial taken up again repeats what is known
            self._keep(row.with_epoch(report.result))
        if report.ran:
            self._ran += 1
            if self.then is not None:
                self.then()
                self.then = None
            self._tracker.tell(report.result.core_seconds, result["time_this_iter_s"])
            if report.started:
                self._tracker.started(report.started)
        self._save()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        ended = self._ledger.ended(self.rows[Suggestion.from_tune(trial.config).number])
        assert ended is not None, "Tune has told the searcher before"
        row, reason = ended
        if reason:
            self._console.print(f"{row.name} {row.state}: {reason}", soft_wrap=True)
        self._finished(row)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        lost = Suggestion.from_tune(trial.config)
        # The process may have failed before Tune said that the trial has started.
        row = self.rows.get(lost.number) or TrialRow(lost.number, lost.leaves, State.INTERRUPTED)
        ended = self._ledger.ended(row)
        if ended is None:
            self._keep(TrialRow(lost.number, lost.leaves, State.INTERRUPTED, row.history))
            self._console.print(
                f"{row.name} was lost in epoch {len(row.history) + 1} and will be resumed: {_reason(trial)}",
                soft_wrap=True,
            )
            return
        self._console.print(f"{row.name} failed: {_reason(trial)}", soft_wrap=True)
        self._finished(ended[0])

    def _finished(self, row: TrialRow) -> None:
        self._keep(row)
        if not self._console.is_terminal:
            best = self._best
            words = f"{row.name} {row.state} after {counted(len(row.history), 'epoch')}: "
            words += f"{self._metric} {row.best(self._metric):.4f}"
            if self._search.constraints and row.history:
                words += f", {standing(row.best, self._search)}"
            if best is not None:
                words += f" (best so far {best.best(self._metric):.4f}, {best.name})"
            self._console.print(f"[{self._ended()}/{self._budget}] {words}; {self._left()}", soft_wrap=True)
        self._save()

    def _keep(self, row: TrialRow) -> None:
        before = self.rows.get(row.number)
        self.rows[row.number] = row
        for one, sign in ((before, -1), (row, 1)):
            if one is not None and one.state.finished:
                self._finished_trials += sign
                self._finished_epochs += sign * len(one.history)
        if row.state.ended:
            self._open.pop(row.number, None)
        else:
            self._open[row.number] = row
        self._rank(row)
        if self._heard is not None:
            self._heard(row)

    def _save(self, always: bool = False) -> None:
        begun = time.monotonic()
        if always or begun >= self._save_again:
            write_trials(self._run, self.rows.values())
            self._ledger.send()
            ended = time.monotonic()
            self._save_again = ended + max(SAVE_SECONDS, (ended - begun) / SAVE_SHARE)

    # What is shown

    def _rank(self, row: TrialRow) -> None:
        """Find the best row again after one has changed."""
        best = self._best
        if best is None:
            self._best = best_row((row,), self._search)
        elif best.number == row.number:
            still = best_row((row, best), self._search) is row
            self._best = row if still else best_row(self.rows.values(), self._search)
        elif (first := best_row((row, best), self._search)) is best_row((best, row), self._search):
            self._best = first
        else:  # they are equal: the earlier of all rows that are
            self._best = best_row(self.rows.values(), self._search)

    def _satisfies(self, row: TrialRow) -> bool:
        return not self._search.broken(row.best)

    def _ended(self) -> int:
        return len(self.rows) - len(self._open)

    def _left(self) -> str:
        """Estimated time left, from the epochs that a trial takes so far and the epochs finished per second."""
        elapsed = self.elapsed
        each = self._finished_epochs / self._finished_trials if self._finished_trials else float(self._epochs)
        # A copy, made at once: the table is drawn by a thread of its own.
        begun = [len(row.history) for row in list(self._open.values())]
        # A trial beyond the usual length was not stopped early, and will run to its last epoch.
        missing = sum((each if done < each else self._epochs) - done for done in begun)
        missing += each * max(0, self._budget - self._ended() - len(begun))
        if not self._ran:
            return "time left: not known yet"
        seconds = missing * elapsed / self._ran
        if self._time_budget is not None:
            seconds = min(seconds, max(0.0, self._time_budget - elapsed))
        return f"about {duration(seconds)} left"

    def _render(self) -> Group:
        best = self._best
        gone = duration(self.elapsed)
        words = f"{self._ended()} of {self._budget} trials, {gone} gone, {self._left()}"
        if best is not None:
            words += f"; best {self._metric} {best.best(self._metric):.4f} ({best.name})"
            words += "" if self._satisfies(best) else ", but no trial satisfies the constraints yet"
        return Group(self._table(ROWS_SHOWN), Text(words))

    def _table(self, most: int | None = None) -> Table:
        bound = [metric for metric in self._search.constraints if metric != self._metric]
        more = (*bound, "constraints") if self._search.constraints else ()
        table = new_table("trial", "state", "epoch", self._metric, *more)
        for path in self._paths:
            table.add_column(path.partition(".")[2].replace("_", " "), justify="right", overflow="fold")
        best, numbers = self._best, sorted(self.rows)
        if most is not None and len(numbers) > most:
            first = {best.number} - {*numbers[-most:]} if best else set()
            numbers = [*first, *numbers[-most:]]
        for row in map(self.rows.__getitem__, numbers):
            value = row.best(self._metric)
            dim = row.state in (State.FAILED, State.DIVERGED, State.INTERRUPTED)
            table.add_row(
                row.name,
                row.state,
                f"{len(row.history)}/{self._epochs}",
                "" if isnan(value) else f"{value:.4f}",
                *("" if isnan(row.best(metric)) else f"{row.best(metric):.4f}" for metric in bound),
                *(("satisfied" if self._satisfies(row) else "broken") if row.history else "" for _ in more[-1:]),
                *(setting_cell(row.leaves[path]) if path in row.leaves else "" for path in self._paths),
                style="bold green" if row is best else "dim" if dim else "",
            )
        return table


def _reason(trial: Any) -> str:
    """The last line of a trial's error and the file with all of it, or that its process ended."""
    error = None
    # Tune's own `get_error` looks in the storage, to which the file is copied later.
    if trial.pickled_error_file is not None:
        with suppress(Exception):  # errors of any library, which need not survive this
            error = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    # The text of one that tells of a lost process is long.
    lines = [] if error is None or isinstance(error, ray.exceptions.RayActorError) else str(error).split("\n")
    said = [line.strip() for line in lines if line.strip()]
    if not said:
        return "its process ended (killed, or out of memory?)"
    return f"{said[-1]} (full error in {Path(trial.storage.trial_fs_path, Path(trial.error_file).name)})"
