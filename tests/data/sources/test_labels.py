"""What cells of a table mean: never a turned label, every value with its fate, messages with true lines."""

import math
import shlex
import shutil
from pathlib import Path

import pytest
from drawn_fracatlas import jpeg, picture

from fracray.data import __main__ as data
from fracray.data.manifest import MANIFEST, Manifest
from fracray.data.sources.csv_file import open_csv
from fracray.data.sources.label_table import open_table
from fracray.data.sources.label_words import identifier, is_empty, label_word
from fracray.errors import run_verb
from fracray.runtime.spreadsheets import as_cell


@pytest.fixture
def pictures(tmp_path) -> Path:
    root = tmp_path / "h"
    root.mkdir()
    for seed, name in enumerate("abcdef"):
        (root / f"{name}.jpg").write_bytes(jpeg(picture(seed)))
    return root


@pytest.fixture
def read(pictures, tmp_path, capsys):
    """Imports the six pictures with a table; returns the exit code, the output, and the manifest where there is one."""

    def run(csv: str | bytes, *words: str):
        shutil.rmtree(tmp_path / "set", ignore_errors=True)
        (pictures / "labels.csv").write_bytes(csv if isinstance(csv, bytes) else csv.encode())
        code = run_verb(data.main, ["import", str(pictures), "--to", str(tmp_path / "set"), *words])
        said = capsys.readouterr()
        if code:
            assert said.err.startswith("error: ")
            assert said.err.count("\n") == 1
            assert ".partial" not in said.err
            return code, said.err, None
        return code, said.out, Manifest.read(tmp_path / "set" / MANIFEST)

    return run


def outcome(manifest: Manifest) -> dict[str, object]:
    """By image: its label where it is used, else its status."""
    used = set(manifest.used["image_id"])
    rows = zip(manifest.table["image_id"], manifest.table["label"], manifest.table["status"], strict=True)
    return {image: int(label) if image in used else status for image, label, status in rows}


# ---------------------------------------------------------------- numbers and words

SAME = {
    "1": ("1", " 1 ", "1.0", "1.00", "01", "+1", "1e0", "1.000000000000000000e+00", "1\u00a0"),
    "0": ("0", "0.0", "-0", "-0.0", "00", "+0", "0e0"),
    "-1": ("-1", "-1.0", "\u22121", "\u20131", "-01", "-1e0", "\ufe631"),
    "2": ("2", "2.0", "20e-1"),
}


@pytest.mark.parametrize(("word", "text"), [(word, text) for word, texts in SAME.items() for text in texts])
def test_a_whole_number_is_one_word_however_it_is_written(word, text):
    assert label_word(text) == word


@pytest.mark.parametrize(
    "text",
    [
        "0.5", "1.5", "0.99999999999999999999999999999999999", "1.0000001", "1-", "-", "+", "--1", "1 0", "1,0", "1.",
        ".5", "1e", "1%", "fracture-", "fracture -", "fracture+", "-fracture", "0-1", "\u00b9", "\uff11", "1?", "#1",
        "1e-400", "1e99999999999", "inf", "1_0", "1/1", "\u0661",
    ],
)  # fmt: skip
def test_what_is_not_plainly_a_known_word_is_none(text, read):
    assert label_word(text) not in ("0", "1", "fracture")
    code, said, _ = read(f'image,label\na,1\nb,0\nc,"{text}"\n')
    assert code == 2
    assert "labels.csv, line 4: label is " in said
    assert "--positive, --negative or --ignore, such as --ignore=" in said


@pytest.mark.parametrize(
    ("text", "word"),
    [("Non-Fractured", "non fractured"), ("not_fractured", "not fractured"), ("NO  fracture", "no fracture"),
     ("no\u00a0fracture", "no fracture"), ("non\u2013fractured", "non fractured"), ("class_1", "class_1")],
)  # fmt: skip
def test_dashes_between_letters_are_spaces(text, word):
    assert label_word(text) == word


