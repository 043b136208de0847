"""The stored values of a DICOM picture: from plain or compressed pixel data, of the announced size only.

Knows how values are stored, and nothing of how they are shown.
"""

import struct
from typing import Any

import imagecodecs
import numpy as np
from pydicom.encaps import get_frame
from pydicom.pixels import convert_color_space, get_decoder
from pydicom.uid import (
    UID,
    JPEG2000TransferSyntaxes,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
)

from fracray.data.images.dicom_fields import DicomError, Fields, named
from fracray.data.images.dicom_format import PixelFormat, StoredBytes


def decode_pixels(fields: Fields, stored: StoredBytes, form: PixelFormat, syntax: UID) -> np.ndarray:
    """The pixels as stored: integers, (rows, columns) or (rows, columns, 3), colour as RGB; DicomError if not whole."""
    if not stored.data and not stored.cut:
        raise DicomError("unreadable", f"{named('PixelData')} is empty")
    if not syntax.is_compressed:
        _check_length(fields, stored, form)
        if form.allocated == 16:
            _note_high_bits(
                np.frombuffer(stored.data[: form.nbytes], "<u2" if syntax.is_little_endian else ">u2"), form, fields
            )
        pixels = _by_pydicom(fields, stored, form, syntax)
    else:
        try:
            frame = get_frame(stored.data, 0, number_of_frames=1)
            fits = (
                _rle_fits(frame, form.rows * form.columns)
                if syntax == RLELossless
                else _coded_size(frame) == (form.columns, form.rows, form.samples)
            )
        except (EOFError, ValueError, struct.error, IndexError):
            raise DicomError("truncated", "the file ends within its picture") from None
        if not fits:
            raise DicomError("unreadable", "its compressed picture is not of the announced size: not decoded")
        if syntax == RLELossless:
            pixels = _by_pydicom(fields, stored, form, syntax)
        else:
            pixels = _from_codestream(frame, fields, stored, form, syntax)
            if form.allocated == 8 * pixels.itemsize:
                _note_high_bits(pixels, form, fields)
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)


def _check_length(fields: Fields, stored: StoredBytes, form: PixelFormat) -> None:
    size, wanted = len(stored.data), form.nbytes
    if size < wanted and stored.cut:
        raise DicomError("truncated", "the file ends within its picture")
    announced = f"{form.columns} x {form.rows} pixels of {form.samples} x {form.allocated} bits are {wanted:,}"
    if size < wanted:
        raise DicomError("unreadable", f"{named('PixelData')} has {size:,} bytes, but {announced}")
    if size > wanted + wanted % 2:
        fields.note("PixelData", f"has {size:,} bytes, but {announced}: the rest is not shown")


def _note_high_bits(values: np.ndarray, form: PixelFormat, fields: Fields) -> None:
    """Note that values have bits above the highest that the header names: an overlay, or a wrong header."""
    if not form.signed and form.high < form.allocated - 1 and int(values.max()) >= 2 ** (form.high + 1):
        fields.note("HighBit", f"is {form.high}, but values have bits above it: these are left out")


def _by_pydicom(fields: Fields, stored: StoredBytes, form: PixelFormat, syntax: UID, plugin: str = "") -> np.ndarray:
    data = stored.data if syntax.is_compressed else stored.data[: form.nbytes + form.nbytes % 2]
    options: dict[str, Any] = {
        "rows": form.rows,
        "columns": form.columns,
        "number_of_frames": 1,
        "samples_per_pixel": form.samples,
        "photometric_interpretation": form.kind,
        "planar_configuration": form.planar,
        "bits_allocated": form.allocated,
        # pydicom clears what is above; of values that end at another bit, that would be a part.
        "bits_stored": form.stored if syntax in JPEGTransferSyntaxes else form.high + 1,
        "pixel_representation": int(form.signed),
        "pixel_keyword": "PixelData",
        "pixel_vr": fields.dataset["PixelData"].VR,
    }
    pixels, _ = get_decoder(syntax).as_array(data, index=0, decoding_plugin=plugin, **options)
    return pixels


def _from_codestream(frame: bytes, fields: Fields, stored: StoredBytes, form: PixelFormat, syntax: UID) -> np.ndarray:
    """Pixels of a codestream whose size was checked; colour as RGB."""
    # jpeg8_decode fills what is missing with gray and says nothing; jpegls_decode takes seconds to notice.
    if frame.startswith(b"\xff\xd8") and b"\xff\xd9" not in frame[-64:]:
        raise DicomError("truncated", "its compressed picture has no end")
    if syntax in JPEG2000TransferSyntaxes:
        pixels = imagecodecs.jpeg2k_decode(frame, numthreads=1)
    elif syntax in JPEGLSTransferSyntaxes:
        pixels = imagecodecs.jpegls_decode(frame)
    elif syntax not in JPEGTransferSyntaxes:
        raise DicomError("unreadable", f"its pixels cannot be decoded from {syntax.name}")
    elif form.stored == 8 and syntax in (JPEGBaseline8Bit, JPEGExtended12Bit):
        # pydicom knows whether the colours of a lossy JPEG in DICOM are RGB; a JPEG decoder guesses.
        return _by_pydicom(fields, stored, form, syntax, "pillow")
    else:
        pixels = imagecodecs.jpeg8_decode(frame)  # its ljpeg_decode and jpegsof3_decode crash on damaged frames
    if pixels.itemsize > 2 or pixels.shape[:2] != (form.rows, form.columns):
        raise DicomError("unreadable", "its compressed picture is not of the announced size or depth")
    return convert_color_space(pixels, form.kind, "RGB") if form.kind.startswith("YBR_FULL") else pixels


def _rle_fits(frame: bytes, plane: int) -> bool:
    """Whether no segment decodes to more than twice the bytes of a plane. (pydicom sets no limit.)"""
    count, *starts = struct.unpack_from("<16I", frame)
    ends = [*starts[1:count], len(frame)]
    for start, end in zip(starts[:count], ends, strict=True):
        at, unfolded = start, 0
        while at < end and unfolded <= 2 * plane:
            run = frame[at]
            unfolded += run + 1 if run < 128 else 257 - run if run > 128 else 0
            at += run + 2 if run < 128 else 2 if run > 128 else 1
        if unfolded > 2 * plane:
            return False
    return True


def _coded_size(frame: bytes) -> tuple[int, int, int]:
    """Width, height and components that the head of a JPEG, JPEG-LS or JPEG 2000 codestream announces."""
    if not frame.startswith(b"\xff\xd8"):
        siz = frame.index(b"\xff\x4f\xff\x51", 0, 4096)
        right, bottom, left, top = struct.unpack_from(">4I", frame, siz + 8)
        return right - left, bottom - top, struct.unpack_from(">H", frame, siz + 40)[0]
    at = 2
    while True:
        marker, length = struct.unpack_from(">HH", frame, at)
        if marker == 0xFFFF:  # a fill byte
            at += 1
        elif (0xFFC0 <= marker <= 0xFFCF and marker not in (0xFFC4, 0xFFC8, 0xFFCC)) or marker == 0xFFF7:
            height, width, components = struct.unpack_from(">HHB", frame, at + 5)
            return width, height, components
        elif marker < 0xFF01:
            raise ValueError("no marker where one must be")
        else:
            at += 2 + length
