"""Optuna's study as a searcher of Ray Tune, kept in a journal file that outlives both.

Ray's own OptunaSearch cannot resume on a persistent storage: after a killed driver it tells a trial twice and
crashes. Here the study is the truth: a trial is known by its number in it, told once, and taken up again from its
own folder where a former driver left it, or where its process was lost.
"""

import fcntl
import logging
import math
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher

from fracray.errors import InputError
from fracray.runtime.storage import Folder
from fracray.search.space import SearchSpace

RETRIES = 2  # in a row without getting further, of a trial whose process died or whose code failed
FAILURE = "failure"  # in a trial's result: why it cannot be run at all, on whatever process
LEAVES, REASON = "leaves", "reason"  # what is kept of a trial beside Optuna's own
TRIES, REACHED = "tries", "reached"  # how often in a row a trial was lost, and the furthest epoch it had finished
JOURNAL = "optuna.journal"
LOCK = "search.lock"
STUDY = "fracray"


def open_study(journal: Path, space: SearchSpace) -> optuna.Study:
    """Open or begin the study of a run; optuna-dashboard opens the same file."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("optuna").setLevel(logging.ERROR)
    lock = JournalFileOpenLock(str(journal))
    _drop_half_entry(journal, lock)
    storage = JournalStorage(JournalFileBackend(str(journal), lock_obj=lock))
    begun = bool(storage.get_all_studies())
    told = len(storage.get_all_trials(storage.get_study_id_from_name(STUDY))) if begun else 0
    study = optuna.create_study(
        storage=storage,
        study_name=STUDY,
        directions=["maximize" if space.config.search.mode == "max" else "minimize"] * len(space.metrics),
        sampler=space.sampler(told),
        load_if_exists=True,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names(list(space.metrics))
    return study


def _drop_half_entry(journal: Path, lock: JournalFileOpenLock) -> None:
    """Cut off a last entry that a full disk or a power cut left half written: Optuna could never read past it."""
    if not journal.exists():
        return
    lock.acquire()  # else the entry might be one that another process is writing
    try:
        entries = journal.read_bytes()
        os.truncate(journal, entries.rfind(b"\n") + 1)
    finally:
        lock.release()


@contextmanager
def local_journal(run: Folder) -> Iterator[Path]:
    """A local path of the study's journal: the file itself on a path, a copy that the board sends back on a URI."""
    if run.is_local:
        yield Path(run.path(JOURNAL))
        return
    with tempfile.TemporaryDirectory() as scratch:
        journal = Path(scratch) / JOURNAL
        if run.exists(JOURNAL):
            journal.write_bytes(run.read(JOURNAL))
        yield journal
        run.write(JOURNAL, journal.read_bytes())


@contextmanager
def only_driver(run: Folder) -> Iterator[None]:
    """Be the one driver of a search; InputError where another one lives. A killed one is none, whatever it left behind.

    On a URI, and on a disk without locks, nothing is checked.
    """
    if not run.is_local:
        yield
        return
    with open(run.path(LOCK), "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{run}: another command is searching in this run; wait for its end, or stop it with Ctrl-C"
            ) from None
        except OSError:
            pass
        yield


