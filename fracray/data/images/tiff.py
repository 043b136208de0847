"""The picture of one TIFF or BigTIFF file.

Tags are read here and not trusted: sizes are checked before memory is allocated. Samples are decoded by imagecodecs
(libtiff), which gives every depth and layout as it is stored; Pillow cuts 16 bits of colour to 8. Knows nothing of
folders, labels or manifests.

Some of what the decoders give is turned already, or has dark and bright exchanged, as the tags say, and some is not.
So they get the tags of an upright picture whose zero is black. Dark and bright are exchanged here, and the caller turns
it.
"""

import io
import struct
from collections.abc import Mapping
from dataclasses import dataclass

import imagecodecs
import numpy as np
from PIL import Image

from fracray.data.images.exif import exif_of
from fracray.data.images.samples import MAX_DECODED, PictureError, Samples, check_size, said, shown

MAX_PAGES = 10_000  # directories that are followed

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _KIND, _ORIENTATION, _SAMPLES = 256, 257, 258, 259, 262, 274, 277
_SUBFILE, _PLANAR, _PALETTE, _EXTRA, _FORMAT, _DEPTH = 254, 284, 320, 338, 339, 32997
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
_PARTS = ((273, 279), (324, 325))  # offsets and byte counts, of strips and of tiles
_WANTED = {
    _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _KIND, _ORIENTATION, _SAMPLES, _SUBFILE, _PLANAR, _PALETTE, _EXTRA, _FORMAT,
    _DEPTH, _TILE_WIDTH, _TILE_HEIGHT, *_PARTS[0], *_PARTS[1],
}  # fmt: skip
_INTEGERS = {1: "u1", 3: "u2", 4: "u4", 6: "i1", 8: "i2", 9: "i4", 13: "u4", 16: "u8", 17: "i8", 18: "u8"}
_SECONDARY = 0b101  # of the subfile type: a reduced copy of another page, or its mask

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _BY_PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_COLOURS = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _BY_PALETTE: 1}
_BY_PILLOW = {_CMYK: "CMYK", _YCBCR: "YCbCr"}
_OTHER_KINDS = {4: "a mask", 8: "CIELab", 9: "ICCLab", 10: "ITULab", 32803: "a colour filter array", 34892: "raw data"}


