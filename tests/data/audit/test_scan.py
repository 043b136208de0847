import hashlib
import io
import struct
import tracemalloc
import zlib
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from drawn_fracatlas import Atlas, jpeg, picture
from PIL import Image

from fracray.data.audit.scan import examine
from fracray.data.images.decode import fit_boxes, upright
from fracray.data.images.margins import borders
from fracray.data.manifest import BORDERS, Manifest
from fracray.data.sources.fracatlas import read_fracatlas


@pytest.fixture
def atlas(tmp_path: Path) -> Atlas:
    return Atlas(tmp_path / "FracAtlas")


def examined(atlas: Atlas) -> pd.DataFrame:
    return examine(read_fracatlas(atlas.write())).table.set_index("image_id")


def png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def forged_png(side: int) -> bytes:
    """A few bytes that announce a square image of `side` pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


# ---------------------------------------------------------------- one file


def test_a_complete_file_is_measured_and_hashed(atlas):
    small, large = atlas.add(1), atlas.add(2, data=jpeg(picture(2, 1200, 900)))
    table = examined(atlas)
    data = (atlas.root / table.loc[small, "path"]).read_bytes()
    assert table.loc[small, "sha256"] == hashlib.sha256(data).hexdigest()
    assert table.loc[small, ["width", "height", "exif_orientation", "batch"]].tolist() == [160, 200, 1, "small"]
    assert table.loc[large, ["width", "height", "batch", "status"]].tolist() == [1200, 900, "large", "ok"]
    assert (table["component"] == "").all()


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("encode", [jpeg, png])
def test_cut_files_are_truncated_and_complete_ones_are_not(atlas, share, encode):
    data = encode(picture(1))
    atlas.add(1, data=data)
    atlas.add(2, data=encode(picture(2)) + b"rubbish behind the end" * 40)
    atlas.add(3, data=encode(picture(3))[: int(len(data) * share)])
    assert examined(atlas)["status"].tolist() == ["ok", "ok", "truncated"]


def test_files_cut_before_the_picture_or_empty_harm_nothing(atlas):
    data = jpeg(picture(1))
    for number, content in enumerate(
        (b"", data[:1], data[:30], data[:400], b"GIF89a not for us", b"\x89PNG\r\n\x1a\n")
    ):
        atlas.add(number, data=content or None)
        if not content:
            (atlas.root / "images" / "Non_fractured" / f"IMG{number:07d}.jpg").write_bytes(content)
    table = examined(atlas)
    assert table["status"].tolist() == ["unreadable", "unreadable", "truncated", "truncated", "unreadable", "truncated"]
    assert (table["component"] == "").all()


def test_an_image_of_a_billion_pixels_is_refused_without_decoding(atlas):
    sound = atlas.add(1)
    vast = [
        atlas.add(2, data=forged_png(40_000)),
        atlas.add(3, data=forged_png(9_200)),
        atlas.add(4, data=forged_png(65_000)),
    ]
    tracemalloc.start()
    table = examined(atlas)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert table.loc[sound, "status"] == "ok"
    assert (table.loc[vast, "status"] == "unreadable").all()
    assert table.loc[vast, "note"].str.contains("more than 80,000,000 pixels").all()
    assert peak < 60e6


def test_progress_and_any_number_of_threads_give_the_same(atlas):
    for number in range(12):
        atlas.add(number, data=jpeg(picture(number % 5)))
    manifest = read_fracatlas(atlas.write())
    calls: list[tuple[int, int]] = []
    one = examine(manifest, progress=lambda done, total: calls.append((done, total)), workers=1)
    assert calls == [(done, 12) for done in range(1, 13)]
    pd.testing.assert_frame_equal(one.table, examine(manifest, workers=4).table)
    pd.testing.assert_frame_equal(one.table, examine(one).table)


# ---------------------------------------------------------------- modes, borders, lost ends


def test_the_mode_is_the_files_own(atlas):
    colour = np.repeat(picture(2)[:, :, None], 3, axis=2)
    ids = [atlas.add(1), atlas.add(2, data=jpeg(colour)), atlas.add(3, data=png(colour)), atlas.add(4, data=b"GIF89a")]
    assert examined(atlas).loc[ids, "mode"].tolist() == ["L", "RGB", "RGB", ""]


def test_borders_are_measured_as_displayed(atlas):
    image = picture(1)
    image[:12] = 3
    image[-7:] = 231
    image[12:-7, :9] = 0
    turned = np.ascontiguousarray(np.rot90(image))
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(turned).save(stream, "PNG", exif=exif)
    plain = atlas.add(1)
    letterboxed = atlas.add(2, data=png(np.pad(picture(1), ((0, 0), (20, 25)))))
    bordered, shown = atlas.add(3, data=png(image)), atlas.add(4, data=stream.getvalue())
    table = examined(atlas)[list(BORDERS)]
    assert (table.loc[plain] == 0).all()
    assert table.loc[letterboxed].to_dict() == dict.fromkeys(BORDERS, 0) | {"black_left": 20, "black_right": 25}
    assert table.loc[bordered, ["black_top", "white_bottom"]].tolist() == [12, 7]
    pd.testing.assert_series_equal(table.loc[shown], table.loc[bordered], check_names=False)


def test_a_margin_ends_where_a_line_by_line_search_says():
    rng = np.random.default_rng(0)
    for margin in (0, 1, 15, 16, 17, 47, 48, 200, 400):
        image = rng.integers(0, 255, (400, 30), dtype=np.uint8)
        image[:margin] = rng.integers(0, 6, (margin, 30))
        assert borders(image)[0] == margin
    assert borders(np.zeros((5, 7), np.uint8))[:4] == (5, 5, 7, 7)


def test_a_picture_of_millions_of_lines_is_refused(atlas):
    thin = atlas.add(1, data=png(np.zeros((70_000, 1), np.uint8)))
    table = examined(atlas)
    assert table.loc[thin, "status"] == "unreadable"
    assert "65,535 on a side" in table.loc[thin, "note"]


def test_many_copies_are_linked_without_comparing_all_pairs(atlas):
    data = jpeg(picture(1))
    names = [atlas.add(number, int(number == 0), data=data) for number in range(60)]
    cropped = atlas.add(900, data=jpeg(picture(1), quality=60))
    table = examined(atlas)
    assert set(table.loc[[*names, cropped], "component"]) == {names[0]}
    assert (table.loc[names, "status"] == "conflict").all()
    assert f"{names[5]} and " in table.loc[names[0], "note"]


def saved_again(data: bytes, share: float, fill: int) -> tuple[bytes, int]:
    """A JPEG cut at a share and saved again by a viewer (the rest is one block, repeated), and the rows filled."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    start = int(image.shape[0] * share) // 16 * 16
    block = np.full((8, 8), fill, np.uint8)
    block[::3, ::4] += 60
    rest = np.tile(block, (len(image), image.shape[1]))[: len(image) - start, : image.shape[1]]
    image[start:] = rest
    return jpeg(image, 95), len(rest)


