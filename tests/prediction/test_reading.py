"""What a prediction makes of single files and of tables, without Ray: pixels, errors, flags, peaks, studies."""

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from drawn_dicom import as_bytes, dataset
from drawn_fracatlas import jpeg, picture

from fracray.data.duplicates import KnownLooks, signs_in
from fracray.data.images.decode import KnownGeometry, inspect
from fracray.data.images.kept import Kept
from fracray.data.images.square import decode, decode_part, picture_of, square_of
from fracray.prediction.familiar import UNLIKE, Familiar
from fracray.prediction.overlays import file_names
from fracray.prediction.reading import Decoder
from fracray.prediction.scoring import COLUMNS, SCORED, peak_of
from fracray.prediction.studies import STUDY_COLUMNS, of_studies
from fracray.prediction.tally import Tally


def png(image):
    return cv2.imencode(".png", image)[1].tobytes()


FILES = {
    "small JPEG": jpeg(picture(1)),
    "large JPEG": jpeg(picture(2, width=1300, height=1000)),
    "turned JPEG": jpeg(picture(3, width=900, height=700), orientation=6),
    "large PNG": png(picture(4, width=900, height=700)),
    "DICOM": as_bytes(dataset(picture(5).astype(np.uint16) * 16, bits=12)),
}


@pytest.mark.parametrize("crop", [False, True])
@pytest.mark.parametrize("kind", FILES)
def test_a_file_gives_the_pixels_that_the_training_got(kind, crop):
    data = FILES[kind]
    seen, _ = inspect(data)
    square, kept = square_of(*picture_of(data, 64, crop), 64, crop)
    known = KnownGeometry(seen.width, seen.height, seen.orientation)
    side = max(seen.width, seen.height)
    if crop:
        expected, part = decode_part(data, side, 64, known)
        assert kept == part
    else:
        expected = decode(data, side, 64, known)
        assert kept[:4] == (0, 0, seen.width, seen.height)
    assert np.array_equal(square, expected)


def cells(files, **more):
    names = {"path": list(files), "file": [str(path) for path in files.values()], "image_id": list(files)}
    batch = {"place": np.arange(len(files)), "error": np.array([""] * len(files), dtype=object)}
    return Decoder(32, False, Familiar({}, {}, {}), **more)(
        batch | {name: np.array(v, dtype=object) for name, v in names.items()}
    )


def test_a_file_that_cannot_be_read_has_its_error_and_ends_nothing(tmp_path):
    contents = {
        "sound": FILES["small JPEG"],
        "cut": FILES["large JPEG"][:5000],
        "text": b"not a picture",
        "empty": b"",
        "dicom": as_bytes(dataset(picture(5), StudyInstanceUID="1.2.9", instance="1.2.3")),
        "dicom of text": b"\0" * 128 + b"DICM" + b"rubbish" * 9,
        "blank": png(np.full((50, 60), 90, dtype=np.uint8)),
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "folder").mkdir()
    found = cells({name: tmp_path / name for name in (*contents, "folder", "gone")}, shown=48)
    errors = dict(zip(found["image_id"], found["error"], strict=True))
    assert {name for name, error in errors.items() if not error} == {"sound", "dicom", "blank"}
    assert errors["cut"] == "the file is cut short"
    assert errors["text"].startswith("not readable; its first bytes are not those of JPEG")
    assert "an empty file" in errors["empty"]
    assert errors["folder"] == "not a file"
    assert "No such file" in errors["gone"]
    at = list(contents).index("dicom")
    assert (found["sop_instance_uid"][at], found["study_instance_uid"][at]) == ("1.2.3", "1.2.9")
    assert found["flags"][list(contents).index("blank")] == "blank"
    assert found["square"].shape == (9, 32, 32)
    assert found["shown"].shape == (9, 48, 48)


def test_a_text_that_is_no_uid_joins_no_studies_and_is_flagged(tmp_path):
    made = {
        "removed": dataset(picture(1), StudyInstanceUID="REMOVED", instance="1.2.1"),
        "formula": dataset(picture(2), StudyInstanceUID='=HYPERLINK("http://x.example")', instance="REMOVED"),
        "none": dataset(picture(3), instance="1.2.3"),
        "sound": dataset(picture(4), StudyInstanceUID="1.2.9", instance="1.2.4"),
    }
    for name, one in made.items():
        (tmp_path / name).write_bytes(as_bytes(one))
    found = cells({name: tmp_path / name for name in made})
    assert found["study_instance_uid"].tolist() == ["", "", "", "1.2.9"]
    assert found["sop_instance_uid"].tolist() == ["1.2.1", "", "1.2.3", "1.2.4"]
    assert ["header" in flags.split("+") for flags in found["flags"]] == [True, True, False, False]


