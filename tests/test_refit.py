"""python -m fracray.refit on small phantoms: what is trained, what is compared, the ensemble and all that takes it."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import ray
import torch

from fracray.data.prepare import prepare
from fracray.errors import InputError
from fracray.evaluate import main as evaluate
from fracray.evaluation.inference import predict
from fracray.fetch import main as fetch
from fracray.metrics import fit_temperature
from fracray.refit import main as refit
from fracray.runtime.console import new_console
from fracray.search.ensemble import build_ensemble
from fracray.train import main as train
from fracray.training.checkpoint import load_checkpoint, read_metadata, read_predictions, verify
from fracray.tune import main as tune

SPACE = """
metric: val_accuracy
mode: max
trials: 3
epochs: 2
sampler: {name: random, seed: 0}
scheduler: {name: asha, grace_epochs: 1, reduction_factor: 2}
base:
  data: {size: 32, phantom: {count: 200}, split: {block: 10}}
  model: {width: 8}
space:
  model.dropout: {float: [0.0, 0.7]}
  train.lr: {log_float: [1.0e-4, 1.0e-2]}
"""
ALONE = ["--concurrent", "1"]


def write_space(folder, text=SPACE):
    path = folder / "space.yaml"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def searched(ray_local, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    tune(["--space", str(write_space(folder)), "--storage", str(folder), "--name", "search", *ALONE])
    return folder / "search"


@pytest.fixture(scope="module")
def refitted(searched, tmp_path_factory):
    """A copy of the search, refitted: its best configuration and the default, two seeds each."""
    run = tmp_path_factory.mktemp("refitted") / "search"
    shutil.copytree(searched, run)
    refit([str(run), "--top", "1", "--seeds", "2", "--members", "all", *ALONE])
    return run


def best_of(run):
    """The best epoch's metrics of every refit, by name."""
    found = {}
    for file in sorted(run.glob("refit/trials/*/epochs.json")):
        entries = json.loads(file.read_text())
        assert len(entries) == 2, "a refit runs all epochs"
        found[file.parent.name] = {
            name.removeprefix("best_"): value for name, value in entries[-1].items() if name.startswith("best_")
        }
    return found


def test_each_configuration_is_trained_with_each_seed_and_no_other_than_the_searchs(refitted):
    plan = json.loads((refitted / "refit/refit.json").read_text())
    assert 0 in [one["trial"] for one in plan["configurations"]]
    names = {f"t{one['trial']:04d}-seed{seed}" for one in plan["configurations"] for seed in (1, 2)}
    assert set(best_of(refitted)) == names
    for one in plan["configurations"]:
        config = read_metadata(refitted / f"refit/trials/t{one['trial']:04d}-seed2/best").config
        assert config.train.seed == 2
        assert config.model.dropout == pytest.approx(one["leaves"]["model.dropout"])
    table = pd.read_parquet(refitted / "refit/trials.parquet")
    assert len(table) == 2 * len(names)
    assert set(table["state"]) == {"done"}


def test_the_winner_is_never_worse_than_the_default_by_mean(refitted):
    by_configuration = {}
    for name, best in best_of(refitted).items():
        by_configuration.setdefault(name.partition("-")[0], []).append(best["val_accuracy"])
    means = {name: np.mean(values) for name, values in by_configuration.items()}
    winner = read_metadata(refitted / "best").trial
    assert means[winner] == max(means.values()) >= means["t0000"]


def test_the_ensemble_is_the_mean_of_its_members_logits(refitted, tmp_path):
    checkpoint = load_checkpoint(refitted / "best")
    names = [member.metadata.trial for member in checkpoint.members]
    assert sorted(names) == sorted(best_of(refitted))
    prepared = prepare(checkpoint.metadata.config.data, new_console())
    rows = prepared.rows("test")
    each = [
        predict(load_checkpoint(refitted / f"refit/trials/{name}/best"), prepared.shards, rows, new_console())
        for name in names
    ]
    mean = np.mean(each, axis=0)
    np.testing.assert_allclose(predict(checkpoint, prepared.shards, rows, new_console()), mean, atol=1e-6)
    evaluate([str(refitted), "--json", str(tmp_path / "scores.json")])
    scores = json.loads((tmp_path / "scores.json").read_text())
    told = [one["probability"] for one in scores["predictions"]]
    np.testing.assert_allclose(told, checkpoint.metadata.calibration.apply(mean), atol=1e-6)
    assert scores["checkpoints"][0]["members"] == names


