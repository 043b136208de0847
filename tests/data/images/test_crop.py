"""The crop: anatomy stays, ground goes, and a picture in doubt is kept whole."""

import cv2
import numpy as np
import pytest
from drawn_fracatlas import jpeg

from fracray.config import PhantomConfig
from fracray.data.audit.scan import examine
from fracray.data.images.crop import LEAST, WORTH, anatomy
from fracray.data.images.decode import KnownGeometry
from fracray.data.images.decode import decode as decode_file
from fracray.data.images.kept import KEPT
from fracray.data.images.letterbox import frame
from fracray.data.images.square import decode, decode_part, reduction_for
from fracray.data.phantom.draw import write_phantoms
from fracray.data.sources.fracatlas import read_fracatlas


def limb(seed, height=900, width=700, fingers=0.35):
    """A hand on a dark, uneven, noisy ground: a forearm from the top edge, a palm, dim fingers; and where it is."""
    rng = np.random.default_rng(seed)
    down, across = np.mgrid[0:height, 0:width].astype(np.float32)
    ground = 25 + rng.uniform(-8, 8) * across / width + rng.uniform(-8, 8) * down / height
    mask = np.zeros((height, width), np.float32)
    x, y = int(rng.uniform(0.4, 0.6) * width), int(rng.uniform(0.35, 0.5) * height)
    cv2.rectangle(mask, (x - 50, 0), (x + 50, y), 1.0, -1)
    cv2.ellipse(mask, (x, y), (80, 90), 0, 0, 360, 0.8, -1)
    for tilt in (-25, -8, 8, 25):
        tip = x + int(170 * np.sin(np.deg2rad(tilt))), y + int(170 * np.cos(np.deg2rad(tilt)))
        cv2.line(mask, (x, y + 40), tip, fingers, 26)
    picture = ground + 130 * cv2.GaussianBlur(mask, (0, 0), 4) + rng.normal(0, 4, (height, width))
    rows, columns = np.flatnonzero((mask > 0).any(1)), np.flatnonzero((mask > 0).any(0))
    where = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    return np.clip(picture, 0, 255).astype(np.uint8), where


def is_whole(gray):
    return anatomy(gray) == (slice(0, gray.shape[0]), slice(0, gray.shape[1]))


def gain(gray):
    rows, columns = anatomy(gray)
    return max(gray.shape) / max(rows.stop - rows.start, columns.stop - columns.start)


def holds(gray, where):
    rows, columns = anatomy(gray)
    top, bottom, left, right = where
    return rows.start <= top and rows.stop >= bottom and columns.start <= left and columns.stop >= right


@pytest.mark.parametrize("seed", range(20))
def test_a_hand_in_a_large_field_is_enlarged_and_no_finger_is_cut(seed):
    gray, where = limb(seed)
    assert gain(gray) >= 1.2
    assert holds(gray, where)
    assert anatomy(gray) == anatomy(gray.copy())


@pytest.mark.parametrize("seed", range(10))
def test_fingers_that_are_hardly_brighter_than_the_ground_are_not_cut(seed):
    gray, where = limb(seed, fingers=0.1)
    assert gain(gray) >= 1.2
    assert holds(gray, where)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("turn", range(4))
def test_it_turns_with_the_picture_and_follows_its_size(seed, turn):
    gray, (top, bottom, left, right) = limb(seed)
    mask = np.zeros(gray.shape, bool)
    mask[top:bottom, left:right] = True
    turned, mask = np.rot90(gray, turn), np.rot90(mask, turn)
    assert gain(turned) == pytest.approx(gain(gray), abs=0.06)  # `turned` is not contiguous either
    rows, columns = anatomy(turned)
    assert mask[rows, columns].sum() == mask.sum()
    for scale in (0.4, 2.7):
        scaled = cv2.resize(gray, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        assert gain(scaled) == pytest.approx(gain(gray), abs=0.08)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("level", [0.15, 0.5, 1.5])
def test_a_dim_or_bright_exposure_loses_nothing(seed, level):
    gray, where = limb(seed)
    exposed = np.clip(gray * level, 0, 255).astype(np.uint8)
    assert holds(exposed, where)


@pytest.mark.parametrize("seed", range(8))
def test_a_stripe_of_light_and_a_letter_are_not_anatomy(seed):
    gray, where = limb(seed)
    gray[-60:] = 250
    cv2.putText(gray, "R", (20, 880 - 90), cv2.FONT_HERSHEY_SIMPLEX, 1.0, 255, 4)
    assert gain(gray) >= 1.2
    assert holds(gray, where)


@pytest.mark.parametrize("seed", range(20))
def test_an_inverted_picture_loses_nothing(seed):
    gray, where = limb(seed)
    assert holds(255 - gray, where)
    # Here the bright ground lies on one side only, and could pass for the anatomy.
    beside = np.ascontiguousarray((255 - gray)[:, : where[3] + 120])
    assert holds(beside, where)


def test_nothing_is_cut_of_pictures_without_ground_or_without_anatomy():
    rng = np.random.default_rng(0)
    full = cv2.resize(rng.uniform(60, 200, (9, 7)).astype(np.float32), (700, 900), interpolation=cv2.INTER_CUBIC)
    for gray in (
        np.zeros((300, 200), np.uint8),
        np.full((300, 200), 255, np.uint8),
        np.full((300, 200), 90, np.uint8),
        rng.integers(0, 256, (300, 200), dtype=np.uint8),
        rng.integers(0, 30, (300, 200), dtype=np.uint8),
        full.astype(np.uint8),
        cv2.copyMakeBorder(full[30:-30, 30:-30].astype(np.uint8), 30, 30, 30, 30, cv2.BORDER_CONSTANT, value=0),
    ):
        assert is_whole(gray)


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (2, 2), (31, 40), (19, 19), (20, 20), (3000, 40)])
def test_any_shape_gives_a_part_of_it(shape):
    rng = np.random.default_rng(1)
    for gray in (np.zeros(shape, np.uint8), rng.integers(0, 256, shape, dtype=np.uint8)):
        rows, columns = anatomy(gray)
        assert 0 <= rows.start < rows.stop <= shape[0]
        assert 0 <= columns.start < columns.stop <= shape[1]
    if min(shape) < 20:
        assert is_whole(rng.integers(0, 256, shape, dtype=np.uint8))


