"""A proxy on loopback in front of an object store that breaks requests by a plan, as networks and stores do.

Knows HTTP, and of S3 only its two error responses.
"""

import http.client
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# What may happen to a request: an error of the store; "too many requests"; the connection breaks before the request
# arrives, or after that, so that only the response is lost; half of the response's body arrives; the response is late,
# or never comes.
INTERNAL, SLOW_DOWN, RESET, LOST, CUT, LATE, HANG = "500", "503", "reset", "lost", "cut", "late", "hang"
LATE_SECONDS = 1.0
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "date", "server"}
CODES = {INTERNAL: (500, "InternalError"), SLOW_DOWN: (503, "SlowDown")}


@dataclass
class Fault:
    """The fault of the next `times` requests whose `METHOD path?query` matches the pattern; None for all of them.

    share: the probability that a matching request has the fault.
    """

    kind: str
    times: int | None = 1
    pattern: str = ""
    share: float = 1.0
    struck: int = 0


@dataclass
class Proxy:
    """A running proxy: its port, its plan, and the requests so far."""

    port: int
    plan: list[Fault] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)  # requests by method
    struck: Counter[str] = field(default_factory=Counter)  # requests with a fault, by kind
    draws: random.Random = field(default_factory=lambda: random.Random(0))
    lock: threading.Lock = field(default_factory=threading.Lock)
    ended: threading.Event = field(default_factory=threading.Event)

    def uri(self, path: str) -> str:
        return f"s3://{path}?endpoint_override=127.0.0.1:{self.port}&scheme=http&region=us-east-1"

    def verdict(self, request: str) -> str | None:
        """The kind of fault of this request; None for no fault."""
        with self.lock:
            self.seen[request.partition(" ")[0]] += 1
            for fault in self.plan:
                due = fault.times is None or fault.struck < fault.times
                if due and re.search(fault.pattern, request) and self.draws.random() < fault.share:
                    fault.struck += 1
                    self.struck[fault.kind] += 1
                    return fault.kind
        return None


@contextmanager
def faulty_proxy(host: str, port: int) -> Iterator[Proxy]:
    """A proxy in front of the server at host and port, both on loopback, until the block ends."""
    assert host == "127.0.0.1"

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            body = self._body()
            kind = proxy.verdict(f"{self.command} {self.path}")
            if kind == RESET:
                self._disconnect()
            elif kind in CODES:
                code, word = CODES[kind]
                text = f"<Error><Code>{word}</Code><Message>by plan</Message></Error>".encode()
                self._answer(code, {"Content-Type": "application/xml"}, b"" if self.command == "HEAD" else text)
            elif kind == HANG:
                proxy.ended.wait(120)
                self._disconnect()
            else:
                if kind == LATE:
                    time.sleep(LATE_SECONDS)
                self._forward(body, kind)

        do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = []
            while size := int(self.rfile.readline().partition(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():  # trailers
                pass
            return b"".join(parts)

        def _forward(self, body: bytes, kind: str | None) -> None:
            store = http.client.HTTPConnection(host, port, timeout=60)
            headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
            store.request(self.command, self.path, body, headers)
            reply = store.getresponse()
            answer = reply.read()
            store.close()
            if kind == LOST:
                self._disconnect()
                return
            given = {name: value for name, value in reply.getheaders() if name.lower() not in HOP_BY_HOP}
            if kind == CUT and len(answer) > 1:
                self._answer(reply.status, {**given, "Content-Length": str(len(answer))}, answer[: len(answer) // 2])
                self._disconnect(cleanly=True)
                return
            if self.command != "HEAD":
                given["Content-Length"] = str(len(answer))
            self._answer(reply.status, given, answer)

        def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if "content-length" not in {name.lower() for name in headers}:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            self.wfile.flush()

        def _disconnect(self, cleanly: bool = False) -> None:
            """Close the connection with a TCP reset, or cleanly, as a proxy does that lost its server."""
            self.close_connection = True
            if cleanly:
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.rfile.close()  # it keeps the socket open too
            self.connection.close()

        def log_message(self, *args: object) -> None:
            pass

        def handle(self) -> None:
            with suppress(OSError, ValueError):  # the client closed the connection, or the plan did
                super().handle()

        def finish(self) -> None:
            with suppress(OSError, ValueError):
                super().finish()

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

    server = Server(("127.0.0.1", 0), Handler)
    proxy = Proxy(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.ended.set()
        server.shutdown()
        server.server_close()
        thread.join(10)
