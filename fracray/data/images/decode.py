"""One image file: known by its first bytes, read, checked and decoded to the gray picture for audit and training.

Knows nothing of other files, labels or manifests.
"""

import hashlib
import io
import math
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageFile

from fracray.data.duplicates import look
from fracray.data.images import by_pillow, dicom, kinds, tiff
from fracray.data.images.blank import nothing_shown
from fracray.data.images.dicom_fields import DicomError
from fracray.data.images.exif import orientation_in
from fracray.data.images.hashes import perceptual_hash, pixel_hash, thumbnail
from fracray.data.images.jpeg import jpeg_gray
from fracray.data.images.jpeg_png import DeepJpeg, open_deep_jpeg, png_head
from fracray.data.images.margins import borders, refilled
from fracray.data.images.samples import MAX_PIXELS, TOO_LARGE, PictureError, check_size
from fracray.data.manifest import BORDERS, Box

MAX_BYTES = 2**29
HEAD = 1024  # bytes: past the tables of a JPEG, into its picture

_BACK = {6: 8, 8: 6}  # the orientation that undoes another, where it is not itself


@dataclass(frozen=True, slots=True)
class FileInspection:
    """What reading and decoding one file shows.

    width and height are as displayed. pixel_hash is sha256 of size and gray pixels as displayed, '' where they cannot
    all be decoded. thumb, (THUMB, THUMB) uint8, and phash, its DCT hash, show what could be decoded; thumb is None if
    nothing. look is made of both, b'' for a fault. head is sha256 of the first HEAD bytes. brightness is the mean gray
    of the whole picture, 0 to 255; nan where it cannot all be decoded. mode is the file's own (Pillow's name). borders
    (px, order of BORDERS) and refilled (rows) are 0 there.
    """

    fault: str = ""  # '', 'truncated', 'unreadable' or 'blank'
    note: str = ""
    sha256: str = ""
    head: str = ""
    width: int = 0
    height: int = 0
    orientation: int = 0
    pixel_hash: str = ""
    thumb: np.ndarray | None = None
    phash: int = 0
    look: bytes = b""
    brightness: float = math.nan
    mode: str = ""
    borders: tuple[int, ...] = (0,) * len(BORDERS)
    refilled: int = 0


@dataclass(frozen=True)
class DecodedImage:
    """The result of `decode`.

    gray: the picture as displayed, (height, width) uint8, or the part that could be decoded; None if nothing. note: why
    there is a fault, or what of a DICOM header was not followed. width, height: as displayed, of the full picture; 0 if
    the header is not readable. orientation: EXIF's.
    """

    gray: np.ndarray | None = None
    fault: str = ""  # '', 'truncated' or 'unreadable'
    note: str = ""
    width: int = 0
    height: int = 0
    orientation: int = 0
    mode: str = ""


