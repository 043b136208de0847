"""The search as it runs: a live table of trials, the best so far, the time left, and trials.parquet.

Listens to Tune and decides nothing.
"""

import time
from math import isnan
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from optuna.trial import TrialState
from ray import tune
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fracray.metrics import is_validation
from fracray.runtime.console import pictures_a_second
from fracray.runtime.efficiency import PREFIX, RAN, EfficiencyTracker
from fracray.runtime.run_folder import EPOCHS, trial_folder, trial_name, vouched_epochs
from fracray.runtime.show import new_table
from fracray.runtime.storage import Folder
from fracray.search.space import SearchSpace
from fracray.search.study import FAILURE, JOURNAL, LEAVES

TRIALS = "trials.parquet"
ROWS_SHOWN = 18
SAVE_SECONDS = 5.0  # trials.parquet is written at most this often, and at the end
SAVE_SHARE = 0.01  # of the driver's time that writing it may take, for it grows with the search

RUNNING, DONE, STOPPED, FAILED, WAITING = "running", "done", "stopped early", "failed", "interrupted"


class TrialRow:
    """What is known of one trial: where it stands and an entry per finished epoch."""

    def __init__(self, number: int, leaves: dict[str, Any], state: str, history: list[dict[str, Any]]) -> None:
        self.number, self.leaves, self.state, self.history = number, leaves, state, history

    @property
    def name(self) -> str:
        return trial_name(self.number)

    def best(self, metric: str) -> float:
        """The value at the best epoch; nan before the first."""
        return float(self.history[-1].get(f"best_{metric}", float("nan"))) if self.history else float("nan")


def collect(run: Folder, study: optuna.Study, epochs: int) -> dict[int, TrialRow]:
    """Every trial of a run by number, from the study and the trials' folders."""
    rows = {}
    for frozen in study.get_trials(deepcopy=False):
        if frozen.state is TrialState.WAITING:
            continue
        folder = trial_folder(run, frozen.number)
        history = folder.read_json(EPOCHS) if folder.exists(EPOCHS) else []
        leaves = frozen.user_attrs.get(LEAVES, {})
        # A default outside the searched ranges runs beside the study, which only holds it as failed.
        ended_well = frozen.state is TrialState.COMPLETE or (frozen.number == 0 and not leaves and len(history) > 0)
        state = WAITING if frozen.state is TrialState.RUNNING else FAILED
        if ended_well:
            state = DONE if len(history) >= epochs else STOPPED
        else:
            history = vouched_epochs(folder)
        rows[frozen.number] = TrialRow(frozen.number, leaves, state, history)
    return rows


def better(row: TrialRow, other: TrialRow, metric: str, mode: str) -> bool:
    """Whether one trial beats another: in the metric at its best epoch or, as accuracies tie, in validation loss."""
    mine, theirs = row.best(metric), other.best(metric)
    if isnan(mine) or isnan(theirs):
        return isnan(theirs) and not isnan(mine)
    if mine == theirs:
        return row.best("val_loss") < other.best("val_loss")
    return mine > theirs if mode == "max" else mine < theirs


def best_row(rows: dict[int, TrialRow], metric: str, mode: str) -> TrialRow | None:
    """The best trial that has finished at least one epoch."""
    best: TrialRow | None = None
    for row in rows.values():
        if not isnan(row.best(metric)) and (best is None or better(row, best, metric, mode)):
            best = row
    return best


def write_trials(run: Folder, rows: dict[int, TrialRow]) -> None:
    """trials.parquet: a row per trial and epoch, with the searched leaves by dotted path."""
    table = pd.DataFrame(
        [
            {"trial": row.name, "number": row.number, "state": row.state, **row.leaves, **entry}
            for row in rows.values()
            for entry in row.history
        ]
    )
    if len(table):
        for column in table.select_dtypes("object"):  # a searched setting may mix words, numbers and null
            table[column] = table[column].map(str, na_action="ignore")
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pandas(table, preserve_index=False), sink)
        run.write(TRIALS, sink.getvalue().to_pybytes())


