"""The trainings of a refit: how long they take, which have ended, and the others for Tune, one after another.

Knows nothing of the console.
"""

import time
from collections.abc import Callable, Mapping
from math import fsum
from types import MappingProxyType
from typing import Any

from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from fracray.config import Config
from fracray.runtime.run_folder import trial_folder
from fracray.runtime.storage import Folder
from fracray.search.messages import Suggestion, TrialReport, searched
from fracray.search.refit import RefitPlan, make_plan, refit_config
from fracray.search.states import State
from fracray.search.study import RETRIES
from fracray.search.trials_table import TrialRow
from fracray.training.epochs import read_epochs, saved_epochs

MARGIN = 1.15  # of the estimate, for what is not an epoch
ASK_SECONDS = 2.0  # between two estimates
FAILED = "failed.json"  # in the run folder of a refit: why trainings failed, by number


def seconds_of_refit(
    config: Config,
    rows: Mapping[int, TrialRow],
    at_once: int,
    before: RefitPlan | None = None,
    done: Mapping[int, int] = MappingProxyType({}),
) -> float:
    """How long the refit that `search.refit` asks for takes, from the epochs so far of what it would train.

    before: its plan, where it has begun; done: the epochs that trainings have behind them, by number.
    """
    asked = config.search.refit
    plan = make_plan(config, rows, asked.top, asked.seeds, asked.over_folds, before)
    likely = [rows[number] for number in plan.configurations if number in rows]
    epochs = {row.number: [result.seconds for result in row.history] for row in (*likely, *rows.values())}
    known = [fsum(seconds) / len(seconds) for seconds in epochs.values() if seconds][: len(plan.configurations)]
    if not known:
        return 0.0
    models = refit_config(config, plan.folds).data.split.rotations / config.data.split.rotations
    left = sorted((config.train.epochs - done.get(number, 0) for number in plan.trials()), reverse=True)
    return MARGIN * fsum(known) / len(known) * models * sum(left[::at_once])


def kept_trainings(plan: RefitPlan, run: Folder, epochs: int) -> dict[int, TrialRow]:
    """Every training of a plan by number, as the run folder of the refit has it; `epochs` are planned of each."""
    failed = failures(run)
    return {
        number: _kept(trial_folder(run, number), number, leaves, epochs, number in failed)
        for number, leaves in plan.trials().items()
    }


def failures(run: Folder) -> dict[int, str]:
    """Why trainings failed, by number, from the run folder of a refit."""
    return {int(number): str(reason) for number, reason in (run.read_json_if_there(FAILED) or {}).items()}


def _kept(folder: Folder, number: int, leaves: Mapping[str, Any], epochs: int, failed: bool) -> TrialRow:
    history = tuple(read_epochs(folder))
    if history and history[-1].diverged:  # in its last epoch too
        return TrialRow(number, leaves, State.DIVERGED, history)
    kept = tuple(saved_epochs(folder, history))
    state = State.FAILED if failed else State.DONE if len(kept) >= epochs else State.INTERRUPTED
    return TrialRow(number, leaves, state, kept)


def _missing(kept: Mapping[int, TrialRow], epochs: int) -> list[int]:
    """The numbers of the trainings that a resumed refit runs: those that failed have another try."""
    return [number for number, row in kept.items() if row.state is not State.DIVERGED and len(row.history) < epochs]


class KeepsBack(Stopper):
    """Ends a search when what is left of its time budget is what its refit will take, and half of it at most."""

    def __init__(self, config: Config, at_once: int, rows: Callable[[], Mapping[int, TrialRow]], own: Folder) -> None:
        """own: the run folder of the refit."""
        assert config.search.time_budget is not None
        self.budget, self.kept, self.needed, self.ended = config.search.time_budget, 0.0, 0.0, False
        self._config, self._at_once, self._rows = config, at_once, rows
        self._before = RefitPlan.begun(own)
        kept = kept_trainings(self._before, own, config.train.epochs) if self._before else {}
        missing = _missing(kept, config.train.epochs)
        self._done = {n: len(row.history) if n in missing else config.train.epochs for n, row in kept.items()}
        self._begun = self._asked = time.monotonic()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        now = time.monotonic()
        if now - self._asked > ASK_SECONDS or not self.kept:
            self._asked = now
            self.needed = seconds_of_refit(self._config, self._rows(), self._at_once, self._before, self._done)
            self.kept = min(self.budget / 2, self.needed)
        self.ended = now - self._begun + self.kept >= self.budget
        return self.ended

    @property
    def words(self) -> str:
        """That it has ended the search, and why."""
        if round(self.kept) < 1:
            return f"the search ended with its time budget of {self.budget:.0f} s; nothing was kept back for the refit"
        told = f"the search ended early: {self.kept:.0f} s of the {self.budget:.0f} s were kept back for the refit"
        if self.needed <= self.kept:
            return told
        return (
            f"{told}, which may take {self.needed:.0f} s: half of the budget is the most that is kept back; --resume "
            "continues what is not finished, and a longer --time-budget or fewer epochs help"
        )

    @property
    def left(self) -> float:
        """Seconds of the budget that are left, one at least."""
        return max(1.0, self.budget - (time.monotonic() - self._begun))

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles it with the experiment, and never reads it


