"""Imports modules in a thread, while the command waits for something else. Knows none of them.

Two threads that import modules which need each other may get one that is half imported: so the command imports nothing
that a thread may be importing before it has called `wait_for_imports`.
"""

import importlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from fracray.runtime.timeline import IMPORTS, START

WAIT_SECONDS = 0.1  # a wait without end would not be interrupted by a signal

_threads: list[threading.Thread] = []


def import_in_thread(names: Sequence[str]) -> None:
    """Begin to import these modules. What cannot be imported raises its error where it is imported next."""
    _threads.append(threading.Thread(target=_import, args=(names,), daemon=True, name="imports"))
    _threads[-1].start()


def wait_for_imports() -> None:
    """Wait until everything is imported that was begun."""
    while _threads:
        _threads[-1].join(WAIT_SECONDS)
        if not _threads[-1].is_alive():
            _threads.pop()


@contextmanager
def importing(names: Sequence[str]) -> Iterator[None]:
    """Import these modules beside the block. An error in it waits for them: the process could not end in order."""
    import_in_thread(names)
    try:
        yield
    finally:
        wait_for_imports()


def _import(names: Sequence[str]) -> None:
    for name in names:
        with suppress(Exception), START.stretch(name, IMPORTS):
            importlib.import_module(name)
