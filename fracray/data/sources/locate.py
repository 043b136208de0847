"""What --data may name: an imported set, a FracAtlas folder, or the published archive; on a path or a URI.

Finds the folder, and copies it to the cache where it is on a URI. Must not know what its tables say, decode an image,
or know of splits.
"""

import hashlib
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import pyarrow.fs as pafs
from filelock import FileLock

from fracray.data.manifest import MANIFEST
from fracray.data.sources.archive import listing, unpack
from fracray.data.sources.fracatlas import fracatlas_folders
from fracray.errors import InputError
from fracray.runtime.locations import refuse_outside
from fracray.runtime.storage import Folder

CONNECTIONS = 16  # files fetched from a URI at the same time
MEBI = 2**20


def open_source(path: str | Path, cache: Path, progress: Callable[[int, int], None] | None = None) -> Path:
    """The folder of an imported set, or the one holding FracAtlas' dataset.csv: `path`, one level below it, or in the
    zip at `path`, unpacked once into `cache`.

    A zip is recognised by name, size, modification time and its list of members. What a URI (`s3://`, `gs://`) names is
    copied to `cache` and recognised by name, size and time of all its files; `progress` receives the MiB done and in
    total. InputError for a path that is none of these, and as `unpack`.
    """
    if "://" in str(path):
        path, _ = local_copy(str(path), cache, progress or (lambda done, total: None))
    path = Path(path).expanduser()
    if path.is_dir():
        return path if (path / MANIFEST).is_file() else _holding_table(path, path)
    if not path.is_file():
        raise InputError(f"{path}: no such file or folder; name a FracAtlas folder, its zip, or an imported set")
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path}: neither a folder nor a complete zip; name a FracAtlas folder, or download it again")
    return _holding_table(unpacked(path, cache), path)


def unpacked(path: Path, cache: Path) -> Path:
    """The folder in the cache with what the zip at `path` holds; unpacked if it is not there. Raises as `unpack`."""
    about = path.stat()
    says = f"{path.name}|{about.st_size}|{about.st_mtime_ns}\n{listing(path)}"
    key = hashlib.sha256(says.encode()).hexdigest()[:16]
    target = _private(Path(cache).expanduser() / "archives") / f"{path.stem}-{key}"
    if not target.is_dir():
        unpack(path, target)
    return target


def _private(folder: Path) -> Path:
    """A folder of the cache, made if it is missing. Radiographs are in it, so only its owner opens it.

    InputError where it cannot be used.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = folder.stat()
        if about.st_uid == os.getuid() and about.st_mode & 0o077:
            folder.chmod(0o700)  # older versions left it open
        with os.scandir(folder):
            return folder
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}; choose another data.cache") from None


def local_copy(uri: str, cache: Path, progress: Callable[[int, int], None]) -> tuple[Path, str]:
    """The local copy of the folder or file at a URI; copied if there is none, or if the source has changed.

    Also the key of this version of the source, which is the same on every machine.
    """
    place = Folder(uri)
    base = place.path("").rstrip("/")
    try:
        found = place.filesystem.get_file_info(base)
        if found.type == pafs.FileType.File:
            files = {PurePosixPath(base).name: found}
        else:
            selector = pafs.FileSelector(base, recursive=True, allow_not_found=True)
            inside = place.filesystem.get_file_info(selector)
            files = {one.path[len(base) + 1 :]: one for one in inside if one.type == pafs.FileType.File}
    except (OSError, ValueError) as error:
        raise InputError(f"{uri}: cannot be read: {error}; check its address and credentials") from None
    if not files:
        raise InputError(f"{uri}: nothing is there; name a FracAtlas folder, its zip, or an imported set")
    refuse_outside(uri, files)
    states = "\n".join(sorted(f"{name}|{about.size}|{about.mtime_ns}" for name, about in files.items()))
    key = hashlib.sha256(f"{uri}\n{states}".encode()).hexdigest()[:16]
    copy = _private(Path(cache).expanduser() / "downloads") / f"{PurePosixPath(base).name}-{key}"
    with _locked(copy):
        if not copy.is_dir():
            _copy(place, files, copy, progress)
    return copy / next(iter(files)) if found.type == pafs.FileType.File else copy, key


@contextmanager
def _locked(copy: Path) -> Iterator[None]:
    """Runs the block in one process of this machine at a time: two would write the same files."""
    try:
        lock = FileLock(copy.with_name(f"{copy.name}.lock"))
        lock.acquire()
    except OSError as error:
        raise InputError(f"{copy.parent}: {error.strerror}; choose another data.cache") from None
    try:
        yield
    finally:
        lock.release()


def _copy(place: Folder, files: dict[str, pafs.FileInfo], copy: Path, progress: Callable[[int, int], None]) -> None:
    """Copy files to a folder that gets its name when complete; files from an earlier attempt are kept."""
    partial = copy.with_name(f"{copy.name}.partial")
    total = sum(about.size for about in files.values())

    def bring(name: str, about: pafs.FileInfo) -> int:
        target = partial / name
        if not (target.is_file() and target.stat().st_size == about.size):
            target.parent.mkdir(parents=True, exist_ok=True)
            coming = target.with_name(f"{target.name}.coming")
            with place.filesystem.open_input_stream(about.path) as stream, open(coming, "wb") as file:
                shutil.copyfileobj(stream, file, MEBI)
            if coming.stat().st_size != about.size:
                raise OSError(f"{name}: {coming.stat().st_size} bytes of {about.size} arrived")
            coming.rename(target)
        return int(about.size)

    try:
        partial.mkdir(parents=True, exist_ok=True)
        have = sum(file.stat().st_size for file in partial.rglob("*") if file.is_file())
        if total - have > (free := shutil.disk_usage(partial).free):
            raise InputError(
                f"{place}: {total / MEBI:.0f} MiB, and {copy.parent} has room for {free / MEBI:.0f}; free space, or "
                "choose another data.cache"
            )
        done = 0
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            tasks = [pool.submit(bring, name, about) for name, about in files.items()]
            try:
                for task in as_completed(tasks):
                    done += task.result()
                    progress(done // MEBI, total // MEBI)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        partial.rename(copy)
    except OSError as error:
        raise InputError(
            f"{place}: cannot be copied to {copy.parent}: {error}; copied files are kept: run the command again"
        ) from None


def _holding_table(folder: Path, named: Path) -> Path:
    roots = fracatlas_folders(folder)
    if not roots:
        raise InputError(
            f"{named}: no dataset.csv in it or one folder below; name the folder that FracAtlas unpacks to, or import "
            f"other radiographs with `python -m fracray.data import`"
        )
    if len(roots) > 1:
        raise InputError(f"{named}: dataset.csv in {', '.join(root.name for root in roots)}; name one of these folders")
    return roots[0]
