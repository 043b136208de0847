"""One image file: read, judged, and decoded once to what an audit compares.

Knows nothing of other files, labels or manifests.
"""

import hashlib
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import imagehash
import numpy as np
from PIL import Image, ImageFile

from fracray.data.duplicates import THUMB
from fracray.data.manifest import BORDERS, Box

MAX_PIXELS = 80_000_000  # a 43 cm detector at 50 µm has 74 million
MAX_BYTES = 2**29
HEAD = 1024  # bytes: past the tables of a JPEG, into its picture

_EXIF_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Look:
    """What one decode tells of one file.

    width and height are as displayed. pixel_hash is sha256 of size and gray pixels as displayed, '' unless all came.
    thumb, (THUMB, THUMB) uint8, and phash, its DCT hash, show what came; thumb is None when nothing did. head is
    sha256 of the first HEAD bytes. brightness is the mean gray of the whole picture, 0 to 255; nan unless all came.
    mode is the file's own (Pillow's word). borders (px, order of BORDERS) and refilled (rows) are 0 unless all came.
    """

    fault: str = ""  # '', 'truncated' or 'unreadable'
    note: str = ""
    sha256: str = ""
    head: str = ""
    width: int = 0
    height: int = 0
    orientation: int = 0
    pixel_hash: str = ""
    thumb: np.ndarray | None = None
    phash: int = 0
    brightness: float = math.nan
    mode: str = ""
    borders: tuple[int, ...] = (0,) * len(BORDERS)
    refilled: int = 0


def look(path: Path) -> Look:
    """Read, judge and decode one file: JPEG or PNG, at most MAX_PIXELS as announced by its header."""
    try:
        if path.stat().st_size > MAX_BYTES:
            return Look("unreadable", f"file of {path.stat().st_size:,} bytes: too large")
        data = path.read_bytes()
    except OSError as error:
        return Look("unreadable", f"cannot be read: {error.strerror}")
    seen = Look(sha256=hashlib.sha256(data).hexdigest(), head=hashlib.sha256(data[:HEAD]).hexdigest())
    complete = _has_end(data)
    try:
        image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG"))
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise Image.DecompressionBombError
    except Image.DecompressionBombError:
        return replace(seen, fault="unreadable", note=f"header announces more than {MAX_PIXELS:,} pixels: not decoded")
    except (OSError, SyntaxError, ValueError) as error:
        if complete is False:
            return replace(seen, fault="truncated")
        return replace(seen, fault="unreadable", note=f"not a JPEG or PNG image: {type(error).__name__}")
    orientation = _orientation(image)
    swapped = orientation >= 5
    seen = replace(
        seen,
        width=height if swapped else width,
        height=width if swapped else height,
        orientation=orientation,
        mode=image.mode,
    )
    # OpenCV is twice as fast but tells a truncated file only by refusing it or by gray rows, as its version goes. So a
    # file that lacks its end mark (59 truncated ones in FracAtlas, and 20 whole ones with rubbish behind) is first
    # tried by Pillow, which knows whether all of the picture came.
    gray, fault = None, ""
    if not complete:
        gray, fault = _load_slowly(image)
    if not fault:
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION)
        if decoded is not None:
            gray = decoded
        elif gray is None:
            gray, fault = _load_slowly(image)
    if fault and (gray is None or complete):
        return replace(seen, fault="unreadable" if complete else "truncated", note=fault if complete else "")
    assert gray is not None
    refilled = _refilled(gray)
    gray = upright(gray, orientation)
    thumb = cv2.resize(gray, (THUMB, THUMB), interpolation=cv2.INTER_AREA)
    phash = int(str(imagehash.phash(Image.fromarray(thumb))), 16)
    if fault:
        return replace(seen, fault="truncated", thumb=thumb, phash=phash)
    size = f"{gray.shape[1]}x{gray.shape[0]}:".encode()
    pixels = hashlib.sha256(size + np.ascontiguousarray(gray).tobytes()).hexdigest()
    return replace(
        seen,
        pixel_hash=pixels,
        thumb=thumb,
        phash=phash,
        brightness=float(thumb.mean()),
        borders=_borders(gray),
        refilled=refilled,
    )


