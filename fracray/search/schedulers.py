"""Ray Tune's scheduler of a search: which trials are stopped early."""

import math
from typing import Any

from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    TrialScheduler,
)

from fracray.config import Config


class _Asha(AsyncHyperBandScheduler):
    """ASHA that does not rank a trial without a value, which diverged or failed: Ray would take a percentile of NaN."""

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if math.isnan(result.get(self._metric, math.nan)):
            self.on_trial_remove(tune_controller, trial)
        else:
            super().on_trial_complete(tune_controller, trial, result)


def scheduler(config: Config) -> TrialScheduler:
    """The scheduler that `search.scheduler` names; `training.trial.may_stop` knows at which epochs it stops trials."""
    settings, epochs = config.search.scheduler, config.train.epochs
    grace = min(settings.grace_epochs, epochs)
    if settings.name == "asha":
        return _Asha(
            time_attr="training_iteration", max_t=epochs, grace_period=grace, reduction_factor=settings.reduction_factor
        )
    if settings.name == "hyperband":
        return HyperBandScheduler(
            time_attr="training_iteration", max_t=epochs, reduction_factor=settings.reduction_factor
        )
    if settings.name == "median":
        return MedianStoppingRule(time_attr="training_iteration", grace_period=grace, min_samples_required=3)
    return FIFOScheduler()