@pytest.mark.parametrize(("share", "fill"), [(0.5, 10), (0.9, 150), (0.97, 90)])
def test_a_cut_picture_saved_again_is_found_by_its_repeated_block(atlas, share, fill):
    complete = [atlas.add(number, data=jpeg(picture(number, 373, 454))) for number in range(1, 6)]
    flat = picture(6, 373, 454)
    flat[300:] = 20
    complete += [atlas.add(6, data=jpeg(flat)), atlas.add(7, data=jpeg(np.full((454, 373), 9, np.uint8)))]
    data, rows = saved_again(jpeg(picture(8, 373, 454)), share, fill)
    refilled = atlas.add(8, data=data)
    table = examined(atlas)
    assert table.loc[refilled, "refilled"] == rows
    assert (table.loc[complete, "refilled"] == 0).all()


def test_missing_files_stay_missing(atlas):
    atlas.add(1)
    missing = atlas.add(2, data=None)
    table = examined(atlas)
    assert table.loc[missing, ["status", "sha256", "width"]].tolist() == ["missing", "", 0]


# ---------------------------------------------------------------- EXIF and boxes


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_agrees_with_opencv(orientation):
    data = np.frombuffer(jpeg(picture(1), orientation=orientation), np.uint8)
    stored = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION)
    np.testing.assert_array_equal(upright(stored, orientation), cv2.imdecode(data, cv2.IMREAD_GRAYSCALE))


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_boxes_drawn_on_the_stored_picture_turn_with_it(orientation):
    canvas = np.zeros((200, 160), np.uint8)
    canvas[30:70, 20:50] = 1
    shown = upright(canvas, orientation)
    ((x, y, width, height),) = fit_boxes([(40, 60, 60, 80)], (320, 400), shown.shape[::-1], orientation)
    ys, xs = np.nonzero(shown)
    assert (x, y, width, height) == pytest.approx((xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1))


