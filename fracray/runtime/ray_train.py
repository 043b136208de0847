"""Ray Train without those of its processes that fracray has no use for."""

from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy

from fracray.runtime.ray_session import own_cluster


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
        return super()._initialize_and_run_controller(callbacks=kept, scaling_policy=scaling_policy, **more)


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
