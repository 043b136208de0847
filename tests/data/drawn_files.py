"""Writes PNG and TIFF files of every depth and layout, whose samples are all known: no library writes all of them."""

import itertools
import struct
import zlib
from collections.abc import Sequence

import imagecodecs
import numpy as np

PACKED = {1: lambda raw: raw, 5: imagecodecs.lzw_encode, 8: zlib.compress, 32773: imagecodecs.packbits_encode}


def shade(rows: int = 40, columns: int = 56) -> np.ndarray:
    """A picture without symmetry, 0 to 1: a bright wedge, a dark bar and a soft ground."""
    y, x = np.mgrid[0:rows, 0:columns]
    picture = 0.25 + 0.5 * x / columns * (1 - y / rows) + 0.2 * (x > 2 * y)
    picture[rows // 2 : rows // 2 + 4, : columns // 3] = 0.02
    picture[-6:, -9:] = 0.98
    return picture


def packed(values: np.ndarray, bits: int, order: str = ">") -> bytes:
    """Samples, (rows, n), as `bits` of them each, rows filled up to a byte."""
    if values.dtype.kind == "f" or bits in (8, 16, 32, 64):
        return values.astype(values.dtype.newbyteorder(order)).tobytes()
    spread = (values[..., None].astype(np.uint32) >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(spread.reshape(len(values), -1).astype(np.uint8), axis=1).tobytes()


def exif(orientation: int) -> bytes:
    """A TIFF header whose only tag is EXIF's orientation."""
    return struct.pack("<2sHIHHHIHHI", b"II", 42, 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def png(
    samples: np.ndarray,
    bits: int,
    kind: int,
    see_through: bytes = b"",
    palette: bytes = b"",
    orientation: int = 0,
    before: Sequence[tuple[bytes, bytes]] = (),
) -> bytes:
    """A PNG of colour type `kind`; samples: (rows, columns) or (rows, columns, n) integers below 2 ** bits."""
    rows, columns = samples.shape[:2]
    raw = packed(samples.reshape(rows, -1).astype(np.uint16 if bits == 16 else np.uint8), bits)
    lines = np.frombuffer(raw, np.uint8).reshape(rows, -1)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", columns, rows, bits, kind, 0, 0, 0)), *before]
    chunks += [(b"eXIf", exif(orientation))] if orientation else []
    chunks += [(b"PLTE", palette)] if palette else []
    chunks += [(b"tRNS", see_through)] if see_through else []
    chunks += [(b"IDAT", zlib.compress(np.pad(lines, ((0, 0), (1, 0))).tobytes())), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def tiff(
    samples: np.ndarray,
    bits: int = 0,
    kind: int | None = None,
    extra: Sequence[int] = (),
    order: str = "<",
    big: bool = False,
    packing: int = 1,
    planar: bool = False,
    palette: Sequence[int] = (),
    tags: Sequence[tuple[int, int, Sequence[int]]] = (),
    pages: Sequence[int] = (0,),
    stored: bytes = b"",
) -> bytes:
    """A TIFF or BigTIFF of one strip (a plane); samples: (rows, columns, n) of any type.

    kind: its photometric interpretation. extra: meanings of the samples beyond the colours. tags: more of them, as
    number, type and values. pages: the subfile type of each page; all show the same. stored: the samples as they are
    stored, where `packing` does not say how.
    """
    rows, columns, count = samples.shape
    bits = bits or 8 * samples.itemsize
    kind = (2 if count - len(extra) == 3 else 1) if kind is None else kind
    planes = [samples[..., at] for at in range(count)] if planar else [samples.reshape(rows, -1)]
    strips = [stored] if stored else [PACKED[packing](packed(plane, bits, order)) for plane in planes]
    out = bytearray(b"II" if order == "<" else b"MM")
    word = "Q" if big else "I"
    out += struct.pack(f"{order}HHHQ", 43, 8, 0, 0) if big else struct.pack(f"{order}HI", 42, 0)
    link, starts = (8 if big else 4), []
    for strip in strips:
        starts.append(len(out))
        out += strip + b"\0" * (len(strip) % 2)
    for subfile in pages:
        entries = [
            (254, 4, [subfile]), (256, 4, [columns]), (257, 4, [rows]), (258, 3, [bits] * count), (259, 3, [packing]),
            (262, 3, [kind]), (273, 16 if big else 4, starts), (277, 3, [count]), (278, 4, [rows]),
            (279, 16 if big else 4, [len(strip) for strip in strips]), (284, 3, [2 if planar else 1]),
            (339, 3, [{"u": 1, "i": 2, "f": 3, "b": 1}[samples.dtype.kind]] * count),
        ]  # fmt: skip
        entries += [(338, 3, list(extra))] if extra else []
        entries += [(320, 3, list(palette))] if len(palette) else []
        numbers = {number for number, _, _ in tags}
        entries = sorted([entry for entry in entries if entry[0] not in numbers] + list(tags))
        directory = bytearray(struct.pack(f"{order}{'Q' if big else 'H'}", len(entries)))
        for number, type_, values in entries:
            data = struct.pack(f"{order}{len(values)}{ {3: 'H', 4: 'I', 16: 'Q'}[type_] }", *values)
            if len(data) > (8 if big else 4):
                at = len(out)
                out += data + b"\0" * (len(data) % 2)
                data = struct.pack(f"{order}{word}", at)
            directory += struct.pack(f"{order}HH{word}", number, type_, len(values)) + data.ljust(
                8 if big else 4, b"\0"
            )
        out += b"\0" * (len(out) % 2)
        struct.pack_into(f"{order}{word}", out, link, len(out))
        link = len(out) + len(directory)
        out += directory + struct.pack(f"{order}{word}", 0)
    return bytes(out)


def layouts() -> list[dict[str, object]]:
    """How `tiff` may lay out the same samples: byte order, BigTIFF, compression, planes."""
    names = ("order", "big", "packing", "planar")
    return [dict(zip(names, one, strict=True)) for one in itertools.product("<>", (False, True), PACKED, (False, True))]
