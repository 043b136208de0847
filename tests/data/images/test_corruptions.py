"""Corruptions against formulas and the libraries that define them; their severities, draws and contact sheet."""

import hashlib
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from fracray.data.__main__ import main as data
from fracray.data.images.corruptions import BY_NAME, CORRUPTIONS, NAMES, SEVERITIES, corrupt
from fracray.data.images.letterbox import content, letterbox
from fracray.data.phantom.draw import draw_phantom

DRAWN = ("shot_noise", "gaussian_noise", "speckle_noise", "motion_blur", "rotation", "translation", "collimation")


@pytest.fixture(scope="module")
def phantoms():
    return [draw_phantom(index, 3).image for index in range(0, 60, 5)]


def level(gray, size=224):
    return np.full((size, size), gray, np.uint8)


def spot(x, y, size=224, ground=10):
    """A bright 9x9 square around (x, y) on dark gray."""
    image = level(ground, size)
    image[y - 4 : y + 5, x - 4 : x + 5] = 255
    return image


def moments(image, ground=10):
    """Mass, centre and covariance of the pixels brighter than the ground."""
    weight = image.astype(float) - ground
    weight[weight < 0] = 0
    y, x = np.mgrid[: len(image), : len(image)]
    points = np.stack([x.ravel(), y.ravel()])
    mean = np.average(points, axis=1, weights=weight.ravel())
    return weight.sum(), mean, np.cov(points, aweights=weight.ravel(), ddof=0)


# ---- all corruptions


def test_every_corruption_has_a_unique_name_and_five_parameters_in_order():
    assert len(set(NAMES)) == len(CORRUPTIONS) == 21
    for corruption in CORRUPTIONS:
        steps = np.sign(np.diff(corruption.values))
        assert len(corruption.values) == len(SEVERITIES)
        assert abs(steps.sum()) == 4, corruption.name


@pytest.mark.parametrize("name", NAMES)
def test_distortion_grows_with_severity(phantoms, name):
    """At 128 pixels, the default, on 48 draws."""
    squares = [letterbox(image, 128) for image in phantoms]
    mean = [
        np.mean(
            [
                np.abs(corrupt(s, name, severity, 0, f"{i}-{k}").astype(float) - s).mean()
                for i, s in enumerate(squares)
                for k in range(4)
            ]
        )
        for severity in SEVERITIES
    ]
    assert mean[0] > 0.01
    assert (np.diff(mean) > 0).all(), mean


@pytest.mark.parametrize("name", NAMES)
def test_any_square_gives_a_uint8_square_and_is_not_changed(name):
    images = [level(gray, size) for gray in (0, 1, 128, 255) for size in (32, 33, 100)]
    images.append(np.random.default_rng(0).integers(0, 256, (300, 300), np.uint8))
    for image in images:
        before = image.copy()
        for severity in SEVERITIES:
            out = corrupt(image, name, severity, 1, "IMG0000001")
            assert out.dtype == np.uint8
            assert out.shape == image.shape
            assert not np.shares_memory(out, image)
        assert np.array_equal(image, before)


def test_a_draw_depends_only_on_image_seed_and_corruption(phantoms):
    square = letterbox(phantoms[0], 64)
    keys = [f"IMG{i:07d}" for i in range(6)]

    def all_of(keys, names, seed=0):
        return {(key, name): corrupt(square, name, 5, seed, key).tobytes() for name in names for key in keys}

    first = all_of(keys, NAMES)
    assert all_of(keys[::-1], NAMES[::-1]) == first
    for name in DRAWN:
        assert len({first[key, name] for key in keys}) > 1, name
        assert any(first[key, name] != other for (key, _), other in all_of(keys, [name], 7).items()), name


def test_another_process_gives_the_same_draws():
    script = (
        "import hashlib, numpy as np\n"
        "from fracray.data.images.corruptions import NAMES, SEVERITIES, corrupt\n"
        "image = (np.arange(64 * 64) % 251).astype(np.uint8).reshape(64, 64)\n"
        "print(hashlib.sha256(b''.join(corrupt(image, n, s, 5, 'a b') for n in NAMES for s in SEVERITIES)).hexdigest())"
    )
    image = (np.arange(64 * 64) % 251).astype(np.uint8).reshape(64, 64)
    ours = hashlib.sha256(b"".join(corrupt(image, n, s, 5, "a b") for n in NAMES for s in SEVERITIES)).hexdigest()
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == ours


