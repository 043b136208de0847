"""The user's own callbacks of Ray Tune, by name: `tune --callback module:Class`."""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fracray.errors import InputError, nearest

if TYPE_CHECKING:  # imported only where there is a callback
    from ray.tune import Callback


def load_callbacks(names: Sequence[str]) -> "list[Callback]":
    """An object of each class named as `module:Class`, made without arguments.

    Modules are also found in the current folder. Raises InputError for a name that leads to no such class, and for a
    module or a class that fails.
    """
    return [_load(name) for name in names]


def _load(name: str) -> "Callback":
    from ray.tune import Callback

    where = f"--callback {name}"
    module_name, colon, class_name = name.partition(":")
    if not (module_name and colon and class_name):
        raise InputError(f"{where}: expected module:Class, such as my_callbacks:Notify")
    if os.getcwd() not in sys.path and "" not in sys.path:  # the command `fracray` does not look here by itself
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if module_name == missing or module_name.startswith(f"{missing}."):
            raise InputError(
                f"{where}: no module {missing}; install it, or give the command in the folder that has it"
            ) from None
        raise InputError(f"{where}: {module_name} imports {missing}, which is not installed") from None
    except Exception as error:  # whatever the user's code raises
        raise InputError(f"{where}: importing {module_name} failed: {_words(error)}") from None
    made = getattr(module, class_name, None)
    if made is None:
        raise InputError(f"{where}: {module_name} has no {class_name}{nearest(class_name, vars(module))}")
    if not (isinstance(made, type) and issubclass(made, Callback)):
        raise InputError(f"{where}: {class_name} is not a subclass of ray.tune.Callback; make it one")
    try:
        return made()
    except Exception as error:  # whatever the user's code raises
        raise InputError(f"{where}: {class_name}() failed: {_words(error)}; it is made without arguments") from None


def _words(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
