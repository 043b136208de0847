"""Folders on a path or a URI: what a run keeps, and the shards it trains on.

Paths and URIs (`s3://`, `gs://`, whatever pyarrow.fs understands) take the same code path. Imports no Ray, and knows
nothing of what the files say.
"""

import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pyarrow.fs as pafs

from fracray.errors import InputError, RunError

RETRIES = 9  # of each request to S3, each after twice as long a wait
READS = 5  # of a file that is replaced each time while it is read
AT_ONCE_SECONDS, PAUSE_SECONDS = 2.0, 0.3  # of a failed read that is tried again, and before it is


def below(location: str, name: str) -> str:
    """The path or URI of what is called so in the folder at `location`, whose URI may end in options."""
    address, question, query = location.partition("?")
    return f"{address.rstrip('/')}/{name}{question}{query}"


@contextmanager
def atomic_path(target: Path, replace: bool = True) -> Iterator[Path]:
    """A temporary path next to `target` at which to write a file or folder; it gets its name when the block ends.

    A reader finds the old or the new one, never a part. With an error in the block, or without `replace` where the
    target exists by then, the temporary one is removed and the target stays. Raises OSError as the file system does.
    """
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
        except OSError:
            aside.rename(target)
            raise
    finally:
        for path in (partial, aside):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def refuse_secret(location: str) -> None:
    """InputError for a URI with a password: runs and checkpoints keep their places, and are handed on."""
    if "://" in location and (uri := urlsplit(location)).password:
        raise InputError(f"{uri.scheme}://...@{uri.hostname}: leave the secret out; give it by the environment")


