"""python -m fracray.tune on small phantoms: both back ends of a trial, interruption, kills, resumption, the summary."""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pandas as pd
import psutil
import pytest
import ray
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from fracray.config import SearchConfig
from fracray.errors import InputError, RunError
from fracray.runtime.run_folder import STATE
from fracray.runtime.storage import Folder
from fracray.search.trainable import TrialActor
from fracray.search.trials_table import best_row, collect
from fracray.training.checkpoint import load_checkpoint, read_metadata, save_state
from fracray.training.epochs import EpochResult
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


# A process costs its imports, six seconds of a CPU: searches that are not about several at a time take one.
ALONE = ["--concurrent", "1"]


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
    return [{name: value for name, value in entry.items() if not name.startswith("seconds")} for entry in entries]


@pytest.fixture
def begin(tmp_path):
    """Starts the command; what a test that failed left running would disturb the next one."""
    begun = []

    def start(name, *more):
        command = [sys.executable, "-m", "fracray.tune", "--storage", str(tmp_path), "--name", name, *more]
        begun.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.wait()


def finish(process, seconds=400):
    out, _ = process.communicate(timeout=seconds)
    return process.returncode, out


def wait_until(condition, process=None, seconds=240):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.05)


def reported(run):
    if not (run / "optuna.journal").exists():
        return 0
    try:
        study = study_of(run)
    except KeyError:  # the journal is there, its first line not yet
        return 0
    return sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))


def on_cpus(cpus, *arguments, seconds=240):
    """The command on its own cluster with this number of CPUs, whatever the machine has."""
    script = (
        f"import sys, ray; from fracray.runtime.ray_session import set_environment; set_environment(); "
        f"ray.init(num_cpus={cpus}, include_dashboard=False, log_to_driver=False); "
        f"from fracray import tune; from fracray.errors import run_verb; code = run_verb(tune.main); "
        f"assert 'mlflow' not in sys.modules, 'a second of a core, and nothing is logged to it'; sys.exit(code)"
    )
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=seconds, check=False
    )


# ---------------------------------------------------------------- a complete search


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


def test_the_best_epoch_of_every_trial_is_reported(searched):
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


def test_the_run_says_where_its_time_went(searched):
    efficiency = json.loads((searched / "efficiency.json").read_text())
    shares = efficiency["shares"]
    for phase in ("training", "transform", "starting", "validation", "checkpointing", "reporting", "finishing"):
        assert 0 < shares[phase] < 1, phase
    assert shares["starting"] > shares["training"]  # Ray and Python, for four tiny trials
    assert sum(shares.values()) == pytest.approx(1, abs=0.05)
    # What the trials reported, before the command added its starting and finishing.
    rows, total = pd.read_parquet(searched / "trials.parquet"), efficiency["wall_seconds"] * efficiency["cores"]
    for phase in ("training", "transform", "validation", "checkpointing", "reporting"):
        assert shares[phase] == pytest.approx(rows[f"seconds_{phase}"].sum() / total)
    assert (rows["seconds_training"] > 0).all()
    for lane in ("command", "trial process 1"):
        assert efficiency["start"][lane], lane
    epochs = [one for lane in efficiency["start"].values() for one in lane if one["name"] == "first epoch"]
    assert efficiency["first_epoch_seconds"] == min(one["begun"] for one in epochs) > 0


def test_an_unfinished_trial_counts_up_to_its_checkpoint(searched, tmp_path):
    run = tmp_path / "search"
    shutil.copytree(searched, run)
    study = study_of(run)
    folder = run / "trials" / f"t{study.ask().number:04d}"  # left running, as by a killed driver
    best = max(trial.value for trial in study.trials if trial.value is not None)
    values = enumerate((0.01, 0.02, 0.02, 0.03), start=1)
    history = [EpochResult(epoch, {}, {"val_accuracy": best + gain}, seconds=1.0) for epoch, gain in values]
    folder.mkdir()
    (folder / "epochs.json").write_text(json.dumps([result.to_json() for result in history]))
    rows = collect(Folder(run), study, 3)
    assert rows[len(rows) - 1].history == ()
    assert best_row(rows.values(), SearchConfig()).best("val_accuracy") == best
    (folder / "best").mkdir()
    (folder / "best/config.json").write_text(json.dumps({"epoch": 2}))
    assert collect(Folder(run), study, 3)[len(rows) - 1].history == tuple(history[:3])


