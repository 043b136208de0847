"""tune --dry-run: what a search would do and take, without beginning it."""

import re
from pathlib import Path

import pytest

from fracray import tune
from fracray.config import Config
from fracray.errors import run_verb
from fracray.runtime.resources import WorkerResources
from fracray.search.forecast import AFTER_EPOCH, BETWEEN_TRIALS, Forecast, Range, forecast, left_out
from fracray.search.space_file import load_space
from fracray.training.timing import Timing, part_of

GPU_FILE = Path(__file__).parents[2] / "cluster/gpu.yaml"
SPACE = """
trials: 7
epochs: 3
base: {data: {size: 32, phantom: {count: 150}, split: {block: 10}}, model: {width: 8}}
space:
  model.dropout: {float: [0, 0.5]}
"""


@pytest.fixture
def space_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "space.yaml").write_text(SPACE)
    return tmp_path / "space.yaml"


def timed(step=0.1, validation=2.0, build=1.0):
    return Timing(0.0, build, (step,) * 20, validation)


def config(**leaves):
    return Config().with_leaves({path.replace("__", "."): value for path, value in leaves.items()})


def test_the_forecast_adds_up_steps_validation_and_starting():
    found = forecast(config(train__epochs=4), [timed()], steps=50, trials=7, at_once=2, start=6.0)
    trial = 4 * (50 * 0.1 + 2.0) + 1.0 + BETWEEN_TRIALS
    slowest = trial + 4 * AFTER_EPOCH
    assert (found.trial.low, found.trial.high) == pytest.approx((trial, slowest))
    assert (found.wall.low, found.wall.high) == pytest.approx((6 + 3.5 * trial, 6 + 4 * slowest))
    assert (found.busy.low, found.busy.high) == pytest.approx((7 * trial, 7 * slowest))


def test_trials_that_end_at_a_smaller_budget_take_less():
    few = forecast(config(train__epochs=9), [timed()], steps=10, trials=2, at_once=1, start=0.0, epochs=3)
    assert few.trial.low == pytest.approx(3 * (10 * 0.1 + 2.0) + 1.0 + BETWEEN_TRIALS)


def test_the_range_is_that_of_the_places():
    found = forecast(config(train__epochs=1), [timed(0.1), timed(0.2)], steps=100, trials=1, at_once=1, start=0.0)
    assert found.trial.high - found.trial.low == pytest.approx(100 * 0.1 + AFTER_EPOCH)


def test_images_that_grow_make_epochs_shorter():
    growing = config(train__epochs=2, train__grow_at=0.5, train__first_size=64, data__size=128)
    found = forecast(growing, [timed()], steps=100, trials=1, at_once=1, start=0.0)
    assert found.trial.low == pytest.approx(100 * 0.1 * 1.25 + 2 * 2.0 + 1.0 + BETWEEN_TRIALS)


def test_the_models_of_a_cross_validation_are_counted():
    crossed = config(train__epochs=1, data__split__protocol="kfold", data__split__cross_validate=True)
    assert crossed.data.split.rotations == 4
    found = forecast(crossed, [timed()], steps=10, trials=1, at_once=1, start=0.0)
    assert found.trial.low == pytest.approx(4 * (10 * 0.1 + 2.0 + 1.0) + BETWEEN_TRIALS)


def test_a_range_in_words():
    assert str(Range(62, 130)) == "1 min 02 s to 2 min 10 s"
    assert str(Range(5.1, 5.2)) == "5 s"
    assert Range(3600, 7200).hours(4) == "4 to 8"


def test_one_worker_of_several_is_timed_on_its_part_of_batches_that_are_mixed():
    several = config(train__mixup=0.2, train__batch_size=16, search__workers_per_trial=4)
    assert part_of(several, 4).train.batch_size == 4


def test_it_says_what_it_leaves_out(tmp_path):
    (tmp_path / "space.yaml").write_text(
        "scheduler: asha\nspace:\n  model.dropout: {float: [0, 0.5]}\n  model.width: {categorical: [8, 64]}\n"
    )
    lines = left_out(load_space(tmp_path / "space.yaml"), WorkerResources(2, 1))
    assert lines[0] == "trials that asha stops early, which make it shorter"
    assert lines[1] == "settings that change what a step costs: model.width"
    assert "workers of a trial" in lines[2]
    (tmp_path / "space.yaml").write_text(
        "base: {model: {weights: imagenet}}\nspace:\n  train.head_epochs: {int: [0, 2]}\n"
    )
    lines = left_out(load_space(tmp_path / "space.yaml"), WorkerResources(1, 1))
    assert lines[1] == "settings that change what a step costs: train.head_epochs"
    (tmp_path / "space.yaml").write_text("scheduler: {name: none}\nspace:\n  model.dropout: {float: [0, 0.5]}\n")
    assert len(left_out(load_space(tmp_path / "space.yaml"), WorkerResources(1, 1))) == 1


def test_a_dry_run_says_everything_and_writes_nothing(ray_local, space_file, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    words = ["--cluster", str(GPU_FILE), "--price-per-hour", "head=0.2,cpu=0.4"]
    code = run_verb(tune.main, ["--space", "space.yaml", "--dry-run", "--refit", "2", "--time-budget", "50", *words])
    out = capsys.readouterr().out
    assert code == 0
    assert sorted(tmp_path.rglob("*")) == before
    assert re.search(r"data\.size +32 +128 *\n", out)
    assert re.search(r"model\.dropout +float \[0\.0, 0\.5\] +0\.2 *\n", out)
    assert "augment.rotate" not in out  # as it is by default
    assert re.search(r"7 trials, 2 at a time, each on 1 worker\(s\) of 1 CPU\(s\), up to 3 epochs of \d+ steps?\n", out)
    assert re.search(r"expected: [\d a-z]+; [-.\de to]+ core-hours; ", out)
    assert "the refit, up to 9 trainings: " in out
    assert "search.time_budget ends it after 50 s" in out
    assert "not in it: trials that asha stops early, which make it shorter" in out
    assert "in money, with the refit:\n  on cpu at 0.4 an hour: " in out
    assert "; with head at 0.2 an hour for the whole time, " in out
    assert "Not in it: nodes that start or stand idle" in out


def test_a_dry_run_refuses_what_a_search_refuses(space_file, tmp_path, capsys):
    for flags, words in (
        (["--resume", "--name", "x"], "--dry-run: is for a new search"),
        (["--callback", "no_such_module:Class"], "no module no_such_module"),
        (["--set", "model.name=nothing"], "model.name"),
        (["--price-per-hour", "cpu=1"], "name the cluster file with --cluster"),
    ):
        assert run_verb(tune.main, ["--space", "space.yaml", "--dry-run", *flags]) == 2
        assert words in capsys.readouterr().err
    assert run_verb(tune.main, ["--space", "space.yaml", "--price-per-hour", "cpu=1"]) == 2
    assert "--price-per-hour: only with --dry-run" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_refit_is_paid_for_too():
    one, two = (Forecast(Range(1, 2), Range(3, 4 * each), Range(5, 6 * each)) for each in (1, 10))
    both = one.with_refit(two)
    assert (both.trial, both.wall, both.busy) == (one.trial, Range(6, 44), Range(10, 66))
