"""What a folder holds: pictures are told by their first bytes, everything else is counted and named."""

import io
import os
import struct
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from drawn_dicom import as_bytes, dataset
from drawn_files import png, shade, tiff
from drawn_fracatlas import Atlas, jpeg, picture
from PIL import Image

from fracray.data import __main__ as data
from fracray.data.audit.scan import examine
from fracray.data.manifest import MANIFEST, Manifest
from fracray.data.sources.fracatlas import read_fracatlas
from fracray.data.sources.import_set import open_imported
from fracray.errors import run_verb

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 100
PDF = b"%PDF-1.7\n" + b"x" * 100


@pytest.fixture
def bring(tmp_path, capsys):
    """Imports a source into tmp_path/set; returns its table by image id, and what was printed."""

    def run(source, *words):
        code = run_verb(data.main, ["import", str(source), "--to", str(tmp_path / "set"), *words])
        said = capsys.readouterr()
        assert code == 0, said.err
        return Manifest.read(tmp_path / "set" / MANIFEST).table.set_index("image_id"), said.out

    return run


def written(image: np.ndarray, kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind)
    return stream.getvalue()


def put(root: Path, **files: bytes) -> Path:
    """Files below `root`; in a keyword '__' stands for '/', and the last '_' for a dot."""
    for key, content in files.items():
        *folders, name = key.split("__")
        path = root.joinpath(*folders, ".".join(name.rsplit("_", 1)))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def test_pictures_come_in_under_any_name_and_of_every_kind_that_is_read(bring, tmp_path):
    gray = [picture(seed) for seed in range(12)]
    root = put(
        tmp_path / "h",
        fractured__a_jfif=jpeg(gray[0]),
        fractured__b_JPG=jpeg(gray[1]),
        fractured__c_jpe=jpeg(gray[2]),
        fractured__d=jpeg(gray[3]),
        fractured__e_dat=written(gray[4], "PNG"),
        fractured__f_jpg=written(gray[5], "PNG"),
        normal__g_tif=written(gray[6], "TIFF"),
        normal__h_BMP=written(gray[7], "BMP"),
        normal__i_webp=written(gray[8], "WEBP"),
        normal__j_gif=written(gray[9], "GIF"),
        normal__k_png=as_bytes(dataset(gray[10])),
        normal__l_dcm=written(gray[11], "TIFF"),
    )
    table, said = bring(root)
    assert (table["status"] == "ok").all(), table["note"]
    assert len(table) == 12
    assert "12 files: 12 pictures (4 JPEG, 2 PNG, 2 TIFF" in said


def test_all_that_a_folder_holds_is_counted_and_named(bring, tmp_path):
    root = put(
        tmp_path / "h",
        fractured__a_jpg=jpeg(picture(1)),
        normal__b_jpg=jpeg(picture(2)),
        fractured__scan_heic=HEIC,
        fractured__deep__volume_nii=struct.pack("<i", 348) + b"\0" * 340 + b"n+1\0",
        normal__wave_jp2=b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0" * 50,
        normal__broken_png=b"nothing that is known",
        normal__nothing_jpg=b"",
        reports__r1_pdf=PDF,
        reports__r2_pdf=PDF,
        reports__film=b"\0\0\0\x18ftypisom" + b"\0" * 50,
        reports__notes_txt=b"text",
        reports__odd=b"\x01\x02",
    )
    table, said = bring(root)
    held = sum(len(files) for _, _, files in os.walk(root))
    first = said.splitlines()[0]
    assert first.startswith(f"{held} files: 7 pictures (2 JPEG, ")
    for words in ("1 HEIC", "1 JPEG 2000", "1 NIfTI or Analyze", "1 empty", "1 unknown"):
        assert words in first
    for words in ("2 PDF (reports/r1.pdf)", "1 QuickTime or MP4 video (reports/film)", "1 TXT (reports/notes.txt)"):
        assert words in first
    assert sum(int(part.split()[0]) for part in first.partition("), ")[2].split(", ")) == held - 7
    status = table["status"].to_dict()
    assert [name for name in status if status[name] == "ok"] == ["a", "b"]
    assert sum(value == "unreadable" for value in status.values()) == 5
    assert "unreadable: 1 (scan): HEIC is not read: convert it to PNG, TIFF or DICOM" in said
    assert table.loc["nothing", "note"] == "an empty file"


