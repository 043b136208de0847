"""python -m fracray.predict: agreement with the evaluation, bad files, DICOM, zips, lists, and what a kill leaves."""

import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile

import cv2
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import ray
from drawn_dicom import as_bytes, dataset
from drawn_fracatlas import jpeg, picture

from fracray.data.__main__ import main as data
from fracray.data.prepare import prepare
from fracray.errors import InputError, RunError, run_verb
from fracray.evaluation.inference import predict as logits_of
from fracray.evaluation.inference import predict_maps
from fracray.predict import main
from fracray.prediction import running
from fracray.prediction.inputs import find_pictures
from fracray.prediction.reading import Decoder
from fracray.prediction.scoring import COLUMNS, Asked, hash_of
from fracray.runtime.console import new_console
from fracray.runtime.storage import Folder
from fracray.train import main as train
from fracray.training.checkpoint import load_checkpoint, read_metadata, save_checkpoint, save_ensemble

SETTINGS = ("data.size=64", "data.phantom.count=120", "data.split.block=10", "model.width=8", "model.localise=true")


@pytest.fixture(scope="module")
def run(ray_local, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    train([*settings, "--epochs", "2", "--cpus-per-worker", "1", "--storage", str(folder), "--name", "run"])
    return folder / "run/best"


@pytest.fixture(scope="module")
def phantoms(run):
    """The prepared phantoms of the training."""
    return prepare(read_metadata(run).config.data, new_console())


@pytest.fixture(scope="module")
def on_all(run, phantoms, tmp_path_factory):
    """The table of a prediction on the folder of the phantoms."""
    file = tmp_path_factory.mktemp("all") / "out.parquet"
    main([str(run), str(phantoms.manifest.root), "--to", str(file)])
    return pd.read_parquet(file).set_index("image_id")


def predict(checkpoint, folder, *words, name="out.csv"):
    main([str(checkpoint), *map(str, words), "--to", str(folder / name)])
    assert not (folder / f"{name}.parts").exists()
    numbers = ("logit", "probability", "threshold", "call", "distance", "peak_x", "peak_y")
    return pd.read_csv(folder / name, keep_default_na=False, na_values=dict.fromkeys(numbers, ""))


# ---------------------------------------------------------------- what it says


def test_logits_and_peaks_are_those_of_the_evaluation(run, phantoms, on_all):
    assert [*on_all.reset_index()[COLUMNS.names]] == COLUMNS.names
    rows = phantoms.rows("all")
    ours = on_all.loc[phantoms.table["image_id"].iloc[rows]]
    checkpoint = load_checkpoint(run)
    logits = logits_of(checkpoint, phantoms.shards, rows, new_console())
    assert np.abs(ours["logit"] - logits).max() < 1e-6
    metadata = checkpoint.metadata
    assert np.abs(ours["probability"] - metadata.calibration.apply(logits)).max() < 1e-6
    assert (ours["call"] == (ours["probability"] >= metadata.threshold)).all()
    assert set(ours["operating_point"]) == {"accuracy"}
    assert set(ours["checkpoint"]) == {hash_of(run)}
    maps = predict_maps(checkpoint, phantoms.shards, rows, new_console())
    assert (ours["peak_x"].notna() == (maps.max((1, 2)) > maps.min((1, 2)))).all()
    assert (ours["peak_x"] <= phantoms.table["width"].to_numpy()).all()
    assert ours["peak_x"].nunique() > 1


def test_it_says_what_the_training_saw(phantoms, on_all):
    table = phantoms.table.set_index("image_id")
    ours = on_all.loc[table.index, "seen_in_training"]
    part = table["split"].str.split(r"[+/]", regex=True).str[0]
    assert set(ours[part == "train"]) == {"train"}
    assert set(ours[part == "val"]) == {"val"}
    assert (ours[part == "test"] == "no").mean() > 0.9
    assert (on_all["flags"] != "").mean() < 0.25
    validation = on_all.loc[table.index[part == "val"]]
    assert not validation["flags"].str.contains("unlike").any()  # of 20, the limit is the farthest
    assert validation["distance"].notna().all()


def test_conformal_sets_hold_the_label_on_validation(phantoms, on_all):
    """They were fixed there, so this is no more than the definition; what they promise is tested in test_conformal."""
    validation = phantoms.table.iloc[phantoms.rows("val")]
    sets = on_all.loc[validation["image_id"], "conformal"]
    assert set(sets) <= {"0", "1", "0+1", ""}
    held = [str(label) in words.split("+") for label, words in zip(validation["label"], sets, strict=True)]
    assert np.mean(held) >= 0.85


def test_an_ensemble_is_the_mean_of_its_members(run, phantoms, on_all, tmp_path):
    checkpoint = load_checkpoint(run)
    shifted = {name: tensor.clone() for name, tensor in checkpoint.model.state_dict().items()}
    shifted["localiser.weight"] *= 2
    saved = (checkpoint.metadata, checkpoint.predictions, checkpoint.seen)
    save_checkpoint(tmp_path / "second", shifted, *saved)
    save_ensemble(tmp_path / "both", {"a": run, "b": tmp_path / "second"}, *saved)
    some = [str(phantoms.manifest.root / path) for path in phantoms.manifest.table["path"][:9]]
    second, both = (predict(tmp_path / name, tmp_path, *some, name=f"{name}.csv") for name in ("second", "both"))
    first = on_all.loc[both["image_id"], "logit"].to_numpy()
    assert np.abs(first - second["logit"]).max() > 1e-3
    assert np.abs(both["logit"] - (first + second["logit"]) / 2).max() < 1e-5


# ---------------------------------------------------------------- inputs


@pytest.fixture
def mixed(tmp_path):
    """A folder with sound files, broken ones, DICOM files of one study, and a table."""
    folder = tmp_path / "mixed"
    (folder / "series").mkdir(parents=True)
    for seed in range(3):
        (folder / f"x{seed}.jpg").write_bytes(jpeg(picture(seed)))
    for number in (1, 2):
        pixels = picture(10 + number).astype(np.uint16) * 16
        made = dataset(pixels, f"1.2.3.{number}", bits=12, StudyInstanceUID="1.2.99", SeriesInstanceUID="1.2.99.1")
        (folder / f"series/{number}.dcm").write_bytes(as_bytes(made))
    (folder / "cut.jpg").write_bytes(jpeg(picture(5))[:2000])
    (folder / "blank.png").write_bytes(cv2.imencode(".png", np.full((90, 80), 7, np.uint8))[1].tobytes())
    (folder / "text.dcm").write_text("text called .dcm")
    (folder / "notes.csv").write_text("a,b\n")
    return folder


def test_a_file_that_cannot_be_read_has_a_row(run, mixed, tmp_path, capsys):
    found = predict(run, tmp_path, mixed).set_index("path")
    out = capsys.readouterr().out
    assert "6 radiographs, " in out
    assert "2 could not be read: see the column error" in out
    assert "1 other file skipped" in out
    assert len(found) == 8
    failed = found[found["error"] != ""]
    assert {path.rpartition("/")[2] for path in failed.index} == {"cut.jpg", "text.dcm"}
    assert failed["probability"].isna().all()
    assert found.loc[f"{mixed}/cut.jpg", "error"] == "the file is cut short"
    blank = found.loc[f"{mixed}/blank.png"]
    assert "blank" in blank["flags"].split("+")
    assert 0 <= blank["probability"] <= 1
    scan = found.loc[f"{mixed}/series/1.dcm"]
    assert (scan["sop_instance_uid"], scan["study_instance_uid"]) == ("1.2.3.1", "1.2.99")


def test_a_zip_a_list_and_a_folder_give_the_same(run, mixed, tmp_path, monkeypatch):
    by_folder = predict(run, tmp_path, mixed, name="folder.csv")
    with zipfile.ZipFile(tmp_path / "scans.zip", "w") as archive:
        for path in sorted(mixed.rglob("*.*")):
            archive.write(path, path.relative_to(mixed))
    by_zip = predict(run, tmp_path, tmp_path / "scans.zip", name="zip.csv")
    assert by_zip["path"].iloc[0] == f"{tmp_path}/scans.zip/blank.png"
    listed = [*by_folder["path"], str(tmp_path / "gone.png"), "", by_folder["path"].iloc[0]]
    stdin = io.TextIOWrapper(io.BytesIO("\n".join(listed).encode()))
    monkeypatch.setattr(sys, "stdin", stdin)
    by_list = predict(run, tmp_path, "-", name="list.csv")
    assert by_list.iloc[-1][["image_id", "error"]].tolist() == ["gone", "no such file"]
    assert by_list["path"].tolist() == [*by_folder["path"], str(tmp_path / "gone.png")]
    for other in (by_zip, by_list.iloc[:-1]):
        pd.testing.assert_frame_equal(other.drop(columns="path"), by_folder.drop(columns="path"))


def test_an_imported_set_keeps_its_ids(run, tmp_path):
    for name, first in (("fractured", 0), ("normal", 4)):
        (tmp_path / "hospital" / name).mkdir(parents=True)
        for seed in range(first, first + 4):
            (tmp_path / "hospital" / name / f"x{seed}.jpg").write_bytes(jpeg(picture(seed)))
    data(["import", str(tmp_path / "hospital"), "--to", str(tmp_path / "set")])
    found = predict(run, tmp_path, tmp_path / "set")
    assert sorted(found["image_id"]) == [f"x{seed}" for seed in range(8)]
    assert (found["error"] == "").all()


def test_a_study_has_one_row_and_overlays_are_pictures(run, mixed, tmp_path):
    single = predict(run, tmp_path, mixed, name="single.csv")
    found = predict(run, tmp_path, mixed, "--study", "--heatmaps", tmp_path / "maps", name="studies.csv")
    of_study = single[single["study_instance_uid"] == "1.2.99"]
    (row,) = found[found["study_instance_uid"] == "1.2.99"].to_dict("records")
    assert (row["pictures"], row["failed"]) == (2, 0)
    assert row["probability"] == of_study["probability"].max()
    assert len(found) == 7
    overlays = {path.stem: cv2.imread(str(path)) for path in (tmp_path / "maps").iterdir()}
    assert set(overlays) == set(single["image_id"][single["error"] == ""])
    assert overlays["x0"].shape == (512, 410, 3)  # of 200 x 160
    assert (overlays["x0"][..., 2].astype(int) - overlays["x0"][..., 0] > 20).any()  # red


def test_dicom_results_of_each_dicom_file_are_written_once(run, mixed, tmp_path, capsys):
    hd = pytest.importorskip("highdicom")
    from fracray.prediction.dicom_out import NOT_FIRST

    shutil.copy(mixed / "series/1.dcm", mixed / "series/again.dcm")
    found = predict(run, tmp_path, mixed, "--dicom-out", tmp_path / "results").set_index("path")
    out = " ".join(capsys.readouterr().out.split())
    reasons = f"not a DICOM file (4), the file could not be read (2), {NOT_FIRST} (1)"
    assert f"DICOM results of 2 radiographs in {tmp_path}/results; none of 7 files: {reasons}" in out
    assert found["dicom_out"].value_counts().to_dict()["written"] == 2
    assert found.loc[f"{mixed}/series/again.dcm", "dicom_out"] == NOT_FIRST
    names = sorted(path.name for path in (tmp_path / "results").iterdir())
    assert names == [f"1.2.3.{number}-{kind}.dcm" for number in (1, 2) for kind in ("map", "pr", "sc", "sr")]
    row = found.loc[f"{mixed}/series/2.dcm"]
    report = hd.sr.srread(tmp_path / "results/1.2.3.2-sr.dcm")
    (measured,) = report.content.get_image_measurement_groups()[0].get_measurements()
    assert measured.value == pytest.approx(row["probability"], rel=1e-6)
    (peak,) = report.content.get_planar_roi_measurement_groups()
    assert peak.roi.value.ravel().tolist() == pytest.approx([row["peak_x"], row["peak_y"]], abs=1e-3)
    shown = hd.imread(tmp_path / "results/1.2.3.2-map.dcm").get_frame(1)
    assert shown.shape == picture(12).shape
    x, y = (int(min(row[name], side - 1)) for name, side in (("peak_x", 160), ("peak_y", 200)))
    assert shown[y, x] == shown.max()
    with pytest.raises(InputError, match="holds files already"):
        predict(run, tmp_path, mixed, "--dicom-out", tmp_path / "results", name="second.csv")
    predict(run, tmp_path, mixed / "series/2.dcm", "--dicom-out", tmp_path / "other", name="second.csv")
    again = hd.sr.srread(tmp_path / "other/1.2.3.2-sr.dcm")
    assert (again.SOPInstanceUID, again.SeriesInstanceUID) == (report.SOPInstanceUID, report.SeriesInstanceUID)


def test_a_uri_names_a_folder_a_zip_or_a_file(run, mixed, tmp_path, s3, monkeypatch):
    with zipfile.ZipFile(tmp_path / "scans.zip", "w") as archive:
        archive.write(mixed / "x2.jpg", "x2.jpg")
    place = Folder(s3("predicted"))
    for path in (mixed / "x0.jpg", mixed / "x1.jpg"):
        place.write(f"folder/{path.name}", path.read_bytes())
    for path in (mixed / "series/1.dcm", tmp_path / "scans.zip"):
        place.write(path.name, path.read_bytes())
    uris = [s3(f"predicted/{name}") for name in ("folder", "1.dcm", "scans.zip")]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(s3("predicted/gone.png").encode())))
    found = predict(run, tmp_path, *uris, "-")
    expected = [s3(f"predicted/{name}") for name in ("folder/x0.jpg", "folder/x1.jpg", "1.dcm")]
    assert found["path"].tolist()[:3] == expected
    assert found["image_id"].tolist()[:2] == ["x0", "x1"]
    assert found["image_id"].tolist()[3:] == ["x2", "gone"]
    assert (found["error"][:4] == "").all()
    assert "nothing is there" in found["error"][4]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"s3://key:secret@bucket/x.png")))
    with pytest.raises(InputError, match="leave the secret out"):
        predict(run, tmp_path, "-", name="second.csv")


