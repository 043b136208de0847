"""Pictures at their full depth: with the window that is given, a viewer shows what the training sees."""

import io
import zlib

import cv2
import numpy as np
import pytest
from drawn_dicom import as_bytes, dataset
from drawn_files import tiff as tiff_of
from drawn_fracatlas import jpeg, picture
from PIL import Image
from pydicom.dataset import Dataset

from fracray.data.images.announced import announced_pixels
from fracray.data.images.decode import decode
from fracray.data.images.full_depth import full_depth
from fracray.data.images.samples import MAX_PIXELS

DEEP = picture(1).astype(np.uint16) * 15 + 100
TABLE = Dataset()
TABLE.LUTDescriptor, TABLE.LUTData = [4096, 0, 16], (np.arange(4096) ** 2 // 256).astype("<u2").tobytes()


def shown(found):
    gray = np.clip((found.values - (found.centre - found.width / 2)) / found.width, 0, 1)
    return 255 * (1 - gray if found.inverted else gray)


def dicom(pixels=DEEP, bits=12, **tags):
    return as_bytes(dataset(pixels, bits=bits, **tags))


def tiff(image, **tags):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "TIFF", tiffinfo=tags.get("info", {}))
    return stream.getvalue()


FILES = {
    "window": (dicom(WindowCenter=1500, WindowWidth=1800), 12),
    "exact window": (dicom(WindowCenter=1500, WindowWidth=1800, VOILUTFunction="LINEAR_EXACT"), 12),
    "no window": (dicom(), 12),
    "inverted": (dicom(PhotometricInterpretation="MONOCHROME1", WindowCenter=1500, WindowWidth=1800), 12),
    "falling": (dicom(RescaleSlope=-0.5, RescaleIntercept=2000, WindowCenter=1200, WindowWidth=900), 12),
    "signed": (dicom((DEEP.astype(np.int16) - 2000), 16, WindowCenter=-400, WindowWidth=1500), 16),
    "padding": (dicom(PixelPaddingValue=int(DEEP[0, 0]), WindowCenter=1500, WindowWidth=1800), 12),
    "sigmoid": (dicom(WindowCenter=1500, WindowWidth=900, VOILUTFunction="SIGMOID"), 16),
    "table": (dicom(VOILUTSequence=[TABLE]), 16),
    "8 bits": (dicom(picture(2), 8), 8),
    "PNG of 16 bits": (cv2.imencode(".png", DEEP)[1].tobytes(), 16),
    "TIFF of 16 bits": (tiff(DEEP), 16),
    "turned TIFF": (tiff(DEEP, info={274: 6}), 16),
    "TIFF, white is zero": (tiff(DEEP, info={262: 0}), 16),
    "JPEG": (jpeg(picture(3), orientation=6), 8),
    "colour PNG": (cv2.imencode(".png", np.stack([picture(4)] * 3, -1))[1].tobytes(), 8),
}


@pytest.mark.parametrize("name", FILES)
def test_the_window_shows_what_the_training_sees(name):
    data, bits = FILES[name]
    found, gray = full_depth(data), decode(data).gray
    assert gray is not None
    assert found.values.dtype == np.uint16
    assert (found.values.shape, found.bits) == (gray.shape, bits)
    assert found.values.max() < 2**bits
    assert np.abs(shown(found) - gray).max() <= 1
    assert gray.std() > 10


def test_stored_values_are_kept():
    assert (full_depth(FILES["window"][0]).values == DEEP).all()
    assert (full_depth(FILES["PNG of 16 bits"][0]).values == DEEP).all()
    assert (full_depth(FILES["signed"][0]).values.astype(int) - 2**15 + 2000 == DEEP).all()


@pytest.mark.parametrize(
    ("data", "words"), [(b"text", "first bytes"), (jpeg(picture(1))[:2000], "cut short"), (dicom()[:5000], "ends")]
)
def test_what_cannot_be_decoded_says_why(data, words):
    with pytest.raises(ValueError, match=words):
        full_depth(data)


def header_of(width, height):
    """A PNG that announces this size and holds nothing."""
    data = bytearray(cv2.imencode(".png", np.zeros((1, 1), np.uint8))[1].tobytes())
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "pixels"),
    [
        *((data, 160 * 200) for data, _ in (FILES[name] for name in ("window", "JPEG", "turned TIFF", "8 bits"))),
        (tiff_of(np.zeros((50, 70, 3), np.float32)), 50 * 70),  # which Pillow does not open
        (b"text", 0),
        (header_of(20_000, 20_000), MAX_PIXELS + 1),
        (header_of(10_000, 10_000), 100_000_000),
        (dicom(Rows=30_000, Columns=30_000), MAX_PIXELS + 1),
    ],
)
def test_the_announced_size_is_known_without_decoding(data, pixels):
    assert announced_pixels(data) == pixels
