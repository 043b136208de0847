"""A picture at the full depth of its file, for a viewer that changes window and level.

With the window that is given, the viewer shows what `decode` gives the network, to half a gray level of 256. Knows
nothing of networks or of how a picture is sent.
"""

from dataclasses import dataclass

import numpy as np

from fracray.data.images import dicom, kinds
from fracray.data.images.decode import decode, upright
from fracray.data.images.dicom_display import Display
from fracray.data.images.dicom_fields import DicomError
from fracray.data.images.jpeg_png import open_deep_jpeg, png_head
from fracray.data.images.samples import MAX_PIXELS, Samples, words_of
from fracray.data.images.tiff import open_page

STEP = 0.5 / 255  # of brightness, which a window may differ from what the header asks for


@dataclass(frozen=True)
class FullDepth:
    """values: (height, width) uint16, below 2**bits. Shown as (value - (centre - width / 2)) / width, between 0, black,
    and 1, white; the reverse where `inverted`."""

    values: np.ndarray
    bits: int
    centre: float
    width: float
    inverted: bool


def full_depth(data: bytes) -> FullDepth:
    """The picture in the bytes of a file, of which all must be sound: stored values of gray DICOM, gray of all else.

    Of other files, opaque ones of 9 to 16 bits keep their depth, and all others have 8. A window of the header that is
    no straight line (a table, a sigmoid) is applied, to 16 bits. ValueError, with the
    reason, as `decode` notes it.
    """
    if kinds.kind_of(data[: kinds.HEAD]) == kinds.DICOM:
        try:
            shown = dicom.display(dicom.open_image(data, MAX_PIXELS))
        except DicomError as error:
            raise ValueError(str(error)) from None
        if shown is not None:
            return _of_display(shown)
    found = decode(data)
    if found.gray is None or found.fault:
        cut = "the file is cut short" if found.fault == "truncated" else ""
        raise ValueError("; ".join(filter(None, [cut, found.note])))
    if (stored := _stored(data)) and (deep := words_of(stored)):
        gray, black, white = deep
        values = upright(gray, found.orientation)
        return FullDepth(values, 16, (black + white) / 2, max(white - black, 1.0), stored.inverted)
    return FullDepth(found.gray.astype(np.uint16), 8, 127.5, 255.0, False)


def _stored(data: bytes) -> Samples | None:
    """The samples of a sound file, as they are stored; None of kinds that have 8 bits always."""
    kind = kinds.kind_of(data[: kinds.HEAD])
    if kind == kinds.PNG:
        head = png_head(data)
        return head.stored(data) if head and head.bits > 8 else None
    if kind == kinds.TIFF:
        return open_page(data).stored()
    deep = open_deep_jpeg(data) if kind == kinds.JPEG else None
    return deep.stored() if deep else None


def _of_display(shown: Display) -> FullDepth:
    levels = (shown.values - int(shown.values.min())).astype(np.uint16)
    line = _line(levels[~shown.padding].astype(np.float64), shown.brightness[~shown.padding])
    if line is None:
        table, bits = np.rint(shown.brightness * 65535).astype(np.uint16), 16
        black, white = 0.0, 65535.0
    else:
        table, bits = levels, max(1, int(levels.max()).bit_length())
        black, white = line
    falling = white < black
    inverted = shown.inverted != falling
    low, high = min(black, white), max(black, white)
    table = table.copy()
    table[shown.padding] = 2**bits - 1 if inverted else 0
    return FullDepth(table[shown.codes], bits, (low + high) / 2, high - low, inverted)


def _line(levels: np.ndarray, brightness: np.ndarray) -> tuple[float, float] | None:
    """The levels at which a straight line is 0 and 1 that gives this brightness between them; None if none does."""
    between = (brightness > 0) & (brightness < 1)
    if between.sum() < 2:
        return None
    slope, start = np.polyfit(levels[between], brightness[between], 1)
    if slope == 0 or np.abs(np.clip(slope * levels + start, 0, 1) - brightness).max() > STEP:
        return None
    return float(-start / slope), float((1 - start) / slope)
