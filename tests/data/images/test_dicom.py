"""DICOM: pixels against closed forms and pydicom's own functions, headers, and malicious files."""

import io
import math
import os
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from drawn_dicom import as_bytes, compressed, dataset, rle_bomb
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from fracray.data.images.decode import MAX_BYTES, MAX_PIXELS, decode, inspect_file
from fracray.data.images.dicom import gray, is_dicom, open_image
from fracray.data.images.dicom_fields import DicomError
from fracray.data.images.dicom_header import Header, read_header
from fracray.data.images.letterbox import letterbox
from fracray.data.images.square import decode as decode_for_shard

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)  # each 12-bit value once


def shown(made: Dataset) -> np.ndarray:
    return gray(open_image(as_bytes(made), MAX_PIXELS))


def fault(data: bytes) -> tuple[str, str]:
    with pytest.raises(DicomError) as raised:
        gray(open_image(data, MAX_PIXELS))
    return raised.value.fault, str(raised.value)


# ---------------------------------------------------------------- from stored values to grays


@pytest.mark.parametrize("inverted", [False, True], ids=["MONOCHROME2", "MONOCHROME1"])
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_a_linear_window_over_all_values_is_the_identity_scaled(bits, signed, inverted):
    """PS3.3 C.11.2.1.2: width 2**bits centred on 2**(bits - 1) maps the lowest value to black, the highest to white."""
    kind = ("i" if signed else "u") + ("1" if bits == 8 else "2")
    low = -(2 ** (bits - 1)) if signed else 0
    stored = np.linspace(low, low + 2**bits - 1, 60 * 40).round().astype(kind).reshape(60, 40)
    made = dataset(stored, bits=bits, WindowCenter=low + 2 ** (bits - 1), WindowWidth=2**bits)
    if inverted:
        made.PhotometricInterpretation = "MONOCHROME1"
    expected = (stored.astype(float) - low) / (2**bits - 1) * 255
    assert shown(made) == pytest.approx(255 - expected if inverted else expected, abs=0.51)


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("rescale", [None, (1, -1024), (0.5, 100), (2.5, 0)])
def test_windows_are_those_of_pydicom(function, rescale):
    made = dataset(RAMP, bits=12, WindowCenter=[600, 1], WindowWidth=[900, 2])
    if function:
        made.VOILUTFunction = function
    if rescale:
        made.RescaleSlope, made.RescaleIntercept = rescale
    theirs = apply_voi_lut(apply_modality_lut(RAMP, made), made)
    ends = [(made.get("RescaleSlope", 1)) * value + made.get("RescaleIntercept", 0) for value in (0, 4095)]
    assert shown(made) == pytest.approx((theirs - ends[0]) / (ends[1] - ends[0]) * 255, abs=0.51)


def test_a_falling_slope_inverts_the_window():
    """Stored 0 means 4095 here, so that it is the brightest."""
    made = dataset(RAMP, bits=12, RescaleSlope=-1, RescaleIntercept=4095, WindowCenter=2048, WindowWidth=4096)
    assert shown(made) == pytest.approx((4095.0 - RAMP) / 4095 * 255, abs=0.51)


def lut(entries: np.ndarray, first: int, bits: int) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries) % 65536, first, bits])
    item.add_new("LUTData", "OW", entries.astype("<u2").tobytes())
    return item


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_a_voi_lut_equals_pydicoms_and_precedes_the_window(bits):
    curve = np.rint((2**bits - 1) * (np.arange(3000) / 2999) ** 0.5)
    made = dataset(RAMP, bits=12, VOILUTSequence=[lut(curve, 500, bits)], WindowCenter=5, WindowWidth=9)
    theirs = apply_voi_lut(RAMP, made, prefer_lut=True)
    assert shown(made) == pytest.approx(theirs / (2**bits - 1) * 255, abs=0.51)


