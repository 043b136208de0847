"""PNG, and JPEG of more than 8 bits, whose samples imagecodecs gives as they are stored.

OpenCV and Pillow cut 16 bits of colour to 8 and drop what is transparent, and neither reads JPEG of 12 bits. OpenCV
shows the part before a damage of a PNG as if it were all. Knows nothing of folders, labels or manifests.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import imagecodecs
import numpy as np
from PIL import Image

from fracray.data.images.exif import orientation_of
from fracray.data.images.samples import PictureError, Samples, check_size, over_black, said, shown

_EXIF = b"Exif\0\0"
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})  # markers of the segment that gives a JPEG's size
_MODES = {1: "I", 3: "RGB", 4: "CMYK"}
_ALPHA_TYPES = (4, 6)  # PNG's colour types with an opacity of their own
_CHECKED = (b"IHDR", b"PLTE", b"IDAT", b"tRNS")
_DESCRIPTIONS = frozenset({b"eXIf", b"tEXt", b"zTXt", b"iTXt"})
_ROWS = 256  # that are converted at once


@dataclass(frozen=True, slots=True)
class DeepJpeg:
    """A JPEG of more than 8 bits, whose size was checked and which is not decoded; width and height as stored, px."""

    data: bytes
    width: int
    height: int
    bits: int
    components: int

    @property
    def mode(self) -> str:
        return f"{_MODES.get(self.components, self.components)};{self.bits}"

    @property
    def orientation(self) -> int:
        return orientation_of(self._exif)

    def _exif(self) -> Image.Exif:
        exif = Image.Exif()
        blocks = (self.data[at:end] for marker, at, end in _segments(self.data) if marker == 0xE1)
        exif.load(next((block for block in blocks if block.startswith(_EXIF)), b""))
        return exif

    def gray(self) -> np.ndarray:
        """The picture as a viewer shows it, before it is turned: (height, width) uint8. PictureError where damaged."""
        return shown(*self.stored())

    def stored(self) -> Samples:
        """Its samples, before it is turned. PictureError where damaged."""
        if b"\xff\xd9" not in self.data[-64:]:
            raise PictureError("truncated", "")
        try:
            samples = imagecodecs.jpeg8_decode(self.data)
        except Exception as error:  # whatever a decoder raises on unknown bytes
            raise PictureError("unreadable", f"its pixels cannot be decoded: {said(error)}") from None
        if samples.shape[:2] != (self.height, self.width) or samples.shape[2:] not in ((), (3,)):
            raise PictureError("unreadable", "its picture is not of the announced size, or neither gray nor RGB")
        return Samples(samples)


def open_deep_jpeg(data: bytes) -> DeepJpeg | None:
    """The picture of a JPEG of more than 8 bits; None for any other. PictureError where it is too large."""
    for marker, at, _ in _segments(data):
        if marker in _FRAMES:
            try:
                bits, height, width, components = struct.unpack_from(">BHHB", data, at)
            except struct.error:
                return None
            if bits <= 8:
                return None
            check_size(width, height)
            return DeepJpeg(data, width, height, bits, components)
    return None


@dataclass(frozen=True, slots=True)
class JpegHead:
    """Width and height of a JPEG as stored, px; plain: whether all that matters of its header is known with these.

    Then it has 8 bits, is gray or in colour, and no EXIF turns it.
    """

    width: int
    height: int
    plain: bool


def jpeg_head(data: bytes) -> JpegHead | None:
    """What the header of a JPEG says; None where it announces no picture of a size that is decoded."""
    frames = [at for marker, at, _ in _segments(data) if marker in _FRAMES]
    if not frames:
        return None
    try:
        bits, height, width, components = struct.unpack_from(">BHHB", data, frames[0])
        check_size(width, height)
    except (struct.error, PictureError):
        return None
    described = any(marker == 0xE1 for marker, _, _ in _segments(data))
    return JpegHead(width, height, len(frames) == 1 and bits == 8 and components in (1, 3) and not described)


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, first and end byte of the content of each segment of a JPEG before the data of its picture."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == 0xDA:
            return
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        yield marker, at + 4, at + 2 + length
        at += 2 + length


@dataclass(frozen=True, slots=True)
class PngHead:
    """What the chunks of a PNG say; bits of a sample, frames of an animation, and whether it may hold EXIF."""

    bits: int
    colour: bool
    transparent: bool
    frames: int
    described: bool

    @property
    def special(self) -> bool:
        """Whether Pillow, which decodes what imagecodecs refuses, would not show the picture."""
        return self.bits > 8 or self.transparent

    def mode(self, pillows: str) -> str:
        """How the pixels are stored; `pillows` is Pillow's word, which does not know 16 bits of colour."""
        if self.bits <= 8 or not (self.colour or self.transparent):
            return pillows
        return f"{'RGB' if self.colour else 'L'}{'A' * self.transparent};{self.bits}"

    def gray(self, data: bytes) -> np.ndarray | None:
        """The picture as a viewer shows it: uint8. None where it is damaged."""
        stored = self.stored(data)
        if stored is None:
            return None
        samples, alpha, *_ = stored
        if samples.dtype == np.uint16:
            return shown(*stored)
        gray = _luma(samples) if samples.ndim == 3 else np.ascontiguousarray(samples)
        return gray if alpha is None else over_black(gray, alpha)

    def stored(self, data: bytes) -> Samples | None:
        """Its samples, gray or RGB. None where it is damaged."""
        try:
            samples = imagecodecs.png_decode(data)
        except Exception:  # whatever a decoder raises on unknown bytes; the caller asks Pillow why
            return None
        samples = samples if samples.ndim == 3 else samples[..., None]
        alpha = samples[..., -1] if samples.shape[2] in (2, 4) else None
        return Samples(samples[..., :3] if samples.shape[2] > 2 else samples[..., 0], alpha)


def _luma(colours: np.ndarray) -> np.ndarray:
    """Gray of RGB, (H, W, 3 or 4) uint8, as OpenCV's decoder has it, to the bit: sets keep their pixels."""
    gray = np.empty(colours.shape[:2], np.uint8)
    for first in range(0, len(gray), _ROWS):
        red, green, blue = np.moveaxis(colours[first : first + _ROWS, :, :3].astype(np.uint32), -1, 0)
        gray[first : first + _ROWS] = (9797 * red + 19234 * green + 3737 * blue) >> 15
    return gray


def png_head(data: bytes) -> PngHead | None:
    """What the chunks of a PNG say; None where it ends within its header.

    PictureError where the checksum of a chunk that matters is wrong: decoders do not check the last of the pixels'.
    """
    at = 8
    if len(data) < 33:
        return None
    bits, kind, frames = data[24], data[25], 1
    names = set()
    while at + 12 <= len(data) and b"IEND" not in names:
        length, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        end = at + 8 + length
        if end + 4 > len(data):
            break
        if name in _CHECKED and zlib.crc32(memoryview(data)[at + 4 : end]) != int.from_bytes(
            data[end : end + 4], "big"
        ):
            raise PictureError("unreadable", f"its part {name.decode()} is damaged: the checksum is wrong")
        if name == b"acTL":
            frames = int.from_bytes(data[at + 8 : at + 12], "big")
        names.add(name)
        at += 12 + length
    return PngHead(
        bits=bits,
        colour=bool(kind & 2),
        transparent=b"tRNS" in names or kind in _ALPHA_TYPES,
        frames=frames,
        described=bool(names & _DESCRIPTIONS),
    )
