"""A search's best configurations, trained anew with several seeds: which ones, their trials, and what came of them.

The best of many validation scores is too high, and one training's score is mostly its seed's luck. So the best few are
trained again, the default configuration always among them, and compared by their means. Knows nothing of the console.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from math import fsum, isnan
from statistics import stdev
from typing import Any

from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from fracray.config import Config
from fracray.errors import InputError, RunError
from fracray.metric_names import preference
from fracray.runtime.run_folder import refit_number, trial_folder, trial_name
from fracray.runtime.storage import Folder
from fracray.search.messages import Suggestion, TrialReport, searched
from fracray.search.study import RETRIES
from fracray.search.trials_table import State, TrialRow, best_rows
from fracray.training.epochs import read_epochs, saved_epochs

PLAN = "refit.json"
SEED = "train.seed"
MARGIN = 1.15  # of the estimate, for what is not an epoch
ASK_SECONDS = 2.0  # between two estimates


@dataclass(frozen=True)
class RefitPlan:
    """What is trained: the settings of each configuration by its trial's number in the search, and the seeds.

    The default configuration is number 0. folds: each is trained on every fold but the test fold, and a score is the
    mean over them.
    """

    configurations: Mapping[int, Mapping[str, Any]]
    seeds: tuple[int, ...]
    folds: bool = False

    def trials(self) -> dict[int, dict[str, Any]]:
        """The settings of every training by its number; those of all configurations with one seed before the next."""
        return {
            refit_number(number, seed): {**leaves, SEED: seed}
            for seed in self.seeds
            for number, leaves in self.configurations.items()
        }

    def write(self, run: Folder) -> None:
        """Keep the plan in the run folder of the refit."""
        rows = [{"trial": number, "leaves": dict(leaves)} for number, leaves in self.configurations.items()]
        run.write_json(PLAN, {"configurations": rows, "seeds": list(self.seeds), "folds": self.folds})

    @classmethod
    def read(cls, run: Folder) -> "RefitPlan":
        tree = run.read_json(PLAN)
        try:
            rows = {int(row["trial"]): dict(row["leaves"]) for row in tree["configurations"]}
            return cls(rows, tuple(map(int, tree["seeds"])), bool(tree["folds"]))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{run}/{PLAN}: not as fracray wrote it ({error!r}); restore it") from None

    @classmethod
    def begun(cls, run: Folder) -> "RefitPlan | None":
        """The plan in the run folder of a refit; None where it has not begun."""
        return cls.read(run) if run.exists(PLAN) else None


def make_plan(
    config: Config, rows: Mapping[int, TrialRow], top: int, seeds: int, folds: bool, before: RefitPlan | None = None
) -> RefitPlan:
    """The `top` best trials of a search and its default configuration, each with `seeds` seeds.

    The search's own seed is not among them: it is part of why these trials came out best. With `before`, the plan of a
    refit that is resumed, nothing of that is taken away: its configurations and seeds stay, and whether it has folds.
    """
    chosen: dict[int, Mapping[str, Any]] = dict(before.configurations) if before else {}
    for row in best_rows(rows.values(), config.search.metrics[0], config.search.mode)[:top]:
        if row.number not in chosen:
            _add(chosen, row.number, row.leaves)
    if 0 not in chosen:
        _add(chosen, 0, rows[0].leaves if 0 in rows else {})
    kept = before.seeds if before else ()
    fresh = (seed for seed in count(1) if seed not in (config.train.seed, *kept))
    return RefitPlan(
        chosen, (*kept, *islice(fresh, max(0, seeds - len(kept)))), before.folds if before is not None else folds
    )


def _add(chosen: dict[int, Mapping[str, Any]], number: int, leaves: Mapping[str, Any]) -> None:
    """Add a configuration; of two trials with equal settings the default one stays, or else the first."""
    same = next((other for other, known in chosen.items() if leaves and known == leaves), None)
    if same is None:
        chosen[number] = leaves
    elif number == 0:
        del chosen[same]
        chosen[0] = leaves


def refit_config(config: Config, folds: bool) -> Config:
    """The config of a refit: the search's, without early stopping, and with `folds` validated on every fold.

    InputError where the search's split has no folds.
    """
    leaves: dict[str, Any] = {"search.scheduler.name": "none"}
    if folds and not config.data.split.cross_validate:
        split = config.data.split
        if split.protocol != "kfold" or split.file:
            words = "a split from a file" if split.file else f"data.split.protocol {split.protocol}"
            raise InputError(
                f"--folds: this search ran on {words}, which has no folds; leave --folds out, or search with "
                "--set data.split.protocol=kfold"
            )
        leaves["data.split.cross_validate"] = True
    return config.with_leaves(leaves, "refit")


def seconds_of_refit(
    config: Config,
    rows: Mapping[int, TrialRow],
    at_once: int,
    before: RefitPlan | None = None,
    ended: Collection[int] = (),
) -> float:
    """How long the refit that `search.refit` asks for takes, from the epochs so far of what it would train.

    before: its plan, where it has begun; ended: the numbers of the trainings that need no more time.
    """
    asked = config.search.refit
    plan = make_plan(config, rows, asked.top, asked.seeds, False, before)
    likely = [rows[number] for number in plan.configurations if number in rows]
    epochs = {row.number: [result.seconds for result in row.history] for row in (*likely, *rows.values())}
    known = [fsum(seconds) / len(seconds) for seconds in epochs.values() if seconds][: len(plan.configurations)]
    if not known:
        return 0.0
    trainings = sum(number not in ended for number in plan.trials())
    return MARGIN * fsum(known) / len(known) * config.train.epochs * -(-trainings // at_once)


def kept_trainings(plan: RefitPlan, run: Folder, epochs: int) -> dict[int, TrialRow]:
    """Every training of a plan by number, as the run folder of the refit has it; `epochs` are planned of each."""
    return {
        number: _kept(trial_folder(run, number), number, leaves, epochs) for number, leaves in plan.trials().items()
    }


def _kept(folder: Folder, number: int, leaves: Mapping[str, Any], epochs: int) -> TrialRow:
    history = tuple(read_epochs(folder))
    if history and history[-1].diverged:  # in its last epoch too
        return TrialRow(number, leaves, State.DIVERGED, history)
    kept = tuple(saved_epochs(folder))
    return TrialRow(number, leaves, State.DONE if len(kept) >= epochs else State.INTERRUPTED, kept)


class KeepsBack(Stopper):
    """Ends a search when what is left of its time budget is what its refit will take, and half of it at most."""

    def __init__(self, config: Config, at_once: int, rows: Callable[[], Mapping[int, TrialRow]], own: Folder) -> None:
        """own: the run folder of the refit."""
        assert config.search.time_budget is not None
        self.budget, self.kept, self.ended = config.search.time_budget, 0.0, False
        self._config, self._at_once, self._rows = config, at_once, rows
        self._before = RefitPlan.begun(own)
        kept = kept_trainings(self._before, own, config.train.epochs) if self._before else {}
        self._ended = {number for number, row in kept.items() if row.state.ended}
        self._begun = self._asked = time.monotonic()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        now = time.monotonic()
        if now - self._asked > ASK_SECONDS or not self.kept:
            self._asked = now
            seconds = seconds_of_refit(self._config, self._rows(), self._at_once, self._before, self._ended)
            self.kept = min(self.budget / 2, seconds)
        self.ended = now - self._begun + self.kept >= self.budget
        return self.ended

    @property
    def over(self) -> bool:
        """Whether the whole budget is used up."""
        return self.left <= 1

    @property
    def left(self) -> float:
        """Seconds of the budget that are left, one at least."""
        return max(1.0, self.budget - (time.monotonic() - self._begun))

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles it with the experiment, and never reads it


class RefitTrials(Searcher):
    """Hands out the trainings of a plan that have not ended, and knows how those that have did; for Tune.

    The state of a training is in its folder. One that loses its process is handed out again, RETRIES times in a row
    without progress.
    """

    def __init__(self, plan: RefitPlan, run: Folder, config: Config) -> None:
        super().__init__(metric=searched(config.search.metrics[0]), mode=config.search.mode)
        self._metrics, self._trials = config.search.metrics, plan.trials()
        self._before = kept_trainings(plan, run, config.train.epochs)
        self._pending = [number for number, row in self._before.items() if not row.state.ended]
        self._running: dict[str, int] = {}
        self._reached: dict[int, int] = {}  # the last epoch of a training
        self._lost: dict[int, tuple[int, int]] = {}  # how often in a row, and after which epoch
        self._failed: dict[int, str] = {}

    @property
    def remaining(self) -> int:
        """Trainings still to be handed out."""
        return len(self._pending)

    @property
    def budget(self) -> int:
        return len(self._trials)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if not self._pending:
            # A running training may lose its process and be handed out again; FINISHED could not be taken back.
            return None if self._running else Searcher.FINISHED
        number = self._running[trial_id] = self._pending.pop(0)
        return Suggestion(number, self._trials[number]).to_tune()

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        report = TrialReport.from_tune(result)
        if report.result is not None and trial_id in self._running:
            self._reached[self._running[trial_id]] = report.result.epoch

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        number = self._running.pop(trial_id, None)
        if number is None:
            return
        if not error:
            self._failed[number] = TrialReport.from_tune(result or {}).reason(self._metrics)
            return
        tries, before = self._lost.get(number, (0, 0))
        reached = self._reached.get(number, 0)
        tries = tries + 1 if reached <= before else 1
        self._lost[number] = (tries, reached)
        if tries <= RETRIES:
            self._pending.insert(0, number)
        else:
            self._failed[number] = f"lost {tries} times without progress"

    # As a ledger

    def rows(self) -> dict[int, TrialRow]:
        """The trainings that have begun."""
        return {number: row for number, row in self._before.items() if row.history}

    def ended(self, row: TrialRow) -> tuple[TrialRow, str] | None:
        if row.number not in self._failed:
            return None
        reason = self._failed[row.number]
        diverged = row.history and row.history[-1].diverged
        state = State.DIVERGED if diverged else State.FAILED if reason else State.DONE
        return TrialRow(row.number, row.leaves, state, row.history), reason

    def send(self) -> None:
        """Nothing to send: the trainings' folders hold everything."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save, as in `study.StudySearcher`."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to read."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Refitted:
    """One configuration and its trainings, one for each seed that all configurations have."""

    number: int
    leaves: Mapping[str, Any]
    rows: tuple[TrialRow, ...]

    @property
    def name(self) -> str:
        return trial_name(self.number)

    def mean(self, metric: str) -> float:
        return fsum(self._values(metric)) / len(self.rows)

    def deviation(self, metric: str) -> float:
        """The standard deviation over the seeds; nan with one."""
        return stdev(self._values(metric)) if len(self.rows) > 1 else float("nan")

    def _values(self, metric: str) -> list[float]:
        return [row.best(metric) for row in self.rows]


