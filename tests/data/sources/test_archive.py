"""Zips of every program: members become files or are refused by name, and no message names a scratch folder."""

import struct
import zipfile
import zlib
from pathlib import Path

import pytest
from drawn_fracatlas import Atlas, jpeg, picture

from fracray.config import Config
from fracray.data import __main__ as data
from fracray.data.manifest import MANIFEST, Manifest
from fracray.data.prepare import examined
from fracray.data.sources.archive import unpack
from fracray.errors import InputError, run_verb
from fracray.runtime.console import new_console


def packed(path: Path, members: dict[str, bytes], raw: bool = False) -> Path:
    """A zip with these names, unchanged; with `raw` they are latin-1 for bytes that no flag explains."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            entry = zipfile.ZipInfo("x")
            entry.filename = name
            if raw:
                entry.filename = "x" * len(name)
            archive.writestr(entry, content)
    if raw:
        content = path.read_bytes()
        for name in members:
            content = content.replace(b"x" * len(name), name.encode("latin-1"))
        path.write_bytes(content)
    return path


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# ---------------------------------------------------------------- names


def test_backslashes_separate_folders(tmp_path):
    members = {
        "set\\": b"",
        "set\\a\\1.txt": b"1",
        "set/b\\2.txt": b"2",
        "set\\a/3.txt": b"3",
        "./set//c/./4.txt": b"4",
    }
    unpack(packed(tmp_path / "w.zip", members), tmp_path / "out")
    assert files_in(tmp_path / "out") == {
        "set/a/1.txt": b"1", "set/b/2.txt": b"2", "set/a/3.txt": b"3", "set/c/4.txt": b"4",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("encoding", "name"),
    [
        ("cp437", "Fuß_Röntgen_é.txt"),
        ("cp850", "Ombro_João_Á.txt"),
        ("utf-8", "Röntgen_手.txt"),
    ],
)
def test_names_without_a_flag_are_read_as_their_program_wrote_them(tmp_path, encoding, name):
    unpack(packed(tmp_path / "w.zip", {name.encode(encoding).decode("latin-1"): b"1"}, raw=True), tmp_path / "out")
    assert files_in(tmp_path / "out") == {name: b"1"}


def test_a_name_in_the_extra_field_of_info_zip_comes_first(tmp_path):
    raw, name = b"R?ntgen\x99.txt", "Röntgen手.txt"
    entry = zipfile.ZipInfo("x" * len(raw))
    content = b"\1" + struct.pack("<I", zlib.crc32(raw)) + name.encode()
    entry.extra = struct.pack("<HH", 0x7075, len(content)) + content
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as archive:
        archive.writestr(entry, b"1")
    path = tmp_path / "w.zip"
    path.write_bytes(path.read_bytes().replace(b"x" * len(raw), raw))
    unpack(path, tmp_path / "out")
    assert files_in(tmp_path / "out") == {name: b"1"}


@pytest.mark.parametrize(
    "name",
    [
        "..\\evil",
        "a\\..\\..\\evil",
        "C:\\evil",
        "c:evil",
        "\\evil",
        "\\\\server\\evil",
        "/evil",
        "a/../b",
        "..",
        "C:/x",
    ],
)
def test_names_that_lead_out_are_refused(tmp_path, name):
    with pytest.raises(InputError, match=r"w\.zip: member '.*' leads out of the folder"):
        unpack(packed(tmp_path / "w.zip", {name: b"1"}), tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["w.zip"]


def test_members_of_one_name_are_refused(tmp_path):
    for members in ({"a/b.txt": b"1", "a\\b.txt": b"2"}, {"a.txt": b"1", "./a.txt": b"2"}):
        with pytest.raises(InputError, match=r"w\.zip: member '.*' is in it twice"):
            unpack(packed(tmp_path / "w.zip", members), tmp_path / "out")
    with pytest.raises(InputError, match=r"w\.zip: member 'a/b' lies below 'a', which is a file"):
        unpack(packed(tmp_path / "w.zip", {"a": b"1", "a\\b": b"2"}), tmp_path / "out")


def test_members_that_differ_in_case_are_both_unpacked(tmp_path):
    unpack(packed(tmp_path / "w.zip", {"a.txt": b"1", "A.txt": b"2"}), tmp_path / "out")
    assert files_in(tmp_path / "out") == {"a.txt": b"1", "A.txt": b"2"}


# ---------------------------------------------------------------- content


def test_an_encrypted_member_is_named(tmp_path):
    path = packed(tmp_path / "w.zip", {"secret.jpg": b"12345"})
    content = bytearray(path.read_bytes())
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.find(mark) + at] |= 1
    path.write_bytes(content)
    with pytest.raises(
        InputError, match=r"w\.zip: member 'secret\.jpg' is encrypted; unpack the zip with its password"
    ):
        unpack(path, tmp_path / "out")


def test_an_unsupported_compression_is_named(tmp_path):
    path = packed(tmp_path / "w.zip", {"a.jpg": b"12345"})
    content = bytearray(path.read_bytes())
    for mark, at in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        content[content.find(mark) + at] = 9
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"member 'a\.jpg' cannot be unpacked: its compression, Deflate64, is not"):
        unpack(path, tmp_path / "out")


def test_a_damaged_member_is_named_and_nothing_is_left(tmp_path):
    path = packed(tmp_path / "w.zip", {"a.jpg": b"a" * 100, "b.jpg": b"b" * 100})
    path.write_bytes(path.read_bytes().replace(b"b" * 100, b"b" * 99 + b"c"))
    with pytest.raises(InputError, match=r"w\.zip: member 'b\.jpg' cannot be unpacked: Bad CRC-32") as caught:
        unpack(path, tmp_path / "out")
    assert ".partial" not in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["w.zip"]


def test_a_name_that_is_too_long_is_named(tmp_path):
    with pytest.raises(InputError, match=r"member 'x{300}' cannot be unpacked: File name too long") as caught:
        unpack(packed(tmp_path / "w.zip", {"x" * 300: b"1"}), tmp_path / "out")
    assert ".partial" not in str(caught.value)


# ---------------------------------------------------------------- an import

CLUTTER = {
    "__MACOSX/._set": b"x", "__MACOSX/set/normal/._0.jpg": b"x", "set/normal/._0.jpg": b"x", "set/.DS_Store": b"x",
    "set/normal/Thumbs.db": b"x", "set/normal/THUMBS.DB": b"x", "Desktop.ini": b"x", "set/.hidden/x.jpg": b"x",
}  # fmt: skip


def pictures(above: str = "set/") -> dict[str, bytes]:
    folders = ("normal", "fractured")
    return {f"{above}{folders[seed % 2]}/{seed}.jpg": jpeg(picture(seed)) for seed in range(4)}


def imported(source: Path, to: Path, capsys, *words: str):
    code = run_verb(data.main, ["import", str(source), "--to", str(to), *words])
    said = capsys.readouterr()
    assert ".partial" not in said.err + said.out
    return code, said.err or said.out


@pytest.mark.parametrize("separator", ["/", "\\"])
@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "folder"])
def test_files_of_operating_systems_are_ignored_and_counted(tmp_path, capsys, as_zip, separator):
    members = {name.replace("/", separator): content for name, content in (pictures() | CLUTTER).items()}
    source = packed(tmp_path / "w.zip", members)
    if not as_zip:
        unpack(source, tmp_path / "w")
        source = tmp_path / "w"
    code, said = imported(source, tmp_path / "set", capsys)
    assert code == 0, said
    assert "      4 images found" in said
    assert "ignored: 8 files of operating systems" in said
    manifest = Manifest.read(tmp_path / "set" / MANIFEST)
    assert manifest.ignored == 8
    assert manifest.table["path"].tolist() == [f"fractured/{n}.jpg" for n in (1, 3)] + [
        f"normal/{n}.jpg" for n in (0, 2)
    ]
    assert manifest.table["label"].tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("more", "words", "said"),
    [
        ({"set/labels.csv": b"image,label\n0,1\n1,maybe\n"}, (), "w.zip/set/labels.csv, line 3: label is 'maybe'"),
        ({"set/labels.csv": b"image,label\nq,1\n"}, (), "w.zip/set/labels.csv: none of its rows names a file in "),
        ({"set/labels.csv": b"image,label\n\xff,1\n"}, (), "w.zip/set/labels.csv, line 2: not UTF-8"),
        ({"set/a.csv": b"", "set/b.csv": b""}, (), "w.zip/set: several tables: a.csv, b.csv"),
        ({}, ("--classes", "FRACTURED=x", "NOT_FRACTURED=y"), "--classes NOT_FRACTURED=y: no picture there"),
        ({"set/labels.csv": b"image,label\n0,1\n1,1\n"}, (), "w.zip: all 2 usable radiographs are fractured"),
        ({"one/dataset.csv": b"image_id\n", "one/images/Fractured/x": b""}, (), "w.zip/one/dataset.csv: column hand"),
    ],
)
def test_messages_name_the_zip_and_the_member(tmp_path, capsys, more, words, said):
    code, error = imported(packed(tmp_path / "w.zip", pictures() | more), tmp_path / "set", capsys, *words)
    assert code == 2
    assert said in error
    assert "/files" not in error


def test_a_zip_without_class_folders_names_itself(tmp_path, capsys):
    code, error = imported(packed(tmp_path / "w.zip", {"a.jpg": jpeg(picture(1))}), tmp_path / "set", capsys)
    assert code == 2
    assert f"error: {tmp_path}/w.zip: no dataset.csv of FracAtlas, no table of labels" in error


def test_zips_in_a_zip_are_named_and_not_opened(tmp_path, capsys):
    inner = packed(tmp_path / "inner.zip", pictures()).read_bytes()
    code, error = imported(packed(tmp_path / "only.zip", {"a/inner.zip": inner}), tmp_path / "set", capsys)
    assert code == 2
    assert "no picture in it (1 file: 1 ZIP (inner.zip))" in error
    assert "unpack a/inner.zip" in error
    others = {"set/more.zip": inner, "set/fractured/volume.nii.gz": b"\x1f\x8b\x08\0"}
    code, said = imported(packed(tmp_path / "both.zip", pictures() | others), tmp_path / "set", capsys)
    assert code == 0
    assert "archives that are not opened: set/more.zip; unpack them to have what is in them" in said
    assert "1 NIfTI" in said  # a picture, of a kind that is not read
    assert Manifest.read(tmp_path / "set" / MANIFEST).remarks


def test_a_fault_while_a_picture_is_read_names_no_scratch_folder(tmp_path, capsys):
    members = pictures() | {"set/normal/9.jpg": b"no picture", "set/fractured/8.jpg": b""}
    assert imported(packed(tmp_path / "w.zip", members), tmp_path / "set", capsys)[0] == 0
    table = Manifest.read(tmp_path / "set" / MANIFEST).table.set_index("image_id")
    assert (table.loc[["8", "9"], "status"] == "unreadable").all()
    assert not table["note"].str.contains(".partial", regex=False).any()


# ---------------------------------------------------------------- FracAtlas


def atlas_of(root: Path) -> Path:
    atlas = Atlas(root)
    for number in range(4):
        atlas.add(number, number % 2)
    return atlas.write()


@pytest.mark.parametrize("separator", ["/", "\\"])
def test_a_zip_of_fracatlas_is_read_like_its_folder(tmp_path, separator):
    root = atlas_of(tmp_path / "FracAtlas")
    members = {f"FracAtlas/{name}": content for name, content in files_in(root).items()}
    members |= {"__MACOSX/FracAtlas/._dataset.csv": b"x", "FracAtlas/images/Fractured/._IMG0000001.jpg": b"x"}
    members = {name.replace("/", separator): content for name, content in members.items()}
    source = packed(tmp_path / "atlas.zip", members)

    def manifest():
        leaves = {"data.source": str(source), "data.cache": str(tmp_path / "cache")}
        return examined(Config().with_leaves(leaves, "test").data, new_console())

    for found in (manifest(), manifest()):  # the second comes from the cache
        assert found.table["image_id"].tolist() == [f"IMG{number:07d}" for number in range(4)]
        assert found.flow().used == 4
        assert found.ignored == 2


def test_a_fault_in_a_zip_of_fracatlas_names_the_zip(tmp_path):
    root = atlas_of(tmp_path / "FracAtlas")
    csv = root / "dataset.csv"
    csv.write_text(csv.read_text().replace("IMG0000002.jpg,0,1", "IMG0000002.jpg,0,-1"))
    members = {f"FracAtlas/{name}": content for name, content in files_in(root).items()}
    source = packed(tmp_path / "atlas.zip", members)
    leaves = {"data.source": str(source), "data.cache": str(tmp_path / "cache")}
    with pytest.raises(InputError, match=r"atlas\.zip/FracAtlas/dataset\.csv, line 4: leg is '-1'; it must") as caught:
        examined(Config().with_leaves(leaves, "test").data, new_console())
    assert "cache" not in str(caught.value)


def test_a_picture_of_fracatlas_in_another_case_is_found_and_noted(tmp_path):
    root = atlas_of(tmp_path / "FracAtlas")
    file = root / "images" / "Fractured" / "IMG0000001.jpg"
    file.rename(file.with_name("img0000001.JPG"))
    leaves = {"data.source": str(root), "data.cache": str(tmp_path / "cache")}
    table = examined(Config().with_leaves(leaves, "test").data, new_console()).table.set_index("image_id")
    assert table.loc["IMG0000001", "status"] == "ok"
    assert table.loc["IMG0000001", "path"] == "images/Fractured/img0000001.JPG"
    assert "the file is named 'img0000001.JPG'" in table.loc["IMG0000001", "note"]
