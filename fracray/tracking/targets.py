"""Where a run is written to: `mlflow:URI` and `tensorboard:FOLDER`, as typed, and what every writer can do."""

import hashlib
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fracray.errors import InputError
from fracray.runtime.console import counted
from fracray.runtime.locations import refuse_secret, without_secret
from fracray.runtime.storage import Folder

if TYPE_CHECKING:  # a command names its targets before it has claimed its run, and until then imports no Tune
    from fracray.tracking.entries import Entry, Point

MLFLOW, TENSORBOARD = "mlflow", "tensorboard"
SQLITE = "sqlite:///"
PACKAGES = {MLFLOW: "mlflow", TENSORBOARD: "tensorboardX"}
EXAMPLES = "mlflow:sqlite:///mlflow.db, mlflow:http://127.0.0.1:5000 or tensorboard:tb"


@dataclass
class Tally:
    """What a writer wrote anew, and how many entries it was shown."""

    entries: set[str] = field(default_factory=set)
    new_entries: int = 0
    steps: int = 0
    files: int = 0

    def words(self) -> str:
        new = f"{self.new_entries} new" if self.new_entries else "none new"
        return (
            f"{counted(len(self.entries), 'run')} ({new}), {counted(self.steps, 'new step')}, "
            f"{counted(self.files, 'new file')}"
        )


class Writer(Protocol):
    """Writes entries; what is there already is not written again, in this process or by an earlier one.

    Its methods raise InputError where the target does not take the entry, and whatever its library raises otherwise.
    """

    tally: Tally

    def write(self, entry: "Entry") -> None:
        """Bring one entry up to date; its parent was written before."""

    def attach(self, entry: "Entry", run: Folder, names: Sequence[str]) -> None:
        """Keep files and folders of a run with its entry."""

    def close(self) -> None:
        """Nothing more is written."""


@dataclass(frozen=True)
class Address:
    """A target as typed: its kind, the place, and the option that named it."""

    kind: str
    place: str
    option: str

    def __str__(self) -> str:
        return without_secret(f"{self.kind}:{self.place}")  # the place in MLFLOW_TRACKING_URI may have one

    def open(self) -> Writer:
        """Its writer. InputError where it cannot be reached or written to."""
        if self.kind == MLFLOW:
            from fracray.tracking.to_mlflow import MlflowWriter

            return MlflowWriter(self.place, f"{self.option} {self}")
        from fracray.tracking.to_tensorboard import TensorboardWriter

        return TensorboardWriter(Path(self.place).expanduser().absolute(), f"{self.option} {self}")


def parse_address(text: str, option: str) -> Address:
    """The target that an option names. InputError for what is none, and where its package is not installed."""
    kind, _, place = text.partition(":")
    refuse_secret(place)
    where = f"{option} {without_secret(text)}"
    if kind not in PACKAGES:
        raise InputError(f"{where}: expected {EXAMPLES}")
    if kind == MLFLOW and not place:
        place = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not place:
        named = " (or set MLFLOW_TRACKING_URI)" if kind == MLFLOW else ""
        raise InputError(f"{where}: name the place too{named}: {EXAMPLES}")
    if kind == TENSORBOARD and "://" in place:
        raise InputError(f"{where}: event files are written to a folder on this machine; name one")
    if find_spec(PACKAGES[kind]) is None:
        raise InputError(f'{where}: {PACKAGES[kind]} is not installed; pip install "fracray[log]"')
    return Address(kind, place, option)


def addresses(texts: Sequence[str]) -> list[Address]:
    """The dashboards that --log names, which are not looked for yet. InputError for what is none."""
    return [parse_address(text, "--log") for text in texts]


def opened(named: Sequence[Address]) -> dict[Address, Writer]:
    """Their writers. InputError where one cannot be reached, before anything of the run is begun."""
    return {address: address.open() for address in named}


def new_points(entry: "Entry", known: Mapping[int, Sequence[float]]) -> "list[Point]":
    """The points that are not there yet: `known` are the first values of each step, as the target keeps them.

    A step with other values was repeated after a lost process: it is written again.
    """
    return [
        point
        for point in entry.points
        if not any(_same(value, first_value(point)) for value in known.get(point.step, ()))
    ]


def first_value(point: "Point") -> float:
    return next(iter(point.values.values()))


def _same(known: float, value: float) -> bool:
    """Whether they are one number in single precision, which is what event files keep."""
    if math.isnan(value) or math.isnan(known):
        return math.isnan(value) and math.isnan(known)
    return math.isclose(finite(known), finite(value), rel_tol=1e-6, abs_tol=1e-30)


def finite(value: float) -> float:
    """A value as databases keep it: infinity is the largest number."""
    return max(-sys.float_info.max, min(sys.float_info.max, value)) if math.isinf(value) else value


def digest(run: Folder, name: str) -> str:
    """What a file is known by; a checkpoint by its card, which holds the hashes of its files."""
    card = f"{name}/config.json"
    return hashlib.sha256(run.read(card if run.exists(card) else name)).hexdigest()[:8]
