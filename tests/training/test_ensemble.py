"""Ensembles: the mean of their members' logits, complete or refused by name; and means of weights."""

import json
import shutil
from dataclasses import replace

import pandas as pd
import pytest
import torch

from fracray.config import Config
from fracray.errors import InputError
from fracray.evaluation.inference import network
from fracray.metrics import Calibration
from fracray.training.checkpoint import (
    CheckpointMetadata,
    load_checkpoint,
    read_metadata,
    read_predictions,
    save_checkpoint,
    save_ensemble,
    verify,
)
from fracray.training.ensemble import mean_weights
from fracray.training.model import build_model

CONFIG = Config().with_leaves({"model.width": 8, "data.size": 32})
PREDICTIONS = pd.DataFrame(
    {"image_id": ["a", "b"], "group": ["g", "h"], "label": [0, 1], "split": ["val", "val"], "logit": [-1.0, 0.5]}
)
SEEN = pd.DataFrame({"image_id": ["a", "b"], "split": ["train", "val"], "pixel_hash": ["x", "y"], "look": ["", ""]})


def card(config=CONFIG, trial="t0001-seed1", **more):
    return CheckpointMetadata(config, 0.4, Calibration(1.5, 0.1), {"val_accuracy": 0.8}, "f", 2, trial, **more)


def images(count=5):
    return torch.randint(0, 256, (count, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def member(folder, seed, config=CONFIG, **more):
    torch.manual_seed(seed)
    model = build_model(config.model).train()
    model(images(16))
    save_checkpoint(folder, model.state_dict(), replace(card(config, folder.name), **more), PREDICTIONS, SEEN)
    return folder


@pytest.fixture
def members(tmp_path):
    other = CONFIG.with_leaves({"model.width": 16, "train.precision": "bf16"})
    return {
        "t0001-seed1": member(tmp_path / "made/t0001-seed1", 1),
        "t0001-seed2": member(tmp_path / "made/t0001-seed2", 2),
        "t0000-seed1": member(tmp_path / "made/t0000-seed1", 3, other),
    }


@pytest.fixture
def folder(members, tmp_path):
    save_ensemble(tmp_path / "best", members, card(trial="t0001"), PREDICTIONS, SEEN)
    return tmp_path / "best"


def test_its_logit_is_the_mean_of_those_of_different_networks(folder, members):
    checkpoint = load_checkpoint(folder)
    alone = [load_checkpoint(path) for path in members.values()]
    assert not checkpoint.model.training
    with torch.inference_mode():
        expected = torch.stack([one.model(images()) for one in alone]).mean(0)
        torch.testing.assert_close(checkpoint.model(images()), expected, rtol=0, atol=1e-6)
    # Each member computes in its own number format: one is in bf16.
    batch = images().squeeze(1).numpy()
    each = torch.stack([torch.from_numpy(network(one)(batch)) for one in alone]).mean(0)
    torch.testing.assert_close(torch.from_numpy(network(checkpoint)(batch)), each, rtol=0, atol=1e-6)


def test_its_card_names_every_file_and_comes_back(folder, members):
    tree = json.loads((folder / "config.json").read_text())
    assert tree["format"] == 3
    assert tree["members"] == list(members)
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(tree["sha256"]) == files - {"config.json"}
    assert read_metadata(folder) == card(trial="t0001")
    assert [one.metadata.trial for one in load_checkpoint(folder).members] == list(members)
    pd.testing.assert_frame_equal(read_predictions(folder), PREDICTIONS)


def test_a_checkpoint_of_one_network_is_written_as_before(members):
    tree = json.loads((members["t0001-seed1"] / "config.json").read_text())
    assert tree["format"] == 2
    assert list(tree)[:3] == ["format", "sha256", "input"]
    assert list(tree["input"]) == ["shape", "range", "geometry", "mean", "std", "normalised_by"]
    assert load_checkpoint(members["t0001-seed1"]).members == ()


MEMBER = "members/t0001-seed2"


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def edit(path, **entries):
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda folder: shutil.rmtree(folder / MEMBER), f"{MEMBER}/config.json: missing; copy the whole checkpoint"),
        (lambda folder: shutil.rmtree(folder / "members"), "model.safetensors missing; copy the whole folder"),
        (lambda folder: cut(folder / MEMBER / "model.safetensors"), f"{MEMBER}/model.safetensors: sha256 differs"),
        (lambda folder: cut(folder / MEMBER / "seen.parquet"), f"{MEMBER}/seen.parquet: sha256 differs"),
        (lambda folder: edit(folder / MEMBER / "config.json", threshold=0.9), f"{MEMBER}/config.json: sha256 differs"),
        (lambda folder: cut(folder / "val_predictions.parquet"), "val_predictions.parquet: sha256 differs"),
        (lambda folder: shutil.copytree(folder / MEMBER, folder / "members/x"), "members/x: is not listed"),
        (lambda folder: edit(folder / "config.json", members=["t0001-seed1"]), "sha256 does not list"),
        (lambda folder: edit(folder / "config.json", members=["../made"]), "no list of members"),
        (lambda folder: edit(folder / "config.json", members=[]), "no list of members"),
        (lambda folder: edit(folder / "config.json", format=1), "sha256 does not list|unexpected keyword"),
        (lambda folder: edit(folder / "config.json", format=4), "reads up to 3: upgrade"),
        (lambda folder: edit(folder / "config.json", threshold=7), "threshold is 7"),
        (lambda folder: edit(folder / "config.json", data_fingerprint="g"), "data of another kind"),
    ],
)
def test_what_is_not_as_written_is_refused_by_name(folder, change, match):
    verify(folder)
    change(folder)
    with pytest.raises(InputError, match=match):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("leaves", "more", "match"),
    [
        ({"data.size": 64}, {}, r"image size of another kind than its ensemble's \(64, not 32\)"),
        ({"data.crop": True}, {}, r"data.crop of another kind than its ensemble's \(True, not False\)"),
        ({"data.split.seed": 1}, {}, "split of another kind"),
        ({}, {"data_fingerprint": "g"}, r"data of another kind than its ensemble's \(g, not f\)"),
        ({}, {"classes": ("a", "b")}, "classes of another kind"),
    ],
)
def test_members_that_do_not_belong_together_are_refused_and_nothing_is_written(tmp_path, members, leaves, more, match):
    members["other"] = member(tmp_path / "made/other", 4, CONFIG.with_leaves(leaves), **more)
    with pytest.raises(InputError, match=match):
        save_ensemble(tmp_path / "best", members, card(), PREDICTIONS, SEEN)
    assert not (tmp_path / "best").exists()


def test_the_mean_of_weights_is_that_of_each_tensor_in_its_own_type():
    one = {"w": torch.tensor([1.0, 3.0]), "n": torch.tensor(7), "h": torch.tensor([1.0], dtype=torch.bfloat16)}
    two = {"w": torch.tensor([2.0, 5.0]), "n": torch.tensor(9), "h": torch.tensor([2.0], dtype=torch.bfloat16)}
    mean = mean_weights([one, two])
    torch.testing.assert_close(mean["w"], torch.tensor([1.5, 4.0]))
    assert mean["n"] == 7
    assert mean["h"].dtype is torch.bfloat16
    mean["n"] += 1
    assert one["n"] == 7
