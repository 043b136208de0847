import os
import re
import stat
import zipfile
from pathlib import Path

import pytest
from drawn_fracatlas import COLUMNS, Atlas, jpeg, picture

from fracray.data.sources import locate as sources
from fracray.data.sources.fracatlas import read_fracatlas
from fracray.data.sources.locate import open_source, unpacked
from fracray.errors import InputError
from fracray.runtime.storage import Folder


@pytest.fixture
def atlas(tmp_path: Path) -> Atlas:
    return Atlas(tmp_path / "FracAtlas")


def row(root: Path, image_id: str):
    return read_fracatlas(root).table.set_index("image_id").loc[image_id]


def zipped(root: Path, target: Path, top: str = "FracAtlas") -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(root.rglob("*")):
            if file.is_file():
                archive.write(file, Path(top, file.relative_to(root)))
    return target


# ---------------------------------------------------------------- the folder


def test_every_column_of_the_csv_is_kept_and_tags_are_joined(atlas):
    plain = atlas.add(1)
    rich = atlas.add(2, 1, hand=1, mixed=1, hardware=1, multiscan=1, lateral=1, fracture_count=3)
    atlas.box(rich, (10, 20, 30, 40))
    mixed_only = atlas.add(3, leg=0, mixed=1)
    table = read_fracatlas(atlas.write()).table.set_index("image_id")
    assert [name.removeprefix("csv_") for name in table if name.startswith("csv_")] == COLUMNS
    assert table.loc[plain, ["region", "view", "hardware", "label"]].tolist() == ["leg", "frontal", 0, 0]
    assert table.loc[rich, ["region", "view", "hardware", "multiscan", "label"]].tolist() == [
        "hand+leg", "frontal+lateral", 1, 1, 1,
    ]  # fmt: skip
    assert table.loc[rich, "boxes"] == ((10, 20, 30, 40),)
    assert table.loc[rich, "csv_fracture_count"] == 3
    assert table.loc[mixed_only, "region"] == "mixed"
    assert table.loc[plain, "path"] == f"images/Non_fractured/{plain}.jpg"


def test_a_box_and_the_folder_override_the_csv(atlas):
    """IMG0003298 of FracAtlas: 0 in dataset.csv, in Fractured/ and with a box."""
    image_id = atlas.add(3298, 0, folders=(1,))
    atlas.box(image_id, (1, 2, 3, 4))
    found = row(atlas.write(), image_id)
    assert (found["label"], found["status"], found["csv_fractured"]) == (1, "ok", 0)
    assert found["path"].startswith("images/Fractured/")
    assert "dataset.csv says 0" in found["note"]
    assert "1 box" in found["note"]


@pytest.mark.parametrize(
    ("listed", "boxed", "status"), [(1, 1, "ok"), (0, 0, "ok"), (1, 0, "conflict"), (0, 1, "conflict")]
)
def test_a_file_in_both_folders_takes_the_label_that_csv_and_box_agree_on(atlas, listed, boxed, status):
    image_id = atlas.add(3375, listed, folders=(0, 1))
    if boxed:
        atlas.box(image_id, (1, 2, 3, 4))
    found = row(atlas.write(), image_id)
    assert (found["status"], found["label"]) == (status, listed)
    assert "both class folders" in found["note"]


def test_without_coco_a_file_in_both_folders_is_a_conflict(atlas):
    image_id = atlas.add(3375, 1, folders=(0, 1))
    assert row(atlas.write(coco=False), image_id)["status"] == "conflict"


def test_other_contradictions_are_conflicts(atlas):
    elsewhere = atlas.add(1, 1, folders=(0,))
    boxed = atlas.add(2, 0)
    atlas.box(boxed, (1, 2, 3, 4))
    manifest = read_fracatlas(atlas.write())
    assert manifest.table["status"].tolist() == ["conflict", "conflict"]
    assert "folder Non_fractured, no box" in manifest.table["note"][0]
    assert len(manifest.notes()) == 2
    assert elsewhere in manifest.notes()[0]


def test_missing_and_unlisted_files_are_counted(atlas):
    atlas.add(1)
    missing = atlas.add(2, data=None)
    (atlas.root / "images" / "Fractured" / "IMG0000009.jpg").write_bytes(jpeg(picture(9)))
    (atlas.root / "images" / "Fractured" / "Thumbs.db").write_bytes(b"no image")
    manifest = read_fracatlas(atlas.write())
    flow = manifest.flow()
    assert (flow.found, flow.missing, flow.unlisted, flow.used) == (3, 1, 1, 1)
    assert manifest.table.set_index("image_id").loc[missing, "path"] == ""
    assert manifest.table.set_index("image_id").loc["IMG0000009", "status"] == "unlisted"


