"""Patients of an imported set: by a pattern of names, by usual folders, by table; and what is refused or said."""

from pathlib import Path

import pytest
from drawn_fracatlas import Atlas, jpeg, picture

from fracray.config import SplitConfig
from fracray.data import __main__ as data
from fracray.data.manifest import MANIFEST, Manifest
from fracray.data.sources.patient_names import PatientPattern, patients_by_usual_names
from fracray.data.splits.groups import name_groups
from fracray.errors import InputError, run_verb


@pytest.mark.parametrize(
    ("pattern", "path", "patient"),
    [
        ("patient*", "train/patient07/study1/image1.png", "patient07"),
        ("patient*", "patient07.png", "patient07"),
        ("P*", "P007/P007_hand.png", "P007"),  # a folder comes before the file's name
        ("(P*)_*", "all/P0123_hand_1.png", "P0123"),
        ("(P*)_*.png", "all/P0123_hand_1.png", "P0123"),
        ("(*)_*", "a_b_c.jpg", "a"),
        ("(*)_?", "a_b_c.jpg", "a_b"),
        ("*_(P*)_*", "hand_P7_1.jpg", "P7"),
        ("(*)-*", "-1.jpg", ""),
        ("site*/patient*", "x/siteA/patient1/1.png", "siteA/patient1"),
        ("(site*)/*/(p*)", "siteA/2021/p1/1.png", "siteA/p1"),
        ("site*\\patient*", "siteA/patient1/1.png", "siteA/patient1"),
        ("P[0-9]*", "Pictures/P01/1.png", "P01"),
        ("[!0-9]*7", "a7/1.png", "a7"),
        ("[(]*[)]", "(x)/1.png", "(x)"),
        ("patient*", "Patient07/1.png", ""),  # upper and lower case differ
        ("patient", "patient07/1.png", ""),
        ("a/b/c/d", "b/c.png", ""),
        ("Jos\u00e9*", "Jose\u0301 1/1.png", "Jos\u00e9 1"),  # as macOS stores it
    ],
)
def test_a_pattern_finds_the_patient(pattern, path, patient):
    assert PatientPattern(pattern).patient(path) == patient


@pytest.mark.parametrize("pattern", ["", "/", "a/", "/a", "(a", "a)", "((a))", ")a(", "a//b"])
def test_a_pattern_that_cannot_be_meant_is_refused(pattern):
    with pytest.raises(InputError, match="--patient-from"):
        PatientPattern(pattern)


def test_folders_with_usual_names_are_patients():
    paths = [
        "a/patient01/x.png",
        "a/Patient 2/x.png",
        "sub-03/x.png",
        "subject_4b/x.png",
        "pat5/x.png",
        "patientA6/x.png",
    ]
    assert patients_by_usual_names(paths) == ["patient01", "Patient 2", "sub-03", "subject_4b", "pat5", "patientA6"]
    others = ["patients/x.png", "patients2021/1/x.png", "sub1/x.png", "pattern1/x.png", "patient/x.png", "patient1.png"]
    assert patients_by_usual_names(others) == [""] * len(others)
    assert patients_by_usual_names(["patient1/a.png", "patient1/b.png"]) == ["", ""]  # one of all tells nothing


# ---------------------------------------------------------------- through the import


def folder(root: Path, paths: list[str], csv: str = "") -> Path:
    for seed, path in enumerate(paths):
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(jpeg(picture(seed, 60, 70)))
    if csv:
        (root / "labels.csv").write_text(csv)
    return root


@pytest.fixture
def bring(tmp_path, capsys):
    """Runs an import; returns the exit code, what was printed, and the table by path where there is one."""

    def run(source: Path, *words: str):
        to = tmp_path / f"set{len(list(tmp_path.iterdir()))}"
        code = run_verb(data.main, ["import", str(source), "--to", str(to), *words])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        table = Manifest.read(to / MANIFEST).table.set_index("path") if code == 0 else None
        return code, said.out + said.err, table

    return run


CLASSES = ("normal", "fractured")
MURA = [f"{CLASSES[s - 1]}/patient{p:03d}/study{s}/image{k}.jpg" for p in range(4) for s in (1, 2) for k in (1, 2)]


def test_patients_are_found_by_usual_folders_and_by_a_pattern(bring, tmp_path):
    for root, words, note in (
        ("patient", (), "patients by folders with usual names: 4"),
        ("patient", ("--patient-from", "patient*"), ""),
        ("q", ("--patient-from", "q*"), ""),
    ):
        source = folder(tmp_path / f"{root}{len(words)}", [path.replace("patient", root) for path in MURA])
        code, said, table = bring(source, *words)
        assert code == 0
        assert note in said
        assert "patients: all 16 images are of 4 known patients" in said
        assert "warning" not in said
        assert table["patient"].nunique() == 4
        assert (table["patient"].groupby(table.index.str.split("/").str[1]).nunique() == 1).all()
        assert table["patient"].str.fullmatch("[0-9a-f]{16}").all()  # hashed like any other
    code, said, table = bring(folder(tmp_path / "q2", [path.replace("patient", "q") for path in MURA]))
    assert code == 0
    assert (table["patient"] == "").all()
    assert "warning: no patient and no file number is known: pictures of one patient may lie in training" in said