def picture(path: Path, side: int) -> np.ndarray | None:
    """What can be shown of a file: gray, as displayed, at most `side` on its longer side; None where nothing can."""
    try:
        image = Image.open(path, formats=("JPEG", "PNG"))
        if image.width * image.height > MAX_PIXELS:
            return None
        orientation = _orientation(image)
        gray, _ = _load_slowly(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    if gray is None:
        return None
    gray = np.ascontiguousarray(upright(gray, orientation))
    scale = min(1.0, side / max(gray.shape))
    size = max(1, round(gray.shape[1] * scale)), max(1, round(gray.shape[0] * scale))
    return cv2.resize(gray, size, interpolation=cv2.INTER_AREA)


_BLACK, _WHITE = 64, 192  # gray levels; film edges and unexposed margins of FracAtlas lie at 0 to 40 and 205 to 250
_UNIFORM, _STEADY = 4.0, 8.0  # gray levels: standard deviation along a line, change of its mean from the first


def _borders(gray: np.ndarray) -> tuple[int, ...]:
    """Widths of uniform margins, px, in the order of BORDERS."""
    edges = [_border(lines) for lines in (gray, gray[::-1], gray.T, gray.T[::-1])]
    return tuple(black for black, _ in edges) + tuple(white for _, white in edges)


def _border(lines: np.ndarray) -> tuple[int, int]:
    """How many of the first lines are uniformly black, and how many uniformly white; one of both is 0."""
    shade = float(lines[0].mean())
    if _BLACK <= shade <= _WHITE:
        return 0, 0
    width = next((n for n, x in enumerate(lines) if x.std() > _UNIFORM or abs(x.mean() - shade) > _STEADY), len(lines))
    return (width, 0) if shade < _BLACK else (0, width)


_MCU = 16  # px; JPEG's largest unit
_FINE = 3.0  # between neighbours over that between units; 19 to 34 in FracAtlas' nine, at most 0.7 in its other files


def _refilled(gray: np.ndarray) -> int:
    """Rows at the bottom, as stored, that repeat one textured block.

    A decoder fills what a cut JPEG lacks with copies of the last block; saved again, the file is whole and the picture
    is not. A gray fill without texture cannot be told from a margin, and pictures scaled since have lost the period.
    """
    height, width = gray.shape
    if height <= _MCU or width <= 2 * _MCU:
        return 0
    last = gray[-(height % _MCU or _MCU) :].astype(np.int16)
    apart = np.abs(last[:, _MCU:] - last[:, :-_MCU]).mean()
    if np.abs(np.diff(last, axis=1)).mean() < _FINE * (apart + 0.5):
        return 0
    far = np.abs(gray[:, _MCU:].astype(np.int16) - gray[:, :-_MCU])
    kept = np.flatnonzero(np.quantile(far, 0.9, axis=1) > 4)
    return height - 1 - int(kept[-1]) if len(kept) else height


def _has_end(data: bytes) -> bool | None:
    """Whether the file closes as its format demands; None when it is of neither format."""
    if data.startswith(b"\xff\xd8"):
        return data.rstrip(b"\0").endswith(b"\xff\xd9")
    if data.startswith(b"\x89PNG"):
        return b"IEND" in data[-64:]
    return None


def _load_slowly(image: ImageFile.ImageFile) -> tuple[np.ndarray | None, str]:
    """Gray pixels as stored, whatever of them came, and the fault ('' when all came)."""
    fault = ""
    try:
        image.draft("L", image.size)
        image.load()
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        fault = str(error) or type(error).__name__
        image.tile = []  # else Pillow decodes again at the next look, and raises again
    try:
        return np.asarray(image.convert("L")), fault
    except (OSError, SyntaxError, ValueError, EOFError):
        return None, fault


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except (OSError, SyntaxError, ValueError, TypeError):
        return 1
    return value if value in range(1, 9) else 1


def upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """The picture as displayed, from stored pixels (rows first) and EXIF orientation 1 to 8."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return image


def fit_boxes(
    boxes: Iterable[Box], drawn: tuple[int, int], shown: tuple[int, int], orientation: int
) -> tuple[Box, ...]:
    """Boxes (x, y, w, h) drawn on a picture of size `drawn` (w, h), in pixels of the displayed one, clipped to it.

    Annotation tools show pictures upright, so boxes are taken as drawn upright (as IMG0002628's are) unless their
    picture lies on its side while the displayed one stands, or the reverse: then they are turned as EXIF says.
    """
    turned = orientation >= 5 and drawn[0] != drawn[1] and (drawn[0] > drawn[1]) != (shown[0] > shown[1])
    fitted = []
    for x, y, width, height in boxes:
        left, right, top, bottom = x / drawn[0], (x + width) / drawn[0], y / drawn[1], (y + height) / drawn[1]
        if turned:
            left, right, top, bottom = top, bottom, left, right
            if orientation in (6, 7):
                left, right = 1 - right, 1 - left
            if orientation in (7, 8):
                top, bottom = 1 - bottom, 1 - top
        left, right, top, bottom = (min(max(edge, 0.0), 1.0) for edge in (left, right, top, bottom))
        fitted.append((left * shown[0], top * shown[1], (right - left) * shown[0], (bottom - top) * shown[1]))
    return tuple(fitted)
