"""The journal file of a study, and Optuna's storage over it. Knows nothing of trials' settings."""

import copy
import os
from collections.abc import Container
from pathlib import Path

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState


class StudyJournal(JournalStorage):
    """Optuna's storage in a journal file, for one study, that finds waiting trials without a look at all others.

    Optuna asks for them before each new trial: over 10,000 trials that was most of what a suggestion took.
    """

    def __init__(self, journal: Path) -> None:
        lock = JournalFileOpenLock(str(journal))
        _drop_half_entry(journal, lock)
        super().__init__(JournalFileBackend(str(journal), lock_obj=lock))
        self._left = 0  # no trial of a lower number is waiting: one that has begun never waits again

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        if states != (TrialState.WAITING,):
            return super().get_all_trials(study_id, deepcopy, states)
        found: list[FrozenTrial] = []
        number = self._left
        while True:
            try:
                trial = self.get_trial(self.get_trial_id_from_study_id_trial_number(study_id, number))
            except KeyError:  # there are no more
                return copy.deepcopy(found) if deepcopy else found
            number += 1
            if trial.state is TrialState.WAITING:
                found.append(trial)
            elif not found:
                self._left = number


def _drop_half_entry(journal: Path, lock: JournalFileOpenLock) -> None:
    """Cut off a last entry that a full disk or a power cut left half written: Optuna cannot read beyond it."""
    if not journal.exists():
        return
    lock.acquire()  # another process may be writing the entry
    try:
        entries = journal.read_bytes()
        os.truncate(journal, entries.rfind(b"\n") + 1)
    finally:
        lock.release()
