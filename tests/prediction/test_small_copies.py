"""What a small picture tells is what the whole one tells: flags, and which pictures the training saw."""

import io
import os
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from drawn_dicom import as_bytes, dataset
from drawn_fracatlas import jpeg, picture
from PIL import Image

from fracray.data.duplicates import KnownLooks, signs_in, signs_of
from fracray.data.images.blank import may_show_nothing
from fracray.data.images.decode import as_stored, decode, inspect
from fracray.data.images.hashes import thumbnail
from fracray.data.images.jpeg_png import jpeg_head
from fracray.data.images.margins import may_be_refilled, refilled
from fracray.prediction.facts import Opened, judged, open_file
from fracray.prediction.familiar import FEW, MAY_BE_SEEN, ROUGH_BRIGHTNESS, Familiar


def png(image):
    return cv2.imencode(".png", image)[1].tobytes()


def cut_and_saved_again(seed, width, height):
    """The lower third repeats one block of 8 px, as some decoders fill what is missing."""
    image = picture(seed, width, height)
    start = height * 2 // 3 // 16 * 16
    block = cv2.resize(picture(seed + 1, 16, 16), (8, 8))
    block[:, :4] //= 3
    image[start:] = np.tile(block, (height, width))[: height - start, :width]
    return jpeg(image, 95)


def alike(seed):
    """Pictures that have something in common, as radiographs have."""
    return cv2.addWeighted(picture(0, 373, 454), 0.6, picture(seed, 373, 454), 0.4, 0)