def test_boxes_are_scaled_and_clipped_to_the_picture_as_displayed(atlas):
    scaled = atlas.add(1, 1)
    atlas.box(scaled, (1000, 1500, 200, 400), 1600, 2000)
    turned = atlas.add(2, 1, data=jpeg(picture(2), orientation=6))
    atlas.box(turned, (100, 20, 30, 40), 200, 160)  # as IMG0002628: drawn on the upright picture
    outside = atlas.add(3, 1)
    atlas.box(outside, (-10, 190, 50, 50))
    table = examined(atlas)
    assert table.loc[scaled, "boxes"][0] == pytest.approx((100, 150, 20, 40))
    assert table.loc[turned, ["width", "height", "exif_orientation"]].tolist() == [200, 160, 6]
    assert table.loc[turned, "boxes"][0] == pytest.approx((100, 20, 30, 40))
    assert table.loc[outside, "boxes"][0] == pytest.approx((0, 190, 40, 10))


# ---------------------------------------------------------------- duplicates and conflicts


def test_copies_are_duplicates_of_the_first(atlas):
    data = jpeg(picture(7))
    first, byte_copy = atlas.add(1, data=data), atlas.add(2, data=data)
    pixel_copy = atlas.add(3, data=data + b"\0" * 9)
    rotated_copy = atlas.add(4, data=png(upright(cv2.imdecode(np.frombuffer(data, np.uint8), 0), 6)))
    other = atlas.add(5)
    table = examined(atlas)
    assert table["duplicate_of"].to_dict() == {
        first: "", byte_copy: first, pixel_copy: first, rotated_copy: "", other: "",
    }  # fmt: skip
    assert table.loc[[first, byte_copy, pixel_copy], "component"].tolist() == [first] * 3


def test_an_exif_turned_copy_shows_the_same_picture(atlas):
    shown = picture(7)
    first = atlas.add(1, data=png(shown))
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.ascontiguousarray(np.rot90(shown))).save(stream, "PNG", exif=exif)
    copy = atlas.add(2, data=stream.getvalue())
    table = examined(atlas)
    assert table.loc[copy, "duplicate_of"] == first
    assert table.loc[copy, ["width", "height"]].tolist() == [160, 200]


def test_near_copies_are_joined_but_used(atlas):
    image = picture(7, 320, 400)
    first = atlas.add(1, data=jpeg(image))
    encoded_again = atlas.add(2, data=jpeg(image, 60))
    smaller = atlas.add(3, data=jpeg(cv2.resize(image, (160, 200), interpolation=cv2.INTER_AREA)))
    cut = image.copy()
    cut[330:] = 20
    without_foot = atlas.add(4, data=jpeg(cut))
    darker = atlas.add(5, data=jpeg((image * 0.8).astype(np.uint8)))
    others = [atlas.add(number) for number in range(10, 40)]
    table = examined(atlas)
    assert table.loc[[first, encoded_again, smaller, without_foot, darker], "component"].tolist() == [first] * 5
    assert (table["duplicate_of"] == "").all()
    assert (table["status"] == "ok").all()
    assert (table.loc[others, "component"] == "").all()


def test_blank_pictures_are_no_near_copies_of_each_other(atlas):
    atlas.add(1, data=png(np.zeros((200, 160), np.uint8)))
    atlas.add(2, data=png(np.full((200, 160), 3, np.uint8)))
    assert (examined(atlas)["component"] == "").all()


