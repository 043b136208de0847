"""The searcher between Tune and Optuna, on a real journal: what it hands out, tells, and finds again."""

import math
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import TrialState
from ray.tune.search import Searcher

from fracray.config import Config
from fracray.errors import InputError
from fracray.runtime.console import new_console
from fracray.runtime.storage import Folder
from fracray.search.auto import resolved
from fracray.search.journal import StudyJournal
from fracray.search.messages import TrialReport
from fracray.search.space_file import load_space
from fracray.search.study import JOURNAL, LEAVES, REASON, RETRIES, StudySearcher, begun_space, open_study
from fracray.training.epochs import EpochResult

DROPOUT = "space:\n  model.dropout: {float: [0.0, 0.6]}\n  train.lr: {log_float: [1.0e-4, 1.0e-2]}\n"
TOP = "trials: 6\nsampler: {name: random}\nscheduler: {name: asha}\n"
DEFAULTS = {"model.dropout": Config().model.dropout, "train.lr": Config().train.lr}


def space_of(tmp_path, text=TOP + DROPOUT):
    file = tmp_path / "space.yaml"
    file.write_text(text)
    return resolved(load_space(file), 2, new_console())


@pytest.fixture
def space(tmp_path):
    return space_of(tmp_path)


@pytest.fixture
def journal(tmp_path):
    return tmp_path / JOURNAL


def result(epoch, accuracy, **more):
    """An epoch's result as Tune hands it on; `more` are other metrics at the best epoch."""
    best = {"val_accuracy": accuracy, **more}
    epoch_result = EpochResult(epoch, {"val_accuracy": accuracy}, best, seconds=1.0)
    return TrialReport(epoch_result).to_tune(["val_accuracy"])


def without(metric):
    flat = result(1, 0.5)
    return {name: value for name, value in flat.items() if name != f"best_{metric}"}


def failure(reason):
    return TrialReport(None, failure=reason, done=True).to_tune(["val_accuracy"])


def trials_of(journal, space):
    """The study as another process finds it."""
    return open_study(journal, space).get_trials()


# ---- what is handed out


def test_the_default_comes_first_and_then_others(space, journal):
    searcher = StudySearcher(space, journal, 6)
    first, second = searcher.suggest("a"), searcher.suggest("b")
    assert first == {"number": 0, "leaves": DEFAULTS}
    assert second["number"] == 1
    assert second["leaves"].keys() == DEFAULTS.keys()
    assert second["leaves"] != DEFAULTS


def test_the_budget_is_handed_out_and_no_more(space, journal):
    searcher = StudySearcher(space, journal, 3)
    remaining = []
    for name in "abc":
        remaining.append(searcher.remaining)
        assert isinstance(searcher.suggest(name), dict)
        searcher.on_trial_complete(name, result(1, 0.5))
    assert remaining == [3, 2, 1]
    assert searcher.remaining == 0
    assert searcher.suggest("d") == Searcher.FINISHED
    assert len(trials_of(journal, space)) == 3


def test_failed_trials_count_against_the_budget(space, journal):
    searcher = StudySearcher(space, journal, 1)
    searcher.suggest("a")
    searcher.on_trial_complete("a", failure("no such thing"))
    assert searcher.suggest("b") == Searcher.FINISHED


def test_the_end_is_not_said_while_a_trial_may_still_come_back(space, journal):
    searcher = StudySearcher(space, journal, 2)
    begun = [searcher.suggest(name) for name in "ab"]
    searcher.on_trial_complete("a", result(1, 0.5))
    assert searcher.suggest("c") is None
    searcher.on_trial_complete("b", error=True)
    assert searcher.suggest("d") == begun[1]
    searcher.on_trial_complete("d", result(1, 0.5))
    assert searcher.suggest("e") == Searcher.FINISHED


def test_a_default_outside_the_space_runs_and_is_not_reported_to_optuna(tmp_path, journal):
    space = space_of(tmp_path, "sampler: {name: random}\nspace:\n  model.dropout: {float: [0.4, 0.6]}\n")
    searcher = StudySearcher(space, journal, 2)
    assert searcher.suggest("a") == {"number": 0, "leaves": {}}
    searcher.on_trial_result("a", result(1, 0.9))
    searcher.on_trial_complete("a", result(2, 0.9))
    assert 0.4 <= searcher.suggest("b")["leaves"]["model.dropout"] <= 0.6
    first = trials_of(journal, space)[0]
    assert (first.state, first.params, first.user_attrs[LEAVES]) == (TrialState.FAIL, {}, {})


