"""The run folder: where a search or a training keeps all that it found, on a path or a URI.

    config.yaml  environment.json  data.json  optuna.journal  trials.parquet  best/
    trials/t0007/  epochs.json  state.safetensors  best/

A trial's folder is its whole memory: whoever starts the trial again, here or on another machine, goes on from it.
Imports no Ray.
"""

import json
import os
import platform
import shlex
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from fracray.config import PHANTOM, Config, parse_config
from fracray.errors import InputError, RunError
from fracray.runtime.ray_session import FILE
from fracray.runtime.storage import Folder, refuse_secret

EPOCHS, STATE, BEST = "epochs.json", "state.safetensors", "best"


def trial_name(number: int) -> str:
    """The name of a trial in tables and on disk, from its number in the study."""
    return f"t{number:04d}"


def vouched_epochs(folder: Folder) -> list[dict[str, Any]]:
    """A trial's finished epochs, as far as the checkpoint in its folder is their best; none without one.

    Metrics are written after every epoch, checkpoints less often: a better epoch that a lost process had finished
    since then is gone, and so is all that followed it.
    """
    if not folder.exists(EPOCHS) or not folder.exists(f"{BEST}/config.json"):
        return []
    kept, history = folder.read_json(f"{BEST}/config.json")["epoch"], folder.read_json(EPOCHS)
    best = next((_best_of(entry) for entry in history if entry["epoch"] == kept), None)
    return [entry for entry in history if entry["epoch"] <= kept or _best_of(entry) == best]


def _best_of(entry: dict[str, Any]) -> str:
    # As text, for nan is like itself there.
    return json.dumps({name: value for name, value in entry.items() if name.startswith("best_")})


def trial_folder(run: Folder, number: int) -> Folder:
    return run.sub(f"trials/{trial_name(number)}")


def environment() -> dict[str, Any]:
    """What a run ran on: versions and machine, for environment.json."""
    packages = (
        "fracray",
        "ray",
        "torch",
        "torchvision",
        "timm",
        "optuna",
        "numpy",
        "opencv-python-headless",
    )
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": {name: metadata.version(name) for name in packages},
        "command": sys.argv,
    }


def new_run(storage: str, name: str | None, kind: str, resume: bool) -> Folder:
    """The folder of a run that begins, or with `resume` of one that goes on; it must not, or must, exist."""
    shelf = Folder(storage)
    if name is None:
        if resume:
            known = _runs(shelf)
            raise InputError(f"--resume: name the run with --name; runs in {storage}: {known}")
        name = f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}"
    if "/" in name or name in ("", ".", ".."):
        raise InputError(f"--name {name}: a plain name without '/'; the folder around it is --storage")
    run = shelf.sub(name)
    begun = run.exists("config.yaml")
    if resume and not begun:
        known = _runs(shelf)
        raise InputError(f"--resume: there is no run {name} in {storage}; runs there: {known}")
    if begun and not resume:
        raise InputError(f"{run}: this run exists already; go on with it by --resume, or choose another --name")
    if not begun:
        try:
            run.write_json("environment.json", environment())
        except RunError as error:
            raise InputError(f"--storage {storage}: {error}; choose a folder or URI that you may write to") from None
    return run


def how_to_go_on(verb: str, storage: str, run: Folder) -> str:
    """What to type after `verb` was cut short in this run."""
    if not run.exists("config.yaml"):
        return "give the same command again"
    where = "" if storage == "runs" else f" --storage {shlex.quote(storage)}"
    sent = f"cluster submit {shlex.quote(file)} -- {verb}" if (file := os.environ.get(FILE)) else verb
    return f"go on with: python -m fracray.{sent} --name {shlex.quote(run.name)}{where} --resume"


def _runs(shelf: Folder) -> str:
    return ", ".join(name for name in shelf.names() if shelf.exists(f"{name}/config.yaml")) or "none"


def stored_config(run: Folder) -> Config:
    """The config a run was begun with."""
    return parse_config(run.read("config.yaml"), f"{run}/config.yaml")


def data_source(path: str) -> str:
    """What --data names, by an absolute path, for a run is resumed from other folders too; `refuse_secret` applies."""
    refuse_secret(path)
    return path if path == PHANTOM or "://" in path else str(Path(path).expanduser().absolute())


def open_run(location: str) -> Folder:
    """An existing run folder; InputError where there is none."""
    run = Folder(location)
    if not run.exists("config.yaml"):
        raise InputError(
            f"{location}: not a run folder (no config.yaml in it); give the folder that tune or train named"
        )
    return run
