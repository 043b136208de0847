"""What --data may name: an imported set, a FracAtlas folder, or the archive as published.

Finds the folder; must not know what its tables say, decode an image, or know of splits.
"""

import hashlib
import zipfile
from pathlib import Path

from fracray.data.archive import unpack
from fracray.data.fracatlas import fracatlas_folders
from fracray.data.manifest import MANIFEST
from fracray.errors import InputError


def open_source(path: str | Path, cache: Path) -> Path:
    """The folder of an imported set, or the one holding FracAtlas' dataset.csv: `path`, one level below it, or in the
    zip at `path`, unpacked once into `cache`.

    A zip is known again by name, size and modification time. InputError for a path that is none of these, and as
    `unpack`.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return path if (path / MANIFEST).is_file() else _holding_table(path, path)
    if not path.is_file():
        raise InputError(f"{path}: no such file or folder; name a FracAtlas folder, its zip, or an imported set")
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path}: neither a folder nor a complete zip; name a FracAtlas folder, or download it again")
    about = path.stat()
    key = hashlib.sha256(f"{path.name}|{about.st_size}|{about.st_mtime_ns}".encode()).hexdigest()[:16]
    target = Path(cache).expanduser() / "archives" / f"{path.stem}-{key}"
    if not target.is_dir():
        unpack(path, target)
    return _holding_table(target, path)


def _holding_table(folder: Path, named: Path) -> Path:
    roots = fracatlas_folders(folder)
    if not roots:
        raise InputError(
            f"{named}: no dataset.csv in it or one folder below; name the folder that FracAtlas unpacks to, or bring "
            f"other radiographs in with `python -m fracray.data import`"
        )
    if len(roots) > 1:
        raise InputError(f"{named}: dataset.csv in {', '.join(root.name for root in roots)}; name one of these folders")
    return roots[0]
