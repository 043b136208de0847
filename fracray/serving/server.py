"""One machine's server: the port, slow clients and the graceful stop. Knows no pictures."""

import asyncio
import errno
import fcntl
import ipaddress
import logging
import socket
import sys
import termios
from collections.abc import Callable

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from fracray import interrupts
from fracray.errors import InputError
from fracray.runtime.console import counted
from fracray.serving.app import make_app
from fracray.serving.engine import Service
from fracray.serving.guard import Guard
from fracray.serving.limits import Limits

HEADERS_WITHIN = 10.0  # seconds from the first byte of a request, or a connection, to the end of its headers


def open_port(host: str, port: int) -> socket.socket:
    """A socket that listens here; InputError where the port or the address cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        opened = socket.socket(family, kind, protocol)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen()  # a second server on this port is refused now, and not once its network has started
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            why = f"--port {port}: another program uses it; choose another one"
        elif error.errno == errno.EACCES:
            why = f"--port {port}: this user may not open it; choose one above 1023"
        else:
            why = f"--host {host}: {error.strerror or error}; name an address of this machine"
        raise InputError(why) from None
    return opened


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine reach this address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, which may point anywhere
        return False


def run(engine: Service, port: socket.socket, guard: Guard, limits: Limits, started: Callable[[], None]) -> str:
    """Serve until SIGTERM, which ends it, or Ctrl-C, which raises KeyboardInterrupt; both after what is in work.

    What needs longer than `limits.seconds` and one more is cut off. Returns, in words, whether anything was.
    InputError where the checkpoint cannot be opened. started: called once requests are answered.
    """
    patience = int(limits.seconds) + 1
    config = uvicorn.Config(
        make_app(engine, guard, limits),
        http=_protocol(limits.seconds),
        ws="none",
        lifespan="off",
        log_level=logging.ERROR,
        access_log=False,  # it would name clients
        server_header=False,
        timeout_graceful_shutdown=patience,
    )
    server = _Server(config)
    server.said = started
    try:
        asyncio.run(_serve(engine, server, port))
    except KeyboardInterrupt:
        if not interrupts.terminated():
            words = ("the server is stopped", server.cut_off(patience), interrupts.AGAIN)
            raise KeyboardInterrupt("; ".join(filter(None, words))) from None
    finally:
        port.close()
    return server.cut_off(patience) or "all that was asked is answered"


async def _serve(engine: Service, server: "_Server", port: socket.socket) -> None:
    await engine.start()
    try:
        await server.serve([port])
    finally:
        engine.stop()


class _Server(uvicorn.Server):
    said: Callable[[], None]
    cut = 0  # requests that were in work when it stopped

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.said()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        self.cut = len(self.server_state.tasks)  # they are cancelled, and end once the loop goes on
        if self.cut:
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # each would show its traceback

    def cut_off(self, seconds: int) -> str:
        """In words, what was cut off so long after the stop; '' where nothing was."""
        return f"{counted(self.cut, 'request')} got no answer within {seconds} s" if self.cut else ""


def _protocol(seconds: float) -> type[H11Protocol]:
    class Protocol(_Protocol):
        patience = seconds

    return Protocol


class _Protocol(H11Protocol):
    """Closes connections that uvicorn would keep open for ever: those whose next headers do not come, and those whose
    client takes nothing of its answer for as long as the `patience`, in seconds."""

    patience: float
    _impatient: asyncio.TimerHandle | None = None
    _watching: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # whatever waits here is watched
        self._wait_for_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self._impatient is None:
            self._wait_for_headers()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        self._stop_watching()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._stop_watching()
        super().connection_lost(exc)

    def _wait_for_headers(self) -> None:
        self._impatient = self.loop.call_later(HEADERS_WITHIN, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._impatient is not None:
            self._impatient.cancel()
            self._impatient = None

    def _watch(self) -> None:
        self._watching = self.loop.call_later(self.patience, self._look, self._untaken())

    def _look(self, before: int) -> None:
        if self._untaken() < before:
            self._watch()
        else:
            self.transport.abort()  # `close` would wait for the client

    def _untaken(self) -> int:
        """Bytes that the client has not taken, here and in the kernel, which asks for more only once much of what it
        holds is taken."""
        held = fcntl.ioctl(self.transport.get_extra_info("socket"), termios.TIOCOUTQ, bytes(4))
        return self.transport.get_write_buffer_size() + int.from_bytes(held, sys.byteorder)

    def _stop_watching(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None
