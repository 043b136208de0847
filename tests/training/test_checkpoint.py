"""Checkpoint folders: what is saved comes back to the bit, and what should be refused is, by name."""

import hashlib
import json
import math
import pickle

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from fracray.config import Config
from fracray.errors import InputError
from fracray.metrics import Calibration, Interval
from fracray.training.checkpoint import (
    CheckpointMetadata,
    load_checkpoint,
    load_state,
    read_metadata,
    read_predictions,
    save_checkpoint,
    save_state,
    verify,
)
from fracray.training.model import build_model

CONFIG = Config().with_leaves({"model.width": 8, "data.size": 32, "model.dropout": 0.3})
METADATA = CheckpointMetadata(
    config=CONFIG,
    threshold=0.375,
    calibration=Calibration(temperature=1.7, bias=-0.4),
    metrics={"val_accuracy": 0.9, "val_auroc": math.nan},
    data_fingerprint="a1b2",
    epoch=3,
    trial="t07",
    intervals={"val_accuracy": Interval(0.9, 0.85, math.nan)},
)
PREDICTIONS = pd.DataFrame(
    {"image_id": ["a", "b"], "group": ["g1", "g2"], "label": [0, 1], "split": ["val", "val"], "logit": [-1.5, 0.25]}
)


def images(count=5, size=32):
    return torch.randint(0, 256, (count, 1, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = build_model(CONFIG.model).train()
    model(images(16))  # moves the running statistics away from their start
    return model.eval()


@pytest.fixture
def folder(model, tmp_path):
    save_checkpoint(tmp_path / "best", model.state_dict(), METADATA, PREDICTIONS)
    return tmp_path / "best"


def edit(folder, **entries):
    tree = json.loads((folder / "config.json").read_text()) | entries
    (folder / "config.json").write_text(json.dumps(tree))


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_checkpoint_gives_the_same_logits_to_the_bit(model, tmp_path, channels_last):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = model.to(memory_format=layout)
    save_checkpoint(tmp_path / "best", model.state_dict(), METADATA)
    checkpoint = load_checkpoint(tmp_path / "best")
    assert not checkpoint.model.training
    assert torch.equal(checkpoint.model.to(memory_format=layout)(images()), model(images()))
    assert read_predictions(tmp_path / "best") is None


def test_a_timm_checkpoint_gives_the_same_logits(tmp_path):
    config = CONFIG.with_leaves({"model.name": "mobilenetv3_small_050", "model.weights": "imagenet"})
    model = build_model(config.model, load_weights=False).eval()
    save_checkpoint(tmp_path / "best", model.state_dict(), CheckpointMetadata(config, 0.5, Calibration(), {}, "f", 0))
    assert torch.equal(load_checkpoint(tmp_path / "best").model(images()), model(images()))


def test_loading_leaves_the_random_state_alone(folder):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    load_checkpoint(folder)
    assert torch.equal(torch.rand(3), expected)


def test_the_card_and_the_predictions_come_back(folder):
    metadata = read_metadata(folder)
    assert metadata.config == CONFIG
    assert (metadata.threshold, metadata.calibration, metadata.epoch, metadata.trial) == (
        0.375,
        METADATA.calibration,
        3,
        "t07",
    )
    assert (metadata.data_fingerprint, metadata.classes) == ("a1b2", ("not fractured", "fractured"))
    assert metadata.metrics["val_accuracy"] == 0.9
    assert math.isnan(metadata.metrics["val_auroc"])
    assert metadata.intervals["val_accuracy"].low == 0.85
    assert math.isnan(metadata.intervals["val_accuracy"].high)
    assert metadata.versions == METADATA.versions
    pd.testing.assert_frame_equal(read_predictions(folder), PREDICTIONS)
    verify(folder)


def test_the_json_says_what_the_network_expects(folder, model):
    tree = json.loads((folder / "config.json").read_text(), parse_constant=pytest.fail)  # NaN is not JSON
    assert tree["input"]["shape"] == ["batch", 1, 32, 32]
    assert tree["input"]["mean"] == model.mean.item()
    assert tree["input"]["std"] == model.std.item()
    assert set(tree["sha256"]) == {"model.safetensors", "val_predictions.parquet"}


def test_saving_again_replaces_the_complete_folder(folder, model):
    (folder / "stale.txt").write_text("left by something else")
    save_checkpoint(folder, model.state_dict(), METADATA)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert [path.name for path in folder.parent.iterdir()] == ["best"]
    verify(folder)


def test_a_save_that_fails_leaves_the_old_checkpoint(folder):
    with pytest.raises(KeyError):
        save_checkpoint(folder, {"not.a.model": torch.zeros(1)}, METADATA)
    verify(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["best"]


# ---- refusals


def refused(match, folder):
    with pytest.raises(InputError, match=match):
        load_checkpoint(folder)


def test_refuses_what_is_not_a_checkpoint_folder(folder, tmp_path):
    refused("no such checkpoint folder", tmp_path / "nothing")
    refused("name the checkpoint folder", folder / "config.json")
    (folder / "model.safetensors").unlink()
    refused(r"model\.safetensors missing", folder)


def test_refuses_a_pickle_by_name_and_by_content(folder, tmp_path):
    torch.save({"w": torch.zeros(2)}, tmp_path / "model.pt")
    refused(r"model\.pt: a pickle.*only \.safetensors", tmp_path / "model.pt")
    refused(r"model\.pt: a pickle", tmp_path)  # a folder that holds nothing else
    torch.save({"w": torch.zeros(2)}, folder / "model.safetensors")
    refused(r"model\.safetensors: a pickle", folder)
    (folder / "model.safetensors").write_bytes(pickle.dumps({"w": 1}))
    refused(r"model\.safetensors: a pickle", folder)


def test_a_header_that_begins_like_a_pickle_is_read(tmp_path):
    # A header of 0x0280 bytes begins with 0x80 0x02, as a pickle of protocol 2 does.
    for filling in range(0, 700):
        save_file({"w": torch.ones(2)}, tmp_path / "w.safetensors", metadata={"meta": json.dumps("x" * filling)})
        if (tmp_path / "w.safetensors").read_bytes()[:2] == b"\x80\x02":
            break
    else:
        pytest.fail("no header of that length was made")
    assert torch.equal(load_state(tmp_path / "w.safetensors")[0]["w"], torch.ones(2))


def test_refuses_a_truncated_or_altered_file(folder):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    refused(r"model\.safetensors: sha256 differs", folder)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused("sha256 differs", folder)
    with pytest.raises(InputError, match="sha256 differs"):
        verify(folder)


SEEN = pd.DataFrame(
    {"image_id": ["a", "b"], "split": ["train", "val"], "pixel_hash": ["0" * 64, "1" * 64], "look": [b"x", b"y"]}
)


@pytest.fixture
def complete(model, tmp_path):
    save_checkpoint(tmp_path / "complete", model.state_dict(), METADATA, PREDICTIONS, SEEN)
    return tmp_path / "complete"


@pytest.mark.parametrize("name", ["val_predictions.parquet", "seen.parquet"])
def test_every_listed_file_is_checked(complete, name):
    load_checkpoint(complete)
    content = (complete / name).read_bytes()
    (complete / name).unlink()
    refused(rf"{name}: missing", complete)
    for changed in (content[: len(content) // 2], b"", content + b"x"):
        (complete / name).write_bytes(changed)
        refused(rf"{name}: sha256 differs", complete)


def test_a_file_that_is_not_listed_is_refused(folder):
    SEEN.to_parquet(folder / "seen.parquet", index=False)
    refused(r"seen\.parquet: is not listed", folder)


@pytest.mark.parametrize(
    ("content", "match"),
    [(SEEN.iloc[:0], "is empty"), (SEEN.drop(columns="pixel_hash"), "no column pixel_hash"), (b"PAR1", "not readable")],
    ids=["empty", "column", "damaged"],
)
def test_a_list_of_seen_images_that_lists_nothing_is_refused(complete, content, match):
    """With a hash that fits: emptied, it would switch off the guard against scoring what was trained on."""
    path = complete / "seen.parquet"
    path.write_bytes(content) if isinstance(content, bytes) else content.to_parquet(path, index=False)
    hashes = json.loads((complete / "config.json").read_text())["sha256"]
    edit(complete, sha256=hashes | {"seen.parquet": hashlib.sha256(path.read_bytes()).hexdigest()})
    refused(match, complete)


def test_refuses_tensors_that_do_not_match_the_config(folder, model):
    wider = METADATA.config.with_leaves({"model.width": 16}).model_dump(mode="json")
    edit(folder, config=wider)
    refused(r"stem\.0\.weight has shape \(8, 1, 4, 4\), expected \(16, 1, 4, 4\).*and \d+ more", folder)
    tensors = dict(model.state_dict())
    tensors["extra"] = tensors.pop("head.bias")
    save_checkpoint(folder, tensors, METADATA)
    refused(r"head\.bias is missing; extra is unknown", folder)


def test_refuses_a_newer_format_and_damaged_json(folder):
    edit(folder, format=99, versions={"fracray": "9.0"}, future="entry")
    refused(r"format 99, written by fracray 9\.0.*upgrade", folder)
    (folder / "config.json").write_text('{"format": 1, "config": {')
    refused(r"config\.json: damaged JSON", folder)
    (folder / "config.json").write_text("[1]")
    refused("no format number", folder)


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ({"config": {"model": {"widht": 8}}}, r"config\.json: 'model\.widht' is not a setting.*model\.width"),
        ({"threshold": "high"}, r"config\.json: could not convert"),
        ({"threshold": math.nan}, "threshold is nan, and must be a number from 0 to 1"),
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"calibration": {"temperature": "x", "bias": 0.0}}, "temperature is 'x', and must be a finite number"),
        ({"calibration": {"temperature": 0.0, "bias": 0.0}}, "temperature is 0.0"),
        ({"calibration": {"temperature": 1.0, "bias": math.inf}}, "bias is inf"),
        ({"calibration": {"temperature": True, "bias": 0.0}}, "temperature is True"),
        ({"epoch": "three"}, "epoch is 'three'"),
        ({"epoch": -1}, "epoch is -1"),
        ({"metrics": {"val_accuracy": math.inf}}, r"metrics\.val_accuracy is inf"),
        ({"metrics": {"val_accuracy": "good"}}, r"config\.json: could not convert"),
        ({"classes": ["fractured"]}, "must be two names"),
        ({"trial": 7}, "must be text"),
        ({"calibration": {"slope": 1}}, r"config\.json: .*slope"),
        ({"extra": 1}, r"config\.json: .*extra"),
        ({"sha256": {"../../x": "0", "model.safetensors": "0"}}, "sha256 does not list"),
    ],
)
def test_refuses_a_card_that_is_not_as_written(folder, entries, match):
    edit(folder, **entries)
    refused(match, folder)


def test_refuses_a_card_with_an_entry_missing(folder):
    tree = json.loads((folder / "config.json").read_text())
    del tree["threshold"]
    (folder / "config.json").write_text(json.dumps(tree))
    refused("'threshold' is missing", folder)
    with pytest.raises(InputError, match="'threshold' is missing"):
        read_metadata(folder)


# ---- training state


def test_training_state_comes_back_to_the_bit(tmp_path):
    base = torch.arange(24.0).reshape(2, 3, 2, 2)
    tensors = {
        "float": base,
        "view": base[:, 1:],
        "channels_last": base.contiguous(memory_format=torch.channels_last),
        "half": base.bfloat16(),
        "step": torch.tensor(7),
        "mask": torch.tensor([True, False]),
        "rng": torch.get_rng_state(),
        "empty": torch.zeros(0),
    }
    meta = {"epoch": 4, "best": 0.875, "rng": [2**62 + 1, "PCG64"], "word": "Füße", "none": None}
    save_state(tmp_path / "run" / "state.safetensors", tensors, meta)
    loaded, loaded_meta = load_state(tmp_path / "run" / "state.safetensors")
    assert loaded_meta == meta
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype, name
        assert torch.equal(loaded[name], tensor), name
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["state.safetensors"]


def test_a_state_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "state.safetensors"
    save_state(path, {"w": torch.ones(1)}, {"epoch": 1})
    with pytest.raises(TypeError):
        save_state(path, {"w": torch.zeros(1)}, {"epoch": object()})
    assert load_state(path)[1] == {"epoch": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.safetensors"]


def test_refuses_foreign_damaged_and_missing_state(tmp_path, folder):
    with pytest.raises(InputError, match="no such file"):
        load_state(tmp_path / "none.safetensors")
    with pytest.raises(InputError, match="no training state"):
        load_state(folder / "model.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:500])
    with pytest.raises(InputError, match="not readable as safetensors"):
        load_state(tmp_path / "cut.safetensors")
    torch.save({}, tmp_path / "state.ckpt")
    with pytest.raises(InputError, match="a pickle"):
        load_state(tmp_path / "state.ckpt")


def test_the_weights_on_disk_are_plain_safetensors(folder, model):
    tensors = load_file(folder / "model.safetensors")
    assert tensors.keys() == model.state_dict().keys()
