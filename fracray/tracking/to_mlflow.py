"""Entries as nested runs of MLflow, by its client alone: no global state, no active run.

A run is found again by its tags, so it does not matter which process wrote it first.
"""

import logging
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fracray.errors import InputError
from fracray.runtime.locations import without_secret
from fracray.runtime.storage import Folder
from fracray.search.states import State
from fracray.tracking.entries import Entry, Point
from fracray.tracking.targets import SQLITE, Tally, digest, finite, first_value, new_points

if TYPE_CHECKING:  # takes seconds to import
    from mlflow.entities import Run

KEY, ROOT, SENT = "fracray.key", "fracray.root", "fracray.sent."
EXPERIMENT = "fracray"
METRICS, PARAMS = 1000, 100  # at most in one request
LONGEST = {"param": 6000, "tag": 5000}  # characters
STATUS = {
    State.RUNNING: "RUNNING",
    State.INTERRUPTED: "KILLED",
    State.FAILED: "FAILED",
    State.DIVERGED: "FAILED",
    State.DONE: "FINISHED",
    State.STOPPED: "FINISHED",
}
SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # it would tell its makers of every run
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # else a line for every trial
    # A server that is away is tried again by whoever writes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


@dataclass
class _Known:
    """What MLflow has of an entry."""

    run_id: str
    status: str
    tags: dict[str, str]
    params: set[str]
    steps: dict[int, list[float]] | None = None  # the first metric; None: not asked for yet


class MlflowWriter:
    """Writes to a tracking server, or to a database that MLflow opens by itself.

    The experiment is `fracray`, or what MLFLOW_EXPERIMENT_NAME says. where: the option, for messages.
    """

    def __init__(self, uri: str, where: str) -> None:
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        from mlflow import MlflowClient

        self.tally = Tally()
        self._where, self._known = where, dict[str, _Known]()
        self._roots: set[str] = set()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        if uri.startswith(SQLITE) and not (folder := Path(uri.removeprefix(SQLITE)).absolute().parent).is_dir():
            raise InputError(f"{where}: the folder {folder} does not exist; create it, or choose another file")
        try:
            self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            found = self._client.get_experiment_by_name(name)
            self._experiment = found.experiment_id if found else self._client.create_experiment(name, _artifacts(uri))
        except Exception as error:  # of MLflow, of the database or of the network
            raise InputError(f"{where}: {_reason(error)}") from None
        if found is not None and found.lifecycle_stage == "deleted":
            raise InputError(
                f"{where}: the experiment {name} is deleted there; restore it, or set MLFLOW_EXPERIMENT_NAME"
            )

    # ---------------------------------------------------------------- entries

    def write(self, entry: Entry) -> None:
        self._look_up(entry.root)
        self.tally.entries.add(entry.key)
        known = self._known.get(entry.key) or self._create(entry)
        if known.steps is None:
            known.steps = self._steps(known, entry)
        self._send_settings(known, entry)
        for points in _batches(new_points(entry, known.steps or {})):
            assert known.steps is not None, "it was asked for, as there are points"
            self._send(known, metrics=[one for point in points for one in _metrics(entry, point, known.steps)])
            for point in points:
                known.steps.setdefault(point.step, []).append(first_value(point))
            self.tally.steps += len(points)
        status = STATUS[entry.state]
        if known.status != status:
            if entry.state is State.RUNNING:
                self._client.update_run(known.run_id, status)
            else:
                self._client.set_terminated(known.run_id, status, _milliseconds(entry.ended))
            known.status = status

    def _look_up(self, root: str) -> None:
        """What MLflow has of a whole run, once."""
        if root in self._roots:
            return
        token = None
        while True:
            page = self._client.search_runs([self._experiment], f"tags.`{ROOT}` = '{root}'", page_token=token)
            for run in page:
                self._known[run.data.tags[KEY]] = _known(run)
            if not (token := page.token):
                break
        self._roots.add(root)

    def _create(self, entry: Entry) -> _Known:
        tags = {KEY: entry.key, ROOT: entry.root}
        if entry.parent:
            tags["mlflow.parentRunId"] = self._known[entry.parent].run_id
        run = self._client.create_run(self._experiment, _milliseconds(entry.begun), tags, entry.name)
        known = self._known[entry.key] = _known(run)
        known.steps = {}
        self.tally.new_entries += 1
        return known

    def _steps(self, known: _Known, entry: Entry) -> dict[int, list[float]] | None:
        if not entry.points:
            return None
        found: dict[int, list[float]] = {}
        for one in self._client.get_metric_history(known.run_id, next(iter(entry.points[0].values))):
            found.setdefault(one.step, []).append(one.value)
        return found

    def _send_settings(self, known: _Known, entry: Entry) -> None:
        from mlflow.entities import Param, RunTag

        tags = {"fracray.kind": entry.kind, "fracray.state": str(entry.state), **entry.tags}
        if commit := entry.tags.get("git"):
            tags["mlflow.source.git.commit"] = commit.removesuffix("-dirty")
        if "command" in entry.tags:
            tags["mlflow.source.name"] = entry.tags["command"]
        tags = {name: value[: LONGEST["tag"]] for name, value in tags.items()}
        changed = [(name, value) for name, value in tags.items() if known.tags.get(name) != value]
        for place in range(0, len(changed), PARAMS):
            some = changed[place : place + PARAMS]
            self._send(known, tags=[RunTag(name, value) for name, value in some])
            known.tags.update(some)
        missing = [name for name in entry.settings if name not in known.params]
        for place in range(0, len(missing), PARAMS):
            names = missing[place : place + PARAMS]
            params = [Param(name, str(entry.settings[name])[: LONGEST["param"]]) for name in names]
            self._send(known, params=params)
            known.params.update(names)

    def _send(self, known: _Known, **what: Any) -> None:
        self._client.log_batch(known.run_id, **what, synchronous=True)

    # ---------------------------------------------------------------- files

    def attach(self, entry: Entry, run: Folder, names: Sequence[str]) -> None:
        known = self._known[entry.key]
        for name in names:
            version = digest(run, name)
            if known.tags.get(f"{SENT}{name}") == version:
                continue
            if run.exists(f"{name}/config.json"):  # a checkpoint: two must not be mixed in one folder
                with tempfile.TemporaryDirectory() as scratch:
                    run.download(name, Path(scratch) / name)
                    self._client.log_artifacts(known.run_id, str(Path(scratch) / name), f"{name}-{version}")
            else:
                with run.local_copy(name) as path:
                    self._client.log_artifact(known.run_id, str(path))
            self._client.set_tag(known.run_id, f"{SENT}{name}", version)
            known.tags[f"{SENT}{name}"] = version
            self.tally.files += 1

    def close(self) -> None:
        """Every request was complete."""


