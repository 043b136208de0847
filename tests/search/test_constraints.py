"""Constraints of a search: how they are written, told to Optuna, and bind the choice of the best trial."""

import numpy as np
import pytest
from optuna.trial import TrialState

from fracray.config import Config, SearchConfig
from fracray.errors import InputError
from fracray.fetch import rank
from fracray.metrics import Calibration
from fracray.runtime.console import new_console
from fracray.runtime.run_folder import refit_number
from fracray.runtime.storage import Folder
from fracray.search.constraints import in_words, verdict
from fracray.search.ensemble import Choice, Logits, choose
from fracray.search.messages import TrialReport
from fracray.search.notes import notes
from fracray.search.refit import RefitPlan, make_plan, outcome
from fracray.search.refit_report import say_ensemble, say_outcome
from fracray.search.space_file import load_space
from fracray.search.states import State
from fracray.search.study import JOURNAL, StudySearcher, stored_study
from fracray.search.trials_table import TrialRow, best_row, best_rows
from fracray.search.warm_start import warm_points
from fracray.training.epochs import EpochResult

SENSITIVE = {"val_sensitivity": {"at_least": 0.8}}
SEARCH = SearchConfig(constraints=SENSITIVE)
SPACE = """
trials: 20
epochs: 2
sampler: {{name: {sampler}, startup_trials: 5}}
scheduler: {{name: none}}
constraints: {constraints}
space:
  model.dropout: {{float: [0.0, 0.6]}}
  augment.rotate: {{float: [0, 30]}}
  augment.scale: {{float: [0.0, 0.3]}}
"""


def result(accuracy, sensitivity, epoch=2, **more):
    best = {"val_accuracy": accuracy, "val_sensitivity": sensitivity, "val_loss": 0.5, **more}
    return EpochResult(epoch, {}, best, seconds=1.0)


def row(number, accuracy, sensitivity, **more):
    return TrialRow(number, {"model.dropout": number / 10}, State.DONE, (result(accuracy, sensitivity, **more),))


def space_of(tmp_path, sampled="random", constraints="{val_sensitivity: {at_least: 0.8}}"):
    (tmp_path / "space.yaml").write_text(SPACE.format(sampler=sampled, constraints=constraints))
    return load_space(tmp_path / "space.yaml")


# ---- how they are written


def test_constraints_are_settings_of_the_search(tmp_path):
    space = space_of(tmp_path, constraints="{val_sensitivity: {at_least: 0.8}, val_ece: {at_least: 0, at_most: 0.1}}")
    assert in_words(space.config.search) == "val_sensitivity at least 0.8 and val_ece at least 0 and at most 0.1"
    leaves = space.config.leaves()
    assert leaves["search.constraints.val_sensitivity.at_least"] == 0.8
    assert Config().with_leaves(leaves) == space.config
    more = load_space(tmp_path / "space.yaml", {"search.constraints.val_auroc.at_least": 0.7})
    assert set(more.config.search.constraints) == {"val_sensitivity", "val_ece", "val_auroc"}


@pytest.mark.parametrize(
    ("constraints", "message"),
    [
        ("{val_sensitivity: 0.8}", r"space\.yaml:6: .*val_sensitivity = 0\.8: a constraint is \{at_least: number\}"),
        ("{val_sensitivity: {atleast: 0.8}}", r"space\.yaml:6: .*a constraint is \{at_least"),
        ("{val_sensitivity: {at_least: 0.8, at_most: 0.3}}", r"no value is at least 0\.8 and at most 0\.3"),
        ("[val_sensitivity]", r"space\.yaml:6: search\.constraints .*a mapping from a metric to its bound"),
        ("{val_sensitivty: {at_least: 0.8}}", r"space\.yaml:6: .*'val_sensitivty' is not reported \(did you mean"),
        ("{val/view_auroc: {at_least: 0.8}}", r"space\.yaml:6: .*'val/view_auroc' is not reported"),
    ],
)
def test_a_mistake_is_refused_with_its_line(tmp_path, constraints, message):
    with pytest.raises(InputError, match=message):
        space_of(tmp_path, constraints=constraints)


