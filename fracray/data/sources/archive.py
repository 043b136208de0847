"""Safe zip extraction. Knows nothing of what the zips hold."""

import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from fracray.errors import InputError
from fracray.runtime.storage import atomic_path

# The published FracAtlas is 0.34 GB and does not compress; a zip beyond these is a bomb or a mistake.
MAX_UNPACKED = 64 * 2**30
MAX_RATIO = 100
FREE_RATIO_BELOW = 64 * 2**20


def unpack(path: Path, target: Path) -> None:
    """Extract the zip at `path` to the new folder `target`, completely or not at all.

    InputError for a damaged zip, members that are links or lead out of the folder, and sizes above MAX_UNPACKED,
    MAX_RATIO or the free disk space.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(path, archive.infolist(), target.parent)
            with atomic_path(target, replace=False) as folder:
                folder.mkdir()
                archive.extractall(folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError) as error:
        raise InputError(f"{path}: cannot be unpacked: {error}; download it again, or unpack it yourself") from None


def _check_members(path: Path, members: list[zipfile.ZipInfo], destination: Path) -> None:
    for member in members:
        name = PurePosixPath(member.filename.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or ":" in (name.parts or ("",))[0]:
            raise InputError(f"{path}: member '{member.filename}' leads out of the folder; get the zip elsewhere")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise InputError(f"{path}: member '{member.filename}' is a link; get the zip elsewhere")
    total = sum(member.file_size for member in members)
    # Compared with the archive's own size: the members' sizes would not show that members overlap.
    if total > MAX_UNPACKED or total > max(FREE_RATIO_BELOW, MAX_RATIO * path.stat().st_size):
        raise InputError(f"{path}: would unpack to {total:,} bytes from {path.stat().st_size:,}; refused as a zip bomb")
    if total > shutil.disk_usage(destination).free:
        raise InputError(f"{path}: needs {total:,} bytes in {destination}, which has less; free some space")