TRAINED = {seed: jpeg(alike(seed)) for seed in range(1, 61)}
LARGE = {
    seed: jpeg(picture(seed, 1500, 1300), orientation=orientation) for seed, orientation in ((201, None), (202, 6))
}
OTHERS = {
    "new": jpeg(picture(99, 300, 400)),
    "like": jpeg(alike(98)),
    "again": jpeg(alike(1), quality=60),
    "brighter": jpeg(cv2.add(alike(2), 60)),
    "dark": jpeg(alike(97) // 8),
    "equal pixels in a PNG": png(decode(TRAINED[3]).gray),
    "equal pixels of a large one in a PNG": png(decode(LARGE[202]).gray),
    "half the size": jpeg(cv2.resize(decode(LARGE[201]).gray, (750, 650), interpolation=cv2.INTER_AREA)),
    "large": jpeg(picture(96, 2900, 2300)),
    "narrow": jpeg(picture(95, 60, 900)),
    "tiny": png(picture(94, 7, 9)),
    "one gray": png(np.full((500, 400), 90, np.uint8)),
    "one gray, large": jpeg(np.full((2000, 1500), 90, np.uint8)),
    "noise": jpeg(np.random.default_rng(0).normal(90, 3, (1100, 900)).round().astype(np.uint8)),
    "refilled": cut_and_saved_again(90, 373, 454),
    "refilled, large": cut_and_saved_again(91, 1600, 1200),
    "refilled, very large": cut_and_saved_again(92, 2880, 2304),
    "DICOM": as_bytes(dataset(alike(4).astype(np.uint16) * 16, bits=12)),
}
FILES = {f"trained {seed}": data for seed, data in (TRAINED | LARGE).items()} | OTHERS


def list_of(seen, parts):
    """A checkpoint's list of its images, of the inspections of their files."""
    columns = ("pixel_hash", "look", "width", "height", "brightness")
    table = pd.DataFrame({name: [getattr(one, name) for one in seen] for name in columns})
    return table.assign(image_id=[str(at) for at in range(len(seen))], split=parts)


@pytest.fixture(scope="module")
def familiar():
    seen = [inspect(data)[0] for data in (TRAINED | LARGE).values()]
    return Familiar.of(list_of(seen, ["val+val/view"] * 25 + ["train"] * (len(seen) - 25)))


def of_whole(data, familiar):
    """Flags, distance and seen_in_training from the picture at its full scale."""
    seen, _ = inspect(data)
    distance = familiar.compared(signs_in([seen.look])[0])[0] if seen.look else float("nan")
    row = {name: getattr(seen, name) for name in ("fault", "note", "refilled", "brightness", "width", "height")}
    return "+".join(familiar.flags(row, distance)), distance, familiar.seen_as(seen.pixel_hash, lambda: seen.look)


@pytest.mark.parametrize("crop", [False, True])
@pytest.mark.parametrize("size", [64, 128, 224])
def test_flags_and_known_pictures_are_those_of_the_whole_picture(familiar, size, crop):
    opened = {name: open_file(data, size, crop) for name, data in FILES.items()}
    found = dict(zip(opened, judged(list(opened.values()), familiar), strict=True))
    for name, data in FILES.items():
        flags, distance, seen = of_whole(data, familiar)
        assert (found[name]["flags"], found[name]["seen_in_training"]) == (flags, seen), name
        rough = 0.06 if name.startswith("refilled") else 0.03  # a texture of 8 px may vanish
        assert found[name]["distance"] == pytest.approx(distance, abs=rough, nan_ok=True), name
    said = {name: row["flags"].split("+") for name, row in found.items()}
    assert {name for name, words in said.items() if "refilled" in words} == {
        name for name in OTHERS if name.startswith("refilled")
    }
    assert {name for name, words in said.items() if "blank" in words} == {"one gray", "one gray, large", "noise"}
    seen = {name: row["seen_in_training"] for name, row in found.items()}
    assert seen["equal pixels in a PNG"] == "val"
    assert seen["equal pixels of a large one in a PNG"] == "train"
    assert (seen["again"], seen["half the size"], seen["new"]) == ("val copy", "train copy", "no")


def test_the_whole_picture_is_asked_for_few(familiar, monkeypatch):
    asked = []
    whole = Opened.whole
    monkeypatch.setattr(Opened, "whole", lambda self: asked.append(self) or whole(self))
    opened = [open_file(jpeg(picture(seed, 373, 454)), 128, False) for seed in range(300, 400)]
    judged(opened, familiar)
    assert len(asked) < 20


@pytest.mark.parametrize("size", [64, 128])
def test_the_sieve_lets_every_known_picture_pass_with_room_to_spare(size):
    """Whatever its texture: flat ones have few signs that count."""
    rng = np.random.default_rng(1)
    for seed in range(30):
        width, height = (int(side) for side in rng.integers(150, 1400, 2))
        image = picture(seed, width, height).astype(np.float32)
        image = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.1, 40))) * rng.uniform(0.05, 1)
        image = np.clip(image + rng.normal(0, rng.uniform(0, 12), image.shape), 0, 255).astype(np.uint8)
        data = jpeg(image, int(rng.integers(40, 96)))
        about = inspect(data)[0]
        familiar = Familiar.of(list_of([about], ["train"]))
        for same in (data, png(decode(data).gray)):
            (signs,) = signs_of(open_file(same, size, False).thumb[None])
            assert familiar.compared(signs)[1], seed
            few = int(signs[0]).bit_count() < FEW
            assert few or KnownLooks([about.look]).differing(signs)[0] < MAY_BE_SEEN / 2, seed


def test_a_blank_picture_that_was_trained_on_is_known():
    """By a version that did not tell it: such a picture has no look."""
    blank = png(np.full((60, 50), 9, np.uint8))
    table = list_of([inspect(blank)[0]], ["train"])
    (row,) = judged([open_file(blank, 64, False)], Familiar.of(table))
    assert (row["flags"], row["seen_in_training"]) == ("blank", "train")