# Noise is drawn per pixel, so its grain differs (its strength is tested below). A codec also changes detail that the
# small image does not have.
@pytest.mark.parametrize(
    "name", [name for name in NAMES if "noise" not in name and name not in ("pixelate", "jpeg_compression")]
)
def test_a_parameter_means_the_same_at_any_size(phantoms, name):
    """Corrupting at 224 pixels and shrinking to 112 gives nearly the same as shrinking first and corrupting then."""
    rest, done = 0.0, 0.0
    for i, image in enumerate(phantoms):
        large = letterbox(image, 224)
        small = cv2.resize(large, (112, 112), interpolation=cv2.INTER_AREA)
        shrunk = cv2.resize(corrupt(large, name, 4, 0, str(i)), (112, 112), interpolation=cv2.INTER_AREA)
        ours = corrupt(small, name, 4, 0, str(i)).astype(float)
        rest += np.abs(ours - shrunk).mean()
        done += np.abs(ours - small).mean()
    assert rest < 0.3 * done, (rest, done)


def test_the_border_of_a_letterboxed_picture_stays_black():
    tall = letterbox(np.random.default_rng(0).integers(60, 200, (224, 120), np.uint8), 112)
    assert content(tall) == (slice(0, 112), slice(26, 86))
    for name in (*NAMES[: NAMES.index("pixelate")], "inversion", "side_marker"):
        out = corrupt(tall, name, 5, 0, "x")
        assert not out[:, :26].any(), name
        assert not out[:, 86:].any(), name


@pytest.mark.parametrize(("height", "width"), [(100, 61), (61, 100), (100, 60), (80, 80), (100, 99)])
def test_the_picture_in_a_letterbox_is_found(height, width):
    rows, columns = content(letterbox(np.full((height, width), 9, np.uint8), 50))
    scale = 50 / max(height, width)
    assert (rows.stop - rows.start, columns.stop - columns.start) == (round(height * scale), round(width * scale))


def test_black_on_one_side_belongs_to_the_picture():
    image = level(9, 50)
    image[:12] = 0
    assert content(image) == (slice(0, 50), slice(0, 50))


# ---- gray values


GRAYS = np.arange(256, dtype=np.uint8).repeat(4).reshape(32, 32)


@pytest.mark.parametrize("name", ["gamma_corr_up", "gamma_corr_down"])
def test_gamma_equals_its_formula(name):
    for severity in SEVERITIES:
        expected = np.rint(255 * (GRAYS / 255) ** BY_NAME[name].values[severity - 1])
        assert np.array_equal(corrupt(GRAYS, name, severity, 0, "x"), expected)


@pytest.mark.parametrize("name", ["contrast_up", "contrast_down"])
def test_contrast_equals_pillows_as_in_medmnist_c(name):
    for severity in SEVERITIES:
        pillow = ImageEnhance.Contrast(Image.fromarray(GRAYS)).enhance(BY_NAME[name].values[severity - 1])
        ours = corrupt(GRAYS, name, severity, 0, "x").astype(int)
        assert np.abs(ours - np.asarray(pillow)).max() <= 1  # Pillow rounds the mean and cuts off decimals


def test_a_stop_of_exposure_halves_the_odds_and_the_opposite_restores_them():
    for severity in SEVERITIES:
        stops = BY_NAME["exposure_up"].values[severity - 1]
        darker = corrupt(GRAYS, "exposure_up", severity, 0, "x")
        middle = (GRAYS > 40) & (GRAYS < 215)
        before, after = GRAYS[middle].astype(float), darker[middle].astype(float)
        assert after / (255 - after) == pytest.approx(2**-stops * before / (255 - before), rel=0.05)
        again = corrupt(darker, "exposure_down", severity, 0, "x")
        assert np.abs(again.astype(int) - GRAYS).max() <= 3


