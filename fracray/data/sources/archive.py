"""Safe zip extraction, also of zips that Windows programs wrote. Knows nothing of what the zips hold."""

import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from fracray.errors import InputError
from fracray.runtime.storage import atomic_path

# The published FracAtlas is 0.34 GB and does not compress; a zip beyond these is a bomb or a mistake.
MAX_UNPACKED = 64 * 2**30
MAX_RATIO = 100
FREE_RATIO_BELOW = 64 * 2**20

_UTF8, _ENCRYPTED, _FOLDER = 0x800, 0x1, 0x10  # the first two are flags of a member, the last of DOS' file attributes
_UNICODE_PATH = 0x7075  # Info-ZIP's extra field with a name in UTF-8
_METHODS = {9: "Deflate64", 93: "Zstandard", 95: "XZ", 97: "WavPack", 98: "PPMd", 99: "AES encryption"}


def unpack(path: Path, target: Path) -> None:
    """Extract the zip at `path` to the new folder `target`, completely or not at all.

    A backslash in a name separates folders, as in zips of Windows programs. InputError, naming zip and member, for a
    damaged zip, members that are links, encrypted, of the same name or lead out of the folder, and sizes above
    MAX_UNPACKED, MAX_RATIO or the free disk space.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with _opened(path) as archive:
        members = {member: _name_of(member) for member in archive.infolist()}
        _check_names(path, members)
        _check_sizes(path, list(members), target.parent)
        with atomic_path(target, replace=False) as folder:
            folder.mkdir()
            for member, name in members.items():
                _extract(path, archive, member, name, folder)


def listing(path: Path) -> str:
    """What the zip at `path` says of its members, a line each: name, size and CRC. InputError for a damaged zip."""
    with _opened(path) as archive:
        return "\n".join(f"{one.orig_filename!r}|{one.file_size}|{one.CRC}" for one in archive.infolist())


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """An open zip; what its reading raises in the block is an InputError."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, struct.error, EOFError, ValueError, NotImplementedError, OverflowError) as error:
        raise InputError(f"{path}: cannot be unpacked: {error}; download it again, or unpack it yourself") from None
    except OSError as error:
        raise InputError(
            f"{path}: cannot be unpacked: {error.strerror or error}; free some space, or unpack it yourself"
        ) from None


def _name_of(member: zipfile.ZipInfo) -> str:
    """The path of a member, with '/'.

    Without the flag for UTF-8, programs write a name in their own encoding: those of Unix and macOS in UTF-8, those of
    Windows and DOS in code page 437 or 850. Box-drawing characters, which only 437 has at the places of letters, tell
    the two apart.
    """
    name = member.orig_filename.partition("\0")[0]
    if not member.flag_bits & _UTF8 and not name.isascii():
        raw = name.encode("cp437")  # zipfile has decoded it so
        said = _unicode_path(member.extra, raw)
        try:
            name = said or raw.decode()
        except UnicodeDecodeError:
            boxes = any("\u2500" <= letter <= "\u259f" for letter in name)
            name = raw.decode("cp850") if boxes else name
    return name.replace("\\", "/")


def _unicode_path(extra: bytes, raw: bytes) -> str:
    """The name in Info-ZIP's extra field; '' where there is none, or it belongs to another name."""
    while len(extra) >= 4:
        kind, size = struct.unpack("<HH", extra[:4])
        content, extra = extra[4 : 4 + size], extra[4 + size :]
        if kind == _UNICODE_PATH and content[:1] == b"\1" and content[1:5] == struct.pack("<I", zlib.crc32(raw)):
            return content[5:].decode(errors="replace")
    return ""


def _check_names(path: Path, members: Mapping[zipfile.ZipInfo, str]) -> None:
    places: dict[PurePosixPath, str] = {}
    for member, name in members.items():
        place, where = PurePosixPath(name), f"{path}: member {name!r}"
        if place.is_absolute() or ".." in place.parts or ":" in (place.parts or ("",))[0]:
            raise InputError(f"{where} leads out of the folder; get the zip elsewhere")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise InputError(f"{where} is a link; get the zip elsewhere")
        if _is_folder(member, name):
            continue
        if member.flag_bits & _ENCRYPTED:
            raise InputError(f"{where} is encrypted; unpack the zip with its password, and name the folder")
        if places.setdefault(place, name) is not name:
            raise InputError(f"{where} is in it twice; unpack it yourself, and name the folder")
    for place, name in places.items():
        if above := next((parent for parent in place.parents if parent in places), None):
            raise InputError(
                f"{path}: member {name!r} lies below {str(above)!r}, which is a file; get the zip elsewhere"
            )


def _is_folder(member: zipfile.ZipInfo, name: str) -> bool:
    return not name or name.endswith("/") or (member.external_attr & _FOLDER and not member.file_size) or name == "."


def _check_sizes(path: Path, members: Sequence[zipfile.ZipInfo], destination: Path) -> None:
    total = sum(member.file_size for member in members)
    # Compared with the archive's own size: the members' sizes would not show that members overlap.
    if total > MAX_UNPACKED or total > max(FREE_RATIO_BELOW, MAX_RATIO * path.stat().st_size):
        raise InputError(f"{path}: would unpack to {total:,} bytes from {path.stat().st_size:,}; refused as a zip bomb")
    if total > (free := shutil.disk_usage(destination).free):
        disk = next(folder for folder in (destination, *destination.parents) if folder.is_mount())
        raise InputError(f"{path}: needs {total:,} bytes, and the disk at {disk} has {free:,}; free some space")


def _extract(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str, folder: Path) -> None:
    place = folder / PurePosixPath(name)
    if _is_folder(member, name):
        place.mkdir(parents=True, exist_ok=True)
        return
    remedy = "download it again, or unpack it yourself"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(member) as packed, open(place, "xb") as file:
            shutil.copyfileobj(packed, file, 2**20)
        return
    except NotImplementedError:
        method = _METHODS.get(member.compress_type, "unknown")
        reason, remedy = f"its compression, {method}, is not supported", "unpack it yourself, and name the folder"
    except FileExistsError:  # on disks that do not tell upper and lower case apart
        reason, remedy = "another member has the same name here", "unpack it yourself, and name the folder"
    except OSError as error:
        reason, remedy = error.strerror or str(error), "free some space, or unpack it yourself"
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError) as error:
        reason = str(error) or type(error).__name__
    raise InputError(f"{path}: member {name!r} cannot be unpacked: {reason}; {remedy}")
