"""FracAtlas downloaded from a real HTTP server on loopback that breaks off, redirects, stalls or sends wrong data."""

import hashlib
import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from fracray.data import __main__ as data
from fracray.data.sources.download import download
from fracray.data.sources.http import CHUNK, PROGRESS, RetryPolicy
from fracray.data.sources.releases import DOI, RELEASES, Release
from fracray.errors import InputError, RunError, run_verb

CONTENT = bytes(range(256)) * 1200 + b"the end"  # several chunks, and no round number
HALF = len(CONTENT) // 2


def md5(content):
    return hashlib.md5(content).hexdigest()


# ---------------------------------------------------------------- figshare


class Figshare:
    """An article of one file. `script` holds what happens on the next requests for the file, `listings` for the API."""

    def __init__(self):
        self.content, self.md5, self.etag = CONTENT, md5(CONTENT), '"one"'
        self.size = len(CONTENT)
        self.script, self.listings = [], []
        self.asked = []  # (path, Range, If-Range)
        self.sent = 0  # bytes of the file
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def answer(self, request):
        self.asked.append((request.path, request.headers.get("Range"), request.headers.get("If-Range")))
        plan = self.script if request.path.startswith("/file") else self.listings
        act = plan.pop(0) if plan else (self.complete if plan is self.script else self.listing)
        act(request)

    def reply(self, request, status, body=b"", cut=None, **headers):
        """Headers that announce `body`, unless they say otherwise, and the first `cut` bytes of it."""
        request.send_response(status)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in ({"Content-Length": len(body)} | named).items():
            if value is not None:
                request.send_header(name, str(value))
        request.end_headers()
        request.wfile.write(body[:cut])
        if request.path.startswith("/file") and status in (200, 206):
            self.sent += len(body[:cut])

    def listing(self, request):
        others = {"name": "README.txt", "size": 3, "supplied_md5": "0" * 32, "download_url": f"{self.url}/readme"}
        ours = {"name": "FracAtlas.zip", "size": self.size, "supplied_md5": self.md5, "computed_md5": ""}
        self.reply(request, 200, json.dumps({"files": [others, ours | {"download_url": f"{self.url}/file"}]}).encode())

    def complete(self, request, cut=None, **headers):
        """The file or the range of it that was asked for, as a good server sends it."""
        start = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        if start is None or request.headers.get("If-Range", self.etag) != self.etag:
            return self.reply(request, 200, self.content, cut, **({"ETag": self.etag} | headers))
        first, size = int(start[1]), len(self.content)
        if first >= size:
            return self.reply(request, 416, Content_Range=f"bytes */{size}")
        given = {"ETag": self.etag, "Content_Range": f"bytes {first}-{size - 1}/{size}"}
        return self.reply(request, 206, self.content[first:], cut, **(given | headers))

    def breaking_off(self, cut=HALF):
        return lambda request: self.complete(request, cut)

    def ignoring_ranges(self, cut=None):
        return lambda request: self.reply(request, 200, self.content, cut)

    def status(self, code, **headers):
        return lambda request: self.reply(request, code, **headers)

    def sending(self, body, status=200, **headers):
        return lambda request: self.reply(request, status, body, **headers)

    def to(self, location):
        return lambda request: self.reply(request, 302, Location=location)

    @property
    def ranges(self):
        """The Range header of each request for the file."""
        return [asked for path, asked, _ in self.asked if path.startswith("/file")]


@pytest.fixture
def figshare(monkeypatch):
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    server = Figshare()
    yield server
    server.close()


@pytest.fixture
def waits():
    return []


@pytest.fixture
def said():
    return StringIO()


@pytest.fixture
def fetch(figshare, waits, said, tmp_path):
    """Downloads to FracAtlas.zip, with pauses written down and not waited for."""

    def run(to=None, attempts=4, version=7, size=None, timeout=5.0):
        release = Release(version, md5(CONTENT), size)
        policy = RetryPolicy(attempts=attempts, timeout=timeout, wait=waits.append)
        return download(to or tmp_path / "FracAtlas.zip", release, Console(file=said), figshare.url, policy)

    return run


