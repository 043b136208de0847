"""What a report is about: everything that a run folder or a checkpoint holds, read once.

Trains nothing and scores nothing; what a search found comes from the functions that print it. Must not know of HTML.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd

from fracray.config import Config
from fracray.data.baselines import Baseline
from fracray.data.manifest import MANIFEST, Manifest, in_set
from fracray.data.splits.set_names import is_validation
from fracray.errors import InputError, RunError
from fracray.metrics import Interval, cross_fitted, score_intervals
from fracray.reporting.evaluated import Evaluated
from fracray.runtime.prices import NodePrice
from fracray.runtime.run_folder import (
    BEST,
    CONFIG,
    DATA,
    ENVIRONMENT,
    REFIT,
    SPACE,
    open_run,
    stored_config,
    trial_folder,
)
from fracray.runtime.storage import Folder
from fracray.search.doubtful import PAGE
from fracray.search.fold_ensemble import RIVALS
from fracray.search.importance import Importances, importances
from fracray.search.refit import PLAN, Outcome, RefitPlan, outcome
from fracray.search.refit_report import gains_told
from fracray.search.refit_trials import kept_trainings
from fracray.search.results import EFFICIENCY, fold_gains, gains_over_default
from fracray.search.space import SearchSpace
from fracray.search.space_file import stored_space
from fracray.search.states import State
from fracray.search.study import JOURNAL, REASON, STOPPED, stored_study
from fracray.search.trials_table import TrialRow, best_row, best_rows, collect
from fracray.training.card import CheckpointMetadata
from fracray.training.checkpoint import MEMBERS, read_metadata, read_predictions
from fracray.training.epochs import EpochResult, read_epochs


def state_words(row: TrialRow) -> str:
    """The state of a trial; the journal does not tell one that runs from one whose process was lost."""
    return "running or interrupted" if row.state is State.INTERRUPTED else str(row.state)


@dataclass(frozen=True)
class Judged:
    """A checkpoint as it is stored: its folder here, its card, and its predictions on validation.

    members: the names of an ensemble's.
    """

    folder: Path
    card: CheckpointMetadata
    predictions: pd.DataFrame | None
    members: tuple[str, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> "Judged":
        inside = folder / MEMBERS
        members = tuple(sorted(path.name for path in inside.iterdir())) if inside.is_dir() else ()
        return cls(folder, read_metadata(folder), read_predictions(folder), members)

    @cached_property
    def validation(self) -> "Validation | None":
        """Its calls on the set 'val'; None where no predictions were saved."""
        if self.predictions is None:
            return None
        table = self.predictions[in_set(self.predictions["split"], "val")].reset_index(drop=True)
        return Validation(table, self.card) if len(table) else None


@dataclass(frozen=True)
class Validation:
    """The images of 'val' with a checkpoint's logits: image_id, group, label, logit."""

    table: pd.DataFrame
    card: CheckpointMetadata

    @cached_property
    def labels(self) -> np.ndarray:
        return self.table["label"].to_numpy().astype(int)

    @cached_property
    def groups(self) -> np.ndarray:
        return self.table["group"].to_numpy()

    @cached_property
    def probabilities(self) -> np.ndarray:
        """(n,) by the checkpoint's own calibration, which the threshold belongs to."""
        return self.card.calibration.apply(self.table["logit"].to_numpy())

    @cached_property
    def cross_fitted(self) -> np.ndarray:
        """(n,) by calibrations fitted to other groups: what calibration is judged by."""
        return cross_fitted(self.labels, self.table["logit"].to_numpy(), self.groups)

    @cached_property
    def scores(self) -> dict[str, Interval]:
        """Every score with its interval over groups, as `evaluate --split val` gives it."""
        thresholds = np.full(len(self.table), self.card.threshold)
        return score_intervals(self.labels, self.probabilities, self.groups, thresholds, self.cross_fitted)