def _known(run: "Run") -> _Known:
    return _Known(run.info.run_id, run.info.status, dict(run.data.tags), set(run.data.params))


def _metrics(entry: Entry, point: Point, known: Mapping[int, Any]) -> Iterator[Any]:
    """A step's metrics; MLflow shows those of a step that is written again only if they are newer."""
    from mlflow.entities import Metric

    at = _milliseconds(time.time() if point.step in known else entry.begun + point.seconds)
    for name, value in point.values.items():
        yield Metric(name, finite(value), at, point.step)


def _batches(points: Sequence[Point]) -> Iterator[list[Point]]:
    """Points whose metrics fit into one request."""
    batch: list[Point] = []
    for point in points:
        if batch and sum(len(one.values) for one in (*batch, point)) > METRICS:
            yield batch
            batch = []
        batch.append(point)
    if batch:
        yield batch


def _milliseconds(seconds: float) -> int:
    return round(1000 * seconds)


def _artifacts(uri: str) -> str | None:
    """Beside a database file, where else they would go into the folder that the command was given in."""
    return (
        (Path(uri.removeprefix(SQLITE)).absolute().parent / "mlartifacts").as_uri() if uri.startswith(SQLITE) else None
    )


def _reason(error: Exception) -> str:
    text = without_secret(" ".join(str(error).split()))
    if "MLFLOW_ALLOW_FILE_STORE" in text:
        return (
            "MLflow's store of plain files takes nothing new (it is in maintenance mode); name a database, such as "
            "mlflow:sqlite:///mlflow.db, or set MLFLOW_ALLOW_FILE_STORE=true"
        )
    if "Max retries exceeded" in text:
        return "no server answers there; start it, or check the address"
    return f"{type(error).__name__}: {text[:300]}"
