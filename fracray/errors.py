"""The kinds of error that a user sees, and the one place that turns them into exit codes.

Knows nothing of radiographs, Torch or Ray.
"""

import difflib
import os
import sys
from collections.abc import Callable, Iterable, Sequence

from fracray import interrupts


class InputError(Exception):
    """Wrong input that the user can correct: exit code 2.

    The message says what was wrong, where (file, line or dotted path) and what to do.
    """


class OutOfReachError(InputError):
    """A storage that this process cannot reach: its address or its credentials are wrong, or it is down for a while.

    Another process, on another machine or later, may reach it.
    """


class RunError(Exception):
    """The input was fine, but the run failed: exit code 1."""


def nearest(word: str, words: Iterable[str]) -> str:
    """A hint for a name that is not among `words`: ' (did you mean ...?)', or '' where none is close."""
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else ""


def run_verb(main: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 (failed run), 2 (bad input) or 130 (Ctrl-C, SIGTERM).

    No traceback is shown for InputError and RunError; any other exception is a fault of fracray and keeps it. After
    Ctrl-C one line says what to type next: what the KeyboardInterrupt says, or that the same command starts again.
    """
    code = 1
    try:
        code = _exit_code(main, list(sys.argv[1:] if argv is None else argv))
    except SystemExit as end:  # of --help, or of an unknown option
        code = end.code if isinstance(end.code, int) else 1
        raise
    finally:
        interrupts.end(code)
    if code == interrupts.EXIT_CODE:
        interrupts.leave(code)
    return code


def _exit_code(main: Callable[[Sequence[str]], None], argv: Sequence[str]) -> int:
    try:
        interrupts.begin()
        main(argv)
    except KeyboardInterrupt as stop:
        return _interrupted(stop)
    except SystemExit:
        if interrupts.asked():  # Ray's answer to SIGTERM, where fracray's was not in place
            return _interrupted(KeyboardInterrupt())
        raise
    except BrokenPipeError:
        # `fracray ... | head` closes the pipe, which is no error. Python flushes stdout once more at exit, so send that
        # flush to /dev/null.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if interrupts.asked():  # what a library has made of the interruption
            return _interrupted(KeyboardInterrupt())
        if not isinstance(error, InputError | RunError):
            raise
        print(f"{'error' if isinstance(error, InputError) else 'failed'}: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    return 0


def _interrupted(stop: KeyboardInterrupt) -> int:
    print(f"interrupted; {str(stop) or interrupts.AGAIN}", file=sys.stderr)
    return interrupts.EXIT_CODE
