"""python -m fracray.tune on small phantoms: both back ends of a trial, interruption, kills, resumption, the summary."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pandas as pd
import psutil
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from fracray.checkpoint import load_checkpoint, read_card
from fracray.errors import RunError
from fracray.tune import main

SPACE = """
metric: val_accuracy
mode: max
trials: {trials}
epochs: {epochs}
sampler: {{name: random, seed: 0}}
scheduler: {{name: {scheduler}, grace_epochs: 1, reduction_factor: 2}}
base:
  data: {{size: 32, phantom: {{count: 150}}, split: {{block: 10}}}}
  model: {{width: 8}}
space:
  model.dropout: {{float: [0.0, 0.7]}}
  model.spatial_dropout: {{float: [0.0, 0.4]}}
  augment.rotate: {{float: [0, 30]}}
"""


def write_space(tmp_path, trials=4, epochs=3, scheduler="none"):
    path = tmp_path / "space.yaml"
    path.write_text(SPACE.format(trials=trials, epochs=epochs, scheduler=scheduler))
    return path


def study_of(run):
    return optuna.load_study(
        study_name="fracray", storage=JournalStorage(JournalFileBackend(str(run / "optuna.journal")))
    )


def histories(run):
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(run.glob("trials/*/epochs.json"))}


def without_time(entries):
    return [{name: value for name, value in entry.items() if name != "seconds"} for entry in entries]


def begin(tmp_path, name, *more):
    command = [sys.executable, "-m", "fracray.tune", "--storage", str(tmp_path), "--name", name, *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process, seconds=400):
    out, _ = process.communicate(timeout=seconds)
    return process.returncode, out


def wait_until(condition, process, seconds=240):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.05)


def told(run):
    if not (run / "optuna.journal").exists():
        return 0
    return sum(trial.state.is_finished() for trial in study_of(run).get_trials(deepcopy=False))


# ---------------------------------------------------------------- a whole search


@pytest.fixture(scope="module", params=[1, 2], ids=["reused-process", "worker-group"])
def searched(request, ray_local, tmp_path_factory):
    """One contract, both back ends of a trial."""
    folder = tmp_path_factory.mktemp("runs")
    arguments = ["--space", str(write_space(folder)), "--storage", str(folder), "--name", "search"]
    main([*arguments, "--workers-per-trial", str(request.param)])
    return folder / "search"


def test_the_first_trial_is_the_default_configuration(searched):
    first = study_of(searched).trials[0]
    assert first.params == {"model.dropout": 0.2, "model.spatial_dropout": 0.1, "augment.rotate": 10.0}


def test_every_trial_is_told_its_best_epoch(searched):
    trials, kept = study_of(searched).trials, histories(searched)
    assert len(trials) == len(kept) == 4
    for trial in trials:
        entries = kept[f"t{trial.number:04d}"]
        assert [entry["epoch"] for entry in entries] == [1, 2, 3]
        assert trial.value == max(entry["val_accuracy"] for entry in entries)
        assert trial.intermediate_values[2] == max(entry["val_accuracy"] for entry in entries[:2])


def test_trials_parquet_has_a_row_per_trial_and_epoch(searched):
    table = pd.read_parquet(searched / "trials.parquet")
    assert len(table) == 12
    assert set(table["state"]) == {"done"}
    for name, entries in histories(searched).items():
        rows = table[table["trial"] == name].sort_values("epoch")
        assert list(rows["val_auroc"]) == [entry["val_auroc"] for entry in entries]
    assert table["model.dropout"].nunique() == 4


def test_the_winner_is_kept_as_a_portable_checkpoint(searched):
    best = max(study_of(searched).trials, key=lambda trial: trial.value)
    checkpoint = load_checkpoint(searched / "best")
    winner = read_card(searched / f"trials/{checkpoint.card.trial}/best")
    assert checkpoint.card == winner
    assert winner.metrics["val_accuracy"] == best.value
    assert winner.config.model.dropout == pytest.approx(
        study_of(searched).trials[int(winner.trial[1:])].params["model.dropout"]
    )


def test_a_finished_search_resumed_runs_nothing_and_says_the_same(searched, capsys):
    before = histories(searched)
    main(["--storage", str(searched.parent), "--name", "search", "--resume"])
    out = capsys.readouterr().out
    assert "all 4 trials are done" in out
    assert histories(searched) == before
    card = read_card(searched / "best")
    assert re.search(rf"best of 4 finished trials: {card.trial}", out)
    for words in (
        "best configuration",
        "model.spatial_dropout",
        "no pixel",
        "fracray.fetch",
        "fracray.evaluate",
        str(searched / "best"),
    ):
        assert words in out


def test_more_trials_can_be_added_to_a_search(searched):
    before = histories(searched)
    main(["--storage", str(searched.parent), "--name", "search", "--resume", "--trials", "5"])
    after = histories(searched)
    assert len(after) == 5
    assert {name: after[name] for name in before} == before


def test_the_same_seed_searches_and_finds_the_same(ray_local, tmp_path):
    space = write_space(tmp_path, trials=2, epochs=2)
    for name in ("a", "b"):
        main(["--space", str(space), "--storage", str(tmp_path), "--name", name, "--concurrent", "1"])
    first, second = histories(tmp_path / "a"), histories(tmp_path / "b")
    assert {name: without_time(entries) for name, entries in first.items()} == {
        name: without_time(entries) for name, entries in second.items()
    }
    assert [t.params for t in study_of(tmp_path / "a").trials] == [t.params for t in study_of(tmp_path / "b").trials]


@pytest.mark.parametrize("scheduler", ["asha", "median", "hyperband"])
def test_schedulers_stop_trials_early_and_every_trial_is_accounted_for(ray_local, tmp_path, scheduler):
    space = write_space(tmp_path, trials=8, epochs=4, scheduler=scheduler)
    main(["--space", str(space), "--storage", str(tmp_path), "--name", scheduler])
    trials = study_of(tmp_path / scheduler).trials
    assert len(trials) == 8
    assert all(trial.state is optuna.trial.TrialState.COMPLETE for trial in trials)
    lengths = [len(entries) for entries in histories(tmp_path / scheduler).values()]
    assert len(lengths) == 8
    assert max(lengths) == 4
    if scheduler == "asha":
        assert min(lengths) < 4


def test_grid_and_pareto_searches_end_by_themselves(ray_local, tmp_path, capsys):
    text = write_space(tmp_path, trials=50, epochs=1).read_text()
    grid = (
        text.replace("name: random", "name: grid").split("space:\n")[0]
        + "space:\n  model.dropout: {categorical: [0.0, 0.2, 0.5]}\n"
    )
    (tmp_path / "grid.yaml").write_text(grid)
    main(["--space", str(tmp_path / "grid.yaml"), "--storage", str(tmp_path), "--name", "grid"])
    assert sorted(trial.params["model.dropout"] for trial in study_of(tmp_path / "grid").trials) == [0.0, 0.2, 0.5]
    pareto = text.replace("metric: val_accuracy", "metric: [val_sensitivity, val_specificity]").replace(
        "trials: 50", "trials: 3"
    )
    (tmp_path / "pareto.yaml").write_text(pareto)
    main(["--space", str(tmp_path / "pareto.yaml"), "--storage", str(tmp_path), "--name", "pareto"])
    assert all(len(trial.values) == 2 for trial in study_of(tmp_path / "pareto").trials)
    assert "Pareto front" in capsys.readouterr().out


def test_a_search_maximises_the_worst_of_several_validation_sets(ray_local, tmp_path, capsys):
    space = write_space(tmp_path, trials=2, epochs=2)
    text = space.read_text().replace("metric: val_accuracy", "metric: worst_val_auroc")
    space.write_text(text.replace("count: 150", "count: 300").replace("block: 10", "block: 10, shifts: [exposure]"))
    main(["--space", str(space), "--storage", str(tmp_path), "--name", "worst"])
    kept = histories(tmp_path / "worst")
    for trial in study_of(tmp_path / "worst").trials:
        entries = kept[f"t{trial.number:04d}"]
        worst = [min(entry["val_auroc"], entry["val/exposure_auroc"]) for entry in entries]
        assert [entry["worst_val_auroc"] for entry in entries] == worst
        assert trial.value == max(worst)
    table = pd.read_parquet(tmp_path / "worst/trials.parquet")
    assert {"val/exposure_accuracy", "worst_val_auroc", "best_worst_val_auroc"} <= set(table.columns)
    out = capsys.readouterr().out
    assert "worst_val_auroc" in out
    assert "val/exposure" in out


def test_a_cross_validated_search_reports_the_mean_over_the_folds(ray_local, tmp_path, capsys):
    space = write_space(tmp_path, trials=2, epochs=2)
    folds = "block: 10, protocol: kfold, folds: 3, cross_validate: true"
    space.write_text(space.read_text().replace("block: 10", folds))
    main(["--space", str(space), "--storage", str(tmp_path), "--name", "crossed"])
    assert "best of 2 finished trials" in capsys.readouterr().out
    run = tmp_path / "crossed"
    checkpoint = load_checkpoint(run / "trials/t0000/best")
    best = histories(run)["t0000"][checkpoint.card.epoch - 1]
    alone = tmp_path / "alone"
    space.write_text(space.read_text().replace(", cross_validate: true", ""))
    main(["--space", str(space), "--trials", "1", "--storage", str(alone), "--name", "first"])
    first = histories(alone / "first")["t0000"][checkpoint.card.epoch - 1]
    predicted = pd.read_parquet(run / "trials/t0000/best/val_predictions.parquet")
    assert len(predicted) == first["val_n"]  # the model kept is the one validated on the fold after the test fold
    tested = json.loads((run / "data.json").read_text())["parts"]["test"]["images"]
    assert best["val_n"] == (150 - tested) / 2  # the mean over the two models, which share out all but the test fold


def test_a_time_budget_ends_the_search_and_resume_goes_on(ray_local, tmp_path, capsys):
    space = write_space(tmp_path, trials=150, epochs=3)
    main(["--space", str(space), "--storage", str(tmp_path), "--name", "budget", "--time-budget", "15"])
    out = capsys.readouterr().out
    assert "--name budget" in out
    assert "--resume" in out
    assert len(study_of(tmp_path / "budget").trials) < 150


def test_a_trial_that_diverges_fails_and_the_search_goes_on(ray_local, tmp_path, capsys):
    text = write_space(tmp_path, trials=4, epochs=2, scheduler="asha").read_text()
    text = text.split("space:\n")[0].replace("{width: 8}", "{width: 8}\n  train: {clip_norm: 0, ema: 0}")
    (tmp_path / "wild.yaml").write_text(text + "space:\n  train.lr: {categorical: [0.002, 1.0e+30]}\n")
    main(["--space", str(tmp_path / "wild.yaml"), "--storage", str(tmp_path), "--name", "wild"])
    out = capsys.readouterr().out
    states = {trial.params["train.lr"]: trial.state for trial in study_of(tmp_path / "wild").trials}
    assert states == {0.002: optuna.trial.TrialState.COMPLETE, 1e30: optuna.trial.TrialState.FAIL}
    assert "no longer finite" in out
    assert load_checkpoint(tmp_path / "wild/best").card.config.train.lr == 0.002


WILD = ["--set", "train.lr=1e30", "--set", "train.clip_norm=0", "--set", "train.ema=0"]


def test_a_search_in_which_every_trial_diverges_fails_in_words(ray_local, tmp_path):
    space = write_space(tmp_path, trials=2, epochs=2)
    with pytest.raises(RunError, match="no trial"):
        main(["--space", str(space), "--storage", str(tmp_path), "--name", "lost", *WILD])


# ---------------------------------------------------------------- interruption


def test_ctrl_c_keeps_everything_says_how_to_resume_and_resume_finishes(tmp_path):
    space = write_space(tmp_path, trials=6, epochs=8)
    process = begin(tmp_path, "stopped", "--space", str(space))
    run = tmp_path / "stopped"
    wait_until(lambda: told(run) >= 1, process)
    process.send_signal(signal.SIGINT)
    code, out = finish(process)
    assert code == 130, out
    assert "Traceback" not in out
    command = re.search(r"go on with: python -m fracray.tune (.*)", out).group(1)
    assert "--resume" in command
    done = [trial for trial in study_of(run).trials if trial.state.is_finished()]
    assert 1 <= len(done) < 6
    kept = histories(run)
    # How the search around them is run may change; the trials under way go on all the same.
    code, out = finish(begin(tmp_path, "stopped", "--resume", "--trials", "7", "--concurrent", "1"))
    assert code == 0, out
    assert_search_is_whole(run, kept, done, trials=7, epochs=8)


@pytest.mark.parametrize("victim", ["driver", "trial process"])
def test_a_search_survives_kill_nine(tmp_path, victim):
    space = write_space(tmp_path, trials=6, epochs=8)
    process = begin(tmp_path, "hit", "--space", str(space))
    run = tmp_path / "hit"
    wait_until(lambda: told(run) >= 1, process)
    if victim == "driver":
        process.send_signal(signal.SIGKILL)
        process.wait()
    else:
        os.kill(trial_processes(process)[0].pid, signal.SIGKILL)
    done = [trial for trial in study_of(run).trials if trial.state.is_finished()]
    kept = histories(run)
    if victim == "driver":
        process = begin(tmp_path, "hit", "--resume")
    code, out = finish(process)
    assert code == 0, out
    assert_search_is_whole(run, kept, done, trials=6, epochs=8)


def trial_processes(process):
    """The trials in the middle of an epoch: Tune gives up one whose process dies in the instant between two trials."""
    for _ in range(1000):
        children = psutil.Process(process.pid).children(recursive=True)
        with contextlib.suppress(psutil.Error):
            found = [child for child in children if "Trainable.train" in " ".join(child.cmdline())]
            if found:
                return found
        time.sleep(0.01)
    raise AssertionError("no trial was training")


def assert_search_is_whole(run: Path, kept, done, trials: int, epochs: int) -> None:
    """All trials are there; what was finished before is as it was, to the byte of its timings."""
    study, now = study_of(run), histories(run)
    assert [trial.number for trial in study.trials] == list(range(trials))
    assert all(trial.state is optuna.trial.TrialState.COMPLETE for trial in study.trials)
    for before in done:
        after = study.trials[before.number]
        assert (after.params, after.value, after.datetime_complete) == (
            before.params,
            before.value,
            before.datetime_complete,
        )
    for name, entries in kept.items():
        assert now[name][: len(entries)] == entries, f"{name} lost a finished epoch"
    for name, entries in now.items():
        assert [entry["epoch"] for entry in entries] == list(range(1, epochs + 1)), name
        assert study.trials[int(name[1:])].value == max(entry["val_accuracy"] for entry in entries)
