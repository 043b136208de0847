"""How stored values of a DICOM picture are shown: modality and VOI transformation, polarity, padding.

A table gives the gray of every value that the stored bits can hold. What the header asks for is ignored, with a note,
where it cannot be read or where it hides the whole picture. Source: DICOM PS3.3, C.7.6.3, C.8.11.1, C.11.1, C.11.2.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut, apply_windowing

from fracray.data.images.blank import nothing_shown
from fracray.data.images.dicom_fields import DicomError, Fields, named, quoted_numbers
from fracray.data.images.dicom_format import PixelFormat

TAILS = (0.5, 99.5)  # percentiles shown as black and white where a file names no window
_LEVELS = 8  # stored values between the tails: fewer are noise of the detector, which must not be shown as a picture
_FOR_PROCESSING = ("1.2.840.10008.5.1.4.1.1.1.1.1", "1.2.840.10008.5.1.4.1.1.1.2.1", "1.2.840.10008.5.1.4.1.1.1.3.1")

_Way = tuple[str, Callable[[], np.ndarray]]  # what the header asks for, in words, and the brightness of each value


def show_colour(pixels: np.ndarray, form: PixelFormat, fields: Fields) -> np.ndarray:
    """Colour as stored, or by its palette, to luma: (rows, columns) uint8."""
    bits = form.stored
    if form.kind == "PALETTE COLOR":
        try:
            bits = int(fields.dataset.RedPaletteColorLookupTableDescriptor[2])
            pixels = apply_color_lut(pixels, fields.dataset)
        except Exception:  # whatever pydicom raises on a palette that is missing, too short or of another kind
            why = "and the other tables of PALETTE COLOR cannot be read"
            raise DicomError("unreadable", f"{named('RedPaletteColorLookupTableDescriptor')} {why}") from None
    if pixels.dtype == np.uint16:
        pixels = (pixels >> max(bits - 8, 0)).astype(np.uint8)
    return cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)


def show_gray(pixels: np.ndarray, form: PixelFormat, fields: Fields) -> np.ndarray:
    """Stored values (rows, columns) as a monitor shows them, uint8, bright bones.

    Of the VOI LUT, the windows in their order and the picture's own range, the first that does not hide the whole
    picture is used. Notes what is ignored.
    """
    return display_of(pixels, form, fields).gray


@dataclass(frozen=True)
class Display:
    """How a picture is shown: the stored bits of each pixel as an index (rows, columns), and for each index, (n,), the
    value it means, its brightness before dark and bright are exchanged, 0 to 1, and whether it is padding; the result.
    """

    codes: np.ndarray
    values: np.ndarray
    brightness: np.ndarray
    padding: np.ndarray
    inverted: bool
    gray: np.ndarray


def display_of(pixels: np.ndarray, form: PixelFormat, fields: Fields) -> Display:
    """As `show_gray`, with what the picture is made from."""
    codes, values = _codes(pixels, form, fields)
    counts = np.bincount(codes.ravel(), minlength=len(values))
    padding = _padding(values, counts, fields)
    counts[padding] = 0
    inverted = exchanged(form.kind, fields)
    first: Display | None = None
    hiding: list[str] = []
    for words, display in _ways(values, counts, form, fields):
        with np.errstate(all="ignore"):
            brightness = np.clip(np.nan_to_num(display(), nan=0.0), 0, 1)
        table = np.rint(brightness * 255).astype(np.uint8)
        if inverted:
            table = 255 - table
        table[padding] = 0
        found = Display(codes, values, brightness, padding, inverted, table[codes])
        if not nothing_shown(found.gray):
            for hidden in hiding:
                fields.note(hidden, "hides the whole picture: ignored")
            return found
        first = first or found
        hiding += [words] if words else []
    assert first is not None
    return first


def _codes(pixels: np.ndarray, form: PixelFormat, fields: Fields) -> tuple[np.ndarray, np.ndarray]:
    """The stored bits of each pixel as an index, and the value that each index means: (n,) int32."""
    bits, shift, most = form.stored, form.high + 1 - form.stored, 8 * pixels.itemsize
    if bits + shift > most or (most == 16 and form.allocated == 8):  # a codestream says its depth itself
        fields.note("BitsStored", f"is {bits}, but the compressed values have {most}: taken as {most}")
        bits, shift = most, 0
    count = 2**bits
    # Bits above the stored ones may hold an overlay or a copied sign: neither is part of the value.
    codes = (pixels.view(f"u{pixels.itemsize}") >> shift) & (count - 1)
    values = np.arange(count, dtype=np.int32)
    if form.signed:
        values[count // 2 :] -= count
    return codes, values


def _padding(values: np.ndarray, counts: np.ndarray, fields: Fields) -> np.ndarray:
    """Which of the stored values are padding: (n,) bool."""
    none = np.zeros(len(values), dtype=bool)
    if not fields.values("PixelPaddingValue"):
        return none
    first, problem = fields.number("PixelPaddingValue")
    if first is None:
        fields.note("PixelPaddingValue", f"{problem}: ignored")
        return none
    last = fields.number_or("PixelPaddingRangeLimit", first, "PixelPaddingValue", needed=False)
    # Some files write it as unsigned where it should be signed, or the reverse: the stored bits are equal.
    ends = [_signed_like(end, values) for end in (first, last)]
    padding = (values >= min(ends)) & (values <= max(ends))
    if not counts[~padding].any() and np.count_nonzero(counts) > 1:
        fields.note("PixelPaddingValue", "hides the whole picture: ignored")
        return none
    return padding


def _signed_like(value: int, values: np.ndarray) -> int:
    if value > values.max():
        return value - 2**16
    return value + 2**16 if value < values.min() else value


def exchanged(kind: str, fields: Fields) -> bool:
    """Whether dark and bright are exchanged, so that bones are bright; kind: the photometric interpretation."""
    inverted = kind == "MONOCHROME1"
    shape, problem = fields.code("PresentationLUTShape", ("IDENTITY", "INVERSE"))
    if problem == "is not a known word":
        fields.note("PresentationLUTShape", f"{problem}: ignored")
    if fields.values("PresentationLUTSequence"):
        fields.note("PresentationLUTSequence", "is not applied")
    if shape == "INVERSE" and not inverted:
        fields.note("PresentationLUTShape", "is INVERSE, for MONOCHROME2: dark and bright are exchanged")
        inverted = True
    elif shape == "IDENTITY" and inverted:
        fields.note(
            "PresentationLUTShape", "is IDENTITY, against MONOCHROME1: dark and bright are exchanged all the same"
        )
    intent, _ = fields.code("PresentationIntentType", ("FOR PRESENTATION", "FOR PROCESSING"))
    if intent == "FOR PROCESSING" or (not intent and (fields.values("SOPClassUID") or [""])[0] in _FOR_PROCESSING):
        words = "says FOR PROCESSING: the detector's own values, not a picture made for reading"
        sign, _ = fields.number("PixelIntensityRelationshipSign", lambda n: n in (-1, 1))
        if sign == 1 and not inverted and not shape:
            words += f"; by {named('PixelIntensityRelationshipSign')} bones are dark: dark and bright are exchanged"
            inverted = True
        fields.note("PresentationIntentType" if intent else "SOPClassUID", words)
    return inverted


# ---------------------------------------------------------------- brightness of each value


def _ways(values: np.ndarray, counts: np.ndarray, form: PixelFormat, fields: Fields) -> Iterator[_Way]:
    """The ways to show values, the header's first: the field that asks for it ('' for none), and how bright each
    value is, 0 to 1."""
    real, meant, asked = _modality(values, form, fields)
    item = fields.item("VOILUTSequence")
    if item is not None:
        try:
            entries = _through_lut(real, item, fields)
        except Exception:
            fields.note("VOILUTSequence", "cannot be read: ignored")
        else:
            # Descriptors announce 16 bits where the entries use 12: white is the maximum of the bits in use.
            yield "VOILUTSequence", lambda: entries / (2 ** max(int(entries.max()).bit_length(), 8) - 1)
    for window in _windows(meant, fields):
        yield "WindowCenter", lambda window=window: _windowed(real, window)  # type: ignore[misc]
    if real is not values:
        yield asked, lambda: _own_range(real, values, counts, fields)
    if len(values) <= 256:
        yield "", lambda: (values - values.min()) / (len(values) - 1)
    else:
        yield "", lambda: _own_range(values, values, counts, fields)


def _modality(values: np.ndarray, form: PixelFormat, fields: Fields) -> tuple[np.ndarray, Dataset, str]:
    """What stored values mean; the fields by which pydicom finds their range; and the field that says so, or ''."""
    meant = Dataset()
    meant.PhotometricInterpretation = "MONOCHROME2"
    meant.BitsStored, meant.PixelRepresentation = form.stored, int(form.signed)
    item = fields.item("ModalityLUTSequence")
    if item is not None:
        try:
            real = _through_lut(values, item, fields)
            depth = int(item.LUTDescriptor[2])
        except Exception:
            fields.note("ModalityLUTSequence", "cannot be read: ignored")
        else:
            meant.BitsStored, meant.PixelRepresentation = depth if 1 <= depth <= 16 else 16, 0
            return real, meant, "ModalityLUTSequence"
    slopes, intercepts = fields.decimals("RescaleSlope"), fields.decimals("RescaleIntercept")
    if not slopes or not intercepts:
        for given, keyword, other in (
            (slopes, "RescaleSlope", "RescaleIntercept"),
            (intercepts, "RescaleIntercept", "RescaleSlope"),
        ):
            if given:
                fields.note(keyword, f"has no {named(other)} beside it: ignored")
        return values, meant, ""
    slope, intercept = slopes[0], intercepts[0]
    with np.errstate(all="ignore"):
        real = values * slope + intercept
    for keyword, wrong, value in (
        ("RescaleSlope", slope == 0 or np.isnan(slope), slope),
        ("RescaleIntercept", np.isnan(intercept), intercept),
        ("RescaleSlope", not np.isfinite(real).all(), slope),
    ):
        if wrong:
            fields.note(keyword, f"is {quoted_numbers([value])}: ignored")
            return values, meant, ""
    meant.RescaleSlope, meant.RescaleIntercept = slope, intercept
    return real, meant, "RescaleSlope"


def _windows(meant: Dataset, fields: Fields) -> Iterator[Dataset]:
    """`meant` with each window of the header in turn, for pydicom."""
    centres, widths = fields.decimals("WindowCenter"), fields.decimals("WindowWidth")
    if not centres and not widths:
        return
    if not centres or not widths:
        given, other = ("WindowCenter", "WindowWidth") if centres else ("WindowWidth", "WindowCenter")
        fields.note(given, f"has no {named(other)} beside it: ignored")
        return
    function, problem = fields.code("VOILUTFunction", ("LINEAR", "LINEAR_EXACT", "SIGMOID"))
    if problem == "is not a known word":
        fields.note("VOILUTFunction", f"{problem}: the window is ignored")
        return
    least = 1 if function in ("", "LINEAR") else 1e-6
    for centre, width in zip(centres, widths, strict=False):
        if np.isnan(centre):
            fields.note("WindowCenter", "is not a number: ignored")
        elif not width >= least:
            fields.note("WindowWidth", f"is {quoted_numbers([width])}: ignored")
        else:
            window = Dataset()
            window.update(meant)
            window.WindowCenter, window.WindowWidth = centre, width
            window.VOILUTFunction = function or "LINEAR"
            yield window


def _windowed(real: np.ndarray, window: Dataset) -> np.ndarray:
    # pydicom chooses the output range: its output for the extremes is black and white.
    black, white = apply_windowing(np.array([-1e30, 1e30]), window)
    return (apply_windowing(real, window) - black) / (white - black)


def _through_lut(values: np.ndarray, item: Dataset, fields: Fields) -> np.ndarray:
    """Values through a modality or VOI LUT: integers. (pydicom 3.0's own wrap at 256 where entries have 8 bits, and
    take no modality LUT of 10 to 14.)"""
    entries, first, _ = (int(number) for number in item.LUTDescriptor)
    entries = entries or 2**16
    if first >= 2**15 and values.min() < 0:
        first -= 2**16
    data = item.LUTData
    if isinstance(data, bytes):
        words = ">u2" if fields.dataset.original_encoding[1] is False else "<u2"
        lut = np.frombuffer(data, np.uint8 if len(data) < 2 * entries else words)
    else:
        lut = np.asarray(data, dtype=np.int64) & 0xFFFF
    lut = lut[:entries].astype(np.int64)
    return lut[np.clip(np.floor(values).astype(np.int64) - first, 0, len(lut) - 1)]


def _own_range(real: np.ndarray, values: np.ndarray, counts: np.ndarray, fields: Fields) -> np.ndarray:
    """`stretch`, or nothing where the stored values hardly differ."""
    low, high = tails(values, counts)
    if high - low < _LEVELS:
        fields.note("PixelData", f"holds values between {low:g} and {high:g} only")
        return np.zeros(len(values))
    return stretch(real, counts)


def tails(values: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """The values at the percentiles TAILS of a picture in which each occurs `counts` times; 0, 0 in an empty one."""
    order = np.argsort(values, kind="stable")
    order = order[counts[order] > 0]
    if not len(order):
        return 0.0, 0.0
    reached = np.cumsum(counts[order])
    low, high = (float(values[order[np.searchsorted(reached, reached[-1] * tail / 100)]]) for tail in TAILS)
    return (low, high) if high > low else (float(values[order[0]]), float(values[order[-1]]))


def stretch(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Brightness, 0 to 1, of each of `values`, black and white at the percentiles TAILS of a picture in which they
    occur `counts` times: (n,) float."""
    low, high = tails(values, counts)
    return (values - low) / (high - low) if high > low else np.zeros(len(values))