@pytest.mark.parametrize(("sampled", "used"), [("tpe", True), ("gp", True), ("nsga2", True), ("random", False)])
def test_it_is_said_where_a_sampler_does_not_look_for_them(tmp_path, sampled, used):
    lines = list(notes(space_of(tmp_path, sampled)))
    assert lines[0] == "constraints: val_sensitivity at least 0.8, at a trial's best epoch"
    assert len(lines) == (1 if used else 2)
    assert used or lines[1].startswith("note: random does not look for trials that satisfy them")


# ---- they bind the choice


def test_a_trial_that_breaks_a_constraint_is_never_the_best_where_another_satisfies_all():
    rows = [row(0, 0.6, 0.8), row(1, 0.9, 0.79), row(2, 0.7, 0.9), row(3, 0.7, 0.95, val_loss=0.4)]
    assert [one.number for one in best_rows(rows, SEARCH)] == [3, 2, 0, 1]
    assert best_row(rows, SearchConfig()).number == 1


def test_of_trials_that_all_break_one_the_nearest_comes_first():
    both = SearchConfig(constraints=SENSITIVE | {"val_ece": {"at_most": 0.1}})
    rows = [row(0, 0.9, 0.5, val_ece=0.1), row(1, 0.6, 0.75, val_ece=0.2), row(2, 0.5, 0.79, val_ece=0.3)]
    assert [one.number for one in best_rows(rows, both)] == [1, 2, 0]  # by 0.15, 0.21 and 0.3
    words, any_does = verdict([(one.name, one.best) for one in best_rows(rows, both)], both)
    assert not any_does
    assert words == (
        "none of 3 satisfies val_sensitivity at least 0.8 and val_ece at most 0.1; "
        "t0001 has val_sensitivity 0.7500, val_ece 0.2000, which comes closest"
    )


def test_a_metric_without_a_value_satisfies_nothing():
    assert best_row([row(0, 0.9, float("nan")), row(1, 0.5, 0.1)], SEARCH).number == 1
    assert "val_sensitivity without a value" in verdict([("t0000", row(0, 0.9, float("nan")).best)], SEARCH)[0]


def test_which_trials_satisfy_them_is_told():
    ranked = [(f"t{number:04d}", row(number, 0.5, 0.9).best) for number in range(10)]
    words, any_does = verdict([*ranked, ("t0010", row(10, 0.9, 0.1).best)], SEARCH)
    assert any_does
    assert words.startswith("10 of 11 satisfy val_sensitivity at least 0.8 (t0000, t0001, ")
    assert "t0007 and 2 more); t0000 has val_sensitivity 0.9000" in words


def test_a_refit_takes_up_and_chooses_what_satisfies_them():
    rows = {one.number: one for one in (row(0, 0.5, 0.9), row(1, 0.9, 0.1), row(2, 0.7, 0.85))}
    config = Config(search=SEARCH)
    assert list(make_plan(config, rows, 1, 1, False).configurations) == [2, 0]
    plan = RefitPlan({1: {}, 2: {}, 0: {}}, (1, 2))
    trained = {
        refit_number(number, seed): row(refit_number(number, seed), accuracy, sensitivity)
        for number, accuracy, sensitivities in ((1, 0.9, (0.9, 0.6)), (2, 0.7, (0.75, 0.9)), (0, 0.5, (0.8, 0.8)))
        for seed, sensitivity in enumerate(sensitivities, start=1)
    }
    # Means of 0.75, 0.825 and 0.8: the first one breaks it, though one of its trainings does not.
    assert [one.number for one in outcome(plan, trained, SEARCH).ranked] == [2, 0, 1]


def test_a_default_that_wins_is_not_said_to_satisfy_them_where_none_does(capsys):
    plan = RefitPlan({1: {}, 0: {}}, (1,))
    for reached, told in ((0.85, "has the best mean val_accuracy of those that satisfy"), (0.7, "comes closest to")):
        trained = {
            refit_number(number, 1): row(refit_number(number, 1), 0.6, sensitivity)
            for number, sensitivity in ((1, 0.5), (0, reached))
        }
        say_outcome(new_console(), plan, outcome(plan, trained, SEARCH), {}, SEARCH)
        assert f"the default configuration (t0000) {told} the constraints" in capsys.readouterr().out