@dataclass(frozen=True)
class TiffPage:
    """A page whose size was checked and which is not decoded.

    index: its number in the file, from 0. places: where in `data` the values of each tag are.
    """

    data: bytes
    index: int
    tags: Mapping[int, np.ndarray]
    places: Mapping[int, int]

    def number(self, tag: int, default: int) -> int:
        values = self.tags.get(tag)
        return int(values[0]) if values is not None and len(values) else default

    @property
    def width(self) -> int:
        """As stored, px."""
        return self.number(_WIDTH, 0)

    @property
    def height(self) -> int:
        """As stored, px."""
        return self.number(_HEIGHT, 0)

    @property
    def orientation(self) -> int:
        value = self.number(_ORIENTATION, 1)
        return value if value in range(1, 9) else 1

    @property
    def bits(self) -> int:
        return self.number(_BITS, 1)

    @property
    def kind(self) -> int:
        return self.number(_KIND, _BLACK_IS_ZERO)

    @property
    def samples(self) -> int:
        return self.number(_SAMPLES, 1)

    @property
    def alpha(self) -> tuple[int, bool] | None:
        """The sample that holds the opacity, and whether the colours are multiplied with it; None: all is shown."""
        extra = self.tags.get(_EXTRA, np.zeros(0, int)).tolist()
        colours = self.samples - len(extra)
        return next(((colours + at, kind == 1) for at, kind in enumerate(extra) if kind in (1, 2)), None)

    @property
    def mode(self) -> str:
        """How its pixels are stored, in Pillow's words where it has any."""
        if self.kind in _BY_PILLOW:
            return _BY_PILLOW[self.kind]
        name = "P" if self.kind == _BY_PALETTE else "RGB" if self.kind == _RGB else "L"
        if self.bits <= 8:
            return "1" if self.bits == 1 and self.samples == 1 else name + "A" * bool(self.alpha)
        if self.number(_FORMAT, 1) == 3:
            return "F" if self.samples == 1 and self.bits == 32 else f"{name}{'A' * bool(self.alpha)};{self.bits}F"
        return f"{'I' if self.samples == 1 else name + 'A' * bool(self.alpha)};{self.bits}"

    def gray(self) -> np.ndarray:
        """The page as a viewer shows it, before it is turned: (height, width) uint8. PictureError where damaged."""
        return shown(*self.stored())

    def stored(self) -> Samples:
        """Its samples, before it is turned; colour as RGB. PictureError where damaged."""
        try:
            if self.kind in _BY_PILLOW:
                with Image.open(io.BytesIO(self._plain()), formats=("TIFF",)) as image:
                    image.seek(self.index)
                    exif_of(image)  # else Pillow would turn the picture as its XMP says
                    stored = np.asarray(image.convert("RGB"))
            else:
                stored = imagecodecs.tiff_decode(self._plain(), index=self.index)
        except Exception as error:  # whatever a decoder raises on unknown bytes
            raise PictureError("unreadable", f"its pixels cannot be decoded: {said(error)}") from None
        if stored.ndim == 3 and self.number(_PLANAR, 1) == 2 and self.kind not in _BY_PILLOW:
            stored = np.moveaxis(stored, 0, -1)
        if stored.shape[:2] != (self.height, self.width):
            raise PictureError("unreadable", "its picture is not of the announced size")
        stored = stored if stored.ndim == 3 else stored[..., None]
        if self.kind in _BY_PILLOW:
            return Samples(stored)
        if stored.dtype.kind not in "buif" or stored.shape[2:] != (self.samples,):
            raise PictureError("unreadable", "its samples are complex numbers, or not as many as announced")
        sample, premultiplied = self.alpha or (0, False)
        alpha = _opacity(stored[..., sample]) if self.alpha else None
        colours = stored[..., :3] if self.kind == _RGB else stored[..., 0]
        if self.kind == _BY_PALETTE:
            return Samples(_through_palette(colours, self.tags[_PALETTE]), alpha)
        return Samples(colours, alpha, self.bits, self.kind == _WHITE_IS_ZERO, premultiplied)

    def _plain(self) -> bytes:
        """The file, of a page that is stored upright and whose zero is black: a decoder has nothing to change."""
        told = [_ORIENTATION] * (self.number(_ORIENTATION, 1) != 1) + [_KIND] * (self.kind == _WHITE_IS_ZERO)
        if not told:
            return self.data
        plain = bytearray(self.data)
        for tag in told:
            at, one = self.places[tag], np.ones(1, self.tags[tag].dtype).tobytes()
            plain[at : at + len(one)] = one
        return bytes(plain)


def open_page(data: bytes) -> TiffPage:
    """The one picture of a TIFF file, not decoded.

    Reduced copies and masks of a picture do not count. PictureError for a file that is truncated or damaged, holds no
    or several pictures, or one of a kind that is not read.
    """
    try:
        pages = _pages(data)
    except PictureError:
        raise
    except (struct.error, ValueError, OverflowError):
        raise PictureError("truncated", "the file ends within its tags") from None
    whole = [page for page in pages if not page.number(_SUBFILE, 0) & _SECONDARY] or pages[:1]
    if len(whole) > 1:
        raise PictureError("unreadable", f"{len(whole):,} pages: a radiograph has one; save each as a file of its own")
    page = whole[0]
    check_size(page.width, page.height)
    _check(page)
    return page


# ---------------------------------------------------------------- tags


def _pages(data: bytes) -> list[TiffPage]:
    order = "<" if data[:2] == b"II" else ">"
    big = struct.unpack_from(f"{order}H", data, 2)[0] == 43
    at = struct.unpack_from(f"{order}{'Q' if big else 'I'}", data, 8 if big else 4)[0]
    pages: list[TiffPage] = []
    seen: set[int] = set()
    while at and at not in seen and len(pages) < MAX_PAGES:
        seen.add(at)
        try:
            tags, places, at = _directory(data, at, order, big)
        except (struct.error, ValueError, OverflowError):
            if not pages:
                raise
            break  # what follows the first picture is damaged
        pages.append(TiffPage(data, len(pages), tags, places))
    if not pages:
        raise PictureError("unreadable", "a TIFF without a picture")
    return pages


