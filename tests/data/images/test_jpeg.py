"""JPEG of 8 bits: OpenCV's pixels at every scale, and damaged data that no decoder mentions."""

import cv2
import numpy as np
import pytest

from fracray.data.images.decode import decode
from fracray.data.images.jpeg import REDUCED, jpeg_gray

SIDES = ((1, 1), (8, 8), (9, 7), (17, 33), (305, 199))


def drawn(height: int, width: int, colours: int = 1, quality: int = 90, progressive: bool = False) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, colours), dtype=np.uint8)
    image = cv2.GaussianBlur(noise, (0, 0), 1.5)
    how = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_PROGRESSIVE, int(progressive)]
    return cv2.imencode(".jpg", image, how)[1].tobytes()


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("side", SIDES)
def test_the_pixels_are_those_of_opencv_at_every_scale(side, colours, progressive):
    data = drawn(*side, colours, progressive=progressive)
    for reduction, flag in REDUCED.items():
        found, wanted = jpeg_gray(data, reduction), cv2.imdecode(np.frombuffer(data, np.uint8), flag)
        assert found.shape == tuple(-(-one // reduction) for one in side)
        assert (found == wanted).all()


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_a_lost_block_within_is_found(place, progressive):
    """OpenCV and Pillow show a picture whose pixels behind the damage are others, and say nothing."""
    whole = drawn(400, 300, progressive=progressive)
    at = int(place * (len(whole) - 512))
    damaged = whole[:at] + bytes(512) + whole[at + 512 :]
    assert cv2.imdecode(np.frombuffer(damaged, np.uint8), cv2.IMREAD_GRAYSCALE) is not None
    seen = decode(damaged)
    assert (seen.fault, seen.gray) == ("unreadable", None)
    assert "the data of its picture is damaged" in seen.note
    assert (seen.width, seen.height) == (300, 400)
    assert decode(whole).fault == ""


def test_zeros_before_the_end_mark_and_what_is_behind_it_damage_nothing():
    whole = drawn(400, 300)
    wanted = decode(whole).gray
    assert whole.endswith(b"\xff\xd9")
    for more in (bytes(80) + b"\xff\xd9", b"\xff\xd9junk", bytes(40), b"\xff\xff\xd9"):
        seen = decode(whole[:-2] + more)
        assert seen.fault == "", more
        assert (seen.gray == wanted).all()
    # Other bytes there may be the rest of a picture that was damaged.
    assert decode(whole[:-2] + 40 * b"ab" + b"\xff\xd9").fault == "unreadable"


def test_a_file_that_is_cut_and_has_an_end_mark_is_found():
    whole = drawn(400, 300)
    seen = decode(whole[: len(whole) // 2] + b"\xff\xd9")
    assert seen.fault == "unreadable"
    assert "premature end" in seen.note
