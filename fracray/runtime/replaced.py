"""What a library has no option for: other values for names of its modules and classes, while a block runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced(owner: Any, **values: Any) -> Iterator[None]:
    """In the block, names of `owner`, a module or a class, have these values, in all threads.

    Blocks over the same names end in the reverse of the order in which they began; two threads would break that.
    """
    before = {name: vars(owner)[name] for name in values}  # a method as it is kept, with its decorator
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)