def test_the_winner_is_kept_as_a_portable_checkpoint(searched):
    best = max(study_of(searched).trials, key=lambda trial: trial.value)
    checkpoint = load_checkpoint(searched / "best")
    winner = read_metadata(searched / f"trials/{checkpoint.metadata.trial}/best")
    assert checkpoint.metadata == winner
    assert winner.metrics["val_accuracy"] == best.value
    assert winner.config.model.dropout == pytest.approx(
        study_of(searched).trials[int(winner.trial[1:])].params["model.dropout"]
    )


def test_an_option_that_is_refused_does_not_stay(searched):
    kept = (searched / "overrides.json").read_bytes()
    again = ["--storage", str(searched.parent), "--name", "search", "--resume"]
    with pytest.raises(InputError, match=r"--concurrent 9"):
        main([*again, "--concurrent", "9"])
    assert (searched / "overrides.json").read_bytes() == kept
    main([*again, "--trials", "4"])
    assert json.loads((searched / "overrides.json").read_text())["search.trials"] == 4


def test_a_finished_search_resumed_runs_nothing_and_says_the_same(searched, capsys):
    before = histories(searched)
    main(["--storage", str(searched.parent), "--name", "search", "--resume"])
    out = capsys.readouterr().out
    assert "all 4 trials are done" in out
    assert histories(searched) == before
    metadata = read_metadata(searched / "best")
    assert re.search(rf"best of 4 finished trials: {metadata.trial}", out)
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
        main(["--space", str(space), "--storage", str(tmp_path), "--name", name, *ALONE])
    first, second = histories(tmp_path / "a"), histories(tmp_path / "b")
    assert {name: without_time(entries) for name, entries in first.items()} == {
        name: without_time(entries) for name, entries in second.items()
    }
    assert [t.params for t in study_of(tmp_path / "a").trials] == [t.params for t in study_of(tmp_path / "b").trials]


@pytest.mark.parametrize("scheduler", ["asha", "median", "hyperband"])
def test_schedulers_stop_trials_early_and_every_trial_is_accounted_for(ray_local, tmp_path, scheduler):
    space = write_space(tmp_path, trials=12, epochs=9, scheduler=scheduler)
    space.write_text(space.read_text() + "  train.lr: {log_float: [1.0e-5, 1.0e-1]}\n")
    main(["--space", str(space), "--storage", str(tmp_path), "--name", scheduler, "--concurrent", "2"])
    trials = study_of(tmp_path / scheduler).trials
    kept = histories(tmp_path / scheduler)
    lengths = [len(kept[f"t{number:04d}"]) for number in range(12)]
    assert max(lengths) == 9
    assert min(lengths) < 9
    names = {True: "COMPLETE", False: "PRUNED"}
    assert [trial.state.name for trial in trials] == [names[length == 9] for length in lengths]
    assert [max(trial.intermediate_values) for trial in trials] == lengths
    table = pd.read_parquet(tmp_path / scheduler / "trials.parquet").drop_duplicates("number").sort_values("number")
    states = {True: "done", False: "stopped early"}
    assert list(table["state"]) == [states[length == 9] for length in lengths]


