"""What a server is told: the values that are allowed, and those of a service on a cluster by name.

Imports neither Torch, Ray nor an HTTP library.
"""

import argparse
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from fracray.serving.limits import MEGABYTE, Limits

# Least and most of each, as options of `fracray.serve` and as arguments in cluster/serve.yaml.
RANGES: Mapping[str, tuple[float, float]] = {
    "port": (0, 65535),
    "workers": (1, 256),
    "decoders": (1, 256),
    "batch": (1, 4096),
    "wait": (0, 10_000),
    "max_megabytes": (1, 4096),
    "max_megapixels": (1, 80),
    "max_files": (1, 10_000),
    "timeout": (0.1, 3600),
    "queue": (1, 100_000),
}


def _in_range(name: str, default: float) -> Any:
    least, most = RANGES[name]
    return Field(default=default, ge=least, le=most)


class ServiceSettings(BaseModel):
    """The `args` of `fracray.serving.service:build`. Those not described here are as the options of `fracray.serve`.

    checkpoint: a URI, or a path that every node sees. token_file: a path on the nodes, where a secret is mounted.
    workers, decoders, batch: of each replica. queue: requests at once of each replica of `http`.
    """

    # Ray Serve logs the error: a value may be a token that was written in the wrong place.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)

    checkpoint: str = Field(min_length=1)
    token_file: str = Field(min_length=1)
    workers: int = _in_range("workers", 1)
    decoders: int = _in_range("decoders", 1)
    batch: int = _in_range("batch", 32)
    wait: float = _in_range("wait", 5.0)
    coverage: float = Field(default=0.9, gt=0, lt=1)
    max_megabytes: int = _in_range("max_megabytes", 128)
    max_megapixels: int = _in_range("max_megapixels", 80)
    max_files: int = _in_range("max_files", 64)
    timeout: float = _in_range("timeout", 60.0)
    queue: int = _in_range("queue", 64)


def limits_of(given: argparse.Namespace | ServiceSettings) -> Limits:
    """The limits that the options of `fracray.serve`, or a service's settings, ask for."""
    return Limits(
        given.max_megabytes * MEGABYTE, given.max_megapixels * 1_000_000, given.max_files, given.timeout, given.queue
    )