def test_inversion_affects_its_share_of_the_images_and_a_higher_severity_adds_images():
    keys = [str(i) for i in range(2000)]
    before = np.zeros(2000, bool)
    for severity in SEVERITIES:
        inverted = np.array([corrupt(level(10, 32), "inversion", severity, 0, key)[0, 0] == 245 for key in keys])
        assert inverted.mean() == pytest.approx(BY_NAME["inversion"].values[severity - 1], abs=0.03)
        assert (inverted >= before).all()
        before = inverted
    assert before.all()


# ---- noise


@pytest.mark.parametrize("size", [112, 224])
def test_the_variance_of_quantum_noise_equals_its_mean(size):
    out = corrupt(level(100, size), "shot_noise", 1, 0, "x")
    photons = out.astype(float) / 255 * 200 * (224 / size) ** 2
    assert photons.mean() == pytest.approx(200 * (224 / size) ** 2 * 100 / 255, rel=0.005)
    assert photons.var() == pytest.approx(photons.mean(), rel=0.04)


@pytest.mark.parametrize(("name", "scale"), [("gaussian_noise", 1.0), ("speckle_noise", 128 / 255)])
def test_noise_has_its_strength_and_is_halved_at_half_the_side_as_by_averaging_pixels(name, scale):
    value = BY_NAME[name].values[1]
    large, small = (corrupt(level(128, size), name, 2, 0, "x").astype(float) / 255 for size in (224, 112))
    assert large.std() == pytest.approx(value * scale, rel=0.03)
    assert small.std() == pytest.approx(value * scale / 2, rel=0.03)
    assert cv2.resize(large, (112, 112), interpolation=cv2.INTER_AREA).std() == pytest.approx(small.std(), rel=0.05)


# ---- sharpness and coding


@pytest.mark.parametrize("severity", SEVERITIES)
def test_motion_blurs_along_a_line_of_the_given_length(severity):
    mass, centre, spread = moments(corrupt(spot(100, 120), "motion_blur", severity, 0, "x"))
    _, _, before = moments(spot(100, 120))
    widths = np.linalg.eigvalsh(spread - before)
    length = 224 * BY_NAME["motion_blur"].values[severity - 1]
    assert mass == pytest.approx(81 * 245, rel=0.02)
    assert centre == pytest.approx([100, 120], abs=0.1)
    assert widths[1] == pytest.approx(length**2 / 12, rel=0.05, abs=0.35)  # an offset is shared by four pixels
    assert widths[0] == pytest.approx(0, abs=0.35)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_defocus_blurs_over_a_disc_of_the_given_radius(severity):
    mass, centre, spread = moments(corrupt(spot(100, 120), "defocus_blur", severity, 0, "x"))
    _, _, before = moments(spot(100, 120))
    radius = 224 * BY_NAME["defocus_blur"].values[severity - 1]
    assert mass == pytest.approx(81 * 245, rel=0.02)
    assert centre == pytest.approx([100, 120], abs=0.1)
    assert np.diag(spread - before) == pytest.approx([radius**2 / 4] * 2, rel=0.05, abs=0.3)


def test_pixelation_is_the_mean_of_each_cell():
    image = np.random.default_rng(0).integers(0, 256, (224, 224), np.uint8)
    cells = image.reshape(56, 4, 56, 4).mean(axis=(1, 3))
    out = corrupt(image, "pixelate", 2, 0, "x")  # 0.25 of 224: 56 cells
    assert np.abs(out - cells.repeat(4, 0).repeat(4, 1)).max() <= 0.51


def test_jpeg_equals_opencvs_at_the_reference_side(phantoms):
    image = letterbox(phantoms[0], 224)
    for severity in SEVERITIES:
        data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, BY_NAME["jpeg_compression"].values[severity - 1]])
        expected = cv2.imdecode(data[1], cv2.IMREAD_GRAYSCALE)
        assert np.array_equal(corrupt(image, "jpeg_compression", severity, 0, "x"), expected)


def test_jpeg_changes_as_much_at_another_side(phantoms):
    for severity in SEVERITIES:
        done = []
        for size in (112, 224):
            squares = [letterbox(image, size) for image in phantoms]
            coded = [corrupt(s, "jpeg_compression", severity, 0, "x").astype(float) for s in squares]
            done.append(np.mean([np.abs(c - s).mean() for c, s in zip(coded, squares, strict=True)]))
        assert 0.5 < done[0] / done[1] < 1.1


