"""data.json and the datasheet, which say the same."""

import json

import pytest
from drawn_fracatlas import Atlas, jpeg, picture

from fracray.config import Config
from fracray.data.__main__ import main
from fracray.data.datasheet import datasheet
from fracray.data.manifest import Manifest, in_set, sets_named
from fracray.data.prepare import prepare
from fracray.runtime.console import new_console


@pytest.fixture
def atlas(tmp_path):
    drawn = Atlas(tmp_path / "atlas")
    for number in range(160):
        label = number % 4 == 0
        drawn.add(number, int(label), lateral=number // 7 % 2, frontal=1 - number // 7 % 2)
    drawn.add(200, 0, data=jpeg(picture(200))[:-900])
    drawn.add(201, 1, data=jpeg(picture(3)))  # the picture of image 3, with the other label
    return drawn.write()


def prepared(atlas, **leaves):
    leaves = {"data.source": str(atlas), "data.size": 32, "data.split.block": 4, **leaves}
    return prepare(Config().with_leaves(leaves, "test").data, new_console())


def rows(text, heading):
    section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_datasheet_says_what_data_json_says(ray_local, atlas):
    summary = json.loads(
        json.dumps(prepared(atlas, **{"data.split.shifts": ["view=lateral"]}).summary(), allow_nan=False)
    )
    text = datasheet(summary)
    flow = {meaning: int(count) for count, meaning in rows(text, "From files found to images used")}
    assert flow["images found, listed or on disk"] == 162
    assert flow["the file is cut short"] == 1
    assert flow["evidence or identical pictures disagree on the label"] == 2
    assert flow["images used"] == summary["flow"]["used"] == 159
    parts = {name: (int(images), int(ill), int(groups)) for name, images, ill, _, groups in rows(text, "Parts")[:-1]}
    assert parts == {name: (p["images"], p["fractured"], p["groups"]) for name, p in summary["parts"].items()}
    assert set(parts) == {"train", "val", "val/view", "test", "test/view"}
    assert rows(text, "Parts")[-1][:2] == ["unused", str(summary["unused"])]
    assert sum(images for images, _, _ in parts.values()) + summary["unused"] == 159
    by_view = {name: (int(images), int(ill)) for name, images, ill, _ in rows(text, "Fractured by view")}
    assert sum(images for images, _ in by_view.values()) == 159
    assert sum(ill for _, ill in by_view.values()) == summary["fractured"]
    assert "view: lateral" in text
    assert "IMG0000201: labelled 1, but the same picture as IMG0000003" in text
    assert summary["fingerprint"] in text
    assert summary["split_fingerprint"] in text


def test_what_may_leak_for_lack_of_patients_is_in_both(ray_local, atlas, tmp_path, capsys):
    assert prepared(atlas).summary()["warnings"] == []  # running file numbers
    for number, label in enumerate([0, 1] * 40):
        file = (
            tmp_path / "unknown" / ("normal", "fractured")[label] / f"{chr(97 + number % 26) * (1 + number // 26)}.jpg"
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(jpeg(picture(number, 60, 70)))
    main(["import", str(tmp_path / "unknown"), "--to", str(tmp_path / "set")])
    capsys.readouterr()
    main(["check", str(tmp_path / "set"), "--set", "data.size=32"])
    assert "warning: no patient and no file number is known: " in " ".join(capsys.readouterr().out.split())
    summary = json.loads(json.dumps(prepared(tmp_path / "set").summary()))
    assert summary["patients"] == {
        "patients": 0, "named": 0, "study": 0, "numbered": 0, "restarted": 0, "nothing": 80,
    }  # fmt: skip
    (warning,) = summary["warnings"]
    assert "may lie in training and test at once" in warning
    assert f"- {warning}" in datasheet(summary)


def test_another_split_of_the_same_data_changes_only_its_own_hash(ray_local, atlas):
    first, again, other = (prepared(atlas, **{"data.split.seed": seed}).summary() for seed in (0, 0, 1))
    assert first == again
    assert first["fingerprint"] == other["fingerprint"]
    assert first["split_fingerprint"] != other["split_fingerprint"]


def test_check_writes_the_datasheet_and_a_split_that_can_be_used_again(ray_local, atlas, tmp_path, capsys):
    sheet, split = tmp_path / "sheet.md", tmp_path / "split.parquet"
    shared = ["--set", "data.size=32", "--set", "data.split.block=4"]
    main(
        [
            "check",
            str(atlas),
            *shared,
            "--set",
            "data.split.protocol=view",
            "--datasheet",
            str(sheet),
            "--manifest",
            str(split),
        ]
    )
    assert "split (view): train" in capsys.readouterr().out
    stored = Manifest.read(split).table
    assert sets_named(stored["split"]) == ("train", "val", "val/unshifted", "test", "test/unshifted")
    again = prepared(atlas, **{"data.split.file": str(split)})
    assert again.sets == sets_named(stored["split"])
    for name in again.sets:
        assert set(again.table["image_id"].iloc[again.rows(name)]) == set(
            stored["image_id"][in_set(stored["split"], name)]
        )
    assert f"the split is read from {split}" in datasheet(again.summary())
    assert sheet.read_text().startswith("# Datasheet: ")


def test_names_cannot_break_the_tables(ray_local, atlas):
    summary = prepared(atlas).summary()
    summary |= {"origin": "a|b\nc <script>", "notes": ["x|y: <b>"] * 500}
    text = datasheet(summary)
    assert text.startswith("# Datasheet: a\\|b c &lt;script>\n")
    assert "| origin | a\\|b c &lt;script> |" in text
    assert text.count("- x\\|y: &lt;b>") == 200
    assert "- and notes on 300 more images" in text
    assert "\n\n\n" not in text