class Folder:
    """A folder on a path or a URI. Every write replaces a whole file at once; a reader never sees half of one."""

    def __init__(self, location: str | Path) -> None:
        text = str(location)
        refuse_secret(text)
        self.is_local = "://" not in text
        try:
            if self.is_local:
                self._fs, self._base = pafs.LocalFileSystem(), str(Path(text).expanduser().absolute())
            else:
                self._fs, self._base = _opened(text)
        except (OSError, ValueError) as error:
            raise InputError(f"{text}: not a folder or URI that can be opened: {error}") from None
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
    def filesystem(self) -> pafs.FileSystem:
        return self._fs

    def path(self, name: str) -> str:
        """The place of a file or folder inside, as this folder's filesystem names it."""
        return f"{self._base}/{name}"

    def exists(self, name: str = "") -> bool:
        """Whether a file or folder is there; InputError where the place itself cannot be reached."""
        target = self.path(name) if name else self._base
        try:
            return self._fs.get_file_info(target).type != pafs.FileType.NotFound
        except (OSError, ValueError) as error:
            raise self._out_of_reach(error) from None

    def names(self, name: str = "") -> list[str]:
        """The names directly inside, sorted; empty for a folder that does not exist. InputError as `exists`."""
        selector = pafs.FileSelector(self.path(name) if name else self._base, allow_not_found=True)
        try:
            return sorted(info.base_name for info in self._fs.get_file_info(selector))
        except (OSError, ValueError) as error:
            raise self._out_of_reach(error) from None

    def _out_of_reach(self, error: Exception) -> InputError:
        remedy = "name a folder" if self.is_local else "check its address, its credentials and that it is up"
        return InputError(f"{self}: cannot be opened: {error}; {remedy}")

    def read(self, name: str) -> bytes:
        """A whole file, as it was at one time. InputError where it is not there, RunError where it cannot be read."""
        target = self.path(name)
        try:
            if self.is_local:
                return Path(target).read_bytes()
            for left in reversed(range(READS)):
                begun = time.monotonic()
                try:
                    # One request for all of it: what `open_input_stream` gives in several may be of several files.
                    with self._fs.open_input_file(target) as file:
                        data, version = file.read(), file.metadata()
                    # As many bytes came as the file had when it was opened: of one that replaced it then, too few.
                    with self._fs.open_input_file(target) as file:
                        if file.metadata() == version:
                            return data
                except FileNotFoundError:
                    raise
                except OSError:
                    # Some answers that were cut short are not asked for again by the filesystem, which is known by its
                    # giving up at once.
                    if not left or time.monotonic() - begun > AT_ONCE_SECONDS:
                        raise
                    time.sleep(PAUSE_SECONDS)
        except FileNotFoundError:
            raise InputError(f"{self}: {name} is not there") from None
        except OSError as error:
            raise RunError(f"{self}: cannot read {name}: {error}") from None
        raise RunError(f"{self}: cannot read {name}: it was replaced {READS} times meanwhile; try again")

    def write(self, name: str, data: bytes | str) -> None:
        """Write a whole file; on a local disk by renaming, on an object store by one put."""
        raw = data.encode() if isinstance(data, str) else data
        target = self.path(name)
        try:
            if not self.is_local:  # an object store has no folders: making them would only write empty objects
                with self._fs.open_output_stream(target) as stream:
                    stream.write(raw)
                return
            os.makedirs(os.path.dirname(target), exist_ok=True)
            partial = f"{target}.{uuid.uuid4().hex[:8]}.partial"
            try:
                Path(partial).write_bytes(raw)
                os.replace(partial, target)
            finally:
                Path(partial).unlink(missing_ok=True)
        except OSError as error:
            raise RunError(f"{self}: cannot write {name}: {error}") from None

    def read_json(self, name: str) -> Any:
        try:
            return json.loads(self.read(name))
        except ValueError as error:
            raise InputError(f"{self}/{name}: damaged JSON ({error}); copy the run again") from None

    def write_json(self, name: str, value: Any) -> None:
        self.write(name, json.dumps(value, indent=1))

    def upload(self, local: Path, name: str) -> None:
        """Copy a local file or folder to `name`, replacing what was there; a folder's config.json comes last."""
        if not local.is_dir():
            self.write(name, local.read_bytes())
        elif self.is_local:
            self._replace_folder(local, Path(self.path(name)))
        else:
            # A checkpoint's config.json carries the hash of its weights: written last, it vouches for the rest.
            for file in sorted(local.iterdir(), key=lambda file: file.name == "config.json"):
                self.write(f"{name}/{file.name}", file.read_bytes())

    @contextmanager
    def building(self, name: str) -> Iterator[Path]:
        """A local path at which to write the file or folder `name`, atomically; to a URI it is uploaded afterwards.

        RunError where that fails, as of `write`.
        """
        try:
            if self.is_local:
                yield Path(self.path(name))
                return
            with tempfile.TemporaryDirectory() as scratch:
                yield Path(scratch) / name
                self.upload(Path(scratch) / name, name)
        except OSError as error:
            raise RunError(f"{self}: cannot write {name}: {error}") from None

    def _replace_folder(self, source: Path, target: Path) -> None:
        fresh = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}.partial")
        stale = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}.stale")
        try:
            shutil.copytree(source, fresh)
            if target.exists():
                os.rename(target, stale)
            os.rename(fresh, target)
        except OSError as error:
            raise RunError(f"{target}: cannot write: {error}") from None
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
            shutil.rmtree(stale, ignore_errors=True)

    def download(self, name: str, local: Path) -> None:
        """Copy a folder's files to the new local folder `local`."""
        local.mkdir(parents=True)
        for file in self.names(name):
            (local / file).write_bytes(self.read(f"{name}/{file}"))

    def copy(self, source: str, name: str) -> None:
        """Copy the folder `source` inside this one to `name`, replacing what was there."""
        with tempfile.TemporaryDirectory() as scratch:
            self.download(source, Path(scratch) / "copy")
            self.upload(Path(scratch) / "copy", name)

    @contextmanager
    def local_folder(self) -> Iterator[Path]:
        """A local path of this folder; from a URI its files are copied."""
        if self.is_local:
            yield Path(self._base)
            return
        with tempfile.TemporaryDirectory() as scratch:
            copy = Path(scratch) / self.name
            copy.mkdir()
            for file in self.names():
                (copy / file).write_bytes(self.read(file))
            with _blamed_on(self.location, copy):
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
            with _blamed_on(f"{self}/{name}", path):
                yield path


def _opened(uri: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem of a URI and the path in it.

    By itself pyarrow gives S3 up after six seconds of errors, yet waits a hundred for a store that is silent. This
    strategy comes through twelve seconds of errors and gives a silent store up after three quarters of a minute. The
    standard one of AWS does not do: once a process has seen some twenty requests fail, it tries none of them again.
    """
    filesystem, path = pafs.FileSystem.from_uri(uri)
    if not isinstance(filesystem, pafs.S3FileSystem) or "tls_" in uri:  # of which pyarrow hands not all settings on
        return filesystem, path
    _, (settings,) = filesystem.__reduce__()
    return pafs.S3FileSystem(**settings, retry_strategy=pafs.AwsDefaultS3RetryStrategy(max_attempts=RETRIES)), path


@contextmanager
def _blamed_on(place: str, copy: Path) -> Iterator[None]:
    """InputErrors about a copy name the place that it came from: the copy is gone when they are read."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error).replace(str(copy), place)) from None