def test_grid_and_pareto_searches_end_by_themselves(ray_local, tmp_path, capsys):
    text = write_space(tmp_path, trials=50, epochs=1).read_text()
    grid = (
        text.replace("name: random", "name: grid").split("space:\n")[0]
        + "space:\n  model.dropout: {categorical: [0.0, 0.2, 0.5]}\n"
    )
    (tmp_path / "grid.yaml").write_text(grid)
    main(["--space", str(tmp_path / "grid.yaml"), "--storage", str(tmp_path), "--name", "grid", *ALONE])
    assert sorted(trial.params["model.dropout"] for trial in study_of(tmp_path / "grid").trials) == [0.0, 0.2, 0.5]
    pareto = text.replace("metric: val_accuracy", "metric: [val_sensitivity, val_specificity]").replace(
        "trials: 50", "trials: 3"
    )
    (tmp_path / "pareto.yaml").write_text(pareto)
    main(["--space", str(tmp_path / "pareto.yaml"), "--storage", str(tmp_path), "--name", "pareto", *ALONE])
    assert all(len(trial.values) == 2 for trial in study_of(tmp_path / "pareto").trials)
    assert "Pareto front" in capsys.readouterr().out


@pytest.mark.parametrize("cpus", [1, 2])
def test_trials_fed_by_ray_data_do_not_wait_for_each_other_for_ever(tmp_path, cpus):
    fed = ["--set", "data.stream=ray", "--trials", "3", "--epochs", "2"]
    done = on_cpus(cpus, "--space", str(write_space(tmp_path)), "--storage", str(tmp_path), "--name", "fed", *fed)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [len(entries) for entries in histories(tmp_path / "fed").values()] == [2, 2, 2]
    spent = json.loads((tmp_path / "fed" / "efficiency.json").read_text())
    assert spent["cores"] == cpus
    assert sum(spent["shares"].values()) == pytest.approx(1, abs=0.05)  # nothing is counted twice


def test_a_search_maximises_the_worst_of_several_validation_sets(ray_local, tmp_path, capsys):
    space = write_space(tmp_path, trials=2, epochs=2)
    text = space.read_text().replace("metric: val_accuracy", "metric: worst_val_auroc")
    space.write_text(text.replace("count: 150", "count: 300").replace("block: 10", "block: 10, shifts: [exposure]"))
    main(["--space", str(space), "--storage", str(tmp_path), "--name", "worst", *ALONE])
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
    folds = "block: 10, guard: 0, protocol: kfold, folds: 3, cross_validate: true, repeats: 2"
    space.write_text(space.read_text().replace("block: 10", folds))
    main(["--space", str(space), "--storage", str(tmp_path), "--name", "crossed", *ALONE])
    out = " ".join(capsys.readouterr().out.split())
    assert "best of 2 finished trials" in out
    assert "on validation, the mean over 2 folds, dealt 2 times; counts are of the first" in out
    run = tmp_path / "crossed"
    checkpoint = load_checkpoint(run / "trials/t0000/best")
    best = histories(run)["t0000"][checkpoint.metadata.epoch - 1]
    alone = tmp_path / "alone"
    space.write_text(space.read_text().replace(", cross_validate: true, repeats: 2", ""))
    main(["--space", str(space), "--trials", "1", "--storage", str(alone), "--name", "first", *ALONE])
    first = histories(alone / "first")["t0000"][checkpoint.metadata.epoch - 1]
    predicted = pd.read_parquet(run / "trials/t0000/best/val_predictions.parquet")
    assert len(predicted) == first["val_n"]  # the model kept is the one validated on the fold after the test fold
    tested = json.loads((run / "data.json").read_text())["parts"]["test"]["images"]
    assert (
        best["val_n"] == (150 - tested) / 2
    )  # the mean over the models, two of which divide all but the test fold between them
    kept = pd.read_parquet(run / "trials/t0000/folds.parquet")
    assert kept.groupby("fold")["image_id"].nunique().sum() == len(kept) == 2 * (150 - tested)
    assert sorted(set(kept["fold"])) == [1, 2, 4, 5]
    assert (kept["image_id"].value_counts() == 2).all()


