"""Zips, unpacked with suspicion. Knows nothing of what they hold."""

import shutil
import stat
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from fracray.errors import InputError

# The published FracAtlas is 0.34 GB and does not compress; beyond these a zip is a bomb or a mistake.
MAX_UNPACKED = 64 * 2**30
MAX_RATIO = 100
FREE_RATIO_BELOW = 64 * 2**20


def unpack(path: Path, target: Path) -> None:
    """Unpack the zip at `path` as the new folder `target`, all of it or nothing.

    InputError for a damaged zip, members that climb out of the folder or are links, and sizes beyond MAX_UNPACKED or
    MAX_RATIO or what the disk has free.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(path, archive.infolist(), target.parent)
            # Unpacked beside its place and renamed, so that a killed run leaves no half folder behind its name.
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".unpacking-") as scratch:
                whole = Path(scratch, "whole")
                archive.extractall(whole)
                try:
                    whole.rename(target)
                except OSError:
                    if not target.is_dir():  # else another process was faster, with the same content
                        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError) as error:
        raise InputError(f"{path}: could not be unpacked: {error}; download it again, or unpack it yourself") from None


def _check_members(path: Path, members: list[zipfile.ZipInfo], destination: Path) -> None:
    for member in members:
        name = PurePosixPath(member.filename.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or ":" in (name.parts or ("",))[0]:
            raise InputError(f"{path}: member '{member.filename}' climbs out of the folder; refused, get it elsewhere")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise InputError(f"{path}: member '{member.filename}' is a link; refused, get it elsewhere")
    total = sum(member.file_size for member in members)
    # Against the archive's own size, not the members' claims, so that overlapping members are counted too.
    if total > MAX_UNPACKED or total > max(FREE_RATIO_BELOW, MAX_RATIO * path.stat().st_size):
        raise InputError(f"{path}: would unpack to {total:,} bytes from {path.stat().st_size:,}; refused as a zip bomb")
    if total > shutil.disk_usage(destination).free:
        raise InputError(f"{path}: needs {total:,} bytes in {destination}, which has less; free space, or go elsewhere")
