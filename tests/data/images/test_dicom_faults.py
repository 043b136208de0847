"""Odd DICOM headers: each fault is named by tag and keyword with what is assumed, and no text of a header is quoted."""

import io
import struct

import numpy as np
import pytest
from drawn_dicom import NAME, as_bytes, compressed, dataset
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filewriter import write_file_meta_info
from pydicom.pixels import apply_modality_lut, apply_presentation_lut, apply_voi_lut
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
)

from fracray.data.images.decode import decode

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)
WINDOW = {"WindowCenter": 2048, "WindowWidth": 4096}


def reads(made: Dataset) -> tuple[np.ndarray, str]:
    found = decode(as_bytes(made))
    assert not found.fault, found.note
    assert found.gray is not None
    assert NAME.split("^")[0] not in found.note
    return found.gray, found.note


def without(keyword: str, **tags: object) -> Dataset:
    made = dataset(RAMP, bits=12, **tags)
    delattr(made, keyword)
    return made


def other_type(keyword: str, vr: str, value: object, **tags: object) -> Dataset:
    """The field with a value that its own type could not hold."""
    made = without(keyword, **tags) if keyword in dataset(RAMP, bits=12, **tags) else dataset(RAMP, bits=12, **tags)
    made.add_new(keyword, vr, value)
    return made


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (without("BitsAllocated"), "(0028,0100) BitsAllocated is missing: taken as 16"),
        (without("BitsStored", HighBit=15), "(0028,0101) BitsStored is missing: taken as BitsAllocated, 16"),
        (dataset(RAMP, bits=12, BitsStored=0), "(0028,0101) BitsStored is 0: taken as BitsAllocated, 16"),
        (dataset(RAMP, bits=12, BitsStored=17), "(0028,0101) BitsStored is 17: taken as BitsAllocated, 16"),
        (dataset(RAMP, bits=12, BitsStored=None), "(0028,0101) BitsStored is empty: taken as BitsAllocated, 16"),
        (other_type("BitsStored", "LO", NAME), "(0028,0101) BitsStored is not a whole number: taken as BitsAllocated"),
        (other_type("BitsStored", "LO", "19600101"), "(0028,0101) BitsStored is out of range: taken as BitsAllocated"),
        (without("HighBit"), "(0028,0102) HighBit is missing: taken as BitsStored less one, 11"),
        (dataset(RAMP, bits=12, HighBit=16), "(0028,0102) HighBit is 16: taken as BitsStored less one, 11"),
        (dataset(RAMP, bits=12, HighBit=3), "(0028,0102) HighBit is 3: taken as BitsStored less one, 11"),
        (without("PixelRepresentation"), "(0028,0103) PixelRepresentation is missing: taken as 0, without a sign"),
        (dataset(RAMP, bits=12, PixelRepresentation=9), "(0028,0103) PixelRepresentation is 9: taken as 0"),
        (without("SamplesPerPixel"), "(0028,0002) SamplesPerPixel is missing: taken as 1"),
        (without("PhotometricInterpretation"),
         "(0028,0004) PhotometricInterpretation is missing: taken as MONOCHROME2"),
        (dataset(RAMP, bits=12, PhotometricInterpretation="DOE"),
         "(0028,0004) PhotometricInterpretation is not a known word: taken as MONOCHROME2"),
        (dataset(RAMP, bits=12, PhotometricInterpretation="RGB"),
         "(0028,0004) PhotometricInterpretation does not fit 1 sample a pixel: taken as MONOCHROME2"),
        (dataset(RAMP, bits=12, NumberOfFrames=0), "(0028,0008) NumberOfFrames is 0: taken as 1"),
        (other_type("NumberOfFrames", "LO", "one"), "(0028,0008) NumberOfFrames is not a whole number: taken as 1"),
        (other_type("NumberOfFrames", "LO", ["1", "1"]), "(0028,0008) NumberOfFrames has several values: taken as 1"),
        (dataset(RAMP, bits=12, WindowCenter=9), "(0028,1050) WindowCenter has no (0028,1051) WindowWidth beside it"),
        (dataset(RAMP, bits=12, WindowWidth=9), "(0028,1051) WindowWidth has no (0028,1050) WindowCenter beside it"),
        (dataset(RAMP, bits=12, WindowCenter=9, WindowWidth=0), "(0028,1051) WindowWidth is 0: ignored"),
        (dataset(RAMP, bits=12, WindowCenter=9, WindowWidth=-5), "(0028,1051) WindowWidth is -5: ignored"),
        (dataset(RAMP, bits=12, WindowCenter=9, WindowWidth="NaN"), "(0028,1051) WindowWidth is not a number: ignored"),
        (dataset(RAMP, bits=12, WindowCenter="inf", WindowWidth=9), "(0028,1050) WindowCenter is not a number"),
        (other_type("WindowWidth", "LO", NAME, WindowCenter=7), "(0028,1051) WindowWidth is not a number: ignored"),
        (dataset(RAMP, bits=12, VOILUTFunction="DOE", **WINDOW),
         "(0028,1056) VOILUTFunction is not a known word: the window is ignored"),
        (dataset(RAMP, bits=12, WindowCenter=90000, WindowWidth=100),
         "(0028,1050) WindowCenter hides the whole picture: ignored"),
        (dataset(RAMP, bits=12, RescaleSlope=0, RescaleIntercept=7), "(0028,1053) RescaleSlope is 0: ignored"),
        (dataset(RAMP, bits=12, RescaleSlope="NaN", RescaleIntercept=7), "RescaleSlope is not a number: ignored"),
        (dataset(RAMP, bits=12, RescaleSlope="1e308", RescaleIntercept=7), "RescaleSlope is out of range: ignored"),
        (dataset(RAMP, bits=12, RescaleSlope=1, RescaleIntercept="NaN"), "RescaleIntercept is not a number: ignored"),
        (dataset(RAMP, bits=12, RescaleSlope="1e-30", RescaleIntercept=7, **WINDOW),
         "(0028,1053) RescaleSlope hides the whole picture: ignored"),
        (dataset(RAMP, bits=12, RescaleSlope=1),
         "(0028,1053) RescaleSlope has no (0028,1052) RescaleIntercept beside it: ignored"),
        (dataset(RAMP, bits=12, ModalityLUTSequence=[Dataset()]), "(0028,3000) ModalityLUTSequence cannot be read"),
        (dataset(RAMP, bits=12, VOILUTSequence=[Dataset()]), "(0028,3010) VOILUTSequence cannot be read: ignored"),
        (other_type("VOILUTSequence", "LO", NAME), "(0028,3010) VOILUTSequence is not a sequence: ignored"),
        (other_type("PixelPaddingValue", "LO", NAME), "(0028,0120) PixelPaddingValue is not a whole number: ignored"),
        (dataset(RAMP, bits=12, PixelPaddingValue=0, PixelPaddingRangeLimit=4095),
         "(0028,0120) PixelPaddingValue hides the whole picture: ignored"),
    ],
    ids=lambda it: it.split(")")[1][:50].strip() if isinstance(it, str) and ")" in it else "",
)  # fmt: skip
def test_the_picture_is_shown_over_its_own_range_and_the_fault_is_named(made, said):
    shown, note = reads(made)
    assert said in note
    assert shown == pytest.approx(RAMP / 4095 * 255, abs=2.5)  # half a percent at either end is cut


