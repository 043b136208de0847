"""data.crop from files to training: shards, tables, boxes, gray levels and what is said about them."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from drawn_fracatlas import Atlas, jpeg
from rich.console import Console

from fracray.config import Config, DataConfig
from fracray.data.contact_sheet import draw_crops
from fracray.data.datasheet import datasheet
from fracray.data.images.kept import KEPT
from fracray.data.images.letterbox import frame
from fracray.data.images.square import decode_part
from fracray.data.loading.boxes import Boxes
from fracray.data.loading.ingest import fingerprint, ingest
from fracray.data.loading.kept import boxes_shown, cropping, shown
from fracray.data.loading.plan import make_plan
from fracray.data.loading.shards import INDEX, open_shards
from fracray.data.prepare import examined, prepare, shards_as
from fracray.data.report import say_flow
from fracray.runtime.storage import Folder
from fracray.training.job import make_job

SIZE, HEIGHT, WIDTH, COUNT = 96, 500, 400, 24
CROPPED = range(0, COUNT, 2)  # the others are full of anatomy


def radiograph(number):
    """A bone in a corner of a dark field, with a white fracture in it, or a field that is full of bone."""
    rng = np.random.default_rng(number)
    picture = np.full((HEIGHT, WIDTH), 20.0)
    fracture = (130.0, 150.0 + number, 40.0, 30.0)
    if number in CROPPED:
        picture[40:260, 60:260] = rng.uniform(80, 140)
        picture[100:200, 100:200] += np.kron(rng.uniform(-20, 20, (5, 5)), np.ones((20, 20)))
    else:
        picture += np.kron(rng.uniform(40, 160, (10, 8)), np.ones((50, 50)))
    x, y, w, h = (int(edge) for edge in fracture)
    if number % 4 < 2:
        picture[y : y + h, x : x + w] = 255
    return np.clip(picture, 0, 255).astype(np.uint8), fracture


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    made = Atlas(tmp_path_factory.mktemp("atlas"))
    for number in range(COUNT):
        picture, fracture = radiograph(number)
        name = made.add(number, label=int(number % 4 < 2), data=jpeg(picture, 95))
        if number % 4 < 2:
            made.box(name, fracture, WIDTH, HEIGHT)
    split = {"protocol": "random", "guard": None}
    cache = str(tmp_path_factory.mktemp("cache"))
    return Config(data={"source": str(made.write()), "cache": cache, "size": SIZE, "crop": True, "split": split})


@pytest.fixture(scope="module")
def console():
    return Console(record=True, width=200)


@pytest.fixture(scope="module")
def prepared(ray_local, config, console):
    return prepare(config.data, console)


def test_shards_hold_the_parts_and_say_which(prepared):
    table, images = prepared.table, prepared.shards.load()
    assert prepared.shards.cropped
    assert open_shards(prepared.shards.folder) == prepared.shards
    assert list(prepared.shards.kept().columns) == list(KEPT)
    for row, entry in enumerate(table.itertuples()):
        data = (prepared.manifest.root / entry.path).read_bytes()
        square, kept = decode_part(data, HEIGHT, SIZE)
        assert np.array_equal(images[row], square)
        assert tuple(getattr(entry, name) for name in KEPT) == pytest.approx(kept)
    cropped = table["kept_bottom"] - table["kept_top"] < HEIGHT
    assert list(cropped) == [int(name.removeprefix("IMG")) in CROPPED for name in table["image_id"]]


def test_without_crop_shards_and_their_key_are_as_ever(ray_local, config, tmp_path):
    manifest = examined(config.data, Console(quiet=True))
    shards = ingest(manifest, SIZE, Folder(tmp_path))
    assert shards.folder.read_json(INDEX).keys() == {"size", "files"}
    assert shards.kept() is None
    import pyarrow.parquet as pq

    columns = pq.read_schema(shards.folder.path(shards.files[0].name)).names
    assert columns == ["row", "image_id", "label", "image"]
    assert fingerprint(manifest, SIZE) == shards.folder.name
    assert fingerprint(manifest, SIZE, crop=True) != fingerprint(manifest, SIZE)
    whole = prepare(config.data.model_copy(update={"crop": False}), Console(quiet=True))
    assert not set(KEPT) & set(whole.table)
    assert whole.summary()["crop"] is None


def test_boxes_are_where_the_fractures_are_in_the_squares(prepared):
    boxes = Boxes.of_table(prepared.table, SIZE)
    images = prepared.shards.load()
    for row, label in enumerate(prepared.table["label"]):
        assert len(boxes.of(row)) == label
        for left, top, right, bottom in boxes.of(row):
            lit = images[row] > 245
            assert lit[round(top) + 1 : round(bottom) - 1, round(left) + 1 : round(right) - 1].all()
            lit[max(0, int(top) - 1) : round(bottom) + 1, max(0, int(left) - 1) : round(right) + 1] = False
            assert not lit.any()


def test_a_box_that_is_cut_is_clipped_and_counted_and_one_outside_is_left_out():
    table = pd.DataFrame(
        {
            "image_id": ["inside", "cut", "outside", "none"],
            "boxes": [((40, 40, 20, 20),), ((0, 0, 40, 60), (60, 60, 10, 10)), ((0, 0, 10, 10),), ()],
            "boxes_width": 200,
            "boxes_height": 400,
            "width": 100,
            "height": 200,
            "brightness": 50.0,
            "kept_left": 10,
            "kept_top": 10,
            "kept_right": 60,
            "kept_bottom": 110,
            "kept_brightness": 70.0,
        }
    )
    found = [(edges.tolist(), shares.tolist()) for edges, shares in boxes_shown(table)]
    assert found[0] == ([[20, 20, 20, 20]], [1.0])
    assert found[1] == ([[0, 0, 20, 40], [40, 40, 10, 10]], [20 * 40 / (40 * 60), 1.0])
    assert found[2] == ([], [0.0])
    assert found[3] == ([], [])
    boxes = Boxes.of_table(table, 100)  # 50 x 100 px are kept, in the middle of the square
    assert [len(boxes.of(row)) for row in range(4)] == [1, 2, 0, 0]
    assert boxes.of(0).tolist() == [[35, 10, 45, 20]]
    assert boxes.of(1).tolist()[0] == [25, 0, 35, 20]
    assert cropping(table) == {
        "images": 4,
        "of": 4,
        "median": 2.0,
        "largest": 2.0,
        "boxes": 4,
        "cut": 2,
        "cut_images": ["cut", "outside"],
        "more": False,
    }
    assert Boxes.of_table(table.iloc[2:], 100) is None


def test_gray_levels_change_about_the_mean_of_the_part_and_inside_it(prepared, config):
    pictures = make_plan(config, prepared.table, prepared.shards).pictures
    images, part = prepared.shards.load(), shown(prepared.table)
    for row, image in enumerate(images):
        down, across = frame(part["width"].iloc[row], part["height"].iloc[row], SIZE)
        assert list(pictures.frames[row]) == [down.start, down.stop, across.start, across.stop]
        assert pictures.means[row] == pytest.approx(image[down, across].mean(), abs=1e-3)


def test_a_run_keeps_what_was_cut(prepared, config, console, tmp_path):
    crop = prepared.summary()["crop"]
    assert crop["images"] == len(CROPPED)
    assert 1.1 <= crop["median"] <= crop["largest"] <= 2
    assert (crop["boxes"], crop["cut"]) == (COUNT // 2, 0)
    say_flow(console, prepared)
    said = console.export_text(clear=False)
    assert "cropped to the anatomy: 12 of 24 radiographs, enlarged 1." in said
    assert "0 of 12 fracture boxes cut" in said
    assert "warning: data.crop" not in said
    job = make_job(config, Folder(tmp_path / "run"), prepared)
    assert set(KEPT) <= set(job.table)
    assert job.run.read_json("data.json")["crop"] == crop
    assert "12 of 24 radiographs, enlarged" in (tmp_path / "run" / "DATASHEET.md").read_text()


def test_a_fracture_that_is_cut_is_a_warning(prepared, console):
    table = prepared.table.copy()
    row = int(np.flatnonzero(table["label"] == 1)[0])
    table.at[row, "boxes"] = ((0.0, 480.0, 20.0, 20.0),)
    table.loc[row, ["kept_bottom"]] = 400
    harmed = replace(prepared, table=table)
    say_flow(console, harmed)
    name = table["image_id"].iloc[row]
    assert f"warning: data.crop cuts 1 fracture box by more than 5% of the area: {name};" in console.export_text()
    assert f"data.crop cuts 1 fracture box by more than 5% of the area: {name};" in datasheet(harmed.summary())


def test_another_model_gets_the_radiographs_as_it_was_trained_on_them(prepared, config):
    quiet = Console(quiet=True)
    assert shards_as(prepared, config.data, quiet) is prepared.shards
    whole = shards_as(prepared, config.data.model_copy(update={"crop": False}), quiet)
    assert (whole.cropped, whole.size) == (False, SIZE)
    smaller = shards_as(prepared, config.data.model_copy(update={"size": 64}), quiet)
    assert (smaller.cropped, smaller.size) == (True, 64)


def test_the_sheet_frames_what_is_kept(prepared, config):
    row = int(np.flatnonzero(prepared.table["kept_bottom"] - prepared.table["kept_top"] < HEIGHT)[0])
    one = replace(prepared, table=prepared.table.iloc[[row]].reset_index(drop=True))
    tile, scale = draw_crops(one, config, 1)[:SIZE], SIZE / HEIGHT
    kept = prepared.table.iloc[row]
    lines = np.flatnonzero((tile == 255).sum(1) > 0.4 * (kept["kept_right"] - kept["kept_left"]) * scale)
    assert lines[0] == pytest.approx(kept["kept_top"] * scale, abs=1.5)
    assert lines[-1] == pytest.approx(kept["kept_bottom"] * scale, abs=1.5)


def test_a_stored_config_from_before_crops_nothing():
    stored = DataConfig().model_dump(mode="json")
    del stored["crop"]
    for fields in (stored, {name: value for name, value in stored.items() if name != "augment_on"}):
        # The explicit value outlives a change of the default.
        assert "crop" in DataConfig.model_validate(fields).model_fields_set
        assert not DataConfig.model_validate(fields).crop
    assert "crop" not in DataConfig.model_validate({"size": 64}).model_fields_set
    assert DataConfig.model_validate({**stored, "crop": True}).crop
