"""Importance of settings: found where there is some, and not told of noise."""

import time

import numpy as np
import optuna
import pytest

from fracray.runtime.console import new_console
from fracray.search.importance import FEWEST_TRIALS, importances
from fracray.search.results import _say_importances


def study_of(trials, seed=0, effect=0.0, settings=7):
    """Values of noise, and `effect` times the first setting; one setting is a choice of three."""
    generator = np.random.default_rng(seed)
    places = {f"p{k}": optuna.distributions.FloatDistribution(0, 1) for k in range(settings - 1)}
    places["choice"] = optuna.distributions.CategoricalDistribution(["a", "b", "c"])
    study = optuna.create_study(direction="maximize")
    for _ in range(trials):
        params = {name: float(generator.random()) for name in places if name != "choice"}
        params["choice"] = "abc"[generator.integers(3)]
        value = float(generator.normal() + effect * params["p0"])
        study.add_trial(optuna.trial.create_trial(params=params, distributions=places, value=value))
    return study


def test_noise_is_not_told_as_importance():
    """fANOVA gave one of seven settings a share of 0.33 on average (0.20 to 0.58), and it was printed."""
    found = [importances(study_of(16, seed)) for seed in range(5)]
    assert np.mean([each.shares[0].share for each in found]) > 0.2
    assert sum(each.told_apart for each in found) <= 1


def test_a_setting_that_matters_is_told():
    found = importances(study_of(40, effect=6))
    assert found.told_apart
    first, *others = found.shares
    assert first.path == "p0"
    assert first.share > first.chance
    assert sum(each.share for each in found.shares) == pytest.approx(1)
    assert sum(each.share > each.chance for each in others) <= 2


def test_it_is_the_same_again():
    assert importances(study_of(20, 3)) == importances(study_of(20, 3))


def test_too_few_trials_equal_values_and_several_objectives_have_none():
    assert importances(study_of(FEWEST_TRIALS - 1, effect=6)) is None
    assert importances(study_of(FEWEST_TRIALS, effect=6)) is not None
    equal = optuna.create_study()
    for trial in study_of(20).trials:
        equal.add_trial(optuna.trial.create_trial(params=trial.params, distributions=trial.distributions, value=0.5))
    assert importances(equal) is None
    assert importances(optuna.create_study(directions=["maximize", "maximize"])) is None


def test_trials_that_failed_do_not_count():
    study = study_of(FEWEST_TRIALS - 1, effect=6)
    study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL))
    assert importances(study) is None


def test_a_thousand_trials_take_seconds():
    study = study_of(1000, effect=1)
    begun = time.process_time()
    assert importances(study).shares[0].path == "p0"
    assert time.process_time() - begun < 60


def said(capsys, study):
    _say_importances(new_console(), importances(study), 16)
    return " ".join(capsys.readouterr().out.split())


def test_what_is_said(capsys):
    noise = said(capsys, study_of(16, 1))
    assert "16 trials that ran all epochs do not tell it from chance" in noise
    assert "by chance" not in noise
    told = said(capsys, study_of(40, effect=6))
    assert "importance of each setting" in told
    assert "no more than chance" in told
    assert "by chance" in told


def test_too_few_complete_trials_are_said(capsys):
    assert "trials ran all epochs, and at least 10 that differ are needed" in said(capsys, study_of(4))