def test_a_decimal_comma_is_read_where_the_comma_separates_no_cells(read):
    code, _, manifest = read("image;label\na;1,0\nb;0,0\nc;+1,00\n")
    assert code == 0
    assert outcome(manifest)["a"] == outcome(manifest)["c"] == 1
    for csv in ('image,label\na,"1,0"\nb,0\n', "image;label\na;1,000\nb;0\n", "image;label\na;0,5\nb;0\n"):
        code, said, _ = read(csv)
        assert code == 2
        assert "line 2: label is " in said


# ---------------------------------------------------------------- codings


@pytest.mark.parametrize("minus", ["-1", "-1.0", "\u22121"])
def test_minus_one_is_never_fractured(read, minus):
    """CheXpert writes 1.0, 0.0, -1.0 (uncertain) and nothing."""
    csv = f"image,label\na,1.0\nb,0.0\nc,{minus}\nd,{minus}\ne,\n"
    code, said, _ = read(csv)
    assert code == 2
    assert f"line 4: label is {minus!r}" in said
    assert "in 2 of 5 rows" in said
    code, said, manifest = read(csv, "--ignore=-1")
    assert code == 0
    assert outcome(manifest) == {"a": 1, "b": 0, "c": "uncertain", "d": "uncertain", "e": "unlisted", "f": "unlisted"}
    assert "uncertain: its label is a value of --ignore" in said
    flow = manifest.flow()
    assert (flow.found, flow.uncertain, flow.unlisted, flow.used) == (6, 2, 2, 2)
    assert [note.partition(":")[0] for note in manifest.notes()] == ["e", "f"]  # the status says it of the others


def test_a_coding_of_minus_one_and_one_is_read_as_told(read):
    csv = "image,label\na,1\nb,-1\nc,+1\nd,-1.0\n"
    assert read(csv)[0] == 2
    code, _, manifest = read(csv, "--negative=-1")
    assert code == 0
    assert [outcome(manifest)[name] for name in "abcd"] == [1, 0, 1, 0]


def test_every_unknown_value_is_listed_once(read):
    code, said, _ = read("image,label\na,1\nb,maybe\nc,2\nd,2\ne,0.7\n")
    assert code == 2
    assert "line 3: label is 'maybe'" in said
    assert "other such values: '2' (2), '0.7' (1)" in said


def test_a_column_of_labels_chosen_by_mistake_is_suggested(read):
    rows = "".join(f"{name},{age}\n" for name, age in zip("abcdef", (11, 22, 33, 44, 55, 66), strict=True))
    code, said, _ = read("image,age\n" + rows + "g,77\n", "--column", "label=age")
    assert code == 2
    assert "if this is not the column of labels, name it with --column label=NAME" in said


def test_several_columns_that_may_be_the_label_are_refused(read):
    code, said, _ = read("image,abnormal,fracture\na,1,0\nb,1,1\n")
    assert code == 2
    assert "the columns fracture, abnormal may all be the label; choose one with --column label=NAME" in said
    assert read("image,abnormal,fracture\na,1,0\nb,1,1\n", "--column", "label=fracture")[0] == 0


def test_columns_whose_names_differ_in_case_are_refused(read):
    code, said, _ = read("image,label,Label\na,1,0\nb,0,1\n")
    assert code == 2
    assert "the columns label, Label may all be the label" in said


@pytest.mark.parametrize("text", ["fracture, healed", "-1", "it's", '"old"', 'a "b", c', " 5' "])
def test_the_remedy_for_an_unknown_value_is_one(read, text):
    """What the message tells to type is typed, as a shell reads it."""
    cell = '"' + text.replace('"', '""') + '"'
    csv = f"image,label\na,fracture\nb,no fracture\nc,{cell}\nd,{cell}\n"
    code, said, _ = read(csv)
    assert code == 2
    (word,) = shlex.split(said[said.index("--ignore=") :])
    code, _, manifest = read(csv, word)
    assert code == 0
    assert outcome(manifest) == {"a": 1, "b": 0, "c": "uncertain", "d": "uncertain", "e": "unlisted", "f": "unlisted"}
    negative = word.replace("--ignore", "--negative")
    code, _, manifest = read(csv, negative, "--positive", "fracture", "--ignore", "no fracture")
    assert code == 0
    assert outcome(manifest)["c"] == 0