# ---- what is reported


def test_the_best_epochs_value_and_every_epoch_are_reported(space, journal):
    searcher = StudySearcher(space, journal, 6)
    searcher.suggest("a")
    searcher.on_trial_result("a", result(1, 0.6))
    searcher.on_trial_result("a", result(2, 0.8))
    searcher.on_trial_complete("a", result(3, 0.7, val_accuracy=0.8))
    (trial,) = trials_of(journal, space)
    assert trial.state is TrialState.COMPLETE
    assert trial.value == 0.8
    assert trial.intermediate_values == {1: 0.6, 2: 0.8, 3: 0.8}
    assert trial.params == trial.user_attrs[LEAVES] == DEFAULTS


def test_what_a_smaller_number_of_trials_leaves_is_known(space, journal):
    begun = StudySearcher(space, journal, 6)
    for name in "abc":
        begun.suggest(name)
    again = StudySearcher(space, journal, 1)  # after a kill
    assert (again.remaining, again.left) == (1, {0, 1, 2})
    assert again.suggest("d") is not None
    assert (again.remaining, again.left) == (0, {1, 2})


def test_the_study_opens_by_its_names_and_direction(tmp_path, journal):
    space = space_of(tmp_path, f"metric: val_loss\nmode: min\n{DROPOUT}")
    searcher = StudySearcher(space, journal, 6)
    for name, loss in (("a", 0.7), ("b", 0.3), ("c", 0.5)):
        searcher.suggest(name)
        searcher.on_trial_complete(name, result(1, 0.5, val_loss=loss))
    study = open_study(journal, space)
    assert study.direction is optuna.study.StudyDirection.MINIMIZE
    assert study.metric_names == ["val_loss"]
    assert (study.best_trial.number, study.best_value) == (1, 0.3)


@pytest.mark.parametrize(
    "outcome",
    [
        {"result": result(1, math.nan)},
        {"result": result(1, math.inf)},
        {"result": without("val_accuracy")},
        {"result": None},
        {"result": failure("no such thing")},
    ],
    ids=["nan", "infinite", "without the metric", "no result", "failure"],
)
def test_a_trial_without_a_value_fails_and_the_search_continues(space, journal, outcome):
    searcher = StudySearcher(space, journal, 6)
    searcher.suggest("a")
    searcher.on_trial_result("a", result(1, math.nan))
    searcher.on_trial_complete("a", **outcome)
    searcher.suggest("b")
    searcher.on_trial_complete("b", result(1, 0.4))
    first, second = trials_of(journal, space)
    assert first.state is TrialState.FAIL
    assert (second.state, second.value) == (TrialState.COMPLETE, 0.4)


def diverged(epoch, accuracy):
    """The report of an epoch in which the loss became infinite, after a best epoch of this accuracy."""
    best = {"val_accuracy": accuracy}
    return TrialReport(EpochResult(epoch, best, best, seconds=1.0, diverged=True), done=True).to_tune(["val_accuracy"])


@pytest.mark.parametrize(("epoch", "accuracy"), [(1, math.nan), (7, 0.9)], ids=["first epoch", "later epoch"])
@pytest.mark.filterwarnings("error")
def test_a_trial_that_diverges_is_infeasible_and_not_the_best(space, journal, epoch, accuracy):
    searcher = StudySearcher(space, journal, 6)
    searcher.suggest("a")
    searcher.on_trial_complete("a", result(1, 0.5))
    searcher.suggest("b")
    searcher.on_trial_complete("b", diverged(epoch, accuracy))
    study = open_study(journal, space)
    first, second = study.get_trials()
    assert (second.state, second.constraints) == (TrialState.PRUNED, {"diverged": 1.0})
    assert "infinite or NaN" in second.user_attrs[REASON]
    assert study.best_trial == first


