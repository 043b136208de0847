"""Folders on a path or a URI, and the one atomic write.

Paths and URIs (`s3://`, `gs://`, everything that pyarrow.fs opens) take the same code path. Imports no Ray, and knows
nothing of what the files contain.
"""

import json
import shutil
import tempfile
import time
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow.fs as pafs

from fracray import interrupts
from fracray.errors import InputError, OutOfReachError, RunError
from fracray.runtime.locations import around, below, refuse_outside, refuse_secret

RETRIES = 9  # of each request to S3; each waits twice as long
READS = 5  # attempts to read a file that is replaced during the read
AT_ONCE_SECONDS, PAUSE_SECONDS = 2.0, 0.3  # a read that fails within the first is tried again after the second


@contextmanager
def atomic_path(target: Path, replace: bool = True) -> Iterator[Path]:
    """A temporary path next to `target` at which to write a file or folder; it gets its name when the block ends.

    A reader finds the old or the new one, never a part. With an error in the block, or without `replace` where the
    target exists by then, the temporary one is removed and the target stays. Raises OSError as the file system does.
    """
    with interrupts.careful(), _renamed(target, replace) as partial:
        yield partial


@contextmanager
def _renamed(target: Path, replace: bool) -> Iterator[Path]:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    aside = partial.with_suffix(".old")
    try:
        yield partial
        if not replace and target.exists():
            return
        if not (partial.is_dir() and target.exists()):
            partial.replace(target)
            return
        # A folder cannot be replaced in one step: move the old one aside first, so only this instant is without one.
        target.rename(aside)
        try:
            partial.rename(target)
        except BaseException:  # Ctrl-C too: the old one must not be lost
            aside.rename(target)
            raise
    finally:
        _remove(partial)
        if target.exists():  # else the old one is all there is
            _remove(aside)


def write_named(path: str | Path, data: bytes) -> None:
    """Write a file that the user named, in one step where it is a file; a pipe or a device gets the bytes as they come.

    Raises OSError as the file system does, also where its folder does not exist.
    """
    target = Path(path).resolve()  # a link stays one
    if target.exists() and not target.is_file():
        target.write_bytes(data)
        return
    target.parent.stat()
    with atomic_path(target) as partial:
        partial.write_bytes(data)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


