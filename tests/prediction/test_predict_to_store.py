"""python -m fracray.predict --to a URI: as to a path, also where it was killed, and where the store says no."""

import io
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import ray
import torch
from drawn_fracatlas import jpeg, picture

from fracray.config import Config
from fracray.errors import InputError, run_verb
from fracray.metrics import Calibration
from fracray.predict import main
from fracray.prediction import inputs, running
from fracray.prediction.parts import Target
from fracray.runtime.claim import claimed
from fracray.runtime.storage import Folder
from fracray.training.card import CheckpointMetadata
from fracray.training.checkpoint import save_checkpoint
from fracray.training.model import build_model


@pytest.fixture(scope="module")
def checkpoint(ray_local, tmp_path_factory):
    """A checkpoint with random weights."""
    config = Config().with_leaves({"data.size": 64, "data.phantom.count": 50, "model.width": 8})
    torch.manual_seed(3)
    card = CheckpointMetadata(config, 0.4, Calibration(1.3, 0.2), {}, data_fingerprint="f", epoch=1, trial="t")
    folder = tmp_path_factory.mktemp("saved") / "checkpoint"
    save_checkpoint(folder, build_model(config.model).state_dict(), card)
    return folder


@pytest.fixture(scope="module")
def radiographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("radiographs")
    for seed in range(5):
        (folder / f"x{seed}.jpg").write_bytes(jpeg(picture(seed)))
    (folder / "cut.jpg").write_bytes(jpeg(picture(9))[:2000])
    return folder


@pytest.fixture
def uri(s3):
    """A function from a name to its URI in a folder of the store that only this test uses."""
    place = uuid.uuid4().hex
    return lambda name: s3(f"{place}/{name}")


def content(location):
    target = Target.of(location)
    return target.folder.read(target.name)


def names(location):
    return Target.of(location).folder.files()


def test_a_store_gets_the_very_file_that_a_disk_gets(checkpoint, radiographs, uri, tmp_path, capsys):
    for name in ("out.csv", "out.parquet", "out.jsonl"):
        main([str(checkpoint), str(radiographs), "--to", str(tmp_path / name)])
        main([str(checkpoint), str(radiographs), "--to", uri(name)])
        assert content(uri(name)) == (tmp_path / name).read_bytes()
        assert f"written: {uri(name)}: 5 radiographs" in capsys.readouterr().out
    assert names(uri("out.csv")) == ["out.csv", "out.jsonl", "out.parquet"]  # and no parts


def test_a_file_in_the_store_is_replaced_only_if_asked(checkpoint, radiographs, uri, capsys):
    target = Target.of(uri("%C3%A4%20b/o%20ut.csv"))
    assert target.name == "o ut.csv"
    target.folder.write(target.name, b"old")
    words = [str(checkpoint), str(radiographs), "--to", uri("%C3%A4%20b/o%20ut.csv")]
    assert run_verb(main, words) == 2
    assert "exists already; choose another file, or replace it with --overwrite" in capsys.readouterr().err
    assert target.folder.read(target.name) == b"old"
    assert run_verb(main, [*words, "--overwrite"]) == 0
    assert len(pd.read_csv(io.BytesIO(target.folder.read(target.name)))) == 6
    assert target.folder.files() == ["o ut.csv"]


@pytest.mark.parametrize(("module", "step"), [(inputs, "find_pictures"), (running, "predict_pictures")])
def test_a_file_that_comes_while_it_works_is_not_replaced(
    checkpoint, radiographs, uri, capsys, monkeypatch, module, step
):
    target, done = Target.of(uri("out.csv")), getattr(module, step)

    def then_another_command_ends(*words):
        found = done(*words)
        target.folder.write(target.name, b"of another command")
        return found

    words = [str(checkpoint), str(radiographs), "--to", uri("out.csv")]
    with monkeypatch.context() as patch:
        patch.setattr(module, step, then_another_command_ends)
        assert run_verb(main, words) == 2
    assert "exists already; choose another file" in capsys.readouterr().err
    assert content(uri("out.csv")) == b"of another command"
    assert run_verb(main, [*words, "--overwrite"]) == 0
    assert ("going on after 6 of 6" in capsys.readouterr().out) == (module is running)
    assert len(pd.read_csv(io.BytesIO(content(uri("out.csv"))))) == 6


def test_a_folder_is_no_output_and_is_never_replaced(checkpoint, radiographs, tmp_path, capsys):
    (tmp_path / "out.csv").mkdir()
    words = [str(checkpoint), str(radiographs), "--to", str(tmp_path / "out.csv"), "--overwrite"]
    assert run_verb(main, words) == 2
    assert "is a folder; choose another file" in capsys.readouterr().err


def test_a_command_that_was_stopped_before_its_first_row_stands_in_the_way_of_none(checkpoint, radiographs, uri):
    Target.of(uri("out.csv")).parts.write_json("about.json", {"checkpoint": "another"})
    assert run_verb(main, [str(checkpoint), str(radiographs), "--to", uri("out.csv")]) == 0


