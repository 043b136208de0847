"""From what a command line names to the list of pictures to read: files, folders, zips, imported sets, URIs.

Reads names, first bytes and DICOM headers. Must not decode a picture.
"""

import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from fracray.data.images.decode import MAX_BYTES
from fracray.data.images.dicom_header import read_header
from fracray.data.images.kinds import DICOM
from fracray.data.manifest import MANIFEST, Manifest
from fracray.data.sources.archive import listing
from fracray.data.sources.image_folder import (
    RadiographFile,
    contents,
    list_images,
    name_images,
    require_utf8,
    what_is,
)
from fracray.data.sources.locate import local_copy, unpacked
from fracray.errors import InputError
from fracray.runtime.locations import below, refuse_secret
from fracray.runtime.storage import errors_name

STDIN = "-"


@dataclass(frozen=True)
class Picture:
    """A picture to predict on: its path as the user knows it, the file ('' for none), its id, and why there is none.

    source: of a file in the cache, what tells this version of the URI or the zip that it was copied from; else ''.
    """

    path: str
    file: str
    image_id: str = ""
    error: str = ""
    source: str = ""


@dataclass(frozen=True)
class Found:
    """The pictures, in the order they were named; skipped: how many other files lay in the folders and zips."""

    pictures: tuple[Picture, ...]
    skipped: int = 0

    def fingerprint(self) -> str:
        """sha256 (hex) over the path, id, size and time of every file: equal where the same files are named again.

        Of a copy in the cache the source counts and not its time, as each machine copies at another.
        """
        digest = hashlib.sha256()
        for one in self.pictures:
            try:
                about = os.stat(one.file) if one.file else None
            except OSError:  # its row will say so
                about = None
            state = f"{about.st_size}\x1f{one.source or about.st_mtime_ns}" if about else one.error
            digest.update(f"{one.path}\x1f{one.image_id}\x1f{state}\x1e".encode())
        return digest.hexdigest()


def find_pictures(named: Sequence[str], cache: Path, progress: Callable[[int, int], None]) -> Found:
    """All pictures that these paths name, each once; `-` reads further paths from standard input, a line each.

    Of a folder or a zip, the pictures in it (see `list_images`); of an imported set, its images; of a URI, its copy in
    the cache. Other files are pictures whatever they hold: reading them says what is wrong. A path that does not exist
    is an InputError, one on standard input a Picture with an error. Also InputError as `list_images`, `unpack` and
    `Manifest.read`, and where nothing was found.
    """
    files: list[tuple[RadiographFile, Picture]] = []
    ready: list[Picture] = []
    order: dict[str, None] = {}
    skipped = 0
    for path, listed in _paths(named):
        refuse_secret(path)  # also of standard input: the table would keep it
        try:
            root, kind, source = _place(path, cache, progress)
            if not root.exists():
                raise InputError(f"{path}: no such file or folder; name radiographs, a folder, a zip or -")
        except InputError as error:
            if not listed:
                raise
            if path not in order:
                why = str(error) if "://" in path else "no such file"
                ready.append(Picture(path, "", PurePosixPath(_address(path)).stem, why))
                order[path] = None
            continue
        if kind:  # one file
            require_utf8(root)
            if str(root.absolute()) not in order:
                header = read_header(root, MAX_BYTES) if kind == DICOM.name else None
                one = Picture(path, str(root.absolute()), source=source)
                files.append((RadiographFile(_address(path), header, kind), one))
                order[str(root.absolute())] = None
            continue
        with errors_name(path, root):
            if (root / MANIFEST).is_file():
                rows = _of_set(path, root, source)
                ready += [one for one in rows if (one.file or one.path) not in order]
                order |= dict.fromkeys(one.file or one.path for one in rows)
                if not rows:
                    raise InputError(f"{path}: an imported set without an image; name another")
                continue
            pictures, others = list_images(root)
        if not pictures:
            raise InputError(f"{path}: no radiograph in it: {contents(pictures, others)}; name another folder")
        skipped += len(others)
        for found in pictures:
            shown, file = _below(path, found.path), (root / found.path).absolute()
            if str(file) not in order:
                about = RadiographFile(_address(shown), found.header, found.kind)
                files.append((about, Picture(shown, str(file), source=source)))
                order[str(file)] = None
    if not order:
        raise InputError(f"{' '.join(named)}: names no radiograph; name files, folders, zips or an imported set")
    ids = name_images([file for file, _ in files])
    ready += [replace(one, image_id=name) for (_, one), name in zip(files, ids, strict=True)]
    by_place = {one.file or one.path: one for one in ready}
    return Found(tuple(by_place[place] for place in order), skipped)


def _paths(named: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """Each path, and whether it was listed on standard input."""
    for path in named:
        if path != STDIN:
            yield path, False
            continue
        for number, line in enumerate(sys.stdin.buffer, start=1):
            try:
                text = line.decode().rstrip("\r\n")
            except UnicodeDecodeError:
                raise InputError(f"standard input, line {number}: not UTF-8; list a path a line") from None
            if text.strip():
                yield text, True


def _place(path: str, cache: Path, progress: Callable[[int, int], None]) -> tuple[Path, str, str]:
    """The folder of what a path names and '', or a single file and what it is, as 'PNG'; and `Picture.source`."""
    place, source = Path(path).expanduser(), ""
    if "://" in path:
        place, source = local_copy(path, cache, progress)
    if place.is_dir():
        return place, "", source
    kind, _ = what_is(place)
    if kind == "ZIP":
        return unpacked(place, cache), "", hashlib.sha256(listing(place).encode()).hexdigest()
    return place, kind or "unknown", source


def _address(path: str) -> str:
    """A path, or a URI without its options."""
    return path.partition("?")[0] if "://" in path else path


def _below(path: str, name: str) -> str:
    return below(path, name) if "://" in path else f"{path.rstrip('/')}/{name}"


def _of_set(path: str, folder: Path, source: str) -> list[Picture]:
    """The images of an imported set: also those that its audit left out, but those it has no file of."""
    manifest = Manifest.read(folder / MANIFEST)
    root = folder / manifest.root
    if not root.resolve().is_relative_to(folder.resolve()):  # they were not copied with it
        source = ""
    if not root.is_dir():
        raise InputError(
            f"{path}: the folder of its files, {root}, does not exist; restore it, or import the set again"
        )
    return [
        Picture(_below(path, inside), str((root / inside).absolute()), name, source=source)
        if inside
        else Picture(_below(path, name), "", name, "the imported set has no file of it")
        for inside, name in zip(manifest.table["path"], manifest.table["image_id"], strict=True)
    ]
