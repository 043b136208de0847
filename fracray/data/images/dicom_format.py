"""How a DICOM header says that its pixels are stored, completed where it says nothing and checked before decoding.

Must not decode a picture.
"""

from dataclasses import dataclass

from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from fracray.data.images.dicom_fields import DicomError, Fields, named

MONOCHROME = ("MONOCHROME1", "MONOCHROME2")
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_422", "YBR_PARTIAL_420", "YBR_RCT", "YBR_ICT")
_OTHER_PIXELS = ("FloatPixelData", "DoubleFloatPixelData", "PixelDataProviderURL")
_UNDEFINED = 0xFFFFFFFF  # the length of an element that ends with a mark: compressed pixels


@dataclass(frozen=True)
class StoredBytes:
    """The pixel data as they lie in the file. cut: the file ends within them. fragments: written as compressed ones."""

    data: bytes
    cut: bool
    fragments: bool


@dataclass(frozen=True)
class PixelFormat:
    """What the header says of the pixels, in DICOM's words; what it lacks is assumed.

    stored: bits of a value, the highest of them at bit `high`, of `allocated`. kind: the photometric interpretation.
    """

    rows: int
    columns: int
    frames: int
    samples: int
    allocated: int
    stored: int
    high: int
    signed: bool
    planar: int
    kind: str

    @property
    def nbytes(self) -> int:
        """Bytes of one frame without compression."""
        nbytes = self.rows * self.columns * self.samples * self.allocated // 8
        return nbytes // 3 * 2 if self.kind == "YBR_FULL_422" else nbytes


def read_bytes(dataset: Dataset) -> StoredBytes | None:
    """The pixel data; None where there are none."""
    if "PixelData" not in dataset:
        return None
    element = dataset.get_item("PixelData")
    assert element is not None
    declared = getattr(element, "length", None)
    if declared is None:  # converted by pydicom already, which checks no length
        declared = _UNDEFINED if getattr(element, "is_undefined_length", False) else 0
    data = element.value
    if not isinstance(data, bytes):
        data = b""
    undefined = declared == _UNDEFINED
    return StoredBytes(data, cut=not undefined and len(data) < declared, fragments=undefined)


def without_pixels(fields: Fields) -> DicomError:
    """Why a file with the size of a picture has no pixel data."""
    for keyword in _OTHER_PIXELS:
        if fields.values(keyword) is not None:
            return DicomError("unreadable", f"its picture is in {named(keyword)}, which is not read")
    return DicomError("truncated", "the file ends before its picture")


def read_format(fields: Fields, stored: StoredBytes | None, max_pixels: int) -> PixelFormat:
    """What the header says; DicomError where the size is not known or too large, or the depth is not 8 or 16 bits.

    `stored`: the pixel data, where they are known, whose length stands in for missing fields.
    """
    rows, columns = (_side(fields, keyword, stored is not None) for keyword in ("Rows", "Columns"))
    frames = fields.number_or("NumberOfFrames", 1, "1", lambda n: n > 0, needed=False)
    if rows * columns * frames > max_pixels:
        raise DicomError("unreadable", f"header announces more than {max_pixels:,} pixels: not decoded")
    kind, samples = _kind(fields)
    allocated = _allocated(fields, stored, rows * columns * samples * frames)
    bits = fields.number_or("BitsStored", allocated, f"BitsAllocated, {allocated}", lambda n: 1 <= n <= allocated)
    high = fields.number_or(
        "HighBit", bits - 1, f"BitsStored less one, {bits - 1}", lambda n: bits - 1 <= n <= allocated - 1
    )
    signed = fields.number_or("PixelRepresentation", 0, "0, without a sign", lambda n: n in (0, 1))
    planar = 0
    if samples == 3:
        planar = fields.number_or("PlanarConfiguration", 0, "0, colour by pixel", lambda n: n in (0, 1))
    return PixelFormat(rows, columns, frames, samples, allocated, bits, high, bool(signed), planar, kind)


def _side(fields: Fields, keyword: str, pictured: bool) -> int:
    found, problem = fields.number(keyword, lambda n: n > 0)
    if found is not None:
        return found
    if problem == "is missing" and not pictured:
        raise DicomError("unreadable", "DICOM without a picture")
    raise DicomError("unreadable", f"{named(keyword)} {problem}: the size of the picture is not known")


def _kind(fields: Fields) -> tuple[str, int]:
    """The photometric interpretation and the samples of a pixel, 1 or 3, so that they agree."""
    kind, problem = fields.code("PhotometricInterpretation", (*MONOCHROME, "PALETTE COLOR", *_COLOURS))
    likely = 3 if kind in _COLOURS else 1
    samples = fields.number_or("SamplesPerPixel", likely, str(likely))
    if samples not in (1, 3):
        raise DicomError("unreadable", f"{named('SamplesPerPixel')} is {samples}: gray (1) or colour (3) is read")
    if samples == likely and not problem:
        return kind, samples
    taken = "RGB" if samples == 3 else "MONOCHROME2"
    words = problem or f"does not fit {samples} sample{'s' * (samples > 1)} a pixel"
    fields.note("PhotometricInterpretation", f"{words}: taken as {taken}")
    return taken, samples


def _allocated(fields: Fields, stored: StoredBytes | None, values: int) -> int:
    """The bits that each of the `values` of the picture takes up: 8 or 16."""
    found, problem = fields.number("BitsAllocated")
    if found in (8, 16):
        return found
    if found is not None:
        raise DicomError("unreadable", f"{named('BitsAllocated')} is {found}: 8 or 16 bits are read")
    if stored is None or stored.fragments:
        bits, _ = fields.number("BitsStored")
        likely = 8 if bits is not None and bits <= 8 else 16
    else:
        likely = 16 if len(stored.data) >= 2 * values else 8
    fields.note("BitsAllocated", f"{problem}: taken as {likely}")
    return likely


def read_syntax(fields: Fields, stored: StoredBytes, form: PixelFormat) -> UID:
    """The transfer syntax of the pixels; DicomError where it is not known or they are written in another."""
    meta = Fields(getattr(fields.dataset, "file_meta", None) or Dataset(), fields.notes)
    found = meta.values("TransferSyntaxUID")
    if not found:
        implicit, little = fields.dataset.original_encoding
        syntax = (
            ImplicitVRLittleEndian if implicit else ExplicitVRBigEndian if little is False else ExplicitVRLittleEndian
        )
        words = "is missing" if found is None else "is empty"
        fields.note("TransferSyntaxUID", f"{words}: taken as {syntax.name}, in which the header is written")
    else:
        syntax = UID(found[0].strip(" \0")) if isinstance(found[0], str) else UID("")
    if not syntax.is_transfer_syntax or syntax.is_private:
        raise DicomError("unreadable", f"{named('TransferSyntaxUID')} is none that the standard knows")
    if stored.fragments and not syntax.is_compressed:
        why = f"{named('TransferSyntaxUID')} says {syntax.name}, but {named('PixelData')} is written as compressed"
        raise DicomError("unreadable", f"{why}: not decoded")
    if syntax.is_compressed and not stored.fragments and not stored.cut:
        if len(stored.data) - len(stored.data) % 2 != form.nbytes + form.nbytes % 2:
            raise DicomError(
                "unreadable", f"{named('PixelData')} is not written as compressed, as {syntax.name} must be"
            )
        fields.note("TransferSyntaxUID", f"says {syntax.name}, but the pixels are not compressed: taken as such")
        return ExplicitVRLittleEndian
    return syntax