@pytest.mark.parametrize(
    ("made", "fault", "said"),
    [
        (without("Rows"), "unreadable", "(0028,0010) Rows is missing: the size of the picture is not known"),
        (other_type("Columns", "LO", NAME), "unreadable", "(0028,0011) Columns is not a whole number: the size"),
        (dataset(RAMP, bits=12, Rows=0), "unreadable", "(0028,0010) Rows is 0: the size of the picture is not known"),
        (dataset(RAMP, bits=12, Rows=None), "unreadable", "(0028,0010) Rows is empty: the size"),
        (dataset(RAMP, bits=12, BitsAllocated=32), "unreadable", "(0028,0100) BitsAllocated is 32: 8 or 16 bits"),
        (dataset(RAMP, bits=12, SamplesPerPixel=4), "unreadable", "(0028,0002) SamplesPerPixel is 4: gray (1) or"),
        (dataset(RAMP, bits=12, Rows=65), "unreadable",
         "(7FE0,0010) PixelData has 8,192 bytes, but 64 x 65 pixels of 1 x 16 bits are 8,320"),
        (dataset(RAMP, bits=12, PixelData=b""), "unreadable", "(7FE0,0010) PixelData is empty"),
        (dataset(RAMP, bits=12, PhotometricInterpretation="PALETTE COLOR"), "unreadable",
         "(0028,1101) RedPaletteColorLookupTableDescriptor and the other tables of PALETTE COLOR cannot be read"),
    ],
    ids=lambda it: it.split(")")[1][:50].strip() if isinstance(it, str) and ")" in it else "",
)  # fmt: skip
def test_a_file_without_a_picture_says_which_field_is_wrong(made, fault, said):
    found = decode(as_bytes(made))
    assert (found.fault, found.gray) == (fault, None)
    assert found.note.startswith(said)
    assert NAME.split("^")[0] not in found.note


def test_more_pixels_than_announced_are_noted():
    shown, note = reads(dataset(RAMP, bits=12, Rows=32, **WINDOW))
    assert note == (
        "(7FE0,0010) PixelData has 8,192 bytes, but 64 x 32 pixels of 1 x 16 bits are 4,096: the rest is not shown"
    )
    assert shown.shape == (32, 64)