def test_a_list_without_looks_is_compared_by_pixels():
    data = jpeg(picture(5))
    table = list_of([inspect(data)[0]], ["train"]).drop(columns="look")
    rows = judged([open_file(one, 64, False) for one in (data, jpeg(picture(6)))], Familiar.of(table))
    assert [row["seen_in_training"] for row in rows] == ["train", "no"]
    assert all(np.isnan(row["distance"]) for row in rows)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_a_reduced_picture_leaves_a_refilled_one_possible(factor):
    for seed in range(8):
        data = cut_and_saved_again(seed, 1600 + 5 * seed, 1200 + 3 * seed)
        assert refilled(as_stored(decode(data)))
        assert may_be_refilled(as_stored(decode(data, factor)), factor), seed


def test_textured_pictures_cannot_be_refilled():
    pictures = [decode(jpeg(picture(seed, 1600, 1200), 95), 4) for seed in range(20)]
    assert np.mean([may_be_refilled(as_stored(one), 4) for one in pictures]) < 0.5


def test_what_may_be_blank_is_told_by_a_thumbnail():
    empty = [np.full((300, 200), gray, np.uint8) for gray in (0, 90, 255)]
    letter = np.zeros((900, 700), np.uint8)
    cv2.putText(letter, "L", (80, 160), cv2.FONT_HERSHEY_DUPLEX, 3, 255, 9)
    thumbs = np.stack([thumbnail(one) for one in [*empty, letter, picture(1), alike(1)]])
    assert may_show_nothing(thumbs).tolist() == [True, True, True, True, False, False]


# ---------------------------------------------------------------- headers


def test_a_plain_header_is_read_without_pillow_and_says_the_same():
    for data in (jpeg(picture(1, 33, 77)), *LARGE.values()):
        head, width, height = jpeg_head(data), *Image.open(io.BytesIO(data)).size
        assert (head.width, head.height) == (width, height)
    plain = cv2.imencode(".jpg", picture(1))[1].tobytes()
    assert jpeg_head(plain).plain
    assert not jpeg_head(LARGE[202]).plain  # EXIF turns it
    stream = io.BytesIO()
    Image.fromarray(np.dstack([picture(1)] * 4), "CMYK").save(stream, "JPEG")
    assert not jpeg_head(stream.getvalue()).plain
    assert jpeg_head(plain[:20]) is None
    assert jpeg_head(b"\xff\xd8\xff\xc0\x00\x11\x08") is None
    huge = bytearray(plain)
    at = huge.index(b"\xff\xc0")
    huge[at + 5 : at + 9] = b"\xff\xff\xff\xff"
    assert jpeg_head(bytes(huge)) is None
    assert "pixels" in open_file(bytes(huge), 64, False).note


# ---------------------------------------------------------------- real radiographs


@pytest.mark.slow
@pytest.mark.skipif("FRACRAY_FRACATLAS" not in os.environ, reason="needs the radiographs of FracAtlas")
def test_on_fracatlas_nothing_changes_but_the_last_digits_of_the_distance():
    files = sorted(Path(os.environ["FRACRAY_FRACATLAS"]).glob("images/*/*.jpg"))[::4]
    contents = [path.read_bytes() for path in files]
    seen = [inspect(data)[0] for data in contents]
    sound = [at for at, one in enumerate(seen) if not one.fault]
    known = sound[: len(sound) * 2 // 3]
    parts = ["val" if at % 6 == 0 else "train" for at in range(len(known))]
    familiar = Familiar.of(list_of([seen[at] for at in known], parts))
    opened = [open_file(contents[at], 128, False) for at in sound]
    assert all(isinstance(one, Opened) for one in opened)
    apart = []
    for at, row in zip(sound, judged(opened, familiar), strict=True):
        flags, distance, same = of_whole(contents[at], familiar)
        assert (row["flags"], row["seen_in_training"]) == (flags, same), files[at]
        apart.append(abs(row["distance"] - distance))
        small = opened[sound.index(at)].thumb
        assert abs(float(small.mean()) - seen[at].brightness) < ROUGH_BRIGHTNESS
    assert np.mean(apart) < 0.005
    assert max(apart) < 0.03
