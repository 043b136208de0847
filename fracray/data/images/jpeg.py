"""JPEG of 8 bits: its pixels, and whether its data is damaged. Knows nothing of folders, labels or manifests."""

import re

import cv2
import numpy as np
import simplejpeg

from fracray.data.images.samples import PictureError

REDUCED = {
    1: cv2.IMREAD_GRAYSCALE,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}
# What libjpeg warns of where the data of a picture is damaged. It decodes on, and OpenCV and Pillow do not tell.
_DAMAGED = ("Corrupt JPEG data", "Inconsistent progression")
_LEFT_OVER = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0xd9")


def jpeg_gray(data: bytes, reduction: int = 1) -> np.ndarray | None:
    """A JPEG of 8 bits as stored, at a `reduction`-th of its scale (1, 2, 4 or 8): (height, width) uint8, or None.

    The pixels are those of OpenCV, and None is its answer where it cannot decode. PictureError where the data is
    damaged, as by a lost block of a disk: most of the picture may then be something else.
    """
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        least = {"min_height": -(-height // reduction), "min_width": -(-width // reduction)}
        return simplejpeg.decode_jpeg(data, "GRAY", **least)[..., 0]
    except ValueError as error:
        if str(error).startswith(_DAMAGED) and not _filled(data, str(error)):
            raise PictureError("unreadable", f"the data of its picture is damaged ({error})") from None
    return cv2.imdecode(np.frombuffer(data, np.uint8), REDUCED[reduction] | cv2.IMREAD_IGNORE_ORIENTATION)


def _filled(data: bytes, warning: str) -> bool:
    """Whether the warning is of zeros before the end mark, with which some devices fill a whole picture.

    Any other bytes there may be what is left of a damaged one.
    """
    found = _LEFT_OVER.match(warning)
    if found is None:
        return False
    end = data.rfind(b"\xff\xd9")
    return not any(data[end - int(found[1]) : end])
