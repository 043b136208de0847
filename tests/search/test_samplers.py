"""What a sampler draws: by the seed and the trial's number, CMA-ES from a model of what it can model; and `auto`."""

import numpy as np
import optuna
import pytest

from fracray.errors import InputError
from fracray.runtime.console import new_console
from fracray.search.auto import FEW, MANY, choose_sampler, resolved
from fracray.search.notes import notes
from fracray.search.samplers import sampler
from fracray.search.space_file import load_space
from fracray.training.rungs import stopping_epochs

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


@pytest.mark.parametrize("name", ["random", "tpe", "gp", "cmaes", "nsga2"])
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


def test_nsga2_goes_on_with_its_generations_where_it_is_made_anew(tmp_path):
    """Each trial has a sampler of its own, as after a resume; the study holds the generations."""
    space = space_of(tmp_path, "nsga2", RANGES + CHOICE, startup=6)
    study, late = study_of(space), []
    for _ in range(60):
        trial = study.ask()
        study.tell(trial, near(space.suggest(trial)))
        study.sampler = sampler(space)
        late.append(trial.params["model.dropout"])
    assert np.median(np.abs(np.array(late[-20:]) - 0.45)) < 0.03  # at random: 0.15; mutations are drawn at random


@pytest.mark.parametrize("name", ["gp", "nsga2"])
def test_what_learns_from_complete_trials_alone_is_refused_with_pasha(tmp_path, name):
    with pytest.raises(InputError, match=rf"space\.yaml:1: {name} learns only from trials .* use tpe"):
        space_of(tmp_path, name, f"{RANGES}scheduler: pasha\n")


# ---- auto

AUTO = "trials: {trials}\nscheduler: {scheduler}\nmetric: {metric}\nsampler: auto\n{more}space:\n{text}"
SENSITIVE = "constraints: {val_sensitivity: {at_least: 0.8}}\n"
TWO = "[val_accuracy, val_auroc]"


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("random", {"trials": 8}),
        ("random", {"trials": 40, "places": 20}),
        ("tpe", {"trials": 16}),
        ("tpe", {"trials": 16, "scheduler": "pasha"}),
        ("tpe", {"trials": 16, "scheduler": "none", "text": RANGES + CHOICE + NARROW}),
        ("tpe", {"trials": 31, "scheduler": "none"}),
        ("gp", {"trials": 32, "scheduler": "none"}),
        ("gp", {"trials": 200, "scheduler": "none"}),
        ("tpe", {"trials": 201, "scheduler": "none"}),
        ("tpe", {"trials": 64}),
        ("tpe", {"trials": 64, "scheduler": "none", "more": SENSITIVE}),
        ("tpe", {"trials": 64, "scheduler": "none", "text": RANGES + CHOICE}),
        ("tpe", {"trials": MANY, "text": RANGES + CHOICE}),
        ("tpe", {"trials": MANY, "more": SENSITIVE}),
        ("cmaes", {"trials": MANY}),
        ("tpe", {"trials": 64, "scheduler": "none", "metric": TWO}),
        ("nsga2", {"trials": FEW + 1, "scheduler": "none", "metric": TWO}),
        ("tpe", {"trials": FEW + 1, "scheduler": "none", "metric": TWO, "text": RANGES + CHOICE + NARROW}),
        ("tpe", {"trials": 16, "scheduler": "auto"}),
        ("gp", {"trials": 32, "scheduler": "auto"}),
        ("tpe", {"trials": 201, "scheduler": "auto"}),
        ("cmaes", {"trials": MANY, "scheduler": "auto"}),
        ("nsga2", {"trials": FEW + 1, "scheduler": "auto", "metric": TWO}),
    ],
)
def test_auto_goes_by_the_space_the_trials_the_places_the_metrics_and_the_constraints(tmp_path, name, setting):
    given = {"scheduler": "asha", "metric": "val_accuracy", "more": "", "text": RANGES, "places": 2} | setting
    file = tmp_path / "space.yaml"
    file.write_text(AUTO.format(**given))
    space = load_space(file)
    chosen, why = choose_sampler(space, given["places"])
    assert chosen == name
    assert why
    sampler(resolved(space, given["places"], new_console()))  # what is chosen is allowed


def test_auto_is_saved_as_what_it_is_and_said_in_one_line(tmp_path, capsys):
    file = tmp_path / "space.yaml"
    file.write_text(AUTO.format(trials=16, scheduler="asha", metric="val_accuracy", more="", text=RANGES))
    space = resolved(load_space(file), 2, new_console())
    assert space.config.search.sampler.name == "tpe"
    assert capsys.readouterr().out.startswith("sampler: auto is tpe here: ")
    assert resolved(space, 200, new_console()) == space


@pytest.mark.parametrize(
    ("head", "scheduler"),
    [
        ("trials: 16", "asha"),
        ("trials: 64", "none"),  # the sampler is gp
        ("trials: 64\nsampler: tpe", "asha"),
        ("trials: 16\nsampler: gp", "none"),
        ("trials: 4", "asha"),  # random
        (f"metric: {TWO}", "none"),
        (f"metric: {TWO}\nsampler: random", "none"),
        ("trials: 64\nscheduler: {grace_epochs: 3}", "none"),
        ("trials: 64\nscheduler: median", "median"),
    ],
)
def test_trials_are_stopped_early_by_default_unless_the_sampler_needs_all_epochs(tmp_path, capsys, head, scheduler):
    file = tmp_path / "space.yaml"
    file.write_text(f"{head}\nspace:\n{RANGES}")
    space = resolved(load_space(file), 2, new_console())
    assert space.config.search.scheduler.name == scheduler
    assert (f"scheduler: auto is {scheduler} here: " in capsys.readouterr().out) == (scheduler != "median")
    assert bool(stopping_epochs(space.config)) == (scheduler != "none")


def test_folds_of_a_refit_that_is_not_asked_for_are_said_to_do_nothing(tmp_path):
    file = tmp_path / "space.yaml"
    text = f"base: {{data: {{split: {{protocol: kfold}}}}}}\nsampler: tpe\nspace:\n{RANGES}"
    for refit, said in (
        ("{top: 0, members: folds}", True),
        ("{folds: true}", True),
        ("{top: 1, members: folds}", False),
    ):
        file.write_text(f"refit: {refit}\n{text}")
        assert any("search.refit.top is 0" in line for line in notes(load_space(file))) == said
