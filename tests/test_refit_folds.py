"""python -m fracray.refit --folds: the ensemble of all models of the winner's trainings, and all that takes it."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from fracray.data.prepare import prepare
from fracray.errors import InputError
from fracray.evaluate import main as evaluate
from fracray.evaluation.inference import predict
from fracray.export import main as export
from fracray.fetch import main as fetch
from fracray.metrics import fit_temperature
from fracray.predict import main as predict_files
from fracray.refit import main as refit
from fracray.runtime.console import new_console
from fracray.serving.card import model_card
from fracray.training.checkpoint import load_checkpoint, read_predictions, verify
from fracray.tune import main as tune
from tests.test_refit import ALONE, SPACE, write_space

FOLDS = "block: 10, guard: 0, protocol: kfold, folds: 3"
MODELS = [f"t0000-seed{seed}{fold}" for seed in (1, 2) for fold in ("", "-fold2")]


@pytest.fixture(scope="module")
def run(ray_local, tmp_path_factory):
    """A search of one trial, refitted with two seeds over the two folds that are not test."""
    folder = tmp_path_factory.mktemp("runs")
    space = write_space(folder, SPACE.replace("block: 10", FOLDS).replace("epochs: 2", "epochs: 4"))
    tune(["--space", str(space), "--storage", str(folder), "--name", "folds", "--trials", "1", *ALONE])
    refit([str(folder / "folds"), "--top", "1", "--seeds", "2", "--folds", *ALONE])
    return folder / "folds"


@pytest.fixture(scope="module")
def best(run):
    return load_checkpoint(run / "best")


@pytest.fixture(scope="module")
def data(best):
    return prepare(best.metadata.config.data, new_console())


@pytest.fixture(scope="module")
def logits(best, data):
    """Of every member, a column each, on every image."""
    table = {one.metadata.trial: predict(one, data.shards, data.rows("all"), new_console()) for one in best.members}
    return pd.DataFrame(table).set_index(data.table["image_id"].to_numpy())


def test_the_models_of_all_folds_are_its_members(run, best, data):
    assert [one.metadata.trial for one in best.members] == MODELS
    assert sorted(path.name for path in (run / "best/members").iterdir()) == sorted(MODELS)
    verify(run / "best")
    assert best.out_of_fold
    tested = set(data.table["image_id"].iloc[data.rows("test")])
    parts = [one.seen.groupby("split")["image_id"].apply(set) for one in best.members]
    for (first, second), cells in zip((parts[:2], parts[2:]), (data.rotations, data.rotations), strict=True):
        assert first["val"] == set(data.table["image_id"][cells[0] == "val"]) == second["train"]
        assert second["val"] == set(data.table["image_id"][cells[1] == "val"]) == first["train"]
    assert not tested & set.union(*(one["train"] | one["val"] for one in parts))


def test_a_model_says_nothing_of_an_image_that_it_was_trained_on(run, best, data, logits):
    kept = best.predictions.set_index("image_id")
    assert sorted(kept.index) == sorted(data.table["image_id"][data.table["split"] != "test"])
    assert set(kept["split"]) == {"val"}
    apart = pd.DataFrame(
        {
            one.metadata.trial: logits[one.metadata.trial].where(
                logits.index.isin(one.seen["image_id"][one.seen["split"] == "val"])
            )
            for one in best.members
        }
    ).loc[kept.index]
    assert set(apart.notna().sum(axis=1)) == {2}, "of each seed one model"
    np.testing.assert_allclose(kept["logit"], apart.mean(axis=1), atol=1e-5)
    assert np.abs(kept["logit"] - logits.loc[kept.index].mean(axis=1)).max() > 0.01
    card = best.metadata
    assert card.calibration == fit_temperature(kept["label"], kept["logit"])
    assert card.metrics["val_n"] == len(kept)
    called = card.calibration.apply(kept["logit"]) >= card.threshold
    assert card.metrics["val_accuracy"] == pytest.approx(np.mean(called == kept["label"]))
    page = (run / "report.html").read_text()
    assert "Every fold is scored by the networks that were not trained on it" in page
    assert " under the " not in page, "maps of pictures that most of the networks know"
    assert model_card(best, 0.9)["validation"]["images"] == len(kept)


def test_a_new_image_is_judged_by_all_and_one_of_validation_by_what_was_kept(run, best, data, logits, tmp_path, capsys):
    def told(*words):
        evaluate([str(run), "--json", str(tmp_path / "scores.json"), *words])
        tree = json.loads((tmp_path / "scores.json").read_text())
        return tree, pd.DataFrame(tree["predictions"]).set_index("image_id")["probability"]

    tree, found = told()
    assert len(found) == len(data.rows("test"))
    expected = best.metadata.calibration.apply(logits.loc[found.index].mean(axis=1))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert tree["checkpoints"][0]["members"] == MODELS
    capsys.readouterr()
    tree, found = told("--split", "val", "--operating-points", "--by", "region")
    kept = best.predictions.set_index("image_id")["logit"]
    assert sorted(found.index) == sorted(kept.index)
    np.testing.assert_allclose(found, best.metadata.calibration.apply(kept[found.index]), atol=1e-6)
    for name in ("accuracy", "auroc", "brier", "ece"):
        assert tree["scores"][name]["value"] == pytest.approx(best.metadata.metrics[f"val_{name}"]), name
    assert "scored by the members that were not trained on it" in " ".join(capsys.readouterr().out.split())
    for flag in ("--saliency", "--corruptions"):
        with pytest.raises(InputError, match=f"{flag}: each radiograph of val was trained on by some members"):
            evaluate([str(run), "--split", "val", flag])
    with pytest.raises(InputError, match="were trained or validated on"):
        evaluate([str(run / "refit/trials/t0000-seed1/best"), "--split", "val", "--against", str(run)])


def test_what_any_member_was_trained_on_was_seen_in_training(run, best, data, logits, tmp_path):
    of_members = set.union(*(set(one.seen["image_id"]) for one in best.members))
    assert set(best.seen["image_id"]) == of_members
    assert best.seen["image_id"].is_unique
    predict_files([str(run), str(data.manifest.root), "--to", str(tmp_path / "out.parquet")])
    found = pd.read_parquet(tmp_path / "out.parquet").set_index("image_id")
    np.testing.assert_allclose(found["logit"], logits.loc[found.index].mean(axis=1), atol=1e-5)
    assert set(found.loc[sorted(of_members), "seen_in_training"]) == {"train"}
    fresh = found.drop(index=of_members)
    assert (fresh["seen_in_training"] == "no").mean() > 0.9
    assert found["distance"].notna().all(), "a member's validation says how far is far"


def test_an_export_has_the_logits_of_all_members(run, tmp_path, capsys):
    export([str(run), "--to", str(tmp_path / "x.pt2"), "--format", "torch-export"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "gives the network's own float32 logits" in shown
    assert "radiographs of its validation" in shown


def test_it_is_fetched_whole(run, best, tmp_path):
    fetch([str(run), "--to", str(tmp_path)])
    fetched = load_checkpoint(tmp_path / "ensemble")
    assert fetched.metadata == best.metadata
    assert [one.metadata.trial for one in fetched.members] == MODELS


def test_a_seed_more_adds_its_models_and_without_those_of_a_fold_the_first_ones_remain(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "folds")
    refit([str(tmp_path / "folds"), "--resume", "--seeds", "3", *ALONE])
    names = [one.metadata.trial for one in load_checkpoint(tmp_path / "folds/best").members]
    assert names == [*MODELS, "t0000-seed3", "t0000-seed3-fold2"]
    shutil.rmtree(tmp_path / "folds/refit/trials/t0000-seed1/best-fold2")  # as an older version left it
    assert "older version" not in capsys.readouterr().out
    refit([str(tmp_path / "folds"), "--resume", *ALONE])
    assert "which kept the first fold's model alone" in " ".join(capsys.readouterr().out.split())
    first = load_checkpoint(tmp_path / "folds/best")
    assert [one.metadata.trial for one in first.members] == [f"t0000-seed{seed}" for seed in (1, 2, 3)]
    assert not first.out_of_fold
    alone = read_predictions(tmp_path / "folds/refit/trials/t0000-seed1/best")
    assert first.metadata.metrics["val_n"] == len(alone) == len(first.predictions)
