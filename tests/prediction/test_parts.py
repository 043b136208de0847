"""What is kept of a prediction while it runs, and the formats of its table, without Ray."""

import csv
import io
import json
import re
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq
import pytest

from fracray.errors import InputError, RunError
from fracray.prediction.folders import result_folder
from fracray.prediction.inputs import Picture
from fracray.prediction.parts import About, Target, open_parts, write_output
from fracray.prediction.scoring import COLUMNS, SCORED
from fracray.runtime.claim import claimed
from fracray.runtime.spreadsheets import of_cell


def scored(places, **cells):
    rows = [{"place": place, "path": f"p{place}", "image_id": f"i{place}", "error": ""} | cells for place in places]
    return pa.Table.from_pylist(rows, schema=SCORED)


ABOUT = About("abc", "def", 5, 0.9, "", "", "0.1.0")


def test_parts_go_on_where_they_were_and_refuse_another_prediction(tmp_path):
    target = Target.of(str(tmp_path / "out.csv"))
    with open_parts(target, ABOUT, anew=False) as parts:
        parts.keep(scored([3, 4]))
        parts.keep(scored([0, 1]))
    with open_parts(target, ABOUT, anew=False) as parts:
        assert parts.done().tolist() == [True, True, False, True, True]
        parts.keep(scored([2]))
        assert [place for table in parts.tables() for place in table["place"].to_pylist()] == [0, 1, 2, 3, 4]
        with (
            pytest.raises(InputError, match="another command works in this prediction"),
            open_parts(target, ABOUT, anew=True),
        ):
            pass
    for change, words in (({"checkpoint": "x"}, "another checkpoint"), ({"inputs": "x"}, "other inputs")):
        other = About(**{**ABOUT.__dict__, **change})
        with pytest.raises(InputError, match=words), open_parts(target, other, anew=False):
            pass
    with open_parts(target, other, anew=True) as parts:
        assert not parts.done().any()


@pytest.mark.parametrize("place", ["disk", "store"])
def test_parts_go_under_their_claim_and_leave_nothing(request, tmp_path, place):
    """Removed after it, they would be those of the command that began meanwhile."""
    to = str(tmp_path / "out.csv")
    target = Target.of(request.getfixturevalue("s3")(f"{uuid.uuid4().hex}/out.csv") if place == "store" else to)
    with open_parts(target, ABOUT, anew=False) as parts:
        parts.keep(scored([0, 1, 2, 3, 4]))
        parts.require_all()
        target.parts.write(".rows.partial", "of a killed write")
        parts.remove()
        with pytest.raises(InputError, match="another command works in this run"), claimed(target.parts):
            pass
        with pytest.raises(RunError, match=r"5 of 5 rows are missing; give the same command again"):
            parts.require_all()
    assert target.folder.files() == []
    assert not Path(f"{to}.parts").exists()


def test_a_folder_of_results_is_one_commands(tmp_path):
    folder = tmp_path / "maps"

    def opened(may_hold_files=False):
        return result_folder(
            "--heatmaps", str(folder), ["a.jpg"], [Picture("a.jpg", str(tmp_path / "a.jpg"))], may_hold_files
        )

    with opened() as root:
        with pytest.raises(InputError, match=r"another command works in this folder .* another --heatmaps"), opened():
            pass
        (root / "a.png").touch()
    assert [entry.name for entry in folder.iterdir()] == ["a.png"]  # and no lock
    with pytest.raises(InputError, match="holds files already"), opened():
        pass
    with opened(may_hold_files=True):
        pass


@pytest.mark.parametrize(
    ("error", "raised", "words"),
    [
        (PermissionError(13, "Denied", "/radiographs/a.dcm"), RunError, "Denied: '/radiographs/a.dcm'; mend that"),
        (OSError(5, "Input/output error"), RunError, r"Input/output error; mend that and give the same command again"),
        (BrokenPipeError(32, "Broken pipe"), BrokenPipeError, "Broken pipe"),
        (RunError("of the work"), RunError, "^of the work$"),
    ],
)
def test_an_error_of_the_work_is_not_one_of_writing_the_parts(tmp_path, error, raised, words):
    target = Target.of(str(tmp_path / "out.csv"))
    found = None
    try:
        with open_parts(target, ABOUT, anew=False) as parts:
            parts.keep(scored([0]))
            raise error
    except Exception as caught:
        found = caught
    assert type(found) is raised
    assert re.search(words, str(found))
    assert "cannot be written" not in str(found)
    with open_parts(target, ABOUT, anew=False) as parts:  # nobody holds it any more
        assert parts.done().tolist() == [True, False, False, False, False]


