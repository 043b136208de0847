"""Answers of fracray.serve that nobody reads, or slowly: they count as requests, and end where nothing is taken."""

import contextlib
import signal
import socket
import time

import cv2
import httpx
import numpy as np
import pytest
from served import served, tiny_checkpoint

SECONDS = 2.0  # --timeout
QUEUE = 2
SIDE = 3000  # its answer of 18 megabytes is more than the kernel takes for a connection


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    checkpoint = tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "t0001")
    with served(checkpoint, "--timeout", SECONDS, "--queue", QUEUE, "--decoders", 1) as running:
        yield running


@pytest.fixture(scope="module")
def wide():
    """A picture, and its file."""
    gray = np.add.outer(np.arange(SIDE), np.arange(SIDE)).astype(np.uint8)
    return gray, cv2.imencode(".png", gray)[1].tobytes()


@pytest.fixture
def connect(server):
    """Makes connections that take little by themselves."""
    url, opened = httpx.URL(server.url), []

    def make():
        one = socket.socket()
        opened.append(one)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
        one.settimeout(60)
        one.connect((url.host, url.port))
        return one

    yield make
    for one in opened:
        one.close()


def asked(server, data):
    """The bytes of a request for the picture in a file."""
    request = httpx.Request("POST", f"{server.url}/picture", files={"files": ("a.png", data)})
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    return f"POST /picture HTTP/1.1\r\nConnection: close\r\n{head}\r\n".encode() + request.read()


def rest_of(connection):
    """What comes until the server closes the connection."""
    parts = []
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(2**20):
            parts.append(part)
    return b"".join(parts)


def here(server):
    with server.client() as client:
        lines = client.get("/metrics").text.splitlines()
        return float(dict(line.rsplit(" ", 1) for line in lines)["fracray_requests_here"])


def wait(found):
    end = time.monotonic() + 30
    while not found():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.1)


def test_unread_answers_fill_the_queue_and_are_ended(server, connect, wide):
    connections = [connect() for _ in range(QUEUE)]
    for one in connections:
        one.sendall(asked(server, wide[1]))
    heads = [one.recv(9) for one in connections]
    assert heads == [b"HTTP/1.1 "] * QUEUE
    assert here(server) == QUEUE
    with server.client() as client:
        refused = client.post("/picture", files={"files": ("a.png", wide[1])})
        assert refused.status_code == 429
        assert "--queue" in refused.json()["error"]
        wait(lambda: here(server) == 0)
        assert all(len(rest_of(one)) < 2 * SIDE**2 for one in connections)
        assert client.post("/picture", files={"files": ("a.png", wide[1])}).status_code == 200


def test_who_has_gone_is_here_no_more(server, connect, wide):
    one = connect()
    one.sendall(asked(server, wide[1]))
    one.recv(9)
    assert here(server) == 1
    gone = time.monotonic()
    one.close()
    wait(lambda: here(server) == 0)
    assert time.monotonic() - gone < SECONDS


def test_who_takes_an_answer_slowly_gets_it_all(server, connect, wide):
    gray, data = wide
    slow = connect()
    slow.sendall(asked(server, data))
    taken = [slow.recv(2**16)]
    end = time.monotonic() + 4 * SECONDS
    while time.monotonic() < end:  # far less than the kernel holds
        time.sleep(SECONDS / 8)
        taken.append(slow.recv(2**16))
    assert here(server) == 1
    body = b"".join([*taken, rest_of(slow)]).partition(b"\r\n\r\n")[2]
    assert np.array_equal(np.frombuffer(body, "<u2").reshape(gray.shape), gray)


def test_files_of_the_page_that_nobody_reads_are_ended_too(server, connect):
    one, count = connect(), 4000
    one.sendall(f"GET /viewer.js HTTP/1.1\r\nHost: {httpx.URL(server.url).host}\r\n\r\n".encode() * count)
    time.sleep(4 * SECONDS)
    with server.client() as client:
        whole = len(client.get("/viewer.js").content) * count
    assert len(rest_of(one)) < whole


def test_a_stop_says_that_a_request_got_no_answer(server, connect, wide):
    """The last test of this server."""
    slow, taken = connect(), 0
    slow.sendall(asked(server, wide[1]))
    slow.recv(2**16)
    server.process.send_signal(signal.SIGTERM)
    with contextlib.suppress(ConnectionError):
        while part := slow.recv(2**16):
            taken += len(part)
            time.sleep(SECONDS / 8)
    assert taken < 2 * SIDE**2
    assert server.end() == 0
    assert server.lines[-1] == f"stopped; 1 request got no answer within {SECONDS + 1:g} s\n"
    assert not any("Traceback" in line for line in server.lines)