def test_the_ensemble_is_calibrated_on_the_mean_logit_of_validation(refitted):
    checkpoint = load_checkpoint(refitted / "best")
    own = read_predictions(refitted / "best")
    members = [read_predictions(member.folder)["logit"].to_numpy() for member in checkpoint.members]
    np.testing.assert_allclose(own["logit"], np.mean(members, axis=0), atol=1e-6)
    inside = own[own["split"] == "val"]
    assert checkpoint.metadata.calibration == fit_temperature(inside["label"], inside["logit"])
    assert {"val_accuracy", "val_auroc", "val_loss", "val_ece"} <= set(checkpoint.metadata.metrics)
    alone = [set(member.seen["image_id"]) for member in checkpoint.members]
    assert set(checkpoint.seen["image_id"]) == set.union(*alone)


def test_a_soup_is_one_network_of_mean_weights_with_the_logits_of_its_own(refitted, tmp_path):
    members = {path.parent.name: path for path in sorted(refitted.glob("refit/trials/t0000-*/best"))}
    config = read_metadata(next(iter(members.values()))).config
    prepared = prepare(config.data, new_console())
    warm = config.with_leaves({"model.weights": "earlier.safetensors"})  # else no soup is tried
    build_ensemble(tmp_path / "best", members, [*members], warm, "t0000", prepared, "best", new_console())
    soup = load_checkpoint(tmp_path / "soup")
    first, second = (load_checkpoint(path).model.state_dict() for path in members.values())
    for name, tensor in soup.model.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, (first[name] + second[name]) / 2)
    assert (soup.metadata.trial, soup.metadata.config) == ("soup", config)
    assert soup.seen.equals(load_checkpoint(members["t0000-seed1"]).seen)
    saved = read_predictions(tmp_path / "soup")
    rows = pd.Index(prepared.table["image_id"]).get_indexer(saved["image_id"])
    own = predict(soup, prepared.shards, rows, new_console())
    np.testing.assert_allclose(saved["logit"], own, atol=1e-5)


def test_the_ensemble_is_fetched_first_and_its_members_by_the_refits_own_folder(refitted, tmp_path, capsys):
    fetch([str(refitted), "--top", "2", "--to", str(tmp_path)])
    names = [path.name for path in tmp_path.iterdir()]
    assert len(names) == 2
    assert "ensemble" in names
    verify(tmp_path / "ensemble")
    assert load_checkpoint(tmp_path / "ensemble").metadata == read_metadata(refitted / "best")
    fetch([str(refitted), "--top", "2", "--to", str(tmp_path)])  # an equal one is kept
    fetch([str(refitted), "--top", "1", "--metric", "val_auroc", "--to", str(tmp_path / "trials")])
    assert [path.name[:1] for path in (tmp_path / "trials").iterdir()] == ["t"]
    fetch([str(refitted / "refit"), "--top", "99", "--to", str(tmp_path / "members")])
    assert {path.name for path in (tmp_path / "members").iterdir()} == set(best_of(refitted))
    capsys.readouterr()
    evaluate([str(tmp_path / "ensemble"), "--data", "phantom"])
    assert "the ensemble of 4 (t0" in capsys.readouterr().out


def test_a_training_takes_the_winners_config_from_the_ensemble(refitted, tmp_path):
    words = ["--config", str(refitted / "best"), "--epochs", "1", "--storage", str(tmp_path), "--name", "final"]
    train([*words, "--cpus-per-worker", "1"])
    made, asked = read_metadata(tmp_path / "final/best").config, read_metadata(refitted / "best").config
    assert made.model == asked.model
    assert made.train.lr == asked.train.lr
    assert asked.train.seed == 0  # the search's own, not that of a member