def test_a_trial_that_diverges_among_several_metrics_is_on_no_front(tmp_path, journal):
    space = space_of(tmp_path, "metric: [val_auroc, val_f1]\nscheduler: {name: none}\n" + DROPOUT)
    searcher = StudySearcher(space, journal, 12)
    for index in range(12):
        searcher.suggest(str(index))
        best = {"val_auroc": 0.5 + index / 100, "val_f1": 0.5}
        report = TrialReport(EpochResult(2, best, best, seconds=1.0, diverged=index == 11), done=True)
        searcher.on_trial_complete(str(index), report.to_tune(space.metrics))
    study = open_study(journal, space)
    assert [trial.state for trial in study.get_trials()] == [TrialState.COMPLETE] * 11 + [TrialState.PRUNED]
    assert [trial.number for trial in study.best_trials] == [10]


def test_tpe_leaves_a_region_that_diverges(tmp_path, journal):
    """Told of a failure, it went on: 28 of 32 proposals diverged on such a cliff."""
    text = "space:\n  train.lr: {log_float: [1.0e-4, 1.0]}\n  model.dropout: {float: [0.0, 0.7]}\n"
    space = space_of(tmp_path, text)
    searcher, wild = StudySearcher(space, journal, 40), 0
    for index in range(40):
        leaves = searcher.suggest(str(index))["leaves"]
        height = math.log10(leaves["train.lr"])
        if height > -2:
            wild += index >= 8
            searcher.on_trial_complete(str(index), diverged(1, math.nan))
        else:
            searcher.on_trial_complete(str(index), result(1, 0.9 - 0.05 * (height + 2) ** 2))
    assert wild <= 16


def test_a_trial_whose_metric_has_no_value_fails_with_that_reason(space, journal):
    searcher = StudySearcher(space, journal, 6)
    searcher.suggest("a")
    searcher.on_trial_complete("a", result(1, math.nan))
    (trial,) = trials_of(journal, space)
    assert (trial.state, trial.user_attrs[REASON]) == (TrialState.FAIL, "val_accuracy has no value in any epoch")


def test_a_trial_reported_twice_keeps_its_first_value(space, journal):
    searcher = StudySearcher(space, journal, 6)
    searcher.suggest("a")
    searcher.on_trial_complete("a", result(1, 0.7))
    searcher.on_trial_complete("a", result(1, 0.1))
    searcher.on_trial_result("a", result(2, 0.1))
    searcher.on_trial_complete("never suggested", result(1, 0.1))
    (trial,) = trials_of(journal, space)
    assert trial.value == 0.7


def test_two_searchers_may_report_the_same_trial(space, journal):
    """A driver that was thought dead reports its trial after the next driver has."""
    old = StudySearcher(space, journal, 6)
    old.suggest("a")
    new = StudySearcher(space, journal, 6)
    new.suggest("b")
    new.on_trial_complete("b", result(2, 0.8))
    old.on_trial_complete("a", result(1, 0.3))
    (trial,) = trials_of(journal, space)
    assert trial.value == 0.8


def test_all_of_several_metrics_are_reported(tmp_path, journal):
    space = space_of(tmp_path, "metric: [val_auroc, val_f1]\nscheduler: {name: none}\nsampler: {name: tpe}\n" + DROPOUT)
    searcher = StudySearcher(space, journal, 4)
    values = [(0.9, 0.5), (0.8, 0.7), (0.7, 0.6), (0.6, math.nan)]
    for name, (auroc, f1) in zip("abcd", values, strict=True):
        searcher.suggest(name)
        outcome = result(1, 0.5, val_auroc=auroc, val_f1=f1)
        searcher.on_trial_result(name, outcome)
        searcher.on_trial_complete(name, outcome)
    study = open_study(journal, space)
    assert study.metric_names == ["val_auroc", "val_f1"]
    assert [trial.values for trial in study.get_trials()] == [[0.9, 0.5], [0.8, 0.7], [0.7, 0.6], None]
    assert sorted(trial.number for trial in study.best_trials) == [0, 1]


# ---- lost processes


def lose(searcher, times, name="lost"):
    """Hand out the next trial and have its process die, so many times; its number each time."""
    numbers = []
    for index in range(times):
        numbers.append(searcher.suggest(f"{name}{index}")["number"])
        searcher.on_trial_complete(f"{name}{index}", error=True)
    return numbers