def test_parts_that_cannot_be_written_are_named(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with (
        pytest.raises(InputError, match=r"out.csv.parts: cannot be written: .*; choose another --to"),
        open_parts(Target.of(str(tmp_path / "file/out.csv")), ABOUT, anew=False),
    ):
        pass


@pytest.mark.parametrize("keep", [0, 4, 500, -20])
def test_a_damaged_file_of_the_parts_is_named_and_its_rows_come_again_without_it(tmp_path, keep):
    target = Target.of(str(tmp_path / "out.csv"))
    part = tmp_path / "out.csv.parts/rows-000000001-000000002.parquet"
    with open_parts(target, ABOUT, anew=False) as parts:
        parts.keep(scored([0]))
        parts.keep(scored([1, 2]))
    part.write_bytes(part.read_bytes()[:keep])
    with (
        pytest.raises(InputError, match=rf"{part}: not readable as Parquet: .*; remove it and give the same command"),
        open_parts(target, ABOUT, anew=False) as parts,
    ):
        list(parts.tables())
    part.unlink()
    with open_parts(target, ABOUT, anew=False) as parts:
        assert parts.done().tolist() == [True, False, False, False, False]
        assert sum(map(len, parts.tables())) == 1


ROWS = [
    {"path": "a,b.png", "logit": 0.1, "probability": 0.25, "call": 0, "flags": "", "conformal": "", "error": ""},
    {"path": "ö.png", "error": "the file is cut short"},
]


def test_no_text_of_a_csv_is_a_formula_and_numbers_stay_numbers(tmp_path):
    rows = [
        {"path": "=1+1.png", "image_id": "-x", "logit": -0.5, "flags": "@x", "error": "\tx"},
        {"path": "'=1+1.png", "image_id": "'x", "logit": 0.5, "flags": "a-b", "error": None},
    ]
    for name in ("out.csv", "out.jsonl"):
        write_output(Target.of(str(tmp_path / name)), iter([pa.Table.from_pylist(rows, COLUMNS)]), COLUMNS)
    first, second = csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text(), newline=""))
    assert [first[name] for name in ("path", "image_id", "logit", "flags", "error")] == [
        "'=1+1.png", "'-x", "-0.5", "'@x", "'\tx",
    ]  # fmt: skip
    assert [second[name] for name in ("path", "image_id", "logit", "flags", "error")] == [
        "''=1+1.png", "'x", "0.5", "a-b", "",
    ]  # fmt: skip
    assert [of_cell(row["path"]) for row in (first, second)] == [row["path"] for row in rows]
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["path"] for line in lines] == ["=1+1.png", "'=1+1.png"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl", ".CSV"])
def test_every_format_holds_the_same_rows(tmp_path, suffix):
    target = tmp_path / f"out{suffix}"
    write_output(
        Target.of(str(target)),
        iter([pa.Table.from_pylist(ROWS[:1], COLUMNS), pa.Table.from_pylist(ROWS[1:], COLUMNS)]),
        COLUMNS,
    )
    if suffix == ".parquet":
        found = pq.read_table(target).to_pylist()
    elif suffix == ".jsonl":
        found = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    else:
        options = pcsv.ConvertOptions(column_types=COLUMNS, strings_can_be_null=True, quoted_strings_can_be_null=False)
        found = pcsv.read_csv(io.BytesIO(target.read_bytes()), convert_options=options).to_pylist()
    assert [row["path"] for row in found] == ["a,b.png", "ö.png"]
    assert found[0]["logit"] == pytest.approx(0.1, abs=1e-7)
    assert found[0]["probability"] == 0.25
    assert found[1]["logit"] is None
    assert found[0]["conformal"] == ""
    assert found[1]["conformal"] is None
    assert found[1]["error"] == "the file is cut short"