# ---- positioning and field


@pytest.mark.parametrize("severity", SEVERITIES)
def test_a_dot_is_rotated_moved_and_scaled_to_the_expected_place(severity):
    image, middle, offset = spot(140, 90, ground=0), np.array([111.5, 111.5]), np.array([140, 90]) - 111.5

    def found(name):
        return moments(corrupt(image, name, severity, 0, "x"), ground=0)[1]

    angle = np.deg2rad(BY_NAME["rotation"].values[severity - 1])
    turned = [middle + np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]]) @ offset for a in (angle, -angle)]
    assert min(np.abs(found("rotation") - there).max() for there in turned) < 0.1
    moved = found("translation") - middle - offset
    assert np.hypot(*moved) == pytest.approx(224 * BY_NAME["translation"].values[severity - 1], abs=0.1)
    for name in ("scale_up", "scale_down"):
        assert found(name) == pytest.approx(middle + BY_NAME[name].values[severity - 1] * offset, abs=0.35), name


@pytest.mark.parametrize("severity", SEVERITIES)
def test_the_collimated_field_has_the_given_share_and_is_black_outside(severity):
    out = corrupt(level(200), "collimation", severity, 0, "x")
    share = BY_NAME["collimation"].values[severity - 1]
    assert out.mean() / 200 == pytest.approx(share**2, rel=0.03)
    assert (out == 200).mean() > 0.8 * share**2
    assert (out == 0).mean() > 0.8 * (1 - share**2) - 0.05


def test_the_marker_is_bright_near_a_corner_and_has_the_given_height():
    corners = set()
    for key in map(str, range(30)):
        for severity in SEVERITIES:
            out = corrupt(level(20), "side_marker", severity, 0, key)
            rows, columns = (np.flatnonzero((out > 137).any(axis=axis)) for axis in (1, 0))
            high = rows[-1] - rows[0] + 1
            # Tilted by up to twelve degrees, a letter reaches a little higher.
            assert -2 < high - 224 * BY_NAME["side_marker"].values[severity - 1] < 0.2 * high
            assert out.max() > 240
            assert min(rows[0], 223 - rows[-1]) < 0.1 * 224
            assert min(columns[0], 223 - columns[-1]) < 0.1 * 224
        corners.add((rows[0] < 112, columns[0] < 112))
    assert len(corners) == 4


def test_a_crop_keeps_the_given_share_of_one_side_and_is_letterboxed_again():
    ramp = np.tile(np.arange(1, 225, dtype=np.uint8), (224, 1))
    for key in map(str, range(10)):
        out = corrupt(ramp, "letterboxed_crop", 5, 0, key)
        rows, columns = content(out)
        assert {rows.stop - rows.start, columns.stop - columns.start} == {112, 224}
        across = columns.stop - columns.start
        shown = out[112, columns].astype(int)
        assert shown[-1] - shown[0] == across - 1


# ---- the sheet


def test_the_sheet_shows_each_radiograph_clean_and_at_five_severities(ray_local, tmp_path, capsys):
    size = ["--set", "data.size=40", "--set", "data.phantom.count=60", "--set", "data.split.block=5"]
    data(["sheet", "phantom", "--corrupted", "--to", str(tmp_path / "sheet.png"), *size])
    sheet = cv2.imread(str(tmp_path / "sheet.png"), cv2.IMREAD_GRAYSCALE)[2:, 2:]  # a margin on each side
    assert sheet.shape == (21 * (40 + 18), 12 * 42)
    clean = [sheet[58 * i : 58 * i + 40, 0:40] for i in range(21)]
    assert all(np.array_equal(tile, clean[0]) for tile in clean)
    assert (
        (sheet[: 58 * 21, 42 * 5 : 42 * 5 + 40].reshape(21, 58, 40)[:, :40] != np.array(clean)).any(axis=(1, 2)).all()
    )
    with pytest.raises(SystemExit) as end:
        data(["sheet", "phantom", "--corrupted", "--augmented", "--to", "x.png"])
    assert end.value.code == 2
    assert "not allowed with" in capsys.readouterr().err
