"""Ray Train without those of its processes that fracray has no use for."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.core.generated.gcs_pb2 import PlacementGroupTableData
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.util.placement_group import PlacementGroup, remove_placement_group

from fracray.runtime.ray_session import own_cluster

LOOK_SECONDS = 5.0  # between looks for lost places


class LeanTrainer(TorchTrainer):
    """A TorchTrainer with fewer processes beside its workers; Ray has no option. Each costs a second of a core.

    DatasetManager hands out sets of Ray Data; fracray's workers open their shards themselves. On the command's own
    cluster PlacementGroupCleaner has no use: it asks the dashboard's server, which is not there, whether the controller
    is alive. AutoscalingCoordinator has a cluster grown, and divides it between Ray Data and the workers; the command's
    own does not grow, and with the images `in_memory` Ray Data reads none.
    """

    def __init__(self, *given: Any, in_memory: bool, **more: Any) -> None:
        super().__init__(*given, **more)
        self._in_memory = in_memory

    def _initialize_and_run_controller(self, *, callbacks: list[Any], scaling_policy: Any, **more: Any) -> Any:
        assert not self.datasets, "nothing would hand them out"
        kept = [one for one in callbacks if not isinstance(one, DatasetsCallback)]
        if own_cluster():
            kept = [one for one in kept if not isinstance(one, PlacementGroupCleanerCallback)]
            if self._in_memory and type(scaling_policy) is FixedScalingPolicy:
                scaling_policy = _Unannounced(self.scaling_config)
        kept.append(_NoDatasets(self.train_run_context, {}))
        with _freeing_lost_places():
            return super()._initialize_and_run_controller(callbacks=kept, scaling_policy=scaling_policy, **more)


@contextmanager
def _freeing_lost_places() -> Iterator[None]:
    """Look for lost places before the block and again and again: a controller may die after its replacement begins."""
    ended = threading.Event()

    def look() -> None:
        while True:
            with suppress(ray.exceptions.RayError):  # the cluster ends, which whoever trains on it says
                free_lost_places()
            if ended.wait(LOOK_SECONDS):
                return

    thread = threading.Thread(target=look, name="fracray-lost-places", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def free_lost_places() -> None:
    """Give back the CPUs and GPUs that trainings of this command still hold although their controller has died.

    Ray keeps the placement group of an actor until its job ends too, so that the training which replaces a killed one
    would wait for its places for ever.
    """
    job = ray.get_runtime_context().get_job_id()
    # ray.util.placement_group_table does not say who made a group.
    for row in ray._private.state.state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(row)
        if (
            group.creator_job_id.hex() == job
            and group.creator_actor_id != ray.ActorID.nil().binary()  # else the command's own, also said to be dead
            and group.creator_actor_dead
            and group.state != PlacementGroupTableData.REMOVED
        ):
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))


class _NoDatasets(DatasetsCallback):
    """Gives the workers Ray Data's settings, as its base does, and nothing else."""

    def before_init_train_context(self, workers: list[Any]) -> dict[str, list[Any]]:
        return {}


class _Unannounced(FixedScalingPolicy):
    """Starts so many workers, and asks nobody to add machines for them."""

    def after_controller_start(self, train_run_context: Any) -> None:
        pass

    def _maybe_send_resource_request(self) -> None:
        pass
