import hashlib
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fracray.data.file_numbers import file_number
from fracray.data.manifest import Flow, Manifest, build
from fracray.errors import InputError, RunError

ROOT = Path("somewhere")


def rows(count: int = 4) -> list[dict]:
    return [
        {"image_id": f"IMG{n}", "label": n % 2, "status": "ok", "sha256": f"{n:064x}", "boxes": ((1.5, 2, 3, 4),) * n}
        for n in range(count)
    ]


def test_what_is_written_is_read_back(tmp_path):
    extra = [row | {"csv_text": f"note {n}", "csv_count": n} for n, row in enumerate(rows())]
    manifest = build(extra, ROOT)
    manifest.write(tmp_path / "deep" / "m.parquet")
    again = Manifest.read(tmp_path / "deep" / "m.parquet")
    pd.testing.assert_frame_equal(again.table, manifest.table)
    assert again.root == ROOT
    assert again.fingerprint() == manifest.fingerprint()
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["m.parquet"]
    (tmp_path / "plain").touch()
    assert (tmp_path / "deep" / "m.parquet").stat().st_mode == (tmp_path / "plain").stat().st_mode  # can be shared


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "m.parquet"
    manifest = build(rows(), ROOT)
    manifest.write(path)
    before = path.read_bytes()
    broken = manifest.table.copy()
    broken["csv_mixed"] = [1, "a", object(), None]
    with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError)):
        replace(manifest, table=broken).write(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["m.parquet"]


def test_the_flow_counts_each_image_once():
    statuses = ["ok", "ok", "ok", "truncated", "conflict", "conflict", "missing", "unreadable", "unlisted", "blank"]
    listed = [{"image_id": str(n), "label": 0, "status": status, "boxes": ()} for n, status in enumerate(statuses)]
    listed[1]["duplicate_of"] = "0"
    manifest = build(listed, ROOT)
    flow = manifest.flow()
    assert flow == Flow(
        found=10, missing=1, unlisted=1, unreadable=1, truncated=1, blank=1, conflict=2, duplicate=1, used=2
    )
    assert manifest.used["image_id"].tolist() == ["0", "2"]
    assert flow.lines()[0].split()[0] == "10"
    assert flow.lines()[-1].split() == ["2", "images", "used"]
    assert sum(int(line.split()[0]) for line in flow.lines()[:-1]) == flow.used


def test_a_flow_that_loses_an_image_cannot_be_made():
    found = {"missing": 0, "unlisted": 0, "unreadable": 0, "truncated": 0, "blank": 0, "conflict": 0, "duplicate": 0}
    for counts in ({"found": 3, "used": 2}, {"found": 3, "used": 3, "guard": 1, "in_parts": 1}):
        with pytest.raises(RunError, match="do not add up"):
            Flow(**found, **counts)
    for counts in ({"found": 3, "used": 3}, {"found": 3, "used": 3, "guard": 1, "in_parts": 2}):
        Flow(**found, **counts)


def test_a_manifest_of_an_older_version_is_read(tmp_path):
    """Before pictures were compared with the rest of the set, and before the version of the audit was kept."""
    manifest = replace(build(rows(), ROOT), audit=7)
    path = tmp_path / "m.parquet"
    manifest.write(path)
    assert Manifest.read(path).audit == 7
    new = pq.read_table(path)
    metadata = {key: value for key, value in new.schema.metadata.items() if key != b"fracray.audit"}
    pq.write_table(new.drop_columns(["opposed"]).replace_schema_metadata(metadata), path)
    old = Manifest.read(path)
    assert old.audit == 0
    assert old.table["opposed"].tolist() == [0, 0, 0, 0]
    assert old.fingerprint() == manifest.fingerprint()


def test_the_fingerprint_follows_files_and_labels_but_not_the_folder():
    manifest = build(rows(), ROOT)
    assert replace(manifest, root=Path("elsewhere")).fingerprint() == manifest.fingerprint()
    for column, value in (("label", 1), ("sha256", "f" * 64), ("image_id", "IMG9")):
        changed = manifest.table.copy()
        changed.loc[0, column] = value
        assert replace(manifest, table=changed).fingerprint() != manifest.fingerprint()


def test_the_fingerprint_is_the_hash_of_ids_file_hashes_and_labels():
    manifest = build([row | {"image_id": f"Hüfte {row['image_id']}"} for row in rows()], ROOT)
    text = "".join(f"Hüfte IMG{n}\x1f{n:064x}\x1f{n % 2}\x1e" for n in range(4))
    assert manifest.fingerprint() == hashlib.sha256(text.encode()).hexdigest()
    parts = pd.concat([manifest.table.iloc[:1], manifest.table.iloc[1:]])  # strings in two pieces of memory
    assert replace(manifest, table=parts).fingerprint() == manifest.fingerprint()
    assert build([], ROOT).fingerprint() == hashlib.sha256().hexdigest()


def test_a_file_that_is_no_manifest_is_refused(tmp_path):
    path = tmp_path / "m.parquet"
    with pytest.raises(InputError, match="no such manifest"):
        Manifest.read(path)
    path.write_text("not parquet")
    with pytest.raises(InputError, match="not readable as a Parquet manifest"):
        Manifest.read(path)
    build(rows(), ROOT).write(path)
    good = pq.read_table(path)
    at, three = good.column_names.index("boxes"), [[[1.0, 2.0, 3.0]], [], [], []]
    cut = good.set_column(at, "boxes", pa.array(three, good.schema.field("boxes").type))
    faults = (
        (good.drop_columns(["label"]), "it lacks label"),
        (good.replace_schema_metadata({}), "it lacks its root"),
        (good.set_column(2, "label", pa.array([0.0, 1.0, 0.0, 1.0])), "column label is double, not int8"),
        (good.set_column(4, "split", pa.array(["train", "dev", "", ""])), "unknown status or split dev"),
        (good.set_column(5, "unused", pa.array(["guard", "", "gard", ""])), "unknown reason of an unused image: gard"),
        (good.set_column(0, "image_id", pa.array(["a", "a", "b", "c"])), "image_id is not unique"),
        (cut, r"m\.parquet: a box is not of four numbers"),
    )
    for table, message in faults:
        pq.write_table(table, path)
        with pytest.raises(InputError, match=message):
            Manifest.read(path)


@pytest.mark.parametrize(
    ("image_id", "number"),
    [("IMG0000123", ("IMG", 123)), ("7", ("", 7)), ("a1b22", ("a1b", 22)), ("wrist", None), ("IMG12-left", None)],
)
def test_file_numbers(image_id, number):
    assert file_number(image_id) == number
