"""Ray Tune's scheduler of a search: which trials are stopped early."""

from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    TrialScheduler,
)

from fracray.config import Config


def scheduler(config: Config) -> TrialScheduler:
    """The scheduler that `search.scheduler` names; `training.trial.may_stop` knows at which epochs it stops trials."""
    settings, epochs = config.search.scheduler, config.train.epochs
    grace = min(settings.grace_epochs, epochs)
    if settings.name == "asha":
        return AsyncHyperBandScheduler(
            time_attr="training_iteration", max_t=epochs, grace_period=grace, reduction_factor=settings.reduction_factor
        )
    if settings.name == "hyperband":
        return HyperBandScheduler(
            time_attr="training_iteration", max_t=epochs, reduction_factor=settings.reduction_factor
        )
    if settings.name == "median":
        return MedianStoppingRule(time_attr="training_iteration", grace_period=grace, min_samples_required=3)
    return FIFOScheduler()
