"""python -m fracray.evaluate: on the split of the training, on data never seen, on real radiographs."""

import hashlib
import json
import os
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import accuracy_score, average_precision_score, brier_score_loss, roc_auc_score

from fracray.config import Config, PhantomConfig, parse_assignments
from fracray.data.__main__ import main as data
from fracray.data.images import corruptions
from fracray.data.images.corruptions import NAMES
from fracray.data.phantom.draw import write_phantoms
from fracray.data.prepare import prepare
from fracray.errors import InputError
from fracray.evaluate import SEVERITIES, main, read_severities
from fracray.evaluation.inference import network
from fracray.metrics import FEWEST_GROUPS
from fracray.runtime.console import new_console
from fracray.train import main as train
from fracray.training.checkpoint import SEEN_COLUMNS, load_checkpoint, read_metadata, read_predictions, save_checkpoint

SMALL = [
    "--set",
    "data.size=32",
    "--set",
    "data.phantom.count=150",
    "--set",
    "data.split.block=10",
    "--set",
    "model.width=8",
]


@pytest.fixture(scope="module")
def run(ray_local, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    small = [*SMALL, "--set", "train.precision=bf16", "--epochs", "3", "--cpus-per-worker", "1"]
    train([*small, "--storage", str(folder), "--name", "run"])
    return folder / "run/trials/t0000/best"


def evaluate(checkpoint, tmp_path, *more):
    main([str(checkpoint), "--json", str(tmp_path / "scores.json"), *more])
    return json.loads((tmp_path / "scores.json").read_text())


def test_scores_of_the_test_split_are_those_of_its_predictions(run, tmp_path, capsys):
    scores = evaluate(run, tmp_path)
    out = capsys.readouterr().out
    assert scores["split"] == "test"
    assert scores["warnings"] == []
    prepared = prepare(read_metadata(run).config.data, new_console())
    expected = prepared.table.iloc[prepared.rows("test")]
    assert [p["image_id"] for p in scores["predictions"]] == list(expected["image_id"])
    labels = [p["label"] for p in scores["predictions"]]
    probabilities = np.array([p["probability"] for p in scores["predictions"]])
    assert labels == list(expected["label"])
    decided = probabilities >= read_metadata(run).threshold
    known = {
        "accuracy": accuracy_score(labels, decided),
        "auroc": roc_auc_score(labels, probabilities),
        "average_precision": average_precision_score(labels, probabilities),
        "brier": brier_score_loss(labels, probabilities),
    }
    for name, value in known.items():
        assert scores["scores"][name]["value"] == pytest.approx(value, abs=1e-4), name
    assert scores["groups"] < FEWEST_GROUPS
    assert {each["low"] for each in scores["scores"].values()} == {None}
    assert f"there are only {scores['groups']} groups, and an interval needs at least 5" in out
    assert "nan" not in out
    for words in ("accuracy", "AUROC", "95% interval", "no pixel", "id neighbours", "calibration slope"):
        assert words in out


def test_validation_scores_are_the_trainings_own(run, tmp_path):
    scores = evaluate(run, tmp_path, "--split", "val")
    metadata, kept = read_metadata(run), read_predictions(run)
    for name in ("accuracy", "brier", "ece"):  # the last two cross-fitted, here as there
        assert scores["scores"][name]["value"] == pytest.approx(metadata.metrics[f"val_{name}"], abs=1e-5), name
    by_id = {p["image_id"]: p["probability"] for p in scores["predictions"]}
    ours = np.array([by_id[name] for name in kept["image_id"]])
    # Trained in bf16, with batches of another size: equal all the same, as both are in float32.
    assert np.abs(ours - metadata.calibration.apply(kept["logit"].to_numpy())).max() < 1e-5


def test_a_checkpoint_is_scored_in_the_arithmetic_that_its_threshold_was_fixed_in(run, tmp_path):
    old = shutil.copytree(run, tmp_path / "old")
    card = json.loads((old / "config.json").read_text())
    assert card.pop("arithmetic") == "float32"
    (old / "config.json").write_text(json.dumps(card | {"format": 1}))  # of a version that validated as it trained
    images = np.random.default_rng(0).integers(0, 256, (9, 32, 32), dtype=np.uint8)
    checkpoint = load_checkpoint(run)
    model = checkpoint.model.to(memory_format=torch.channels_last)
    batch = torch.from_numpy(images).unsqueeze(1)
    with torch.inference_mode():
        exact = model(batch).numpy()
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(batch).float().numpy()
    assert np.abs(exact - rounded).max() > 1e-4
    assert np.allclose(network(checkpoint)(images), exact, atol=1e-5)
    assert np.array_equal(network(load_checkpoint(old))(images), rounded)


def test_data_that_was_never_seen_is_scored_completely(run, tmp_path, capsys):
    other = write_phantoms(tmp_path / "other hospital", PhantomConfig(count=60, seed=9))
    scores = evaluate(run, tmp_path, "--data", str(other))
    assert scores["split"] == "all"
    assert len(scores["predictions"]) == 60
    assert "without what its training is known to have seen" in capsys.readouterr().out
    assert {baseline["part"] for baseline in scores["data"]["baselines"]} == {"all"}
    with pytest.raises(InputError, match="--split all"):
        main([str(run), "--data", str(other), "--split", "test"])


def test_training_pictures_that_were_encoded_again_are_left_out(run, tmp_path, capsys):
    """60 of 60 saved again as JPEG went undetected, and were scored as radiographs "which its training never saw"."""
    prepared = prepare(read_metadata(run).config.data, new_console())
    trained = prepared.table.iloc[prepared.rows("train")[:30]]
    atlas = write_phantoms(tmp_path / "drawn", PhantomConfig(count=60, seed=9))
    for folder, label in (("Non_fractured", 0), ("Fractured", 1)):
        shutil.copytree(atlas / "images" / folder, tmp_path / "mixed" / folder)
        for number, path in enumerate(trained["path"][trained["label"] == label]):
            gray = cv2.imread(str(prepared.manifest.root / path), cv2.IMREAD_GRAYSCALE)
            smaller = cv2.resize(gray, None, fx=0.7, fy=0.7, interpolation=cv2.INTER_AREA) if number % 2 else gray
            cv2.imwrite(str(tmp_path / f"mixed/{folder}/again{number}.jpg"), smaller, [cv2.IMWRITE_JPEG_QUALITY, 60])
    data(["import", str(tmp_path / "mixed"), "--to", str(tmp_path / "set")])
    capsys.readouterr()
    scores = evaluate(run, tmp_path, "--data", str(tmp_path / "set"))
    assert "note: 30 of 90 radiographs were trained or validated on, 0 with equal pixels and 30" in said(capsys)
    assert not any("again" in prediction["image_id"] for prediction in scores["predictions"])
    old = made_of(run, tmp_path / "old", {})
    (old / "config.json").write_text(json.dumps(without_looks(old)))
    assert len(evaluate(old, tmp_path, "--data", str(tmp_path / "set"))["predictions"]) == 90
    assert "the checkpoint is of an older version: copies that were encoded again cannot be found" in said(capsys)


def said(capsys):
    return " ".join(capsys.readouterr().out.split())


def without_looks(folder):
    """Make the list of seen images what older versions wrote; returns the card that fits."""
    path = folder / "seen.parquet"
    pd.read_parquet(path).drop(columns="look").to_parquet(path, index=False)
    card = json.loads((folder / "config.json").read_text())
    card["sha256"]["seen.parquet"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return card


def test_a_checkpoint_from_elsewhere_does_not_choose_what_is_opened(run, tmp_path):
    other = write_phantoms(tmp_path / "other", PhantomConfig(count=60, seed=9))
    foreign = made_of(run, tmp_path / "foreign", {"data.source": str(other), "data.cache": str(tmp_path / "theirs")})
    with pytest.raises(InputError, match=r"foreign: was trained on .*other'; name the data with --data"):
        main([str(foreign)])
    assert evaluate(foreign, tmp_path, "--data", str(other))["split"] == "all"
    assert not (tmp_path / "theirs").exists()


@pytest.mark.parametrize(
    ("folder", "word", "undefined"),
    [("Fractured", "fractured", "specificity"), ("Non_fractured", "not fractured", "sensitivity")],
)
def test_a_set_of_one_class_is_checked_and_evaluated_and_not_trained_on(run, tmp_path, capsys, folder, word, undefined):
    other = write_phantoms(tmp_path / "other", PhantomConfig(count=60, seed=9))
    shutil.copytree(other / "images" / folder, tmp_path / "own" / folder)
    data(["import", str(tmp_path / "own"), "--to", str(tmp_path / "set"), "--one-class"])
    capsys.readouterr()
    data(["check", str(tmp_path / "set"), "--set", "data.size=32"])
    assert f"split: none, because all used images are {word}; such a set can be evaluated" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"not of both classes .* can be evaluated, not trained on"):
        train([*SMALL, "--epochs", "1", "--data", str(tmp_path / "set"), "--storage", str(tmp_path), "--name", "one"])
    scores = evaluate(run, tmp_path, "--data", str(tmp_path / "set"))["scores"]
    for name in ("auroc", "balanced_accuracy", undefined):
        assert scores[name] == {"value": None, "low": None, "high": None}
    assert 0 <= scores["accuracy"]["value"] <= 1
    out = capsys.readouterr().out
    assert f"note: all of these radiographs are {word}: {undefined}, balanced accuracy" in out
    assert "nan" not in out
    with pytest.raises(InputError, match=r"--corruptions: all radiographs are of one class"):
        evaluate(run, tmp_path, "--data", str(tmp_path / "set"), "--corruptions", "--severities", "1")


def test_unknown_patients_are_said_with_what_they_make_of_the_intervals(run, tmp_path, capsys):
    other = write_phantoms(tmp_path / "drawn", PhantomConfig(count=60, seed=9))
    for folder in ("Non_fractured", "Fractured"):
        (tmp_path / "unnamed" / folder).mkdir(parents=True)
        for file, name in zip(sorted((other / "images" / folder).iterdir()), "abcdefgh", strict=False):
            shutil.copy(file, tmp_path / "unnamed" / folder / f"{folder[0]}{name}{file.suffix}")
    data(["import", str(tmp_path / "unnamed"), "--to", str(tmp_path / "set")])
    (warning,) = evaluate(run, tmp_path, "--data", str(tmp_path / "set"))["warnings"]
    assert warning.startswith("no patient and no file number is known: ")
    assert "intervals may be too narrow" in warning
    assert f"warning: {warning}" in capsys.readouterr().out


def test_a_copy_of_the_training_data_elsewhere_is_known_again(run, tmp_path):
    copy = write_phantoms(tmp_path / "copy", PhantomConfig(count=150, seed=0))
    assert evaluate(run, tmp_path, "--data", str(copy))["split"] == "test"


def test_images_of_the_training_are_left_out_of_data_that_is_not_quite_the_same(run, tmp_path, capsys):
    grown = write_phantoms(tmp_path / "grown", PhantomConfig(count=170, seed=0))  # the 150 and 20 more
    scores = evaluate(run, tmp_path, "--data", str(grown))
    seen = set(
        prepare(read_metadata(run).config.data, new_console()).table.query("split in ('train', 'val')")["image_id"]
    )
    assert len(scores["predictions"]) == 170 - len(seen)
    assert not seen & {p["image_id"] for p in scores["predictions"]}
    assert f"{len(seen)} of 170 radiographs were trained or validated on" in capsys.readouterr().out


def test_shifted_sets_are_scored_next_to_the_test_part(ray_local, tmp_path, capsys):
    shifts = ["--set", "data.split.shifts=[exposure, severity]", "--set", "data.phantom.count=300"]
    train([*SMALL, *shifts, "--epochs", "2", "--storage", str(tmp_path), "--name", "run", "--cpus-per-worker", "1"])
    run = tmp_path / "run"
    sets = {"val", "val/exposure", "val/severity"}
    history = json.loads((run / "trials/t0000/epochs.json").read_text())
    for epoch in history:
        assert epoch["worst_val_accuracy"] == min(epoch[f"{name}_accuracy"] for name in sets)
        assert epoch["mean_val_auroc"] == pytest.approx(np.mean([epoch[f"{name}_auroc"] for name in sets]))
    kept = read_predictions(run / "best")
    metadata = read_metadata(run / "best")
    for name in sets:
        mine = kept[kept["split"].map(lambda cell, name=name: name in cell.split("+"))]
        decided = metadata.calibration.apply(mine["logit"].to_numpy()) >= metadata.threshold
        assert metadata.metrics[f"{name}_accuracy"] == pytest.approx(accuracy_score(mine["label"], decided))
    capsys.readouterr()

    scores = evaluate(run, tmp_path)
    out = capsys.readouterr().out
    assert set(scores["sets"]) == {"test/exposure", "test/severity"}
    for name in ("test", "test/exposure", "test/severity"):
        assert name in out
    alone = evaluate(run, tmp_path, "--split", "test/exposure")
    for name, interval in scores["sets"]["test/exposure"].items():  # batches of another size round otherwise
        for end, value in interval.items():
            found = alone["scores"][name][end]
            assert found is value is None or found == pytest.approx(value, rel=1e-6), (name, end)
    with pytest.raises(InputError, match=r"--split test/exposur: there is no such set \(did you mean 'test/exposure'"):
        main([str(run), "--split", "test/exposur"])

    again = ["--set", f"data.split.file={run / 'manifest.parquet'}", "--storage", str(tmp_path), "--name", "again"]
    train([*SMALL, *shifts, *again, "--epochs", "2", "--cpus-per-worker", "1"])
    repeated = json.loads((tmp_path / "again/trials/t0000/epochs.json").read_text())
    assert [epoch["worst_val_accuracy"] for epoch in repeated] == [epoch["worst_val_accuracy"] for epoch in history]

    data = json.loads((run / "data.json").read_text())
    assert set(data["parts"]) == {"train", *sets, "test", "test/exposure", "test/severity"}
    assert {one["part"] for one in data["baselines"]} == set(data["parts"]) - {"train"}


def test_a_split_that_changed_since_the_training_is_refused(ray_local, tmp_path):
    split = tmp_path / "split.parquet"

    def divide(seed):
        config = Config().with_leaves(parse_assignments([*SMALL[1::2], f"data.split.seed={seed}"]))
        prepare(config.data, new_console()).manifest.write(split)

    divide(0)
    stored = [*SMALL, "--set", f"data.split.file={split}", "--cpus-per-worker", "1", "--storage", str(tmp_path)]
    train([*stored, "--epochs", "1", "--name", "run"])
    complete = evaluate(tmp_path / "run", tmp_path)
    assert complete["split"] == "test"
    divide(7)
    with pytest.raises(InputError, match=r"split\.parquet has changed since the training.*trained or validated on"):
        main([str(tmp_path / "run")])
    with pytest.raises(InputError, match="was started on another split"):
        train(["--storage", str(tmp_path), "--name", "run", "--resume", "--cpus-per-worker", "1"])
    split.unlink()
    with pytest.raises(InputError, match=r"split\.parquet: no such manifest"):
        main([str(tmp_path / "run")])


def test_the_folds_of_one_split_are_pooled_each_scored_by_the_checkpoint_that_never_saw_it(run, tmp_path):
    folds = ["--set", "data.split.protocol=kfold", "--set", "data.split.folds=3"]
    for fold in range(3):
        where = ["--storage", str(tmp_path), "--name", f"fold{fold}", "--cpus-per-worker", "1"]
        train([*SMALL, *folds, "--set", f"data.split.fold={fold}", "--epochs", "1", *where])
    runs = [str(tmp_path / f"fold{fold}") for fold in range(3)]
    main([*runs, "--json", str(tmp_path / "pooled.json")])
    pooled = json.loads((tmp_path / "pooled.json").read_text())
    assert len({p["image_id"] for p in pooled["predictions"]}) == len(pooled["predictions"]) == 150
    right = 0.0
    for fold in runs:
        one = evaluate(fold, tmp_path)
        alone = {p["image_id"]: p["probability"] for p in one["predictions"]}
        assert alone.items() <= {p["image_id"]: p["probability"] for p in pooled["predictions"]}.items()
        right += one["scores"]["accuracy"]["value"] * one["images"]
    assert pooled["scores"]["accuracy"]["value"] == pytest.approx(right / 150)
    with pytest.raises(InputError, match=r"folds 0, 1, 0; name each fold once"):
        main([*runs[:2], runs[0]])
    with pytest.raises(InputError, match="leave out --data and --split"):
        main([*runs, "--split", "val"])
    with pytest.raises(InputError, match="was trained on protocol grouped"):
        main([runs[0], str(run)])


def test_all_says_that_its_scores_are_optimistic(run, tmp_path, capsys):
    found = evaluate(run, tmp_path, "--split", "all")
    assert len(found["predictions"]) == 150
    out = " ".join(capsys.readouterr().out.split())
    assert "trained on" in out
    # With more groups there are intervals, rough ones, and a perfect model beside the calibration error.
    assert found["groups"] >= FEWEST_GROUPS
    # A slope of probabilities that are nearly alike is not determined.
    told = [each for name, each in found["scores"].items() if name != "calibration_slope" or each["value"] is not None]
    assert all(each["low"] <= each["value"] <= each["high"] for each in told)
    assert f"only {found['groups']} groups: the intervals are rough" in out
    assert f"(up to {found['ece_of_a_perfect_model']:.3f} in 95% of the draws)" in out


def test_a_run_is_its_best_checkpoint_and_one_without_names_its_trials(run, tmp_path):
    folder = run.parent.parent.parent
    assert evaluate(folder, tmp_path)["checkpoints"][0]["trial"] == "t0000"
    unfinished = tmp_path / "unfinished"
    shutil.copytree(folder, unfinished)
    shutil.rmtree(unfinished / "best")
    with pytest.raises(InputError, match="t0000"):
        main([str(unfinished)])


def test_the_shift_suite_of_the_verb(run, tmp_path, capsys):
    scores = evaluate(run, tmp_path, "--corruptions", "--severities", "1,5", "--reference", str(run))
    shifts = scores["corruptions"]
    clean = 1 - scores["scores"]["balanced_accuracy"]["value"]
    assert shifts["clean"]["balanced_error"]["value"] == pytest.approx(clean)
    assert shifts["clean"]["auroc"] == pytest.approx(scores["scores"]["auroc"]["value"])
    assert tuple(shifts["corruptions"]) == NAMES
    for name, row in shifts["corruptions"].items():
        cells = [cell["balanced_error"]["value"] for cell in row["severities"]]
        assert [cell["severity"] for cell in row["severities"]] == [1, 5]
        assert row["mean"]["value"] == pytest.approx(np.mean(cells)), name
        assert row["excess"]["value"] == pytest.approx(np.mean(cells) - clean), name
        # Its own reference: as good as itself.
        assert row["normalised"]["value"] == pytest.approx(1), name
        assert row["relative"]["value"] in (None, pytest.approx(1)), name
    assert shifts["reference"]["corruptions"]["inversion"]["mean"] == shifts["corruptions"]["inversion"]["mean"]
    out = capsys.readouterr().out
    for words in ("corruption suite", "exposure_up", "letterboxed_crop", "rBE", "mean of all", "clearly"):
        assert words in out


def made_of(run, folder, leaves, seen=None):
    """The same weights, said to be of another config, which have seen other radiographs."""
    made = load_checkpoint(run)
    metadata = replace(made.metadata, config=made.metadata.config.with_leaves(leaves))
    save_checkpoint(folder, made.model.state_dict(), metadata, seen=made.seen if seen is None else seen)
    return folder


def test_a_reference_of_another_size_is_shown_the_same_radiographs(run, tmp_path):
    larger = made_of(run, tmp_path / "larger", {"data.size": 40})
    compared = evaluate(run, tmp_path, "--corruptions", "--severities", "3", "--reference", str(larger))["corruptions"][
        "reference"
    ]
    alone = evaluate(larger, tmp_path, "--corruptions", "--severities", "3")["corruptions"]
    assert compared["clean"] == alone["clean"]
    assert compared["corruptions"] == alone["corruptions"]


def test_a_reference_that_has_seen_the_radiographs_is_refused(run, tmp_path):
    table = prepare(read_metadata(run).config.data, new_console()).table
    everything = table[[*SEEN_COLUMNS]].assign(split="train")
    elsewhere = made_of(run, tmp_path / "elsewhere", {"data.split.seed": 1}, everything)
    count = (table["split"] == "test").sum()
    with pytest.raises(
        InputError,
        match=rf"--reference .*same split: {count} of these {count} radiographs were trained or validated on",
    ):
        main([str(run), "--corruptions", "--reference", str(elsewhere)])
    unseen = made_of(run, tmp_path / "unseen", {"data.split.seed": 1}, everything[table["split"] != "test"])
    evaluate(run, tmp_path, "--corruptions", "--severities", "1", "--reference", str(unseen))


def test_the_shift_suite_is_of_one_checkpoint(run):
    with pytest.raises(InputError, match="name a single one"):
        main([str(run), str(run), "--corruptions"])


@pytest.mark.parametrize("words", [["--reference", "x"], ["--severities", "1"]])
def test_what_only_concerns_the_shifts_needs_them(run, words):
    with pytest.raises(InputError, match="only with --corruptions"):
        main([str(run), *words])


@pytest.mark.skipif(
    "FRACRAY_FRACATLAS" not in os.environ, reason="FRACRAY_FRACATLAS names no folder of real radiographs"
)
def test_real_radiographs_from_folder_to_test_scores(ray_local, tmp_path):
    atlas = os.environ["FRACRAY_FRACATLAS"]
    train(
        [
            "--data",
            atlas,
            "--set",
            "data.size=64",
            "--set",
            "model.width=16",
            "--epochs",
            "3",
            "--storage",
            str(tmp_path),
            "--name",
            "real",
        ]
    )
    data = json.loads((tmp_path / "real/data.json").read_text())
    assert data["flow"]["truncated"] == 59
    assert data["flow"]["in_parts"] == sum(part["images"] for part in data["parts"].values())
    assert data["flow"]["used"] == data["flow"]["in_parts"] + data["flow"]["guard"] == 3328
    scores = evaluate(tmp_path / "real/trials/t0000/best", tmp_path, "--data", atlas)
    assert len(scores["predictions"]) == data["parts"]["test"]["images"]
    assert scores["scores"]["auroc"]["value"] > 0.6  # 0.8 after twelve epochs at 128 pixels


def test_severities_are_read_and_anything_else_refused():
    assert SEVERITIES == corruptions.SEVERITIES
    assert read_severities("5, 1,3,3") == (1, 3, 5)
    assert read_severities(",".join(map(str, SEVERITIES))) == SEVERITIES
    for wrong in ("0", "6", "1-3", "", "1,,2", "two"):
        with pytest.raises(InputError, match="--severities"):
            read_severities(wrong)
