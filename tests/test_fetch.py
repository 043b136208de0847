"""Fetching checkpoints out of runs on a disk and in an object store: the right ones, complete, or nothing."""

import json
import math
import shutil
import uuid
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from fracray import fetch as fetch_verb
from fracray.cluster.files import read_cluster
from fracray.cluster.head_runs import place_of
from fracray.config import Config
from fracray.data.loading.shards import ShardFile, Shards
from fracray.errors import run_verb
from fracray.evaluation.opening import open_checkpoint
from fracray.metrics import Calibration
from fracray.runtime.run_folder import BEST, EPOCHS, TRIALS, trial_folder
from fracray.runtime.storage import Folder
from fracray.training.checkpoint import CheckpointMetadata, load_checkpoint, read_metadata, save_checkpoint, verify
from fracray.training.job import Job
from fracray.training.model import build_model
from fracray.training.trial import TrialRunner

CONFIG = Config().with_leaves(
    {"data.size": 32, "model.width": 4, "train.epochs": 2, "train.batch_size": 16, "train.precision": "fp32"}
)

# Each metric has another winner; t0004 diverged in its first epoch, t0005 was never begun.
SCORES = {
    0: {"val_accuracy": 0.70, "val_auroc": 0.90, "val_brier": 0.20},
    1: {"val_accuracy": 0.90, "val_auroc": 0.70, "val_brier": 0.30},
    2: {"val_accuracy": 0.80, "val_auroc": 0.80, "val_brier": 0.10},
    3: {"val_accuracy": 0.80, "val_auroc": math.nan, "val_brier": 0.15},
}


def make_run(run: Folder, scratch: Path) -> Folder:
    """A finished search: its config, and a checkpoint and history per trial."""
    run.write("config.yaml", CONFIG.to_yaml())
    for number, scores in SCORES.items():
        torch.manual_seed(number)
        metadata = CheckpointMetadata(
            config=CONFIG,
            threshold=0.5,
            calibration=Calibration(1.0, 0.0),
            metrics=scores,
            data_fingerprint="f",
            epoch=1,
            trial=f"t{number:04d}",
        )
        predictions = pd.DataFrame({"image_id": ["a"], "group": ["g"], "label": [1], "split": ["val"], "logit": [0.5]})
        best = scratch / f"best{number}"
        save_checkpoint(best, build_model(CONFIG.model).state_dict(), metadata, predictions)
        folder = trial_folder(run, number)
        folder.upload(best, BEST)
        best_so_far = {f"best_{name}": value for name, value in scores.items()}
        # The last epoch is worse than the best one: what counts is the best.
        folder.write_json(
            EPOCHS, [{"epoch": 1.0, **scores, **best_so_far}, {"epoch": 2.0, "val_accuracy": 0.1, **best_so_far}]
        )
    trial_folder(run, 4).write_json(EPOCHS, [{"epoch": 1.0, "val_loss": math.nan}])
    trial_folder(run, 5).write("state.safetensors", b"")
    return run


@pytest.fixture
def run(tmp_path):
    return make_run(Folder(tmp_path / "runs" / "atlas"), tmp_path / "made")


@pytest.fixture(scope="module")
def stored(s3, tmp_path_factory):
    """The same run in the object store."""
    return make_run(Folder(s3(f"{uuid.uuid4().hex}/atlas")), tmp_path_factory.mktemp("made"))


def fetch(*words):
    return run_verb(fetch_verb.main, [str(word) for word in words])


def names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


# ---- which


@pytest.mark.parametrize(
    ("metric", "order"),
    [
        (None, ["t0001", "t0002", "t0003", "t0000"]),  # the searched one; a tie goes to the earlier trial
        ("val_auroc", ["t0000", "t0002", "t0001"]),  # not t0003, whose AUROC is unknown
        ("val_brier", ["t0002", "t0003", "t0000", "t0001"]),  # lower is better
    ],
)
def test_the_best_come_first_in_the_metric_asked_for(run, tmp_path, capsys, metric, order):
    words = ["--metric", metric] if metric else []
    for top in (1, 2, 99):
        target = tmp_path / f"top{top}"
        assert fetch(run, "--top", top, "--to", target, *words) == 0
        assert names(target) == sorted(order[:top])
    shown = capsys.readouterr().out.split("rank")[-1]
    places = [shown.index(f" {trial} ") for trial in order]
    assert places == sorted(places)


