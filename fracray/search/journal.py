"""The journal file of a study, and Optuna's storage over it. Knows nothing of trials' settings."""

import copy
import json
import os
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.storages.journal._file import get_lock_file
from optuna.trial import FrozenTrial, TrialState


class StudyJournal(JournalStorage):
    """Optuna's storage in a journal file, for one study, that finds waiting trials without a look at all others.

    Optuna asks for them before each new trial: over 10,000 trials that was most of what a suggestion took.
    """

    def __init__(self, journal: Path) -> None:
        self.path = journal
        self._file = _File(journal)
        _drop_half_entry(journal, self._file.lock)
        super().__init__(self._file)
        self._left = 0  # no trial of a lower number is waiting: one that has begun never waits again

    @contextmanager
    def together(self) -> Iterator[None]:
        """The entries of the block are on the disk when it is left; before that a power cut may lose its last ones."""
        with self._file.together():
            yield

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


class _File(JournalFileBackend):
    """Optuna's backend, which waits for the disk after each entry; other processes read and write the same file.

    A suggestion is one entry for each setting, and some more: a core that waits for its next trial would wait for the
    disk as often.
    """

    def __init__(self, file: Path) -> None:
        self._place, self._held, self._late = file, False, False
        self.lock = JournalFileOpenLock(str(file))
        super().__init__(str(file), lock_obj=self.lock)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Add entries at the end, at once for every reader."""
        if not self._held:
            super().append_logs(logs)
            return
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with get_lock_file(self.lock), open(self._place, "ab") as file:
            file.write(lines.encode())
        self._late = True

    @contextmanager
    def together(self) -> Iterator[None]:
        self._held = True
        try:
            yield
        finally:
            self._held = False
            if self._late:
                self._late = False
                with open(self._place, "ab") as file:
                    os.fsync(file.fileno())


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