def test_a_trial_whose_process_died_comes_first_again_as_itself(space, journal):
    searcher = StudySearcher(space, journal, 3)
    first = searcher.suggest("a")
    searcher.on_trial_result("a", result(1, 0.5))
    searcher.on_trial_complete("a", error=True)
    assert searcher.remaining == 3
    assert searcher.suggest("b") == first
    assert searcher.suggest("c")["number"] == 1
    searcher.on_trial_complete("b", result(2, 0.7))
    again, other = trials_of(journal, space)
    assert (again.state, again.value, other.state) == (TrialState.COMPLETE, 0.7, TrialState.RUNNING)
    assert again.intermediate_values == {1: 0.5, 2: 0.7}


def test_a_trial_that_always_dies_is_given_up_with_its_reason(space, journal):
    searcher = StudySearcher(space, journal, 2)
    assert lose(searcher, RETRIES + 1) == [0] * (RETRIES + 1)
    assert searcher.suggest("next")["number"] == 1
    trial = trials_of(journal, space)[0]
    assert trial.state is TrialState.FAIL
    assert "without progress" in trial.user_attrs[REASON]


def test_deaths_are_counted_over_resumes_and_only_between_finished_epochs(space, journal):
    lose(StudySearcher(space, journal, 2), RETRIES)
    searcher = StudySearcher(space, journal, 2)
    searcher.suggest("a")
    searcher.on_trial_result("a", result(1, 0.5))
    searcher.on_trial_complete("a", error=True)
    assert lose(searcher, RETRIES) == [0] * RETRIES  # the finished epoch had set the count to 0, this loss to 1
    assert trials_of(journal, space)[0].state is TrialState.FAIL


def test_a_trial_that_dies_again_and_again_in_the_same_epoch_is_given_up(space, journal):
    """What was lost is repeated: an epoch that had been finished before is no progress."""
    searcher = StudySearcher(space, journal, 2)
    for life in range(RETRIES + 1):
        assert searcher.suggest(f"a{life}")["number"] == 0
        for epoch in (2, 3):
            searcher.on_trial_result(f"a{life}", result(epoch, 0.5))
        searcher.on_trial_complete(f"a{life}", error=True)
    assert trials_of(journal, space)[0].state is TrialState.FAIL
    assert searcher.suggest("b")["number"] == 1


def test_a_trial_that_cannot_run_fails_at_once_with_its_reason(space, journal):
    searcher = StudySearcher(space, journal, 2)
    searcher.suggest("a")
    searcher.on_trial_complete("a", failure("model.width: too large"))
    assert searcher.suggest("b")["number"] == 1
    trial = trials_of(journal, space)[0]
    assert (trial.state, trial.user_attrs[REASON]) == (TrialState.FAIL, "model.width: too large")


def test_a_study_searches_one_space(tmp_path, space, journal):
    open_study(journal, space)
    assert begun_space(Folder(journal.parent)) == space.described()
    open_study(journal, space)
    other = replace(space, dimensions=space.dimensions[1:])
    before = journal.read_bytes()
    with pytest.raises(InputError, match="began with another space"):
        open_study(journal, other)
    assert journal.read_bytes() == before
    assert begun_space(Folder(tmp_path / "empty")) is None


# ---- grids


GRID = "  model.dropout: {float: [0.0, 0.4], step: 0.2}\n  train.loss: {categorical: [weighted, focal]}\n"


def run_all(searcher, limit=50):
    leaves = []
    for index in range(limit):
        suggestion = searcher.suggest(str(index))
        if suggestion == Searcher.FINISHED:
            return leaves
        leaves.append(suggestion["leaves"])
        searcher.on_trial_complete(str(index), result(1, 0.5 + 0.01 * index))
    raise AssertionError(f"no end after {limit} trials")


def test_a_grid_runs_every_point_once_and_ends(tmp_path, journal):
    space = space_of(tmp_path, f"sampler: {{name: grid}}\nspace:\n{GRID}")
    leaves = run_all(StudySearcher(space, journal, 40))
    assert leaves[0] == {"model.dropout": 0.2, "train.loss": "weighted"}
    assert sorted(map(str, leaves)) == sorted(map(str, space.points()))
    assert all(trial.state is TrialState.COMPLETE for trial in trials_of(journal, space))