def test_check_repeats_what_the_folder_held(ray_local, tmp_path, capsys):
    root = put(tmp_path / "h", x_pdf=PDF)
    for at in range(12):
        put(root, **{f"{'normal' if at % 2 else 'fractured'}__p{at}_tif": written(picture(at), "TIFF")})
    assert run_verb(data.main, ["import", str(root), "--to", str(tmp_path / "set")]) == 0
    words = ["check", str(tmp_path / "set"), "--set", "data.size=32", "--set", "data.split.block=1"]
    assert run_verb(data.main, words) == 0
    assert capsys.readouterr().out.count("13 files: 12 pictures (12 TIFF), 1 PDF (x.pdf)") == 2


def test_a_set_of_an_earlier_version_works_and_says_what_it_may_lack(bring, tmp_path):
    root = put(tmp_path / "h", fractured__a_jpg=jpeg(picture(1)), normal__b_jpg=jpeg(picture(2)))
    bring(root)
    path = tmp_path / "set" / MANIFEST
    table = pq.read_table(path)
    kept = {name: text for name, text in table.schema.metadata.items() if name != b"fracray.remarks"}
    pq.write_table(table.replace_schema_metadata(kept), path)
    earlier = open_imported(tmp_path / "set")
    assert len(earlier.used) == 2
    assert "imported by an earlier version" in earlier.remarks[0]


def test_a_folder_without_a_picture_says_what_it_holds(tmp_path, capsys):
    root = put(tmp_path / "h", a_pdf=PDF, b_txt=b"x")
    assert run_verb(data.main, ["import", str(root), "--to", str(tmp_path / "set")]) == 2
    assert "no picture in it (2 files: 1 PDF (a.pdf), 1 TXT (b.txt))" in capsys.readouterr().err


def test_a_row_whose_file_is_there_but_unreadable_says_so(bring, tmp_path):
    root = put(
        tmp_path / "h",
        a_jpg=jpeg(picture(1)),
        b_jpg=jpeg(picture(2)),
        c_heic=HEIC,
        d_pdf=PDF,
        e_txt=b"text",
        f_jpg=b"",
        a_pdf=PDF,
        labels_csv=b"image,label\na,1\nb.jpg,0\nc,1\nd.pdf,0\nh/e.txt,1\nf.jpg,0\ng.jpg,1\na.pdf,1\n",
    )
    table, said = bring(root)
    assert table["status"].to_dict() == {
        "a": "ok", "b": "ok", "c": "unreadable", "f": "unreadable", "d.pdf": "unreadable", "e.txt": "unreadable",
        "a.pdf": "unreadable", "g.jpg": "missing",
    }  # fmt: skip
    assert table.loc["d.pdf", "note"].startswith("PDF is not read")
    assert table.loc["c", "label"] == 1
    assert "-5 unreadable" in said
    assert "-1 missing" in said


def test_pictures_that_were_converted_are_found_under_another_suffix(bring, tmp_path):
    """A table of DICOM names with PNG files, and files that a browser renamed; only where there is no doubt."""
    root = put(
        tmp_path / "h",
        a_png=written(picture(1), "PNG"),
        b_jfif=jpeg(picture(2)),
        c=jpeg(picture(3)),
        d_png=written(picture(4), "PNG"),
        e_png=written(picture(5), "PNG"),
        e_tif=written(picture(6), "TIFF"),
        labels_csv=b"image,label\na.dcm,1\nb.jpg,0\nc.jpeg,1\nd.png,1\nd.jpg,0\ne.jpg,1\nf.jpg,0\n",
    )
    table, _ = bring(root)
    assert table["status"].to_dict() == {
        "a": "ok", "b": "ok", "c": "ok", "d": "ok", "e.png": "unlisted", "e.tif": "unlisted",
        "d.jpg": "missing", "e.jpg": "missing", "f.jpg": "missing",
    }  # fmt: skip
    assert table.loc["a", "note"] == "the table names a.dcm"
    assert table["label"][["a", "b", "c", "d"]].tolist() == [1, 0, 1, 1]


