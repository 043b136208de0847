"""`data import`: every kind of source, what the set holds, and each bad input's one error, through the verb."""

import os
import shutil
import stat
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from drawn_dicom import as_bytes, dataset
from drawn_fracatlas import Atlas, jpeg, picture

from fracray.data import __main__ as data
from fracray.data.manifest import MANIFEST, Manifest
from fracray.data.sources.fracatlas import read_fracatlas
from fracray.data.sources.image_folder import list_images
from fracray.data.sources.import_set import SALT, open_imported
from fracray.errors import InputError, run_verb


@pytest.fixture
def bring(tmp_path, capsys):
    """Imports a source into tmp_path/set, and returns the table by image id."""

    def run(source, *words):
        assert run_verb(data.main, ["import", str(source), "--to", str(tmp_path / "set"), *map(str, words)]) == 0
        assert "data check" in capsys.readouterr().out
        return Manifest.read(tmp_path / "set" / MANIFEST).table.set_index("image_id")

    return run


@pytest.fixture
def refuse(tmp_path, capsys):
    """Checks that an import is refused with exit code 2, one error and nothing left behind; returns the error."""

    def run(source, *words):
        before = sorted(tmp_path.iterdir())
        assert run_verb(data.main, ["import", str(source), "--to", str(tmp_path / "set"), *map(str, words)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert sorted(tmp_path.iterdir()) == before
        return error

    return run


def hospital(root: Path, names=("a", "b", "c", "d"), csv: str | None = None) -> Path:
    """A folder of drawn pictures and, with `csv`, its labels.csv."""
    root.mkdir(exist_ok=True)
    for seed, name in enumerate(names):
        file = root / f"{name}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(jpeg(picture(seed)))
    if csv is not None:
        (root / "labels.csv").write_text(csv)
    return root


FOUR = "image,label\na,1\nb,0\nc,1\nd,0\n"

# ---------------------------------------------------------------- FracAtlas


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_an_imported_fracatlas_equals_a_fracatlas_that_is_read_directly(bring, tmp_path, packed):
    atlas = Atlas(tmp_path / "FracAtlas")
    for number in range(1, 5):
        atlas.box(atlas.add(number, number % 2, multiscan=1), (1, 2, 3, 4)) if number % 2 else atlas.add(number)
    root = source = atlas.write()
    if packed:
        source = Path(shutil.make_archive(str(tmp_path / "atlas"), "zip", tmp_path, "FracAtlas"))
    table = bring(source)
    expected = read_fracatlas(root).table.set_index("image_id")
    for column in ("path", "label", "region", "view", "multiscan", "csv_fractured"):
        assert table[column].tolist() == expected[column].tolist()
    assert (table["sha256"] != "").all()
    assert not (tmp_path / "set" / SALT).exists()  # no patient, so no salt
    if packed:
        assert (tmp_path / "set" / "files").is_dir()
        shutil.rmtree(root)
        moved = tmp_path / "elsewhere"
        (tmp_path / "set").rename(moved)
        assert all((open_imported(moved).root / path).is_file() for path in table["path"])
    else:
        assert not (tmp_path / "set" / "files").exists()


# ---------------------------------------------------------------- a table of labels


def test_columns_are_found_by_name_and_by_option(bring, tmp_path):
    csv = (
        "File Name;finding;Patient-ID;projection;Body Part;Gender;Age;metal\n"
        "a.jpg;Break;P1;lateral;Hand, Wrist;f;45;1\nb.jpg;fissure;P1;;;M;x;0\nc.jpg;none;P2;;;;;\nd.jpg;NONE;;;;;;\n"
    )
    root = hospital(tmp_path / "h", csv=csv)
    words = (
        "--column",
        "label=finding",
        "--positive",
        "break,fissure",
        "--negative",
        "none",
        "--licence",
        "internal use",
    )
    table = bring(root, *words)
    assert Manifest.read(tmp_path / "set" / MANIFEST).licence == "internal use"
    assert table["label"].tolist() == [1, 1, 0, 0]
    assert table.loc["a", ["view", "region", "sex", "age", "hardware"]].tolist() == [
        "lateral",
        "hand+wrist",
        "F",
        45,
        1,
    ]
    assert table.loc["b", ["sex", "hardware"]].tolist() == ["M", 0]
    patient = table["patient"]
    assert patient["a"] == patient["b"] != patient["c"] != ""
    assert patient["d"] == ""
    assert "P1" not in table.to_csv()


def test_an_empty_cell_is_a_label_only_with_an_option(bring, tmp_path):
    """GRAZPEDWRI-DX writes 1 or nothing."""
    root = hospital(tmp_path / "h", csv="filestem,fracture_visible\na,1.0\nb,\nc,\nd,1.0\n")
    assert bring(root, "--one-class")["status"].tolist() == ["ok", "unlisted", "unlisted", "ok"]
    shutil.rmtree(tmp_path / "set")
    assert bring(root, "--negative", "")["label"].tolist() == [1, 0, 0, 1]


def test_files_without_a_row_and_rows_without_a_file_are_counted(bring, tmp_path):
    root = hospital(tmp_path / "h", csv="image,label\na,1\nb,0\nx,1\ny.jpg,0\na,1\nb,1\n")
    table = bring(root, "--one-class")
    status = table["status"]
    assert status.to_dict() == {
        "a": "ok", "b": "conflict", "c": "unlisted", "d": "unlisted", "x": "missing", "y.jpg": "missing",
    }  # fmt: skip
    assert "listed again with the same label" in table.loc["a", "note"]
    assert "line 4 of labels.csv" in table.loc["x", "note"]


def test_files_are_named_by_path_where_names_repeat(bring, refuse, tmp_path):
    names = ("one/x", "one/y", "two/x", "two/z")
    root = hospital(tmp_path / "h", names, "image,label\nx,1\n")
    assert "line 2: 'x' may be any of 2 files, one/x.jpg and two/x.jpg among them" in refuse(root)
    (root / "labels.csv").write_text("image,label\nh/one/x.jpg,1\none\\y.jpg,0\n./two/x,0\nz,1\n")
    assert bring(root)["label"].to_dict() == {"one/x.jpg": 1, "y": 0, "two/x.jpg": 0, "z": 1}


def test_a_path_is_tried_unchanged_before_the_folders_name_is_removed(bring, tmp_path):
    root = hospital(tmp_path / "h", ("a", "h/a", "b"))
    (root / "labels.csv").write_text(f"image,label\nh/a.jpg,1\n{root}/a.jpg,0\nh/b.jpg,1\n")
    assert bring(root).set_index("path")["label"].to_dict() == {"a.jpg": 0, "h/a.jpg": 1, "b.jpg": 1}


def test_a_table_may_name_views_as_dicom_headers_do(bring, tmp_path):
    root = hospital(tmp_path / "h", csv="image,label,view\na,1,AP\nb,0,LL;PA\nc,1,Sunrise\nd,0,\n")
    assert bring(root)["view"].tolist() == ["frontal", "frontal+lateral", "sunrise", ""]


ODD = ("with space", "Röntgen-手", "line\nbreak", 'comma,quote"s', "é")


def test_unusual_file_names_are_accepted(ray_local, bring, tmp_path, capsys):
    """Spaces, Unicode, newlines and quotes; composed in the table and decomposed on the disk, as on macOS."""
    import unicodedata

    root = tmp_path / "a folder, ö\n"
    hospital(root, [unicodedata.normalize("NFD", name) for name in ODD] + [f"p{n}" for n in range(15)])
    labels = pd.DataFrame({"image": [*ODD, *(f"p{n}.jpg" for n in range(15))], "label": [0, 1] * 10})
    labels.to_csv(root / "labels.csv", index=False)
    table = bring(root)
    assert (table["status"] == "ok").all()
    assert len(table) == 20
    check = ["check", str(tmp_path / "set"), "--set", "data.size=32", "--set", "data.split.block=1"]
    assert run_verb(data.main, check) == 0
    assert "used 20" in capsys.readouterr().out


# ---------------------------------------------------------------- a folder per class


def test_class_folders_are_found_by_their_usual_names_at_any_depth(bring, tmp_path):
    names = ("train/Fractured/a", "train/not fractured/b", "val/Fractured/c", "val/NORMAL/s1/d", "other/e")
    table = bring(hospital(tmp_path / "h", names))
    assert table["label"][["a", "b", "c", "d"]].tolist() == [1, 0, 1, 0]
    assert table.loc["e", "status"] == "unlisted"


def test_class_folders_are_named_by_option_with_patterns(bring, refuse, tmp_path):
    names = ("p1/study1_positive/a", "p1/study2_negative/b", "p2/study1_negative/c", "p2/study1_positive/d")
    root = hospital(tmp_path / "h", names)
    error = refuse(root)
    assert "its pictures are in: p1/study1_positive, p1/study2_negative" in error
    assert "--classes NOT_FRACTURED=FOLDER FRACTURED=FOLDER" in error
    words = ("--classes", "NOT_FRACTURED=study*_negative", "FRACTURED=p1/study1_positive,study?_positive")
    assert bring(root, *words)["label"].to_dict() == {"a": 1, "b": 0, "d": 1, "c": 0}


def test_folders_of_both_classes_above_one_file_are_a_conflict(bring, tmp_path):
    table = bring(hospital(tmp_path / "h", ("fractured/a", "normal/b", "fractured/normal/c")))
    assert table["status"].to_dict() == {"a": "ok", "c": "conflict", "b": "ok"}


# ---------------------------------------------------------------- DICOM


def radiograph(root: Path, name: str, seed: int, **tags: object) -> Path:
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(as_bytes(dataset(picture(seed), instance=f"1.2.3.{seed}", **tags)))
    return file


def test_dicom_is_labelled_by_every_identifier_and_no_identifier_is_stored(bring, tmp_path):
    root = tmp_path / "h"
    for seed in range(8):
        radiograph(
            root, f"s{seed // 2}/IM{seed}", seed, PatientID=f"MRN-{seed // 4}", StudyInstanceUID=f"1.7.{seed // 2}",
            AccessionNumber=f"ACC{seed // 2}", PatientAge="030Y", PatientSex="M", ViewPosition="AP",
            BodyPartExamined="ANKLE", Manufacturer="Agfa", ManufacturerModelName="DX",
        )  # fmt: skip
    rows = ["ACC0,1", "1.7.1,0", "1.2.3.4,1", "s2/IM5,0", "IM6,1", "ACC77,0"]
    (root / "labels.csv").write_text("accession,fracture\n" + "\n".join(rows) + "\n")
    table = bring(root).reset_index().set_index("path")
    labelled = table.loc[[f"s{seed // 2}/IM{seed}" for seed in range(8)]]
    assert labelled["label"][:7].tolist() == [1, 1, 0, 0, 1, 0, 1]
    assert labelled["status"].tolist() == ["ok"] * 7 + ["unlisted"]
    first = labelled.iloc[0]
    assert first[["region", "view", "batch", "sex"]].tolist() == ["ankle", "frontal", "Agfa DX", "M"]
    assert first["age"] == 30
    assert labelled["patient"].nunique() == 2
    assert labelled["study"].nunique() == 4
    assert table.loc["", "image_id"] == "row 6"
    kept = table.reset_index().drop(columns=["path", "look"]).astype(str).to_csv()
    assert not [word for word in ("MRN", "ACC", "Doe", "1.2.3", "1.7.") if word in kept]
    salt = tmp_path / "set" / SALT
    assert stat.S_IMODE(salt.stat().st_mode) == 0o600
    assert salt.read_bytes().strip() not in (tmp_path / "set" / MANIFEST).read_bytes()


def test_an_accession_number_equal_to_another_files_name_is_refused(bring, refuse, tmp_path):
    root = tmp_path / "h"
    radiograph(root, "100.dcm", 1, AccessionNumber="200")
    radiograph(root, "200.dcm", 2, AccessionNumber="100")
    radiograph(root, "300.dcm", 3, AccessionNumber="300")
    csv = root / "labels.csv"
    csv.write_text("id,label\n100,1\n200,0\n300,0\n")
    error = refuse(root)
    assert "line 2: '100' is the name of 100.dcm, and an identifier in the header of 200.dcm; name the column" in error
    for column, labels in (("accession", [0, 1, 0]), ("filename", [1, 0, 0])):
        csv.write_text(f"{column},label\n100,1\n200,0\n300,0\n")
        assert bring(root).sort_values("path")["label"].tolist() == labels
        shutil.rmtree(tmp_path / "set")


def test_files_belong_to_one_patient_by_any_identifier_of_table_or_header(bring, tmp_path):
    root = tmp_path / "h"
    headers = [("P", "1.0"), ("P", "1.1"), ("Q", "1.2"), ("R", "1.2"), ("S", "1.3"), ("", "1.4"), ("", "1.4")]
    for seed, (patient, study) in enumerate(headers):
        radiograph(root, f"{seed}.dcm", seed, PatientID=patient, StudyInstanceUID=study)
    table = ["T", "U", "V", "W", "U", "", ""]
    rows = "".join(f"{seed}.dcm,{seed % 2},{patient},s{seed}\n" for seed, patient in enumerate(table))
    (root / "labels.csv").write_text("file,label,patient,study\n" + rows)
    patient = bring(root).sort_values("path")["patient"].tolist()
    assert patient[0] == patient[1] == patient[4] != patient[2]  # one P, one U
    assert patient[2] == patient[3]  # one study by its header
    assert patient[5] == patient[6] != ""  # one study by its header, two by the table
    assert len({patient[0], patient[2], patient[5]}) == 3


@pytest.mark.parametrize("ids", [("", "X", "X", "X"), ("X", "X", "X", "X")], ids=["one empty", "all"])
def test_a_placeholder_in_headers_may_be_a_patient_in_the_table(bring, tmp_path, ids):
    root = tmp_path / "h"
    for seed, patient in enumerate(ids):
        radiograph(root, f"{seed}.dcm", seed, PatientID=patient, StudyInstanceUID=f"1.{seed}")
    (root / "labels.csv").write_text("file,label,patient\n0.dcm,1,X\n1.dcm,0,X\n2.dcm,1,Y\n3.dcm,0,\n")
    patient = bring(root).sort_values("path")["patient"].tolist()
    assert patient[0] == patient[1] != patient[2]
    assert "" not in patient[:3]
    assert patient[3] == ""


def test_hashes_are_equal_with_the_same_salt_and_differ_with_another(tmp_path):
    root = tmp_path / "h"
    for seed, folder in enumerate(("normal", "normal", "fractured", "fractured")):
        radiograph(root, f"{folder}/{seed}.dcm", seed, PatientID=f"P{seed % 2}", StudyInstanceUID=f"1.{seed}")

    def tables(name, *words):
        assert run_verb(data.main, ["import", str(root), "--to", str(tmp_path / name), *words]) == 0
        return Manifest.read(tmp_path / name / MANIFEST)

    first, second = tables("one"), tables("two")
    third = tables("three", "--salt", str(tmp_path / "one" / SALT))
    assert first.table["patient"].tolist() == third.table["patient"].tolist() != second.table["patient"].tolist()
    assert first.fingerprint() == second.fingerprint()  # the files are the same
    assert not (tmp_path / "three" / SALT).exists()


def test_one_patient_id_in_all_studies_is_a_placeholder(bring, tmp_path):
    for seed, folder in enumerate(("normal", "normal", "fractured", "fractured")):
        radiograph(tmp_path / "h", f"{folder}/{seed}.dcm", seed, PatientID="ANONYMOUS", StudyInstanceUID=f"1.{seed}")
    table = bring(tmp_path / "h")
    assert (table["patient"] == "").all()
    assert table["study"].nunique() == 4


def test_copies_and_files_without_a_picture_get_a_status(bring, tmp_path):
    root = tmp_path / "h"
    radiograph(root, "normal/1.dcm", 1)
    shutil.copy(radiograph(root, "fractured/2.dcm", 2), root / "fractured" / "again.dcm")
    radiograph(root, "normal/two.dcm", 3, NumberOfFrames=2)
    radiograph(root, "normal/vast.dcm", 4, Rows=60000, Columns=60000)
    table = bring(root).reset_index().set_index("path")
    assert table.loc["normal/two.dcm", ["status", "note"]].tolist() == ["unreadable", "2 frames: a radiograph has one"]
    assert "header announces more than 80,000,000 pixels" in table.loc["normal/vast.dcm", "note"]
    assert table.loc["fractured/again.dcm", "duplicate_of"] == table.loc["fractured/2.dcm", "image_id"]


# ---------------------------------------------------------------- an imported set as --data


@pytest.fixture
def stored(bring, tmp_path):
    root = hospital(tmp_path / "h", [f"p{n}" for n in range(24)])
    rows = "".join(f"p{n},{n % 2},pat{n // 2}\n" for n in range(24))
    (root / "labels.csv").write_text("image,label,patient\n" + rows)
    bring(root)
    return tmp_path / "set"


def test_a_file_with_a_new_time_is_accepted_and_a_changed_or_missing_one_is_named(stored, tmp_path):
    file = tmp_path / "h" / "p3.jpg"
    os.utime(file, ns=(1, 1))
    open_imported(stored)  # another time, the same bytes
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"x")
    with pytest.raises(InputError, match=r"h/p3\.jpg has changed since the import; restore it, or import"):
        open_imported(stored)
    file.unlink()
    with pytest.raises(InputError, match=r"h/p3\.jpg no longer exists .*; restore it, or import"):
        open_imported(stored)
    shutil.rmtree(tmp_path / "h")
    with pytest.raises(InputError, match=r"the folder of its files, .*/h, does not exist"):
        open_imported(stored)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("csv", "said"),
    [
        (
            "picture,verdict\na,1\n",
            "no column names the image file; the table has picture, verdict; name one with --column image=NAME",
        ),
        ("image,verdict\na,1\n", "no column says whether it is fractured; the table has image, verdict"),
        (
            "image,label\na,1\nb,perhaps\n",
            "line 3: label is 'perhaps', which is not among the values for fractured ('1', 'abnormal'",
        ),
        ("image,label\na,1\nb\n", "line 3: 'b' has 1 cells, and the header 2; repair the line"),
        ("image,label\na,1\nb,\"per\nhaps\"\n", "line 3: label is 'per\\nhaps', which is not among"),
        ("image,label\na,1\n\"b\nc\",1,2\n", "line 3: 'b\\nc,1,2' has 3 cells"),
        ("image,label,label\na,1,1\n", "the column 'label' appears twice"),
        ("image,label\nq,1\n", "none of its rows names a file in"),
        ("image,label\n", "none of its rows names a file in"),
        ("", "no header line"),
    ],
)  # fmt: skip
def test_a_bad_table_is_refused(refuse, tmp_path, csv, said):
    error = refuse(hospital(tmp_path / "h", csv=csv))
    assert said in error
    assert "labels.csv" in error