@dataclass(frozen=True)
class KnownGeometry:
    """What `inspect_file` found in the same file: size as displayed, px, and EXIF orientation."""

    width: int
    height: int
    orientation: int

    def fits(self, stored: np.ndarray, reduction: int) -> bool:
        """Whether pixels as stored, decoded at one over `reduction`, are of this picture's size."""
        height, width = stored.shape if self.orientation < 5 else stored.shape[::-1]
        return (width, height) == (-(-self.width // reduction), -(-self.height // reduction))


def inspect_file(path: Path) -> FileInspection:
    """Read, check and decode one file of a kind that is read, of at most MAX_PIXELS by its header."""
    data, note = read_file(path)
    return FileInspection("unreadable", note) if data is None else inspect(data)[0]


def inspect(data: bytes) -> tuple[FileInspection, DecodedImage]:
    """As `inspect_file`, of the bytes of a file; and the picture they hold."""
    found = decode(data)
    seen = FileInspection(
        fault=found.fault,
        note=found.note,
        sha256=hashlib.sha256(data).hexdigest(),
        head=hashlib.sha256(data[:HEAD]).hexdigest(),
        width=found.width,
        height=found.height,
        orientation=found.orientation,
        mode=found.mode,
    )
    if found.gray is None:
        return seen, found
    thumb = thumbnail(found.gray)
    phash = perceptual_hash(thumb)
    if found.fault:
        return replace(seen, thumb=thumb, phash=phash), found
    why = nothing_shown(found.gray, thumb)
    seen = replace(
        seen,
        fault="blank" if why else "",
        note="; ".join(filter(None, [why, seen.note])),
        pixel_hash=pixel_hash(found.gray),
        thumb=thumb,
        phash=phash,
        look=b"" if why else look(thumb, phash),
        brightness=float(thumb.mean()),
        borders=borders(found.gray),
        refilled=refilled(as_stored(found)),
    )
    return seen, found


def preview(path: Path, side: int) -> np.ndarray | None:
    """A preview of a file: gray, as displayed, at most `side` on its longer side; None if nothing can be decoded."""
    data, _ = read_file(path)
    gray = None if data is None else decode(data).gray
    if gray is None:
        return None
    scale = min(1.0, side / max(gray.shape))
    size = max(1, round(gray.shape[1] * scale)), max(1, round(gray.shape[0] * scale))
    return cv2.resize(gray, size, interpolation=cv2.INTER_AREA)


def read_file(path: Path) -> tuple[bytes | None, str]:
    """The bytes of a file, or None and the reason."""
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):  # opening a pipe would block
            return None, "not a file"
        if about.st_size > MAX_BYTES:
            return None, f"file of {about.st_size:,} bytes: too large"
        with open(path, "rb") as file:
            return file.read(about.st_size), ""  # no more: files of the system, as in /proc, may have no end
    except OSError as error:
        return None, f"cannot be read: {error.strerror}"


def decode(data: bytes, reduction: int = 1, known: KnownGeometry | None = None) -> DecodedImage:
    """Decode the bytes of a file: the same for audit and ingest.

    The picture is what a viewer shows, in gray: turned as EXIF says, what is transparent over black, more than 8 bits
    as in `data.images.samples` and DICOM as in `data.images.dicom`. Gamma and colour profiles are not applied.
    `reduction` 2, 4 or 8 lets a JPEG be decoded at a half, quarter or eighth of its scale, which its format allows at
    less cost. A complete JPEG of the `known` geometry is not checked again. Raises nothing; see `fault` and `note`.
    """
    kind = kinds.kind_of(data[: kinds.HEAD])
    try:
        if kind == kinds.DICOM:
            return _decode_dicom(data)
        if kind == kinds.TIFF:
            return _shown(tiff.open_page(data))
        if kind in (kinds.BMP, kinds.WEBP, kinds.GIF):
            return _shown(by_pillow.open_image(data, kind.name.upper()))
        if kind == kinds.JPEG:
            return _shown(deep) if (deep := open_deep_jpeg(data)) else _decode_jpeg(data, reduction, known)
        if kind == kinds.PNG:
            return _decode_png(data)
    except PictureError as error:
        return DecodedImage(fault=error.fault, note=str(error))
    if kind:
        return DecodedImage(fault="unreadable", note=f"{kind.name} is not read: convert it to PNG, TIFF or DICOM")
    why = f"its first bytes are not those of {kinds.READ}" if data else "an empty file"
    return DecodedImage(fault="unreadable", note=why)


def _shown(picture: "tiff.TiffPage | by_pillow.PillowImage | DeepJpeg") -> DecodedImage:
    """What a picture that was opened, and whose size was checked, shows."""
    orientation = picture.orientation
    width, height = (picture.width, picture.height)[:: -1 if orientation >= 5 else 1]
    seen = DecodedImage(width=width, height=height, orientation=orientation, mode=picture.mode)
    try:
        return replace(seen, gray=upright(picture.gray(), orientation))
    except PictureError as error:
        return replace(seen, fault=error.fault, note=str(error))


def _decode_jpeg(data: bytes, reduction: int, known: KnownGeometry | None) -> DecodedImage:
    complete = data.rstrip(b"\0").endswith(b"\xff\xd9")
    if known and complete:
        stored = jpeg_gray(data, reduction)
        if stored is not None and known.fits(stored, reduction):
            return DecodedImage(
                upright(stored, known.orientation), "", "", known.width, known.height, known.orientation
            )
    return _decode_checked(data, "JPEG", complete, lambda: jpeg_gray(data, reduction))


def _decode_png(data: bytes) -> DecodedImage:
    complete, head = b"IEND" in data[-64:], png_head(data)
    if head and head.frames > 1:
        why = f"{head.frames:,} frames: a radiograph has one; save each as a file of its own"
        raise PictureError("unreadable", why)
    if not head:
        raise PictureError("truncated", "")
    found = _decode_checked(data, "PNG", complete, lambda: head.gray(data), head.special, head.described)
    return replace(found, mode=head.mode(found.mode)) if found.mode else found


def _decode_checked(
    data: bytes,
    kind: str,
    complete: bool,
    load: Callable[[], np.ndarray | None],
    special: bool = False,
    described: bool = True,
) -> DecodedImage:
    """A JPEG or PNG, opened by Pillow and decoded by `load`.

    complete: it has its end mark. special: what Pillow decodes is not what is shown. described: it may hold EXIF.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=(kind,))
        width, height = image.size
        check_size(width, height)
    except Image.DecompressionBombError:
        raise PictureError("unreadable", TOO_LARGE) from None
    except PictureError:
        raise
    except Exception as error:  # whatever Pillow raises on unknown bytes
        if not complete:
            raise PictureError("truncated", "") from None
        raise PictureError("unreadable", f"a {kind} whose header is damaged: {type(error).__name__}") from None
    mode = image.mode  # before any decoding, which may change it
    # `load` is twice as fast, but it may take a truncated file for a damaged one or return gray rows. So a file
    # without end mark (in FracAtlas 59 truncated ones, and 20 complete ones with extra bytes at the end) is first
    # decoded by Pillow, which reports whether the picture is complete. So is a PNG whose EXIF may lie behind its
    # pixels: Pillow would decode it to look there, and would keep what is wrong with it to itself.
    gray, fault = None, ""
    if not complete or (described and kind == "PNG"):
        gray, fault = _load_slowly(image)
    orientation = orientation_in(image) if described else 1
    if orientation >= 5:
        width, height = height, width
    seen = DecodedImage(width=width, height=height, orientation=orientation, mode=mode)
    if not fault:
        try:
            decoded = load()
        except PictureError as error:
            return replace(seen, fault=error.fault, note=str(error))
        if decoded is not None:
            gray = decoded
        elif special:
            gray, fault = None, _load_slowly(image)[1] or "its pixels cannot be decoded"
        elif gray is None:
            gray, fault = _load_slowly(image)
    if fault and complete:
        return replace(seen, fault="unreadable", note=fault)
    if gray is not None:
        gray = upright(gray, orientation)
    return replace(seen, gray=gray, fault="truncated" if fault else "")


def _decode_dicom(data: bytes) -> DecodedImage:
    try:
        picture = dicom.open_image(data, MAX_PIXELS)
    except DicomError as error:
        return DecodedImage(fault=error.fault, note=str(error))
    seen = DecodedImage(width=picture.width, height=picture.height, orientation=1)
    try:
        shown = dicom.gray(picture)
    except DicomError as error:
        return replace(seen, fault=error.fault, note="; ".join([str(error), *picture.notes]))
    return replace(seen, gray=shown, note="; ".join(picture.notes))


def _load_slowly(image: ImageFile.ImageFile) -> tuple[np.ndarray | None, str]:
    """Gray pixels as stored, as many as can be decoded, and the fault ('' if all)."""
    fault = ""
    try:
        image.draft("L", image.size)
        image.load()
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        fault = str(error) or type(error).__name__
        image.tile = []  # else Pillow decodes again on the next access, and raises again
    try:
        return np.asarray(image.convert("L")), fault
    except (OSError, SyntaxError, ValueError, EOFError):
        return None, fault


def upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """The picture as displayed, from stored pixels (rows first) and EXIF orientation 1 to 8."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return image


def as_stored(picture: DecodedImage) -> np.ndarray:
    """The pixels of a picture that was decoded, before EXIF turned them."""
    assert picture.gray is not None, "nothing was decoded"
    return upright(picture.gray, _BACK.get(picture.orientation, picture.orientation))


def fit_boxes(
    boxes: Iterable[Box], drawn: tuple[int, int], shown: tuple[int, int], orientation: int
) -> tuple[Box, ...]:
    """Boxes (x, y, w, h) drawn on a picture of size `drawn` (w, h), in pixels of the displayed one, clipped to it.

    Annotation tools show pictures upright, so boxes count as drawn upright (IMG0002628's are) unless one of the two
    sizes is landscape and the other portrait: then they are turned as EXIF says.
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