def test_a_mask_is_not_taken_for_a_picture_that_is_missing(bring, tmp_path):
    root = put(
        tmp_path / "h",
        images__a_jpg=jpeg(picture(1)),
        images__b_jpg=jpeg(picture(2)),
        masks__a_png=written(picture(3), "PNG"),
        masks__c_png=written(picture(4), "PNG"),
        labels_csv=b"image,label\na.jpg,1\nb.jpg,0\nc.jpg,1\n",
    )
    table, _ = bring(root)
    assert table["status"].to_dict() == {
        "images/a.jpg": "ok", "b": "ok", "masks/a.png": "unlisted", "c": "unlisted", "c.jpg": "missing",
    }  # fmt: skip


def test_two_names_with_other_labels_for_one_converted_file_are_not_believed(bring, tmp_path):
    root = put(
        tmp_path / "h",
        a_png=written(picture(1), "PNG"),
        b_png=written(picture(2), "PNG"),
        c_png=written(picture(3), "PNG"),
        labels_csv=b"image,label\na.jpg,1\na.bmp,0\nb.jpg,0\nb.jpg,1\nc.png,1\nb2,0\n",
    )
    (root / "b2.png").write_bytes(written(picture(4), "PNG"))
    table, _ = bring(root)
    assert table.loc["a", "status"] == "unlisted"
    assert table.loc["b", "status"] == "conflict"


def test_pictures_that_cannot_be_told_apart_by_8_bits_are_used(bring, tmp_path):
    """16-bit colour of 12 bits in use: cut to 8 bits all such pictures are nearly black."""
    root = tmp_path / "h"
    for at in range(4):
        deep = np.dstack([picture(at).astype(np.uint16) * 16] * 3)
        put(root, **{f"{'normal' if at % 2 else 'fractured'}__p{at}_png": png(deep, 16, 2)})
        put(root, **{f"{'normal' if at % 2 else 'fractured'}__t{at}_tif": tiff(np.flip(deep, 1))})
    table, _ = bring(root)
    assert (table["status"] == "ok").all()
    assert table["brightness"].between(30, 200).all()
    assert set(table["mode"]) == {"RGB;16"}


# ---------------------------------------------------------------- FracAtlas' layout


def test_files_of_fracatlas_are_told_by_their_first_bytes_too(tmp_path):
    atlas = Atlas(tmp_path / "FracAtlas")
    names = [f"{atlas.add(number, number % 2)}.jpg" for number in range(1, 7)]
    root = atlas.write()
    folders = root / "images" / "Non_fractured", root / "images" / "Fractured"
    (folders[1] / names[0]).rename(folders[1] / "IMG0000001.jfif")
    (folders[0] / names[1]).write_bytes(HEIC)
    (folders[1] / names[2]).rename(folders[1] / "IMG0000003.json")
    (folders[0] / "extra.tif").write_bytes(tiff(np.rint(shade() * 255).astype(np.uint8)[..., None]))
    (folders[1] / "list.txt").write_text("text")
    manifest = examine(read_fracatlas(root))
    table = manifest.table.set_index("image_id")
    assert table["status"].to_dict() == {
        "IMG0000001": "ok", "IMG0000002": "unreadable", "IMG0000003": "missing", "IMG0000004": "ok",
        "IMG0000005": "ok", "IMG0000006": "ok", "extra": "unlisted", "IMG0000003.json": "unlisted",
    }  # fmt: skip
    assert table.loc["IMG0000001", "note"] == "the file is named 'IMG0000001.jfif'"
    assert table.loc["IMG0000002", "note"].startswith("HEIC is not read")
    assert manifest.remarks == (
        "8 files in the folders of images: 5 of pictures in dataset.csv, 2 other pictures, 1 TXT",
    )
