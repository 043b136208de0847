"""python -m fracray.export: what the file says, that a broken export is refused, and its reader without fracray."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch
from drawn_fracatlas import jpeg, picture
from onnx import numpy_helper

from fracray.config import Config
from fracray.data.images.crop import anatomy
from fracray.data.images.decode import decode, inspect
from fracray.data.images.square import picture_of, square_of
from fracray.data.phantom.draw import as_jpeg, draw_phantom, phantom_id
from fracray.errors import RunError, run_verb
from fracray.evaluation.inference import looking_network
from fracray.export import main
from fracray.exporting.formats import Onnx
from fracray.exporting.graph import Readout
from fracray.exporting.parity import expected, prove
from fracray.exporting.sample import gather, phantoms
from fracray.metrics import Calibration
from fracray.prediction.familiar import Familiar
from fracray.prediction.reading import Decoder
from fracray.prediction.scoring import Asked, Scorer
from fracray.training.card import AS_TRAINED
from fracray.training.checkpoint import CheckpointMetadata, load_checkpoint, save_checkpoint, save_ensemble
from fracray.training.model import build_model

VALIDATED, SIZE = 36, 64
# Set None for a module, and Python refuses to import it.
WITHOUT_FRACRAY = "import sys, runpy; sys.modules.update(fracray=None, torch=None); sys.argv.pop(0); "
WITHOUT_FRACRAY += "runpy.run_path(sys.argv[0], run_name='__main__')"


@pytest.fixture(scope="module")
def files():
    """The phantoms of a validation, by image id."""
    return {phantom_id(place): as_jpeg(draw_phantom(place, 0)) for place in range(VALIDATED)}


@pytest.fixture(scope="module")
def save(files):
    """Save a checkpoint with random weights that was validated on these phantoms."""

    def save(folder, **settings):
        config = Config().with_leaves(
            {"data.size": SIZE, "data.phantom.count": 50, "model.width": 8, "model.localise": True} | settings
        )
        torch.manual_seed(3)
        card = CheckpointMetadata(config, 0.4, Calibration(1.3, 0.2), {}, data_fingerprint="f", epoch=1, trial="t")
        save_checkpoint(folder, weights := build_model(config.model).state_dict(), card)
        seen = [(inspect(data)[0], _square(data, config.data.crop)) for data in files.values()]
        logits, _ = looking_network(load_checkpoint(folder))(np.stack([square for _, square in seen]))
        names = pd.DataFrame({"image_id": list(files)})
        kept = names.assign(group="g", label=0, split="val", logit=logits)
        hashes = names.assign(split="val", pixel_hash=[about.pixel_hash for about, _ in seen])
        save_checkpoint(folder, weights, card, kept, hashes)
        return folder

    return save


@pytest.fixture(scope="module")
def checkpoint(save, tmp_path_factory):
    return save(tmp_path_factory.mktemp("saved") / "checkpoint")


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    """The ONNX file of the checkpoint."""
    file = tmp_path_factory.mktemp("exported") / "x.onnx"
    main([str(checkpoint), "--to", str(file)])
    return file


def export(checkpoint, file, *words):
    return run_verb(main, [str(checkpoint), "--to", str(file), *map(str, words)])


def squares(files):
    return np.stack([_square(data, False) for data in files.values()])


def _square(data, crop):
    return square_of(*picture_of(data, SIZE, crop), SIZE, crop)[0]


# ---------------------------------------------------------------- what the file says


def test_an_onnx_file_gives_what_the_checkpoint_says(checkpoint, exported, files):
    session = onnxruntime.InferenceSession(exported)
    assert [(one.name, one.shape, one.type) for one in session.get_inputs()] == [
        ("images", ["batch", 1, SIZE, SIZE], "tensor(uint8)")
    ]
    images = squares(files)[:5]
    found = session.run(None, {"images": images[:, None]})
    probability, logit, call, heatmap = found
    assert [one.shape[0] for one in session.get_outputs()] == ["batch"] * 4
    assert [one.dtype for one in found] == [np.float64, np.float32, np.uint8, np.float32]
    logits, where = looking_network(load_checkpoint(checkpoint))(images)
    assert np.abs(logit - logits).max() < 1e-5
    # In closed form, apart from fracray's own Calibration.
    assert np.abs(probability - 1 / (1 + np.exp(-(logit.astype(float) / 1.3 + 0.2)))).max() < 1e-12
    assert (call == (probability >= 0.4)).all()
    assert np.abs(heatmap - 1 / (1 + np.exp(-where))).max() < 1e-5
    assert heatmap.shape == (5, 4, 4)


def test_what_it_needs_is_in_the_file_and_beside_it(exported):
    text = onnxruntime.InferenceSession(exported).get_modelmeta().custom_metadata_map["fracray"]
    assert text == (exported.parent / "x.onnx.preprocess.json").read_text()
    about = json.loads(text)
    assert (about["threshold"], about["calibration"]) == (0.4, {"temperature": 1.3, "bias": 0.2})
    assert (about["size"], about["crop"], about["classes"]) == (SIZE, False, ["not fractured", "fractured"])
    assert [(one["mean"], one["std"]) for one in about["networks"]] == [(0.5, 0.25)]
    assert sorted(path.name for path in exported.parent.iterdir()) == [
        "x.onnx",
        "x.onnx.preprocess.json",
        "x.onnx.reader.py",
    ]
    onnx.checker.check_model(exported, full_check=True)
    data = exported.read_bytes()
    assert b"forward" not in data  # the exporter notes which line of which file of this machine a node comes from
    assert b".py" not in data


def test_a_torch_export_gives_the_same(exported, checkpoint, files, tmp_path, capsys):
    assert export(checkpoint, tmp_path / "x.pt2", "--format", "torch-export") == 0
    assert "the reloaded program gives the logits that the checkpoint keeps" in capsys.readouterr().out
    extra = {"preprocess.json": ""}
    module = torch.export.load(tmp_path / "x.pt2", extra_files=extra).module()
    assert extra["preprocess.json"] == (exported.parent / "x.onnx.preprocess.json").read_text()
    images = squares(files)[:5, None]
    ours = onnxruntime.InferenceSession(exported).run(None, {"images": images})
    for one, other in zip(module(torch.from_numpy(images)), ours, strict=True):
        assert np.abs(one.numpy().astype(float) - other).max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "weights", "suffix"),
    [
        ("tf_efficientnet_lite0", "imagenet", "onnx"),
        ("tf_efficientnet_lite1", "imagenet", "pt2"),  # as ONNX in benchmarks/export.py: that takes long
        ("tf_efficientnet_lite2", "imagenet", "onnx"),
        ("torchvision/resnet18", None, "onnx"),
        ("mobilenetv3_small_050", None, "onnx"),
    ],
)
def test_a_backbone_is_exported(name, weights, suffix, save, tmp_path, capsys):
    localise = name == "tf_efficientnet_lite0"
    saved = save(tmp_path / "saved", **{"model.name": name, "model.weights": weights, "model.localise": localise})
    assert export(saved, tmp_path / f"x.{suffix}", "--format", "onnx" if suffix == "onnx" else "torch-export") == 0
    said = capsys.readouterr().out
    assert " gives the logits that the checkpoint keeps" in said
    assert f"on {VALIDATED} of the {VALIDATED} radiographs of its validation" in said
    outputs = json.loads((tmp_path / f"x.{suffix}.preprocess.json").read_text())["outputs"]
    assert [*outputs] == ["probability", "logit", "call", *["heatmap"] * localise]


def test_an_ensemble_is_one_graph(checkpoint, save, tmp_path, files):
    second = save(tmp_path / "second", **{"model.width": 4, "model.localise": False})
    first = load_checkpoint(checkpoint)
    members = {"a": checkpoint, "b": second}
    both = [load_checkpoint(member).predictions for member in members.values()]
    kept = both[0].assign(logit=(both[0]["logit"] + both[1]["logit"]) / 2)
    save_ensemble(tmp_path / "both", members, first.metadata, kept, first.seen)
    assert export(tmp_path / "both", tmp_path / "x.onnx") == 0
    session = onnxruntime.InferenceSession(tmp_path / "x.onnx")
    logit = session.run(["logit"], {"images": squares(files)[:, None]})[0]
    assert np.abs(logit - kept["logit"]).max() < 1e-5
    assert "heatmap" not in [one.name for one in session.get_outputs()]  # one member has none


# ---------------------------------------------------------------- the proof


@pytest.fixture(scope="module")
def compare(checkpoint):
    """Compares the checkpoint with itself, after a change of its outputs; what the verb asks of a written file."""
    opened = load_checkpoint(checkpoint)
    readout = Readout(opened).eval()
    sample = gather(opened, phantoms(opened), "phantoms", lambda done, total: None)
    said = expected(opened, sample)

    def compare(change):
        def run(images):
            with torch.inference_mode():
                return [output.numpy() for output in change(*readout(torch.from_numpy(images)))]

        return prove(run, readout.outputs, opened, sample, said, "it", lambda done, total: None)

    return compare


def test_a_program_that_says_the_same_is_accepted(compare):
    assert compare(lambda *outputs: outputs) < 1e-5
    assert 5e-5 < compare(lambda p, z, c, h: (torch.sigmoid((z + 6e-5).double() / 1.3 + 0.2), z + 6e-5, c, h)) < 1e-4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p, z, c, h: (p, z + 2e-4, c, h), "logit than the checkpoint, 0.0002 apart at a batch of 1,"),
        (lambda p, z, c, h: (p, z + 0.5 * (z - z.mean()), c, h), "logit than .* at a batch of 3,"),
        (lambda p, z, c, h: (p, z + 1e-3 * (len(z) == 32), c, h), "logit than .* at a batch of 32,"),
        (lambda p, z, c, h: (p + 1e-6, z, c, h), "another probability"),
        (lambda p, z, c, h: (p, z, 1 - c, h), "another call"),
        (lambda p, z, c, h: (p, z, c, h.flip(2)), "another heatmap"),
        (lambda p, z, c, h: (p, z[:, None], c, h), "another logit than the checkpoint, inf apart"),
        (lambda p, z, c, h: (p, z * float("nan"), c, h), "another logit than the checkpoint, inf apart"),
    ],
    ids=["shifted", "mean", "large batch", "calibration", "call", "heatmap", "shape", "nan"],
)
def test_a_program_that_says_something_else_is_refused(change, words, compare):
    with pytest.raises(RunError, match=f"nothing is written: it gives .*{words}"):
        compare(change)


def damage(model):
    """A tenth more of a bias, as an exporter that folds a norm wrongly would give."""
    bias = next(one for one in model.graph.initializer if one.name == "network.head.bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.1), bias.name))


def fix_batch(model):
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2


@pytest.mark.parametrize(
    ("change", "words"),
    [(damage, "ONNX Runtime gives another logit"), (fix_batch, "ONNX Runtime cannot run the export at a batch of 1")],
    ids=["weights", "batch"],
)
def test_an_onnx_file_that_says_something_else_is_refused(change, words, checkpoint, tmp_path, capsys, monkeypatch):
    right = Onnx.write

    def write(self, program, outputs, description, path):
        right(self, program, outputs, description, path)
        model = onnx.load(path)
        change(model)
        onnx.save(model, path)

    monkeypatch.setattr(Onnx, "write", write)
    assert export(checkpoint, tmp_path / "x.onnx") == 1
    assert words in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_a_network_that_no_longer_gives_the_validation_is_refused(checkpoint, tmp_path, capsys):
    opened = load_checkpoint(checkpoint)
    kept = opened.predictions.assign(logit=opened.predictions["logit"] + 3e-4)
    save_checkpoint(tmp_path / "c", opened.model.state_dict(), opened.metadata, kept, opened.seen)
    (tmp_path / "to").mkdir()
    assert export(tmp_path / "c", tmp_path / "to/x.pt2", "--format", "torch-export") == 1
    assert "other logits here than in its validation: 0.0003 apart" in capsys.readouterr().err
    assert not any((tmp_path / "to").iterdir())


def test_other_radiographs_are_compared_with_the_network_itself(checkpoint, files, tmp_path, capsys):
    """Also one that has the name of a radiograph of the validation, but not its pixels."""
    (tmp_path / "other").mkdir()
    for name in ("IMG0000003", "new"):
        (tmp_path / f"other/{name}.jpg").write_bytes(jpeg(picture(7)))
    words = ("--format", "torch-export", "--data")
    assert export(checkpoint, tmp_path / "x.pt2", *words, tmp_path / "other") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "gives the network's own float32 logits" in said
    assert f"on 2 radiographs in {tmp_path / 'other'}, not of its validation" in said
    (tmp_path / "other/IMG0000004.jpg").write_bytes(files["IMG0000004"])
    assert export(checkpoint, tmp_path / "x.pt2", *words, tmp_path / "other", "--overwrite") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "gives the logits that the checkpoint keeps" in said
    assert f"on 1 of the {VALIDATED} radiographs of its validation" in said
    assert "(1 others there have other pixels)" in said


# ---------------------------------------------------------------- the reader


@pytest.mark.parametrize("crop", [False, True])
def test_the_reader_says_what_predict_says_without_fracray_and_torch(crop, save, exported, checkpoint, tmp_path):
    made = checkpoint
    model = tmp_path / "x.onnx"
    if crop:
        made = save(tmp_path / "cropped", **{"data.crop": True})
        assert export(made, model) == 0
    else:
        for path in exported.parent.iterdir():
            shutil.copy(path, tmp_path)
    pictures = [
        jpeg(picture(place, *side)) for place, side in enumerate([(160, 200), (50, 40), (1203, 901), (37, 999)])
    ]
    pictures += [jpeg(picture(9, 301, 203), orientation=turned) for turned in (3, 6, 8)]
    pictures += [as_jpeg(draw_phantom(place, 5)) for place in range(12)]
    pictures += [limb(300, 280, 1), limb(1100, 901, 2)]
    paths = []
    for place, data in enumerate(pictures):
        paths.append(tmp_path / f"{place}.jpg")
        paths[-1].write_bytes(data)
    words = [sys.executable, "-c", WITHOUT_FRACRAY, f"{model}.reader.py", str(model), *map(str, paths)]
    ended = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [row["path"] for row in rows] == [str(path) for path in paths]
    empty = {name: np.array([""] * len(paths)) for name in ("image_id", "error")}
    batch = {
        "place": np.arange(len(paths)),
        "path": np.array([*map(str, paths)]),
        "file": np.array([*map(str, paths)]),
    } | empty
    said = Scorer(load_checkpoint(made), Asked())(Decoder(SIZE, crop, Familiar({}, {}, {}))(batch)).to_pandas()
    assert not said["error"].any()
    assert np.abs(said["probability"] - [row["probability"] for row in rows]).max() < 1e-6
    assert np.abs(said["logit"] - [row["logit"] for row in rows]).max() < 1e-5
    assert [*said["call"]] == [row["call"] for row in rows]
    assert said["logit"].nunique() > 15
    if crop:  # else the comparison would say nothing of it
        whole = [anatomy(gray) == tuple(slice(0, side) for side in gray.shape) for gray in map(gray_of, pictures)]
        assert 0 < sum(whole) < len(whole)


def limb(height, width, seed):
    """A JPEG of a bright limb on dark ground, so that a crop is worth it."""
    gray = np.random.default_rng(seed).normal(20, 2, (height, width))
    gray[height // 4 : 3 * height // 4, 2 * width // 5 : 3 * width // 5] += 150
    return jpeg(gray.clip(0, 255).astype(np.uint8))


def gray_of(data):
    return decode(data).gray


def test_the_reader_says_what_is_cut_short_and_goes_on(exported, tmp_path):
    whole = jpeg(picture(1))
    (tmp_path / "cut.jpg").write_bytes(whole[:-500])
    (tmp_path / "whole.jpg").write_bytes(whole)
    words = [sys.executable, "-c", WITHOUT_FRACRAY, f"{exported}.reader.py", str(exported), "cut.jpg", "whole.jpg"]
    ended = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    cut, sound = map(json.loads, ended.stdout.splitlines())
    assert cut == {"path": "cut.jpg", "error": "not a complete JPEG"}
    assert [*sound] == ["path", "probability", "logit", "call"]


# ---------------------------------------------------------------- bad input


def test_bad_input_is_refused(checkpoint, tmp_path, capsys):
    (tmp_path / "x.onnx").write_text("mine")

    def error(*words):
        assert export(*words) == 2
        return capsys.readouterr().err

    assert "exists already" in error(checkpoint, tmp_path / "x.onnx")
    assert "a file of --format onnx ends in .onnx" in error(checkpoint, tmp_path / "x.pt2")
    assert "a file of --format torch-export ends in .pt2" in error(
        checkpoint, tmp_path / "x.onnx", "--format", "torch-export"
    )
    assert "its folder does not exist" in error(checkpoint, tmp_path / "none/x.onnx")
    assert "its folder does not exist" in error(checkpoint, "s3://bucket/x.onnx")
    assert "no such checkpoint" in error(tmp_path / "none", tmp_path / "y.onnx")
    assert "--data" not in error(checkpoint, tmp_path / "y.onnx", "--data", tmp_path / "none")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/cut.jpg").write_bytes(jpeg(picture(1))[:1000])
    assert "name others with --data" in error(checkpoint, tmp_path / "y.onnx", "--data", tmp_path / "broken")
    assert (tmp_path / "x.onnx").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "x.onnx"]


def test_a_checkpoint_that_was_validated_in_bf16_is_refused(checkpoint, tmp_path, capsys):
    opened = load_checkpoint(checkpoint)
    old = replace(opened.metadata, arithmetic=AS_TRAINED)
    save_checkpoint(tmp_path / "old", opened.model.state_dict(), old)
    assert export(tmp_path / "old", tmp_path / "x.onnx") == 2
    assert "was validated in bf16" in capsys.readouterr().err


def test_a_missing_package_is_named_with_its_extra(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxscript" else object())
    assert export(checkpoint, tmp_path / "x.onnx") == 2
    assert 'onnxscript missing; install with pip install "fracray[export]"' in capsys.readouterr().err