def test_a_grid_that_lacks_the_default_runs_it_in_addition_to_its_points(tmp_path, journal):
    space = space_of(tmp_path, "sampler: {name: grid}\nspace:\n  model.dropout: {categorical: [0.3, 0.4, 0.5]}\n")
    leaves = run_all(StudySearcher(space, journal, 40))
    assert leaves[0] == {}
    assert sorted(leaf["model.dropout"] for leaf in leaves[1:]) == [0.3, 0.4, 0.5]


def test_a_grid_in_parts_over_resumes_runs_every_point_once(tmp_path, journal):
    space = space_of(tmp_path, f"sampler: {{name: grid}}\nspace:\n{GRID}")
    leaves = run_all(StudySearcher(space, journal, 2))
    searcher = StudySearcher(space, journal, 40)
    leaves.append(searcher.suggest("in flight")["leaves"])  # never reported: the driver is killed
    rest = run_all(StudySearcher(space, journal, 40))
    assert rest[0] == leaves.pop()
    assert sorted(map(str, leaves + rest)) == sorted(map(str, space.points()))


# ---- resuming a search


@pytest.mark.filterwarnings("error")
def test_unfinished_trials_are_handed_out_first_with_the_same_leaves_and_number(space, journal):
    searcher = StudySearcher(space, journal, 5)
    suggestions = {name: searcher.suggest(name) for name in "abcd"}
    searcher.on_trial_complete("b", result(1, 0.7))
    searcher.on_trial_result("c", result(1, 0.6))

    resumed = StudySearcher(space, journal, 5)
    assert resumed.remaining == 4
    again = [resumed.suggest(name) for name in "wxyz"]
    assert again[:3] == [suggestions["a"], suggestions["c"], suggestions["d"]]
    assert again[3]["number"] == 4
    assert resumed.suggest("v") is None
    for name, accuracy in zip("wxyz", (0.1, 0.2, 0.3, 0.4), strict=True):
        resumed.on_trial_result(name, result(1, accuracy))  # an epoch that had been reported before, for "x"
        resumed.on_trial_complete(name, result(2, accuracy))
    assert [trial.value for trial in trials_of(journal, space)] == [0.1, 0.7, 0.2, 0.3, 0.4]


def test_a_larger_budget_adds_trials_to_a_search_that_was_done(space, journal):
    run_all(StudySearcher(space, journal, 2))
    assert StudySearcher(space, journal, 2).remaining == 0
    more = StudySearcher(space, journal, 4)
    assert more.remaining == 2
    assert [more.suggest(name)["number"] for name in "ab"] == [2, 3]


def test_a_resumed_random_search_does_not_repeat_itself(space, journal):
    first = run_all(StudySearcher(space, journal, 4))
    again = run_all(StudySearcher(space, journal, 8))
    drawn = [leaves["model.dropout"] for leaves in first + again]
    assert len(set(drawn)) == len(drawn) == 8


def test_a_search_is_repeated_by_its_seed(tmp_path, space):
    first = run_all(StudySearcher(space, tmp_path / "one", 5))
    assert run_all(StudySearcher(space, tmp_path / "two", 5)) == first


def test_a_default_outside_the_space_resumes_unchanged(tmp_path, journal):
    space = space_of(tmp_path, "sampler: {name: random}\nspace:\n  model.dropout: {float: [0.4, 0.6]}\n")
    StudySearcher(space, journal, 3).suggest("a")
    assert StudySearcher(space, journal, 3).suggest("b") == {"number": 0, "leaves": {}}


def test_tune_may_pickle_and_restore_the_searcher(space, journal, tmp_path):
    searcher = StudySearcher(space, journal, 3)
    searcher.save(str(tmp_path / "searcher.pkl"))
    assert searcher.__getstate__() == {}
    searcher.restore(str(tmp_path / "searcher.pkl"))
    assert searcher.suggest("a")["number"] == 0


# ---- killed in the middle