def test_a_voi_lut_with_entries_of_8_bits_reaches_beyond_its_256th():
    """pydicom 3.0.2 wraps the index there."""
    made = dataset(RAMP, bits=12, VOILUTSequence=[lut(np.arange(4096) // 16, 0, 8)])
    assert np.array_equal(shown(made), RAMP // 16)


def test_a_modality_lut_is_that_of_pydicom():
    curve = 65535 - 16 * np.arange(4096)
    item = lut(curve, 0, 16)
    item.ModalityLUTType = "US"
    made = dataset(RAMP, bits=12, ModalityLUTSequence=[item], WindowCenter=20000, WindowWidth=30000)
    theirs = apply_voi_lut(apply_modality_lut(RAMP, made), made)
    assert shown(made) == pytest.approx(theirs / 65535 * 255, abs=0.51)


@pytest.mark.parametrize("window", [{}, {"WindowCenter": 40, "WindowWidth": 0}], ids=["absent", "without width"])
def test_without_a_window_the_tails_are_cut(window):
    rng = np.random.default_rng(0)
    stored = rng.integers(1000, 2000, (100, 100)).astype(np.uint16)
    stored[0, :3] = 65535  # fewer than half a percent
    picture = shown(dataset(stored, **window))
    low, high = np.percentile(stored, [0.5, 99.5])
    assert picture == pytest.approx(np.clip((stored - low) / (high - low), 0, 1) * 255, abs=1)
    assert picture[1:].std() > 60


def test_8_bits_without_a_window_are_shown_as_they_are():
    stored = np.arange(50, 150, dtype=np.uint8).reshape(10, 10)
    assert np.array_equal(shown(dataset(stored)), stored)


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("window", [{}, {"WindowCenter": 1500, "WindowWidth": 1000}], ids=["none", "window"])
def test_padding_is_black_and_does_not_change_the_rest(kind, window):
    stored = np.random.default_rng(0).integers(1000, 2000, (100, 100)).astype(np.int16)
    plain = shown(dataset(stored, PhotometricInterpretation=kind, **window))
    stored[:, :40] = -2000
    stored[:, 40:45] = -1995
    made = dataset(stored, PhotometricInterpretation=kind, **window)
    made.add_new("PixelPaddingValue", "US", 65536 - 2000)  # as unsigned, which some devices do
    made.add_new("PixelPaddingRangeLimit", "SS", -1990)
    picture = shown(made)
    assert (picture[:, :45] == 0).all()
    assert picture[:, 45:].astype(int) == pytest.approx(plain[:, 45:].astype(int), abs=3)


def test_overlay_bits_above_the_stored_ones_are_no_part_of_the_value():
    made = dataset(RAMP, bits=12, WindowCenter=2048, WindowWidth=4096)
    clean = shown(made)
    made.PixelData = (RAMP | 0xF000).tobytes()
    assert np.array_equal(shown(made), clean)


@pytest.mark.parametrize("syntax", [None, RLELossless], ids=["plain", "RLE"])
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("high", [12, 15])
def test_a_high_bit_above_the_stored_bits_is_where_the_value_begins(tmp_path, high, signed, syntax):
    levels = RAMP.astype(np.int16) - 2048 if signed else RAMP
    window = {"WindowCenter": 0 if signed else 2048, "WindowWidth": 4096}
    wanted = shown(dataset(levels, bits=12, **window))
    moved = dataset(levels << (high - 11), bits=12, HighBit=high, **window)
    found = open_image(compressed(moved, syntax, tmp_path) if syntax else as_bytes(moved), MAX_PIXELS)
    assert np.array_equal(gray(found), wanted)


def test_colour_becomes_luma():
    colours = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [90, 90, 90]]], np.uint8)
    assert shown(dataset(colours)).ravel().tolist() == [76, 150, 29, 90]
    palette = dataset(np.array([[0, 1], [2, 3]], np.uint8), PhotometricInterpretation="PALETTE COLOR")
    for at, name in enumerate(("Red", "Green", "Blue")):
        entries = (colours.reshape(-1, 3)[:, at].astype("<u2") * 257).tobytes()
        palette.add_new(f"{name}PaletteColorLookupTableDescriptor", "US", [4, 0, 16])
        palette.add_new(f"{name}PaletteColorLookupTableData", "OW", entries)
    assert shown(palette).ravel().tolist() == [76, 150, 29, 90]


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize(
    "syntax", [RLELossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless], ids=lambda s: s.name
)
def test_lossless_syntaxes_give_what_the_plain_file_gives(tmp_path, syntax, bits):
    rng = np.random.default_rng(bits)
    stored = (rng.integers(0, 2**bits, (40, 60)) // 3).astype(np.uint8 if bits == 8 else np.uint16)
    made = dataset(stored, bits=bits, WindowCenter=2 ** (bits - 2), WindowWidth=2 ** (bits - 1))
    plain = shown(made)
    packed = compressed(made, syntax, tmp_path)
    assert dcmread(io.BytesIO(packed)).file_meta.TransferSyntaxUID == syntax
    assert np.array_equal(gray(open_image(packed, MAX_PIXELS)), plain)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_plain_syntaxes_give_the_same_picture(syntax):
    made = dataset(RAMP, bits=12, WindowCenter=2048, WindowWidth=4096)
    plain = shown(made)
    made.file_meta.TransferSyntaxUID = syntax
    if syntax == ExplicitVRBigEndian:
        made.PixelData = RAMP.astype(">u2").tobytes()
    data = as_bytes(made)
    assert is_dicom(data)
    assert np.array_equal(gray(open_image(data, MAX_PIXELS)), plain)


def test_a_baseline_jpeg_is_near_its_original(tmp_path):
    smooth = np.add.outer(np.arange(64), 2 * np.arange(80)).astype(np.uint8)
    packed = compressed(dataset(smooth), JPEGBaseline8Bit, tmp_path)
    assert gray(open_image(packed, MAX_PIXELS)).astype(int) == pytest.approx(smooth.astype(int), abs=6)


# ---------------------------------------------------------------- files that pydicom ships


def shipped(name: str) -> bytes:
    path = get_testdata_file(name, download=False)
    assert path, f"{name} is not shipped with pydicom"
    return Path(path).read_bytes()


@pytest.mark.parametrize(
    "name",
    ["MR_small.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm", "MR_small_RLE.dcm", "MR_small_padded.dcm",
     "MR_small_jpeg_ls_lossless.dcm", "MR_small_jp2klossless.dcm"],
)  # fmt: skip
def test_one_picture_in_many_syntaxes(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stored = dcmread(get_testdata_file("MR_small.dcm", download=False))
        theirs = apply_voi_lut(stored.pixel_array, stored)  # without rescale; 16 bits signed
        ours = gray(open_image(shipped(name), MAX_PIXELS))
    assert ours == pytest.approx((theirs + 2**15) / (2**16 - 1) * 255, abs=0.51)


def test_a_jpeg_of_12_bits_holds_the_values_that_pydicom_documents():
    """pydicom's tests expect 244 and 95 at these two places; the higher value is brighter."""
    picture = gray(open_image(shipped("JPGExtended.dcm"), MAX_PIXELS))
    assert picture.shape == (1024, 256)
    stored = imagecodecs.jpeg8_decode(
        get_frame(dcmread(io.BytesIO(shipped("JPGExtended.dcm"))).PixelData, 0, number_of_frames=1)
    )
    assert (stored[420, 140], stored[230, 120]) == (244, 95)
    assert picture[420, 140] > picture[230, 120]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("rtstruct.dcm", ("unreadable", "DICOM without a picture")),
        ("test-SR.dcm", ("unreadable", "DICOM without a picture")),
        ("SC_rgb_rle_2frame.dcm", ("unreadable", "2 frames: a radiograph has one")),
        ("examples_ybr_color.dcm", ("unreadable", "30 frames: a radiograph has one")),
        ("MR_truncated.dcm", ("truncated", "the file ends within its picture")),
        ("JPEG2000-embedded-sequence-delimiter.dcm",
         ("unreadable", "its compressed picture is not of the announced size: not decoded")),
    ],
)  # fmt: skip
def test_files_without_a_radiograph_say_so(name, said):
    assert fault(shipped(name)) == said


# ---------------------------------------------------------------- files truncated, damaged or malicious


def test_a_file_cut_anywhere_is_truncated_or_has_no_picture(tmp_path):
    stored = np.random.default_rng(0).integers(0, 4096, (40, 60)).astype(np.uint16)
    made = dataset(stored, bits=12)
    complete = as_bytes(made)
    for length in (len(complete) - 2, len(complete) - stored.nbytes + 1):
        assert fault(complete[:length]) == ("truncated", "the file ends within its picture")
    packed = compressed(made, JPEGLSLossless, tmp_path)
    assert fault(packed[: len(packed) // 2])[0] == "truncated"
    for length in range(132, len(complete) - stored.nbytes, 7):
        assert fault(complete[:length])[0] in ("truncated", "unreadable")


def announcing(rows: int, columns: int, frames: int | None = None) -> Dataset:
    made = dataset(np.zeros((4, 4), np.uint16), Rows=rows, Columns=columns)
    if frames:
        made.NumberOfFrames = frames
    return made


@pytest.mark.parametrize(("rows", "columns", "frames"), [(60000, 60000, None), (3000, 3000, 1000)])
def test_announced_pixels_beyond_the_limit_are_not_decoded(rows, columns, frames):
    assert "header announces more than 80,000,000 pixels" in fault(as_bytes(announcing(rows, columns, frames)))[1]


def deflated_bomb(unfolded: int) -> bytes:
    """A deflated file that announces 64 x 64 pixels, and inflates to `unfolded` more zeros."""
    made = dataset(RAMP, bits=12)
    plain = as_bytes(made)
    made.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    deflated = as_bytes(made)
    # (0002,0000) at byte 132 says how long the meta information behind it is; that is never deflated
    start, end = (144 + struct.unpack_from("<I", data, 140)[0] for data in (plain, deflated))
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = [packer.compress(plain[start:])]
    body += [packer.compress(bytes(2**20)) for _ in range(unfolded // 2**20)]
    return deflated[:end] + b"".join([*body, packer.flush()])


def jpeg_bomb() -> bytes:
    """A picture of 64 x 64 as the header has it, of 65,000 x 65,000 as its JPEG has it."""
    made = dataset(np.zeros((64, 64), np.uint8))
    packed = bytearray(compressed(made, JPEGBaseline8Bit, Path(os.environ["BOMBS"])))
    at = packed.index(b"\xff\xc0")
    packed[at + 5 : at + 9] = struct.pack(">HH", 65000, 65000)
    return bytes(packed)


def disguised_jpeg_bomb() -> bytes:
    """As `jpeg_bomb`, with the head of a small JPEG 2000 codestream in a comment before the size."""
    packed = jpeg_bomb()
    decoy = b"\xff\x4f\xff\x51" + struct.pack(">HH8IH", 41, 0, 64, 64, 0, 0, 64, 64, 0, 0, 1)
    made = dcmread(io.BytesIO(packed))
    frame = get_frame(made.PixelData, 0, number_of_frames=1)
    made.PixelData = encapsulate([frame[:2] + b"\xff\xfe" + struct.pack(">H", len(decoy) + 2) + decoy + frame[2:]])
    return as_bytes(made)


BOMBS = {
    "deflated": lambda: deflated_bomb(2**30),
    "run lengths": lambda: rle_bomb(2**30),
    "jpeg": jpeg_bomb,
    "disguised jpeg": disguised_jpeg_bomb,
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_is_refused_in_little_memory(tmp_path, kind):
    """In a separate process, so that its peak memory is due to the file."""
    os.environ["BOMBS"] = str(tmp_path)
    data = BOMBS[kind]()
    (tmp_path / "bomb.dcm").write_bytes(data)
    code = (
        "import resource, sys; from pathlib import Path; from fracray.data.images.decode import inspect_file\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "seen = inspect_file(Path(sys.argv[1]))\n"
        "print(seen.fault, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, seen.note, sep='|')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "bomb.dcm"], capture_output=True, text=True, check=True, timeout=60
    )
    said, megabytes, note = done.stdout.strip().split("|")
    assert said == "unreadable"
    assert "not decoded" in note
    assert int(megabytes) < 150, f"{megabytes} MB for a file of {len(data):,} bytes"


@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless], ids=lambda s: s.name)
def test_a_complete_file_with_a_cut_codestream_has_no_picture(tmp_path, syntax):
    stored = np.random.default_rng(0).integers(0, 4096, (40, 60)).astype(np.uint16)
    made = dcmread(io.BytesIO(compressed(dataset(stored, bits=12), syntax, tmp_path)))
    frame = get_frame(made.PixelData, 0, number_of_frames=1)
    for share in (0.3, 0.6, 0.9):
        made.PixelData = encapsulate([frame[: int(share * len(frame))]])
        assert fault(as_bytes(made))[0] in ("truncated", "unreadable")


@pytest.mark.parametrize(
    ("syntax", "start"),
    [(JPEGLosslessSV1, b"\xff\xc3"), (JPEGLSLossless, b"\xff\xf7"), (JPEG2000Lossless, b"\xff\x52")],
    ids=["JPEG lossless", "JPEG-LS", "JPEG 2000"],
)
def test_damaged_codestreams_do_not_end_the_process(tmp_path, syntax, start):
    """Some decoders abort their process on such files (GDCM does)."""
    stored = np.random.default_rng(0).integers(0, 4096, (40, 60)).astype(np.uint16)
    complete = compressed(dataset(stored, bits=12), syntax, tmp_path)
    first = complete.index(start)
    rng = np.random.default_rng(1)
    faults = set()
    for _ in range(25):
        damaged = bytearray(complete)
        for at in rng.integers(first + 10, first + 60, 4):
            damaged[at] = rng.integers(256)
        faults.add(decode(bytes(damaged)).fault)
    assert "unreadable" in faults
    assert decode(complete).fault == ""


# ---------------------------------------------------------------- one decoder for audit and ingest


def test_the_ingest_trains_on_the_picture_that_the_audit_hashed(tmp_path):
    data = as_bytes(dataset(RAMP, bits=12, PhotometricInterpretation="MONOCHROME1"))
    (tmp_path / "a.dcm").write_bytes(data)
    seen = inspect_file(tmp_path / "a.dcm")
    assert (seen.fault, seen.width, seen.height, seen.orientation) == ("", 64, 64, 1)
    audited = decode(data).gray
    assert audited is not None
    assert seen.brightness == pytest.approx(audited.mean(), abs=0.5)
    assert np.array_equal(decode_for_shard(data, 64, 32), letterbox(audited, 32))


def test_a_16_bit_png_is_stretched_like_a_dicom_without_a_window():
    import cv2

    stored = np.random.default_rng(0).integers(100, 4000, (50, 70)).astype(np.uint16)
    png = cv2.imencode(".png", stored)[1].tobytes()
    assert np.array_equal(decode(png).gray, shown(dataset(stored)))


# ---------------------------------------------------------------- headers


def header(tmp_path: Path, **tags: object) -> Header:
    (tmp_path / "h.dcm").write_bytes(as_bytes(dataset(RAMP, **tags)))
    return read_header(tmp_path / "h.dcm", MAX_BYTES)


def test_a_header_is_read_where_its_fields_are(tmp_path):
    read = header(
        tmp_path, instance="1.2.9", StudyInstanceUID="1.5", AccessionNumber="A7", PatientID=" P1 ", PatientSex="F",
        Manufacturer="Agfa ", ManufacturerModelName="DX-D  300", ViewPosition="LL", BodyPartExamined="HAND",
        PatientAge="045Y",
    )  # fmt: skip
    assert read == Header("1.2.9", "1.5", "A7", "P1", "Agfa DX-D 300", "lateral", "hand", 45.0, "F")
    assert math.isnan(header(tmp_path).age)
    (tmp_path / "junk.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 50)
    assert read_header(tmp_path / "junk.dcm", MAX_BYTES).patient == ""


@pytest.mark.parametrize(
    ("tags", "years"),
    [
        ({"PatientAge": "006M"}, 0.5),
        ({"PatientAge": "026W"}, 0.4983),
        ({"PatientAge": "073D"}, 0.19986),
        ({"PatientBirthDate": "19800702", "StudyDate": "20200701"}, 39),
        ({"PatientBirthDate": "19800701", "StudyDate": "20200701"}, 40),
        ({"PatientAge": "old"}, math.nan),
    ],
)
def test_ages_are_years(tmp_path, tags, years):
    assert header(tmp_path, **tags).age == pytest.approx(years, abs=1e-3, nan_ok=True)


def test_a_patient_typed_into_another_field_is_not_kept(tmp_path):
    read = header(tmp_path, PatientID="4711-B", BodyPartExamined="DOE HAND", ManufacturerModelName="4711-b")
    assert (read.region, read.device) == ("", "")


def test_headers_of_deflated_files_are_read(tmp_path):
    (tmp_path / "d.dcm").write_bytes(shipped("image_dfl.dcm"))
    theirs = dcmread(get_testdata_file("image_dfl.dcm", download=False))
    assert read_header(tmp_path / "d.dcm", MAX_BYTES).instance == theirs.SOPInstanceUID
