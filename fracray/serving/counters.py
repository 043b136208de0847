"""What the server counts, in the words of Prometheus. Nothing in it tells a picture or a client from another."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Counters:
    """The metrics of one server."""

    def __init__(self) -> None:
        own = self._registry = CollectorRegistry()
        self.requests = Counter("fracray_requests", "Requests answered", ("path", "status"), registry=own)
        self.seconds = Histogram(
            "fracray_request_seconds", "Time of a request", ("path",), buckets=SECONDS, registry=own
        )
        self.pictures = Counter("fracray_pictures", "Pictures by outcome: read or failed", ("outcome",), registry=own)

    def sizes(self, name: str, words: str) -> Histogram:
        """Numbers of pictures, by how many."""
        return Histogram(name, words, buckets=SIZES, registry=self._registry)

    def gauge(self, name: str, words: str, value: Callable[[], float]) -> None:
        """A number that is asked for whenever the metrics are read."""
        Gauge(name, words, registry=self._registry).set_function(value)

    def text(self) -> bytes:
        """All of them, in Prometheus' text format."""
        return generate_latest(self._registry)