def test_the_next_command_names_the_data_which_the_copies_no_longer_choose(run, tmp_path, capsys):
    assert fetch(run, "--to", tmp_path / "phantoms") == 0
    assert f"evaluate {tmp_path / 'phantoms/t0001'} --split test" in capsys.readouterr().out
    run.write("config.yaml", CONFIG.with_leaves({"data.source": "the bones.zip"}).to_yaml())
    assert fetch(run, "--to", tmp_path / "own") == 0
    assert f"evaluate {tmp_path / 'own/t0001'} --data 'the bones.zip' --split test" in capsys.readouterr().out


def test_a_trial_that_diverged_or_failed_is_none_of_the_best(run, tmp_path, capsys):
    states = {"t0000": "done", "t0001": "diverged", "t0002": "failed", "t0003": "stopped early"}
    pd.DataFrame({"trial": list(states), "state": list(states.values())}).to_parquet(Path(str(run)) / TRIALS)
    assert fetch(run, "--top", "9", "--to", tmp_path / "to") == 0
    assert names(tmp_path / "to") == ["t0000", "t0003"]
    assert "2 of 2 checkpoints" in (out := capsys.readouterr().out)
    assert "left out: 2 of trials that diverged or failed" in " ".join(out.split())

    pd.DataFrame({"trial": list(states), "state": "failed"}).to_parquet(Path(str(run)) / TRIALS)
    assert fetch(run, "--to", tmp_path / "none") == 2
    assert "all trials diverged or failed" in " ".join(capsys.readouterr().err.split())


def test_what_is_fetched_is_complete_and_opens_alone(run, tmp_path, capsys):
    assert fetch(run, "--to", tmp_path / "out") == 0
    shutil.rmtree(run.location)
    target = tmp_path / "out" / "t0001"
    assert names(target) == ["config.json", "model.safetensors", "val_predictions.parquet"]
    verify(target)
    loaded = load_checkpoint(target)
    assert loaded.metadata.metrics["val_accuracy"] == 0.90
    torch.manual_seed(1)
    expected = build_model(CONFIG.model).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.model.state_dict().items())
    out = capsys.readouterr().out
    assert "0.9000" in out
    assert f"python -m fracray.evaluate {target} --split test" in out


def test_out_of_an_object_store_come_the_same_bytes(run, stored, tmp_path):
    for number, source in enumerate((run, stored)):
        assert fetch(source, "--top", 4, "--to", tmp_path / str(number)) == 0
    for trial in names(tmp_path / "0"):
        for name in names(tmp_path / "0" / trial):
            files = [(tmp_path / place / trial / name) for place in ("0", "1")]
            if name == "model.safetensors":
                assert files[0].read_bytes() == files[1].read_bytes()
            assert files[1].stat().st_size > 0
        verify(tmp_path / "1" / trial)


def test_a_checkpoint_opens_from_the_store_too(stored):
    checkpoint = open_checkpoint(stored.sub("trials/t0002/best").location)
    assert checkpoint.metadata.trial == "t0002"


# ---- again


def test_what_is_there_already_is_left(run, tmp_path):
    target = tmp_path / "out" / "t0001"
    assert fetch(run, "--to", tmp_path / "out") == 0
    before = {path.name: path.stat().st_mtime_ns for path in target.iterdir()}
    assert fetch(run, "--top", 2, "--to", tmp_path / "out") == 0
    assert {path.name: path.stat().st_mtime_ns for path in target.iterdir()} == before
    assert names(tmp_path / "out") == ["t0001", "t0002"]


