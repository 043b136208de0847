"""fracray.log and --log: against real stores and a real server of MLflow, and TensorBoard's own reader."""

import json
import logging
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from optuna.trial import TrialState
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import fracray.tune
from fracray import log
from fracray.config import Config
from fracray.errors import InputError, run_verb
from fracray.runtime.run_folder import stored_config
from fracray.runtime.storage import Folder
from fracray.search.messages import TrialReport
from fracray.search.refit import RefitPlan
from fracray.search.refit_trials import RefitTrials
from fracray.search.states import State
from fracray.search.study import stored_study
from fracray.search.trials_table import collect
from fracray.tracking import live, targets
from fracray.tracking.entries import Entries, Entry, Point
from fracray.tracking.targets import parse_address

SPACE = """
metric: val_auroc
mode: max
trials: 2
epochs: 2
sampler: {name: random, seed: 0}
scheduler: {name: none}
base:
  data: {size: 32, phantom: {count: 150}, split: {block: 10}}
  model: {width: 4}
space:
  model.dropout: {float: [0.0, 0.7]}
  train.lr: {log_float: [1.0e-3, 1.0e-1]}
"""


class Server:
    """A tracking server of MLflow on loopback, with its own database."""

    def __init__(self, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.uri = f"http://127.0.0.1:{free.getsockname()[1]}"
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder}/server.db"]
        command += ["--default-artifact-root", str(folder / "artifacts"), "--workers", "1"]
        command += ["--host", "127.0.0.1", "--port", self.uri.rpartition(":")[2]]
        settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with open(folder / "server.txt", "wb") as said:
            self.process = subprocess.Popen(
                command, env={**os.environ, **settings}, stdout=said, stderr=said, start_new_session=True
            )
        deadline = time.monotonic() + 180
        while not self._answers():
            assert self.process.poll() is None, (folder / "server.txt").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def _answers(self):
        try:
            return urllib.request.urlopen(f"{self.uri}/health", timeout=5).status == 200
        except OSError:
            return False

    def signal(self, number):
        os.killpg(self.process.pid, number)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    started = Server(tmp_path_factory.mktemp("server"))
    yield started
    started.signal(signal.SIGKILL)
    started.process.wait()


@pytest.fixture(scope="module")
def searched(tmp_path_factory, ray_local, server):
    """The folder of runs with a search that was resumed for a third trial and a refit, both times with --log."""
    root = tmp_path_factory.mktemp("searched")
    (root / "space.yaml").write_text(SPACE)
    words = ["--storage", root / "runs", "--name", "first", "--concurrent", "1"]
    words += ["--log", f"mlflow:{server.uri}", "--log", f"tensorboard:{root / 'tb'}"]
    fracray.tune.main([str(word) for word in ["--space", root / "space.yaml", *words]])
    more = ["--resume", "--trials", "3", "--refit", "1", "--set", "search.refit.seeds=1"]
    fracray.tune.main([str(word) for word in [*words, *more]])
    return root


def nested(run):
    """The parents that the entries of the search must have, by name."""
    trained = [path.name for path in (run / "refit/trials").iterdir()]
    assert len(trained) in (1, 2)  # the best configuration, and the default one where that is another
    below = {"first refit": "first", **dict.fromkeys(("t0000", "t0001", "t0002"), "first")}
    return {"first": None, **below, **dict.fromkeys(trained, "first refit")}


def logged(capsys, *words):
    """What fracray.log prints."""
    assert run_verb(log.main, [str(word) for word in words]) == 0
    return capsys.readouterr().out


