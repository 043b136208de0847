"""The picture of one DICOM file, as a monitor would show it.

Headers are not trusted: sizes are checked before memory is allocated. Knows nothing of folders, labels or manifests,
and returns nothing that may name a person.
"""

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import cv2
import imagecodecs
import numpy as np
import pydicom.config
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.filereader import dcmread, read_dataset, read_preamble
from pydicom.multival import MultiValue
from pydicom.pixels import apply_color_lut, apply_windowing, convert_color_space, get_decoder
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
)

# Values that break the standard are accepted: pydicom's warnings would quote them, and they may be names.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
warnings.filterwarnings("ignore", module=r"pydicom\b")

MAX_HEADER = 2**22  # bytes of a deflated file beyond its pixels; overlays and colour profiles need less
TAILS = (0.5, 99.5)  # percentiles shown as black and white where a file names no window

_PIXELS = 0x7FE00010


class DicomError(ValueError):
    """A file without a usable picture: `fault` is 'truncated' or 'unreadable'; the message quotes nothing.

    (A header may name a patient, and messages are kept in manifests.)
    """

    def __init__(self, fault: str, why: str) -> None:
        super().__init__(why)
        self.fault = fault


def is_dicom(head: bytes) -> bool:
    """Whether a file that begins so (132 bytes or more) is DICOM, with its preamble or without one."""
    return head[128:132] == b"DICM" or (head[:2] in (b"\x02\x00", b"\x08\x00") and head[3:4] == b"\x00")


# ---------------------------------------------------------------- the picture


@dataclass(frozen=True)
class DicomImage:
    """A file with one picture, whose size was checked and which is not decoded."""

    dataset: Dataset
    data: bytes  # the file

    @property
    def width(self) -> int:
        return _number(self.dataset, "Columns", 0)

    @property
    def height(self) -> int:
        return _number(self.dataset, "Rows", 0)


def open_image(data: bytes, max_pixels: int) -> DicomImage:
    """Read a file with one picture of at most `max_pixels`, without decoding it.

    DicomError for a file that is not DICOM, is truncated, holds no picture or several frames, or inflates to more than
    it announces.
    """
    with as_dicom_errors("not readable as DICOM"):
        dataset = _inflate(data, max_pixels) if is_deflated(data) else dcmread(BytesIO(data), force=True)
        if not len(dataset):  # pydicom keeps nothing of a file that ends within an element of unknown length
            raise DicomError("truncated", "the file ends within its data")
        _announced_bytes(dataset, max_pixels)
        if "PixelData" not in dataset:
            raise DicomError("truncated", "the file ends before its picture")
        frames = _number(dataset, "NumberOfFrames", 1)
        if frames > 1:
            raise DicomError("unreadable", f"{frames:,} frames: a radiograph has one")
        return DicomImage(dataset, data)


@contextmanager
def as_dicom_errors(what: str) -> Iterator[None]:
    """Turns whatever a parser or decoder raises on unknown bytes into a DicomError that quotes nothing."""
    try:
        yield
    except DicomError:
        raise
    except EOFError:
        raise DicomError("truncated", "the file ends within its header") from None
    except Exception as error:
        raise DicomError("unreadable", f"{what}: {type(error).__name__}") from None


def is_deflated(data: bytes) -> bool:
    """Whether a DICOM file that begins so is in the deflated transfer syntax."""
    return DeflatedExplicitVRLittleEndian.encode() in data[:4096]


def _inflate(data: bytes, max_pixels: int) -> Dataset:
    """The dataset of a deflated file; inflates no more than its header announces."""
    meta, body = _meta(data)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    head = inflater.decompress(body, MAX_HEADER)
    announced = _up_to_pixels(head)
    rest = inflater.decompress(inflater.unconsumed_tail, _announced_bytes(announced, max_pixels) + MAX_HEADER)
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
    return read_dataset(BytesIO(head), False, True, stop_when=lambda tag, vr, length: tag >= _PIXELS)


def _announced_bytes(dataset: Dataset, max_pixels: int) -> int:
    """The size of the pixels that the header announces, all frames together."""
    if "Rows" not in dataset or "Columns" not in dataset:
        raise DicomError("unreadable", "DICOM without a picture")
    rows, columns, frames = (_number(dataset, name, 1) for name in ("Rows", "Columns", "NumberOfFrames"))
    if rows < 1 or columns < 1 or frames < 1:
        raise DicomError("unreadable", "the header announces a picture without pixels")
    if rows * columns * frames > max_pixels:
        raise DicomError("unreadable", f"header announces more than {max_pixels:,} pixels: not decoded")
    samples, bits = _number(dataset, "SamplesPerPixel", 1), _number(dataset, "BitsAllocated", 16)
    if samples not in (1, 3) or bits not in (8, 16):
        raise DicomError("unreadable", f"{samples} samples of {bits} bits: gray or colour of 8 or 16 bits is read")
    return rows * columns * frames * samples * bits // 8