class Folder:
    """A folder on a path or a URI. Every write replaces a file in one step; a reader never sees half of one."""

    def __init__(self, location: str | Path) -> None:
        text = str(location)
        refuse_secret(text)
        self.is_local = "://" not in text
        try:
            if self.is_local:
                self._fs, self._base = pafs.LocalFileSystem(), str(Path(text).expanduser().absolute())
            else:
                self._fs, self._base = _opened(text)
        except (OSError, ValueError) as error:  # OSError: the region of a bucket is asked for
            kind = OutOfReachError if isinstance(error, OSError) else InputError
            raise kind(f"{text}: not a folder or URI that can be opened: {error}") from None
        self.location = self._base if self.is_local else text

    def __reduce__(self) -> Any:
        return Folder, (self.location,)

    def __str__(self) -> str:
        return self.location

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Folder) and other.location == self.location

    def __hash__(self) -> int:
        return hash(self.location)

    @property
    def name(self) -> str:
        return self._base.rstrip("/").rpartition("/")[2]

    def sub(self, name: str) -> "Folder":
        """A folder inside this one."""
        if self.is_local:
            return Folder(Path(self._base) / name)
        return Folder(below(self.location, quote(name)))

    @property
    def around(self) -> "Folder":
        """The folder that this one lies in."""
        return Folder(around(self.location))

    @property
    def filesystem(self) -> pafs.FileSystem:
        return self._fs

    def path(self, name: str) -> str:
        """The path of a file or folder inside, for this folder's filesystem."""
        return f"{self._base}/{name}"

    def exists(self, name: str = "") -> bool:
        """Whether a file or folder exists; OutOfReachError where the storage cannot be reached."""
        target = self.path(name) if name else self._base
        try:
            return self._fs.get_file_info(target).type != pafs.FileType.NotFound
        except (OSError, ValueError) as error:
            raise self._out_of_reach(error) from None

    def names(self, name: str = "") -> list[str]:
        """The names directly inside, sorted; empty for a folder that does not exist. OutOfReachError as `exists`."""
        selector = pafs.FileSelector(self.path(name) if name else self._base, allow_not_found=True)
        try:
            return sorted(info.base_name for info in self._fs.get_file_info(selector))
        except (OSError, ValueError) as error:
            raise self._out_of_reach(error) from None

    def files(self, name: str = "") -> list[str]:
        """All files below a folder, by their paths in it, sorted; empty for one that does not exist.

        Raises as `exists`, and InputError for a name that leads out of the folder.
        """
        base = self.path(name) if name else self._base
        try:
            found = self._fs.get_file_info(pafs.FileSelector(base, allow_not_found=True, recursive=True))
        except (OSError, ValueError) as error:
            raise self._out_of_reach(error) from None
        inside = sorted(info.path.removeprefix(f"{base.rstrip('/')}/") for info in found if info.is_file)
        refuse_outside(self.location, inside)
        return inside

    def _out_of_reach(self, error: Exception) -> OutOfReachError:
        remedy = "name a folder" if self.is_local else "check its address, its credentials and that it is up"
        return OutOfReachError(f"{self}: cannot be opened: {error}; {remedy}")

    def read(self, name: str) -> bytes:
        """A file as it was at one moment. InputError where it does not exist, RunError where it cannot be read."""
        data = self.read_if_there(name)
        if data is None:
            raise InputError(f"{self}: {name} does not exist")
        return data

    def read_if_there(self, name: str) -> bytes | None:
        """As `read`; None for a file that does not exist, which takes no request of its own to know."""
        target = self.path(name)
        try:
            if self.is_local:
                return Path(target).read_bytes()
            for left in reversed(range(READS)):
                begun = time.monotonic()
                try:
                    # One request for the entire file: `open_input_stream` makes several, maybe of several versions.
                    with self._fs.open_input_file(target) as file:
                        data, version = file.read(), file.metadata()
                    # The size is that of the opened version: a longer one that replaced it meanwhile would be cut off.
                    with self._fs.open_input_file(target) as file:
                        if file.metadata() == version:
                            return data
                except FileNotFoundError:
                    raise
                except OSError:
                    # The filesystem does not retry some answers that were cut short: it then fails at once.
                    if not left or time.monotonic() - begun > AT_ONCE_SECONDS:
                        raise
                    time.sleep(PAUSE_SECONDS)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RunError(f"{self}: cannot read {name}: {error}") from None
        raise RunError(f"{self}: cannot read {name}: it was replaced {READS} times during the read; try again")

    def write(self, name: str, data: bytes | str) -> None:
        """Write a file in one step: by renaming on a local disk, by one put on an object store."""
        raw = data.encode() if isinstance(data, str) else data
        target = self.path(name)
        try:
            if self.is_local:
                with atomic_path(Path(target)) as partial:
                    partial.write_bytes(raw)
            else:  # interrupted between its steps, it would replace the file by an empty one
                interrupts.unbroken(lambda: self._put(target, raw))
        except OSError as error:
            raise RunError(f"{self}: cannot write {name}: {error}") from None

    def _put(self, target: str, raw: bytes) -> None:
        # An object store has no folders: creating them would only write empty objects.
        with self._fs.open_output_stream(target) as stream:
            stream.write(raw)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there. RunError where that fails."""
        try:
            self._fs.delete_file(self.path(name))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise RunError(f"{self}: cannot remove {name}: {error}") from None

    def written(self, name: str) -> dict[str, float]:
        """The files directly inside a folder, each with the time of its last write by the clock of the storage.

        In seconds; 0 where the storage does not say. Empty for a folder that does not exist. Raises as `exists`.
        """
        selector = pafs.FileSelector(self.path(name), allow_not_found=True)
        try:
            found = self._fs.get_file_info(selector)
        except (OSError, ValueError) as error:
            raise self._out_of_reach(error) from None
        return {info.base_name: (info.mtime_ns or 0) / 1e9 for info in found if info.is_file}

    def read_json(self, name: str) -> Any:
        """A file of JSON. InputError where it does not exist or is damaged, RunError where it cannot be read."""
        return self._json(name, self.read(name))

    def read_json_if_there(self, name: str) -> Any:
        """As `read_json`; None for a file that does not exist."""
        data = self.read_if_there(name)
        return None if data is None else self._json(name, data)

    def _json(self, name: str, data: bytes) -> Any:
        try:
            return json.loads(data)
        except ValueError as error:
            raise InputError(f"{self}/{name}: damaged JSON ({error}); copy the run again") from None

    def write_json(self, name: str, value: Any) -> None:
        self.write(name, json.dumps(value, indent=1))

    def upload(self, local: Path, name: str) -> None:
        """Copy a local file or folder to `name`, replacing it; a folder's own config.json is written last."""
        if not local.is_dir():
            self.write(name, local.read_bytes())
        elif self.is_local:
            try:
                with atomic_path(Path(self.path(name))) as partial:
                    shutil.copytree(local, partial)
            except OSError as error:
                raise RunError(f"{self}: cannot write {name}: {error}") from None
        else:
            # A checkpoint's config.json holds the hashes of its files: written last, it shows that all are complete.
            files = [file.relative_to(local).as_posix() for file in sorted(local.rglob("*")) if file.is_file()]
            for file in sorted(files, key=lambda file: file == "config.json"):
                self.write(f"{name}/{file}", (local / file).read_bytes())
            for stale in set(self.files(name)) - set(files):
                self.remove(f"{name}/{stale}")

    @contextmanager
    def building(self, name: str) -> Iterator[Path]:
        """A local path at which to write the file or folder `name`, which then gets its name or is uploaded.

        Raises RunError where that fails, as `write` does.
        """
        try:
            if self.is_local:
                with atomic_path(Path(self.path(name))) as partial:
                    yield partial
                return
            with tempfile.TemporaryDirectory() as scratch:
                yield Path(scratch) / name
                self.upload(Path(scratch) / name, name)
        except OSError as error:
            raise RunError(f"{self}: cannot write {name}: {error}") from None

    def download(self, name: str, local: Path, only: Collection[str] | None = None) -> None:
        """Copy a folder's files, also of folders inside, or `only` those at these paths in it, to the new `local`."""
        local.mkdir(parents=True)
        for file in self.files(name):
            if only is None or file in only:
                (local / file).parent.mkdir(parents=True, exist_ok=True)
                (local / file).write_bytes(self.read(f"{name}/{file}" if name else file))

    def copy(self, source: str, name: str) -> None:
        """Copy the folder `source` inside this one to `name`, replacing it."""
        with tempfile.TemporaryDirectory() as scratch:
            self.download(source, Path(scratch) / "copy")
            self.upload(Path(scratch) / "copy", name)

    @contextmanager
    def local_folder(self, only: Collection[str] | None = None) -> Iterator[Path]:
        """A local path of this folder; of a URI, all files below it are copied, or those that `download` is told."""
        if self.is_local:
            yield Path(self._base)
            return
        with tempfile.TemporaryDirectory() as scratch:
            copy = Path(scratch) / self.name
            self.download("", copy, only)
            with errors_name(self.location, copy):
                yield copy

    @contextmanager
    def local_copy(self, name: str) -> Iterator[Path]:
        """A local path of one file, for libraries that open paths."""
        if self.is_local:
            yield Path(self.path(name))
            return
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / Path(name).name
            path.write_bytes(self.read(name))
            with errors_name(f"{self}/{name}", path):
                yield path


def _opened(uri: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem of a URI and the path in it.

    By default pyarrow gives up on S3 after six seconds of errors, but waits a hundred seconds for a store that does not
    answer. This strategy survives twelve seconds of errors and gives up on a silent store after 45 s. AWS's standard
    strategy is no alternative: after some twenty failed requests in a process it retries none.
    """
    filesystem, path = pafs.FileSystem.from_uri(uri)
    if not isinstance(filesystem, pafs.S3FileSystem) or "tls_" in uri:  # pyarrow does not pass all of these settings on
        return filesystem, path
    _, (settings,) = filesystem.__reduce__()
    return pafs.S3FileSystem(**settings, retry_strategy=pafs.AwsDefaultS3RetryStrategy(max_attempts=RETRIES)), path


@contextmanager
def errors_name(place: str, copy: Path) -> Iterator[None]:
    """InputErrors about a copy, or about the folder that a set's files are in, name what the user knows instead."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error).replace(str(copy), place)) from None
