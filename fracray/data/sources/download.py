"""Download of FracAtlas from figshare: resumes where it broke off, and verifies the file before it gets its name.

Knows the article and its releases; must not know what the archive holds. Imports no Ray.
"""

import fcntl
import functools
import hashlib
import json
import os
import shutil
from io import FileIO
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from fracray.data.sources.http import RetryPolicy, TransferError, append_rest, is_web, read_text, size_of
from fracray.data.sources.releases import API, DOI, Release
from fracray.errors import InputError, RunError

NAME = "FracAtlas.zip"  # in a folder


def download(
    to: str | Path, release: Release, console: Console, api: str = API, policy: RetryPolicy | None = None
) -> Path:
    """Fetch a release of FracAtlas to the file `to`, or as FracAtlas.zip into the folder `to`; return the file.

    Bytes are written to FILE.partial, from which a later call resumes; it gets its name once size and md5 are right.
    A correct file is not fetched again. InputError for an invalid target or API, RunError for errors of the servers or
    the disk.
    """
    policy = policy or RetryPolicy()
    folder = str(to).endswith("/") or Path(to).expanduser().is_dir()
    target = Path(to).expanduser() / NAME if folder else Path(to).expanduser()
    if not is_web(api):
        raise InputError(f"--api {api}: not an http or https URL")
    try:
        if target.exists():
            if not target.is_file() or _md5(target) != release.md5:
                raise InputError(
                    f"--to {target}: exists already and is not FracAtlas version {release.version}; "
                    "remove it or name another file"
                )
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = open(target.with_name(f"{target.name}.partial"), "ab", buffering=0)  # noqa: SIM115 - closed below
    except OSError as error:
        raise InputError(f"--to {target}: cannot be written: {error}; name a file elsewhere") from None
    with partial:
        _lock(partial, target)
        try:
            _complete(partial, release, f"{api.rstrip('/')}/versions/{release.version}", policy, console)
            os.fsync(partial.fileno())
            os.replace(partial.name, target)
        except (TransferError, OSError) as error:
            raise RunError(f"{error}; {_how_to_resume(partial)}, or download with a browser from {DOI}") from None
        except KeyboardInterrupt:
            console.print(_how_to_resume(partial), soft_wrap=True)
            raise
        finally:
            if not size_of(partial):
                Path(partial.name).unlink(missing_ok=True)
    return target


def _complete(partial: FileIO, release: Release, listing: str, policy: RetryPolicy, console: Console) -> None:
    """Complete the partial file to the size and md5 of the release; a wrong md5 empties it."""
    say = functools.partial(console.print, soft_wrap=True)
    url, size = _find_file(read_text(listing, policy, say), release, listing)
    if size_of(partial) > size:
        partial.truncate(0)
    free = shutil.disk_usage(Path(partial.name).parent).free
    if size - size_of(partial) > free:
        raise TransferError(f"{partial.name}: {size:,} bytes to download to a disk with {free:,} free")
    bar = Progress(
        TextColumn(f"FracAtlas v{release.version}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("", total=size, completed=size_of(partial))
        append_rest(url, size, partial, policy, say, lambda done: bar.update(task, completed=done))
    found = _md5(Path(partial.name))
    if found != release.md5:
        partial.truncate(0)
        raise TransferError(f"{url}: md5 is {found}, not {release.md5} as published; the file was deleted")


def _find_file(answer: bytes, release: Release, listing: str) -> tuple[str, int]:
    """URL and size of the release's file in an article as figshare's API describes it; found by its md5."""
    try:
        files = json.loads(answer)["files"]
        ours = [file for file in files if release.md5 in (file.get("supplied_md5"), file.get("computed_md5"))]
        found = [(str(file["download_url"]), int(file["size"])) for file in ours]
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        raise TransferError(f"{listing}: not a listing of files; is it figshare's API?") from None
    if not found:
        raise TransferError(
            f"{listing}: lists no file with the md5 {release.md5} of FracAtlas version {release.version}"
        )
    url, size = found[0]
    if size <= 0 or release.size not in (None, size):
        raise TransferError(f"{listing}: lists {size:,} bytes, which is not what was published")
    if not is_web(url):
        raise TransferError(f"{listing}: names {url!r}, which is not an http or https URL")
    return url, size


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _lock(partial: FileIO, target: Path) -> None:
    try:
        fcntl.flock(partial, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise InputError(f"--to {target}: another download is writing it; wait or name another file") from None


def _how_to_resume(partial: FileIO) -> str:
    have = size_of(partial)
    kept = f"; it continues from the {have:,} bytes in {partial.name}" if have else ""
    return f"to resume, run the same command again{kept}"