DRIVER = """
import os, sys
from pathlib import Path
from fracray.search.messages import TrialReport
from fracray.search.space_file import load_space
from fracray.search.study import StudySearcher
from fracray.training.epochs import EpochResult

def result(accuracy):
    epoch_result = EpochResult(1, {"val_accuracy": accuracy}, {"val_accuracy": accuracy}, seconds=1.0)
    return TrialReport(epoch_result).to_tune(["val_accuracy"])

searcher = StudySearcher(load_space(sys.argv[1]), Path(sys.argv[2]), 6)
for name, accuracy in (("a", 0.5), ("b", 0.6)):
    searcher.suggest(name)
    searcher.on_trial_complete(name, result(accuracy))
third = searcher.suggest("c")
searcher.on_trial_result("c", result(0.9))
print(third["leaves"]["model.dropout"], flush=True)
if len(sys.argv) > 3:  # between putting a trial in line and beginning it
    searcher.study.enqueue_trial({"model.dropout": 0.123})
os._exit(9)
"""


def killed_driver(tmp_path, journal, *flags):
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, tmp_path / "space.yaml", journal, *flags],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 9, done.stderr
    return float(done.stdout)


def test_a_killed_driver_leaves_its_history_and_its_trial(tmp_path, space, journal):
    dropout = killed_driver(tmp_path, journal)
    trials = trials_of(journal, space)
    assert [trial.value for trial in trials] == [0.5, 0.6, None]
    searcher = StudySearcher(space, journal, 6)
    assert searcher.remaining == 4
    third = searcher.suggest("c")
    assert (third["number"], third["leaves"]["model.dropout"]) == (2, dropout)
    searcher.on_trial_complete("c", result(2, 0.95))
    assert trials_of(journal, space)[2].value == 0.95


def test_a_trial_that_was_put_in_line_and_never_begun_is_not_lost(tmp_path, space, journal):
    killed_driver(tmp_path, journal, "enqueue")
    searcher = StudySearcher(space, journal, 6)
    assert searcher.remaining == 4
    assert [searcher.suggest(name)["number"] for name in "cdef"] == [2, 3, 4, 5]
    assert searcher.suggest("g") is None
    assert trials_of(journal, space)[3].params["model.dropout"] == 0.123


def test_a_journal_cut_short_in_its_last_line_is_gone_on_with(space, journal):
    """A full disk or a power cut: the last entry is half there, and what follows must not be appended to it."""
    run_all(StudySearcher(space, journal, 2))
    with journal.open("ab") as file:
        file.write(b'{"op_code": 4, "worker_id": "abc')
    leaves = run_all(StudySearcher(space, journal, 4))
    assert len(leaves) == 2
    assert [trial.state for trial in trials_of(journal, space)] == [TrialState.COMPLETE] * 4


def test_entries_that_belong_together_wait_for_the_disk_once_and_are_there_for_others(space, journal, monkeypatch):
    waits = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (waits.append(number), fsync(number)))
    searcher = StudySearcher(space, journal, 3)
    waits.clear()
    first = searcher.suggest("a")
    assert len(waits) == 1
    assert [trial.user_attrs[LEAVES] for trial in trials_of(journal, space)] == [first["leaves"]]
    waits.clear()
    searcher.on_trial_complete("a", error=True)  # lost: it is handed out again
    assert len(waits) == 1
    assert searcher.suggest("b")["number"] == first["number"]
    waits.clear()
    searcher.study.set_user_attr("after", 1)
    assert len(waits) == 1  # as Optuna does it


def test_waiting_trials_are_found_as_optuna_finds_them_without_the_others(tmp_path):
    """`optuna.storages.JournalStorage` on the same file is asked beside fracray's."""
    storage = StudyJournal(tmp_path / JOURNAL)
    study, generator = optuna.create_study(storage=storage), np.random.default_rng(0)
    plain = JournalStorage(JournalFileBackend(str(tmp_path / JOURNAL), JournalFileOpenLock(str(tmp_path / JOURNAL))))
    waiting, most = (TrialState.WAITING,), 0
    for step in range(60):
        if generator.random() < 0.5:
            study.enqueue_trial({"x": step})
        else:
            trial = study.ask()
            if generator.random() < 0.5:
                study.tell(trial, 1.0)
        here, there = (one.get_all_trials(study._study_id, states=waiting) for one in (storage, plain))
        assert [trial.number for trial in here] == [trial.number for trial in there]
        most = max(most, len(here))
    assert most > 3
    again = StudyJournal(tmp_path / JOURNAL).get_all_trials(study._study_id, states=waiting)
    assert [trial.number for trial in again] == [trial.number for trial in there]
    assert len(storage.get_all_trials(study._study_id)) == len(plain.get_all_trials(study._study_id))
