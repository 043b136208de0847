"""The file of a study, as Optuna keeps it, that waits for the disk once where several entries belong together."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.storages.journal._file import get_lock_file


class Journal(JournalFileBackend):
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
        """The entries of the block are on the disk when it is left; before that a power cut may lose its last ones."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
            if self._late:
                self._late = False
                with open(self._place, "ab") as file:
                    os.fsync(file.fileno())