class StudySearcher(Searcher):
    """Hands Optuna's suggestions to Tune and tells Optuna the best epoch's values.

    A suggestion is `{"number": trial number, "leaves": {dotted path: value}}`. The first trial is always the default
    configuration. Trials that a former driver left unfinished, or that lost their process, are handed out again before
    new ones are asked for; `budget` trials (of a grid, no more than it has) are finished in all, over every resume.

    Tune's own retries are not used: it gives up a trial whose process dies between two trials, and forgets its count
    with the driver.
    """

    def __init__(self, space: SearchSpace, journal: Path, budget: int) -> None:
        super().__init__(metric=f"best_{space.metrics[0]}", mode=space.config.search.mode)
        self._space, self._budget = space, min(budget, space.grid_points or budget)
        self.study = open_study(journal, space)
        self._running: dict[str, optuna.Trial] = {}
        self._epochs: dict[str, int] = {}  # finished by those running, as last told
        self._unfinished = list(self.study.get_trials(states=(TrialState.RUNNING,)))

    @property
    def remaining(self) -> int:
        """Trials still to be handed out."""
        trials = self.study.get_trials(deepcopy=False)
        begun = sum(trial.state is not TrialState.WAITING for trial in trials)
        return self._budget - begun + len(self._unfinished)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if self.remaining <= 0:
            # Those under way may yet lose their processes and come back; FINISHED could not be taken back.
            return None if self._running else Searcher.FINISHED
        if self._unfinished:
            frozen = self._unfinished.pop(0)
            trial = optuna.Trial(self.study, frozen._trial_id)
            leaves = frozen.user_attrs.get(LEAVES) or self._choose(trial)
        else:
            trial = self._ask()
            leaves = self._choose(trial)
        trial.set_user_attr(LEAVES, leaves)
        self._running[trial_id] = trial
        return {"number": trial.number, "leaves": leaves}

    def _ask(self) -> optuna.Trial:
        # A trial that a killed driver put in line and never began comes first.
        if not self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            point = self._set_point()
            if point is not None:
                self.study.enqueue_trial(point)
        return self.study.ask()

    def _set_point(self) -> dict[str, Any] | None:
        """The values of the next trial where they are not the sampler's to draw: the default's, or a grid point."""
        trials = self.study.get_trials(deepcopy=False)
        if not trials:
            values, outside = self._space.defaults()
            return None if outside else values
        if self._space.grid_points is None:
            return None
        # Not Optuna's GridSampler: it runs the point of an enqueued default twice and leaves another one out.
        begun = {tuple(sorted(trial.user_attrs.get(LEAVES, {}).items())) for trial in trials}
        return next(point for point in self._space.points() if tuple(sorted(point.items())) not in begun)

    def _choose(self, trial: optuna.Trial) -> dict[str, Any]:
        if trial.number == 0 and self._space.defaults()[1]:
            return {}  # the default lies outside the space: it runs all the same, and Optuna is not told of it
        return self._space.suggest(trial)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        trial = self._running.get(trial_id)
        if trial is None:
            return
        epoch = self._epochs[trial_id] = int(result["training_iteration"])
        before = self._now(trial).user_attrs
        if before.get(TRIES) and epoch > before[REACHED]:  # an epoch that was lost and is repeated is no progress
            trial.set_user_attr(TRIES, 0)
        # A trial that was taken up again may tell an epoch twice; Optuna would warn of it on the user's screen.
        told = epoch in self._now(trial).intermediate_values
        if len(self._space.metrics) == 1 and _is_number(result.get(self.metric)) and not told:
            trial.report(float(result[self.metric]), epoch)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell Optuna how a trial ended; one that ended in `error` is handed out again, RETRIES times in a row."""
        trial, epoch = self._running.pop(trial_id, None), self._epochs.pop(trial_id, 0)
        if trial is None or self._now(trial).state.is_finished():
            return
        if error:
            self._put_back(trial, epoch)
            return
        result = result or {}
        values = [result.get(f"best_{metric}") for metric in self._space.metrics]
        # A default outside the space has no parameters: Optuna could draw nothing from its value.
        drawn = bool(trial.params) and set(trial.params) == set(trial.user_attrs[LEAVES])
        if drawn and all(_is_number(value) for value in values):
            self.study.tell(trial, [float(value) for value in values if value is not None])
            return
        if reason := result.get(FAILURE) or (result.get("diverged") and "its loss is no longer finite"):
            trial.set_user_attr(REASON, reason)
        self.study.tell(trial, state=TrialState.FAIL)

    def _put_back(self, trial: optuna.Trial, epoch: int) -> None:
        before = self._now(trial).user_attrs
        tries = before.get(TRIES, 0) + 1
        trial.set_user_attr(REACHED, max(epoch, before.get(REACHED, 0)))
        trial.set_user_attr(TRIES, tries)
        if tries <= RETRIES:
            self._unfinished.append(self._now(trial))
            return
        trial.set_user_attr(REASON, f"ended {tries} times without getting further")
        self.study.tell(trial, state=TrialState.FAIL)

    def _now(self, trial: optuna.Trial) -> FrozenTrial:
        return self.study.get_trials(deepcopy=False)[trial.number]

    def save(self, checkpoint_path: str) -> None:
        """Nothing of its own: the journal is always up to date."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to read: the study was opened from its journal."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its searcher with the experiment; a resumed search reads the journal instead


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