@pytest.mark.parametrize(
    ("text", "line"), [("image,label\nRöntgen,1\n", 2), ("Bild Röntgen,label\na,1\n", 1)], ids=["row", "header"]
)
def test_a_table_that_is_not_utf8_is_refused(refuse, tmp_path, text, line):
    root = hospital(tmp_path / "h")
    (root / "labels.csv").write_bytes(text.encode("latin-1"))
    assert f"labels.csv, line {line}: not UTF-8; save the table as CSV in UTF-8" in refuse(root)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--column", "label=lable"], "--column label=lable: "),
        (
            ["--column", "colour=x"],
            "--column colour=x: expected NAME=VALUE, where NAME is one of image, label",
        ),
        (["--column", "label"], "--column label: expected NAME=VALUE"),
        (["--positive", "1", "--negative", "1"], "'1' cannot be both"),
        (["--labels", "nowhere.csv"], "nowhere.csv: no such table"),
        (["--salt", "nowhere"], "--salt nowhere: no such file"),
        (["--salt", "~nosuch/x"], "--salt ~nosuch/x: no such user"),
        (["--labels", "~nosuch/x"], "--labels ~nosuch/x: no such user"),
        (["--licence", os.fsdecode(b"\xff")], "not UTF-8"),
        (["--positive", "break,"], "--positive 'break,': an empty value next to a comma"),
        (["--classes", "NOT_FRACTURED=x", "FRACTURED=y,"], "--classes FRACTURED 'y,': an empty value next to a comma"),
        (["--classes", "FRACTURED=x"], "--classes: name each class once"),
        (["--classes", "NOT_FRACTURED=x", "FRACTURED=y"], "no picture there"),
        (["--classes", "NOT_FRACTURED=x", "FRACTURED=y", "--positive", "1"], "leave out the options of the other"),
    ],
)
def test_bad_options_are_refused(refuse, tmp_path, words, said):
    assert said in refuse(hospital(tmp_path / "h", csv=FOUR), *words)


