"""What a session leaves behind in the process that asked for it."""

import os

from fracray.runtime import ray_session
from fracray.runtime.ray_session import NOTICES, connect


def test_what_holds_for_a_local_cluster_ends_with_it(monkeypatch):
    """A search on a cluster of the cloud may follow in the same process, and its machines can be taken away."""
    seen = []

    def session(address, remedy, environment):
        seen.append(os.environ.get(NOTICES))
        yield

    monkeypatch.delenv(NOTICES, raising=False)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr(ray_session, "_session", session)
    for address in (None, "10.0.0.1:6379"):
        with connect(address):
            pass
    assert seen == ["0", None]
    assert NOTICES not in os.environ