def test_a_time_budget_ends_the_search_and_it_can_resume(ray_local, tmp_path, capsys):
    space = write_space(tmp_path, trials=150, epochs=3)
    main(["--space", str(space), "--storage", str(tmp_path), "--name", "budget", "--time-budget", "15"])
    out = capsys.readouterr().out
    assert "--name budget" in out
    assert "--resume" in out
    assert len(study_of(tmp_path / "budget").trials) < 150


def test_a_trial_that_diverges_fails_and_the_search_continues(ray_local, tmp_path, capsys):
    text = write_space(tmp_path, trials=4, epochs=2, scheduler="asha").read_text()
    text = text.split("space:\n")[0].replace("{width: 8}", "{width: 8}\n  train: {clip_norm: 0, ema: 0}")
    (tmp_path / "wild.yaml").write_text(text + "space:\n  train.lr: {categorical: [0.002, 1.0e+30]}\n")
    main(["--space", str(tmp_path / "wild.yaml"), "--storage", str(tmp_path), "--name", "wild", *ALONE])
    out = capsys.readouterr().out
    states = {trial.params["train.lr"]: trial.state for trial in study_of(tmp_path / "wild").trials}
    assert states == {0.002: optuna.trial.TrialState.COMPLETE, 1e30: optuna.trial.TrialState.PRUNED}
    assert re.search(r"t000\d diverged: its loss became infinite or NaN", out)
    table = pd.read_parquet(tmp_path / "wild/trials.parquet")
    assert set(zip(table["train.lr"], table["state"], strict=True)) == {(0.002, "done"), (1e30, "diverged")}
    assert load_checkpoint(tmp_path / "wild/best").metadata.config.train.lr == 0.002


WILD = ["--set", "train.lr=1e30", "--set", "train.clip_norm=0", "--set", "train.ema=0"]


@pytest.mark.parametrize("choices", ["[gone.safetensors, null]", "[null, gone.safetensors, imagenet]"])
def test_every_choice_of_weights_is_tried_before_launch(tmp_path, choices):
    """Only the last one was."""
    space = write_space(tmp_path)
    space.write_text(
        space.read_text().split("space:\n")[0].replace("{width: 8}", "{name: tf_efficientnet_lite0}")
        + f"space:\n  model.weights: {{categorical: {choices}}}\n"
    )
    with pytest.raises(InputError, match=r"space\.yaml:12: gone\.safetensors: no such file"):
        main(["--space", str(space), "--storage", str(tmp_path), "--name", "gone"])
    assert not (tmp_path / "gone").exists()


def test_a_search_in_which_every_trial_diverges_fails_with_a_message(ray_local, tmp_path):
    space = write_space(tmp_path, trials=2, epochs=2)
    with pytest.raises(RunError, match="no trial"):
        main(["--space", str(space), "--storage", str(tmp_path), "--name", "lost", *WILD, *ALONE])


# ---------------------------------------------------------------- interruption