def _directory(data: bytes, at: int, order: str, big: bool) -> tuple[dict[int, np.ndarray], dict[int, int], int]:
    """The tags of integers that are wanted, where their values are, and where the next directory is.

    struct.error, ValueError past the end.
    """
    count = struct.unpack_from(f"{order}{'Q' if big else 'H'}", data, at)[0]
    at += 8 if big else 2
    entry, inline = (20, 8) if big else (12, 4)
    if at + count * entry > len(data):
        raise ValueError("the directory ends behind the file")
    tags: dict[int, np.ndarray] = {}
    places: dict[int, int] = {}
    for _ in range(count):
        tag, kind = struct.unpack_from(f"{order}HH", data, at)
        number = struct.unpack_from(f"{order}{'Q' if big else 'I'}", data, at + 4)[0]
        if tag in _WANTED and kind in _INTEGERS and tag not in tags:  # libtiff takes the first of two, too
            dtype = np.dtype(order + _INTEGERS[kind])
            place = at + (12 if big else 8)
            if number * dtype.itemsize > inline:
                place = struct.unpack_from(f"{order}{'Q' if big else 'I'}", data, place)[0]
            tags[tag], places[tag] = np.frombuffer(data, dtype, number, place), place
        at += entry
    return tags, places, struct.unpack_from(f"{order}{'Q' if big else 'I'}", data, at)[0]


def _check(page: TiffPage) -> None:
    """PictureError for what cannot be decoded, is not all there, or would take too much memory."""
    for offsets, counts in _PARTS:
        starts, sizes = page.tags.get(offsets), page.tags.get(counts)
        if starts is not None and sizes is not None and len(starts) == len(sizes) > 0:
            ends = starts.astype(np.float64) + sizes
            if ends.max() > len(page.data):
                raise PictureError("truncated", "the file ends within its picture")
    bits = page.tags.get(_BITS, np.ones(1, int))
    known = _COLOURS.get(page.kind)
    if page.kind in _BY_PILLOW:
        if (bits != 8).any():
            raise PictureError("unreadable", f"{_BY_PILLOW[page.kind]} of {page.bits} bits: only 8 are read")
    elif known is None:
        kind = _OTHER_KINDS.get(page.kind, f"kind {page.kind}")
        raise PictureError("unreadable", f"TIFF of {kind}: gray, RGB, palette, CMYK and YCbCr are read")
    elif page.samples < known:
        raise PictureError("unreadable", f"{page.samples} samples of {known} colours")
    if page.alpha and page.alpha[0] not in range(known or 0, page.samples):
        raise PictureError("unreadable", f"{page.samples} samples, of which more are extra")
    if (bits != page.bits).any() or page.number(_DEPTH, 1) != 1 or page.samples > 16:
        raise PictureError("unreadable", "samples of several depths, or more than 16: not read")
    if page.kind == _BY_PALETTE and (page.bits > 16 or len(page.tags.get(_PALETTE, ())) < 3 * 2**page.bits):
        raise PictureError("unreadable", "its palette is incomplete")
    decoded = page.width * page.height * page.samples * max(page.bits // 8, 1)
    tile = page.number(_TILE_WIDTH, 1) * page.number(_TILE_HEIGHT, 1) * page.samples * max(page.bits // 8, 1)
    if max(decoded, tile) > MAX_DECODED:
        raise PictureError("unreadable", f"would decode to more than {MAX_DECODED:,} bytes: not decoded")


# ---------------------------------------------------------------- samples


def _opacity(alpha: np.ndarray) -> np.ndarray:
    """Opacity as uint8 or uint16, from samples of any type."""
    if alpha.dtype == bool:
        return alpha * np.uint8(255)
    if alpha.dtype in (np.uint8, np.uint16):
        return alpha
    if alpha.dtype.kind == "f":
        return np.rint(np.clip(np.nan_to_num(alpha.astype(np.float32)), 0, 1) * 65535).astype(np.uint16)
    if alpha.itemsize <= 2:
        return alpha.view(f"u{alpha.itemsize}")
    return (alpha >> (8 * alpha.itemsize - 16)).astype(np.uint16)


def _through_palette(indices: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """RGB of 8 bits. Some writers fill only the lower 8 of a palette's 16 bits, as libtiff knows too."""
    entries = palette[: len(palette) // 3 * 3].reshape(3, -1).T.astype(np.float64)
    full = 255 if entries.max() < 256 else 65535
    table = np.rint(entries * 255 / full).astype(np.uint8)
    return table[np.minimum(indices.astype(np.int64), len(table) - 1)]
