"""fracray: tuned fracture classifiers from labelled bone radiographs, on any number of machines.

The public names are loaded when they are first used: `import fracray` alone imports neither Torch nor Ray.
"""

from __future__ import annotations

import os

from fracray import interrupts

__version__ = "0.1.0"  # pyproject.toml reads it; so code that is not installed, as on a path, knows it too

interrupts.take_over()  # a command may be interrupted from here on; so this comes before other imports

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from fracray.config import Config
    from fracray.search.space import SearchSpace
    from fracray.search.space_file import load_space
    from fracray.training.checkpoint import Checkpoint, load_checkpoint
    from fracray.training.model import build_model

# albumentations looks for a newer version over the network when it is imported. Every process that uses it through
# fracray, Ray's workers too, imports this package first.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

__all__ = ["Checkpoint", "Config", "SearchSpace", "__version__", "build_model", "load_checkpoint", "load_space"]

_ROOMS = {
    "Config": "config",
    "SearchSpace": "search.space",
    "load_space": "search.space_file",
    "Checkpoint": "training.checkpoint",
    "load_checkpoint": "training.checkpoint",
    "build_model": "training.model",
}


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        from importlib import import_module

        return getattr(import_module(f"fracray.{_ROOMS[name]}"), name)
    raise AttributeError(f"module 'fracray' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