def test_what_a_pattern_leaves_out_is_refused_or_counted_and_named(bring, tmp_path):
    source = folder(tmp_path / "s", ["normal/P1_a.jpg", "fractured/P2_a.jpg", "fractured/wrist.jpg"])
    code, said, _ = bring(source, "--patient-from", "(P*)_*")
    assert code == 2
    assert "1 files have no patient" in said
    assert "fractured/wrist.jpg" in said
    code, said, table = bring(source, "--patient-from", "(P*)_*", "--some-without-patient")
    assert code == 0
    assert "1 files without a patient: fractured/wrist.jpg" in said
    assert "no patient is known for 1 of 3 images" in said
    assert (table["patient"] == "").tolist() == [path.endswith("wrist.jpg") for path in table.index]
    for pattern, words in (("x*", "fits no folder and no file name"), ("(P)*", "would be of one patient, 'P'")):
        code, said, _ = bring(source, "--patient-from", pattern)
        assert code == 2
        assert words in said
    code, said, _ = bring(source, "--some-without-patient")
    assert code == 2
    code, said, _ = bring(folder(tmp_path / "t", ["normal/p1/p2/a.jpg", "fractured/p3/a.jpg"]), "--patient-from", "p*")
    assert code == 2
    assert "'p1' and 'p2'" in said


def test_a_pattern_and_the_table_must_agree(bring, tmp_path):
    paths = ["p1/a.jpg", "p1/b.jpg", "p2/a.jpg", "p2/b.jpg", "p3/c.jpg"]
    csv = "path,label,patient_id\np1/a.jpg,0,X\np1/b.jpg,1,{}\np2/a.jpg,0,Y\np2/b.jpg,1,Y\np3/c.jpg,0,{}\n"
    code, said, table = bring(folder(tmp_path / "a", paths, csv.format("x", "")), "--patient-from", "p*")
    assert code == 0  # the folder says what the table leaves out
    assert table["patient"].nunique() == 3
    assert table["patient"]["p1/a.jpg"] == table["patient"]["p1/b.jpg"]
    assert "1 patient is written in several ways, such as 'X' and 'x'" in said
    code, said, _ = bring(folder(tmp_path / "b", paths, csv.format("Z", "")), "--patient-from", "p*")
    assert code == 2
    assert "p1/a.jpg and p1/b.jpg are one patient by it, 'p1', and two" in said
    code, said, table = bring(folder(tmp_path / "c", paths, csv.format("X", "Y")), "--patient-from", "p*")
    assert code == 0
    assert "several names by --patient-from, such as 'p2' and 'p3'" in said
    assert table["patient"]["p2/a.jpg"] == table["patient"]["p3/c.jpg"]


def test_ids_that_a_spreadsheet_changed_are_one_patient(bring, tmp_path):
    cells = ["0012", "12", "12.0", " 12", "P 7", "p07", "P7", "1.20", "1.2", "unknown", "NA", "n/a", "", "70"]
    csv = "image,label,patient_id\n" + "".join(f"{n:02d},{n % 2},{cell}\n" for n, cell in enumerate(cells))
    code, said, table = bring(folder(tmp_path / "s", [f"{n:02d}.jpg" for n in range(len(cells))], csv))
    assert code == 0
    first = [table["patient"].tolist().index(one) for one in table["patient"]]
    assert first == [0, 0, 0, 0, 4, 4, 4, 7, 8, 9, 9, 9, 9, 13]
    assert (table["patient"][9:13] == "").all()
    assert "1 cells of patient are not understood and left out, such as 'unknown'" in said
    assert "written in several ways" in said
    assert "no patient is known for 4 of 14 images" in said


def test_ids_that_programs_encode_differently_are_one_patient(bring, tmp_path):
    """A Mac decomposes letters, word processors change dashes, and cells keep signs that nobody sees."""
    ids = ["J\u00fcrgens", "Ju\u0308rgens", "\uff11\uff12", "12", "A-1", "A\u20111", "a\u22121", "A_1"]
    ids += ["B7", "B7\u200b", "\ufeffB7", "B\u00ad7\u00a0", "\u200b", "N/A\u200b", "\uff35nknown"]
    csv = "image,label,patient_id\n" + "".join(f"{n:02d},{n % 2},{cell}\n" for n, cell in enumerate(ids))
    code, said, table = bring(folder(tmp_path / "s", [f"{n:02d}.jpg" for n in range(len(ids))], csv))
    assert code == 0
    first = [table["patient"].tolist().index(one) for one in table["patient"]]
    assert first == [0, 0, 2, 2, 4, 4, 4, 7, 8, 8, 8, 8, 12, 12, 12]
    assert (table["patient"][12:] == "").all()
    assert "4 patients are written in several ways, such as 'J\u00fcrgens' and 'Ju\u0308rgens': ids that differ" in said


