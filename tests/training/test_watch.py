"""What a training shows within an epoch: steps, images a second, the time left."""

import io
import time

import pytest
from rich.console import Console

from fracray.config import Config
from fracray.runtime import console as console_module
from fracray.runtime.console import progress_bar
from fracray.runtime.storage import Folder
from fracray.training.epochs import EpochResult, write_epochs
from fracray.training.growth import work_in
from fracray.training.steps import Latest, Reached, StepCounter
from fracray.training.watch import TrainingLines, steps_note


class Clock:
    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


def run_steps(counter, clock, count, seconds, images=32, unfinished=0):
    for _ in range(count):
        clock.now += seconds
        counter.step(images, lambda: unfinished)


def test_a_worker_tells_at_most_once_a_second_and_when_the_epoch_is_trained(monkeypatch):
    clock, told = Clock(monkeypatch), []
    counter = StepCounter(25, told.append)
    counter.begin(1)
    run_steps(counter, clock, 1, 4.0)  # the first step warms up, and counts for the progress alone
    run_steps(counter, clock, 24, 0.125)
    assert [(one.epoch, one.steps, one.of) for one in told] == [(1, 1, 25), (1, 9, 25), (1, 17, 25), (1, 25, 25)]
    assert [one.rate for one in told] == [None, 256, 256, 256]
    assert told[-1].seconds == 7


def test_an_epoch_of_less_than_a_second_is_not_told(monkeypatch):
    clock, told = Clock(monkeypatch), []
    counter = StepCounter(3, told.append)
    for epoch in range(1, 30):
        counter.begin(epoch)
        run_steps(counter, clock, 3, 0.1)
    assert told == []


def test_steps_that_a_gpu_has_not_done_are_not_counted(monkeypatch):
    clock, told = Clock(monkeypatch), []
    counter = StepCounter(100, told.append)
    counter.begin(1)
    run_steps(counter, clock, 11, 0.125, unfinished=4)
    assert told == [Reached(1, 4, 100, 1.0, pytest.approx(32 * 3 / 0.875))]


def test_the_models_of_a_cross_validation_share_an_epoch(monkeypatch):
    clock, told = Clock(monkeypatch), []
    counter = StepCounter(20, told.append)
    for _fold in range(2):
        counter.begin(1)
        run_steps(counter, clock, 10, 1.0)
    assert [one.steps for one in told] == list(range(1, 21))


def epoch(number, seconds):
    return EpochResult(number, {"train_loss": 0.5, "val_loss": 0.5}, {}, seconds)


def test_the_time_left_is_at_least_that_of_the_steps_before_an_epoch_has_ended():
    # 10 of 40 steps in 20 s: 60 s to the end of this epoch, and 80 s for each of two more.
    assert steps_note(Reached(1, 10, 40, 20.0, 21.6), [], 3, lambda _: 1.0) == "22 images/s, at least 3 min 40 s left"


def test_the_time_left_counts_what_an_epoch_took():
    # Of 100 s 20 have passed, and one more epoch follows.
    assert steps_note(Reached(2, 10, 40, 20.0, 2.16), [epoch(1, 100.0)], 3, lambda _: 1.0) == (
        "2.2 images/s, about 3 min 00 s left"
    )
    # Now twice as slow as the last epoch: the steps say more than that.
    assert "about 4 min 10 s left" in steps_note(Reached(2, 10, 40, 50.0, 2.16), [epoch(1, 100.0)], 3, lambda _: 1.0)


def test_the_time_left_knows_that_images_grow():
    config = Config().with_leaves({"data.size": 128, "train.first_size": 64, "train.epochs": 4, "train.grow_at": 0.5})
    shares = [work_in(config, number) for number in (1, 2, 3, 4)]
    assert shares == [0.25, 0.25, 1.0, 1.0]
    note = steps_note(Reached(2, 20, 40, 5.0, 100.0), [epoch(1, 10.0)], 4, lambda number: shares[number - 1])
    assert note == "100 images/s, about 1 min 25 s left"  # 5 s, then 40 s twice


def test_without_a_rate_there_is_no_note_and_validation_is_named():
    assert steps_note(Reached(1, 1, 40, 20.0), [], 3, lambda _: 1.0) == ""
    done = steps_note(Reached(1, 40, 40, 20.0, 50.0), [epoch(0, 30.0)], 1, lambda _: 1.0)
    assert done == "validating, 50 images/s, about 10 s left"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def printed(tmp_path, monkeypatch, told, terminal=False, line_seconds=0.0):
    """What a training prints whose workers tell these messages and end after the first epoch."""
    monkeypatch.setattr(console_module, "LINE_SECONDS", line_seconds)
    monkeypatch.setattr("fracray.training.watch.LOOK_SECONDS", 0.01)
    folder, latest, out = Folder(str(tmp_path)), Latest(), Terminal() if terminal else io.StringIO()
    console = Console(file=out, force_terminal=terminal, color_system=None, width=100)
    with TrainingLines(folder, Config().with_leaves({"train.epochs": 2}), console, latest.get):
        for reached in told:
            latest.put(reached)
            time.sleep(0.6 if terminal else 0.05)
        write_epochs(folder, ['{"epoch": 1, "train_loss": 0.5, "val_loss": 0.4, "seconds": 12.0}'])
        time.sleep(0.1)
    return out.getvalue()


TOLD = [Reached(1, 3, 40, 2.0, 48.0), Reached(1, 20, 40, 10.0, 60.0)]


def test_a_log_gets_lines_within_an_epoch(tmp_path, monkeypatch):
    lines = list(dict.fromkeys(printed(tmp_path, monkeypatch, TOLD).splitlines()))
    assert lines[0].startswith("epoch 1 of 2: 3 of 40 steps, 48 images/s, at least ")
    assert lines[1] == "epoch 1 of 2: 20 of 40 steps, 60 images/s, at least 30 s left"
    assert lines[2].startswith("epoch   1/2  train loss 0.5000  val loss 0.4000")
    assert len(lines) == 3


def test_a_log_gets_no_line_before_its_time(tmp_path, monkeypatch):
    out = printed(tmp_path, monkeypatch, TOLD, line_seconds=console_module.LINE_SECONDS)
    assert out.startswith("epoch   1/2")


def test_a_terminal_gets_a_bar_above_which_epochs_are_printed(tmp_path, monkeypatch):
    out = printed(tmp_path, monkeypatch, TOLD, terminal=True)
    assert "epoch 1 of 2" in out
    assert "20/40 steps 60 images/s, at least 30 s left" in out
    assert out.rindex("epoch   1/2") > out.rindex("20/40")


def test_a_bar_without_notes_shows_the_time_left():
    out = Terminal()
    with progress_bar(Console(file=out, force_terminal=True, color_system=None, width=80), "drawing [all]") as step:
        step(1, 2)
        time.sleep(0.6)
    assert "drawing [all]" in out.getvalue()
    assert "1/2" in out.getvalue()
    assert ":" in out.getvalue()