class RefitTrials(Searcher):
    """Hands out the trainings of a plan that have not ended, and knows how those that have did; for Tune.

    The state of a training is in its folder, and why it failed in the refit's. One that loses its process is handed out
    again, RETRIES times in a row without progress.
    """

    def __init__(self, plan: RefitPlan, run: Folder, config: Config) -> None:
        super().__init__(metric=searched(config.search.metrics[0]), mode=config.search.mode)
        self._metrics, self._trials = config.search.metrics, plan.trials()
        self._run, self._reasons = run, failures(run)
        self._before = kept_trainings(plan, run, config.train.epochs)
        self._pending = _missing(self._before, config.train.epochs)
        if again := self._reasons.keys() & self._pending:  # they have not failed any more, for a report either
            self._keep_reasons({number: why for number, why in self._reasons.items() if number not in again})
            self._before = kept_trainings(plan, run, config.train.epochs)
        self._running: dict[str, int] = {}
        self._reached: dict[int, int] = {}  # the last epoch of a training
        self._lost: dict[int, tuple[int, int]] = {}  # how often in a row, and after which epoch
        self._ended: dict[int, str] = {}  # with the reason of one that failed

    @property
    def remaining(self) -> int:
        """Trainings still to be handed out."""
        return len(self._pending)

    @property
    def budget(self) -> int:
        return len(self._trials)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if not self._pending:
            # A running training may lose its process and be handed out again; FINISHED could not be taken back.
            return None if self._running else Searcher.FINISHED
        number = self._running[trial_id] = self._pending.pop(0)
        return Suggestion(number, self._trials[number]).to_tune()

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        report = TrialReport.from_tune(result)
        if report.result is not None and trial_id in self._running:
            self._reached[self._running[trial_id]] = report.result.epoch

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        number = self._running.pop(trial_id, None)
        if number is None:
            return
        if not error:
            self._end(number, TrialReport.from_tune(result or {}).reason(self._metrics))
            return
        tries, before = self._lost.get(number, (0, 0))
        reached = self._reached.get(number, 0)
        tries = tries + 1 if reached <= before else 1
        self._lost[number] = (tries, reached)
        if tries <= RETRIES:
            self._pending.insert(0, number)
        else:
            self._end(number, f"lost {tries} times without progress")

    def _end(self, number: int, reason: str) -> None:
        self._ended[number] = reason
        if reason:
            self._keep_reasons({**self._reasons, number: reason})

    def _keep_reasons(self, reasons: dict[int, str]) -> None:
        """Write why trainings failed, for a report and for dashboards."""
        self._reasons = reasons
        self._run.write_json(FAILED, reasons)

    # As a ledger

    def rows(self) -> dict[int, TrialRow]:
        """The trainings that have begun."""
        return {number: row for number, row in self._before.items() if row.begun}

    def ended(self, row: TrialRow) -> tuple[TrialRow, str] | None:
        if row.number not in self._ended:
            return None
        reason = self._ended[row.number]
        diverged = row.history and row.history[-1].diverged
        state = State.DIVERGED if diverged else State.FAILED if reason else State.DONE
        return TrialRow(row.number, row.leaves, state, row.history), reason

    def send(self) -> None:
        """Nothing to send: the trainings' folders hold everything."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save, as in `study.StudySearcher`."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to read."""

    def __getstate__(self) -> dict[str, Any]:
        return {}