@dataclass(frozen=True)
class Search:
    """A search: its trials by number, why some failed, after which epoch some were stopped, and what it found."""

    space: SearchSpace
    rows: Mapping[int, TrialRow]
    reasons: Mapping[int, str]
    stopped: Mapping[int, int]
    ended: Mapping[int, float]  # hours after the first trial began
    front: tuple[int, ...]
    importances: Importances | None
    gains: Mapping[str, Interval]

    @property
    def metric(self) -> str:
        return self.space.metrics[0]

    @property
    def mode(self) -> str:
        return self.space.config.search.mode

    @cached_property
    def best(self) -> TrialRow | None:
        return best_row(self.rows.values(), self.space.config.search)

    @cached_property
    def ranked(self) -> list[TrialRow]:
        """The trials that could be the best one, the best first."""
        return best_rows(self.rows.values(), self.space.config.search)

    def leaves(self, row: TrialRow) -> Mapping[str, Any]:
        """A trial's settings, also those of a default configuration that lies outside of the space."""
        return row.leaves if row.leaves or row.number else self._defaults

    @cached_property
    def _defaults(self) -> Mapping[str, Any]:
        leaves = self.space.config.leaves()
        return {
            dimension.path: leaves[dimension.path] for dimension in self.space.dimensions if dimension.path in leaves
        }

    @property
    def planned(self) -> int:
        """Trials in all."""
        trials = self.space.config.search.trials
        return min(trials, self.space.grid_points or trials)

    @property
    def finished(self) -> bool:
        """Whether all trials have ended."""
        return len(self.rows) >= self.planned and all(row.state.ended for row in self.rows.values())


@dataclass(frozen=True)
class Refit:
    """A refit: what is trained, its trainings by number, what came of them so far, and the command that began it.

    rivals: the no-pixel predictors over the folds, where the models of all folds became an ensemble.
    """

    plan: RefitPlan
    rows: Mapping[int, TrialRow]
    found: Outcome | None
    gains: Mapping[str, Interval]
    command: Sequence[str] = ()
    rivals: tuple[Baseline, ...] = ()


@dataclass(frozen=True)
class Subject:
    """What a report is about.

    run: None for a checkpoint outside of a run. training: the epochs of a training that is no search. data: data.json.
    evaluated: what evaluate --json wrote of the checkpoint, if it was named. prices: of the nodes for which the
    cost in money is wanted.
    """

    location: str
    config: Config
    run: Folder | None = None
    judged: Judged | None = None
    search: Search | None = None
    refit: Refit | None = None
    training: tuple[EpochResult, ...] = ()
    data: Mapping[str, Any] | None = None
    environment: Mapping[str, Any] | None = None
    efficiency: Mapping[str, Any] | None = None
    manifest: Manifest | None = None
    evaluated: Evaluated | None = None
    prices: tuple[NodePrice, ...] = ()
    doubtful: str | None = None  # the page of the refit's doubtful labels, by its path in the run

    @property
    def kind(self) -> str:
        """'search', 'training' or 'checkpoint'."""
        return "search" if self.search else "training" if self.run else "checkpoint"

    @property
    def name(self) -> str:
        return self.run.name if self.run else Path(self.location.rstrip("/")).name

    @property
    def baselines(self) -> tuple[Baseline, ...]:
        """The no-pixel predictors on each set, as the run stored them; none where they are of other images."""
        if Path(self.location.rstrip("/")).parent.name == MEMBERS:  # each may have a fold of its own
            return ()
        if self.judged and self.judged.card.out_of_fold:
            return self.refit.rivals if self.refit else ()
        return tuple(map(Baseline.from_dict, self.data["baselines"])) if self.data else ()


@contextmanager
def opened(location: str) -> Iterator[Subject]:
    """A run folder or a checkpoint, as a path or URI, finished or not; files of a URI are copied meanwhile.

    The run folder of a refit stands for its search. InputError for what is neither.
    """
    folder = Folder(location)
    with ExitStack() as held:
        if folder.exists("config.json") and not folder.exists(CONFIG):
            judged = Judged.read(held.enter_context(folder.local_folder()))
            yield _in_its_run(Subject(location, judged.card.config, judged=judged), folder)
            return
        run = open_run(location)
        if run.exists(PLAN) and run.around.exists(JOURNAL):
            run = run.around
        yield _of_run(run, held)


def _in_its_run(subject: Subject, folder: Folder) -> Subject:
    """A checkpoint inside of its run, with what that says of the data: RUN/best, RUN/trials/t0007/best."""
    place = folder
    for _ in range(3):
        place = place.around
        if place.exists(CONFIG) and place.exists(ENVIRONMENT):
            return replace(subject, **_about(place))
    return subject