def test_machines_that_see_neither_files_nor_checkpoint_get_them_from_this_one(run, mixed, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "alone", lambda: False)
    rows = []
    pictures = find_pictures([str(mixed)], tmp_path, lambda done, total: None).pictures
    done = np.arange(len(pictures)) % 3 == 0
    running.predict_pictures(pictures, done, run, (64, False), Asked(), rows.append, lambda done, total: None)
    sent = {row["place"]: row["error"] for table in rows for row in table.to_pylist()}
    assert sorted(sent) == np.flatnonzero(~done).tolist()
    assert {pictures[place].image_id for place, error in sent.items() if error} <= {"cut", "text"}
    assert any(not error for error in sent.values())


# ---------------------------------------------------------------- one checkpoint


@pytest.fixture
def replaced(run, tmp_path):
    """A copy of the run's best checkpoint, and a function that puts another one in its place, as a training does."""
    shutil.copytree(run, tmp_path / "best")
    old = load_checkpoint(run)
    weights = {name: tensor + tensor.is_floating_point() * 0.25 for name, tensor in old.model.state_dict().items()}

    def replace():
        metadata = dataclasses.replace(old.metadata, threshold=0.9)
        save_checkpoint(tmp_path / "best", weights, metadata, old.predictions, old.seen)

    return tmp_path / "best", replace


