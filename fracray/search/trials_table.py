"""The trials of a run as a table: their states and epochs, the best one, and trials.parquet."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import isnan
from pathlib import Path
from typing import Any, Protocol

import optuna
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from optuna.trial import FrozenTrial, TrialState

from fracray.config import SearchConfig
from fracray.runtime.run_folder import TRIALS, trial_folder, trial_name
from fracray.runtime.storage import Folder
from fracray.search.constraints import rank_key
from fracray.search.states import State
from fracray.search.study import JOURNAL, LEAVES, REASON
from fracray.training.epochs import EpochResult, read_epochs, saved_epochs


@dataclass(frozen=True)
class TrialRow:
    """What is known of one trial: its settings by dotted path, its state, and its finished epochs."""

    number: int
    leaves: Mapping[str, Any]
    state: State
    history: tuple[EpochResult, ...] = field(default=(), repr=False)

    @property
    def name(self) -> str:
        return trial_name(self.number)

    @property
    def begun(self) -> bool:
        """Whether it has an epoch, or has failed before its first."""
        return bool(self.history) or self.state is State.FAILED

    def best(self, metric: str) -> float:
        """The metric at the best epoch; nan before the first."""
        return self.history[-1].value(metric) if self.history else float("nan")

    def with_epoch(self, result: EpochResult) -> "TrialRow":
        """The row with one more epoch; one that is reported again replaces the first report."""
        earlier = tuple(old for old in self.history if old.epoch < result.epoch)
        return replace(self, history=(*earlier, result))

    def ended(self, frozen: FrozenTrial, epochs: int) -> "TrialRow":
        """The row of a trial that has ended as the study holds it, of which `epochs` epochs were planned."""
        # A default outside the searched ranges runs too, but the study can only hold it as failed.
        outside = frozen.number == 0 and not self.leaves and len(self.history) > 0
        if self.history and self.history[-1].diverged:
            state = State.DIVERGED
        elif frozen.state is TrialState.FAIL and not (outside and REASON not in frozen.user_attrs):
            state = State.FAILED
        else:
            state = State.DONE if len(self.history) >= epochs else State.STOPPED
        return replace(self, state=state)


class Ledger(Protocol):
    """What is written down of the trials of a run, besides their folders."""

    def rows(self) -> dict[int, TrialRow]:
        """Every trial that has begun, by number."""

    def ended(self, row: TrialRow) -> tuple[TrialRow, str] | None:
        """A trial as it has ended, and why it failed, if it did; None while it will be taken up again."""

    def send(self) -> None:
        """Bring the run's storage up to date."""


@dataclass(frozen=True)
class StudyLedger:
    """The ledger of a search: Optuna's study, whose local journal is sent to the run's storage."""

    run: Folder
    study: optuna.Study
    journal: Path
    epochs: int

    def rows(self) -> dict[int, TrialRow]:
        return collect(self.run, self.study, self.epochs)

    def ended(self, row: TrialRow) -> tuple[TrialRow, str] | None:
        storage = self.study._storage
        trial_id = storage.get_trial_id_from_study_id_trial_number(self.study._study_id, row.number)
        frozen = storage.get_trial(trial_id)  # not by the list of all trials, which grows
        if not frozen.state.is_finished():
            return None
        return row.ended(frozen, self.epochs), str(frozen.user_attrs.get(REASON, ""))

    def send(self) -> None:
        if not self.run.is_local:
            self.run.write(JOURNAL, self.journal.read_bytes())


def collect(run: Folder, study: optuna.Study, epochs: int) -> dict[int, TrialRow]:
    """Every trial of a run by number, from the study and the trials' folders."""
    rows = {}
    for frozen in study.get_trials(deepcopy=False):
        if frozen.state is TrialState.WAITING:
            continue
        folder = trial_folder(run, frozen.number)
        row = TrialRow(frozen.number, frozen.user_attrs.get(LEAVES, {}), State.INTERRUPTED)
        if frozen.state is TrialState.RUNNING:
            rows[frozen.number] = replace(row, history=tuple(saved_epochs(folder)))
            continue
        ended = replace(row, history=tuple(read_epochs(folder))).ended(frozen, epochs)
        # The last epochs of a trial that failed may have no checkpoint.
        kept = tuple(saved_epochs(folder, ended.history)) if ended.state is State.FAILED else ended.history
        rows[frozen.number] = replace(ended, history=kept)
    return rows


def best_row(rows: Iterable[TrialRow], search: SearchConfig) -> TrialRow | None:
    """The best trial by the first metric at its best epoch, then by validation loss; None before the first epoch.

    Trials that satisfy the search's constraints come before those that do not, and of these the one that comes closest.
    A trial that failed or diverged is none, whatever its epochs before reached.
    """
    return next(iter(best_rows(rows, search)), None)


def best_rows(rows: Iterable[TrialRow], search: SearchConfig) -> list[TrialRow]:
    """The trials that could be the best one, the best first: see `best_row`."""
    metric, lost = search.metrics[0], (State.FAILED, State.DIVERGED)
    finished = [row for row in rows if row.state not in lost and not isnan(row.best(metric))]
    return sorted(finished, key=lambda row: rank_key(row.best, search), reverse=True)  # of equals, the earlier first


def write_trials(run: Folder, rows: Iterable[TrialRow]) -> None:
    """trials.parquet: a row per trial and epoch, with the searched settings by dotted path."""
    table = pd.DataFrame(
        [
            {"trial": row.name, "number": row.number, "state": str(row.state), **row.leaves, **result.to_json()}
            for row in rows
            for result in row.history
        ]
    )
    if len(table):
        for column in table.select_dtypes("object"):  # a searched setting may mix words, numbers and null
            table[column] = table[column].map(str, na_action="ignore")
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pandas(table, preserve_index=False), sink)
        run.write(TRIALS, sink.getvalue().to_pybytes())
