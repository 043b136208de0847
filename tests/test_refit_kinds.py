"""python -m fracray.refit after searches of other kinds: in a store, over folds, by two metrics."""

import json
import re
import shutil
import uuid

import numpy as np
import pandas as pd
import pytest

from fracray.config import PhantomConfig
from fracray.data.manifest import Manifest
from fracray.data.phantom.draw import write_phantoms
from fracray.data.prepare import prepare
from fracray.errors import InputError
from fracray.evaluate import main as evaluate
from fracray.evaluation.inference import predict
from fracray.export import main as export
from fracray.fetch import main as fetch
from fracray.predict import main as predict_files
from fracray.refit import main as refit
from fracray.report import main as report
from fracray.reporting.subject import opened
from fracray.runtime.console import new_console
from fracray.runtime.storage import Folder
from fracray.search import fold_ensemble
from fracray.serving.card import model_card
from fracray.training.checkpoint import load_checkpoint
from fracray.tune import main as tune
from tests.test_refit import ALONE, SPACE, best_of, write_space


def test_a_search_in_a_store_is_refitted_there(ray_local, s3, tmp_path, capsys):
    storage = s3(f"{uuid.uuid4().hex}")
    tune(["--space", str(write_space(tmp_path)), "--storage", storage, "--name", "search", *ALONE])
    run = Folder(storage).sub("search")
    assert run.exists("best/model.safetensors")
    refit([str(run), "--top", "1", "--seeds", "2", *ALONE])
    assert not run.exists("best/model.safetensors")  # of the one that was there before
    fetch([str(run), "--to", str(tmp_path / "out")])
    names = [member.metadata.trial for member in load_checkpoint(tmp_path / "out/ensemble").members]
    assert len(names) in (2, 4)
    capsys.readouterr()
    evaluate([str(run)])
    shown = capsys.readouterr().out
    assert f"the ensemble of {len(names)} ({', '.join(names)})" in " ".join(shown.split())
    assert "gap, validation minus test: accuracy" in shown


def interrupted(*words):
    raise KeyboardInterrupt


def broken(*words):
    raise ZeroDivisionError


def test_with_folds_a_configuration_is_its_mean_over_them(ray_local, tmp_path, capsys, monkeypatch):
    text = SPACE.replace("block: 10", "block: 10, protocol: kfold, folds: 3, guard: 0")
    tune(["--space", str(write_space(tmp_path, text)), "--storage", str(tmp_path), "--name", "crossed", *ALONE])
    run = tmp_path / "crossed"
    with monkeypatch.context() as patched:
        patched.setattr("fracray.search.refit_run.make_job", interrupted)
        with pytest.raises(KeyboardInterrupt):
            refit([str(run), "--top", "1", "--seeds", "1", "--folds", *ALONE])
    refit([str(run), "--resume", *ALONE])  # it knows that it has folds
    out = capsys.readouterr().out
    assert "each the mean over the folds" in out
    tested = json.loads((run / "refit/data.json").read_text())["parts"]["test"]["images"]
    assert all(best["val_n"] == (200 - tested) / 2 for best in best_of(run).values())
    assert load_checkpoint(run / "best").metadata.config.data.split.cross_validate
    evaluate([str(run)])
    doubtful = pd.read_csv(run / "refit/doubtful.csv")
    manifest = Manifest.read(run / "refit/manifest.parquet")
    assert sorted(doubtful["image_id"]) == sorted(manifest.table["image_id"])
    judged = doubtful[doubtful["probability"].notna()]
    assert set(judged["fold"]) == {1, 2}, "0 is test"
    assert len(judged) == 200 - tested
    assert judged["probability"].between(0, 1).all()
    assert f"doubtful labels: {doubtful['flagged'].sum()} of {len(judged)} images flagged" in out
    assert f"{run}/refit/doubtful.html" in out.replace("\n", "")
    assert "Nothing was removed or relabelled" in (run / "refit/doubtful.html").read_text()
    (run / "refit/doubtful.html").unlink()
    shutil.rmtree(run / "best")
    capsys.readouterr()
    with monkeypatch.context() as patched:
        patched.setattr("fracray.search.doubtful.doubtful_page", broken)
        refit([str(run), "--resume", *ALONE])
    out = " ".join(capsys.readouterr().out.split())
    assert "warning: the list of doubtful labels could not be written" in out
    assert "ZeroDivisionError" in out
    assert load_checkpoint(run / "best").members, "the refit is not lost"