@pytest.mark.parametrize("word", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_stopped_it_keeps_everything_says_how_to_resume_and_resume_finishes(ray_local, tmp_path, begin, word):
    space = write_space(tmp_path, trials=6, epochs=8)
    cluster = ray.get_runtime_context().gcs_address
    within = ["--time-budget", "800"] if word == signal.SIGINT else []  # which has not ended the search: 130, not 0
    process = begin("stopped", "--space", str(space), "--address", cluster, *within)
    run = tmp_path / "stopped"
    wait_until(lambda: reported(run) >= 1, process)
    process.send_signal(word)
    code, out = finish(process)
    assert code == 130, out
    assert "SIGTERM received" not in out
    assert "Traceback" not in out
    before = Snapshot(run)
    assert 1 <= len(before.done) < 6
    # How the search around them is run may change; the running trials continue all the same.
    main([*resume_arguments(out), "--trials", "7", *ALONE])
    before.assert_kept_and_complete(trials=7, epochs=8)


@pytest.mark.parametrize("victim", ["driver", "raylet"])
def test_a_search_resumes_after_kill_nine_of_its(ray_local, tmp_path, begin, victim):
    """The command with its own cluster; it ends at once and in one line, and so do all processes that it started."""
    space = write_space(tmp_path, trials=6, epochs=8)
    process = begin("hit", "--space", str(space), "--set", "train.keep_seconds=0")
    run = tmp_path / "hit"
    wait_until(lambda: reported(run) >= 1, process)
    family = psutil.Process(process.pid).children(recursive=True)
    writers = [child for child in family if re.search("Trainable|TrialActor", title(child))]
    assert writers
    if victim == "driver":
        process.send_signal(signal.SIGKILL)
        process.wait()
        again = ["--storage", str(tmp_path), "--name", "hit", "--resume"]
    else:
        next(child for child in family if child.name() == victim).kill()
        code, out = finish(process, seconds=30)
        assert code == 1, out
        assert re.search(r"\nfailed: the Ray cluster of this command was killed .*\n$", out), out
        assert "Traceback" not in out
        assert "(raylet)" not in out
        again = resume_arguments(out)
    _, alive = psutil.wait_procs(writers, timeout=30)
    assert not alive, "processes that continue to write into a run that is resumed"
    before = Snapshot(run)
    assert 1 <= len(before.done) < 6
    main(again)
    before.assert_kept_and_complete(trials=6, epochs=8, every_epoch=True)


def test_a_search_resumes_after_kill_nine_of_a_trial_process(ray_local, tmp_path, capsys):
    run = tmp_path / "hit"
    before = []

    def kill():
        wait_until(lambda: reported(run) >= 1)
        trial_processes()[0].kill()
        before.append(Snapshot(run))

    with ThreadPoolExecutor() as pool:
        killed = pool.submit(kill)
        space = write_space(tmp_path, trials=6, epochs=24)  # so that hardly a trial ends just before it is killed
        keep = ["--set", "train.keep_seconds=0"]
        main(["--space", str(space), "--storage", str(tmp_path), "--name", "hit", *keep])
        killed.result()
    said = capsys.readouterr()
    assert "will be resumed: its process ended" in said.out
    assert "Traceback" not in said.out + said.err
    before[0].assert_kept_and_complete(trials=6, epochs=24, every_epoch=True)


def test_on_its_own_cluster_trials_run_in_the_processes_that_ray_started_and_a_killed_one_is_replaced(tmp_path, begin):
    """Ray starts one for each CPU; Tune alone would take two more for each place."""
    space = write_space(tmp_path, trials=2, epochs=1)
    assert finish(begin("prepares", "--space", str(space)))[0] == 0
    space = write_space(tmp_path, trials=4, epochs=30)
    search = begin("own", "--space", str(space), "--set", "train.keep_seconds=0")

    wait_until((tmp_path / "own/trials.parquet").exists, search)
    children = psutil.Process(search.pid).children(recursive=True)
    processes = [
        one for one in children if title(one).startswith("ray::") and not title(one).startswith("ray::RuntimeEnvAgent")
    ]
    assert len(processes) == len(os.sched_getaffinity(0))
    trial_processes(search.pid)[0].kill()
    before = Snapshot(tmp_path / "own")
    code, out = finish(search)
    assert code == 0, out
    assert "will be resumed: its process ended" in out
    before.assert_kept_and_complete(trials=4, epochs=30, every_epoch=True)


@pytest.mark.parametrize("victim", ["ResourceTrainable", "TrainController"])
def test_the_workers_of_a_killed_process_leave_their_places_to_its_replacement(tmp_path, begin, victim):
    """Else the new workers would wait for them, as Ray keeps the places of a dead actor."""
    space = write_space(tmp_path, trials=2, epochs=24)
    search = begin("pair", "--space", str(space), "--workers-per-trial", "2", "--set", "train.keep_seconds=0")
    wait_until((tmp_path / "pair/trials.parquet").exists, search)
    before = Snapshot(tmp_path / "pair")
    children = psutil.Process(search.pid).children(recursive=True)
    (killed,) = (one for one in children if title(one).startswith(f"ray::{victim}"))
    killed.kill()
    code, out = finish(search)
    assert code == 0, out
    assert "will be resumed: " in out
    before.assert_kept_and_complete(trials=2, epochs=24, every_epoch=True)


def test_a_process_that_dies_between_two_trials_costs_no_trial(ray_local, tmp_path, monkeypatch):
    mark = tmp_path / "died"

    class Dying(TrialActor):
        def reset_config(self, new_config):
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().reset_config(new_config)

    monkeypatch.setattr("fracray.search.trainable.TrialActor", Dying)
    main(["--space", str(write_space(tmp_path, trials=4, epochs=2)), "--storage", str(tmp_path), "--name", "hit"])
    assert mark.exists()
    Snapshot(tmp_path / "hit").assert_kept_and_complete(trials=4, epochs=2)


def test_an_error_in_a_trials_process_is_told_and_the_trial_resumed(ray_local, tmp_path, monkeypatch, capsys):
    mark = tmp_path / "failed"

    class Failing(TrialActor):
        def step(self):
            if not mark.exists():
                mark.touch()
                raise OSError(28, "No space left on device")
            return super().step()

    monkeypatch.setattr("fracray.search.trainable.TrialActor", Failing)
    main(["--space", str(write_space(tmp_path, trials=2, epochs=2)), "--storage", str(tmp_path), "--name", "hit"])
    lost = re.search(r"t000[01] was lost .* resumed: (.*) \(full error in (.*)\)", capsys.readouterr().out)
    assert lost.group(1) == "OSError: [Errno 28] No space left on device"
    assert "No space left on device" in Path(lost.group(2)).read_text()
    Snapshot(tmp_path / "hit").assert_kept_and_complete(trials=2, epochs=2)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_trial_that_cannot_run_fails_once_with_its_reason(ray_local, tmp_path, capsys, workers):
    """Its folder holds the state of another config: that is an error in any process."""
    folder = tmp_path / "mixed/trials/t0001"
    folder.mkdir(parents=True)
    save_state(folder / STATE, {"w": torch.zeros(1)}, {"config": {}})
    (tmp_path / "mixed/environment.json").write_text("{}")  # of a run that stopped before it began
    main(
        [
            "--space",
            str(write_space(tmp_path, trials=3, epochs=1)),
            "--storage",
            str(tmp_path),
            "--name",
            "mixed",
            "--workers-per-trial",
            str(workers),
            *ALONE,
        ]
    )
    out = capsys.readouterr().out
    assert out.count("t0001 failed: ") == 1
    assert "will be resumed" not in out
    assert not list((tmp_path / "mixed/ray").glob("group-*/*/error*"))
    trials = study_of(tmp_path / "mixed").trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert "was started with another config" in trials[1].user_attrs["reason"]


def resume_arguments(out):
    command = re.search(r"continue with: python -m fracray\.tune (.*)", out).group(1)
    command, resumes, address = command.partition("--resume")
    assert resumes
    assert address == "" or address.startswith(" --address ")  # which the tests' own Ray needs no more
    return shlex.split(command + resumes)


def title(process):
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def trial_processes(command=None):
    """The trials in the middle of an epoch, of this process or of the command's."""
    for _ in range(1000):
        found = [child for child in psutil.Process(command).children(recursive=True) if ".train" in title(child)]
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError("no trial was training")


class Snapshot:
    """What a run holds at the moment of an interruption, and must hold after it."""

    def __init__(self, run: Path) -> None:
        self.run, self.kept = run, histories(run)
        self.done = [trial for trial in study_of(run).trials if trial.state.is_finished()]
        self.files = {file: file.read_bytes() for trial in self.done for file in self.files_of(trial.number)}

    def files_of(self, number: int) -> list[Path]:
        return [path for path in (self.run / f"trials/t{number:04d}").rglob("*") if path.is_file()]

    def assert_kept_and_complete(self, trials: int, epochs: int, every_epoch: bool = False) -> None:
        """All trials are there, once; what was finished before is as it was, to the byte."""
        study, now = study_of(self.run), histories(self.run)
        assert [trial.number for trial in study.trials] == list(range(trials))
        assert all(trial.state is optuna.trial.TrialState.COMPLETE for trial in study.trials)
        for before in self.done:
            after = study.trials[before.number]
            assert (after.params, after.value, after.datetime_complete) == (
                before.params,
                before.value,
                before.datetime_complete,
            )
        for file, content in self.files.items():
            assert file.read_bytes() == content, file
        for name, entries in self.kept.items():
            # A running trial continues from the state that was last kept, and runs the same epochs.
            assert without_time(now[name][: len(entries)]) == without_time(entries), f"{name} has other metrics"
            if every_epoch:  # but the last, whose state may not have been written yet; their times show which ran once
                assert now[name][: len(entries) - 1] == entries[:-1], f"{name} lost a finished epoch"
        for name, entries in now.items():
            assert [entry["epoch"] for entry in entries] == list(range(1, epochs + 1)), name
            assert study.trials[int(name[1:])].value == max(entry["val_accuracy"] for entry in entries)
        table = pd.read_parquet(self.run / "trials.parquet")
        assert sorted(zip(table["number"], table["epoch"], strict=True)) == [
            (number, epoch) for number in range(trials) for epoch in range(1, epochs + 1)
        ]


# ---------------------------------------------------------------- what is chosen when a search begins


def test_auto_pasha_and_constraints_are_the_same_after_a_resume(ray_local, tmp_path, capsys):
    file = tmp_path / "space.yaml"
    file.write_text(
        "epochs: 4\nconcurrent: 1\nsampler: {name: auto, startup_trials: 1}\n"
        "scheduler: {name: pasha, grace_epochs: 1, reduction_factor: 2}\n"
        "constraints: {val_sensitivity: {at_least: 1}, val_specificity: {at_least: 1}}\n"
        "base: {data: {size: 32, phantom: {count: 150}, split: {block: 10}}, model: {width: 8}}\n"
        "space: {model.dropout: {float: [0, 0.5]}}\n"
    )
    where = ["--storage", str(tmp_path), "--name", "auto"]
    main(["--space", str(file), *where, "--trials", "2"])
    out = capsys.readouterr().out
    assert "sampler: auto is random here: of 2 trials" in out
    assert "pasha: at first no trial gets more than 2 of 4 epochs" in out
    assert "random does not look for trials that satisfy them" in out
    assert "constraints: none of 2 satisfies val_sensitivity at least 1 and val_specificity at least 1; t000" in out
    config = (tmp_path / "auto/config.yaml").read_text()
    main([*where, "--resume", "--trials", "3"])  # of three trials, of a new search, auto would be tpe
    out = capsys.readouterr().out
    assert "searching 1 setting with random and pasha: 1 of 3 trials to run" in out
    assert "constraints: none of 3 satisfies" in out
    assert (tmp_path / "auto/config.yaml").read_text() == config.replace("trials: 2", "trials: 3")
    assert all(
        trial.constraints.keys() == {"val_sensitivity", "val_specificity"}
        for trial in study_of(tmp_path / "auto").trials
    )
    assert "breaks a constraint" in (tmp_path / "auto/report.html").read_text()
    with pytest.raises(
        InputError, match=r"search\.constraints\.val_sensitivity\.at_least was 1\.0 when this run began"
    ):
        main([*where, "--resume", "--set", "search.constraints.val_sensitivity.at_least=0.5"])