def _number(dataset: Dataset, name: str, default: int) -> int:
    value = dataset.get(name)
    try:
        return default if value is None or value == "" else int(value)
    except (TypeError, ValueError):
        raise DicomError("unreadable", f"{name} is not a number") from None


def gray(picture: DicomImage) -> np.ndarray:
    """A picture as a monitor shows it: (Rows, Columns) uint8, bright bones.

    Stored values go through the modality LUT or rescale, then the first VOI LUT or, without one, the first window
    (linear, linear exact or sigmoid); without either, pictures of up to 8 bits are shown as they are and deeper ones
    between the percentiles TAILS of their values. MONOCHROME1 is inverted; padding is black and is left out of the
    percentiles. Colour is converted to luma. DicomError for what cannot be decoded.
    Source: DICOM PS3.3, C.7.6.3, C.11.1 and C.11.2.
    """
    with as_dicom_errors("its pixels cannot be decoded"):
        dataset = picture.dataset
        kind = str(dataset.get("PhotometricInterpretation", "MONOCHROME2"))
        stored = _stored(picture)
        if kind not in ("MONOCHROME1", "MONOCHROME2"):
            return _luma(apply_color_lut(stored, dataset) if kind == "PALETTE COLOR" else stored, dataset)
        return _shown(stored, dataset, inverted=kind == "MONOCHROME1")


def _stored(picture: DicomImage) -> np.ndarray:
    """The pixels as stored: integers, (Rows, Columns) or (Rows, Columns, 3), colour as RGB."""
    dataset = picture.dataset
    syntax = UID(dataset.file_meta.get("TransferSyntaxUID", "")) if hasattr(dataset, "file_meta") else UID("")
    rows, columns, samples = (_number(dataset, name, 1) for name in ("Rows", "Columns", "SamplesPerPixel"))
    if not syntax:
        implicit, little = dataset.original_encoding
        assert little is not None
        syntax = UID("1.2.840.10008.1.2" if implicit else "1.2.840.10008.1.2.1" if little else "1.2.840.10008.1.2.2")
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = syntax
    if not syntax.is_transfer_syntax or syntax.is_private:
        raise DicomError("unreadable", "a transfer syntax that the standard does not know")
    if not syntax.is_compressed:
        wanted = rows * columns * samples * _number(dataset, "BitsAllocated", 16) // 8
        if dataset.get("PhotometricInterpretation") == "YBR_FULL_422":
            wanted = wanted // 3 * 2
        if len(dataset.PixelData) < wanted:
            raise DicomError("truncated", "the file ends within its picture")
    else:
        try:
            frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
            fits = (
                _rle_fits(frame, rows * columns)
                if syntax == RLELossless
                else _coded_size(frame) == (columns, rows, samples)
            )
        except (EOFError, ValueError, struct.error, IndexError):
            raise DicomError("truncated", "the file ends within its picture") from None
        if not fits:
            raise DicomError("unreadable", "its compressed picture is not of the announced size: not decoded")
    if syntax.is_compressed and syntax != RLELossless:
        pixels = _from_codestream(frame, dataset, syntax)
    else:
        pixels, _ = get_decoder(syntax).as_array(dataset, index=0)
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)


def _from_codestream(frame: bytes, dataset: Dataset, syntax: UID) -> np.ndarray:
    """Pixels of a codestream whose size was checked; colour as RGB."""
    kind = dataset.get("PhotometricInterpretation", "")
    # jpeg8_decode fills what is missing with gray and says nothing; jpegls_decode takes seconds to notice.
    if frame.startswith(b"\xff\xd8") and b"\xff\xd9" not in frame[-64:]:
        raise DicomError("truncated", "its compressed picture has no end")
    if syntax in JPEG2000TransferSyntaxes:
        pixels = imagecodecs.jpeg2k_decode(frame, numthreads=1)
    elif syntax in JPEGLSTransferSyntaxes:
        pixels = imagecodecs.jpegls_decode(frame)
    elif syntax not in JPEGTransferSyntaxes:
        raise DicomError("unreadable", f"its pixels cannot be decoded from {syntax.name}")
    elif _number(dataset, "BitsStored", 8) == 8 and syntax in (JPEGBaseline8Bit, JPEGExtended12Bit):
        # pydicom knows whether the colours of a lossy JPEG in DICOM are RGB; a JPEG decoder guesses.
        return get_decoder(syntax).as_array(dataset, index=0, decoding_plugin="pillow")[0]
    else:
        pixels = imagecodecs.jpeg8_decode(frame)  # its ljpeg_decode and jpegsof3_decode crash on damaged frames
    if pixels.itemsize > 2 or pixels.shape[:2] != (dataset.Rows, dataset.Columns):
        raise DicomError("unreadable", "its compressed picture is not of the announced size or depth")
    return convert_color_space(pixels, kind, "RGB") if kind.startswith("YBR_FULL") else pixels


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


def _luma(pixels: np.ndarray, dataset: Dataset) -> np.ndarray:
    if pixels.dtype == np.uint16:
        palette = dataset.get("RedPaletteColorLookupTableDescriptor")
        bits = palette[2] if palette else _number(dataset, "BitsStored", 16)
        pixels = (pixels >> max(bits - 8, 0)).astype(np.uint8)
    return cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)