def test_an_image_listed_twice_is_one_row_and_a_conflict_when_labels_differ(atlas):
    agreed, disputed = atlas.add(1), atlas.add(2)
    atlas.add(1)
    atlas.add(2, 1, data=None)
    table = read_fracatlas(atlas.write()).table.set_index("image_id")
    assert len(table) == 2
    assert table.loc[agreed, "status"] == "ok"
    assert table.loc[disputed, "status"] == "conflict"
    assert table["note"].str.contains("listed again").all()


# ---------------------------------------------------------------- bad tables


def test_a_missing_column_is_named(atlas):
    atlas.add(1)
    root = atlas.write()
    csv = root / "dataset.csv"
    csv.write_text(csv.read_text().replace("hardware", "metal"))
    with pytest.raises(InputError, match=r"dataset\.csv: column hardware is missing; it has image_id"):
        read_fracatlas(root)


def test_a_label_outside_0_and_1_is_named_with_its_line(atlas):
    for number in range(3):
        atlas.add(number)
    root = atlas.write()
    lines = (root / "dataset.csv").read_text().splitlines()
    lines[3] = lines[3].replace(",0,0,0,0,0,0,", ",0,0,0,0,0,2,", 1)
    (root / "dataset.csv").write_text("\n".join([lines[0], "", *lines[1:]]))
    with pytest.raises(InputError, match=r"dataset\.csv, line 5: (fractured|multiscan) is '2'; it must be 0 or 1"):
        read_fracatlas(root)


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b.jpg", "a\\b.jpg", ""])
def test_an_image_id_that_is_not_a_bare_file_name_is_refused(atlas, name):
    atlas.add(1)
    root = atlas.write()
    (root / "dataset.csv").write_text((root / "dataset.csv").read_text().replace("IMG0000001.jpg", name))
    with pytest.raises(InputError, match=r"line 2: image_id '.*' is not a bare file name"):
        read_fracatlas(root)


def test_tables_without_rows_or_text_are_refused(atlas):
    atlas.add(1)
    root = atlas.write()
    header = (root / "dataset.csv").read_text().splitlines()[0]
    for text, fault in ((header, "lists no image"), ("", "not readable"), ('"', "not readable")):
        (root / "dataset.csv").write_text(text)
        with pytest.raises(InputError, match=fault):
            read_fracatlas(root)
    for data, fault in (
        (b"\xff\xfe\x00\x01", "column image_id is missing"),
        (header.encode() + b"\n\xff", "line 2: not UTF-8"),
    ):
        (root / "dataset.csv").write_bytes(data)
        with pytest.raises(InputError, match=fault):
            read_fracatlas(root)


def test_commas_behind_the_last_cell_change_nothing_and_further_cells_are_named(atlas):
    for number in range(3):
        atlas.add(number, number % 2)
    root = atlas.write()
    plain, csv = read_fracatlas(root), root / "dataset.csv"
    header, *lines = csv.read_text().splitlines()
    for some in (lines, lines[1:]):
        changed = [f"{line}," if line in some else line for line in lines]
        csv.write_text("\n".join([header, *changed]) + "\n")
        assert read_fracatlas(root).table.equals(plain.table)
    csv.write_text("\n".join([header, *(f"{number},{line}" for number, line in enumerate(lines))]) + "\n")
    with pytest.raises(InputError, match=r"dataset.csv, line 2: .* has 14 cells, and the header 13; repair the line"):
        read_fracatlas(root)


def test_a_picture_whose_name_is_not_utf8_is_named(atlas):
    atlas.add(1)
    root = atlas.write()
    beside = os.fsencode(root / "images" / "Non_fractured")
    for name in (b"/\xff.jpg", b"/\xff.txt"):  # what is no picture is only counted
        Path(os.fsdecode(beside + name)).write_bytes(jpeg(picture(2)) if name.endswith(b"jpg") else b"words")
    with pytest.raises(InputError, match=r"Non_fractured/\\xff.jpg': its name is not UTF-8; rename it"):
        read_fracatlas(root)
    Path(os.fsdecode(beside + b"/\xff.jpg")).unlink()
    assert read_fracatlas(root).flow().found == 1


