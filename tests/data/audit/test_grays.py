"""Pictures that show nothing or look inverted: their fate, never tied to others, and sets of older versions."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from drawn_dicom import as_bytes, dataset
from drawn_fracatlas import Atlas, jpeg, picture
from PIL import Image

from fracray.data import __main__ as data
from fracray.data.audit.find import find
from fracray.data.audit.scan import examine
from fracray.data.audit.verdicts import judge
from fracray.data.manifest import MANIFEST, Manifest
from fracray.data.sources.fracatlas import read_fracatlas
from fracray.errors import run_verb


@pytest.fixture
def atlas(tmp_path: Path) -> Atlas:
    return Atlas(tmp_path / "FracAtlas")


def png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


WHITE = np.full((200, 160), 255, np.uint8)


def test_blank_pictures_are_counted_and_tied_to_nothing(atlas):
    blank = [
        atlas.add(1, 0, data=png(WHITE)),
        atlas.add(2, 1, data=png(WHITE)),
        atlas.add(3, 1, data=png(WHITE) + b"1"),
    ]
    blank.append(atlas.add(4, 0, data=jpeg(np.full((200, 160), 9, np.uint8))))
    cut = atlas.add(5, 1, data=png(np.repeat(WHITE, 40, 0))[:-30])  # begins as no blank one does
    sound = [atlas.add(number, number % 2) for number in range(10, 40)]
    manifest = examine(read_fracatlas(atlas.write()))
    table = manifest.table.set_index("image_id")
    assert (table.loc[blank, "status"] == "blank").all()
    assert table.loc[blank[0], "note"] == "shows nothing: one gray value, 255, all over"
    assert table.loc[cut, "status"] == "truncated"
    assert (table.loc[sound, "status"] == "ok").all()
    for column in ("component", "duplicate_of"):
        assert (table[column] == "").all()
    flow = manifest.flow()
    assert (flow.found, flow.blank, flow.truncated, flow.conflict, flow.used) == (35, 4, 1, 0, 30)
    assert "4 blank: the picture shows nothing" in flow.lines()[2]
    pd.testing.assert_frame_equal(examine(manifest).table, manifest.table)
    findings = find(manifest, "drawn", block=1)
    assert findings.duplicates.pixel.images == findings.duplicates.byte.images == 0
    assert (findings.grays.blank.images, findings.grays.blank.fractured) == (4, 2)
    assert [image.image_id for each in findings.grays.shown for image in each.images] == blank
    verdicts = {verdict.section: verdict for verdict in judge(findings)}
    assert verdicts["grays"].words == (
        "4 pictures show nothing, 2 of them fractured. fracray leaves blank pictures out."
    )  # fmt: skip
    assert "1 truncated, 4 blank" in verdicts["files"].why


def test_a_picture_that_looks_inverted_is_named_and_not_changed(atlas):
    """A limb on a dark ground, in 38 pictures; two with dark and bright exchanged, and a copy of one of them."""
    for number in range(40):
        image = limb_of(number)
        atlas.add(number, number % 2, data=png(255 - image if number in (7, 21) else image))
    copy = atlas.add(50, 1, data=png(255 - limb_of(7)) + b"1")
    manifest = examine(read_fracatlas(atlas.write()))
    table = manifest.table.set_index("image_id")
    named = ["IMG0000007", "IMG0000021", copy]
    assert table.index[table["opposed"] == 1].tolist() == named
    assert (table["status"] == "ok").all()
    findings = find(manifest, "drawn", block=1)
    assert findings.grays.opposed_ids == tuple(named)
    words = next(verdict.words for verdict in judge(findings) if verdict.section == "grays")
    assert f"3 pictures look inverted against the rest of the set, all of them fractured: {', '.join(named)}" in words


def limb_of(number: int) -> np.ndarray:
    y, x = np.mgrid[:200, :160]
    limb = 30 + 170 * np.exp(-(((x - 60 - number) / 25.0) ** 2)) + 10 * np.sin(y / (3 + number % 7))
    return np.clip(limb, 0, 255).astype(np.uint8)


def hospital(root: Path, blank: int = 3) -> Path:
    """30 DICOM files, the first of which hold one value."""
    for number in range(30):
        stored = picture(number).astype(np.uint16) << 4 if number >= blank else np.full((200, 160), 77, np.uint16)
        folder = root / ("fractured" if number % 2 else "normal")
        folder.mkdir(parents=True, exist_ok=True)
        made = dataset(stored, f"1.2.{number}", bits=12)
        if number == blank:
            del made.BitsStored
        (folder / f"{number}.dcm").write_bytes(as_bytes(made))
    return root


def test_import_check_and_audit_name_them(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FRACRAY_CACHE", str(tmp_path / "cache"))
    imported = tmp_path / "set"
    assert run_verb(data.main, ["import", str(hospital(tmp_path / "h")), "--to", str(imported)]) == 0
    assert "3 blank: the picture shows nothing" in capsys.readouterr().out
    assert run_verb(data.main, ["audit", str(imported), "--html", str(tmp_path / "a.html")]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "look grays: 3 pictures show nothing, 1 of them fractured." in out
    assert "(0028,0101) BitsStored is missing: taken as BitsAllocated, 16" in out
    assert "holds values between 77 and 77 only" in out
    assert "BitsStored is missing" in (tmp_path / "a.html").read_text()


def older(imported: Path) -> Manifest:
    """The manifest of an imported set as the version before wrote it: blank pictures were used, or in conflict."""
    manifest = Manifest.read(imported / MANIFEST)
    blank = manifest.table["status"] == "blank"
    table = manifest.table.copy()
    table.loc[blank, "status"] = "conflict"
    table.loc[blank, "note"] = "labelled 1, but the same picture as x, with the other label"
    replace(manifest, table=table, audit=0).write(imported / MANIFEST)
    old = pq.read_table(imported / MANIFEST)
    metadata = {key: value for key, value in old.schema.metadata.items() if key != b"fracray.audit"}
    pq.write_table(old.drop_columns(["opposed"]).replace_schema_metadata(metadata), imported / MANIFEST)
    return manifest


def test_a_set_imported_by_an_older_version_is_examined_again_and_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FRACRAY_CACHE", str(tmp_path / "cache"))
    imported = tmp_path / "set"
    assert run_verb(data.main, ["import", str(hospital(tmp_path / "h")), "--to", str(imported)]) == 0
    new = older(imported)
    for _ in range(2):  # examined, then from the cache
        capsys.readouterr()
        assert run_verb(data.main, ["audit", str(imported)]) == 0
        out = " ".join(capsys.readouterr().out.split())
        assert (
            "was imported by another version of fracray, so it was examined again: 3 of its pictures show nothing"
            in out
        )
        assert "import it again" in out
        assert "conflict" not in out.split("conflicts:")[0]
    (kept,) = (tmp_path / "cache" / "manifests").iterdir()
    again = Manifest.read(kept)
    assert again.fingerprint() == new.fingerprint()
    assert again.table["status"].tolist() == new.table["status"].tolist()
    assert again.table["note"].tolist() == new.table["note"].tolist()