def seen_table(count=1000):
    random = np.random.default_rng(0)
    looks = [inspect(jpeg(picture(seed)))[0].look for seed in range(3)]
    return pd.DataFrame(
        {
            "image_id": [f"i{at}" for at in range(count)],
            "split": ["val+val/view", *["train"] * (count - 1)],
            "pixel_hash": [f"hash{at}" for at in range(count)],
            "look": [*looks, *[b""] * (count - 3)],
            "width": random.integers(400, 500, count),
            "height": 500,
            "brightness": random.uniform(60, 120, count).astype(np.float32),
        }
    )


USUAL = {"fault": "", "note": "", "refilled": 0, "brightness": 90.0, "width": 450, "height": 500}


@pytest.mark.parametrize(
    ("change", "flags"),
    [
        ({}, []),
        ({"brightness": 30.0}, ["dark"]),
        ({"brightness": 200.0}, ["bright"]),
        ({"width": 45, "height": 50}, ["small"]),
        ({"width": 2250, "height": 2500}, ["large"]),
        ({"width": 100}, ["narrow"]),
        ({"width": 500, "height": 250}, ["wide"]),
        ({"fault": "blank", "note": "shows nothing"}, ["blank"]),
        ({"refilled": 30, "note": "Window Width is 0"}, ["refilled", "header"]),
    ],
)
def test_a_flag_names_what_is_unlike_the_training(change, flags):
    assert Familiar.of(seen_table()).flags(USUAL | change) == flags


def test_about_one_in_a_hundred_of_the_trainings_own_is_beyond_a_bound():
    table = seen_table()
    familiar = Familiar.of(table)
    flagged = [familiar.flags(USUAL | row) for row in table[["brightness", "width", "height"]].to_dict("records")]
    assert 0.002 < np.mean([bool(words) for words in flagged]) < 0.04


def looks_of(pictures):
    return [inspect(png(one))[0].look for one in pictures]


def signs_of(pictures):
    return signs_in(looks_of(pictures))


def test_the_share_of_signs_that_differ():
    shown = picture(1)
    known = KnownLooks(looks_of([shown, picture(2), picture(3)]))
    of_first, of_negative = (known.differing(signs) for signs in signs_of([shown, 255 - shown]))
    assert of_first[0] == 0
    assert ((of_first[1:] > 0.3) & (of_first[1:] < 0.7)).all()
    assert of_negative[0] > 0.95  # all signs are turned
    assert not len(KnownLooks([b""]).differing(signs_of([shown])[0]))


def test_a_picture_beyond_most_of_validation_is_unlike_the_training():
    common = picture(0)
    looks = looks_of([cv2.addWeighted(common, 0.7, picture(seed), 0.3, 0) for seed in range(1, 71)])
    table = seen_table(70).assign(look=looks, split=["val+val/view"] * 30 + ["train"] * 40)
    familiar = Familiar.of(table)
    own = np.array([familiar.compared(signs)[0] for signs in signs_in(looks[:30])])
    assert (own > familiar.far).sum() == 1  # of 30, beyond their 0.95 quantile
    nearest = KnownLooks(looks[30:]).differing(signs_in(looks[:1])[0])
    assert own[0] == np.sort(nearest)[9]  # the 10th of the training
    negative, _ = familiar.compared(signs_of([255 - common])[0])
    assert negative > familiar.far
    assert UNLIKE in familiar.flags(USUAL, negative)
    assert UNLIKE not in familiar.flags(USUAL, float(own.min()))
    assert UNLIKE not in familiar.flags(USUAL, float("nan"))
    few = Familiar.of(table.iloc[15:])
    assert np.isnan(few.compared(signs_in(looks[:1])[0])[0])