def test_a_folder_without_images_is_refused(atlas):
    atlas.add(1, data=None)
    with pytest.raises(InputError, match="no image in Non_fractured or Fractured"):
        read_fracatlas(atlas.write())


@pytest.mark.parametrize("text", ["{", "[]", '{"images": [], "annotations": [{"image_id": 3, "bbox": [1, 2, 3, 4]}]}'])
def test_a_broken_coco_file_is_named(atlas, text):
    atlas.add(1)
    root = atlas.write()
    (root / "Annotations" / "COCO JSON" / "COCO_fracture_masks.json").write_text(text)
    with pytest.raises(InputError, match=r"COCO_fracture_masks\.json: not readable as COCO"):
        read_fracatlas(root)


def boxed(atlas: Atlas, name: str, box: tuple[int, int, int, int] = (1, 2, 3, 4)) -> None:
    """A box on the picture that COCO calls `name`."""
    atlas.box("", box)
    atlas.coco["images"][-1]["file_name"] = name


def test_boxes_find_their_image_by_base_name_case_and_suffix_and_those_of_none_are_said(atlas):
    ids = [atlas.add(number, 1) for number in range(5)]
    for name in (f"images/Fractured/{ids[0]}.jpg", f"a\\{ids[1]}.JPG", "wrist.jpg", "wrist.jpg", "hip.jpg"):
        boxed(atlas, name)
    boxed(atlas, f"{ids[2]}.png")  # not that of IMG0000002.jpg, which has an entry of its own
    boxed(atlas, f"{ids[2]}.jpg", (5, 6, 7, 8))
    boxed(atlas, f"{ids[3]}.jpg", (5, 6, 7, 8))  # two entries of one picture, as in files that were merged
    boxed(atlas, f"{ids[3]}.jpg")
    manifest = read_fracatlas(atlas.write())
    boxes = manifest.table.set_index("image_id")["boxes"]
    assert boxes[ids[:2]].tolist() == [((1, 2, 3, 4),)] * 2
    assert boxes[ids[2]] == ((5, 6, 7, 8),)
    assert boxes[ids[3]] == ((5, 6, 7, 8), (1, 2, 3, 4))
    assert boxes[ids[4]] == ()
    assert (
        "4 boxes of 3 pictures in COCO_fracture_masks.json belong to no image of dataset.csv (such as 'wrist.jpg')"
        in manifest.remarks
    )


def test_a_suffix_that_differs_is_no_obstacle_for_boxes(atlas):
    boxed(atlas, f"{atlas.add(1, 1)}.png")
    manifest = read_fracatlas(atlas.write())
    assert manifest.table["boxes"].tolist() == [((1, 2, 3, 4),)]
    assert len(manifest.remarks) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"width": 1e30}, "IMG0000001.jpg: width is 1e+30"),
        ({"height": float("inf")}, "IMG0000001.jpg: height is inf"),
        ({"height": -5}, "IMG0000001.jpg: height is -5"),
    ],
)
def test_a_size_in_coco_that_no_picture_has_is_named(atlas, change, words):
    atlas.box(atlas.add(1, 1), (1, 2, 3, 4))
    atlas.coco["images"][0] |= change
    with pytest.raises(InputError, match=re.escape(words) + ".*; restore or remove the file"):
        read_fracatlas(atlas.write())


def test_a_box_that_is_not_of_numbers_and_two_sizes_of_one_picture_are_named(atlas):
    image_id = atlas.add(1, 1)
    atlas.box(image_id, (float("nan"), 2, 3, 4))
    with pytest.raises(InputError, match=r"a box is \[nan, 2, 3, 4\].*; restore or remove the file"):
        read_fracatlas(atlas.write())
    atlas.coco["annotations"][0]["bbox"] = [1, 2, 3, 4]
    atlas.box(image_id, (1, 2, 3, 4), 80, 100)
    with pytest.raises(InputError, match=r"IMG0000001.jpg has boxes on pictures of 160 x 200 and of 80 x 100"):
        read_fracatlas(atlas.write())


# ---------------------------------------------------------------- folder or zip


def test_a_folder_is_found_itself_or_one_level_down(atlas, tmp_path):
    atlas.add(1)
    root = atlas.write()
    cache = tmp_path / "cache"
    assert open_source(root, cache) == root
    assert open_source(str(root.parent), cache) == root
    assert not cache.exists()