@pytest.mark.parametrize("alone", [True, False])
def test_a_command_keeps_the_checkpoint_that_it_began_with(run, replaced, mixed, tmp_path, monkeypatch, alone):
    best, replace = replaced
    before = predict(run, tmp_path, mixed, name="before.csv")
    begin = running.predict_pictures

    def later(*arguments):
        replace()
        begin(*arguments)

    monkeypatch.setattr(running, "predict_pictures", later)
    monkeypatch.setattr(running, "alone", lambda: alone)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    pd.testing.assert_frame_equal(predict(best, tmp_path, mixed), before, rtol=0, atol=1e-6)
    assert hash_of(best) != before["checkpoint"].iloc[0]
    assert not list(scratch.iterdir())


def test_the_copy_of_a_checkpoint_is_removed_where_the_command_is_interrupted(run, mixed, tmp_path, monkeypatch):
    def interrupted(*arguments):
        assert list(scratch.glob("*/best/config.json"))
        raise KeyboardInterrupt

    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setattr(running, "predict_pictures", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main([str(run), str(mixed), "--to", str(tmp_path / "out.csv")])
    assert not list(scratch.iterdir())


# ---------------------------------------------------------------- interruption


def test_a_prediction_that_was_killed_goes_on_and_ends_as_if_it_had_not_been(run, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for seed in range(40):
        encoded = jpeg(picture(seed, width=500, height=600))
        for copy in range(20):
            (folder / f"{seed:02d}-{copy:02d}.jpg").write_bytes(encoded)
    whole = predict(run, tmp_path, folder, name="whole.csv")
    command = [sys.executable, "-m", "fracray.predict", str(run), str(folder), "--to", str(tmp_path / "killed.csv")]
    parts = tmp_path / "killed.csv.parts"
    with subprocess.Popen(
        [*command, "--address", ray.get_runtime_context().gcs_address],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        deadline = time.monotonic() + 240
        while len(list(parts.glob("rows-*.parquet"))) < 2:
            assert process.poll() is None, process.stdout.read().decode()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    time.sleep(2)  # until Ray has ended the processes of that driver
    assert not (tmp_path / "killed.csv").exists()
    kept = {path: path.stat().st_mtime_ns for path in parts.glob("rows-*.parquet")}
    assert 100 < sum(pq.read_metadata(path).num_rows for path in kept) < len(whole)
    with pytest.raises(InputError, match="holds the rows of a prediction that was stopped, with other inputs"):
        main([str(run), str(folder / "00-00.jpg"), "--to", str(tmp_path / "killed.csv")])
    with pytest.raises(InputError, match="with another --coverage"):
        main([str(run), str(folder), "--to", str(tmp_path / "killed.csv"), "--coverage", "0.8"])
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    again = predict(run, tmp_path, folder, name="killed.csv")
    exact = [name for name in whole if name not in ("logit", "probability")]
    pd.testing.assert_frame_equal(again[exact], whole[exact])
    assert np.abs(again["logit"] - whole["logit"]).max() < 1e-6


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{run}", "{mixed}", "--to", "out.xlsx"], "--to out.xlsx: name a file that ends in .csv, .parquet, .jsonl"),
        (["{run}", "{mixed}", "--to", "there.csv"], "--to there.csv: exists already"),
        (["{run}", "{mixed}", "--to", "nowhere/out.csv"], "--to nowhere/out.csv: its folder does not exist"),
        (["{run}", "nowhere", "--to", "out.csv"], "nowhere: no such file or folder"),
        (["nowhere", "{mixed}", "--to", "out.csv"], "nowhere: no such checkpoint folder or run"),
        (["{mixed}", "{mixed}", "--to", "out.csv"], "not a checkpoint folder"),
        (["{run}", "empty", "--to", "out.csv"], "empty: no radiograph in it: 1 file: 1 CSV (table.csv)"),
        (["{run}", "{mixed}", "--to", "out.csv", "--coverage", "90"], "--coverage 90: expected a share"),
        (["{run}", "{mixed}", "--to", "out.csv", "--heatmaps", "there.csv"], "--heatmaps there.csv: is a file"),
        (["{run}", "{mixed}", "--to", "out.csv", "--heatmaps", "{mixed}"], "to predict on lie in it"),
        (
            ["{run}", "{mixed}/x0.jpg", "--to", "out.csv", "--heatmaps", "{mixed}"],
            "radiographs to predict on lie in it",
        ),
        (["{run}", "{mixed}", "--to", "out.csv", "--dicom-out", "{mixed}/new"], "/mixed, whose pictures are predicted"),
        (["{run}", "{mixed}", "--to", "out.csv", "--dicom-out", "empty"], "--dicom-out empty: holds files already"),
        (["{run}", "{mixed}", "--to", "out.csv", "--dicom-out", "s3://a/b"], "--dicom-out s3://a/b: is a URI"),
        (["{run}", "{mixed}", "--to", "out.csv", "--dicom-out", "m", "--heatmaps", "m"], "is the folder of --heatmaps"),
    ],
)
def test_bad_input_is_one_clear_error(run, mixed, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.csv").write_text("kept")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/table.csv").write_text("a\n")
    assert run_verb(main, [word.format(run=run, mixed=mixed) for word in words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert (tmp_path / "there.csv").read_text() == "kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "mixed", "there.csv"]
    assert sorted(path.name for path in mixed.iterdir() if path.suffix == ".png") == ["blank.png"]


def test_an_output_is_replaced_only_if_asked(run, mixed, tmp_path):
    (tmp_path / "out.csv").write_text("old")
    assert len(predict(run, tmp_path, mixed / "x0.jpg", "--overwrite")) == 1


def test_where_no_file_can_be_read_the_run_has_failed(run, mixed, tmp_path, capsys):
    shutil.copy(mixed / "text.dcm", tmp_path / "other.png")
    words = [str(run), str(tmp_path / "other.png"), str(mixed / "cut.jpg"), "--to", str(tmp_path / "out.jsonl")]
    assert run_verb(main, words) == 1
    assert "none of 2 files could be read" in capsys.readouterr().err
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["image_id"] for row in rows] == ["other", "cut"]
    assert all(row["error"] and row["logit"] is None for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("always", [False, True])
def test_what_a_process_left_that_died_is_tried_again_but_not_for_ever(run, mixed, tmp_path, monkeypatch, always):
    class Dying:
        def __init__(self, *arguments):
            self.decoder = Decoder(*arguments)

        def __call__(self, batch):
            if "x1" in batch["image_id"] and (always or not (tmp_path / "died").exists()):
                (tmp_path / "died").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return self.decoder(batch)

    monkeypatch.setattr(running, "Decoder", Dying)
    found = find_pictures([str(mixed)], tmp_path, lambda done, total: None).pictures
    done, rows = np.array([one.image_id not in ("x0", "x1", "x2") for one in found]), []
    arguments = (found, done, run, (64, False), Asked(), rows.append, lambda done, total: None)
    if always:
        with pytest.raises(RunError, match=rf"died unexpectedly.* rows are missing, first that of {mixed}/x"):
            running.predict_pictures(*arguments)
        return
    running.predict_pictures(*arguments)
    assert (tmp_path / "died").exists()
    assert sorted(name for table in rows for name in table["image_id"].to_pylist()) == ["x0", "x1", "x2"]


def test_a_network_that_fails_in_a_process_of_ray_is_named(run, mixed, tmp_path):
    """As where its memory does not suffice: in a line, without Ray's traceback, and what is done is kept."""
    found = find_pictures([str(mixed)], tmp_path, lambda done, total: None).pictures
    with pytest.raises(RunError, match=r"InputError: .*nowhere.*; give the same.* first that of .*/mixed/"):
        running.predict_pictures(
            found, np.zeros(len(found), dtype=bool), tmp_path / "nowhere", (64, False), Asked(), print, print
        )