def test_invalid_sources_and_targets_are_refused(refuse, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no picture in it (0 files)" in refuse(tmp_path / "empty")
    assert "no such file or folder" in refuse(tmp_path / "nowhere")
    (tmp_path / "short").write_bytes(b"0" * 8)
    assert "8 bytes, not the 64 hex digits" in refuse(hospital(tmp_path / "h", csv=FOUR), "--salt", tmp_path / "short")
    (tmp_path / "h" / "more.csv").write_text(FOUR)
    assert "several tables: labels.csv, more.csv; choose the one with the labels by --labels" in refuse(tmp_path / "h")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "mine").write_text("")
    assert "exists already; name a new folder" in refuse(tmp_path / "h", "--labels", "more.csv")


@pytest.mark.parametrize(
    ("to", "said"),
    [("~nosuch/x", "--to ~nosuch/x: no such user"), ("x" * 300, "File name too long; name another path")],
)
def test_an_invalid_target_is_refused_by_its_flag(tmp_path, capsys, monkeypatch, to, said):
    monkeypatch.chdir(tmp_path)
    assert run_verb(data.main, ["import", str(hospital(tmp_path / "h", csv=FOUR)), "--to", to]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --to ")
    assert said in error


def test_a_source_of_an_unknown_user_is_refused(refuse):
    assert "PATH ~nosuch/x: no such user" in refuse("~nosuch/x")


def test_names_that_are_not_utf8_are_refused(refuse, tmp_path):
    below = hospital(tmp_path / "h", ("a", os.fsdecode(b"b\xff/c")), csv=FOUR)
    assert "b\\xff/c.jpg': its name is not UTF-8" in refuse(below)
    root = hospital(tmp_path / os.fsdecode(b"r\xff"), csv=FOUR)
    assert "its name is not UTF-8" in refuse(root)
    only = tmp_path / "only"
    only.mkdir()
    root.rename(only / root.name)
    assert "its name is not UTF-8" in refuse(only)
    table = hospital(tmp_path / "t") / os.fsdecode(b"\xff.csv")
    table.write_text(FOUR + "x,1\n")
    assert "its name is not UTF-8" in refuse(table.parent)


def test_folders_may_be_nested_deeper_than_the_recursion_limit(tmp_path):
    """Only `list_images`, because pytest and Python themselves fail on such folders."""
    folder = root = tmp_path / "h"
    hospital(root, ("b", "e"))
    try:
        for _ in range(1100):
            folder /= "d"
            folder.mkdir()
        shutil.copy(root / "b.jpg", folder / "a.jpg")
        assert [file.path for file in list_images(root)[0]] == ["b.jpg", "d/" * 1100 + "a.jpg", "e.jpg"]
    finally:
        subprocess.run(["rm", "-rf", root], check=True)


def test_a_failed_import_leaves_none_of_the_folders_it_made(tmp_path):
    (tmp_path / "p1").mkdir()
    words = ["import", str(hospital(tmp_path / "h")), "--to", str(tmp_path / "p1/p2/p3/out")]
    assert run_verb(data.main, words) == 2
    assert list((tmp_path / "p1").iterdir()) == []


def test_an_unreadable_file_is_not_reported_as_a_fault_of_the_target(refuse, tmp_path):
    root = hospital(tmp_path / "h", csv=FOUR)
    (root / "long").symlink_to("y" * 300)
    assert f"{root / 'long'}: cannot be read: File name too long; repair it, or leave it out" in refuse(root)


def test_columns_may_have_any_name(bring, tmp_path):
    csv = "row,row_count,row_min,column0\na,1,p,u\nb,0,p,v\nc,1,,w\nd,0,,x\n"
    words = ("image=row", "label=row_count", "patient=row_min", "batch=column0")
    table = bring(hospital(tmp_path / "h", csv=csv), *(word for name in words for word in ("--column", name)))
    assert table["label"].tolist() == [1, 0, 1, 0]
    assert table["batch"].tolist() == ["u", "v", "w", "x"]
    assert table["patient"]["a"] == table["patient"]["b"] != ""


def test_several_folders_of_fracatlas_are_refused(refuse, tmp_path):
    for name in ("one", "two"):
        atlas = Atlas(tmp_path / "both" / name)
        atlas.add(1)
        atlas.write()
    assert "several folders of FracAtlas: one, two; name one of them" in refuse(tmp_path / "both")


def test_a_link_to_a_parent_folder_is_refused_and_other_links_are_followed(bring, refuse, tmp_path):
    root = hospital(tmp_path / "h", csv=FOUR + "e,1\n")
    loop = root / "deep" / "loop"
    loop.parent.mkdir()
    loop.symlink_to(root)
    assert f"{loop}: a link to a folder that contains it" in refuse(root)
    loop.unlink()
    hospital(tmp_path / "elsewhere", ("q", "r", "s", "t", "e"))
    (root / "deep" / "e.jpg").symlink_to(tmp_path / "elsewhere" / "e.jpg")
    (root / "deep" / "itself.jpg").symlink_to("itself.jpg")
    table = bring(root)
    assert table["status"].to_dict() == {**dict.fromkeys("abcd", "ok"), "e": "ok", "itself": "unlisted"}


def test_unreadable_files_are_counted_and_never_block(bring, refuse, tmp_path):
    names = ("fractured/a", "normal/b")
    root = hospital(tmp_path / "h", names)
    os.mkfifo(root / "normal" / "pipe.jpg")
    (root / "normal" / "memory.png").symlink_to("/proc/self/mem")
    (root / "normal" / "gone.jpg").symlink_to("nowhere")
    (root / "normal" / "folder.jpg").mkdir()
    before = time.monotonic()
    table = bring(root)
    assert time.monotonic() - before < 20
    assert table["status"].to_dict() == {
        "a": "ok", "b": "ok", "gone": "unreadable", "memory": "unreadable", "pipe": "unreadable",
    }  # fmt: skip
    assert table.loc["pipe", "note"] == "not a file"
    shutil.rmtree(tmp_path / "set")
    for name in names:
        (root / f"{name}.jpg").write_bytes(b"no picture")
    assert (
        "no usable radiograph in it (found 5, unreadable 5, used 0); for instance a: its first bytes are not"
        in refuse(root)
    )
    os.mkfifo(root / "pipe.csv")
    assert "no such table" in refuse(root, "--labels", root / "pipe.csv")


def test_zip_bombs_and_damaged_zips_are_refused(refuse, tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.dcm", bytes(100 * 2**20))
    assert "refused as a zip bomb" in refuse(tmp_path / "bomb.zip")
    (tmp_path / "cut.zip").write_bytes((tmp_path / "bomb.zip").read_bytes()[:-30])
    assert "neither a folder nor a complete zip" in refuse(tmp_path / "cut.zip")


# ---------------------------------------------------------------- larger than memory or the disk

MEASURED = """
import resource, sys
from fracray.data.__main__ import main
from fracray.errors import run_verb
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
code = run_verb(main, sys.argv[1:])
print("rss", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
raise SystemExit(code)
"""
ROWS = 1_000_000


@pytest.mark.parametrize("matched", [True, False], ids=["of existing files", "of other files"])
def test_a_table_of_millions_of_rows_is_read_in_bounded_memory(tmp_path, matched):
    root = hospital(tmp_path / "h", [f"p{n}" for n in range(4)])
    with open(root / "labels.csv", "w") as csv:
        csv.write("image,label,remark\n")
        for start in range(0, ROWS, 100_000):
            rows = range(start, start + 100_000)
            csv.write("".join(f"{f'p{n % 4}' if matched else n}.jpg,{n % 2},{'x' * 20}\n" for n in rows))
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, "import", root, "--to", tmp_path / "set"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert int(done.stdout.rpartition("rss ")[2]) < 200
    if matched:
        assert done.returncode == 0, done.stderr
        assert Manifest.read(tmp_path / "set" / MANIFEST).table["label"].tolist() == [0, 1, 0, 1]
    else:
        assert done.returncode == 2
        assert "more than 100,000 rows name no file" in done.stderr
        assert done.stderr.count("\n") == 1


LIMITED = """
import resource, sys
from fracray.data.__main__ import main
from fracray.errors import run_verb
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
raise SystemExit(run_verb(main, sys.argv[2:]))
"""


@pytest.mark.parametrize(("packed", "limit"), [(False, 8_000), (True, 6_000)], ids=["at the manifest", "at the files"])
def test_a_full_disk_leaves_no_partial_set(bring, tmp_path, packed, limit):
    """A limit on file sizes simulates a full disk."""
    root = source = hospital(tmp_path / "h", csv=FOUR)
    if packed:
        source = Path(shutil.make_archive(str(tmp_path / "h"), "zip", root))
    before = sorted(tmp_path.iterdir())
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(limit), "import", source, "--to", tmp_path / "set"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert "File too large" in done.stderr
    assert done.stderr.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before
    assert (bring(source)["status"] == "ok").all()


def test_shards_of_a_full_disk_do_not_count_as_complete(ray_local, stored, cache, monkeypatch, capsys):
    """Ray's tasks write the shards to a separate small file system; with more space the same command completes."""
    mount = cache / "small"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", mount], check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        monkeypatch.setenv("FRACRAY_CACHE", str(mount))
        words = ["check", str(stored), "--set", "data.size=224", "--set", "data.split.block=1"]
        assert run_verb(data.main, words) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert "cannot write shards" in error
        assert "No space left on device; free space or choose another data.cache\n" in error
        assert not list((mount / "shards").iterdir())
        subprocess.run(["mount", "-o", "remount,size=8m", mount], check=True)
        assert run_verb(data.main, words) == 0
    finally:
        subprocess.run(["umount", mount], check=False)