def test_another_checkpoint_of_that_name_is_refused_and_kept(run, tmp_path, capsys):
    assert fetch(run, "--to", tmp_path / "out") == 0
    kept = tmp_path / "out" / "t0001"
    shutil.rmtree(kept)
    shutil.copytree(Path(run.location) / "trials" / "t0002" / BEST, kept)
    assert fetch(run, "--to", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert f"{kept}: exists already and is another checkpoint" in error
    assert read_metadata(kept).trial == "t0002"
    assert names(tmp_path / "out") == ["t0001"]


# ---- refused


def damage(folder, name, change):
    path = f"trials/t0001/{BEST}/{name}"
    folder.write(path, change(folder.read(path)))


def flip_a_bit(data):
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("model.safetensors", flip_a_bit, "sha256 differs"),
        ("model.safetensors", lambda data: data[: len(data) // 2], "sha256 differs"),
        ("model.safetensors", lambda data: b"", "sha256 differs"),
        ("val_predictions.parquet", flip_a_bit, "sha256 differs"),
        ("config.json", lambda data: data[: len(data) // 2], "damaged JSON"),
        ("model.safetensors", lambda data: b"\x80\x04N.", "pickle"),
    ],
    ids=["bit", "half", "empty", "predictions", "metadata", "pickle"],
)
def test_a_damaged_checkpoint_arrives_under_no_name(run, tmp_path, capsys, name, change, words):
    damage(run, name, change)
    assert fetch(run, "--to", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert words in error
    assert f"{run}/trials/t0001/{BEST}/{name}" in error  # the faulty file is in the run, not in a scratch folder
    assert error.count("\n") == 1
    assert names(tmp_path / "out") == []


def test_a_damaged_checkpoint_in_a_store_arrives_under_no_name(s3, tmp_path, capsys):
    run = make_run(Folder(s3(f"{uuid.uuid4().hex}/atlas")), tmp_path / "made")
    damage(run, "model.safetensors", flip_a_bit)
    assert fetch(run, "--to", tmp_path / "out") == 2
    assert "sha256 differs" in capsys.readouterr().err
    assert names(tmp_path / "out") == []


def test_a_lost_file_is_named(run, tmp_path, capsys):
    (Path(run.location) / "trials" / "t0001" / BEST / "model.safetensors").unlink()
    assert fetch(run, "--to", tmp_path / "out") == 2
    assert "model.safetensors missing" in capsys.readouterr().err
    assert names(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--top", "0"], "--top 0: at least one"),
        (["--metric", "val_auc"], "--metric: metric 'val_auc' is not reported (did you mean 'val_auroc'?)"),
    ],
)
def test_bad_flags_are_named(run, tmp_path, capsys, words, message):
    assert fetch(run, "--to", tmp_path / "out", *words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_run_and_a_run_without_checkpoints_have_different_errors(run, tmp_path, capsys):
    assert fetch(tmp_path, "--to", tmp_path / "out") == 2
    assert "not a run folder" in capsys.readouterr().err
    shutil.rmtree(Path(run.location) / "trials")
    assert fetch(run, "--to", tmp_path / "out") == 2
    assert "no trial has finished an epoch yet" in capsys.readouterr().err


def test_a_target_that_is_a_file_is_named(run, tmp_path, capsys):
    (tmp_path / "out").write_text("x")
    assert fetch(run, "--to", tmp_path / "out") == 2
    assert f"--to {tmp_path / 'out'}: cannot be written" in capsys.readouterr().err


# ---- on a cluster's head (tests/rehearsals fetches from one)

LOCAL = {
    "cluster_name": "nobody",
    "provider": {"type": "local", "head_ip": "127.0.0.1", "worker_ips": []},
    "auth": {"ssh_user": "nobody"},
    "metadata": {"storage": "/srv/runs"},
    "head_start_ray_commands": ["ray start --head --dashboard-port=8266"],
}
PODS = {"kind": "RayCluster", "metadata": {"annotations": {"fracray/storage": "/srv/runs"}}, "spec": {}}


@pytest.fixture
def cluster_file(tmp_path):
    """A function that writes a cluster file, with another storage if that is given, and returns its path."""

    def write(tree, **metadata):
        path = tmp_path / "cluster.yaml"
        path.write_text(yaml.safe_dump({**tree, "metadata": metadata} if metadata else tree))
        return path

    return write


def test_a_name_stands_for_a_run_in_the_storage_of_the_cluster_file(cluster_file, stored, tmp_path):
    """A bucket is read from here; no head is asked."""
    address, _, query = stored.location.partition("?")
    storage = f"{address.rpartition('/')[0]}?{query}"
    assert fetch("atlas", "--cluster", cluster_file(LOCAL, storage=storage), "--to", tmp_path / "out") == 0
    assert names(tmp_path / "out") == ["t0001"]


@pytest.mark.parametrize(
    ("tree", "run", "place"),
    [
        (LOCAL, "atlas", "/srv/runs/atlas"),
        (LOCAL, "/other/atlas", "/other/atlas"),
        (LOCAL, "~/runs/atlas", "~/runs/atlas"),
        (PODS, "s3://b/atlas", "s3://b/atlas"),
        (PODS, "atlas", "/srv/runs/atlas"),
    ],
)
def test_where_a_run_is_as_the_machines_of_the_cluster_name_it(cluster_file, tree, run, place):
    assert place_of(read_cluster(cluster_file(tree)), run) == place


def test_a_name_without_a_storage_and_a_head_without_ssh_are_reported(cluster_file, tmp_path, capsys):
    assert fetch("atlas", "--cluster", cluster_file(LOCAL, data="/x"), "--to", tmp_path / "out") == 2
    assert "does not say where runs are kept" in capsys.readouterr().err
    assert fetch("atlas", "--cluster", cluster_file(PODS), "--to", tmp_path / "out") == 2
    assert "kubectl cp" in capsys.readouterr().err
    (tmp_path / "slurm.sh").write_text("#!/bin/bash\n#SBATCH --nodes=2\n")
    assert fetch("/all/atlas", "--cluster", tmp_path / "slurm.sh", "--to", tmp_path / "out") == 2
    assert "run fetch with this path on a machine that sees it" in capsys.readouterr().err
    assert fetch("atlas", "--cluster", tmp_path / "none.yaml", "--to", tmp_path / "out") == 2
    assert "no such cluster file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_is_not_installed_is_named(cluster_file, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert fetch("atlas", "--cluster", cluster_file(LOCAL), "--to", tmp_path / "out") == 2
    assert capsys.readouterr().err.startswith("error: ssh is not installed here")


@pytest.mark.skipif(shutil.which("ssh") is None, reason="not installed here: ssh")
def test_a_cluster_that_is_not_up_is_reported_in_one_line(cluster_file, tmp_path, capsys, monkeypatch):
    for name in ("TMPDIR", "RAY_TMPDIR"):  # where Ray notes what is up
        monkeypatch.setenv(name, str(tmp_path))
    file = cluster_file(LOCAL)
    assert fetch("atlas", "--cluster", file, "--to", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert error.startswith(f"failed: {file}: the command on its head failed: no `ray up` on this machine")
    assert error.count("\n") == 1


# ---- out of a run that real trials left


def test_the_best_epoch_of_real_trials_is_fetched(tmp_path):
    random = np.random.default_rng(0)
    labels = np.tile([0, 1], 40)
    images = (random.integers(0, 120, (80, 32, 32)) + 60 * labels[:, None, None]).astype(np.uint8)
    table = pd.DataFrame(
        {
            "image_id": [f"i{row}" for row in range(80)],
            "group": [f"g{row // 4}" for row in range(80)],
            "label": labels,
            "split": ["train"] * 48 + ["val"] * 32,
            "pixel_hash": [f"p{row}" for row in range(80)],
            "look": b"",
            "width": 32,
            "height": 32,
            "brightness": images.mean(axis=(1, 2)),
        }
    )
    run = Folder(tmp_path / "run")
    run.write("config.yaml", CONFIG.to_yaml())
    shards = Shards(Folder(tmp_path), 32, (ShardFile("part-0.parquet", 0, 80),))
    job = Job(CONFIG, run, shards, table, "print", (table["split"].to_numpy(),), ("val_accuracy",), images)
    for number, rate in enumerate((1e-5, 1e-2)):
        session = TrialRunner(job, number, {"train.lr": rate})
        while not session.done:
            session.run_epoch()
        session.close()
    best = {}
    for number in (0, 1):
        history = json.loads((tmp_path / "run" / "trials" / f"t{number:04d}" / EPOCHS).read_text())
        best[number] = (-max(epoch["val_accuracy"] for epoch in history), number)
    winner = min(best.values())[1]
    assert fetch(run, "--to", tmp_path / "out") == 0
    metadata = read_metadata(tmp_path / "out" / f"t{winner:04d}")
    assert metadata.metrics["val_accuracy"] == -min(best.values())[0]
    assert metadata.config.train.lr == (1e-5, 1e-2)[winner]
    assert metadata.data_fingerprint == "print"
