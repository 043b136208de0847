"""Findings and verdicts of an audit on drawn data sets."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from drawn_fracatlas import Atlas, jpeg, picture
from scipy.stats import binomtest

from fracray.data.audit.facts import Findings
from fracray.data.audit.find import BLOCK_SIZES, find
from fracray.data.audit.scan import examine
from fracray.data.audit.verdicts import LEVELS, judge, sum_up
from fracray.data.manifest import Manifest, build
from fracray.data.sources.fracatlas import read_fracatlas


def listed(count: int = 200, **columns: object) -> Manifest:
    """A manifest as if examined, without files: labels drawn, every other column as given or unremarkable."""
    rng = np.random.default_rng(0)
    plain = {"status": "ok", "width": 400, "height": 400, "exif_orientation": 1, "batch": "small", "mode": "L"}
    table = build(
        [
            plain | {"image_id": f"IMG{n:07d}", "label": int(rng.integers(0, 2)), "brightness": rng.normal(100, 9)}
            for n in range(count)
        ],
        Path("nowhere"),
    ).table.assign(sha256=[f"s{n}" for n in range(count)], pixel_hash=[f"p{n}" for n in range(count)])
    return Manifest(table.assign(**columns), Path("nowhere"))


def found(manifest: Manifest, block: int = 10) -> Findings:
    return find(manifest, "drawn", block)


def levels(findings: Findings) -> dict[str, str]:
    return {verdict.section: verdict.level for verdict in judge(findings)}


def test_an_unremarkable_set_is_ok_throughout():
    findings = found(listed(patient=[f"p{n // 2}" for n in range(200)]))
    assert set(levels(findings).values()) == {"ok"}
    assert sum_up(judge(findings)).level == "ok"
    assert all(verdict.why.endswith(".") for verdict in judge(findings))


def test_shares_have_wilson_intervals():
    manifest = listed(hardware=np.arange(200) // 150)
    (hardware,) = [each for each in found(manifest).prevalence.breakdowns if each.name == "hardware"]
    assert [(share.name, share.images) for share in hardware.values] == [("none visible", 150), ("visible", 50)]
    visible = hardware.values[1]
    assert visible.fractured == manifest.table["label"][150:].sum()
    interval = binomtest(visible.fractured, 50).proportion_ci(method="wilson")
    assert (visible.share, visible.low, visible.high) == (visible.fractured / 50, interval.low, interval.high)


def test_prevalence_that_depends_on_a_tag_or_a_number_is_named():
    label = np.tile([0, 1], 500)
    label[800:] = 1
    view = np.where(np.arange(1000) < 800, "frontal", "lateral")
    findings = found(listed(1000, label=label.astype(np.int8), view=view), block=1)
    words = next(verdict.words for verdict in judge(findings) if verdict.section == "prevalence")
    assert "100% where view is lateral" in words
    assert "50% to 100% by block of 50 file numbers" in words
    blocks = findings.prevalence.blocks
    assert blocks is not None
    assert (blocks.prefix, blocks.size, len(blocks.values)) == ("IMG", 50, 20)
    assert blocks.values[1].name == "50 to 99"
    assert sum(block.images for block in blocks.values) == 1000
    assert blocks.run == ("IMG0000799", "IMG0000999", 201)


@pytest.mark.parametrize("names", [["wrist-a", "b"], ["1a2", "3b4"], ["x7"]], ids=["no number", "many series", "one"])
def test_file_names_of_any_kind_do(names):
    ids = [
        f"{names[n % len(names)]}{'' if names == ['x7'] and n == 0 else chr(97 + n % 26) * (n // 26 + 1)}"
        for n in range(80)
    ]
    findings = found(listed(80, image_id=ids))
    assert findings.prevalence.blocks is None
    assert {score.name: score.unscored for score in findings.shortcuts.scores}["id neighbours"]
    assert findings.shortcuts.leaks == ()


def test_numbers_of_any_size_fit_the_chart():
    for last in (1, 10**17):
        blocks = found(listed(60, image_id=[f"x{n}" for n in range(59)] + [f"x{58 + last}"])).prevalence.blocks
        assert blocks is not None
        assert len(blocks.values) <= 24
        assert blocks.size in BLOCK_SIZES


def test_one_class_or_nothing_usable_is_a_stop():
    for columns in ({"label": np.int8(0)}, {"status": "unreadable", "pixel_hash": "", "sha256": ""}):
        findings = found(listed(60, **columns))
        assert levels(findings)["files"] == "stop"
        assert sum_up(judge(findings)).level == "stop"
        assert "nan" not in " ".join(verdict.words for verdict in judge(findings))


def test_a_label_that_needs_no_picture_is_a_stop():
    manifest = listed(300)
    betrayed = dataclasses.replace(
        manifest, table=manifest.table.assign(brightness=100.0 + 50 * manifest.table["label"])
    )
    findings = found(betrayed)
    assert levels(findings)["shortcuts"] == "stop"
    (brightness,) = [score for score in findings.shortcuts.scores if score.name == "brightness"]
    assert brightness.auroc.value == 1.0
    words = next(verdict.words for verdict in judge(findings) if verdict.section == "shortcuts")
    assert "brightness (AUROC 1.00)" in words


def test_json_holds_no_number_that_is_none():
    tree = found(listed(60, label=np.int8(1))).as_dict()

    def numbers(node: object) -> list[float]:
        if isinstance(node, dict):
            return [number for inner in node.values() for number in numbers(inner)]
        if isinstance(node, list):
            return [number for inner in node for number in numbers(inner)]
        return [node] if isinstance(node, float) else []

    assert numbers(tree)
    assert not any(math.isnan(number) for number in numbers(tree))
    assert tree["shortcuts"]["scores"][0]["auroc"] == {"value": None, "low": None, "high": None}


# ---------------------------------------------------------------- files


def test_copies_conflicts_and_lost_ends_are_counted_and_shown(tmp_path):
    atlas = Atlas(tmp_path / "FracAtlas")
    data = jpeg(picture(1))
    for number, label in ((1, 0), (2, 0), (3, 0)):
        atlas.add(number, label, data=data)
    atlas.add(4, 0, data=jpeg(picture(1), 60))
    atlas.add(5, 1, data=jpeg(picture(5)))
    atlas.add(6, 0, data=jpeg(picture(5))[:-400])
    atlas.add(7, 1, data=jpeg(picture(7), orientation=6))
    atlas.add(8, 0, data=b"no image")
    for number in range(9, 30):
        atlas.add(number, number % 2)
    findings = find(examine(read_fracatlas(atlas.write())), "drawn", block=1)
    alike = findings.duplicates
    assert (alike.byte.sets, alike.byte.images, alike.byte.largest) == (1, 3, 3)
    assert (alike.pixel.sets, alike.pixel.images) == (1, 3)
    assert (alike.near.sets, alike.near.images, alike.near.largest) == (2, 6, 4)
    largest = alike.shown[0]
    assert [image.image_id[-1] for image in largest.images] == ["1", "2", "3", "4"]
    assert [image.used for image in largest.images] == [True, False, False, True]
    assert largest.words == "3 have the same bytes, the others are near duplicates"
    (conflict,) = findings.conflicts.sets
    assert [(image.image_id[-1], image.label, image.status) for image in conflict.images] == [
        ("5", 1, "conflict"),
        ("6", 0, "truncated"),
    ]
    assert (findings.cut.truncated.images, findings.cut.truncated.fractured) == (1, 0)
    assert findings.formats.turned == ("IMG0000007",)
    assert findings.files.decoded == 27
    assert dict(findings.files.left_out)["unreadable"] == ("IMG0000008",)
    assert levels(findings) == {
        "files": "look",
        "formats": "ok",
        "duplicates": "look",
        "conflicts": "look",
        "cut": "look",
        "grays": "ok",
        "patients": "look",
        "prevalence": "ok",
        "shortcuts": levels(findings)["shortcuts"],
    }
    assert levels(findings)["shortcuts"] in LEVELS


def test_the_audit_of_fracatlas(fracatlas):
    """The development part: 3,483 of the archive's images."""
    findings = find(fracatlas, "FracAtlas", block=50)
    alike = findings.duplicates
    assert (alike.byte.sets, alike.byte.images) == (12, 27)
    assert (alike.pixel.sets, alike.pixel.images) == (78, 161)
    assert (alike.near.sets, alike.near.images, alike.near.largest) == (151, 315, 5)
    assert (findings.cut.truncated.images, findings.cut.truncated.fractured) == (59, 0)
    assert (findings.cut.refilled.images, findings.cut.refilled.fractured) == (9, 9)
    assert len(findings.conflicts.sets) == 12
    assert findings.prevalence.blocks is not None
    assert findings.prevalence.blocks.run[:2] == ("IMG0002298", "IMG0002615")
    scores = {score.name: score.auroc for score in findings.shortcuts.scores}
    assert 0.69 < scores["tags"].value < 0.79
    random, *blocks = findings.shortcuts.leaks
    assert random.auroc.value > 0.85
    assert [leak.auroc.value for leak in blocks] == sorted((leak.auroc.value for leak in blocks), reverse=True)
    assert levels(findings)["shortcuts"] == "stop"
