"""Which pictures show nothing: empty ones of every kind, and no radiograph."""

import cv2
import numpy as np
import pytest
from drawn_fracatlas import picture

from fracray.data.images.blank import nothing_shown
from fracray.data.images.decode import decode
from fracray.data.images.hashes import thumbnail

SIZES = [(1, 1), (1, 900), (40, 60), (373, 454), (2304, 2880)]


def ground(size: tuple[int, int], gray: int) -> np.ndarray:
    return np.full(size, gray, np.uint8)


def coded(image: np.ndarray, quality: int) -> np.ndarray:
    shown = decode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()).gray
    assert shown is not None
    return shown


def with_letter(image: np.ndarray, share: float, gray: int) -> np.ndarray:
    """A letter of this share of the picture's height, burnt in near its upper left corner."""
    canvas = np.zeros((400, 400), np.uint8)
    cv2.putText(canvas, "L", (60, 340), cv2.FONT_HERSHEY_DUPLEX, 10, 255, 40, cv2.LINE_AA)
    x, y, width, height = cv2.boundingRect(canvas)
    tall = max(1, round(share * image.shape[0]))
    letter = cv2.resize(canvas[y : y + height, x : x + width], (max(1, tall * width // height), tall))
    image = image.copy()
    part = image[image.shape[0] // 10 :, image.shape[1] // 10 :][: letter.shape[0], : letter.shape[1]]
    part[:] = np.rint(part + (float(gray) - part) * (letter / 255.0))
    return image


@pytest.mark.parametrize("gray", [0, 3, 128, 255])
@pytest.mark.parametrize("size", SIZES)
def test_one_gray_value_shows_nothing(size, gray):
    assert nothing_shown(ground(size, gray)) == f"shows nothing: one gray value, {gray}, all over"


@pytest.mark.parametrize("quality", [20, 50, 92])
def test_the_noise_of_a_coder_or_a_detector_is_no_picture(quality):
    rng = np.random.default_rng(quality)
    noisy = np.rint(rng.normal(90, 3, (700, 900))).astype(np.uint8)
    assert nothing_shown(coded(noisy, quality))
    assert nothing_shown(noisy) == "shows nothing: nearly all of it is within 4 gray levels of 90"


@pytest.mark.parametrize("share", [0.03, 0.08, 0.2])
@pytest.mark.parametrize(("below", "letter"), [(0, 255), (255, 0), (40, 200)])
def test_a_letter_alone_is_no_picture(share, below, letter):
    image = with_letter(ground((900, 700), below), share, letter)
    assert nothing_shown(image)
    assert nothing_shown(coded(image, 90))


@pytest.mark.parametrize("width", [1, 8, 20])
def test_a_thin_frame_is_no_picture(width):
    image = ground((900, 700), 0)
    cv2.rectangle(image, (0, 0), (699, 899), 220, 2 * width - 1)
    assert nothing_shown(image)


@pytest.mark.parametrize("size", [(40, 60), (200, 160), (900, 700)])
def test_a_drawn_radiograph_shows_something(size):
    for seed in range(5):
        assert nothing_shown(picture(seed, *size[::-1])) == ""


def small_finger(height: int, width: int, low: float, high: float) -> np.ndarray:
    """A finger on a dark detector of 43 cm, 1.5 cm wide: round, so brighter towards its middle, with a bone in it."""
    y, x = np.mgrid[:height, :width]
    across = (x - 0.5 * width) / (0.0175 * width)
    along = (y - 0.5 * height) / (0.06 * height)
    inside = np.clip(1 - across**2 - along**4, 0, None)
    image = low + (high - low) * np.sqrt(inside) * (0.7 + 0.3 * np.cos(6 * across))
    return np.rint(np.where(inside > 0, image, low)).astype(np.uint8)


@pytest.mark.parametrize(("low", "high"), [(5, 230), (5, 60), (30, 70), (0, 110), (250, 100)])
def test_a_small_finger_in_a_large_field_is_a_picture(low, high):
    assert nothing_shown(small_finger(1400, 1400, low, high)) == ""


@pytest.mark.parametrize("dark", [0, 1])
def test_a_faint_radiograph_is_a_picture(dark):
    """A fifth of the contrast of the faintest in FracAtlas."""
    faint = np.rint(20 + picture(3) / 255.0 * 16).astype(np.uint8)
    assert nothing_shown(255 - faint if dark else faint) == ""


def test_no_radiograph_of_fracatlas_is_blank(fracatlas):
    table = fracatlas.table
    assert not (table["status"] == "blank").any()
    assert table["image_id"][table["opposed"] == 1].tolist() == [
        "IMG0001139", "IMG0001347", "IMG0001529", "IMG0002912",
    ]  # all with wide bright margins  # fmt: skip


def test_a_thumbnail_does_not_change_what_is_found():
    """In pictures near the limits: soft grounds of a few gray levels, noise, and letters that cover too much or not."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(400):
        height = int(rng.integers(20, 400))
        size = height, int(height * rng.uniform(0.8, 1.6))
        coarse = rng.normal(128, rng.uniform(0, 2.5), (rng.integers(2, 40), rng.integers(2, 40))).astype(np.float32)
        soft = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_LINEAR)
        image = np.clip(soft + rng.normal(0, rng.uniform(0, 8), size), 0, 255).astype(np.uint8)
        if rng.random() < 0.5:
            image = with_letter(image, rng.uniform(0.02, 0.5), int(rng.integers(0, 256)))
        why = nothing_shown(image)
        assert nothing_shown(image, thumbnail(image)) == why
        found.append(bool(why))
    assert 80 < sum(found) < 320
