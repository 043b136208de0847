"""What a search says of all its trials after each report is what adding them up anew would say."""

import sys
import threading
from dataclasses import replace
from io import StringIO
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from fracray.runtime.storage import Folder
from fracray.search.messages import Suggestion, TrialReport
from fracray.search.progress import ROWS_SHOWN, SearchProgress
from fracray.search.space_file import load_space
from fracray.search.states import State
from fracray.search.trials_table import TrialRow, best_row
from fracray.training.epochs import EpochResult

SPACE = """
trials: 60
epochs: 4
constraints: {val_sensitivity: {at_least: 0.5}}
scheduler: {name: none}
sampler: {name: random}
space:
  model.dropout: {float: [0.0, 0.6]}
"""
ENDS = {State.DONE: 0.4, State.STOPPED: 0.3, State.DIVERGED: 0.2, State.FAILED: 0.1}


class Book:
    """A ledger that ends trials as it is told."""

    def __init__(self):
        self.state = State.DONE

    def rows(self):
        return {}

    def ended(self, row):
        return None if self.state is State.INTERRUPTED else (replace(row, state=self.state), "")

    def send(self):
        pass


@pytest.fixture
def progress(tmp_path):
    (tmp_path / "space.yaml").write_text(SPACE)
    space = load_space(tmp_path / "space.yaml")
    tracker = SimpleNamespace(tell=lambda seconds, took: None, look=lambda: None)
    return SearchProgress(space, Folder(tmp_path), Book(), 60, tracker, Console(file=StringIO(), width=200), None)


def report(epoch, accuracy, sensitivity, loss):
    best = {"val_accuracy": accuracy, "val_sensitivity": sensitivity, "val_loss": loss}
    told = TrialReport(EpochResult(epoch, best, best, seconds=1.0)).to_tune(["val_accuracy"])
    return told | {"time_this_iter_s": 1.0}


@pytest.mark.parametrize("seed", range(8))
def test_the_best_the_ended_and_the_time_left_are_those_of_all_rows(progress, seed):
    generator, running, number, bests = np.random.default_rng(seed), {}, 0, set()
    book = progress._ledger
    for _ in range(400):
        if number < 60 and (not running or generator.random() < 0.3):
            config = Suggestion(number, {"model.dropout": 0.1}).to_tune()
            trial = SimpleNamespace(config=config, pickled_error_file=None)
            progress.on_trial_start(0, [], trial)
            running[number], number = (trial, 0), number + 1
        if not running:
            break
        chosen = int(generator.choice(list(running)))
        trial, epoch = running[chosen]
        if epoch < 4 and generator.random() < 0.7:
            running[chosen] = trial, epoch + 1
            # Few values: trials tie, and a trial may be worse after an epoch than before.
            values = generator.integers([3, 3, 1], [7, 7, 3]) / 10
            progress.on_trial_result(0, [], trial, report(epoch + 1, *values.tolist()))
        elif generator.random() < 0.2:
            book.state = State.INTERRUPTED
            progress.on_trial_error(0, [], trial)
            progress.on_trial_start(0, [], trial)  # handed out again
        else:
            del running[chosen]
            book.state = list(ENDS)[generator.choice(4, p=list(ENDS.values()))]
            progress.on_trial_complete(0, [], trial)
        rows = list(progress.rows.values())
        assert progress._best is best_row(rows, progress._search)
        bests.add(progress._best.number if progress._best else None)
        assert progress._ended() == sum(row.state.ended for row in rows)
        assert progress.unfinished() == any(not row.state.ended for row in rows)
        assert set(progress._open) == {row.number for row in rows if not row.state.ended}
        finished = [len(row.history) for row in rows if row.state.finished]
        assert (progress._finished_trials, progress._finished_epochs) == (len(finished), sum(finished))
    assert len(bests) > 2


def test_the_time_left_is_told_by_the_tables_thread_while_trials_begin_and_end(progress, monkeypatch):
    failed, ended = [], threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda problem: failed.append(problem.exc_value))
    rows = [TrialRow(number, {}, State.RUNNING) for number in range(40)]

    def show():
        while not ended.is_set():
            progress._left()

    drawing, before = threading.Thread(target=show), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        drawing.start()
        for _ in range(300):
            for row in rows:
                progress._keep(row)
            for row in rows:
                progress._keep(replace(row, state=State.DONE))
    finally:
        ended.set()
        drawing.join()
        sys.setswitchinterval(before)
    assert failed == []


def test_the_table_shows_the_last_trials_and_the_best_one(progress):
    for number in range(ROWS_SHOWN + 10):
        trial = SimpleNamespace(config=Suggestion(number, {"model.dropout": 0.1}).to_tune())
        progress.on_trial_start(0, [], trial)
        progress.on_trial_result(0, [], trial, report(1, 0.9 if number == 3 else 0.5, 0.6, 1.0))
        progress.on_trial_complete(0, [], trial)
    cells = list(progress._table(ROWS_SHOWN).columns[0].cells)
    assert cells == ["t0003", *(f"t{number:04d}" for number in range(10, ROWS_SHOWN + 10))]
    assert len(list(progress._table().columns[0].cells)) == ROWS_SHOWN + 10
