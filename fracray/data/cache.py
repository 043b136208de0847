"""Where prepared sets are kept on this machine, and which were prepared before. Imports no reader of images."""

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from fracray.config import DataConfig
from fracray.errors import InputError

NOTED = "prepared"  # the folder with an empty file for each set


def cache_folder(config: DataConfig) -> Path:
    """Where prepared sets are kept: `data.cache`, else $FRACRAY_CACHE, else ~/.cache/fracray."""
    chosen = config.cache or os.environ.get("FRACRAY_CACHE") or "~/.cache/fracray"
    folder = Path(chosen).expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"data.cache: cannot use {folder}: {error}; set data.cache or FRACRAY_CACHE") from None
    return folder


def note_prepared(config: DataConfig) -> None:
    """Remember that this set was prepared on this machine."""
    with suppress(OSError):  # what is not remembered costs a search some seconds
        note = _note(config)
        note.parent.mkdir(exist_ok=True)
        note.touch()


def was_prepared(config: DataConfig) -> bool:
    """Whether this set was prepared before, so that most likely no radiograph has to be read again."""
    return _note(config).exists()


def _note(config: DataConfig) -> Path:
    words = config.model_dump_json(include={"source", "phantom", "size", "crop"})
    return cache_folder(config) / NOTED / hashlib.sha256(words.encode()).hexdigest()[:32]