def test_one_value_cannot_mean_two_things(read):
    for words in (("--positive=-1", "--ignore=-1.0"), ("--negative=2", "--ignore=2")):
        code, said, _ = read("image,label\na,1\n", *words)
        assert code == 2
        assert "cannot be both" in said


def test_a_word_that_is_ignored_has_its_usual_meaning_no_more(read):
    _, _, manifest = read("image,label\na,yes\nb,no\nc,abnormal\n", "--ignore", "abnormal")
    assert outcome(manifest)["c"] == "uncertain"


def test_rows_that_disagree_are_counted_by_the_worst(read):
    rows = "a,1\na,0\nb,1\nb,-1\nc,-1\nc,0\nc,1\nd,1\nd,\ne,0\ne,0\nf,-1\nf,\n"
    _, _, manifest = read("image,label\n" + rows, "--ignore=-1")
    assert outcome(manifest) == {"a": "conflict", "b": "uncertain", "c": "conflict", "d": 1, "e": 0, "f": "uncertain"}
    assert manifest.table.set_index("image_id").loc["b", "note"] == "uncertain in one row, labelled 1 in another"


# ---------------------------------------------------------------- one class


def test_one_class_is_refused_unless_it_is_said(read):
    csv = "image,label\na,1\nb,1\nc,\n"
    code, said, _ = read(csv)
    assert code == 2
    assert "all 2 usable radiographs are fractured, and none is not fractured" in said
    assert "values of the label: '1' fractured in 2, '' no label in 1" in said
    assert "add --one-class" in said
    code, said, manifest = read(csv, "--one-class")
    assert code == 0
    assert manifest.used["label"].tolist() == [1, 1]


def test_one_class_is_also_seen_where_the_other_cannot_be_read(read, pictures):
    (pictures / "b.jpg").write_bytes(b"no picture")
    code, said, _ = read("image,label\na,1\nb,0\nc,1\n")
    assert code == 2
    assert "all 2 usable radiographs are fractured" in said
    assert "unreadable 1" in said


def test_folders_of_one_class_are_accepted_where_it_is_said(tmp_path, capsys):
    for seed, name in enumerate("ab"):
        (tmp_path / "h" / "fx").mkdir(parents=True, exist_ok=True)
        (tmp_path / "h" / "fx" / f"{name}.jpg").write_bytes(jpeg(picture(seed)))
    words = ["import", str(tmp_path / "h"), "--to", str(tmp_path / "set"), "--classes", "FRACTURED=fx"]
    assert run_verb(data.main, words) == 2
    assert "or one class, with --one-class" in capsys.readouterr().err
    assert run_verb(data.main, [*words, "--one-class"]) == 0
    assert Manifest.read(tmp_path / "set" / MANIFEST).table["label"].tolist() == [1, 1]


# ---------------------------------------------------------------- cells that say nothing

EMPTY = ("NaN", "nan", "NA", "None", "null", "n/a", "N/A", "#N/A", "<NA>", " ", "NULL", "\u00a0")


def test_a_row_without_a_name_and_a_file_of_that_rows_name_are_told_apart(read, pictures):
    (pictures / "f.jpg").rename(pictures / "row 6.jpg")
    code, said, _ = read("image,label\n" + "".join(f"{name},{at % 2}\n" for at, name in enumerate("abcde")) + ",1\n")
    assert code == 2
    assert "labels.csv, line 7: names no file, and its row is kept as 'row 6', as 'row 6.jpg' is: " in said
    assert "rename the file, or remove the line" in said