def refused(capsys, *words):
    assert run_verb(log.main, [str(word) for word in words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    return said


def runs_of(uri):
    """The runs of MLflow by name; of names that occur twice, a test fails."""
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    found = client.search_runs([client.get_experiment_by_name("fracray").experiment_id])
    names = {run.info.run_name: run for run in found}
    assert len(names) == len(found)
    return client, names


def tree(uri):
    """Everything that MLflow has of the runs, in comparable form: parents, settings, histories, states, files."""
    client, runs = runs_of(uri)
    by_id = {run.info.run_id: name for name, run in runs.items()}
    return {
        name: {
            "parent": by_id.get(run.data.tags.get("mlflow.parentRunId")),
            "status": run.info.status,
            "params": run.data.params,
            "tags": {key: value for key, value in run.data.tags.items() if key != "mlflow.parentRunId"},
            "metrics": {
                key: [(one.step, repr(one.value)) for one in client.get_metric_history(run.info.run_id, key)]
                for key in run.data.metrics
            },
            "files": sorted(file.path for file in client.list_artifacts(run.info.run_id)),
        }
        for name, run in runs.items()
    }


def epochs(run, place):
    return json.loads((run / place / "epochs.json").read_text())


def events(folder):
    read = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    read.Reload()
    return read


# ---------------------------------------------------------------- while a search runs


def test_a_search_that_was_resumed_and_refitted_is_one_tree_of_runs(searched, server):
    found, run = tree(server.uri), searched / "runs/first"
    assert {name: one["parent"] for name, one in found.items()} == nested(run)
    assert {one["status"] for one in found.values()} == {"FINISHED"}
    for number in range(3):
        known = epochs(run, f"trials/t000{number}")
        mine = found[f"t000{number}"]
        for name in ("val_auroc", "train_loss", "best_val_auroc", "lr", "seconds"):
            assert mine["metrics"][name] == [(place, repr(one[name])) for place, one in enumerate(known, 1)]
        assert set(mine["params"]) == {"model.dropout", "train.lr"}
    seeded = found[next(name for name in found if name.endswith("-seed1"))]
    assert seeded["params"]["train.seed"] == "1"
    assert len(seeded["metrics"]["val_auroc"]) == 2


def test_the_parent_says_what_was_run_and_has_the_best_score_and_the_files(searched, server):
    found, run = tree(server.uri)["first"], searched / "runs/first"
    environment = json.loads((run / "environment.json").read_text())
    assert found["tags"]["data.fingerprint"] == json.loads((run / "data.json").read_text())["fingerprint"]
    assert found["tags"]["version.torch"] == environment["packages"]["torch"]
    assert found["tags"].get("git") == environment["git"]
    assert found["tags"]["search.trials"] == "3"  # as of the resumed search
    assert found["params"]["data.size"] == "32"
    assert "model.dropout" not in found["params"]  # is searched: each trial has its own
    best = [max(epochs(run, f"trials/t000{n}")[-1]["best_val_auroc"] for n in range(m)) for m in (1, 2, 3)]
    assert found["metrics"]["best_val_auroc"] == [(place, repr(value)) for place, value in enumerate(best, 1)]
    card = json.loads((run / "best/config.json").read_text())
    assert tree(server.uri)["first refit"]["metrics"]["val_auroc"] == [
        (len(nested(run)) - 5, repr(card["metrics"]["val_auroc"]))
    ]
    checkpoint = f"best-{found['tags']['fracray.sent.best']}"  # beside that of before the refit
    client, runs = runs_of(server.uri)
    copy = Path(client.download_artifacts(runs["first"].info.run_id, checkpoint))
    assert fracray.load_checkpoint(copy).metadata.metrics["val_auroc"] == card["metrics"]["val_auroc"]
    page = Path(client.download_artifacts(runs["first"].info.run_id, "report.html"))
    assert page.read_bytes() == (run / "report.html").read_bytes()


def test_tensorboards_reader_finds_every_epoch_of_every_trial_once(searched):
    run, folder = searched / "runs/first", searched / "tb/first"
    below = [name for name, parent in nested(run).items() if parent in ("first", "first refit") and name[0] == "t"]
    for trial in below:
        of_refit = "-seed" in trial
        read = events(folder / (f"refit/{trial}" if of_refit else trial))
        known = epochs(run, f"refit/trials/{trial}" if of_refit else f"trials/{trial}")
        for name in ("val_auroc", "train_loss", "best_val_loss"):
            values = [(one.step, one.value) for one in read.Scalars(name)]
            assert values == [(step, np.float32(one[name])) for step, one in enumerate(known, 1)]
        plugin = read.summary_metadata["_hparams_/session_start_info"].plugin_data
        assert plugin.plugin_name == "hparams"
        assert b"train.lr" in plugin.content
        assert "_hparams_/session_end_info" in read.summary_metadata
    root = events(folder)
    assert [one.step for one in root.Scalars("best_val_auroc")] == [1, 2, 3]
    assert "data.fingerprint" in root.Tensors("facts/text_summary")[-1].tensor_proto.string_val[0].decode()


# ---------------------------------------------------------------- afterwards


def test_a_second_time_adds_nothing(searched, server, capsys):
    before = tree(server.uri), {path: path.read_bytes() for path in (searched / "tb").rglob("*") if path.is_file()}
    said = logged(
        capsys, searched / "runs/first", "--to", f"mlflow:{server.uri}", "--to", f"tensorboard:{searched / 'tb'}"
    )
    assert said.count("runs (none new), 0 new steps, 0 new files") == 2
    after = tree(server.uri), {path: path.read_bytes() for path in (searched / "tb").rglob("*") if path.is_file()}
    assert before == after


def test_a_database_that_is_written_afterwards_has_what_the_server_got_meanwhile(searched, server, tmp_path, capsys):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    logged(capsys, searched / "runs/first", "--to", f"mlflow:{uri}")
    after, meanwhile = tree(uri), tree(server.uri)
    assert set(meanwhile["first"].pop("files")) >= set(after["first"].pop("files"))  # an earlier checkpoint too
    assert after == meanwhile
    assert (tmp_path / "mlartifacts").is_dir()  # and not in the folder of the command


def test_a_run_in_a_store_is_the_same_run(searched, s3, tmp_path, capsys):
    place = s3("logged/first")
    Folder(place).upload(searched / "runs/first/trials", "trials")
    for path in (searched / "runs/first").rglob("*"):
        name = path.relative_to(searched / "runs/first").as_posix()
        if path.is_file() and not name.startswith(("trials/", "ray/")):
            Folder(place).write(name, path.read_bytes())
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    logged(capsys, place, "--to", f"mlflow:{uri}")
    assert {name: one["parent"] for name, one in tree(uri).items()} == nested(searched / "runs/first")
    assert any(name.startswith("best-") for name in tree(uri)["first"]["files"])
    said = logged(capsys, searched / "runs/first", "--to", f"mlflow:{uri}")
    assert "runs (none new), 0 new steps, 0 new files" in said


def test_the_store_of_plain_files_is_refused_until_mlflow_is_told_to_allow_it(searched, tmp_path, capsys, monkeypatch):
    words = searched / "runs/first", "--to", f"mlflow:{tmp_path / 'mlruns'}"
    assert "mlflow:sqlite:///mlflow.db" in refused(capsys, *words)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logged(capsys, *words)
    before = tree(str(tmp_path / "mlruns"))
    assert {name: one["parent"] for name, one in before.items()} == nested(searched / "runs/first")
    logged(capsys, *words)
    assert tree(str(tmp_path / "mlruns")) == before


def test_a_search_that_was_interrupted_is_not_called_running(searched, tmp_path, capsys):
    run = Path(shutil.copytree(searched / "runs/first", tmp_path / "first", ignore=shutil.ignore_patterns("refit")))
    journal = (run / "optuna.journal").read_text().splitlines(keepends=True)
    told = next(place for place, line in enumerate(journal) if json.loads(line).get("state") == TrialState.COMPLETE)
    (run / "optuna.journal").write_text("".join(journal[:told]))
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    logged(capsys, run, "--to", f"mlflow:{uri}")
    found = tree(uri)
    assert (found["first"]["status"], found["first"]["tags"]["fracray.state"]) == ("KILLED", "interrupted")
    assert found["t0000"]["status"] == "KILLED"
    assert "t0002" not in found


@pytest.mark.parametrize(
    ("to", "words"),
    [
        ("mlflow", "name the place too (or set MLFLOW_TRACKING_URI)"),
        ("tensorboard", "name the place too: mlflow:sqlite:///mlflow.db"),
        ("wandb:x", "expected mlflow:sqlite:///mlflow.db"),
        ("mlflow:nosuch://x", "nosuch://x"),
        ("mlflow:sqlite:///nowhere/m.db", "nowhere does not exist"),
        ("mlflow:http://127.0.0.1:9", "no server answers there"),
        ("mlflow:http://me:secret@127.0.0.1:9", "leave the secret out"),
        ("http://me:secret@127.0.0.1:9", "expected mlflow:"),
        ("tensorboard:s3://bucket/tb", "a folder on this machine"),
        ("tensorboard:file/tb", "cannot be written"),
    ],
)
def test_a_target_that_cannot_be_is_refused(searched, tmp_path, monkeypatch, capsys, to, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "file").touch()
    said = refused(capsys, searched / "runs/first", "--to", to)
    assert words in said
    assert "secret@" not in said


def test_the_secret_of_a_place_in_the_environment_is_not_shown(searched, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hush@127.0.0.1:9")
    assert str(parse_address("mlflow", "--log")) == "mlflow:http://...@127.0.0.1:9"
    assert "mlflow:http://...@127.0.0.1:9: no server answers there" in refused(
        capsys, searched / "runs/first", "--to", "mlflow"
    )


def test_without_the_extra_its_name_is_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.setattr(targets, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'tensorboardX is not installed; pip install "fracray\[log\]"'):
        parse_address("tensorboard:tb", "--log")


def test_tune_refuses_a_wrong_target_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "space.yaml").write_text(SPACE)
    assert run_verb(fracray.tune.main, ["--space", "space.yaml", "--log", "mlflow:http://127.0.0.1:9"]) == 2
    assert "--log mlflow:http://127.0.0.1:9: no server answers there" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_optuna_dashboard_opens_the_journal_of_a_search(searched):
    run = searched / "runs/first"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("optuna-dashboard"), run / "optuna.journal"]
    with subprocess.Popen(
        [*map(str, command), "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            studies = answer(process, f"http://127.0.0.1:{port}/api/studies")["study_summaries"]
            study = answer(process, f"http://127.0.0.1:{port}/api/studies/{studies[0]['study_id']}")
        finally:
            process.kill()
    assert [one["study_name"] for one in studies] == ["fracray"]
    assert [one["number"] for one in study["trials"]] == [0, 1, 2]
    for trial in study["trials"]:
        known = epochs(run, f"trials/t000{trial['number']}")
        assert trial["values"] == [known[-1]["best_val_auroc"]]
        assert [one["value"] for one in trial["intermediate_values"]] == [one["best_val_auroc"] for one in known]
        assert {one["name"] for one in trial["params"]} == {"model.dropout", "train.lr"}


def answer(process, address):
    deadline = time.monotonic() + 120
    while True:
        try:
            return json.load(urllib.request.urlopen(address, timeout=20))
        except OSError:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)


# ---------------------------------------------------------------- epochs that were trained again


def point(step, value):
    return Point(step, float(step), {"train_loss": value, "val_auroc": value / 2})


@pytest.mark.parametrize("kind", ["mlflow", "tensorboard"])
def test_epochs_that_were_lost_and_trained_again_are_replaced(tmp_path, kind):
    """The first process reached epoch 3, and was killed; the next one continues from epoch 1."""
    place = f"sqlite:///{tmp_path}/m.db" if kind == "mlflow" else str(tmp_path / "tb")
    address = parse_address(f"{kind}:{place}", "--log")
    first = [point(1, 0.9), point(2, math.nan), point(3, 0.7)]
    again = [point(1, 0.9), point(2, math.nan), point(3, 0.6), point(4, math.inf)]
    for points, new in ((first, 3), (again, 2), (again, 0)):
        writer = address.open()
        writer.write(Entry("k", "one", "training", State.RUNNING, 1.0e9, points=tuple(points)))
        writer.close()
        assert writer.tally.steps == new
    if kind == "mlflow":
        client, runs = runs_of(place)
        history = client.get_metric_history(runs["one"].info.run_id, "train_loss")
        assert sorted(one.step for one in history) == [1, 2, 3, 3, 4]
        assert max((one for one in history if one.step == 3), key=lambda one: one.timestamp).value == 0.6
    else:
        read = events(tmp_path / "tb/one").Scalars("train_loss")
        assert [one.step for one in read] == [1, 2, 3, 4]
        assert read[2].value == np.float32(0.6)


def test_a_training_that_failed_before_its_first_epoch_is_told_with_its_reason(tmp_path):
    run = Folder(tmp_path / "first")
    run.write("space.yaml", SPACE)
    run.write_json("overrides.json", {})
    run.write("config.yaml", Config().with_leaves({"train.epochs": 2}).to_yaml())
    for folder in (run, run.sub("refit")):
        folder.write_json("environment.json", {"python": "3"})
    plan = RefitPlan({0: {}}, (1,))
    plan.write(run.sub("refit"))
    searcher = RefitTrials(plan, run.sub("refit"), stored_config(run))
    searcher.suggest("a")
    searcher.on_trial_complete("a", TrialReport.failed(InputError("no such file")).to_tune(["val_accuracy"]))
    _, whole, training = Entries(run, in_work=False).all()
    assert (whole.state, training.name, training.state) == (State.DONE, "t0000-seed1", State.FAILED)
    assert training.tags == {"reason": "no such file"}
    assert abs(training.begun - time.time()) < 60, "and not 1970"


def test_another_run_of_the_same_name_has_a_folder_of_its_own(tmp_path):
    for key in ("a" * 24, "b" * 24):
        writer = parse_address(f"tensorboard:{tmp_path}", "--log").open()
        writer.write(Entry(key, "one", "training", State.DONE, 1.0e9, points=(point(1, 0.5),)))
        writer.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "one-bbbbbbbb"]


# ---------------------------------------------------------------- a server that goes away


def recorder():
    return Console(record=True, file=StringIO(), width=400)


def test_a_server_that_stands_still_is_named_once_and_gets_everything_later(searched, server, monkeypatch, caplog):
    """SIGSTOP: it takes connections and answers none, as a server that hangs. Nothing waits for it."""
    caplog.set_level(logging.CRITICAL)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setattr(live, "AGAIN_SECONDS", 0.2)
    run, console = Path(shutil.copytree(searched / "runs/first", searched / "runs/second")), recorder()
    address = parse_address(f"mlflow:{server.uri}", "--log")
    with stored_study(Folder(run)) as study:
        rows = collect(Folder(run), study, stored_config(Folder(run)).train.epochs)
    log_to = {address: address.open()}
    server.signal(signal.SIGSTOP)
    try:
        with live.LiveLog(log_to, Folder(run), console) as told:
            for row in rows.values():
                told.trial(row)
            while "warning" not in console.export_text(clear=False):
                time.sleep(0.05)
            time.sleep(3)  # it is tried again meanwhile, and nothing more is said
            server.signal(signal.SIGCONT)
    finally:
        server.signal(signal.SIGCONT)
    said = console.export_text()
    assert said.count("warning") == 1
    assert f"python -m fracray.log {run} --to {address}" in said
    count = len(nested(run))
    assert f"logged to {address}: {count} runs ({count} new)" in said


def test_the_end_of_a_command_does_not_wait_for_a_dead_server_and_log_writes_it_later(
    searched, server, monkeypatch, tmp_path, capsys
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    monkeypatch.setattr(live, "LAST_SECONDS", 0.5)
    run, console = Path(shutil.copytree(searched / "runs/first", searched / "runs/third")), recorder()
    address = parse_address(f"mlflow:{server.uri}", "--log")
    log_to = {address: address.open()}
    server.signal(signal.SIGSTOP)
    try:
        with live.LiveLog(log_to, Folder(run), console):
            (thread,) = (one for one in threading.enumerate() if one.name == "log to mlflow")
        assert thread.is_alive()  # it still waits for the server, alone
        assert console.export_text().count("warning") == 1
    finally:
        server.signal(signal.SIGCONT)
    thread.join()
    said = logged(capsys, run, "--to", f"mlflow:{server.uri}")
    assert f"{len(nested(run))} runs" in said
    assert by_parent(server.uri)["third"] == dict.fromkeys(("t0000", "t0001", "t0002", "third refit"), "FINISHED")


def by_parent(uri):
    """The states of the runs below each run, by their names."""
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    runs = client.search_runs([client.get_experiment_by_name("fracray").experiment_id])
    names = {run.info.run_id: run.info.run_name for run in runs}
    found = {}
    for run in runs:
        parent = names.get(run.data.tags.get("mlflow.parentRunId"))
        found.setdefault(parent, {})[run.info.run_name] = run.info.status
    return found
