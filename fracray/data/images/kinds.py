"""What a file is, by its first bytes: a picture of a kind that is read, of a kind that is not, or something else.

Names are not trusted: exports and web browsers write `.jfif`, `.JPG` or no suffix at all. Opens no file.
"""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from fracray.data.images.dicom import is_dicom

HEAD = 512  # bytes that tell the kinds apart; NIfTI's mark is the last of them, at 344


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of file under its usual name; `picture` where it holds a picture, `read` where fracray decodes it."""

    name: str
    picture: bool = False
    read: bool = False


JPEG, PNG, TIFF, BMP, WEBP, GIF, DICOM = (
    Kind(name, picture=True, read=True) for name in ("JPEG", "PNG", "TIFF", "BMP", "WebP", "GIF", "DICOM")
)
READ = "JPEG, PNG, TIFF, BMP, WebP, GIF or DICOM"  # for messages
_DICOMDIR = Kind("DICOMDIR")

# The marks with which files begin, longest first where one begins another.
_MARKS: tuple[tuple[bytes, Kind], ...] = (
    (b"\xff\xd8\xff\xf7", Kind("JPEG-LS", picture=True)),
    (b"\xff\xd8", JPEG),
    (b"\x89PNG", PNG),
    *((mark, TIFF) for mark in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    *((mark, GIF) for mark in (b"GIF87a", b"GIF89a")),
    *(
        (mark, Kind(name, picture=True))
        for mark, name in (
            (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
            (b"\xff\x4f\xff\x51", "JPEG 2000"),
            (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
            (b"\xff\x0a", "JPEG XL"),
            (b"II\xbc", "JPEG XR"),
            (b"8BPS", "Photoshop"),
            (b"gimp xcf", "GIMP"),
            (b"v/1\x01", "OpenEXR"),
            (b"AT&TFORM", "DjVu"),
            (b"SIMPLE  =", "FITS"),
            (b"NRRD0", "NRRD"),
            (b"ObjectType = Image", "MetaImage"),
            (b"\x5c\x01\0\0\0\0\0\0", "NIfTI or Analyze"),  # the size of its header, 348
            (b"\0\0\x01\x5c\0\0\0\0", "NIfTI or Analyze"),
            (b"\x1c\x02\0\0n+2\0", "NIfTI"),
        )
    ),
    *(
        (mark, Kind(name))
        for mark, name in (
            (b"%PDF", "PDF"),
            (b"\x1aE\xdf\xa3", "Matroska video"),
            (b"\0\0\x01\xba", "MPEG video"),
            (b"\0\0\x01\xb3", "MPEG video"),
            (b"PK\x03\x04", "ZIP"),
            (b"Rar!", "RAR"),
            (b"7z\xbc\xaf\x27\x1c", "7z"),
            (b"\x1f\x8b", "gzip"),
            (b"PAR1", "Parquet"),
            (b"\x89HDF", "HDF5"),
            (b"\x93NUMPY", "NumPy"),
            (b"SQLite format 3", "SQLite"),
            (b"\xd0\xcf\x11\xe0", "Microsoft Office"),
        )
    ),
)
# ISO's media files (MP4 and its relatives) name their contents in a brand behind 'ftyp'.
_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIC"),
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    b"crx ": "Canon raw",
}
_BMP_HEADERS = frozenset({12, 16, 40, 52, 56, 64, 108, 124})  # bytes; 'BM' alone may begin a text
# Suffixes that promise a picture: such a file is listed, and named as unreadable if it is none.
PICTURE_SUFFIXES = frozenset(
    {
        ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".png", ".apng", ".tif", ".tiff", ".bmp", ".dib", ".webp", ".gif",
        ".dcm", ".dicom", ".dic", ".heic", ".heif", ".avif", ".jp2", ".j2k", ".jpf", ".jpx", ".jpc", ".jxl", ".jxr",
        ".jls", ".psd", ".nii", ".nrrd", ".mha", ".pgm", ".ppm", ".pnm", ".pbm",
    }
)  # fmt: skip
# Of files without a known mark: their names by suffix where it is not simply the suffix.
_BY_SUFFIX = {".htm": "HTML", ".yml": "YAML", ".text": "TXT"}


def kind_of(head: bytes, name: str = "") -> Kind | None:
    """The kind of a file that begins so (HEAD bytes, or all of a shorter one); None where no mark is known.

    name: tells a DICOMDIR, which is DICOM without a picture, and NIfTI in gzip.
    """
    if is_dicom(head):
        return _DICOMDIR if name == "DICOMDIR" else DICOM
    for mark, kind in _MARKS:
        if head.startswith(mark):
            if kind.name == "gzip" and name.lower().endswith(".nii.gz"):
                return Kind("NIfTI", picture=True)
            return kind
    if head[4:8] == b"ftyp":
        brand = _BRANDS.get(head[8:12])
        return Kind(brand, picture=True) if brand else Kind("QuickTime or MP4 video")
    if head.startswith(b"RIFF"):
        return {b"WEBP": WEBP, b"AVI ": Kind("AVI video")}.get(head[8:12], Kind("RIFF"))
    if head.startswith(b"BM") and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return BMP
    if re.match(rb"P[1-7]\s+(#|\d|WIDTH)", head):
        return Kind("PNM", picture=True)
    return None


def other_name(name: str, head: bytes) -> str:
    """What a file without a known mark is called: by its suffix, as 'CSV'."""
    if not head:
        return "empty"
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in PICTURE_SUFFIXES:
        return "unknown"
    return _BY_SUFFIX.get(suffix) or (suffix[1:].upper() if suffix[1:].isalnum() and len(suffix) < 10 else "unknown")


def promises_picture(name: str) -> bool:
    """Whether a file's name says that it is a picture."""
    return PurePosixPath(name).suffix.lower() in PICTURE_SUFFIXES or name.lower().endswith(".nii.gz")