def test_colour_that_the_header_calls_gray_is_colour():
    colours = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    plain, _ = reads(dataset(colours))
    shown, note = reads(dataset(colours, PhotometricInterpretation="MONOCHROME2"))
    assert note == "(0028,0004) PhotometricInterpretation does not fit 3 samples a pixel: taken as RGB"
    assert np.array_equal(shown, plain)
    made = dataset(colours)
    del made.PlanarConfiguration
    shown, note = reads(made)
    assert note == "(0028,0006) PlanarConfiguration is missing: taken as 0, colour by pixel"
    assert np.array_equal(shown, plain)
    planes = dataset(colours, PlanarConfiguration=1, PixelData=np.moveaxis(colours, 2, 0).tobytes())
    assert np.array_equal(reads(planes)[0], plain)


def test_the_transfer_syntax_is_told_from_the_header_or_named(tmp_path):
    made = dataset(RAMP, bits=12, **WINDOW)
    plain, _ = reads(made)
    for syntax in (ImplicitVRLittleEndian, ExplicitVRLittleEndian):
        made.file_meta.TransferSyntaxUID = syntax
        data = as_bytes(made)
        found = decode(data[data.index(struct.pack("<HH", 8, 0x16)) :])  # without the file's meta information
        words = f"is missing: taken as {syntax.name}, in which the header is written"
        assert found.note == f"(0002,0010) TransferSyntaxUID {words}"
        assert np.array_equal(found.gray, plain)
    made.file_meta.TransferSyntaxUID = JPEG2000Lossless
    data = as_bytes_as_they_are(made)
    found = decode(data)
    assert found.note.startswith("(0002,0010) TransferSyntaxUID says JPEG 2000 Image Compression (Lossless Only), but")
    assert np.array_equal(found.gray, plain)
    packed = compressed(dataset(RAMP, bits=12), JPEGLSLossless, tmp_path)
    old = JPEGLSLossless.encode() + b"\0" * (len(JPEGLSLossless) % 2)
    found = decode(packed.replace(old, b"1.2.840.10008.1.2.1".ljust(len(old), b"\0")))
    assert found.fault == "unreadable"
    assert found.note.startswith("(0002,0010) TransferSyntaxUID says Explicit VR Little Endian, but (7FE0,0010)")
    made.file_meta.TransferSyntaxUID = "1.2.3.4"
    found = decode(as_bytes_as_they_are(made))
    assert (found.fault, found.note) == ("unreadable", "(0002,0010) TransferSyntaxUID is none that the standard knows")


def as_bytes_as_they_are(made: Dataset) -> bytes:
    """The file in explicit little endian, whatever its meta information says."""
    stream = io.BytesIO()
    plain = as_bytes(dataset(RAMP, bits=12, **WINDOW))
    end = 144 + struct.unpack_from("<I", plain, 140)[0]
    made.file_meta.FileMetaInformationVersion = b"\0\1"
    made.file_meta.ImplementationClassUID = "1.2.3"
    write_file_meta_info(stream, made.file_meta, enforce_standard=True)
    return b"\0" * 128 + b"DICM" + stream.getvalue() + plain[end:]


def test_float_pixels_are_named():
    made = dataset(RAMP, bits=12)
    del made.PixelData
    made.FloatPixelData = RAMP.astype("<f4").tobytes()
    found = decode(as_bytes(made))
    assert (found.fault, found.note) == (
        "unreadable", "its picture is in (7FE0,0008) FloatPixelData, which is not read"
    )  # fmt: skip


def test_bits_above_the_highest_are_noted():
    made = dataset(RAMP, bits=12, **WINDOW)
    plain, note = reads(made)
    assert note == ""
    made.PixelData = (RAMP | 0xF000).tobytes()
    shown, note = reads(made)
    assert np.array_equal(shown, plain)
    assert note == "(0028,0102) HighBit is 11, but values have bits above it: these are left out"


def test_a_codestream_of_another_depth_than_the_header_says(tmp_path):
    stored = np.linspace(0, 255, 40 * 60).reshape(40, 60).astype(np.uint8)
    packed = dcmread(io.BytesIO(compressed(dataset(stored), JPEG2000Lossless, tmp_path)))
    packed.BitsAllocated, packed.BitsStored, packed.HighBit = 16, 12, 11
    shown, note = reads(packed)
    assert note == "(0028,0101) BitsStored is 12, but the compressed values have 8: taken as 8"
    assert np.array_equal(shown, stored)


# ---------------------------------------------------------------- windows