def test_identical_pictures_with_opposite_labels_are_all_in_conflict(atlas):
    data = jpeg(picture(7))
    members = [atlas.add(1, 0, data=data), atlas.add(2, 1, data=data), atlas.add(3, 0, data=data + b"\0")]
    bystander = atlas.add(4, 1)
    table = examined(atlas)
    assert (table.loc[members, "status"] == "conflict").all()
    assert (table.loc[members, "duplicate_of"] == "").all()
    assert members[1] in table.loc[members[0], "note"]
    assert table.loc[bystander, ["status", "note"]].tolist() == ["ok", ""]


def test_a_picture_encoded_again_with_the_other_label_is_a_conflict(atlas):
    """IMG0002952 and IMG0004262 of FracAtlas."""
    atlas.add(1, 0, data=jpeg(picture(7), 95))
    atlas.add(2, 1, data=jpeg(picture(7), 90))
    table = examined(atlas)
    assert table["pixel_hash"].nunique() == 2
    assert table["status"].tolist() == ["conflict", "conflict"]


@pytest.mark.parametrize("share", [0.35, 0.9])
def test_a_truncated_twin_with_the_other_label_is_a_conflict(atlas, share):
    """IMG0002617 and IMG0004028 of FracAtlas: the complete one cannot be trusted, the cut one stays truncated."""
    data = jpeg(picture(7))
    complete = atlas.add(1, 1, data=data)
    twin = atlas.add(2, 0, data=data[: int(len(data) * share)])
    friendly = atlas.add(3, 0, data=jpeg(picture(3)))
    atlas.add(4, 0, data=jpeg(picture(3))[:-300])
    manifest = examine(read_fracatlas(atlas.write()))
    table = manifest.table.set_index("image_id")
    assert table["status"].tolist() == ["conflict", "truncated", "ok", "truncated"]
    assert table["component"].tolist() == [complete, complete, friendly, friendly]
    assert twin in table.loc[complete, "note"]
    flow = manifest.flow()
    assert (flow.truncated, flow.conflict, flow.used) == (2, 1, 1)


# ---------------------------------------------------------------- FracAtlas itself

CONFLICTS = {
    2617, 2738, 2810, 2979, 2980, 2987, 3000, 3001,  # through truncated twins
    2886, 4243, 2952, 4262, 2998, 4280, 3034, 4314, 4341,
}  # fmt: skip

# Pictures that were cut, and saved again by whoever drew their boxes: the copies of these that were not are truncated.
REFILLED = {4067, 4071, 4072, 4113, 4117, 4150, 4187, 4206, 4232}


def test_the_defects_of_fracatlas_are_found_by_name(fracatlas, tmp_path):
    """The development part: 3,483 of the archive's images."""
    table, flow = fracatlas.table.set_index("image_id"), fracatlas.flow()
    assert (flow.found, flow.truncated, flow.conflict, flow.duplicate, flow.used) == (3483, 59, 17, 79, 3328)
    assert (flow.missing, flow.unreadable, flow.unlisted) == (0, 0, 0)
    cut = table[table["status"] == "truncated"]
    assert (cut["label"] == 0).all()
    assert (cut.index.min(), cut.index.max()) == ("IMG0004028", "IMG0004347")
    assert (cut["component"] != "").all()
    assert {int(name[3:]) for name in table.index[table["status"] == "conflict"]} == CONFLICTS
    assert table.loc["IMG0003298", ["label", "csv_fractured", "status"]].tolist() == [1, 0, "ok"]
    byte_sets = table.groupby("sha256").size()
    assert (sum(byte_sets > 1), byte_sets[byte_sets > 1].sum()) == (12, 27)
    near_sets = table[table["component"] != ""].groupby("component").size()
    assert (len(near_sets), near_sets.sum(), near_sets.max()) == (151, 315, 5)
    rotated = table["exif_orientation"] > 1
    assert (rotated.sum(), (table["exif_orientation"] == 0).sum()) == (23, 0)
    assert table["boxes"].map(len).sum() == 786
    assert {int(name[3:]) for name in table.index[table["refilled"] > 0]} == REFILLED
    assert (table.loc[table["refilled"] > 0, "label"] == 1).all()
    assert table["mode"].value_counts().to_dict() == {"RGB": 2941, "L": 542}
    fracatlas.write(tmp_path / "m.parquet")
    pd.testing.assert_frame_equal(Manifest.read(tmp_path / "m.parquet").table, fracatlas.table)