def test_one_configuration_of_a_search_by_two_metrics(ray_local, tmp_path, capsys, monkeypatch):
    text = SPACE.replace("metric: val_accuracy", "metric: [val_auroc, val_accuracy]").replace(
        "name: asha", "name: none"
    )
    tune(["--space", str(write_space(tmp_path, text)), "--storage", str(tmp_path), "--name", "two", "--trials", "1"])
    run = tmp_path / "two"
    began = json.loads((run / "environment.json").read_text())
    (run / "environment.json").write_text(json.dumps({**began, "augmentation": 1}))
    capsys.readouterr()
    monkeypatch.setattr("fracray.data.prepare.alone", lambda: False)  # as on a cluster of several machines
    refit([str(run), "--seeds", "1", *ALONE])
    out = capsys.readouterr().out
    assert "only the first, val_auroc, decides which configurations are refitted and which one wins" in out
    assert "refitting 1 configuration (t0000) with 1 seed each: 1 of 1 training to run" in out
    assert "another version of the augmentation" not in out  # it is trained with this one
    assert list(tmp_path.glob("shards/*"))  # where all machines see them
    refit_began = json.loads((run / "refit/environment.json").read_text())
    (run / "refit/environment.json").write_text(json.dumps({**refit_began, "augmentation": 1}))
    refit([str(run), "--resume", *ALONE])
    assert "another version of the augmentation" in capsys.readouterr().out


def test_the_models_of_all_folds_become_one_ensemble_that_is_judged_out_of_fold(ray_local, tmp_path, capsys):
    text = SPACE.replace("block: 10", "block: 10, protocol: kfold, folds: 4, guard: 0").replace(
        "trials: 3", "trials: 1"
    )
    tune(["--space", str(write_space(tmp_path, text)), "--storage", str(tmp_path), "--name", "crossed", *ALONE])
    run = tmp_path / "crossed"
    with pytest.raises(InputError, match="--members folds: the trainings of this refit have one model each"):
        refit([str(run), "--seeds", "2", "--no-folds", "--members", "folds", *ALONE])
    capsys.readouterr()
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("shifts: []", "shifts: [device]"))
    with pytest.raises(InputError, match="--members folds: this search validates on val, val/device, and only on val"):
        refit([str(run), "--seeds", "2", "--members", "folds", *ALONE])
    (run / "config.yaml").write_text(config)
    refit([str(run), "--seeds", "2", "--members", "folds", *ALONE])
    with pytest.raises(InputError, match=r"refit: this refit began with folds; leave --no-folds out"):
        refit([str(run), "--no-folds", "--resume", *ALONE])
    out = " ".join(capsys.readouterr().out.split())
    assert "6 models of t0000: of every fold with 2 seeds" in out
    assert "the ensemble on validation, out of fold:" in out
    best = load_checkpoint(run / "best")
    table = Manifest.read(run / "refit/manifest.parquet").table
    outside = set(table["image_id"][table["split"] != "test"])
    assert best.metadata.out_of_fold
    assert set(best.predictions["image_id"]) == outside == set(best.seen["image_id"])
    assert best.predictions["image_id"].is_unique

    # Each member gives the logits of its fold that are stored, and those of both seeds make the ensemble's.
    prepared = prepare(best.metadata.config.data, new_console())
    told = {}
    assert [member.folder.name for member in best.members] == [
        f"t0000-seed{seed}-fold{fold}" for seed in (1, 2) for fold in (1, 2, 3)
    ]
    for member in best.members:
        rows = pd.Index(prepared.table["image_id"]).get_indexer(pd.Index(member.predictions["image_id"]))
        order = np.argsort(rows)
        logits = predict(member, prepared.shards, rows[order], new_console())
        np.testing.assert_allclose(logits, member.predictions["logit"].to_numpy()[order], atol=1e-5)
        for name, logit in zip(member.predictions["image_id"].to_numpy()[order], logits, strict=True):
            told.setdefault(name, []).append(logit)
    assert {len(each) for each in told.values()} == {2}
    kept = best.predictions.set_index("image_id")["logit"]
    np.testing.assert_allclose(kept, [np.mean(told[name]) for name in kept.index], atol=1e-5)
    with pytest.raises(InputError, match="the split is not that of the training"):
        evaluate([str(run / "best/members/t0000-seed1-fold2"), "--split", "val"])
    rows = prepared.rows("test")
    each = [predict(member, prepared.shards, rows, new_console()) for member in best.members]
    np.testing.assert_allclose(predict(best, prepared.shards, rows, new_console()), np.mean(each, axis=0), atol=1e-5)

    # On 'val' it is never asked about what it was trained on.
    scores = tmp_path / "scores.json"
    evaluate([str(run), "--split", "val", "--json", str(scores)])
    out = " ".join(capsys.readouterr().out.split())
    assert f"on the set val, out of fold: {len(outside)} radiographs" in out
    found = json.loads(scores.read_text())["scores"]
    assert found["auroc"]["value"] == pytest.approx(best.metadata.metrics["val_auroc"])
    assert found["brier"]["value"] == pytest.approx(best.metadata.metrics["val_brier"])
    with pytest.raises(InputError, match=r"--corruptions: each radiograph of val was trained on by some members"):
        evaluate([str(run), "--split", "val", "--corruptions"])
    capsys.readouterr()
    evaluate([str(run)])
    out = capsys.readouterr().out
    assert "gap, validation minus test: accuracy" in out
    assert "a gap below 0 is to be expected" in out

    pictures = tmp_path / "pictures"
    write_phantoms(pictures, PhantomConfig(count=60))
    export([str(run), "--to", str(tmp_path / "net.onnx"), "--format", "onnx", "--data", str(pictures)])
    assert "not of its validation" not in capsys.readouterr().out
    rows = tmp_path / "rows.csv"
    predict_files([str(run), str(pictures), "--to", str(rows)])
    assert "the conformal sets promise no coverage" in " ".join(capsys.readouterr().out.split())
    assert model_card(best, 0.9)["out_of_fold"]
    found = pd.read_csv(rows)
    assert (found["seen_in_training"] == "train").sum() >= 20
    assert found["distance"].notna().all()
    report([str(run)])
    page = (run / "report.html").read_text()
    assert f"On validation, out of fold: {len(outside)} radiographs" in page
    assert "Not counted: each radiograph of validation was trained on by some of the ensemble" in page
    over = {one.name: one.accuracy for one in prepared.over_folds().baselines if one.part == "val"}
    first = {one.name: one.accuracy for one in prepared.baselines if one.part == "val"}
    assert over != first
    with opened(str(run)) as subject:
        assert {one.name: one.accuracy for one in subject.baselines} == pytest.approx(over)
    began = json.loads((run / "refit/environment.json").read_text())
    began["command"] = ["fracray/refit.py", "runs/crossed", "--folds"]
    (run / "refit/environment.json").write_text(json.dumps(began))
    report([str(run)])
    assert "\npython -m fracray.refit runs/crossed --folds</pre>" in (run / "report.html").read_text()

    shutil.rmtree(run / "best")  # as where the first refit was killed before it had one
    refit([str(run), "--resume", *ALONE])
    assert len(load_checkpoint(run / "best").members) == 6
    tune(["--name", "crossed", "--storage", str(tmp_path), "--resume", "--trials", "2", "--refit", "1", *ALONE])
    assert load_checkpoint(run / "best").metadata.out_of_fold
    refit([str(run), "--resume", "--members", "winner", *ALONE])
    assert not load_checkpoint(run / "best").metadata.out_of_fold