def test_the_first_window_that_shows_something_is_used():
    shown, note = reads(dataset(RAMP, bits=12, WindowCenter=[1, 2048], WindowWidth=[0, 4096]))
    assert note == "(0028,1051) WindowWidth is 0: ignored"
    assert shown == pytest.approx(RAMP / 4095 * 255, abs=0.51)
    shown, note = reads(dataset(RAMP, bits=12, WindowCenter=[-9000, 2048], WindowWidth=[10, 4096]))
    assert note == "(0028,1050) WindowCenter hides the whole picture: ignored"
    assert shown == pytest.approx(RAMP / 4095 * 255, abs=0.51)


def test_luts_of_big_endian_files_are_those_of_pydicom():
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [4096, 0, 16])
    item.add_new("LUTData", "OW", (65535 - 15 * np.arange(4096)).astype(">u2").tobytes())
    made = dataset(RAMP, bits=12, VOILUTSequence=[item])
    made.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    made.PixelData = RAMP.astype(">u2").tobytes()
    theirs = apply_voi_lut(RAMP, dcmread(io.BytesIO(as_bytes(made))))
    assert reads(made)[0] == pytest.approx(theirs / 65535 * 255, abs=0.51)


@pytest.mark.parametrize("values", [[0, 0], [4, 4], [4, 5], [200, 206]])
def test_noise_of_a_few_levels_is_not_stretched_to_a_picture(values):
    """With a window that hides it, and without one."""
    stored = np.random.default_rng(0).choice(np.arange(values[0], values[1] + 1), (80, 80)).astype(np.uint16)
    for window in ({}, {"WindowCenter": 3000, "WindowWidth": 100}):
        shown, note = reads(dataset(stored, bits=12, **window))
        assert shown.min() == shown.max()
        assert f"(7FE0,0010) PixelData holds values between {stored.min()} and {stored.max()} only" in note


# ---------------------------------------------------------------- polarity


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("shape", [None, "", "IDENTITY", "INVERSE"])
def test_dark_and_bright_are_exchanged_where_the_header_says_so_and_once_only(kind, shape):
    made = dataset(RAMP, bits=12, PhotometricInterpretation=kind, **WINDOW)
    if shape is not None:
        made.PresentationLUTShape = shape
    shown, note = reads(made)
    theirs = apply_voi_lut(apply_modality_lut(RAMP, made), made)
    if shape:  # pydicom applies it, and leaves MONOCHROME1 alone
        theirs = apply_presentation_lut(theirs, made)
    if kind == "MONOCHROME1" and shape != "INVERSE":
        theirs = theirs.max() - theirs
    assert shown == pytest.approx(theirs / 4095 * 255, abs=0.51)
    field = "(2050,0020) PresentationLUTShape is"
    odd = {
        ("MONOCHROME2", "INVERSE"): f"{field} INVERSE, for",
        ("MONOCHROME1", "IDENTITY"): f"{field} IDENTITY, against",
    }
    assert note.startswith(odd.get((kind, shape or ""), ""))
    assert bool(note) == ((kind, shape or "") in odd)


@pytest.mark.parametrize(
    ("sign", "shape", "kind", "inverted"),
    [(None, None, "MONOCHROME2", False), (-1, None, "MONOCHROME2", False), (1, None, "MONOCHROME2", True),
     (1, "INVERSE", "MONOCHROME2", True), (1, "IDENTITY", "MONOCHROME2", False), (1, None, "MONOCHROME1", True)],
)  # fmt: skip
def test_values_for_processing_are_noted_and_turned_by_their_sign(sign, shape, kind, inverted):
    """PS3.3 C.8.11.3.1.2: +1 means that more X-rays give a higher value, so that bones are dark."""
    made = dataset(RAMP, bits=12, PhotometricInterpretation=kind, PresentationIntentType="FOR PROCESSING", **WINDOW)
    if sign:
        made.PixelIntensityRelationshipSign = sign
    if shape:
        made.PresentationLUTShape = shape
    shown, note = reads(made)
    assert "(0008,0068) PresentationIntentType says FOR PROCESSING: the detector's own values" in note
    expected = RAMP / 4095 * 255
    assert shown == pytest.approx(255 - expected if inverted else expected, abs=0.51)


def test_the_class_of_the_file_may_say_that_it_is_for_processing():
    made = dataset(RAMP, bits=12, SOPClassUID="1.2.840.10008.5.1.4.1.1.1.1.1", **WINDOW)
    assert "(0008,0016) SOPClassUID says FOR PROCESSING" in reads(made)[1]


def test_a_right_file_has_no_note():
    made = dataset(RAMP, bits=12, PresentationIntentType="FOR PRESENTATION", **WINDOW)
    for syntax in (None, ImplicitVRLittleEndian):
        if syntax:
            made.file_meta.TransferSyntaxUID = syntax
        assert reads(made)[1] == ""
