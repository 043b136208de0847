"""Mutated DICOM files: each a drawn one with faults in its header, its pixel data or its bytes, by a seed."""

from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from drawn_dicom import NAME, as_bytes, compressed, dataset
from drawn_fracatlas import picture
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import (
    ExplicitVRBigEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

_FIELDS = (
    "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel",
    "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "WindowCenter", "WindowWidth",
    "VOILUTFunction", "RescaleSlope", "RescaleIntercept", "PixelPaddingValue", "PixelPaddingRangeLimit",
    "PresentationLUTShape", "PresentationIntentType", "PixelIntensityRelationshipSign", "VOILUTSequence",
    "ModalityLUTSequence", "PresentationLUTSequence", "SOPClassUID", "PixelData",
)  # fmt: skip
_VALUES: tuple[tuple[str, Any], ...] = (
    ("US", 0), ("US", 1), ("US", 3), ("US", 7), ("US", 8), ("US", 16), ("US", 65535), ("US", [8, 16]), ("US", None),
    ("SS", -1), ("SS", -32768), ("IS", "0"), ("IS", "99999999"), ("DS", "NaN"), ("DS", "-inf"), ("DS", "1e308"),
    ("DS", "1e-300"), ("DS", ""), ("DS", ["40", "NaN", "0"]), ("LO", NAME), ("LO", ""), ("LO", "MONOCHROME1"),
    ("CS", "YBR_FULL_422"), ("CS", "INVERSE"), ("CS", "PALETTE COLOR"), ("CS", "SIGMOID"), ("OB", b"\x01"),
    ("OW", b"\x00\x10\x20"), ("UN", b"\xff" * 9), ("SQ", []), ("SQ", ()), ("FD", float("inf")), ("AT", 5),
)  # fmt: skip
_SYNTAXES = (None, None, None, ExplicitVRBigEndian, RLELossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless)


def mutated(seed: int, folder: Path) -> tuple[bytes, str]:
    """The bytes of a faulty file, and what was done to it; `folder` is for an encoder's files."""
    rng = np.random.default_rng(seed)
    syntax = _SYNTAXES[rng.integers(len(_SYNTAXES))]
    bits = int(rng.choice((8, 12, 16)))
    if bits == 8 and syntax == JPEGLosslessSV1 and rng.random() < 0.5:
        syntax = JPEGBaseline8Bit
    made, done = _drawn(rng, bits), [f"{bits} bits, {syntax.name if syntax else 'plain'}"]
    if syntax == ExplicitVRBigEndian:
        made.file_meta.TransferSyntaxUID = syntax
    elif syntax is not None:
        data = compressed(made, syntax, folder)
        made = dcmread(BytesIO(data))
    for _ in range(int(rng.integers(0, 4))):
        field = _FIELDS[rng.integers(len(_FIELDS))]
        if rng.random() < 0.3:
            done.append(f"no {field}")
            if field in made:
                delattr(made, field)
            continue
        vr, value = _VALUES[rng.integers(len(_VALUES))]
        done.append(f"{field} {vr} {value!r}")
        if field in made:
            delattr(made, field)
        with suppress(ValueError, TypeError):  # pydicom refuses some
            made.add_new(field, vr, value)
    try:
        data = as_bytes(made)
    except Exception as error:  # pydicom does not write every fault
        done.append(f"not written: {type(error).__name__}")
        data = as_bytes(_drawn(rng, bits))
    return _damaged(data, rng, done), "; ".join(done)


def _drawn(rng: np.random.Generator, bits: int) -> Dataset:
    gray = picture(int(rng.integers(1000)), 60, 40)
    stored = gray if bits == 8 else gray.astype(np.uint16) << (bits - 8)
    return dataset(stored, bits=bits, WindowCenter=2 ** (bits - 1), WindowWidth=2**bits)


def _damaged(data: bytes, rng: np.random.Generator, done: list[str]) -> bytes:
    """Bytes of the file changed, cut off, repeated or taken out, in two of five files."""
    kind = rng.integers(10)
    damaged = bytearray(data)
    if kind == 0:
        for at in rng.integers(132, len(data), 8):
            damaged[at] = rng.integers(256)
        done.append("bytes changed")
    elif kind == 1:
        for at in rng.integers(132, min(len(data), 900), 4):  # in the header
            damaged[at] = rng.integers(256)
        done.append("bytes of the header changed")
    elif kind == 2:
        del damaged[int(rng.integers(1, len(data))) :]
        done.append("cut")
    elif kind == 3:
        at, length = int(rng.integers(132, len(data))), int(rng.integers(1, 200))
        if rng.random() < 0.5:
            del damaged[at : at + length]
        else:
            damaged[at:at] = damaged[at : at + length]
        done.append("bytes moved")
    return bytes(damaged)
