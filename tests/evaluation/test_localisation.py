"""Whether a map points at the fracture: the share of hits, counted again by hand from the map, beside pointers."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from fracray.data.images.letterbox import frame
from fracray.data.prepare import prepare
from fracray.evaluate import main as evaluate
from fracray.evaluation.inference import predict, predict_maps
from fracray.evaluation.localisation import score_localisation
from fracray.runtime.console import new_console
from fracray.train import main as train
from fracray.training.checkpoint import load_checkpoint

SETTINGS = ("data.size=96", "data.phantom.count=200", "data.split.block=10", "model.width=8", "train.lr=5e-3")


@pytest.fixture(scope="module")
def run(ray_local, tmp_path_factory):
    """The folder of two trainings: with a map, and without."""
    folder = tmp_path_factory.mktemp("runs")
    for name, localise in (("where", "true"), ("blind", "false")):
        settings = [word for setting in (*SETTINGS, f"model.localise={localise}") for word in ("--set", setting)]
        train([*settings, "--epochs", "6", "--storage", str(folder), "--name", name, "--cpus-per-worker", "1"])
    return folder


def test_hits_are_those_counted_by_hand(run):
    checkpoint = load_checkpoint(run / "where/best")
    prepared = prepare(checkpoint.metadata.config.data, new_console())
    rows = prepared.rows("val")
    found = score_localisation(checkpoint, prepared, rows, new_console())
    images, hits, random = prepared.shards.load(), [], []
    for row in rows:
        about = prepared.table.iloc[row]
        if not about["boxes"]:
            continue
        with torch.inference_mode():
            cells = checkpoint.model(torch.from_numpy(images[row : row + 1]).unsqueeze(1), True)[1][0].float().numpy()
        down, across = frame(about["width"], about["height"], 96)
        scale = (across.stop - across.start) / about["boxes_width"]
        touched = np.zeros((6, 6), dtype=bool)
        for x, y, w, h in about["boxes"]:
            left, top = across.start + x * scale, down.start + y * scale
            for place in np.ndindex(6, 6):
                inside = 16 * place[0] < top + h * scale and 16 * place[0] + 16 > top
                touched[place] |= inside and 16 * place[1] < left + w * scale and 16 * place[1] + 16 > left
        hits.append(touched.flat[cells.argmax()])
        shown = np.zeros((6, 6), dtype=bool)
        centres = np.arange(8, 96, 16)
        shown[
            np.ix_((centres >= down.start) & (centres < down.stop), (centres >= across.start) & (centres < across.stop))
        ] = 1
        random.append((touched & shown).sum() / shown.sum())
    assert found.images == len(hits) == prepared.table["label"].iloc[rows].sum()
    assert found.hit.value == pytest.approx(np.mean(hits))
    assert found.random.value == pytest.approx(np.mean(random))
    assert found.hit.value > found.random.value


@pytest.mark.parametrize("channels_last", [True, False])
def test_logits_and_maps_are_those_of_the_rows_in_the_order_asked(run, channels_last):
    opened = load_checkpoint(run / "where/best")
    config = opened.metadata.config.with_leaves({"train.channels_last": channels_last})
    checkpoint = replace(opened, metadata=replace(opened.metadata, config=config))
    prepared = prepare(opened.metadata.config.data, new_console())
    rows = np.array([150, 3, 199, 70, 3])
    with torch.inference_mode():
        images = torch.from_numpy(prepared.shards.load()[rows]).unsqueeze(1)
        logits, maps = (found.float().numpy() for found in checkpoint.model(images, True))
    np.testing.assert_allclose(predict(checkpoint, prepared.shards, rows, new_console()), logits, atol=1e-5)
    np.testing.assert_allclose(predict_maps(checkpoint, prepared.shards, rows, new_console()), maps, atol=1e-5)
    weight = checkpoint.model.stages[0].body[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last) is channels_last


def test_evaluate_says_where_and_writes_it(run, tmp_path, capsys):
    evaluate([str(run / "where"), "--json", str(tmp_path / "scores.json")])
    out = " ".join(capsys.readouterr().out.split())
    assert "where: the map's highest cell of 6 x 6 touches a fracture's box in" in out
    where = json.loads((tmp_path / "scores.json").read_text())["localisation"]
    assert where["images"] > 0
    assert 0 <= where["random"]["value"] < 0.5
    evaluate([str(run / "blind"), "--json", str(tmp_path / "blind.json")])
    assert "where:" not in capsys.readouterr().out
    assert "localisation" not in json.loads((tmp_path / "blind.json").read_text())
