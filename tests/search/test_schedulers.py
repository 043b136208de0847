"""A trial writes its state wherever the scheduler may stop it: what it expects is what Ray's scheduler does."""

import math
import warnings

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler

from fracray.config import Config
from fracray.search.schedulers import scheduler
from fracray.training.trial import may_stop


def config(name, epochs, grace=2, factor=3.0):
    settings = {"name": name, "grace_epochs": grace, "reduction_factor": factor}
    return Config.model_validate({"train": {"epochs": epochs}, "search": {"scheduler": settings}})


@pytest.mark.parametrize("epochs", [1, 2, 7, 12, 27, 100])
@pytest.mark.parametrize("grace", [1, 2, 3, 9, 40])
@pytest.mark.parametrize("factor", [1.3, 1.5, 2.0, 2.7, 3.0, 4.0])
def test_the_rungs_that_a_trial_expects_are_those_of_asha(epochs, grace, factor):
    settings = config("asha", epochs, grace, factor)
    asha = scheduler(settings)
    assert isinstance(asha, AsyncHyperBandScheduler)
    # A rung's milestone may be a fraction: the first epoch that reaches it is the one that is judged.
    (bracket,) = asha._brackets
    judged = {epoch for milestone, _ in bracket._rungs for epoch in [-int(-milestone // 1)] if epoch < epochs}
    assert {epoch for epoch in range(1, epochs) if may_stop(settings, epoch)} == judged


@pytest.mark.parametrize("name", ["median", "hyperband"])
def test_other_schedulers_may_stop_a_trial_at_any_epoch(name):
    assert all(may_stop(config(name, 5), epoch) for epoch in range(1, 5))


def test_without_a_scheduler_no_trial_is_stopped():
    assert not any(may_stop(config("none", 5), epoch) for epoch in range(1, 5))


def test_asha_ranks_no_trial_without_a_value():
    """Ray takes a percentile of the values at a rung, and numpy warns of one of NaN alone."""
    asha = scheduler(config("asha", 4, grace=1))
    asha.set_search_properties("value", "max")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for value in (math.nan, math.nan, 0.5, 0.2):
            trial = Trial("trial", stub=True)
            asha.on_trial_add(None, trial)
            asha.on_trial_complete(None, trial, {"value": value, "training_iteration": 1})
    rungs = asha._brackets[0]._rungs
    assert sorted(value for _, recorded in rungs for value in recorded.values()) == [0.2, 0.5]