def _shown(stored: np.ndarray, dataset: Dataset, inverted: bool) -> np.ndarray:
    """Stored values to gray, by a table with an entry for each value that the stored bits can hold."""
    bits = _number(dataset, "BitsStored", stored.itemsize * 8)
    shift = _number(dataset, "HighBit", bits - 1) + 1 - bits
    if not 1 <= bits <= 16 or not 0 <= shift <= 16 - bits:
        raise DicomError("unreadable", f"{bits} bits stored below bit {bits + shift}: not possible")
    count = 2**bits
    # Bits above the stored ones may hold an overlay or a copied sign: neither is part of the value.
    codes = (stored.view(f"u{stored.itemsize}") >> shift) & (count - 1)
    values = np.arange(count, dtype=np.int32)
    if _number(dataset, "PixelRepresentation", 0):
        values[count // 2 :] -= count
    counts = np.bincount(codes.ravel(), minlength=count)
    padding = _padding(dataset, values)
    counts[padding] = 0
    display = _display(values, counts, dataset)
    table = np.rint(np.clip(display, 0, 1) * 255).astype(np.uint8)
    if inverted:
        table = 255 - table
    table[padding] = 0
    return table[codes]


def _padding(dataset: Dataset, values: np.ndarray) -> np.ndarray:
    """Which of the stored values are padding: (n,) bool."""
    first = dataset.get("PixelPaddingValue")
    if first is None:
        return np.zeros(len(values), dtype=bool)
    last = dataset.get("PixelPaddingRangeLimit")
    # Some files write it as unsigned where it should be signed, or the reverse: the stored bits are equal.
    ends = [_signed_like(int(end), values) for end in (first, first if last is None else last)]
    return (values >= min(ends)) & (values <= max(ends))


def _signed_like(value: int, values: np.ndarray) -> int:
    if value > values.max():
        return value - 2**16
    return value + 2**16 if value < values.min() else value


def _display(values: np.ndarray, counts: np.ndarray, dataset: Dataset) -> np.ndarray:
    """How bright each stored value is shown, 0 to 1; `counts` says how often each occurs in the picture."""
    real = values
    if dataset.get("ModalityLUTSequence"):
        real = _through_lut(values, dataset.ModalityLUTSequence[0])
    elif dataset.get("RescaleSlope") is not None and dataset.get("RescaleIntercept") is not None:
        real = values * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    if dataset.get("VOILUTSequence"):
        entries = _through_lut(real, dataset.VOILUTSequence[0])
        # Descriptors announce 16 bits where the entries use 12: white is the maximum of the bits in use.
        return entries / (2 ** max(int(entries.max()).bit_length(), 8) - 1)
    if _first(dataset, "WindowCenter") is not None and _first(dataset, "WindowWidth") is not None:
        try:
            with np.errstate(over="ignore"):
                # pydicom chooses the output range: its output for the extremes is black and white.
                black, white = apply_windowing(np.array([-1e30, 1e30]), dataset)
                return (apply_windowing(real, dataset) - black) / (white - black)
        except (ValueError, TypeError, AttributeError):
            pass  # a window without width is ignored
    if len(values) <= 256 and real is values:
        return (values - values.min()) / (len(values) - 1)
    return stretch(real, counts)


def _first(dataset: Dataset, name: str) -> Any:
    value = dataset.get(name)
    return (value[0] if len(value) else None) if isinstance(value, MultiValue) else value


def _through_lut(values: np.ndarray, item: Dataset) -> np.ndarray:
    """Values through a modality or VOI LUT: integers. (pydicom 3.0's own wrap at 256 where entries have 8 bits, and
    take no modality LUT of 10 to 14.)"""
    entries, first, _ = (int(number) for number in item.LUTDescriptor)
    entries = entries or 2**16
    if first >= 2**15 and values.min() < 0:
        first -= 2**16
    data = item.LUTData
    if isinstance(data, bytes):
        lut = np.frombuffer(data, np.uint8 if len(data) < 2 * entries else "<u2")
    else:
        lut = np.asarray(data, dtype=np.int64) & 0xFFFF
    lut = lut[:entries].astype(np.int64)
    return lut[np.clip(np.floor(values).astype(np.int64) - first, 0, len(lut) - 1)]


def stretch(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Brightness, 0 to 1, of each of `values`, black and white at the percentiles TAILS of a picture in which they
    occur `counts` times: (n,) float."""
    order = np.argsort(values, kind="stable")
    order = order[counts[order] > 0]
    if not len(order):
        return np.zeros(len(values))
    reached = np.cumsum(counts[order])
    low, high = (float(values[order[np.searchsorted(reached, reached[-1] * tail / 100)]]) for tail in TAILS)
    if high <= low:
        low, high = float(values[order[0]]), float(values[order[-1]])
    return (values - low) / (high - low) if high > low else np.zeros(len(values))