def left(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def fails(fetch, words, **how):
    with pytest.raises(RunError) as error:
        fetch(**how)
    message = str(error.value)
    assert words in message
    assert "run the same command again" in message
    assert DOI in message
    return message


# ---------------------------------------------------------------- all goes well


@pytest.mark.parametrize("version", [6, 7])
def test_the_file_arrives_complete_under_its_name(fetch, figshare, tmp_path, waits, version):
    assert fetch(version=version, size=len(CONTENT)) == tmp_path / "FracAtlas.zip"
    assert left(tmp_path) == {"FracAtlas.zip": CONTENT}
    assert figshare.asked == [(f"/versions/{version}", None, None), ("/file", None, None)]
    assert not waits


@pytest.mark.parametrize("to", ["there", "new/", "new/deep/"])
def test_in_a_folder_it_gets_the_name_of_the_archive(fetch, tmp_path, to):
    (tmp_path / "there").mkdir()
    assert fetch(f"{tmp_path}/{to}") == tmp_path / to / "FracAtlas.zip"
    assert left(tmp_path / to) == {"FracAtlas.zip": CONTENT}


def test_a_correct_file_is_not_fetched_again(fetch, figshare, tmp_path):
    fetch()
    figshare.asked.clear()
    before = (tmp_path / "FracAtlas.zip").stat().st_mtime_ns
    assert fetch() == tmp_path / "FracAtlas.zip"
    assert figshare.asked == []
    assert (tmp_path / "FracAtlas.zip").stat().st_mtime_ns == before


@pytest.mark.parametrize("content", [b"", b"a thesis", CONTENT[:-1], CONTENT[:-1] + b"!"])
def test_another_file_of_that_name_is_left_alone(fetch, figshare, tmp_path, content):
    (tmp_path / "FracAtlas.zip").write_bytes(content)
    with pytest.raises(InputError, match=r"FracAtlas\.zip: exists already and is not FracAtlas version 7"):
        fetch()
    assert left(tmp_path) == {"FracAtlas.zip": content}
    assert figshare.asked == []


def test_the_published_releases():
    assert RELEASES[7] == Release(7, "fe9da2c7c285915ebee69dfdab8fd396", 338_436_460)
    assert RELEASES[6].md5 == "931dd40ad6e070bb0724d66cfbbef9f0"


# ---------------------------------------------------------------- broken off and resumed


def test_a_download_that_breaks_off_asks_only_for_the_rest(fetch, figshare, tmp_path, waits):
    figshare.script = [figshare.breaking_off(), figshare.breaking_off(1000)]
    fetch()
    assert left(tmp_path) == {"FracAtlas.zip": CONTENT}
    assert figshare.ranges == [None, f"bytes={HALF}-", f"bytes={HALF + 1000}-"]
    assert [etag for *_, etag in figshare.asked[1:]] == [None, '"one"', '"one"']
    assert figshare.sent == len(CONTENT)
    assert waits == [1, 2]


def test_a_later_run_resumes_from_the_partial_file(fetch, figshare, tmp_path):
    figshare.script = [figshare.breaking_off()]
    message = fails(fetch, f"broke off after {HALF:,} of {len(CONTENT):,} bytes", attempts=1)
    assert f"continues from the {HALF:,} bytes in {tmp_path}/FracAtlas.zip.partial" in message
    assert left(tmp_path) == {"FracAtlas.zip.partial": CONTENT[:HALF]}
    fetch()
    assert left(tmp_path) == {"FracAtlas.zip": CONTENT}
    assert figshare.ranges == [None, f"bytes={HALF}-"]
    assert figshare.sent == len(CONTENT)


def test_a_connection_that_is_reset_is_resumed(fetch, figshare, tmp_path):
    def reset(request):
        figshare.complete(request, HALF)
        request.wfile.flush()
        request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.connection.close()

    figshare.script = [reset]
    fetch()
    assert left(tmp_path) == {"FracAtlas.zip": CONTENT}
    assert len(figshare.ranges) == 2  # from wherever the reset overtook the bytes


def test_a_server_that_falls_silent_is_asked_again(fetch, figshare, tmp_path):
    done = threading.Event()

    def stall(request):
        figshare.complete(request, HALF)
        request.wfile.flush()
        done.wait(10)

    figshare.script = [stall]
    try:
        fetch(timeout=0.5)
    finally:
        done.set()
    assert left(tmp_path) == {"FracAtlas.zip": CONTENT}
    assert figshare.ranges == [None, f"bytes={HALF}-"]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_without_length_that_ends_early_is_resumed(fetch, figshare, tmp_path, chunked):
    head = b"%x\r\n" % len(CONTENT) if chunked else b""
    encoding = {"Transfer_Encoding": "chunked" if chunked else None}
    figshare.script = [figshare.sending(head + CONTENT[:HALF], Content_Length=None, **encoding)]
    fetch()
    assert left(tmp_path) == {"FracAtlas.zip": CONTENT}
    assert figshare.ranges == [None, f"bytes={HALF}-"]


def test_a_range_shorter_than_asked_for_is_followed_by_the_next(fetch, figshare, tmp_path, waits):
    (tmp_path / "FracAtlas.zip.partial").write_bytes(CONTENT[:10])
    piece = {"status": 206, "Content_Range": f"bytes 10-29/{len(CONTENT)}"}
    figshare.script = [figshare.sending(CONTENT[10:30], **piece)]
    fetch()
    assert left(tmp_path) == {"FracAtlas.zip": CONTENT}
    assert figshare.ranges == ["bytes=10-", "bytes=30-"]
    assert not waits


def test_a_server_that_ignores_ranges_starts_from_zero(fetch, figshare, tmp_path):
    figshare.script = [figshare.breaking_off(), figshare.ignoring_ranges()]
    fetch()
    assert left(tmp_path) == {"FracAtlas.zip": CONTENT}
    assert figshare.ranges == [None, f"bytes={HALF}-"]


def test_a_server_that_ignores_ranges_and_always_breaks_off_is_given_up(fetch, figshare, tmp_path):
    figshare.script = [figshare.ignoring_ranges(HALF)] * 50
    fails(fetch, "given up after 4 attempts")
    assert len(figshare.ranges) == 4
    assert left(tmp_path) == {"FracAtlas.zip.partial": CONTENT[:HALF]}


@pytest.mark.parametrize(
    "given",
    [
        {"Content_Range": f"bytes 0-{len(CONTENT) - 1}/{len(CONTENT)}"},
        {"Content_Range": f"bytes {HALF + 1}-{len(CONTENT) - 1}/*"},
        {"Content_Range": f"bytes {HALF}-{len(CONTENT)}/*"},
        {"Content_Range": f"bytes {HALF}-{HALF - 1}/*"},
        {"Content_Range": "bytes */*"},
        {"Content_Range": None},
        {"ETag": '"two"'},
    ],
    ids=["from 0", "one late", "beyond the end", "end before start", "no numbers", "no header", "another file"],
)
def test_a_range_that_was_not_asked_for_is_not_mixed_in(fetch, figshare, tmp_path, given):
    figshare.script = [figshare.breaking_off(), lambda request: figshare.complete(request, **given)]
    fetch()
    assert left(tmp_path) == {"FracAtlas.zip": CONTENT}
    assert figshare.ranges == [None, f"bytes={HALF}-", None]


def test_a_file_that_changed_on_the_server_starts_from_zero(fetch, figshare, tmp_path):
    def then_changes(request):
        figshare.content = b"x" * len(CONTENT)
        figshare.complete(request, HALF)
        figshare.content, figshare.etag = CONTENT, '"two"'

    figshare.script = [then_changes]
    fetch()
    assert left(tmp_path) == {"FracAtlas.zip": CONTENT}
    assert figshare.ranges == [None, f"bytes={HALF}-"]  # If-Range: the server itself sends the complete file


def test_a_weak_etag_is_not_sent_back(fetch, figshare, tmp_path):
    figshare.etag = 'W/"one"'
    figshare.script = [figshare.breaking_off()]
    fetch()
    assert [etag for *_, etag in figshare.asked] == [None, None, None]
    assert figshare.sent == len(CONTENT)


def test_a_complete_partial_file_needs_no_request(fetch, figshare, tmp_path):
    (tmp_path / "FracAtlas.zip.partial").write_bytes(CONTENT)
    fetch()
    assert left(tmp_path) == {"FracAtlas.zip": CONTENT}
    assert figshare.ranges == []


def test_a_partial_file_that_is_too_long_is_deleted(fetch, figshare, tmp_path):
    (tmp_path / "FracAtlas.zip.partial").write_bytes(CONTENT + b"!")
    fetch()
    assert left(tmp_path) == {"FracAtlas.zip": CONTENT}
    assert figshare.ranges == [None]


def test_progress_resets_the_count_of_failures(fetch, figshare, tmp_path, monkeypatch):
    """Ten breaks with two attempts: each gains enough bytes to reset the count."""
    monkeypatch.setattr("fracray.data.sources.http.PROGRESS", CHUNK // 4)
    figshare.script = [figshare.breaking_off(CHUNK // 4)] * 10
    fetch(attempts=2)
    assert left(tmp_path) == {"FracAtlas.zip": CONTENT}
    assert len(figshare.ranges) == 11


def test_a_few_bytes_do_not_reset_the_count_of_failures(fetch, figshare):
    assert len(CONTENT) < PROGRESS
    figshare.script = [figshare.breaking_off(10)] * 50
    fails(fetch, "broke off after 40 of")
    assert len(figshare.ranges) == 4


# ---------------------------------------------------------------- redirects


def test_redirects_are_followed_and_a_range_with_them(fetch, figshare, tmp_path):
    (tmp_path / "FracAtlas.zip.partial").write_bytes(CONTENT[:HALF])
    figshare.script = [figshare.to("/file/signed"), figshare.to(f"{figshare.url}/file/again")]
    fetch()
    assert left(tmp_path) == {"FracAtlas.zip": CONTENT}
    assert [path for path, *_ in figshare.asked[1:]] == ["/file", "/file/signed", "/file/again"]
    assert figshare.ranges == [f"bytes={HALF}-"] * 3


def test_a_redirect_in_a_loop_is_an_error(fetch, figshare, tmp_path, waits):
    figshare.script = [figshare.to("/file"), figshare.to("/file/b")] * 50
    fails(fetch, f"{figshare.url}/file: redirects in a loop")
    assert 1 < len(figshare.ranges) < 15
    assert left(tmp_path) == {}
    assert not waits


@pytest.mark.parametrize("place", ["file://{}", "ftp://127.0.0.1{}", "data:,radiograph", "http:///nowhere"])
def test_a_redirect_to_another_scheme_is_not_followed(fetch, figshare, tmp_path, place, waits):
    secret = tmp_path / "secret"
    secret.write_bytes(CONTENT)
    figshare.script = [figshare.to(place.format(secret))]
    fails(fetch, f"{figshare.url}/file: ")
    assert left(tmp_path) == {"secret": CONTENT}
    assert not waits


# ---------------------------------------------------------------- wrong sizes and content


@pytest.mark.parametrize("change", [-1000, 1000], ids=["shorter", "longer"])
def test_a_body_that_is_not_as_long_as_listed_is_refused(fetch, figshare, tmp_path, change, waits):
    (tmp_path / "FracAtlas.zip.partial").write_bytes(CONTENT[:HALF])
    figshare.content = (CONTENT + bytes(1000))[: len(CONTENT) + change]
    words = f"announces {len(CONTENT) + change} bytes where {len(CONTENT)} are listed"
    fails(fetch, words)  # by Content-Range
    figshare.script = [figshare.ignoring_ranges()]
    fails(fetch, words)  # by Content-Length
    assert left(tmp_path) == {"FracAtlas.zip.partial": CONTENT[:HALF]}
    assert not waits


def test_a_body_longer_than_its_server_says_is_refused(fetch, figshare, tmp_path):
    figshare.script = [figshare.sending(CONTENT + b"!", Content_Length=None)]
    fails(fetch, "sends more bytes than announced")
    assert left(tmp_path) == {}


def test_bytes_after_the_announced_ones_are_not_read(fetch, figshare, tmp_path):
    figshare.script = [figshare.sending(CONTENT + b"!" * 1000, Content_Length=len(CONTENT))]
    fetch()
    assert left(tmp_path) == {"FracAtlas.zip": CONTENT}


def test_a_server_with_fewer_bytes_than_listed_is_refused(fetch, figshare, tmp_path):
    """Status 416 for the rest: the partial file cannot be trusted, and the next request shows the wrong size."""
    (tmp_path / "FracAtlas.zip.partial").write_bytes(CONTENT[:HALF])
    figshare.content = CONTENT[:HALF]
    fails(fetch, f"announces {HALF} bytes where {len(CONTENT)} are listed")
    assert figshare.ranges == [f"bytes={HALF}-", None]
    assert left(tmp_path) == {}


def test_a_wrong_md5_leaves_nothing(fetch, figshare, tmp_path):
    figshare.content = CONTENT[:-1] + b"!"
    message = fails(fetch, f"md5 is {md5(figshare.content)}, not {md5(CONTENT)}")
    assert "continues from" not in message
    assert left(tmp_path) == {}
    figshare.content = CONTENT
    fetch()
    assert left(tmp_path) == {"FracAtlas.zip": CONTENT}


def test_a_listing_of_another_size_than_published_is_refused(fetch, figshare, tmp_path):
    fails(fetch, f"lists {len(CONTENT):,} bytes, which is not what was published", size=len(CONTENT) + 1)
    assert figshare.ranges == []
    assert left(tmp_path) == {}


def test_a_file_larger_than_the_disk_is_not_started(fetch, figshare, tmp_path):
    figshare.size = 10**18
    fails(fetch, "1,000,000,000,000,000,000 bytes to download to a disk with")
    assert figshare.ranges == []
    assert left(tmp_path) == {}


@pytest.mark.parametrize(
    ("listing", "words"),
    [
        (b"<html>", "not a listing of files; is it figshare's API?"),
        (b'{"files": 3}', "not a listing of files"),
        (b'{"files": ["a"]}', "not a listing of files"),
        (b"[" * 100_000, "not a listing of files"),
        (b" " * 5_000_000, "not a listing of files"),
        (b'{"files": []}', "lists no file with the md5"),
        (b'{"files": [{"supplied_md5": "MD5"}]}', "not a listing of files"),
        (b'{"files": [{"computed_md5": "MD5", "size": -5, "download_url": "http://h"}]}', "lists -5 bytes"),
        (b'{"files": [{"computed_md5": "MD5", "size": 5, "download_url": "file:///etc/passwd"}]}', "not an http or"),
        (b'{"files": [{"computed_md5": "MD5", "size": 5, "download_url": "http://[/"}]}', "not an http or"),
        (
            b'{"files": [{"computed_md5": "MD5", "size": 5, "download_url": "http://127.0.0.1:x/"}]}',
            "not a valid host or port",
        ),
        (b'{"files": [{"computed_md5": "MD5", "size": 5, "download_url": "http://.127.0.0.1/"}]}', "invalid label"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_an_invalid_listing_is_refused(fetch, figshare, tmp_path, listing, words, waits):
    figshare.listings = [figshare.sending(listing.replace(b"MD5", md5(CONTENT).encode()))]
    fails(fetch, words)
    assert left(tmp_path) == {}
    assert not waits


# ---------------------------------------------------------------- busy, refusing, unreachable


@pytest.mark.parametrize("code", [202, 429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(fetch, figshare, tmp_path, waits, said, code):
    figshare.script = [figshare.status(code)] * 2
    fetch()
    assert left(tmp_path) == {"FracAtlas.zip": CONTENT}
    assert waits == [1, 2]
    assert said.getvalue().count(f"HTTP status {code}") == 2


@pytest.mark.parametrize("code", [202, 500])
def test_a_busy_api_is_asked_again(fetch, figshare, tmp_path, waits, code):
    figshare.listings = [figshare.status(code), lambda request: figshare.reply(request, 200, b'{"files": []}', cut=5)]
    fetch()
    assert left(tmp_path) == {"FracAtlas.zip": CONTENT}
    assert waits == [1, 2]


@pytest.mark.parametrize("code", [202, 429, 503])
def test_the_pause_that_a_server_asks_for_is_kept(fetch, figshare, waits, code):
    figshare.script = [
        figshare.status(code, Retry_After="7"),
        figshare.status(code, Retry_After="0"),
        figshare.status(code, Retry_After="soon"),
    ]
    fetch()
    assert waits == [7, 2, 4]


def test_a_pause_until_a_date_is_kept(fetch, figshare, waits):
    figshare.script = [figshare.status(503, Retry_After=formatdate(time.time() + 100, usegmt=True))]
    fetch()
    assert len(waits) == 1
    assert 90 < waits[0] <= 100


def test_a_pause_that_is_too_long_ends_the_download(fetch, figshare, waits):
    figshare.script = [figshare.status(429, Retry_After="3600")]
    fails(fetch, "HTTP status 429, and asks to wait 3,600 s")
    assert not waits


def test_a_server_that_stays_busy_is_given_up(fetch, figshare, tmp_path, waits):
    figshare.script = [figshare.breaking_off(), *[figshare.status(503)] * 50]
    fails(fetch, "HTTP status 503; given up after 10 attempts", attempts=10)
    assert len(figshare.ranges) == 10
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert left(tmp_path) == {"FracAtlas.zip.partial": CONTENT[:HALF]}


@pytest.mark.parametrize("code", [204, 400, 403, 404, 410])
def test_a_server_that_refuses_is_not_asked_again(fetch, figshare, tmp_path, waits, code):
    figshare.script = [figshare.status(code)]
    fails(fetch, f"{figshare.url}/file: ")
    assert len(figshare.ranges) == 1
    assert left(tmp_path) == {}
    assert not waits


def test_an_unreachable_server_is_named(fetch, figshare, tmp_path, waits):
    with socket.socket() as taken:  # bound and not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        figshare.url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        fails(fetch, f"{figshare.url}/versions/7: [Errno 111] Connection refused; given up after 4 attempts")
    assert left(tmp_path) == {}
    assert waits == [1, 2, 4]


# ---------------------------------------------------------------- the disk and the command


def test_a_full_disk_is_named(fetch, figshare, tmp_path):
    (tmp_path / "FracAtlas.zip.partial").symlink_to("/dev/full")
    fails(fetch, "FracAtlas.zip.partial: cannot be written: No space left on device")
    assert left(tmp_path) == {}


def test_a_place_that_cannot_be_written_is_refused(fetch, figshare, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InputError, match=r"--to .*file/FracAtlas\.zip: cannot be written"):
        fetch(tmp_path / "file" / "FracAtlas.zip")
    assert figshare.asked == []


def test_two_downloads_do_not_write_one_file(fetch, figshare, tmp_path):
    refused = []

    def meanwhile(request):
        try:
            fetch()
        except InputError as error:
            refused.append(str(error))
        figshare.complete(request)

    figshare.script = [meanwhile]
    fetch()
    assert len(refused) == 1
    assert "another download is writing it" in refused[0]
    assert left(tmp_path) == {"FracAtlas.zip": CONTENT}


def test_ctrl_c_keeps_the_received_bytes_and_says_so(figshare, tmp_path, said):
    def interrupt(seconds):
        raise KeyboardInterrupt

    figshare.script = [figshare.breaking_off()]
    policy = RetryPolicy(wait=interrupt)
    with pytest.raises(KeyboardInterrupt):
        download(tmp_path / "a.zip", Release(7, md5(CONTENT)), Console(file=said), figshare.url, policy)
    assert left(tmp_path) == {"a.zip.partial": CONTENT[:HALF]}
    assert f"run the same command again; it continues from the {HALF:,} bytes" in said.getvalue()


def test_a_terminal_shows_bytes_speed_and_the_time_left(figshare, tmp_path):
    screen = StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    download(tmp_path / "a.zip", Release(7, md5(CONTENT)), console, figshare.url)
    shown = screen.getvalue()
    assert "FracAtlas v7" in shown
    assert "307.2/307.2 kB" in shown
    assert re.search(r"\d:\d\d:\d\d|-:--:--", shown)


def test_the_command_downloads_and_says_what_comes_next(figshare, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(RELEASES, 6, Release(6, md5(CONTENT)))
    words = ["download", "--to", str(tmp_path), "--version", "6", "--api", figshare.url]
    assert run_verb(data.main, words) == 0
    assert left(tmp_path) == {"FracAtlas.zip": CONTENT}
    out = capsys.readouterr().out
    assert "complete and verified" in out
    assert f"python -m fracray.data check {tmp_path}/FracAtlas.zip\n" in out
    assert run_verb(data.main, words) == 0
    assert len(figshare.ranges) == 1


def test_the_command_fails_with_one_line(figshare, tmp_path, capsys):
    figshare.listings = [figshare.status(404)]
    assert run_verb(data.main, ["download", "--to", str(tmp_path / "a.zip"), "--api", f"{figshare.url}/x/"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"failed: {figshare.url}/x/versions/7: HTTP status 404; ")
    assert error.count("\n") == 1
    assert left(tmp_path) == {}


@pytest.mark.parametrize("api", ["figshare", "file:///etc/passwd", "http://", "ftp://127.0.0.1/x", "http://[x"])
def test_an_api_that_is_no_web_address_is_refused(tmp_path, capsys, api):
    assert run_verb(data.main, ["download", "--to", str(tmp_path / "a.zip"), "--api", api]) == 2
    assert f"--api {api}: not an http or https URL" in capsys.readouterr().err
    assert left(tmp_path) == {}


def test_a_version_that_is_not_known_is_refused(capsys):
    with pytest.raises(SystemExit) as end:
        run_verb(data.main, ["download", "--to", "x", "--version", "5"])
    assert end.value.code == 2
    assert "--version" in capsys.readouterr().err


def test_no_ray_is_needed():
    script = "import sys, fracray.data.sources.download; sys.exit('ray' in sys.modules or 'torch' in sys.modules)"
    root = Path(__file__).parent.parent.parent.parent
    assert subprocess.run([sys.executable, "-c", script], check=False, cwd=root).returncode == 0