@pytest.mark.parametrize("text", EMPTY)
def test_what_programs_write_for_an_empty_cell_is_one_in_every_column(read, text):
    names = ("image", "label", "patient", "study", "region", "view", "batch", "hardware", "age", "sex")
    rows = [f"{name},{label},{','.join([text] * 8)}" for name, label in zip("abcd", (1, 0, text, 1), strict=True)]
    code, said, manifest = read(",".join(names) + "\n" + "\n".join([*rows, f"{text},1,{','.join([text] * 8)}"]))
    assert code == 0
    assert "not understood" not in said
    table = manifest.table.set_index("image_id")
    assert table.loc["c", "status"] == "unlisted"
    assert table.loc["row 5", "status"] == "missing"
    for column in ("patient", "study", "region", "view", "sex"):
        assert (table[column] == "").all(), column
    assert table["age"].isna().all()
    assert (table["hardware"] == 0).all()
    assert set(table["batch"]) == {"small", ""}  # what the audit fills in


def test_an_option_comes_before_the_meaning_of_an_empty_cell(read):
    csv = "image,label\na,break\nb,None\nc,\n"
    _, _, manifest = read(csv, "--positive", "break", "--negative", "none")
    assert [outcome(manifest)[name] for name in "abc"] == [1, 0, "unlisted"]
    _, _, manifest = read(csv.replace("None", "NaN"), "--positive", "break", "--negative", "")
    assert [outcome(manifest)[name] for name in "abc"] == [1, 0, 0]
    assert not is_empty("none of these")


@pytest.mark.parametrize("text", ["nan", "-", "\u2013", "unknown", "Anonymous", "#REF!", "?", "N/A"])
def test_a_patient_without_a_name_is_nobody(read, text):
    assert identifier(text) == ""
    _, _, manifest = read(f"image,label,patient\na,1,{text}\nb,0,{text}\nc,1,7\nd,0,7\n")
    patient = manifest.table.set_index("image_id")["patient"]
    assert patient["a"] == patient["b"] == ""
    assert patient["c"] == patient["d"] != ""


def test_cells_that_are_not_understood_are_counted(read):
    csv = 'image,label,age,sex,hardware\na,1,045Y,F,yes\nb,0,about 50,unclear,screw\nc,1,18M,m,-1\nd,0,"61,5",,0\n'
    _, said, manifest = read(csv)
    assert "1 cells of age are not understood and left out, such as 'about 50'" in said
    assert "1 cells of sex" in said
    assert "2 cells of hardware" in said
    table = manifest.table.set_index("image_id")
    assert table["age"][["a", "c", "d"]].tolist() == [45, 1.5, 61.5]
    assert math.isnan(table["age"]["b"])
    assert table["hardware"][list("abcd")].tolist() == [1, 0, 0, 0]


# ---------------------------------------------------------------- the file

SEPARATED = {
    "plain": b"image,label\na,1\nb,0\n",
    "announced": b"sep=;\r\nimage;label\r\na;1\r\nb;0\r\n",
    "announced in quotes": b'"sep=;"\nimage;label\na;1\nb;0\n',
    "announced comma": b"sep=,\nimage,label\na,1\nb,0\n",
    "announced and saved again": b'"sep=,",,\nimage,label,\na,1,\nb,0,\n',
    "announced tab": b"SEP=\t\nimage\tlabel\na\t1\nb\t0\n",
    "announced colon": b"sep=:\nimage:label\na:1\nb:0\n",
    "with a byte order mark": b"\xef\xbb\xbfsep=;\nimage;label\na;1\nb;0\n",
    "UTF-16": "sep=;\nimage;label\na;1\nb;0\n".encode("utf-16"),
    "Unicode text": "image\tlabel\r\na\t1\r\nb\t0\r\n".encode("utf-16"),
    "big endian": b"\xfe\xff" + "image,label\na,1\nb,0\n".encode("utf-16-be"),
    "bars": b"image|label\na|1\nb|0\n",
    "old Macintosh": b"image,label\ra,1\rb,0\r",
    "spaces": b" image , label \n a , 1 \n b , 0 \n",
    "quotes": b'"image","label"\r\n"a","1"\r\n"b","0"\r\n',
    "blank lines": b"image,label\n\n\na,1\n,\n  ,  \nb,0\n\n",
    "trailing delimiters": b"image,label,,\na,1,,\nb,0,,,,\n",
    "no last line end": b"image,label\na,1\nb,0",
    "another delimiter in quotes": b'"image","the; label; or; so"\na,1\nb,0\n',
}


