"""The bytes of an image file to the square that a network gets: decoded, cropped if wanted, and letterboxed.

The ingest uses it, and so must whoever predicts: the same bytes then give the same square.
"""

import numpy as np

from fracray.data.images import decode as imagefile
from fracray.data.images import kinds
from fracray.data.images.crop import LEAST, anatomy
from fracray.data.images.jpeg_png import jpeg_head
from fracray.data.images.kept import Kept
from fracray.data.images.letterbox import frame, letterbox


def reduction_for(longer_side: int, size: int, crop: bool = False) -> int:
    """The factor, 1, 2, 4 or 8, by which a JPEG is reduced in decoding for a square of this size.

    The image, or with `crop` the least part of it that is kept, is still at least twice as large as the square, so that
    the area filter determines the result.
    """
    least = longer_side * (LEAST if crop else 1)
    return next((factor for factor in (8, 4, 2) if least >= 2 * factor * size), 1)


def decode(data: bytes, longer_side: int, size: int, known: imagefile.KnownGeometry | None = None) -> np.ndarray:
    """Bytes of an image file to a letterboxed (size, size) uint8 image, by the decoder of the audit.

    A JPEG several times larger than the target is decoded at a half, a quarter or an eighth of its scale; what is
    `known` of the file is not read again. Raises ValueError where the bytes are not a complete image.
    """
    return letterbox(_decoded(data, reduction_for(longer_side, size), known)[0], size)


def decode_part(
    data: bytes, longer_side: int, size: int, known: imagefile.KnownGeometry | None = None
) -> tuple[np.ndarray, Kept]:
    """As `decode`, of the part of the radiograph that holds its anatomy; and which part that is.

    The part is found in the picture as it is decoded here. It depends on the bytes and on the two sides alone, so
    whoever decodes the same file for the same size gets the same part.
    """
    factor = reduction_for(longer_side, size, crop=True)
    return _part(*_decoded(data, factor, known), factor, size)


def picture_of(data: bytes, size: int, crop: bool) -> tuple[imagefile.DecodedImage, int]:
    """A file's picture, decoded once as for a square of this size, and the factor by which its scale is reduced."""
    head = jpeg_head(data) if kinds.kind_of(data[: kinds.HEAD]) == kinds.JPEG else None
    factor = reduction_for(max(head.width, head.height), size, crop) if head else 1
    # Orientation 1: nothing turns it. Pillow need not look into its header, which takes half as long as to decode it.
    known = imagefile.KnownGeometry(head.width, head.height, 1) if head and head.plain else None
    found = imagefile.decode(data, factor, known)
    whole = found.gray is not None and found.gray.shape == (found.height, found.width)
    return found, 1 if whole else factor


def square_of(picture: imagefile.DecodedImage, factor: int, size: int, crop: bool) -> tuple[np.ndarray, Kept]:
    """The square of a sound picture that `picture_of` gave, and the part of it that the square shows.

    Equal to that of `decode`, or with `crop` of `decode_part`.
    """
    assert picture.gray is not None, "only a sound picture has a square"
    if crop:
        return _part(picture.gray, picture.width, picture.height, factor, size)
    return letterbox(picture.gray, size), Kept(0, 0, picture.width, picture.height, float("nan"))


def _part(gray: np.ndarray, width: int, height: int, factor: int, size: int) -> tuple[np.ndarray, Kept]:
    """The square of the anatomy in a picture of this width and height, decoded at one over `factor` of its scale."""
    rows, columns = anatomy(gray)
    if gray.shape == (height, width):  # no JPEG, or one that is not reduced
        factor = 1
    left, top = columns.start * factor, rows.start * factor
    right, bottom = min(columns.stop * factor, width), min(rows.stop * factor, height)
    # The frame is that of the pixels at full scale, which whoever places boxes knows.
    full = right - left, bottom - top
    square = letterbox(np.ascontiguousarray(gray[rows, columns]), size, full)
    return square, Kept(left, top, right, bottom, float(square[frame(*full, size)].mean()))


def _decoded(data: bytes, reduction: int, known: imagefile.KnownGeometry | None) -> tuple[np.ndarray, int, int]:
    """The complete picture, and its width and height at full scale; ValueError where there is none."""
    found = imagefile.decode(data, reduction, known)
    if found.gray is None or found.fault:
        raise ValueError(found.note or "not decodable")
    return found.gray, found.width, found.height
