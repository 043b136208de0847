"""What lies beside radiographs without being any: files of operating systems, and archives inside of a folder.

Compares names. Must not open a file.
"""

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fracray.data.images.kinds import promises_picture

CLUTTER = "names with a dot in front, __MACOSX, Thumbs.db, desktop.ini and the like"
_NAMES = frozenset(
    {"__macosx", "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "@eadir"}
    | {"$recycle.bin", "system volume information", "lost+found"}
)
_ARCHIVES = frozenset({".zip", ".rar", ".7z", ".tar", ".tgz", ".gz", ".bz2", ".xz"})


@dataclass(frozen=True)
class Beside:
    """ignored: how many files `is_clutter` leaves out. archives: the paths of archives, which are not opened."""

    ignored: int = 0
    archives: tuple[str, ...] = ()


def is_clutter(name: str) -> bool:
    """Whether a file or folder of this name belongs to an operating system or is hidden: it is not looked at."""
    return name.startswith(".") or name.lower() in _NAMES


def beside(root: Path) -> Beside:
    """Count what is left out below `root`. Links are followed; what cannot be listed is not counted."""
    ignored = 0
    archives: list[str] = []
    seen: set[tuple[int, int]] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        about = os.stat(folder)
        if (about.st_dev, about.st_ino) in seen:
            folders.clear()
            continue
        seen.add((about.st_dev, about.st_ino))
        below = PurePosixPath(os.path.relpath(folder, root).replace(os.sep, "/"))
        if any(is_clutter(part) for part in below.parts):
            ignored += len(files)
            continue
        ignored += sum(map(is_clutter, files))
        archives += [
            os.fsencode(below / name).decode(errors="replace")
            for name in files
            if not is_clutter(name) and PurePosixPath(name.lower()).suffix in _ARCHIVES and not promises_picture(name)
        ]
    return Beside(ignored, tuple(sorted(archives)))