def _of_run(run: Folder, held: ExitStack) -> Subject:
    begun = run.exists(JOURNAL)
    space = stored_space(run) if begun or run.exists(SPACE) else None
    subject = Subject(run.location, space.config if space else stored_config(run), run, **_about(run))
    if space is not None and begun:
        search, refit = _search(run, subject, space), _refit(run)
        best = search.best
        place = BEST if run.exists(f"{BEST}/config.json") else f"trials/{best.name}/{BEST}" if best else ""
        page = f"{REFIT}/{PAGE}"
        doubtful = page if refit and run.exists(page) else None
        return replace(subject, search=search, refit=refit, judged=_judged(run, place, held), doubtful=doubtful)
    if space is not None:
        return replace(subject, search=Search(space, {}, {}, {}, {}, (), None, {}))
    place = BEST if run.exists(f"{BEST}/config.json") else f"trials/t0000/{BEST}"
    training = tuple(read_epochs(trial_folder(run, 0)))
    return replace(subject, training=training, judged=_judged(run, place, held))


def _about(run: Folder) -> dict[str, Any]:
    """What a run says of its data, its machine and its time."""
    trees = {"data": DATA, "environment": ENVIRONMENT, "efficiency": EFFICIENCY}
    found: dict[str, Any] = {key: run.read_json(name) if run.exists(name) else None for key, name in trees.items()}
    if run.exists(MANIFEST):
        with run.local_copy(MANIFEST) as path:
            found["manifest"] = Manifest.read(path)
    return found


def _judged(run: Folder, place: str, held: ExitStack) -> Judged | None:
    """A checkpoint of a run; None where there is none yet, also where it is being replaced at this moment."""
    if not place or not run.exists(f"{place}/config.json"):
        return None
    try:
        return Judged.read(held.enter_context(run.sub(place).local_folder()))
    except (InputError, RunError, OSError):
        return None


def _search(run: Folder, subject: Subject, space: SearchSpace) -> Search:
    with stored_study(run) as study:
        if study is None:
            return Search(space, {}, {}, {}, {}, (), None, {})
        rows = collect(run, study, space.config.train.epochs)
        frozen = study.get_trials(deepcopy=False)
        found = Search(
            space=space,
            rows=rows,
            reasons={one.number: str(one.user_attrs[REASON]) for one in frozen if REASON in one.user_attrs},
            stopped={one.number: int(one.user_attrs[STOPPED]) for one in frozen if STOPPED in one.user_attrs},
            ended=_hours(frozen),
            front=tuple(one.number for one in study.best_trials) if len(space.metrics) > 1 else (),
            importances=importances(study) if len(space.dimensions) > 1 else None,
            gains={},
        )
    return replace(found, gains=_gains(run, subject, found))


def _hours(trials: list[optuna.trial.FrozenTrial]) -> dict[int, float]:
    begun = min((one.datetime_start for one in trials if one.datetime_start), default=None)
    return {
        one.number: (one.datetime_complete - begun).total_seconds() / 3600
        for one in trials
        if begun is not None and one.datetime_complete is not None
    }


def _gains(run: Folder, subject: Subject, found: Search) -> dict[str, Interval]:
    if found.best is None:
        return {}
    if found.space.config.data.split.cross_validate:
        return fold_gains(run, found.space, found.rows, found.best)
    parts = subject.data["parts"] if subject.data else {"val": None}
    sets = [name for name in parts if is_validation(name)]
    return gains_over_default(run, found.space, found.rows, found.best, sets)


def _refit(run: Folder) -> Refit | None:
    own = run.sub(REFIT)
    if not own.exists(PLAN) or not own.exists(CONFIG):
        return None
    plan, config = RefitPlan.read(own), stored_config(own)
    rows = kept_trainings(plan, own, config.train.epochs)
    try:
        found = outcome(plan, rows, config.search)
    except RunError:  # none could be refitted
        found = None
    parts = own.read_json(DATA)["parts"] if own.exists(DATA) else {"val": None}
    gains = gains_told(own, config, found, [name for name in parts if is_validation(name)])
    command = (own.read_json_if_there(ENVIRONMENT) or {}).get("command", ())
    rivals = tuple(map(Baseline.from_dict, own.read_json_if_there(RIVALS) or ()))
    return Refit(plan, rows, found, gains, command, rivals)