@pytest.mark.slow
def test_a_prediction_that_was_killed_goes_on_from_the_store(checkpoint, uri, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for seed in range(40):
        encoded = jpeg(picture(seed, width=500, height=600))
        for copy in range(25):
            (folder / f"{seed:02d}-{copy:02d}.jpg").write_bytes(encoded)
    main([str(checkpoint), str(folder), "--to", str(tmp_path / "whole.csv")])
    words = [str(checkpoint), str(folder), "--to", uri("out.csv")]
    parts = Target.of(uri("out.csv")).parts
    with subprocess.Popen(
        [sys.executable, "-m", "fracray.predict", *words, "--address", ray.get_runtime_context().gcs_address],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        deadline = time.monotonic() + 240
        while sum(name.startswith("rows-") for name in parts.names()) < 2:
            assert process.poll() is None, process.stdout.read().decode()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    time.sleep(2)  # until Ray has ended the processes of that driver
    assert not Target.of(uri("out.csv")).folder.exists("out.csv")
    kept = {name: when for name, when in parts.written("").items() if name.startswith("rows-")}
    done = [pq.read_metadata(io.BytesIO(parts.read(name))).num_rows for name in kept]
    assert 50 < sum(done) < 1000
    with pytest.raises(InputError, match=r"out.csv.parts.*holds the rows of .* stopped, with another --coverage"):
        main([*words, "--coverage", "0.8"])
    assert {name: when for name, when in parts.written("").items() if name.startswith("rows-")} == kept
    main(words)
    whole, found = (
        pd.read_csv(io.BytesIO(data)) for data in ((tmp_path / "whole.csv").read_bytes(), content(words[-1]))
    )
    exact = [name for name in whole if name not in ("logit", "probability")]
    pd.testing.assert_frame_equal(found[exact], whole[exact])
    assert np.abs(found["logit"] - whole["logit"]).max() < 1e-6
    assert names(uri("out.csv")) == ["out.csv"]


def test_a_copy_in_another_cache_is_the_same_input(radiographs, uri, tmp_path):
    """So a command goes on on another machine, and after the cache was emptied."""
    Folder(uri("shared")).upload(radiographs, "scans")
    archive = Path(shutil.make_archive(str(tmp_path / "scans"), "zip", radiographs))
    Folder(uri("shared")).upload(archive, "scans.zip")

    def seen(cache):
        named = (uri("shared/scans"), uri("shared/scans/x1.jpg"), uri("shared/scans.zip"), str(archive))
        return [inputs.find_pictures([one], tmp_path / cache, lambda *_: None).fingerprint() for one in named]

    first = seen("first")
    assert seen("second") == first
    assert len(set(first)) == 4
    Folder(uri("shared")).write("scans/x1.jpg", jpeg(picture(7)))
    with zipfile.ZipFile(archive, "a") as more:
        more.writestr("more.jpg", jpeg(picture(8)))
    assert [one == other for one, other in zip(seen("first"), first, strict=True)] == [False, False, True, False]


def test_parts_of_something_else_are_removed_only_if_asked(checkpoint, radiographs, uri, capsys):
    parts = Target.of(uri("out.csv")).parts
    parts.write_json("about.json", {"checkpoint": "another"})
    parts.write("rows-000000000-000000003.parquet", b"theirs")
    words = [str(checkpoint), str(radiographs), "--to", uri("out.csv")]
    assert run_verb(main, words) == 2
    assert "with another checkpoint; give the command that was stopped" in capsys.readouterr().err
    assert parts.read("rows-000000000-000000003.parquet") == b"theirs"
    assert run_verb(main, [*words, "--overwrite"]) == 0
    assert names(uri("out.csv")) == ["out.csv"]


def test_two_commands_do_not_write_the_same_file(checkpoint, radiographs, uri, capsys):
    with claimed(Target.of(uri("out.csv")).parts):
        assert run_verb(main, [str(checkpoint), str(radiographs), "--to", uri("out.csv")]) == 2
    error = capsys.readouterr().err
    assert f"another command works in this prediction (process {os.getpid()} on " in error
    assert "choose another --to" in error
    assert not Target.of(uri("out.csv")).folder.exists("out.csv")


@pytest.mark.parametrize(
    ("to", "code", "message"),
    [
        ("s3://out.csv", 2, "--to s3://out.csv: names no folder; name a file in one"),
        ("s3://a/out.xlsx", 2, "--to s3://a/out.xlsx: name a file that ends in .csv, .parquet, .jsonl"),
        ("s3://key:secret@a/out.csv", 2, "leave the secret out"),
        ("nonsense://a/out.csv", 2, "nonsense://a: not a folder or URI that can be opened"),
        pytest.param(
            "s3://a/out.csv?endpoint_override=http://127.0.0.1:9&scheme=http&region=x",
            2,
            "cannot be opened: ",
            marks=pytest.mark.slow,
        ),
        pytest.param("{nowhere}", 1, "cannot write ", marks=pytest.mark.slow),
    ],
)
def test_a_store_that_says_no_is_one_clear_error(checkpoint, radiographs, s3, capsys, to, code, message):
    nowhere = s3("out.csv").replace("s3://radiographs/", "s3://nowhere/")
    assert run_verb(main, [str(checkpoint), str(radiographs), "--to", to.format(nowhere=nowhere)]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert "secret@" not in error


def test_heatmaps_and_dicom_results_are_for_a_disk(checkpoint, radiographs, uri, capsys):
    for flag in ("--heatmaps", "--dicom-out"):
        words = [str(checkpoint), str(radiographs), "--to", uri("out.csv"), flag, uri("maps")]
        assert run_verb(main, words) == 2
        assert "is a URI; name a folder on this machine" in capsys.readouterr().err
    assert names(uri("out.csv")) == []


def test_a_file_at_the_top_of_a_bucket(s3):
    target = Target.of(s3("out.csv"))
    assert target.folder == Folder(s3("").replace("radiographs/?", "radiographs?"))
    assert target.parts.location == s3("out.csv.parts")