def test_a_zip_is_unpacked_once_and_gives_the_same_as_its_folder(atlas, tmp_path):
    atlas.box(atlas.add(1, 1), (1, 2, 3, 4))
    root = atlas.write()
    archive = zipped(root, tmp_path / "FracAtlas.zip")
    first = open_source(archive, tmp_path / "cache")
    marker = first / "dataset.csv"
    seen = marker.stat().st_mtime_ns, marker.stat().st_ino
    assert open_source(archive, tmp_path / "cache") == first
    assert (marker.stat().st_mtime_ns, marker.stat().st_ino) == seen
    assert read_fracatlas(first).table.equals(read_fracatlas(root).table)
    assert {entry.name for entry in (tmp_path / "cache" / "archives").iterdir()} == {first.parent.name}


def test_zips_of_one_name_size_and_time_are_told_apart_by_what_they_hold(tmp_path):
    found = {}
    for patient in ("1", "2"):
        archive = tmp_path / patient / "study.zip"
        archive.parent.mkdir()
        with zipfile.ZipFile(archive, "w") as out:
            out.writestr(zipfile.ZipInfo("hand.bmp"), f"the picture of patient {patient}")
        os.utime(archive, (1_700_000_000, 1_700_000_000))
        found[patient] = unpacked(archive, tmp_path / "cache")
    assert (tmp_path / "1/study.zip").stat().st_size == (tmp_path / "2/study.zip").stat().st_size
    for patient, folder in found.items():
        assert (folder / "hand.bmp").read_text() == f"the picture of patient {patient}"
        assert unpacked(tmp_path / patient / "study.zip", tmp_path / "cache") == folder


def test_only_their_owner_opens_radiographs_in_the_cache(atlas, tmp_path, s3):
    atlas.add(1)
    archive = zipped(atlas.write(), tmp_path / "atlas.zip")
    (tmp_path / "cache/archives").mkdir(parents=True, mode=0o755)  # as older versions made it
    open_source(archive, tmp_path / "cache")
    place = Folder(s3("owned"))
    place.write("atlas.zip", archive.read_bytes())
    open_source(place.sub("atlas.zip").location, tmp_path / "cache")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "cache").iterdir()}
    assert modes == {"archives": 0o700, "downloads": 0o700}


def test_a_changed_zip_is_unpacked_again(atlas, tmp_path):
    atlas.add(1)
    archive = zipped(atlas.write(), tmp_path / "a.zip")
    first = open_source(archive, tmp_path / "cache")
    atlas.add(2)
    zipped(atlas.write(), archive)
    os.utime(archive, ns=(1, 1))
    second = open_source(archive, tmp_path / "cache")
    assert second != first
    assert len(read_fracatlas(second).table) == 2


@pytest.mark.parametrize("name", ["../evil.txt", "a/../../evil.txt", "/evil.txt", "..\\evil.txt", "C:\\evil.txt"])
def test_zip_members_outside_the_folder_are_refused(tmp_path, name):
    archive = tmp_path / "slip.zip"
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr("dataset.csv", "image_id\n")
        out.writestr(name, "evil")
    with pytest.raises(InputError, match="leads out of the folder"):
        open_source(archive, tmp_path / "cache")
    assert not list(tmp_path.rglob("evil*"))


def test_links_in_a_zip_are_refused(tmp_path):
    archive = tmp_path / "link.zip"
    link = zipfile.ZipInfo("images")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr(link, "/etc")
    with pytest.raises(InputError, match="'images' is a link"):
        open_source(archive, tmp_path / "cache")


def test_a_zip_bomb_is_refused_before_it_unpacks(tmp_path):
    archive = tmp_path / "bomb.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("dataset.csv", bytes(100 * 2**20))
    assert archive.stat().st_size < 2**20
    with pytest.raises(InputError, match="refused as a zip bomb"):
        open_source(archive, tmp_path / "cache")
    assert sum(file.stat().st_size for file in (tmp_path / "cache").rglob("*") if file.is_file()) == 0


def test_a_damaged_zip_leaves_nothing_behind(atlas, tmp_path):
    atlas.add(1)
    archive = zipped(atlas.write(), tmp_path / "damaged.zip")
    data = bytearray(archive.read_bytes())
    middle = data.find(b"IMG0000001.jpg") + 400
    data[middle : middle + 50] = bytes(50)
    archive.write_bytes(data)
    with pytest.raises(InputError, match="cannot be unpacked"):
        open_source(archive, tmp_path / "cache")
    assert list((tmp_path / "cache" / "archives").iterdir()) == []