@pytest.mark.parametrize("seed", range(60))
def test_what_is_kept_is_worth_it_and_never_less_than_the_least(seed):
    """Drawn blobs of any size, level and place, many of them small."""
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(40, 900, 2))
    gray = np.full((height, width), rng.integers(0, 120), np.uint8)
    for _ in range(int(rng.integers(1, 4))):
        centre = int(rng.integers(0, width)), int(rng.integers(0, height))
        axes = tuple(int(a) for a in rng.integers(2, max(3, max(height, width) // 4), 2))
        cv2.ellipse(gray, centre, axes, float(rng.uniform(0, 180)), 0, 360, int(rng.integers(0, 256)), -1)
    rows, columns = anatomy(gray)
    longer = max(height, width)
    for part, side in ((rows, height), (columns, width)):
        assert 0 <= part.start < part.stop <= side
        assert part.stop - part.start >= min(side, LEAST * longer) - 1e-9
    assert is_whole(gray) or longer >= WORTH * max(rows.stop - rows.start, columns.stop - columns.start)


# ---------------------------------------------------------------- squares


def test_the_part_of_a_jpeg_is_the_same_whether_it_is_known_and_whether_it_is_reduced():
    gray, where = limb(3, 1801, 1399)
    for orientation in (1, 6):
        data = jpeg(gray, orientation=orientation)
        width, height = (1399, 1801) if orientation == 1 else (1801, 1399)
        square, kept = decode_part(data, 1801, 128)
        again, same = decode_part(data, 1801, 128, KnownGeometry(width, height, orientation))
        assert kept == same
        assert np.array_equal(square, again)
        assert reduction_for(1801, 128, crop=True) == 2
        assert reduction_for(1801, 128) == 4
        full, _ = decode_part(
            cv2.imencode(".png", np.rot90(gray, -1) if orientation == 6 else gray)[1].tobytes(), 1, 128
        )
        assert np.abs(full.astype(int) - square).mean() < 2
        assert 0 <= kept.left < kept.right <= width
        assert 0 <= kept.top < kept.bottom <= height
        down, across = frame(kept.right - kept.left, kept.bottom - kept.top, 128)
        assert kept.brightness == pytest.approx(square[down, across].mean())
        outside = square.astype(int)
        outside[down, across] = 0
        assert not outside.any()
        if orientation == 1:
            top, bottom, left, right = where
            assert max(kept.left - left, kept.top - top) <= 0 <= min(kept.right - right, kept.bottom - bottom)
            expected = cv2.resize(
                gray[kept.top : kept.bottom, kept.left : kept.right],
                (across.stop - across.start, down.stop - down.start),
                interpolation=cv2.INTER_AREA,
            )
            assert np.abs(square[down, across].astype(int) - expected).mean() < 2


def test_a_picture_that_is_not_cropped_gives_the_square_it_gives_without_crop():
    rng = np.random.default_rng(4)
    gray = cv2.resize(rng.uniform(60, 200, (9, 7)).astype(np.float32), (300, 400), interpolation=cv2.INTER_CUBIC)
    data = cv2.imencode(".png", gray.astype(np.uint8))[1].tobytes()
    square, kept = decode_part(data, 400, 96)
    assert kept[:4] == (0, 0, 300, 400)
    assert np.array_equal(square, decode(data, 400, 96))
    assert len(KEPT) == len(kept)


# ---------------------------------------------------------------- phantoms and real radiographs


def box_shares(manifest, change=lambda gray: gray):
    """The share of each fracture box that is kept, and the factor by which each of all pictures is enlarged."""
    shares, gains = [], []
    for row in manifest.used.itertuples():
        gray = change(decode_file((manifest.root / row.path).read_bytes()).gray)
        rows, columns = anatomy(gray)
        gains.append(gain(gray))
        for x, y, w, h in row.boxes:
            across = min(x + w, columns.stop) - max(x, columns.start)
            down = min(y + h, rows.stop) - max(y, rows.start)
            shares.append(max(0.0, across) * max(0.0, down) / (w * h))
    return np.array(shares), np.array(gains)


@pytest.mark.parametrize("change", [lambda gray: gray, lambda gray: 255 - gray], ids=["", "inverted"])
def test_no_fracture_of_a_phantom_is_cut(tmp_path, change):
    root = write_phantoms(tmp_path / "phantoms", PhantomConfig(count=150))
    shares, _ = box_shares(examine(read_fracatlas(root)), change)
    assert len(shares) > 10
    assert (shares >= 0.95).all()


@pytest.mark.slow
def test_no_fracture_of_fracatlas_is_cut(fracatlas):
    shares, gains = box_shares(fracatlas)
    assert len(shares) > 600
    assert (shares >= 0.95).all()
    assert 0.25 < (gains > 1).mean() < 0.5
    inverted, gains = box_shares(fracatlas, lambda gray: 255 - gray)
    assert (inverted >= 0.95).all()
    assert (gains > 1).mean() < 0.01
