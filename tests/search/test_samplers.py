"""What a sampler draws: by the seed and the trial's number, and CMA-ES from a model of what it can model."""

import numpy as np
import optuna
import pytest

from fracray.errors import InputError
from fracray.search.samplers import sampler
from fracray.search.space_file import load_space

RANGES = "  model.dropout: {float: [0.0, 0.6]}\n  train.lr: {log_float: [1.0e-4, 1.0e-2]}\n"
CHOICE = "  train.loss: {categorical: [weighted, focal]}\n"
NARROW = "  model.width: {int: [8, 64], when: {train.loss: [focal]}}\n"


def space_of(tmp_path, name, text, startup=4, seed=0):
    file = tmp_path / "space.yaml"
    file.write_text(f"sampler: {{name: {name}, startup_trials: {startup}, seed: {seed}}}\nspace:\n{text}")
    return load_space(file)


def study_of(space):
    return optuna.create_study(direction="maximize", sampler=sampler(space))


def near(params, goal=0.45):
    return -((params["model.dropout"] - goal) ** 2)


def drawn(space, trials, at_once=1):
    """The settings of each trial, `at_once` of which run at a time."""
    study, found, running = study_of(space), [], []
    for _ in range(trials):
        if len(running) == at_once:
            trial = running.pop(0)
            study.tell(trial, near(trial.params))
        trial = study.ask()
        found.append(space.suggest(trial))
        running.append(trial)
    return found


@pytest.mark.parametrize("name", ["random", "tpe", "gp", "cmaes"])
def test_the_draws_before_the_model_depend_on_the_trials_number_alone(tmp_path, name):
    space = space_of(tmp_path, name, RANGES + CHOICE, startup=6)
    one = drawn(space, 6)
    assert drawn(space, 6, at_once=3) == one
    assert len({leaves["model.dropout"] for leaves in one}) == 6
    assert drawn(space_of(tmp_path, name, RANGES + CHOICE, startup=6, seed=1), 6) != one


def test_random_search_draws_each_setting_by_its_name(tmp_path):
    """A setting more or less in the space, or one that a killed driver had drawn already, changes no other."""
    wide, narrow = (drawn(space_of(tmp_path, "random", text), 5) for text in (RANGES + CHOICE, RANGES))
    assert [{path: leaves[path] for path in narrow[0]} for leaves in wide] == narrow


@pytest.mark.parametrize("name", ["random", "tpe", "cmaes"])
def test_the_settings_of_random_draws_are_independent_and_even(tmp_path, name):
    found = drawn(space_of(tmp_path, name, RANGES, startup=400), 300)
    rates = np.array([leaves["model.dropout"] for leaves in found]) / 0.6
    heights = (np.log10([leaves["train.lr"] for leaves in found]) + 4) / 2
    for values in (rates, heights):
        assert np.histogram(values, 4, (0, 1))[0].min() > 50  # of 75
    assert abs(np.corrcoef(rates, heights)[0, 1]) < 0.15
    assert abs(np.corrcoef(rates[1:], rates[:-1])[0, 1]) < 0.15


@pytest.mark.parametrize("text", [RANGES, RANGES + CHOICE, RANGES + CHOICE + NARROW], ids=["ranges", "choice", "when"])
def test_cmaes_models_the_ranges_beside_settings_that_it_cannot_model(tmp_path, text):
    found = drawn(space_of(tmp_path, "cmaes", text), 60)
    late = np.array([leaves["model.dropout"] for leaves in found[-20:]])
    assert np.abs(late - 0.45).mean() < 0.06  # at random: 0.19
    if "train.loss" in text:
        assert {leaves["train.loss"] for leaves in found[-20:]} == {"weighted", "focal"}


def test_cmaes_says_what_it_draws_at_random(tmp_path):
    assert space_of(tmp_path, "cmaes", RANGES + CHOICE + NARROW).unmodelled == ("train.loss", "model.width")
    assert space_of(tmp_path, "cmaes", RANGES).unmodelled == ()
    assert space_of(tmp_path, "tpe", RANGES + CHOICE).unmodelled == ()


def test_cmaes_without_anything_to_model_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"space\.yaml:1: cmaes .* use tpe"):
        space_of(tmp_path, "cmaes", CHOICE)


@pytest.mark.parametrize("text", [RANGES, "  model.dropout: {float: [0.0, 0.6]}\n"], ids=["two", "one"])
def test_cmaes_learns_from_trials_that_were_stopped(tmp_path, text):
    space = space_of(tmp_path, "cmaes", text)
    study, late = study_of(space), []
    for index in range(60):
        trial = study.ask()
        value = near(space.suggest(trial))
        trial.report(value, 3)
        if index % 3:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(trial, value)
        late.append(trial.params["model.dropout"])
    assert np.abs(np.array(late[-20:]) - 0.45).mean() < 0.06
