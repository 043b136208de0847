"""Optuna's study as a searcher of Ray Tune, kept in a journal file that outlives both.

Ray's own OptunaSearch cannot resume from a persistent storage: after a killed driver it reports a trial twice and
crashes. Here the study decides: a trial is known by its number in the study, is reported to Optuna once, and is
resumed from its folder after a killed driver or a lost process.
"""

import logging
import math
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher

from fracray.config import Config
from fracray.errors import InputError
from fracray.runtime.storage import Folder
from fracray.search.journal import StudyJournal
from fracray.search.messages import Suggestion, TrialReport, searched
from fracray.search.pasha import first_budget, raised_budget
from fracray.search.samplers import sampler
from fracray.search.schedulers import StoppingRule
from fracray.search.space import SearchSpace
from fracray.training.epochs import EpochResult
from fracray.training.rungs import may_stop

RETRIES = 2  # in a row without progress, of a trial whose process died or whose code failed
LEAVES, REASON = "leaves", "reason"  # a trial's settings, and why it failed, as user attributes
STOPPED = "stopped"  # the epoch after which the scheduler stopped a trial
DIVERGED = "diverged"  # Optuna's constraint that a trial broke whose loss became infinite or NaN
TRIES, REACHED = "tries", "reached"  # how often in a row a trial was lost, and its last finished epoch
JOURNAL = "optuna.journal"
STUDY, SPACE = "fracray", "space"  # its name, and its space as a user attribute
BUDGET = "budget"  # of pasha: the epochs that a trial may run, since they were first raised, as a user attribute
WARM = "warm"  # the settings of the trials after the default one, from an earlier search, as a user attribute


def open_study(journal: Path, space: SearchSpace) -> optuna.Study:
    """Open or begin the study of a run; optuna-dashboard opens the same file."""
    return _opened(StudyJournal(journal), space)


