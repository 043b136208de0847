"""Bytes over HTTP from servers that break off, redirect, stall, are busy or lie about sizes.

Knows requests, ranges and when to try again; must not know what the bytes are for. Imports no Ray.
"""

import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPResponse, InvalidURL
from importlib import metadata
from io import FileIO
from typing import TypeVar
from urllib import request
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

CHUNK = 2**16
MAX_TEXT = 4 * 2**20
PROGRESS = 2**20  # bytes gained that make up for the failures before
LONGEST_PAUSE = 60.0
LONGEST_ASKED = 300.0  # a server that asks for more is left to the user
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})

T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """How often in a row a request may fail, seconds of silence that count as failure, and how to wait."""

    attempts: int = 6
    timeout: float = 60.0
    wait: Callable[[float], None] = time.sleep


class TransferError(Exception):
    """What another try would not mend, or what too many did not."""


class _PassingError(Exception):
    """What another try may mend, after the seconds that the server asks for."""

    def __init__(self, problem: str, asked: float = 0.0) -> None:
        super().__init__(problem)
        self.asked = asked


def is_web(url: str) -> bool:
    """Whether it is an http or https URL with a host."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        return False


def size_of(file: FileIO) -> int:
    """Bytes in an open file."""
    return os.fstat(file.fileno()).st_size


def read_text(url: str, patience: Patience, say: Callable[[str], object]) -> bytes:
    """A short text whole, cut after MAX_TEXT bytes; raises TransferError."""
    opener = _new_opener()

    def attempt() -> bytes:
        with opener.open(url, timeout=patience.timeout) as response:
            if response.status != 200:
                raise _PassingError(f"HTTP status {response.status} without an answer", _retry_after(response))
            body: bytes = response.read(MAX_TEXT)
            announced = response.headers.get("Content-Length", "")
            if announced.isdecimal() and len(body) < min(int(announced), MAX_TEXT):
                raise _PassingError(f"broke off after {len(body):,} bytes")
        return body

    return _patiently(url, attempt, lambda: 0, patience, say)


def append_rest(
    url: str,
    size: int,
    partial: FileIO,
    patience: Patience,
    say: Callable[[str], object],
    step: Callable[[int], object],
) -> None:
    """Bring `partial`, opened to append and unbuffered, to the `size` bytes that `url` is known to have.

    Asks for the missing bytes alone; where the server ignores that or sends others, the file begins anew. `say` takes
    a line on each failure that may pass, `step` the bytes there are. Raises TransferError; what came stays in
    `partial`, unless it cannot be trusted.
    """
    transfer = _Transfer(url, size, partial, patience.timeout, step)
    _patiently(url, transfer.go_on, lambda: size_of(partial), patience, say)


def _new_opener() -> request.OpenerDirector:
    opener = request.OpenerDirector()  # not build_opener, which would also follow to file: and ftp:
    for handler in (
        request.ProxyHandler,
        request.HTTPHandler,
        request.HTTPSHandler,
        request.HTTPDefaultErrorHandler,
        request.HTTPRedirectHandler,  # follows ten redirects, and none more than four times
        request.HTTPErrorProcessor,
        request.UnknownHandler,
    ):
        opener.add_handler(handler())
    opener.addheaders = [("User-Agent", f"fracray/{metadata.version('fracray')}")]
    return opener


class _Transfer:
    """The rest of one file, request by request, onto the end of `partial`."""

    def __init__(
        self,
        url: str,
        size: int,
        partial: FileIO,
        timeout: float,
        step: Callable[[int], object],
    ) -> None:
        self._opener = _new_opener()
        self._url, self._size, self._partial, self._timeout, self._step = url, size, partial, timeout, step
        self._etag = ""  # of this process only: between runs the md5 tells

    def go_on(self) -> None:
        """Append what is missing; raises _PassingError where the body ended early."""
        while (have := size_of(self._partial)) < self._size:
            asked = request.Request(self._url)
            if have:
                asked.add_header("Range", f"bytes={have}-")
                if self._etag:
                    asked.add_header("If-Range", self._etag)
            with self._open(asked, have) as response:
                end = self._check(response, have)
                etag = response.headers.get("ETag", "")
                self._etag = "" if etag.startswith("W/") else etag
                self._append(response, end)

    def _open(self, asked: request.Request, have: int) -> HTTPResponse:
        try:
            response: HTTPResponse = self._opener.open(asked, timeout=self._timeout)
        except HTTPError as error:
            if error.code != 416 or not have:
                raise
            error.close()
            self._begin_anew()
            raise _PassingError(f"has no bytes after {have:,} (HTTP status 416); beginning anew") from None
        return response

    def _check(self, response: HTTPResponse, have: int) -> int:
        """Where in the file the body that follows will end; the partial file is emptied where it begins anew."""
        if response.status == 202:
            raise _PassingError("HTTP status 202 without the file", _retry_after(response))
        if response.status == 206:
            return self._check_range(response, have)
        if response.status != 200:
            raise TransferError(f"{self._url}: answered with HTTP status {response.status}")
        announced = response.headers.get("Content-Length")
        if announced is not None and announced != str(self._size):
            raise TransferError(f"{self._url}: announces {announced} bytes where {self._size} are listed; refused")
        self._begin_anew()  # no range was asked for, or the server ignores it
        return self._size

    def _check_range(self, response: HTTPResponse, have: int) -> int:
        text = response.headers.get("Content-Range", "")
        parts = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", text, flags=re.ASCII)
        if parts and parts[3] not in ("*", str(self._size)):
            raise TransferError(f"{self._url}: announces {parts[3]} bytes where {self._size} are listed; refused")
        changed = self._etag and response.headers.get("ETag", self._etag) != self._etag
        if not parts or int(parts[1]) != have or not have <= int(parts[2]) < self._size or changed:
            self._begin_anew()
            self._etag = ""
            raise _PassingError(f"sent another range or another file ({text or 'no Content-Range'}); beginning anew")
        return int(parts[2]) + 1

    def _begin_anew(self) -> None:
        if size_of(self._partial):
            self._partial.truncate(0)

    def _append(self, response: HTTPResponse, end: int) -> None:
        # read1 hands over what has arrived, so that a break loses nothing of it.
        while chunk := response.read1(CHUNK):
            if size_of(self._partial) + len(chunk) > end:
                self._begin_anew()
                raise TransferError(f"{self._url}: sends more bytes than announced; refused")
            rest = memoryview(chunk)
            while rest:
                try:
                    rest = rest[self._partial.write(rest) :]
                except OSError as error:
                    raise TransferError(f"{self._partial.name}: cannot be written: {error.strerror}") from None
            self._step(size_of(self._partial))
        if (have := size_of(self._partial)) < end:
            raise _PassingError(f"broke off after {have:,} of {self._size:,} bytes")


def _patiently(
    url: str, attempt: Callable[[], T], got: Callable[[], int], patience: Patience, say: Callable[[str], object]
) -> T:
    """The result of `attempt`, tried again after ever longer pauses while failures may pass and are not too many."""
    failures, furthest = 0, got()
    while True:
        try:
            return attempt()
        except _PassingError as error:
            problem, asked = str(error), error.asked
        except HTTPError as error:
            error.close()
            problem, asked = f"HTTP status {error.code}", _retry_after(error)
            if error.code < 400:
                problem = f"redirects in a loop or to nowhere ({problem})"
            if error.code not in PASSING:
                raise TransferError(f"{url}: {problem}") from None
        except (OSError, HTTPException, ValueError) as error:
            reason = error.reason if isinstance(error, URLError) else error
            problem, asked = str(reason) or type(reason).__name__, 0.0
            # A malformed URL, a scheme we do not follow, a certificate that is not trusted (a ValueError, too).
            if isinstance(reason, InvalidURL | ValueError | str):
                raise TransferError(f"{url}: {problem}") from None
        if got() >= furthest + PROGRESS:
            failures, furthest = 0, got()
        failures += 1
        if asked > LONGEST_ASKED:
            raise TransferError(f"{url}: {problem}, and asks to wait {asked:,.0f} s")
        if failures >= patience.attempts:
            raise TransferError(f"{url}: {problem}; given up after {failures} attempts")
        pause = max(asked, min(2.0 ** (failures - 1), LONGEST_PAUSE))
        say(f"{url}: {problem}; again in {pause:.0f} s")
        patience.wait(pause)


def _retry_after(response: HTTPResponse | HTTPError) -> float:
    """Seconds that the Retry-After header asks for, given as such or as a date; 0 for none that can be read."""
    value = response.headers.get("Retry-After", "")
    if re.fullmatch(r"\d{1,9}", value.strip(), flags=re.ASCII):
        return float(value)
    with suppress(ValueError, OverflowError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return 0.0