def test_an_older_checkpoint_has_no_bounds_and_one_without_a_list_knows_nothing():
    older = Familiar.of(seen_table()[["image_id", "split", "pixel_hash"]])
    assert older.flags(USUAL | {"brightness": 0.0}) == []
    found = [older.seen_as(pixels, lambda: b"") for pixels in ("hash0", "hash5", "other")]
    assert found == ["val", "train", "no"]
    assert older.compared(signs_of([picture(1)])[0])[1]  # the pixels alone tell
    assert Familiar.of(None).seen_as("hash0", lambda: b"") == ""


def test_a_copy_that_was_encoded_again_is_known():
    familiar = Familiar.of(seen_table())
    for seed, seen in ((1, "train copy"), (0, "val copy"), (99, "no")):
        again = inspect(jpeg(picture(seed), quality=60))[0]
        assert familiar.seen_as("a", lambda again=again: again.look) == seen


def test_a_peak_is_in_pixels_of_the_picture():
    where = np.zeros((4, 4))
    assert peak_of(where, Kept(0, 0, 100, 100, 0.0), 32) is None
    where[1, 2] = 1
    assert peak_of(where, Kept(0, 0, 100, 100, 0.0), 32) == (62.5, 37.5)
    # 200 x 100 in a square of 32: the picture is in rows 8 to 23, so row 1's centre, 12, is a quarter down.
    assert peak_of(where, Kept(0, 0, 200, 100, 0.0), 32) == (125.0, 25.0)
    assert peak_of(where, Kept(50, 10, 250, 110, 0.0), 32) == (175.0, 35.0)  # of a part
    where[0, 0] = 2  # a cell of the black above: it is of no picture
    assert peak_of(where, Kept(0, 0, 200, 100, 0.0), 32) == (125.0, 25.0)
    # 200 x 80 is in rows 9 to 21: row 1 shows some of it, and its centre, 12, lies within.
    assert peak_of(where, Kept(0, 0, 200, 80, 0.0), 32) == pytest.approx((125.0, 3 / 13 * 80))
    # 200 x 20 is in rows 14 to 16: the centre of row 1 is above it.
    assert peak_of(where, Kept(0, 0, 200, 20, 0.0), 32) == (125.0, 0.0)


# ---------------------------------------------------------------- studies, counts and names


def test_a_study_has_the_row_of_its_highest_picture():
    rows = [
        {"path": "a", "study_instance_uid": "s1", "probability": 0.2, "error": ""},
        {"path": "b", "study_instance_uid": None, "probability": 0.9, "error": ""},
        {"path": "c", "study_instance_uid": "s1", "probability": 0.7, "error": ""},
        {"path": "d", "study_instance_uid": "s1", "error": "cut"},
        {"path": "e", "study_instance_uid": "s2", "error": "cut"},
    ]
    tables = [pa.Table.from_pylist(part, COLUMNS) for part in (rows[:2], rows[2:])]
    (found,) = of_studies(tables)
    assert found.schema == STUDY_COLUMNS
    assert found["path"].to_pylist() == ["c", "b", "e"]
    assert found["pictures"].to_pylist() == [3, 1, 1]
    assert found["failed"].to_pylist() == [1, 0, 1]


def test_what_is_counted():
    tally = Tally()
    rows = [
        {"call": 1, "flags": "dark", "seen_in_training": "train", "error": ""},
        {"call": 0, "flags": "dark+small", "seen_in_training": "no", "error": ""},
        {"error": "cut"},
    ]
    list(tally.over([pa.Table.from_pylist(rows, SCORED)]))
    assert (tally.rows, tally.failed, tally.positive, tally.flagged, tally.seen) == (3, 1, 1, 2, 1)
    assert tally.words() == (
        "2 radiographs, 1 called fractured, 2 flagged (dark 2, small 1); 1 could not be read: see the column error"
    )


def test_overlays_get_names_of_their_own():
    assert file_names(["a", "x/a.b", "A", "../up", ""]) == ["a.png", "x_a.b.png", "A-2.png", "_up.png", "image.png"]
    assert file_names(["A-2", "a", "A"]) == ["A-2.png", "a.png", "A-3.png"]


def test_an_overlay_has_the_name_of_no_other_radiograph():
    assert file_names(["hand 1", "hand_1"]) == ["hand_1-0.png", "hand_1.png"]
    assert file_names(["IMG (2)", "IMG_2_-0", "IMG_2_"]) == ["IMG_2_-1.png", "IMG_2_-0.png", "IMG_2_.png"]
    assert file_names(["a b", "A_B"]) == ["a_b-0.png", "A_B.png"]