@pytest.mark.parametrize("kind", SEPARATED)
def test_tables_of_every_kind_give_the_same_labels(read, kind):
    words = ("--column", "label=the; label; or; so") if "another" in kind else ()
    code, _, manifest = read(SEPARATED[kind], *words)
    assert code == 0
    assert outcome(manifest) == {"a": 1, "b": 0, **dict.fromkeys("cdef", "unlisted")}


@pytest.mark.parametrize(
    ("start", "line"),
    [
        ("sep=;\nimage;label\n", 4),
        ("image;label\n\n\n", 5),
        ('"image";label;"two\nlines"\n', 4),
        ("image;label\r\n", 3),
    ],
)
def test_lines_in_messages_are_those_of_the_file(read, start, line):
    cells = ";x" if "two" in start else ""
    end = "\r\n" if "\r" in start else "\n"
    code, said, _ = read(f"{start}a;1{cells}{end}b;maybe{cells}{end}")
    assert code == 2
    assert f"labels.csv, line {line}: label is 'maybe'" in said


def test_a_row_with_line_ends_in_a_cell_has_the_line_of_its_begin(read):
    code, said, _ = read('image,label,remark\na,1,"one\ntwo\nthree"\nb,maybe,"x\ny"\n')
    assert code == 2
    assert "labels.csv, line 5: label is 'maybe'" in said


@pytest.mark.parametrize(
    ("csv", "said"),
    [
        (b'image,label,remark\na,1,"open\nb,0,x\nc,1,y\n', "unexpected end of data; close the quote that is open"),
        (b'image,label\na,1\nb,"0"x\n', "line 3: not readable as CSV: ',' expected after '\"'"),
        (b"image,label\na,1\nb,0,1\n", "line 3: 'b,0,1' has 3 cells, and the header 2"),
        (b"sep=;\nimage,label\na,1\n", "line 1: says that ';' is between cells, and the header in line 2 has none"),
        ("image,label\na,1\n".encode("utf-16-le"), "it has zero bytes; save the table as CSV in UTF-8"),
        (b"\xff\xfei\0m\0a", "not UTF-16, although it begins so"),
        (b"PK\x03\x04 and so on", "an Excel workbook or a zip, not a CSV"),
        (b"\xd0\xcf\x11\xe0 and so on", "an old Excel workbook, not a CSV"),
        (b"image,label\na," + b"1" * 2**21 + b"\n", "line 2: longer than 1,048,576 characters"),
        (b"image,label,remark\na,1," + b"x" * 2**18 + b"\n", "line 2: not readable as CSV: field larger than"),
        (b"sep=;\n", "no header line"),
    ],
)
def test_what_cannot_be_parsed_is_refused_with_its_line(read, csv, said):
    code, error, _ = read(csv)
    assert code == 2
    assert said in error


def test_rows_are_numbered_without_blank_ones(tmp_path):
    (tmp_path / "t.csv").write_text("sep=;\nimage;label\n\na;1\n;\nb;0\n")
    assert list(open_csv(tmp_path / "t.csv").rows(["label", "image"])) == [(1, 4, ("1", "a")), (2, 6, ("0", "b"))]