def test_a_finished_refit_resumed_trains_nothing_and_more_seeds_are_added(refitted, tmp_path, capsys):
    run = tmp_path / "search"
    shutil.copytree(refitted, run)
    before = {file: file.read_bytes() for file in run.glob("refit/trials/*/epochs.json")}
    with pytest.raises(InputError, match="was refitted already; continue or extend that with --resume"):
        refit([str(run)])
    refit([str(run), "--resume", "--seeds", "1", "--members", "winner", *ALONE])  # nothing is added or taken away
    assert "trainings to run" not in capsys.readouterr().out
    assert len(load_checkpoint(run / "best").members) == 2
    refit([str(run), "--resume", "--top", "1", "--seeds", "3", *ALONE])
    out = capsys.readouterr().out
    assert "2 of 6 trainings to run" in out
    assert "refitted with seeds: 1, 2, 3" in out
    assert {file: file.read_bytes() for file in before} == before


def test_a_search_that_goes_on_keeps_the_ensemble(refitted, tmp_path, capsys):
    run = tmp_path / "search"
    shutil.copytree(refitted, run)
    card = (run / "best/config.json").read_bytes()
    tune(["--storage", str(tmp_path), "--name", "search", "--resume", "--trials", "4", *ALONE])
    assert (run / "best/config.json").read_bytes() == card
    assert f"python -m fracray.refit {run} --top 3 --resume" in capsys.readouterr().out


def test_what_cannot_be_refitted_is_refused(searched, tmp_path):
    for words, match in (
        ([str(searched), "--top", "0"], "--top 0: at least one"),
        ([str(searched), "--seeds", "0"], "--seeds 0: at least one"),
        ([str(searched), "--time-budget", "0"], "--time-budget 0: give a number of seconds above 0"),
        ([str(tmp_path / "nowhere")], "no such run folder"),
        ([str(tmp_path)], "not a run folder"),
        ([str(searched), "--resume"], "was not refitted yet"),
        ([str(searched), "--folds"], "--folds: this search is on data.split.protocol grouped, which has no folds"),
    ):
        with pytest.raises(InputError, match=match):
            refit(words)
    assert not (searched / "refit").exists()