def test_a_search_ends_with_the_models_of_all_folds_where_its_space_says_so(ray_local, tmp_path, capsys, monkeypatch):
    text = SPACE.replace("block: 10", "block: 10, protocol: kfold, folds: 3, guard: 0")
    text = f"{text}refit: {{top: 1, seeds: 1, members: folds}}\n"
    words = ["--space", str(write_space(tmp_path, text)), "--storage", str(tmp_path), "--trials", "2", *ALONE]
    with pytest.raises(InputError, match=r"--folds: this search is on data\.split\.protocol grouped"):
        tune([*words, "--name", "grouped", "--set", "data.split.protocol=grouped"])
    assert not (tmp_path / "grouped").exists()
    tune([*words, "--name", "crossed"])
    run = tmp_path / "crossed"
    out = " ".join(capsys.readouterr().out.split())
    assert re.search("2 models of t000[01]: of every fold with 1 seed", out)
    assert "the ensemble on validation, out of fold:" in out
    best = load_checkpoint(run / "best")
    assert best.metadata.out_of_fold
    assert len(best.members) == 2
    shutil.rmtree(run / "refit")
    refit([str(run), *ALONE])  # as the space says, too
    plan = json.loads((run / "refit/refit.json").read_text())
    assert (plan["folds"], plan["members"], plan["seeds"]) == (True, "folds", [1])
    assert len(plan["configurations"]) <= 2  # the best one and the default
    right = fold_ensemble.best_of_folds
    with monkeypatch.context() as patch:  # as where a kill came after best/ and before the state
        patch.setattr(fold_ensemble, "best_of_folds", lambda *of: [(one, epoch - 1) for one, epoch in right(*of)])
        with pytest.raises(
            InputError, match=r"ended while it wrote its last epoch, and its state\.safetensors is older"
        ):
            refit([str(run), "--resume", *ALONE])
    (run / "refit/refit.json").write_text(json.dumps({**plan, "folds": False, "members": "best"}))
    with pytest.raises(InputError, match=r"refit: this refit began without folds; .* or remove that folder"):
        tune(["--name", "crossed", "--storage", str(tmp_path), "--resume", "--trials", "3", *ALONE])