def test_the_apostrophe_before_a_formula_is_no_part_of_a_cell(tmp_path):
    texts = ("=1+1.png", "-x", "'=x", "'s", "@a")
    (tmp_path / "t.csv").write_text("\n".join(["image", *map(as_cell, texts)]))
    assert tuple(image for _, _, (image,) in open_csv(tmp_path / "t.csv").rows(["image"])) == texts


def test_equal_rows_come_once_with_their_number(tmp_path):
    (tmp_path / "t.csv").write_text("image,label\na,1\nb,0\na,1\na,1\n")
    table = open_table(tmp_path / "t.csv", {})
    assert [(record.image, record.line, record.times) for record in table.records()] == [("a", 2, 3), ("b", 3, 1)]
    assert table.tally.rows == 4


# ---------------------------------------------------------------- upper and lower case


def test_names_in_another_case_are_found_and_said(read):
    _, said, manifest = read("image,label\nA.JPG,1\nb.JPG,0\nC,1\nd.jpg,0\n")
    assert outcome(manifest) == {"a": 1, "b": 0, "c": 1, "d": 0, "e": "unlisted", "f": "unlisted"}
    assert "3 files are named in the table with other upper and lower case" in said
    assert manifest.table.set_index("image_id").loc["a", "note"] == "named 'A.JPG' in the table"


def test_an_exact_name_comes_first_and_a_doubtful_one_is_refused(read, pictures):
    (pictures / "A.jpg").write_bytes(jpeg(picture(9)))
    (pictures / "B.jpg").write_bytes(jpeg(picture(10)))
    _, said, manifest = read("image,label\na.jpg,1\nA.jpg,0\nb.jpg,1\nB.jpg,0\n")
    assert [outcome(manifest)[name] for name in ("a", "A", "b", "B")] == [1, 0, 1, 0]
    assert "names that differ in upper and lower case only, in 2 cases: A.jpg and a.jpg; B.jpg and b.jpg" in said
    code, said, _ = read("image,label\na.jpg,1\nb.JPG,0\n")
    assert code == 2
    assert "line 3: 'b.JPG' differs from B.jpg and b.jpg in upper and lower case only" in said


def test_two_rows_in_two_cases_for_one_file_may_contradict_each_other(read):
    _, _, manifest = read("image,label\na.jpg,1\nA.JPG,0\nb,0\nc,1\n")
    assert outcome(manifest)["a"] == "conflict"


def test_class_folders_in_another_case_than_the_option_are_noted(tmp_path, capsys):
    for seed, folder in enumerate(("Fx", "fx", "ok")):
        (tmp_path / "h" / folder).mkdir(parents=True)
        (tmp_path / "h" / folder / f"{seed}.jpg").write_bytes(jpeg(picture(seed)))
    words = ["--classes", "FRACTURED=fx", "NOT_FRACTURED=ok"]
    assert run_verb(data.main, ["import", str(tmp_path / "h"), "--to", str(tmp_path / "set"), *words]) == 0
    table = Manifest.read(tmp_path / "set" / MANIFEST).table.set_index("path")
    assert table.loc["Fx/0.jpg", "status"] == "unlisted"
    assert table.loc["Fx/0.jpg", "note"] == "no label: its folder and --classes differ in upper and lower case"


def test_a_folder_whose_name_ends_in_a_sign_is_no_class(tmp_path):
    for seed, folder in enumerate(("fracture-", "normal", "fracture")):
        (tmp_path / "h" / folder).mkdir(parents=True)
        (tmp_path / "h" / folder / f"{seed}.jpg").write_bytes(jpeg(picture(seed)))
    assert run_verb(data.main, ["import", str(tmp_path / "h"), "--to", str(tmp_path / "set")]) == 0
    assert outcome(Manifest.read(tmp_path / "set" / MANIFEST)) == {"0": "unlisted", "1": 0, "2": 1}