@dataclass(frozen=True)
class Outcome:
    """What a refit found: the configurations that count, the best by its mean first, and what does not count.

    seeds: those with which every configuration that counts was trained to the end. lost: the names of the
    configurations of which a training failed or diverged, and how.
    """

    ranked: tuple[Refitted, ...]
    seeds: tuple[int, ...]
    lost: Mapping[str, str]

    @property
    def winner(self) -> Refitted:
        return self.ranked[0]

    @property
    def default(self) -> Refitted | None:
        return next((one for one in self.ranked if one.number == 0), None)


def outcome(plan: RefitPlan, rows: Mapping[int, TrialRow], metric: str, mode: str) -> Outcome | None:
    """What the trainings so far say; None before all configurations have ended with one seed.

    A configuration of which any training failed, diverged or has no value is no winner: another seed would meet it.
    """
    lost: dict[str, str] = {}
    for number in plan.configurations:
        mine = [rows[refit_number(number, seed)] for seed in plan.seeds if refit_number(number, seed) in rows]
        bad = [row for row in mine if row.state in (State.FAILED, State.DIVERGED) or _without_value(row, metric)]
        if bad:
            how = f"has no {metric}" if bad[0].state is State.DONE else bad[0].state
            lost[trial_name(number)] = f"{bad[0].name} {how}"
    alive = [number for number in plan.configurations if trial_name(number) not in lost]
    if not alive:
        raise RunError("no configuration could be refitted with every seed; the reasons are above")
    seeds = tuple(seed for seed in plan.seeds if all(_done(rows.get(refit_number(one, seed))) for one in alive))
    if not seeds:
        return None
    found: Sequence[Refitted] = [
        Refitted(number, plan.configurations[number], tuple(rows[refit_number(number, seed)] for seed in seeds))
        for number in alive
    ]
    ranked = sorted(found, key=lambda one: preference(one.mean(metric), one.mean("val_loss"), mode), reverse=True)
    return Outcome(tuple(ranked), seeds, lost)


def _done(row: TrialRow | None) -> bool:
    return row is not None and row.state is State.DONE


def _without_value(row: TrialRow, metric: str) -> bool:
    return row.state is State.DONE and isnan(row.best(metric))
