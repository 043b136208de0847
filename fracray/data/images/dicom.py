"""The picture of one DICOM file, as a monitor would show it.

Headers are not trusted: sizes are checked before memory is allocated. Knows nothing of folders, labels or manifests,
and returns nothing that may name a person.
"""

import warnings
import zlib
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import pydicom.config
from pydicom.dataset import Dataset
from pydicom.filereader import dcmread, read_dataset, read_preamble
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from fracray.data.images.dicom_display import Display, display_of, show_colour, show_gray
from fracray.data.images.dicom_fields import DicomError, Fields, as_dicom_errors
from fracray.data.images.dicom_format import (
    MONOCHROME,
    PixelFormat,
    StoredBytes,
    read_bytes,
    read_format,
    read_syntax,
    without_pixels,
)
from fracray.data.images.dicom_pixels import decode_pixels

# Values that break the standard are accepted: pydicom's warnings would quote them, and they may be names.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
warnings.filterwarnings("ignore", module=r"pydicom\b")

MAX_HEADER = 2**22  # bytes of a deflated file beyond its pixels; overlays and colour profiles need less

_PIXEL_DATA = 0x7FE00010


def is_dicom(head: bytes) -> bool:
    """Whether a file that begins so (132 bytes or more) is DICOM, with its preamble or without one."""
    return head[128:132] == b"DICM" or (head[:2] in (b"\x02\x00", b"\x08\x00") and head[3:4] == b"\x00")


# ---------------------------------------------------------------- the picture


@dataclass(frozen=True)
class DicomImage:
    """A file with one picture, whose size was checked and which is not decoded."""

    fields: Fields
    stored: StoredBytes
    form: PixelFormat

    @property
    def width(self) -> int:
        return self.form.columns

    @property
    def height(self) -> int:
        return self.form.rows

    @property
    def notes(self) -> tuple[str, ...]:
        """What is wrong with the header and what is assumed instead; complete once `gray` has returned."""
        return tuple(self.fields.notes)


def open_image(data: bytes, max_pixels: int) -> DicomImage:
    """Read a file with one picture of at most `max_pixels`, without decoding it.

    DicomError for a file that is not DICOM, is truncated, holds no picture or several frames, or inflates to more than
    it announces.
    """
    with as_dicom_errors("not readable as DICOM"):
        dataset = _inflate(data, max_pixels) if is_deflated(data) else dcmread(BytesIO(data), force=True)
        if not len(dataset):  # pydicom keeps nothing of a file that ends within an element of unknown length
            raise DicomError("truncated", "the file ends within its data")
        fields, stored = Fields(dataset), read_bytes(dataset)
        form = read_format(fields, stored, max_pixels)
        if stored is None:
            raise without_pixels(fields)
        if form.frames > 1:
            raise DicomError("unreadable", f"{form.frames:,} frames: a radiograph has one")
        return DicomImage(fields, stored, form)


def gray(picture: DicomImage) -> np.ndarray:
    """A picture as a monitor shows it: (Rows, Columns) uint8, bright bones.

    Stored values go through the modality LUT or rescale, then the first VOI LUT or, without one, the first window
    (linear, linear exact or sigmoid); without either, pictures of up to 8 bits are shown as they are and deeper ones
    between the percentiles TAILS of their values. MONOCHROME1 is inverted; padding is black and is left out of the
    percentiles. Colour is converted to luma. What the header asks for is ignored where it hides the whole picture: see
    `notes` of the picture. DicomError for what cannot be decoded.
    """
    with as_dicom_errors("its pixels cannot be decoded"):
        show = show_gray if picture.form.kind in MONOCHROME else show_colour
        return show(_pixels(picture), picture.form, picture.fields)


def display(picture: DicomImage) -> Display | None:
    """As `gray`, with the stored values that the picture is made from; None for colour."""
    with as_dicom_errors("its pixels cannot be decoded"):
        return display_of(_pixels(picture), picture.form, picture.fields) if picture.form.kind in MONOCHROME else None


def _pixels(picture: DicomImage) -> np.ndarray:
    fields, stored, form = picture.fields, picture.stored, picture.form
    return decode_pixels(fields, stored, form, read_syntax(fields, stored, form))


# ---------------------------------------------------------------- deflated files


def is_deflated(data: bytes) -> bool:
    """Whether a DICOM file that begins so is in the deflated transfer syntax."""
    return DeflatedExplicitVRLittleEndian.encode() in data[:4096]


def _inflate(data: bytes, max_pixels: int) -> Dataset:
    """The dataset of a deflated file; inflates no more than its header announces."""
    meta, body = _meta(data)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    head = inflater.decompress(body, MAX_HEADER)
    announced = _up_to_pixels(head)
    form = read_format(Fields(announced), None, max_pixels)
    rest = inflater.decompress(inflater.unconsumed_tail, form.frames * form.nbytes + MAX_HEADER)
    if inflater.unconsumed_tail:
        raise DicomError("unreadable", "inflates to more than its header announces: not decoded")
    if not inflater.eof:
        raise DicomError("truncated", "the file ends within its deflated part")
    dataset = read_dataset(BytesIO(head + rest), False, True)
    dataset.file_meta = pydicom.dataset.FileMetaDataset(meta)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dataset


def inflated_header(data: bytes) -> Dataset:
    """The dataset of a deflated file without its pixels; raises as pydicom and zlib do."""
    _, body = _meta(data)
    return _up_to_pixels(zlib.decompressobj(-zlib.MAX_WBITS).decompress(body, MAX_HEADER))


def _meta(data: bytes) -> tuple[Dataset, bytes]:
    """The file's meta information, which is never deflated, and what follows it."""
    stream = BytesIO(data)
    read_preamble(stream, force=True)
    meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    return meta, data[stream.tell() :]


def _up_to_pixels(head: bytes) -> Dataset:
    return read_dataset(BytesIO(head), False, True, stop_when=lambda tag, vr, length: tag >= _PIXEL_DATA)