def _opened(storage: StudyJournal, space: SearchSpace) -> optuna.Study:
    _quiet()
    before, searched = None, space.described()
    if storage.get_all_studies():
        before = storage.get_study_user_attrs(storage.get_study_id_from_name(STUDY)).get(SPACE)
    if before not in (None, searched):
        raise InputError(
            f"{storage.path}: this study began with another space than {space.origin}; restore {space.origin}"
        )
    study = optuna.create_study(
        storage=storage,
        study_name=STUDY,
        directions=["maximize" if space.config.search.mode == "max" else "minimize"] * len(space.metrics),
        sampler=sampler(space),
        load_if_exists=True,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names(list(space.metrics))
    if before is None:  # a new study, or one of an older version
        study.set_user_attr(SPACE, searched)
    return study


def begun_space(run: Folder) -> dict[str, str] | None:
    """The space with which the study of a run began, as `described`; None where it has not begun or does not say."""
    if not run.exists(JOURNAL):
        return None
    with stored_study(run) as study:
        return None if study is None else study.user_attrs.get(SPACE)


def epoch_budget(study: optuna.Study, config: Config) -> int:
    """The epochs that a trial may run, as far as the study has come: with pasha they grow, else they are all."""
    return int(study.user_attrs.get(BUDGET, first_budget(config)))


@contextmanager
def stored_study(run: Folder) -> Iterator[optuna.Study | None]:
    """The study in the journal of a run, to read: it is that of a copy. None where it has not begun."""
    _quiet()
    with tempfile.TemporaryDirectory() as scratch:
        journal = Path(scratch) / JOURNAL
        journal.write_bytes(run.read(JOURNAL))
        storage = StudyJournal(journal)
        known = storage.get_all_studies()
        yield optuna.load_study(study_name=STUDY, storage=storage) if known else None


def _quiet() -> None:
    """Optuna's own messages, of every study that is made, are not for the user."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("optuna").setLevel(logging.ERROR)


@contextmanager
def local_journal(run: Folder) -> Iterator[Path]:
    """A local path of the study's journal: the file itself, or for a run on a URI a copy that is uploaded."""
    if run.is_local:
        yield Path(run.path(JOURNAL))
        return
    with tempfile.TemporaryDirectory() as scratch:
        journal = Path(scratch) / JOURNAL
        if run.exists(JOURNAL):
            journal.write_bytes(run.read(JOURNAL))
        yield journal
        run.write(JOURNAL, journal.read_bytes())


class StudySearcher(Searcher):
    """Passes Optuna's suggestions to Tune, reports each trial's epochs to Optuna, and decides which trials stop early.

    The first trial is always the default configuration. Trials that a former driver left unfinished, or that lost their
    process, are handed out again before new ones; `budget` trials (of a grid, at most its points) are finished in all,
    over every resume.

    Tune's own retries are not used: Tune gives up a trial whose process dies between two trials, and forgets its count
    with the driver.
    """

    def __init__(
        self, space: SearchSpace, journal: Path, budget: int, warm: Callable[[], list[dict[str, Any]]] | None = None
    ) -> None:
        """`warm` gives the trials that follow the default one; it is asked where the study has not begun."""
        super().__init__(metric=searched(space.metrics[0]), mode=space.config.search.mode)
        self._space, self._budget = space, min(budget, space.grid_points or budget)
        self._journal = StudyJournal(journal)
        self.study = _opened(self._journal, space)
        self._running: dict[str, optuna.Trial] = {}
        self._epochs: dict[str, int] = {}  # finished epochs of running trials
        # What follows is counted here on: this process alone adds to the study, and asking it for all trials after each
        # report would take ever longer.
        trials = self.study.get_trials(deepcopy=False)
        self._unfinished = [trial for trial in trials if trial.state is TrialState.RUNNING]
        self._waiting = sum(trial.state is TrialState.WAITING for trial in trials)
        self._begun = len(trials) - self._waiting
        self._points = None if space.grid_points is None else space.points()
        self._handed = set() if self._points is None else {_point(trial.user_attrs.get(LEAVES, {})) for trial in trials}
        self._sign = 1.0 if self.mode == "max" else -1.0
        self._rule, self._curves = StoppingRule(space.config), defaultdict[int, dict[int, float]](dict)
        self._epoch_budget = epoch_budget(self.study, space.config)
        for trial in trials:
            for epoch, value in sorted(trial.intermediate_values.items()):
                if math.isfinite(value):
                    self._tell_rule(trial.number, epoch, value)
        if warm is not None and WARM not in self.study.user_attrs and not trials:
            self.study.set_user_attr(WARM, warm())

    @property
    def remaining(self) -> int:
        """Trials still to be handed out."""
        return self._budget - self._begun + len(self._unfinished)

    @property
    def left(self) -> set[int]:
        """The numbers of trials that were begun and are not at work."""
        return {trial.number for trial in self._unfinished}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        with self._journal.together():
            return self._suggest(trial_id)

    def _suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if self.remaining <= 0:
            # Running trials may lose their processes and be handed out again; FINISHED could not be taken back.
            return None if self._running else Searcher.FINISHED
        if self._unfinished:
            frozen = self._unfinished.pop(0)
            trial = optuna.Trial(self.study, frozen._trial_id)
            leaves = frozen.user_attrs.get(LEAVES) or self._choose(trial)
        else:
            trial = self._ask()
            leaves = self._choose(trial)
        trial.set_user_attr(LEAVES, leaves)
        if self._points is not None:
            self._handed.add(_point(leaves))
        self._running[trial_id] = trial
        return Suggestion(trial.number, leaves).to_tune()

    def _ask(self) -> optuna.Trial:
        # A trial that a killed driver queued and never started comes first.
        if not self._waiting:
            point = self._set_point()
            if point is not None:
                self.study.enqueue_trial(point)
                self._waiting += 1
        trial = self.study.ask()
        self._begun, self._waiting = self._begun + 1, max(0, self._waiting - 1)
        return trial

    def _set_point(self) -> dict[str, Any] | None:
        """The values of the next trial where the sampler does not draw them: the default's, or a grid point."""
        if not self._begun:
            values, outside = self._space.defaults()
            return None if outside else values
        warm = self.study.user_attrs.get(WARM, [])
        if self._begun <= len(warm):
            return warm[self._begun - 1]
        if self._points is None:
            return None
        # Not Optuna's GridSampler: it runs the point of a queued default twice and leaves another point out.
        return next(point for point in self._points if _point(point) not in self._handed)

    def _choose(self, trial: optuna.Trial) -> dict[str, Any]:
        if trial.number == 0 and self._space.defaults()[1]:
            return {}  # the default is outside the space: it runs all the same, but its value is not reported to Optuna
        return self._space.suggest(trial)

    def stops(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Whether a trial stops after this result, before its last epoch; asked before `on_trial_result`.

        An epoch is judged once, when it is first reported, among all that the journal holds. A trial that is taken up
        again reports its epochs once more: for those the journal holds the decision too.
        """
        trial, report = self._running.get(trial_id), TrialReport.from_tune(result)
        if trial is None or report.result is None or len(self._space.metrics) > 1:
            return False
        epoch, value = report.result.epoch, report.result.value(self._space.metrics[0])
        if not may_stop(self._space.config, epoch):
            return False
        before = self._now(trial)
        if STOPPED in before.user_attrs:
            return epoch >= int(before.user_attrs[STOPPED])
        if epoch in before.intermediate_values or not math.isfinite(value):
            return False
        self._curves[trial.number][epoch] = self._sign * value
        budget = raised_budget(self._space.config, epoch, self._curves, self._epoch_budget)
        if budget > self._epoch_budget:  # noted first: a trial that is judged again is below the top rung then
            self._epoch_budget = budget
            self.study.set_user_attr(BUDGET, budget)
        # The default configuration is what a gain is measured against, so it is not cut short where others go on.
        judged = trial.number > 0 and self._rule.stops(trial.number, epoch, self._sign * value)
        stops = epoch >= budget or judged
        if stops:
            # Before its value: a driver killed in between repeats the decision, for the epoch is not reported yet.
            trial.set_user_attr(STOPPED, epoch)
        return stops

    def _tell_rule(self, number: int, epoch: int, value: float) -> None:
        self._curves[number][epoch] = self._sign * value
        self._rule.told(number, epoch, self._sign * value)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        trial, report = self._running.get(trial_id), TrialReport.from_tune(result)
        if trial is None or report.result is None:
            return
        epoch = self._epochs[trial_id] = report.result.epoch
        before = self._now(trial)
        if before.user_attrs.get(TRIES) and epoch > before.user_attrs[REACHED]:  # repeating a lost epoch is no progress
            trial.set_user_attr(TRIES, 0)
        # A resumed trial reports its epochs again; Optuna would warn about it on the user's screen.
        known = epoch in before.intermediate_values
        value = report.result.value(self._space.metrics[0])
        if len(self._space.metrics) == 1 and math.isfinite(value) and not known:
            trial.report(value, epoch)
            self._tell_rule(trial.number, epoch, value)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Report to Optuna how a trial ended; one that was lost is handed out again, RETRIES times in a row.

        COMPLETE: it ran all epochs. PRUNED: the scheduler stopped it, or it diverged, which is a broken constraint as
        well. FAIL: it could not run, or its metric has no value; and a default outside the space, which has no settings
        that Optuna could learn from.
        """
        with self._journal.together():
            self._complete(trial_id, result or {}, error)

    def _complete(self, trial_id: str, result: dict[str, Any], error: bool) -> None:
        trial = self._running.get(trial_id)
        if trial is None or self._now(trial).state.is_finished():
            self._forget(trial_id)
            return
        if error:
            self._put_back(trial, self._epochs.get(trial_id, 0))
            self._forget(trial_id)
            return
        self.on_trial_result(trial_id, result)  # Tune tells a searcher of the last epoch only here
        self._forget(trial_id)
        report = TrialReport.from_tune(result)
        reason = report.reason(self._space.metrics)
        if reason:
            trial.set_user_attr(REASON, reason)
        drawn = bool(trial.params) and set(trial.params) == set(trial.user_attrs[LEAVES])
        if report.result is None or not drawn:
            self.study.tell(trial, state=TrialState.FAIL)
        elif report.result.diverged:
            # A sampler that was told of a failure would learn nothing, and go on proposing what diverges.
            if not self._now(trial).constraints:
                trial.set_constraint(DIVERGED, 1.0)
            self.study.tell(trial, state=TrialState.PRUNED)
        elif reason:
            self.study.tell(trial, state=TrialState.FAIL)
        else:
            self._tell(trial, report.result)

    def _tell(self, trial: optuna.Trial, result: EpochResult) -> None:
        """Report the values of a trial that ended with a result, and how far it is from breaking each constraint."""
        known = self._now(trial)
        for metric, bound in self._space.config.search.constraints.items():
            if metric not in known.constraints:  # a driver may have been killed in between
                trial.set_constraint(metric, bound.excess(result.value(metric)))
        if STOPPED in known.user_attrs:
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, [result.value(metric) for metric in self._space.metrics])

    def _forget(self, trial_id: str) -> None:
        self._running.pop(trial_id, None)
        self._epochs.pop(trial_id, None)

    def _put_back(self, trial: optuna.Trial, epoch: int) -> None:
        before = self._now(trial).user_attrs
        tries = before.get(TRIES, 0) + 1
        trial.set_user_attr(REACHED, max(epoch, before.get(REACHED, 0)))
        trial.set_user_attr(TRIES, tries)
        if tries <= RETRIES:
            self._unfinished.insert(0, self._now(trial))  # before those that a smaller number of trials leaves
            return
        trial.set_user_attr(REASON, f"lost {tries} times without progress")
        self.study.tell(trial, state=TrialState.FAIL)

    def _now(self, trial: optuna.Trial) -> FrozenTrial:
        return trial.storage.get_trial(trial._trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the journal is always up to date."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to read: the study was opened from its journal."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its searcher with the experiment; a resumed search reads the journal instead


def _point(leaves: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(leaves.items()))
