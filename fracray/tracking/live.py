"""Writes a run to dashboards while a command works in it, from a thread for each that the command never waits for.

A dashboard that cannot be reached is named once and tried again; what it missed follows when it is back. The command's
end waits a while for what is left.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import fsum

from rich.console import Console

from fracray.runtime.locations import without_secret
from fracray.runtime.storage import Folder
from fracray.search.trials_table import TrialRow
from fracray.tracking.entries import Entries, Entry, write_run
from fracray.tracking.targets import Address, Writer
from fracray.training.epochs import EpochResult

AGAIN_SECONDS = 20.0  # until a dashboard that was away is tried again
LAST_SECONDS, STOPPED_SECONDS = 60.0, 10.0  # for the rest: at the end of a command, and after Ctrl-C


class _Feed:
    """What one dashboard still has to get, and the thread that gives it."""

    def __init__(self, address: Address, writer: Writer, run: Folder, console: Console) -> None:
        self.address, self._writer, self._run, self._console = address, writer, run, console
        self._waiting: dict[str, Entry] = {}  # the newest of each entry
        self._changed = threading.Condition()
        self._ending = False
        self._said = False
        self.complete = False
        # Nothing may wait for a server that does not answer, not even the end of the process.
        self._thread = threading.Thread(target=self._work, daemon=True, name=f"log to {address.kind}")
        self._thread.start()

    def put(self, entry: Entry) -> None:
        with self._changed:
            self._waiting[entry.key] = entry
            self._changed.notify()

    def end(self) -> None:
        with self._changed:
            self._ending = True
            self._changed.notify()

    def join(self, seconds: float) -> None:
        self._thread.join(max(0.0, seconds))
        if not self._thread.is_alive() and self.complete:
            self._console.print(f"logged to {self.address}: {self._writer.tally.words()}", soft_wrap=True)
        else:
            self._away("it took too long")

    def _work(self) -> None:
        while not self._ending:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._ending)
                batch, self._waiting = self._waiting, {}
            if not self._try(partial(self._write, batch)):
                with self._changed:
                    self._waiting = batch | self._waiting
                    self._changed.wait_for(lambda: self._ending, AGAIN_SECONDS)
        self.complete = self._try(lambda: write_run(Entries(self._run, in_work=False), self._writer))
        self._try(self._writer.close)

    def _write(self, batch: Mapping[str, Entry]) -> None:
        for key in sorted(batch):  # parents first: an entry names its own
            self._writer.write(batch[key])

    def _try(self, what: Callable[[], object]) -> bool:
        try:
            what()
        except Exception as error:  # of the network, of a database, of a disk: the run itself is sound
            self._away(f"{type(error).__name__}: {without_secret(' '.join(str(error).split()))[:200]}")
            return False
        return True

    def _away(self, reason: str) -> None:
        if self._said:
            return
        self._said = True
        self._console.print(
            f"warning: {self.address} cannot be written to ({reason}); the run goes on. What is missing there is "
            f"written when it is back, or later by: python -m fracray.log {self._run} --to {self.address}",
            style="yellow",
            soft_wrap=True,
        )


class LiveLog:
    """A run in the dashboards that --log names, kept up to date; without any, it does nothing.

    Used as `with LiveLog(...)` around the work. The run's config and environment are in its folder by then.
    """

    def __init__(self, targets: Mapping[Address, Writer], run: Folder, console: Console) -> None:
        self._feeds = [_Feed(address, writer, run, console) for address, writer in targets.items()]
        self._entries = Entries(run, in_work=True) if targets else None
        self._rows: dict[int, TrialRow] = {}
        self._refitted: dict[int, TrialRow] = {}
        self._begun: dict[int, float] = {}
        for entry in self._entries.all() if self._entries is not None else ():  # of a resumed run, what it has
            self._put(entry)

    def __enter__(self) -> "LiveLog":
        return self

    def __exit__(self, *exc: object) -> None:
        for feed in self._feeds:
            feed.end()
        deadline = time.monotonic() + (LAST_SECONDS if exc[0] is None else STOPPED_SECONDS)
        for feed in self._feeds:
            feed.join(deadline - time.monotonic())

    def trial(self, row: TrialRow) -> None:
        """A trial of the search has changed."""
        if self._entries is not None:
            self._rows[row.number] = row
            begun = self._began(row)
            if row.state.ended:
                self._put(self._entries.search(self._rows, self._begun))
            self._put(self._entries.trial(row, begun))

    def refitted(self, row: TrialRow) -> None:
        """A training of the refit has changed."""
        if self._entries is not None:
            first, self._refitted[row.number] = not self._refitted, row
            begun = self._began(row)
            if first or row.state.ended:
                self._put(self._entries.refit(self._refitted, self._begun))
            self._put(self._entries.refit_training(row, begun))

    def training(self, history: Sequence[EpochResult]) -> None:
        """The training has another epoch."""
        if self._entries is not None:
            self._put(self._entries.training(history))

    def _began(self, row: TrialRow) -> float:
        """When a trial began: when it is first heard of, less what it had done before."""
        return self._begun.setdefault(row.number, time.time() - fsum(result.seconds for result in row.history))

    def _put(self, entry: Entry) -> None:
        for feed in self._feeds:
            feed.put(entry)
