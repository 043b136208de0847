"""Download over HTTP that resumes: `requests` makes the requests, this module checks ranges and decides on retries.

It expects servers that break off, redirect, stall, are busy or report wrong sizes. Must not know what the bytes mean.
Imports no Ray. (pooch and fsspec start again from zero after a break. `huggingface_hub` discards up to 10 MB at each
break, appends ranges that it did not ask for, and does not retry on status 503.)
"""

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from typing import TypeVar
from urllib.parse import urlsplit

import requests
from urllib3 import Retry
from urllib3.exceptions import HTTPError, InvalidHeader, ProtocolError

from fracray import __version__

CHUNK = 2**16
MAX_TEXT = 4 * 2**20
PROGRESS = 2**20  # bytes; a gain of this many resets the count of failures
LONGEST_PAUSE = 60.0
LONGEST_ASKED = 300.0  # seconds; a server that asks for a longer pause ends the download
TRANSIENT = frozenset({202, 408, 425, 429, 500, 502, 503, 504})

T = TypeVar("T")


@dataclass(frozen=True)
class RetryPolicy:
    """attempts: failures in a row before giving up. timeout: seconds of silence. wait: how to wait."""

    attempts: int = 6
    timeout: float = 60.0
    wait: Callable[[float], None] = time.sleep


class TransferError(Exception):
    """A failure that a retry cannot fix, or one too many."""


class _Failure(Exception):  # noqa: N818 - not always an error
    """What went wrong; `pause`: seconds that the server asks to wait before a retry, None where a retry cannot help."""

    def __init__(self, problem: str, pause: float | None = None) -> None:
        super().__init__(problem)
        self.pause = pause


def is_web(url: str) -> bool:
    """Whether `url` is an http or https URL with a host."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        return False


def size_of(file: FileIO) -> int:
    """Bytes in an open file."""
    return os.fstat(file.fileno()).st_size


def read_text(url: str, policy: RetryPolicy, log: Callable[[str], object]) -> bytes:
    """The body at `url`, cut off soon after MAX_TEXT bytes; raises TransferError."""

    def attempt() -> bytes:
        body = b""
        with _get(url, policy.timeout) as response:
            for chunk in response.iter_content(CHUNK):
                body += chunk
                if len(body) > MAX_TEXT:
                    break
        return body

    return _retry(url, attempt, lambda: 0, policy, log)


def append_rest(
    url: str,
    size: int,
    partial: FileIO,
    policy: RetryPolicy,
    log: Callable[[str], object],
    progress: Callable[[int], object],
) -> None:
    """Append to `partial` (open in append mode, unbuffered) what it lacks of the `size` bytes at `url`.

    Requests only the missing bytes. Where the server ignores the range or sends another one, the file starts again from
    zero. `log` receives a line for each failure that is retried, `progress` the bytes present. Raises TransferError;
    received bytes stay in `partial` unless they cannot be trusted.
    """
    etag = ""  # not kept between runs: there the md5 shows a changed file

    def attempt() -> None:
        nonlocal etag
        while (have := size_of(partial)) < size:
            headers = {"Range": f"bytes={have}-"} | ({"If-Range": etag} if etag else {}) if have else {}
            with _get(url, policy.timeout, headers) as response:
                end, problem = _end_of_body(response, have, size, etag)
                sent = response.headers.get("ETag", "")
                etag = "" if problem or sent.startswith("W/") else sent
                if have and (problem or response.status_code == 200):
                    partial.truncate(0)
                if problem:
                    raise _Failure(f"{problem}; starting again from zero", 0.0)
                with suppress(ProtocolError):  # the connection broke off; the size shows it
                    # read1 returns what has arrived, so that a break loses none of it.
                    while chunk := response.raw.read1(CHUNK):
                        if size_of(partial) + len(chunk) > end:
                            partial.truncate(0)
                            raise _Failure("sends more bytes than announced; refused")
                        _write(partial, chunk)
                        progress(size_of(partial))
            if (have := size_of(partial)) < end:
                raise _Failure(f"broke off after {have:,} of {size:,} bytes", 0.0)

    _retry(url, attempt, lambda: size_of(partial), policy, log)


@contextmanager
def _get(url: str, timeout: float, headers: dict[str, str] | None = None) -> Iterator[requests.Response]:
    """A response with status 200 or, for a range, 206 or 416, whose body has not been read."""
    with requests.Session() as session:
        session.max_redirects = 10
        session.headers.update({"User-Agent": f"fracray/{__version__}", "Accept-Encoding": "identity"})
        with session.get(url, headers=headers, timeout=timeout, stream=True) as response:
            status = response.status_code
            if status not in ((200, 206, 416) if headers else (200,)):
                raise _Failure(f"HTTP status {status}", _retry_after(response) if status in TRANSIENT else None)
            yield response


def _end_of_body(response: requests.Response, have: int, size: int, etag: str) -> tuple[int, str]:
    """The offset in the file at which the body ends, and what is wrong with it where it does not continue ours."""
    if response.status_code == 416:
        return 0, f"has no bytes after {have:,} (HTTP status 416)"
    text = response.headers.get("Content-Range", "")
    parts = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", text, flags=re.ASCII)
    total = response.headers.get("Content-Length") if response.status_code == 200 else parts and parts[3]
    if total not in (None, "*", str(size)):
        raise _Failure(f"announces {total} bytes where {size} are listed; refused")
    if response.status_code == 200:
        return size, ""
    changed = etag and response.headers.get("ETag", etag) != etag
    if not parts or int(parts[1]) != have or not have <= int(parts[2]) < size or changed:
        return 0, f"sent another range or another file ({text or 'no Content-Range'})"
    return int(parts[2]) + 1, ""


def _write(file: FileIO, data: bytes) -> None:
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as error:
        raise TransferError(f"{file.name}: cannot be written: {error.strerror}") from None


def _retry(
    url: str, attempt: Callable[[], T], received: Callable[[], int], policy: RetryPolicy, log: Callable[[str], object]
) -> T:
    """The result of `attempt`, repeated after growing pauses while it fails in ways that may pass."""
    failures, furthest = 0, received()
    while True:
        try:
            return attempt()
        except _Failure as error:
            problem, asked = str(error), error.pause
        except (requests.RequestException, HTTPError) as error:
            cause: BaseException = error
            while cause.__context__:  # requests wraps urllib3's error, which wraps the socket's
                cause = cause.__context__
            problem, asked = str(cause) or type(cause).__name__, 0.0
            if isinstance(error, requests.TooManyRedirects):
                problem, asked = "redirects in a loop", None
            # A malformed URL, a scheme other than http, a certificate that is not trusted: ValueErrors, all of them.
            elif isinstance(error, ValueError) or isinstance(cause, ValueError):
                asked = None
        if asked is None:
            raise TransferError(f"{url}: {problem}")
        if received() >= furthest + PROGRESS:
            failures, furthest = 0, received()
        failures += 1
        if asked > LONGEST_ASKED:
            raise TransferError(f"{url}: {problem}, and asks to wait {asked:,.0f} s")
        if failures >= policy.attempts:
            raise TransferError(f"{url}: {problem}; given up after {failures} attempts")
        pause = max(asked, min(2.0 ** (failures - 1), LONGEST_PAUSE))
        log(f"{url}: {problem}; next attempt in {pause:.0f} s")
        policy.wait(pause)


def _retry_after(response: requests.Response) -> float:
    """Seconds that the Retry-After header asks for, as a number or a date; 0 where it says neither."""
    try:
        return Retry().parse_retry_after(response.headers.get("Retry-After", ""))
    except (InvalidHeader, ValueError, OverflowError):
        return 0.0
