"""The two kinds of error that a user sees, and the one place that turns them into exit codes.

Knows nothing of radiographs, Torch or Ray.
"""

import difflib
import os
import sys
from collections.abc import Callable, Iterable, Sequence


class InputError(Exception):
    """Wrong input that the user can correct: exit code 2.

    The message says what was wrong, where (file, line or dotted path) and what to do.
    """


class RunError(Exception):
    """The input was fine, but the run failed: exit code 1."""


def nearest(word: str, words: Iterable[str]) -> str:
    """A hint for a name that is not among `words`: ' (did you mean ...?)', or '' where none is close."""
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else ""


def run_verb(main: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 (failed run), 2 (bad input) or 130 (Ctrl-C).

    No traceback is shown for InputError and RunError; any other exception is a fault of fracray and keeps it.
    """
    try:
        main(list(sys.argv[1:] if argv is None else argv))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # `fracray ... | head` closes the pipe, which is no error. Python flushes stdout once more at exit, so send that
        # flush to /dev/null.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return 0