class SearchProgress(tune.Callback):
    """Shows the search on a terminal as a live table, elsewhere as a line per finished trial."""

    def __init__(
        self,
        space: SearchSpace,
        run: Folder,
        study: optuna.Study,
        journal: Path,
        concurrent: int,
        budget: int,
        tracker: EfficiencyTracker,
        console: Console,
    ) -> None:
        self._space, self._run, self._console = space, run, console
        self._study, self._journal = study, journal
        self._metric, self._mode = space.metrics[0], space.config.search.mode
        self._epochs, self._concurrent, self._budget = space.config.train.epochs, concurrent, budget
        self._tracker = tracker
        self.rows = collect(run, study, self._epochs)
        self._started = time.monotonic()
        self._ran = 0  # epochs since this driver began
        self._save_again = 0.0
        self._live = Live(
            get_renderable=self._render,
            console=console,
            refresh_per_second=pictures_a_second(console),
            transient=True,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks with the experiment, and reads them never

    def __enter__(self) -> "SearchProgress":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._console.is_terminal:
            self._live.stop()
            self._console.print(self._table())
        self._save(always=True)

    # Tune's events

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self._tracker.look()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        number = trial.config["number"]
        history = self.rows[number].history if number in self.rows else []
        self.rows[number] = TrialRow(number, trial.config["leaves"], RUNNING, history)
        # Before its folder holds anything: a driver killed now would else give this number to other settings.
        self._send_journal()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if FAILURE in result:
            return
        row = self.rows[trial.config["number"]]
        entry = {
            k: v
            for k, v in result.items()
            if is_validation(k.removeprefix("best_"))
            or k in ("epoch", "train_loss", "lr", "seconds")
            or k.startswith(PREFIX)
        }
        row.history = [*[old for old in row.history if old["epoch"] < entry["epoch"]], entry]
        self._ran += 1
        if result[RAN]:
            self._tracker.tell(entry, result["time_this_iter_s"])
        self._save()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        row = self.rows[trial.config["number"]]
        reason = trial.last_result.get(FAILURE)
        if trial.last_result.get("diverged"):
            reason = "its loss is no longer finite; lower train.lr or clip the gradient"
        if reason:
            self._console.print(f"{row.name} failed: {reason}", soft_wrap=True)
        row.state = FAILED if reason else DONE if len(row.history) >= self._epochs else STOPPED
        self._finished(row)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        number = trial.config["number"]  # its process may have failed before the trial was said to have started
        row = self.rows.setdefault(number, TrialRow(number, trial.config["leaves"], WAITING, []))
        if not self._study.get_trials(deepcopy=False)[number].state.is_finished():
            row.state = WAITING
            self._console.print(
                f"{row.name} ended in epoch {len(row.history) + 1} and is taken up again: {_reason(trial)}",
                soft_wrap=True,
            )
            return
        row.state = FAILED
        self._console.print(f"{row.name} failed: {_reason(trial)}", soft_wrap=True)
        self._finished(row)

    def _finished(self, row: TrialRow) -> None:
        if not self._console.is_terminal:
            best = best_row(self.rows, self._metric, self._mode)
            words = (
                f"{row.name} {row.state} after {len(row.history)} epochs: {self._metric} {row.best(self._metric):.4f}"
            )
            if best is not None:
                words += f" (best so far {best.best(self._metric):.4f}, {best.name})"
            self._console.print(f"[{self._ended()}/{self._budget}] {words}; {self._left()}", soft_wrap=True)
        self._save()

    def _save(self, always: bool = False) -> None:
        begun = time.monotonic()
        if always or begun >= self._save_again:
            write_trials(self._run, self.rows)
            self._send_journal()
            ended = time.monotonic()
            self._save_again = ended + max(SAVE_SECONDS, (ended - begun) / SAVE_SHARE)

    def _send_journal(self) -> None:
        if not self._run.is_local:
            self._run.write(JOURNAL, self._journal.read_bytes())

    # What is shown

    def _ended(self) -> int:
        return sum(row.state in (DONE, STOPPED, FAILED) for row in self.rows.values())

    def _left(self) -> str:
        """Estimated time left, from the epochs a trial takes so far and the epochs finished a second."""
        elapsed = time.monotonic() - self._started
        ended = [len(row.history) for row in self.rows.values() if row.state in (DONE, STOPPED)]
        each = sum(ended) / len(ended) if ended else float(self._epochs)
        begun = [len(row.history) for row in self.rows.values() if row.state in (RUNNING, WAITING)]
        # One that is past the usual length was not stopped, and goes to its end.
        missing = sum((each if done < each else self._epochs) - done for done in begun)
        missing += each * max(0, self._budget - self._ended() - len(begun))
        if not self._ran:
            return "time left: unknown yet"
        seconds = missing * elapsed / self._ran
        budget = self._space.config.search.time_budget
        if budget is not None:
            seconds = min(seconds, max(0.0, budget - elapsed))
        return f"about {_duration(seconds)} left"

    def _render(self) -> Group:
        best = best_row(self.rows, self._metric, self._mode)
        gone = _duration(time.monotonic() - self._started)
        words = f"{self._ended()} of {self._budget} trials, {gone} gone, {self._left()}"
        if best is not None:
            words += f"; best {self._metric} {best.best(self._metric):.4f} ({best.name})"
        return Group(self._table(ROWS_SHOWN), Text(words))

    def _table(self, most: int | None = None) -> Table:
        paths = [dimension.path for dimension in self._space.dimensions]
        table = new_table("trial", "state", "epoch", self._metric)
        for path in paths:
            table.add_column(path.partition(".")[2].replace("_", " "), justify="right", overflow="fold")
        best = best_row(self.rows, self._metric, self._mode)
        rows = sorted(self.rows.values(), key=lambda row: row.number)
        if most is not None and len(rows) > most:
            keep = {row.number for row in rows[-most:]} | ({best.number} if best else set())
            rows = [row for row in rows if row.number in keep]
        for row in rows:
            value = row.best(self._metric)
            table.add_row(
                row.name,
                row.state,
                f"{len(row.history)}/{self._epochs}",
                "" if isnan(value) else f"{value:.4f}",
                *(cell(row.leaves[path]) if path in row.leaves else "" for path in paths),
                style="bold green" if row is best else "dim" if row.state in (FAILED, WAITING) else "",
            )
        return table


def _reason(trial: Any) -> str:
    """The last line of a trial's error, and where the whole of it stands."""
    error = trial.get_error()
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] if error is not None else []
    if not lines or isinstance(error, ray.exceptions.RayActorError):  # which says so at length
        return "its process ended (killed, or short of memory?)"
    return f"{lines[-1]} (all of it in {trial.error_file})"


def cell(value: Any) -> str:
    """A setting's value in a table."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
