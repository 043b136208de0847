"""What a dashboard shows of a run: a tree of entries, each with settings, tags and metrics by step.

Reads the run folder; knows nothing of MLflow or TensorBoard. A search has trials below it and, where it was refitted,
its refit with the trainings below that; a training is one entry.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from itertools import accumulate, takewhile
from typing import TYPE_CHECKING, Any

from fracray.runtime.run_folder import (
    BEST,
    CONFIG,
    DATA,
    ENVIRONMENT,
    EPOCHS,
    REFIT,
    SPACE,
    ensemble_card,
    stored_config,
    trial_folder,
    trial_name,
)
from fracray.runtime.storage import Folder
from fracray.search.refit import RefitPlan
from fracray.search.refit_trials import failures, kept_trainings
from fracray.search.space_file import stored_space
from fracray.search.states import State
from fracray.search.study import JOURNAL, REASON, stored_study
from fracray.search.trials_table import TrialRow, best_row, collect
from fracray.training.epochs import AT_BEST, EpochResult, read_epochs

if TYPE_CHECKING:
    from fracray.tracking.targets import Writer

SEARCH, TRAINING, TRIAL = "search", "training", "trial"  # kinds of an entry, besides REFIT


@dataclass(frozen=True)
class Point:
    """The metrics of one step, by name; the first one tells whether a step is the same that was written before.

    step: an epoch from 1, or a number of trials. seconds: since the entry began.
    """

    step: int
    seconds: float
    values: Mapping[str, float]


@dataclass(frozen=True)
class Entry:
    """One entry of a dashboard. begun: in seconds since 1970. parent: the key of the entry that it is shown below."""

    key: str
    name: str
    kind: str
    state: State
    begun: float
    parent: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    points: tuple[Point, ...] = ()

    @property
    def root(self) -> str:
        """The key of the entry of the whole run."""
        return self.key.partition("/")[0]

    @property
    def ended(self) -> float:
        """When its last step ended, in seconds since 1970."""
        return self.begun + (self.points[-1].seconds if self.points else 0.0)


def epoch_points(history: Iterable[EpochResult]) -> tuple[Point, ...]:
    """Every epoch with its metrics, those at the best epoch so far, and its seconds."""
    history = tuple(history)
    return tuple(
        Point(
            result.epoch,
            gone,
            {**result.metrics, **{f"{AT_BEST}{name}": value for name, value in result.best.items()}}
            | {"seconds": result.seconds},
        )
        for result, gone in zip(history, accumulate(result.seconds for result in history), strict=True)
    )


class Entries:
    """Makes the entries of one run, from its folder and from what a command knows of its trials.

    in_work: whether a command works in the run; a trial without an end is then running, and else was interrupted.
    """

    def __init__(self, run: Folder, in_work: bool) -> None:
        self.run, self._in_work = run, in_work
        self.config = stored_config(run)
        self.space = stored_space(run) if run.exists(SPACE) else None
        written = run.read(ENVIRONMENT)
        self._environment = json.loads(written)
        # A folder that was moved is the same run, and a new run of an old name is another one.
        self.key = hashlib.sha256(run.name.encode() + written).hexdigest()[:24]
        begun = self._environment.get("begun")  # older runs do not say
        self._begun = datetime.fromisoformat(begun).timestamp() if begun else run.written("").get(ENVIRONMENT, 0.0)

    def all(self) -> list[Entry]:
        """Everything that the run folder holds by now, parents first."""
        if self.space is None:
            return [self.training(read_epochs(trial_folder(self.run, 0)))]
        rows, reasons, begun = self._trials()
        trials = [self.trial(row, begun[row.number], reasons.get(row.number, "")) for row in rows.values()]
        found = [self.search(rows, begun), *trials]
        if (plan := RefitPlan.begun(self.run.sub(REFIT))) is not None:
            own = self.run.sub(REFIT)
            trainings, reasons = kept_trainings(plan, own, self.config.train.epochs), failures(own)
            rows = {number: row for number, row in trainings.items() if row.begun}
            begun = {number: self._by_file(row) for number, row in rows.items()}
            found.append(self.refit(rows, begun))
            found += [self.refit_training(row, begun[row.number], reasons.get(row.number, "")) for row in rows.values()]
        return found

    def _trials(self) -> tuple[dict[int, TrialRow], dict[int, str], dict[int, float]]:
        """The trials of a search by number, why some failed, and when each began."""
        if not self.run.exists(JOURNAL):
            return {}, {}, {}
        with stored_study(self.run) as study:
            if study is None:
                return {}, {}, {}
            frozen = study.get_trials(deepcopy=False)
            return (
                collect(self.run, study, self.config.train.epochs),
                {one.number: str(one.user_attrs[REASON]) for one in frozen if REASON in one.user_attrs},
                {one.number: one.datetime_start.timestamp() if one.datetime_start else self._begun for one in frozen},
            )

    def _by_file(self, row: TrialRow) -> float:
        """When a training began, by the time at which its last epoch was written; without one, when its refit did."""
        own = self.run.sub(REFIT)
        if not row.history:
            return own.written("").get(ENVIRONMENT, 0.0)
        written = trial_folder(own, row.number).written("").get(EPOCHS, 0.0)
        return written - sum(result.seconds for result in row.history)

    # ---------------------------------------------------------------- of the run

    def search(self, rows: Mapping[int, TrialRow], begun: Mapping[int, float]) -> Entry:
        """The search, with the best score so far by the number of trials, in the order of their numbers.

        begun: when each trial began, in seconds since 1970.
        """
        assert self.space is not None
        ended = list(takewhile(lambda row: row.state.ended, (rows[number] for number in sorted(rows))))
        planned = min(self.config.search.trials, self.space.grid_points or self.config.search.trials)
        done = len(rows) >= planned and len(ended) == len(rows)
        entry = self._root(SEARCH, State.DONE if done else self._unfinished)
        metrics, points, gone = self.space.metrics, [], 0.0
        best: TrialRow | None = None
        for count, row in enumerate(ended, 1):
            best = best_row([best, row] if best else [row], self.config.search)
            gone = max(gone, _until(row, begun[row.number]) - self._begun)
            if best is not None:
                points.append(Point(count, gone, {f"{AT_BEST}{metric}": best.best(metric) for metric in metrics}))
        searched = {dimension.path for dimension in self.space.dimensions}
        settings = {path: value for path, value in entry.settings.items() if path not in searched}
        tags = {**entry.tags, **self.space.described(), **self._searching}
        return replace(entry, settings=settings, tags=tags, points=tuple(points))

    def training(self, history: Sequence[EpochResult]) -> Entry:
        """A training that is no search."""
        ended = len(history) >= self.config.train.epochs or (len(history) > 0 and history[-1].diverged)
        state = State.DIVERGED if ended and history[-1].diverged else State.DONE if ended else self._unfinished
        return replace(self._root(TRAINING, state), points=epoch_points(history))

    def refit(self, rows: Mapping[int, TrialRow], begun: Mapping[int, float]) -> Entry:
        """The refit, with the scores of its ensemble once it is over. begun: as in `search`."""
        plan = RefitPlan.read(self.run.sub(REFIT))
        ended = sum(row.state.ended for row in rows.values())
        done = ended == len(plan.trials())
        # While it is resumed there is the ensemble of fewer trainings.
        card = (not self._in_work and ensemble_card(self.run)) or {"metrics": {}}
        values = {name: value for name, value in card["metrics"].items() if value is not None}
        start = self.run.sub(REFIT).written("").get(ENVIRONMENT, 0.0)
        gone = max((_until(row, begun[row.number]) - start for row in rows.values()), default=0.0)
        names = ", ".join(trial_name(number) for number in plan.configurations)
        return Entry(
            key=self._below(REFIT),
            name=f"{self.run.name} refit",
            kind=REFIT,
            state=State.DONE if done else self._unfinished,
            begun=start,
            parent=self.key,
            tags={"configurations": names, "seeds": ", ".join(map(str, plan.seeds))},
            points=(Point(ended, gone, values),) if values else (),
        )

    @cached_property
    def _searching(self) -> dict[str, str]:
        """How it is searched: a resumed search may change that, so these are no parameters, which MLflow keeps."""
        leaves = self.config.leaves()
        return {path: str(value) for path, value in leaves.items() if path.startswith("search.")}

    @property
    def _unfinished(self) -> State:
        return State.RUNNING if self._in_work else State.INTERRUPTED

    def _root(self, kind: str, state: State) -> Entry:
        leaves = {path: value for path, value in self.config.leaves().items() if not path.startswith("search.")}
        return Entry(self.key, self.run.name, kind, state, self._begun, settings=leaves, tags=self._facts)

    @cached_property
    def _facts(self) -> dict[str, str]:
        """Where it ran, with which versions, on which data."""
        known = self._environment
        packages = {f"version.{name}": version for name, version in known.get("packages", {}).items() if version}
        facts = {name: known[name] for name in ("python", "platform", "git", "begun") if known.get(name)}
        data = self.run.read_json(DATA) if self.run.exists(DATA) else {}
        return {
            "run": str(self.run),
            "command": " ".join(known.get("command", ())),
            **{name: str(value) for name, value in {**facts, **packages}.items()},
            **({"data.fingerprint": str(data["fingerprint"])} if "fingerprint" in data else {}),
        }

    # ---------------------------------------------------------------- of its trials

    def trial(self, row: TrialRow, begun: float, reason: str = "") -> Entry:
        """A trial of a search. reason: why it failed."""
        return self._row(row, begun, TRIAL, self.key, f"trials/{row.name}", reason)

    def refit_training(self, row: TrialRow, begun: float, reason: str = "") -> Entry:
        """A training of a refit."""
        return self._row(row, begun, TRAINING, self._below(REFIT), f"{REFIT}/{row.name}", reason)

    def _row(self, row: TrialRow, begun: float, kind: str, parent: str, place: str, reason: str) -> Entry:
        assert self.space is not None
        leaves = self.config.leaves()
        searched = {one.path: leaves[one.path] for one in self.space.dimensions if one.path in leaves}
        # A default configuration that lies outside of the space has no settings of its own.
        own = row.leaves if any(path in row.leaves for path in searched) else {**searched, **row.leaves}
        state = self._unfinished if row.state is State.INTERRUPTED else row.state
        tags = {"reason": reason} if reason else {}
        return Entry(self._below(place), row.name, kind, state, begun, parent, own, tags, epoch_points(row.history))

    def _below(self, place: str) -> str:
        return f"{self.key}/{place}"


def _until(row: TrialRow, begun: float) -> float:
    return begun + sum(result.seconds for result in row.history)


def files_of(run: Folder) -> tuple[str, ...]:
    """What is kept of a run beside its numbers, by name in its folder: the checkpoint and the report, if there are."""
    names = {BEST: f"{BEST}/config.json", "report.html": "report.html", CONFIG: CONFIG}
    return tuple(name for name, proof in names.items() if run.exists(proof))


def write_run(entries: Entries, writer: "Writer") -> None:
    """Write everything that a run folder holds by now: what `fracray.log` does, and the end of a command with --log."""
    root, *below = entries.all()
    for entry in (root, *below):
        writer.write(entry)
    writer.attach(root, entries.run, files_of(entries.run))
