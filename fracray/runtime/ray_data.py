"""Ray Data on a cluster of one command: without the processes that serve several users and several machines."""

import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import ray

from fracray.runtime.ray_session import own_cluster
from fracray.runtime.replaced import replaced


@contextmanager
def few_processes() -> Iterator[None]:
    """On the command's own cluster, Ray Data starts in the block only the processes of its tasks; elsewhere all.

    Two more have no use there, and Ray has no option for that: one counts for a dashboard, and one divides the cluster
    between executions and has it grown. Each costs 0.7 s of a core, and is told about every step. One of them may start
    after the block, where an error ended it. Where Ray has other names for them, both start.
    """
    with ExitStack() as held:
        if own_cluster():
            with suppress(ImportError, AttributeError, KeyError):
                held.enter_context(_without_servers())
        yield


@contextmanager
def _without_servers() -> Iterator[None]:
    from ray.data._internal import stats
    from ray.data._internal.cluster_autoscaler import rate_based_cluster_autoscaler

    nothing = staticmethod(lambda *_, **__: None)
    counted = replaced(
        stats._StatsManager,
        update_execution_metrics=nothing,
        update_iteration_metrics=nothing,
        register_dataset_to_stats_actor=nothing,
        gen_dataset_id_from_stats_actor=staticmethod(lambda: uuid.uuid4().hex),
    )
    with counted, replaced(rate_based_cluster_autoscaler, DefaultAutoscalingCoordinator=_Everything):
        yield


class _Everything:
    """In the place of Ray Data's coordinator: the one execution has all of a cluster that does not grow."""

    def __init__(self, **_: Any) -> None:
        self._resources = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}

    def request_resources(self, *_: Any, **__: Any) -> None:
        pass

    def cancel_request(self) -> None:
        pass

    def get_reserved_resources(self) -> Mapping[str, Mapping[str, float]]:
        return self._resources