def test_a_training_is_no_search(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one/config.yaml").write_text("{}")
    with pytest.raises(InputError, match=r"not a search \(no space.yaml in it\)"):
        refit([str(tmp_path / "one")])


# ---------------------------------------------------------------- interruption, the end of a search


def test_a_refit_that_was_killed_goes_on_where_it_was(searched, tmp_path):
    run = tmp_path / "search"
    shutil.copytree(searched, run)
    command = [sys.executable, "-m", "fracray.refit", str(run), "--top", "1", "--seeds", "12", *ALONE]
    cluster = ray.get_runtime_context().gcs_address
    with subprocess.Popen(
        [*command, "--address", cluster], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        deadline = time.monotonic() + 240
        while len(list(run.glob("refit/trials/*/best/config.json"))) < 2:
            assert process.poll() is None, process.stdout.read().decode()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    time.sleep(2)  # until Ray has ended the processes of that driver
    before = {file: file.read_bytes() for file in run.glob("refit/trials/*/epochs.json")}
    finished = {file: data for file, data in before.items() if len(json.loads(data)) == 2}
    assert 1 <= len(finished) < 24
    refit([str(run), "--resume", "--top", "1", *ALONE])
    assert len(best_of(run)) == 24
    assert {file: file.read_bytes() for file in finished} == finished
    assert len(load_checkpoint(run / "best").members) in (12, 24)


def test_a_time_budget_leaves_what_was_trained_and_says_how_to_go_on(refitted, tmp_path, capsys):
    run = tmp_path / "search"
    shutil.copytree(refitted, run)
    refit([str(run), "--resume", "--top", "1", "--seeds", "500", "--time-budget", "5", *ALONE])
    out = capsys.readouterr().out
    assert f"the refit is not finished; continue with: python -m fracray.refit {run} --resume" in out
    assert re.search(r"refitted with \d+ of 500 seeds: 1, 2", out)
    assert 4 <= len(list(run.glob("refit/trials/*"))) < 1000
    verify(run / "best")


def test_a_search_refits_at_its_end(searched, tmp_path, capsys):
    shutil.copytree(searched, tmp_path / "search")
    words = ["--storage", str(tmp_path), "--name", "search", "--resume", "--refit", "1", *ALONE]
    tune([*words, "--set", "search.refit.seeds=2"])
    assert "kept back" not in capsys.readouterr().out
    assert len(best_of(tmp_path / "search")) in (2, 4)
    assert load_checkpoint(tmp_path / "search/best").members


def test_a_search_keeps_time_back_for_its_refit(refitted, tmp_path, capsys):
    shutil.copytree(refitted, tmp_path / "search")
    words = ["--storage", str(tmp_path), "--name", "search", "--resume", "--refit", "1", *ALONE]
    tune([*words, "--set", "search.refit.seeds=2", "--trials", "400", "--time-budget", "8"])
    out = capsys.readouterr().out
    # Nothing, where no other trial became the best: then all is trained already.
    kept = r"early: \d+ s of the 8 s were|with its time budget of 8 s; nothing was"
    assert re.search(f"the search ended ({kept}) kept back for the refit", out)
    assert "the search is not finished; continue with: python -m fracray.tune --name search" in out
    assert load_checkpoint(tmp_path / "search/best").members


def test_weights_are_averaged_where_trainings_begin_from_the_same_ones(searched, tmp_path, capsys):
    weights = searched / "best/model.safetensors"
    words = ["--set", f"model.weights={weights}", "--set", "train.lr=1e-5", "--trials", "1", *ALONE]
    text = "\n".join(line for line in SPACE.splitlines() if "train.lr" not in line)
    tune(["--space", str(write_space(tmp_path, text)), "--storage", str(tmp_path), "--name", "begun", *words])
    refit([str(tmp_path / "begun"), "--top", "1", "--seeds", "2", *ALONE])
    said = r"the mean of the weights of t0000's trainings has a val_loss of [\d.]+, (not )?less than the [\d.]+ of its"
    shown = re.search(said, capsys.readouterr().out)
    assert shown
    names = [member.metadata.trial for member in load_checkpoint(tmp_path / "begun/best").members]
    assert names in (["soup"], ["t0000-seed1", "t0000-seed2"])
    if names == ["soup"]:
        capsys.readouterr()
        evaluate([str(tmp_path / "begun")])
        assert "\nsoup, on " in capsys.readouterr().out
        members = [load_checkpoint(path).model for path in sorted(tmp_path.glob("begun/refit/trials/*/best"))]
        for name, tensor in load_checkpoint(tmp_path / "begun/best/members/soup").model.state_dict().items():
            if tensor.is_floating_point():
                mean = (members[0].state_dict()[name] + members[1].state_dict()[name]) / 2
                torch.testing.assert_close(tensor, mean)
    refit([str(tmp_path / "begun"), "--resume", "--members", "winner", *ALONE])
    names = [member.metadata.trial for member in load_checkpoint(tmp_path / "begun/best").members]
    assert names == ["t0000-seed1", "t0000-seed2"]


@pytest.mark.parametrize("trials", ["3", "4"])  # the search is done before, or within its share of the budget
def test_a_refit_that_uses_up_the_budget_was_not_interrupted(refitted, tmp_path, capsys, trials):
    shutil.copytree(refitted, tmp_path / "search")
    words = ["--storage", str(tmp_path), "--name", "search", "--resume", "--refit", "1", *ALONE]
    tune([*words, "--set", "search.refit.seeds=500", "--trials", trials, "--time-budget", "8"])
    out = capsys.readouterr().out
    assert re.search(r"the (search|refit) is not finished; continue with: python -m fracray.tune --name search", out)
    assert trials == "4" or "the refit is not finished" in out
    assert "is taken into it by" not in out  # the command does so itself