def test_paths_that_are_not_a_source_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.txt").write_text("hello")
    for name, fault in (
        ("nowhere", "no such file"),
        ("empty", r"no dataset\.csv"),
        ("note.txt", "neither a folder nor"),
    ):
        with pytest.raises(InputError, match=fault):
            open_source(tmp_path / name, tmp_path / "cache")


def test_two_sets_below_one_folder_are_refused(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "both" / name).mkdir(parents=True)
        (tmp_path / "both" / name / "dataset.csv").write_text("")
    with pytest.raises(InputError, match=r"dataset\.csv in a, b"):
        open_source(tmp_path / "both", tmp_path / "cache")


# ---------------------------------------------------------------- a URI


def sent(root: Path, uri: str) -> Folder:
    """The files of a folder, copied to a URI."""
    place = Folder(uri)
    for file in root.rglob("*"):
        if file.is_file():
            place.write(file.relative_to(root).as_posix(), file.read_bytes())
    return place


def test_a_folder_at_a_uri_is_copied_once_and_again_when_it_changes(atlas, s3, tmp_path):
    atlas.box(atlas.add(1, 1), (1, 2, 3, 4))
    root = atlas.write()
    place, cache, steps = sent(root, s3("copied/FracAtlas")), tmp_path / "cache", []
    here = open_source(place.location, cache, lambda done, total: steps.append((done, total)))
    assert read_fracatlas(here).table.equals(read_fracatlas(root).table)
    assert len(steps) == sum(file.is_file() for file in root.rglob("*"))
    assert open_source(place.location, cache, lambda *step: steps.append(step)) == here
    assert len(steps) == sum(file.is_file() for file in root.rglob("*"))
    place.write("dataset.csv", (root / "dataset.csv").read_bytes() + b"\n")
    again = open_source(place.location, cache)
    assert again != here
    assert again.joinpath("dataset.csv").read_bytes().endswith(b"\n\n")


def test_a_zip_at_a_uri_gives_the_same_as_its_folder(atlas, s3, tmp_path):
    atlas.add(1)
    root = atlas.write()
    place = Folder(s3("copied"))
    place.write("atlas.zip", zipped(root, tmp_path / "atlas.zip").read_bytes())
    here = open_source(place.sub("atlas.zip").location, tmp_path / "cache")
    assert read_fracatlas(here).table.equals(read_fracatlas(root).table)


def test_files_of_an_interrupted_copy_are_kept(atlas, s3, tmp_path, monkeypatch):
    for number in range(12):
        atlas.add(number)
    root = atlas.write()
    place, cache = sent(root, s3("broken/FracAtlas")), tmp_path / "cache"
    real, asked = sources.shutil.copyfileobj, []

    def breaks(stream, file, length):
        asked.append(file.name)
        if len(asked) == 6:
            raise OSError("connection reset")
        real(stream, file, length)

    monkeypatch.setattr(sources, "CONNECTIONS", 1)
    monkeypatch.setattr(sources.shutil, "copyfileobj", breaks)
    with pytest.raises(InputError, match=r"broken/FracAtlas.*connection reset; copied files are kept"):
        open_source(place.location, cache)
    here = open_source(place.location, cache)
    assert read_fracatlas(here).table.equals(read_fracatlas(root).table)
    assert len(asked) == sum(file.is_file() for file in root.rglob("*")) + 1  # the interrupted file is copied again


def test_a_file_with_missing_bytes_is_not_kept(atlas, s3, tmp_path, monkeypatch):
    atlas.add(1)
    place = sent(atlas.write(), s3("short/FracAtlas"))
    monkeypatch.setattr(sources.shutil, "copyfileobj", lambda stream, file, length: file.write(stream.read(3)))
    with pytest.raises(InputError, match="3 bytes of"):
        open_source(place.location, tmp_path / "cache")
    monkeypatch.undo()
    assert len(read_fracatlas(open_source(place.location, tmp_path / "cache")).table) == 1


def test_an_empty_uri_is_named(s3, tmp_path):
    with pytest.raises(InputError, match=r"no/where.*nothing is there"):
        open_source(s3("no/where"), tmp_path)


def test_an_unreachable_uri_is_named(tmp_path):
    with pytest.raises(InputError, match=r"s3://none/at-all\?.*(cannot be read|not a folder or URI)"):
        open_source("s3://none/at-all?endpoint_override=http://127.0.0.1:9&scheme=http&region=us-east-1", tmp_path)
