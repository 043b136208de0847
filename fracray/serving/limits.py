"""What the server allows a client, and how it answers where that is passed. Knows nothing of HTTP libraries."""

from collections.abc import Mapping
from dataclasses import dataclass

MEGABYTE = 2**20
BODIES = 4  # requests of the largest size that are in memory at once


@dataclass(frozen=True)
class Limits:
    """bytes: of one request; pixels: of one picture; files: in one request; seconds: for an upload, for decoding one
    picture, for one pass of the network, and in which a client takes some of its answer; queue: requests at once, those
    that wait and those whose answers are being sent included."""

    bytes: int = 128 * MEGABYTE
    pixels: int = 80_000_000
    files: int = 64
    seconds: float = 60.0
    queue: int = 64

    @property
    def answers(self) -> int:
        """The most bytes of answers that are held at once: of so many large requests, or pictures of 16 bits."""
        return BODIES * max(self.bytes, 2 * self.pixels)


class RefusedError(Exception):
    """A request that is answered with an error: an HTTP status, and what is wrong and what to do about it."""

    def __init__(self, status: int, words: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(words)
        self.status, self.words, self.headers = status, words, dict(headers or {})


@dataclass
class Admission:
    """How many requests are in the house, and how many bytes of theirs and of their answers."""

    limits: Limits
    requests: int = 0
    bytes: int = 0
    answers: int = 0
    seconds_each: float = 0.0  # a moving mean of what a request takes

    def enter(self) -> "Visit":
        """Let a request in. RefusedError 429 where the queue is full."""
        if self.requests >= self.limits.queue:
            raise self._full(f"{self.requests} requests are waiting, and --queue allows no more")
        self.requests += 1
        return Visit(self)

    def _full(self, why: str) -> RefusedError:
        wait = max(1, min(60, round(self.seconds_each)))
        return RefusedError(429, f"{why}; send it again in {wait} s", {"Retry-After": str(wait)})


class Visit:
    """One request in the house."""

    def __init__(self, admission: Admission) -> None:
        self._all, self._bytes, self._answer = admission, 0, 0

    def take(self, count: int) -> None:
        """Count bytes that arrived. RefusedError 413 where the request is too large, 429 where all together are."""
        limits = self._all.limits
        self._bytes += count
        self._all.bytes += count
        if self._bytes > limits.bytes:
            raise RefusedError(413, too_many_bytes(limits))
        if self._all.bytes > BODIES * limits.bytes:
            raise self._all._full(f"the requests that are here hold more than {BODIES * limits.bytes:,} bytes")

    def answer(self, count: int) -> None:
        """Count an answer of so many bytes in place of what arrived. RefusedError 429 where there are others, and all
        together are too large."""
        if self._all.answers and self._all.answers + count > self._all.limits.answers:
            raise self._all._full(f"the answers that are being sent hold {self._all.answers:,} bytes")
        self._forget()
        self._answer = count
        self._all.answers += count

    def _forget(self) -> None:
        self._all.bytes -= self._bytes
        self._all.answers -= self._answer
        self._bytes = self._answer = 0

    def leave(self, seconds: float) -> None:
        """The answer is sent, or nobody takes it, after so long."""
        self._forget()
        self._all.requests -= 1
        self._all.seconds_each += 0.1 * (seconds - self._all.seconds_each)


def too_many_bytes(limits: Limits) -> str:
    return (
        f"the request has more than {limits.bytes:,} bytes; send fewer pictures at once, or start the server with a "
        "larger --max-megabytes"
    )