def test_an_ensemble_is_chosen_by_them_before_its_loss_and_it_is_said_if_it_breaks_them(capsys):
    def choice(words, loss, sensitivity):
        metrics = {"val_loss": loss, "val_sensitivity": sensitivity, "val_auroc": 0.7}
        return Choice(words, ("one",), Logits(np.zeros(1), Calibration(1.0, 0.0), 0.5, metrics))

    few, many, best = choice("few", 0.5, 0.9), choice("many", 0.4, 0.85), choice("best", 0.3, 0.7)
    assert choose([few, many, best], SEARCH) is many
    assert choose([few, many, best], SearchConfig()) is best
    say_ensemble(new_console(), many, [few, many], "", SEARCH)
    assert "\nthe ensemble satisfies the constraints (val_sensitivity 0.8500)" in capsys.readouterr().out
    say_ensemble(new_console(), best, [best], "", SEARCH)
    assert "\nwarning: the ensemble breaks the constraints (val_sensitivity 0.7000)" in capsys.readouterr().out


def test_fetch_ranks_what_breaks_them_last():
    epochs = {"t0000": result(0.6, 0.8), "t0001": result(0.9, 0.7), "t0002": result(0.7, 0.9)}
    assert [trial.trial for trial in rank(epochs, "val_accuracy", SEARCH)] == ["t0002", "t0000", "t0001"]
    assert [trial.trial for trial in rank(epochs, "val_sensitivity", SEARCH)] == ["t0002", "t0000", "t0001"]
    assert [trial.trial for trial in rank(epochs, "val_accuracy", SearchConfig())] == ["t0001", "t0002", "t0000"]


# ---- what Optuna is told


def run(space, journal, trials, killed_before_the_end=()):
    """Trials whose accuracy rises with dropout, and whose sensitivity falls with it: 0.8 at 0.3."""
    searcher = StudySearcher(space, journal, trials)
    while isinstance(suggested := searcher.suggest("one"), dict):
        dropout = suggested["leaves"]["model.dropout"]
        found = TrialReport(result(0.5 + dropout, 1.1 - dropout), done=True).to_tune(["val_accuracy"])
        if suggested["number"] in killed_before_the_end:
            # The driver dies after it has set the constraint and before it has told the value.
            searcher.study.tell = lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt)
            with pytest.raises(KeyboardInterrupt):
                searcher.on_trial_complete("one", found)
            searcher, killed_before_the_end = StudySearcher(space, journal, trials), ()
            continue
        searcher.on_trial_complete("one", found)
    return searcher.study.get_trials()


@pytest.mark.filterwarnings("error")
def test_optuna_is_told_by_how_much_over_a_killed_driver_too(tmp_path):
    trials = run(space_of(tmp_path), tmp_path / JOURNAL, 6, killed_before_the_end=(3,))
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 6
    for trial in trials:
        assert trial.constraints == {"val_sensitivity": pytest.approx(trial.params["model.dropout"] - 0.3)}
    with stored_study(Folder(tmp_path)) as study:
        assert study.best_trial.params["model.dropout"] <= 0.3


@pytest.mark.parametrize("sampled", ["tpe", pytest.param("gp", marks=pytest.mark.slow), "nsga2"])
def test_a_sampler_that_uses_them_searches_where_they_hold(tmp_path, sampled):
    trials = run(space_of(tmp_path, sampled), tmp_path / JOURNAL, 20)
    late = [trial.params["model.dropout"] for trial in trials[10:]]
    free = run(space_of(tmp_path, sampled, "{}"), tmp_path / "free", 20)
    assert sum(dropout > 0.32 for dropout in late) <= 4
    assert sum(trial.params["model.dropout"] > 0.32 for trial in free[10:]) >= 7
    assert max(dropout for dropout in late if dropout <= 0.32) > 0.24  # near the edge, where the best ones are


def test_a_later_search_starts_from_what_satisfied_them(tmp_path):
    space = space_of(tmp_path)
    trials = run(space, tmp_path / JOURNAL, 8)
    points, _ = warm_points(space, str(tmp_path))
    fine = sorted((t.params["model.dropout"] for t in trials[1:] if t.params["model.dropout"] <= 0.3), reverse=True)
    assert [point["model.dropout"] for point in points][: len(fine)] == fine[:4]
    assert fine