def test_with_one_salt_a_patient_has_one_hash_however_its_id_is_written(bring, tmp_path):
    csv = "image,label,patient\na,0,{}\nb,1,{}\n"
    salt, found = (), []
    for ids in (("0012", "P 7"), ("12", "p7"), ("12.0", "\uff307")):
        source = folder(tmp_path / ids[0], ["a.jpg", "b.jpg"], csv.format(*ids))
        to = tmp_path / f"of {ids[0]}"
        assert run_verb(data.main, ["import", str(source), "--to", str(to), *salt]) == 0
        salt = salt or ("--salt", str(to / "salt"))
        found.append(Manifest.read(to / MANIFEST).table["patient"].tolist())
    assert found[0] == found[1] == found[2]
    assert len(set(found[0])) == 2


def test_numbers_of_visits_tie_no_patients(bring, tmp_path):
    """A column named study often counts each patient's examinations: 1, 2, 3."""
    ids = [(f"pat{n // 4}", 1 + n % 2) for n in range(24)] + [("", 1), ("", 2), ("", 3), ("", 3)]
    csv = "image,label,patient,Study\n" + "".join(f"x{n:02d}y,{n % 2},{a},{b}\n" for n, (a, b) in enumerate(ids))
    code, said, table = bring(folder(tmp_path / "s", [f"x{n:02d}y.jpg" for n in range(len(ids))], csv))
    assert code == 0
    assert "2 values of the column 'Study' are of several patients, such as '1' of 'pat0' and 'pat1': " in said
    assert "patients: 6 known, of 24 images; without one 2 with a study only" in said
    patients, studies = table["patient"].tolist(), table["study"].tolist()
    assert [patients.index(one) for one in patients[:24]] == [n // 4 * 4 for n in range(24)]
    assert len(set(studies[:24])) == 12  # of each patient two
    assert studies[24:26] == ["", ""]  # of a visit of nobody knows whom
    assert studies[26] == studies[27] != ""
    groups = name_groups(Manifest.read(next(tmp_path.glob("set*")) / MANIFEST), SplitConfig()).used
    of_patients = groups["group"][groups["patient"] != ""]
    assert of_patients.nunique() == 6


def test_a_study_uid_links_two_spellings_of_a_patient(bring, tmp_path):
    """Two patients cannot share one, as they can the number of a visit."""
    rows = ["0,0,MRN12,1.2.840.7", "1,1,HOSP-12,1.2.840.7", "2,0,X,1.2.840.8", "3,1,Y,1.2.840.9"]
    csv = "image,label,patient,study\n" + "".join(f"{row}\n" for row in rows)
    code, said, table = bring(folder(tmp_path / "s", [f"{n}.jpg" for n in range(4)], csv))
    assert code == 0
    assert "as of visits" not in said
    patients = table["patient"].tolist()
    assert [patients.index(one) for one in patients] == [0, 0, 2, 3]


def test_every_row_of_a_file_may_name_its_patient_and_its_study(bring, tmp_path):
    """A table with a row per finding often names the patient in one of them only."""
    rows = ["0,0,,", "0,0,X,", "1,1,x,", "2,0,Y,", "2,0,Z,", "3,1,z,", "4,0,,S", "4,0,,T", "5,1,,T"]
    csv = "image,label,patient,study\n" + "".join(f"{row}\n" for row in rows)
    code, said, table = bring(folder(tmp_path / "s", [f"{n}.jpg" for n in range(6)], csv))
    assert code == 0
    patients = table["patient"].tolist()
    assert [patients.index(one) for one in patients] == [0, 0, 2, 2, 4, 4]
    assert all(patients)
    assert "1 file has several patients in the table, such as 'Y' and 'Z' for 2.jpg: taken as one patient" in said
    assert "1 file has several studies in the table, such as 'S' and 'T' for 4.jpg: taken as one patient" in said


@pytest.mark.parametrize(
    ("cell", "words"), [("X", "all 4 files have the same patient, 'X'"), ("", "is empty for every file")]
)
def test_a_column_of_patients_that_says_nothing_is_said(bring, tmp_path, cell, words):
    csv = "image,label,patient\n" + "".join(f"{n},{n % 2},{cell}\n" for n in range(4))
    code, said, _ = bring(folder(tmp_path / "s", [f"{n}.jpg" for n in range(4)], csv))
    assert code == 0
    assert words in said


def test_a_fracatlas_does_not_take_patients_in_silence(bring, tmp_path):
    atlas = Atlas(tmp_path / "FracAtlas")
    for number in range(4):
        atlas.add(number, number % 2)
    root = atlas.write()
    code, said, _ = bring(root, "--patient-from", "I*")
    assert code == 2
    assert "--labels dataset.csv" in said
    text = (root / "dataset.csv").read_text().splitlines()
    (root / "dataset.csv").write_text(
        "\n".join([f"{text[0]},patient_id", *(f"{line},P{n}" for n, line in enumerate(text[1:]))])
    )
    code, said, _ = bring(root)
    assert code == 0
    assert "dataset.csv has the column 'patient_id'" in said
    code, said, table = bring(root, "--labels", "dataset.csv", "--column", "image=image_id")
    assert code == 0
    assert table["patient"].nunique() == 4
