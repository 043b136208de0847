"""How a process uses its memory. Knows the C library and nothing of networks or pictures."""

import ctypes
from contextlib import suppress

# In the environment of a process that starts: all its threads use one arena of glibc's malloc. In the arenas of other
# threads `keep_freed_memory` has little effect.
ONE_ARENA = {"MALLOC_ARENA_MAX": "1"}

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # glibc's malloc.h


def keep_freed_memory() -> None:
    """Make the C library keep the memory that Torch frees, up to the largest amount that the process needed.

    By default glibc returns blocks of 128 KiB and more to the system and gets them back zeroed. A network on a CPU does
    this for nearly every layer at every step: more than half of the time of a prediction by EfficientNet-Lite0, a sixth
    of that of a training of a small network.
    """
    with suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)  # by a threshold, which is 32 MiB at most, larger blocks would still be given back
        mallopt(_M_TRIM_THRESHOLD, -1)  # never


def give_back() -> None:
    """Give the memory that is free at the moment back to the system, where it is kept."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
