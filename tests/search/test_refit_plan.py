"""Which configurations are refitted, how their trainings are handed out, and which one wins."""

import json
from dataclasses import replace
from math import isnan, nan

import pytest

from fracray import refit as refit_verb
from fracray.config import Config, SearchConfig
from fracray.config.search import RefitConfig
from fracray.errors import InputError, RunError
from fracray.runtime.console import new_console
from fracray.runtime.run_folder import refit_number, trial_folder, trial_name
from fracray.runtime.storage import Folder
from fracray.search.auto import resolved
from fracray.search.messages import TrialReport
from fracray.search.refit import RefitPlan, make_plan, outcome, refit_config
from fracray.search.refit_report import gains_over_folds, say_gains, say_outcome
from fracray.search.refit_run import searched_trials
from fracray.search.refit_trials import KeepsBack, RefitTrials, kept_trainings, seconds_of_refit
from fracray.search.space_file import load_space
from fracray.search.states import State
from fracray.search.study import JOURNAL, RETRIES, open_study
from fracray.search.trials_table import TrialRow
from fracray.training.epochs import EpochResult, write_epochs

CONFIG = Config().with_leaves({"train.epochs": 2})


def row(number, accuracy, loss=0.5, state=State.DONE, leaves=None, seconds=10.0):
    best = {"val_accuracy": accuracy, "val_auroc": accuracy, "val_loss": loss}
    history = tuple(EpochResult(epoch, {}, best, seconds) for epoch in (1, 2))
    return TrialRow(number, {"model.dropout": number / 10} if leaves is None else leaves, state, history)


def rows(*found):
    return {one.number: one for one in found}


def keep(run, number, diverged=False, epochs=2):
    """Write what a training of two epochs, the first of which is its best one, leaves in its folder."""
    folder, first = trial_folder(run, number), EpochResult(1, {}, {"val_accuracy": 0.5}, 1.0)
    both = first, replace(first, epoch=2, diverged=diverged)
    write_epochs(folder, [json.dumps(one.to_json()) for one in both[:epochs]])
    folder.write_json("best/config.json", {"epoch": 1})


# ---- the plan


def test_the_best_configurations_are_refitted_and_the_default_always():
    searched = rows(row(0, 0.6), row(1, 0.8, 0.5), row(2, 0.8, 0.4), row(3, 0.9, state=State.DIVERGED), row(4, 0.7))
    plan = make_plan(CONFIG, searched, top=2, seeds=3, folds=False)
    assert list(plan.configurations) == [2, 1, 0]  # of equal accuracy, that with the lower loss comes first
    assert plan.seeds == (1, 2, 3)
    assert make_plan(CONFIG, searched, 9, 1, False).configurations.keys() == {2, 1, 4, 0}


def test_the_searchs_own_seed_is_not_used_again():
    assert make_plan(CONFIG.with_leaves({"train.seed": 2}), rows(row(0, 0.5)), 1, 3, False).seeds == (1, 3, 4)


def test_a_search_that_minimises_and_one_without_its_default_yet():
    config = CONFIG.with_leaves({"search.metric": "val_loss", "search.mode": "min"})
    plan = make_plan(config, rows(row(1, 0.9, 0.7), row(2, 0.1, 0.3)), 1, 1, False)
    assert plan.configurations == {2: {"model.dropout": 0.2}, 0: {}}


def test_equal_configurations_are_trained_once_and_the_default_stays():
    searched = rows(row(0, 0.5, leaves={"a": 1}), row(1, 0.9, leaves={"a": 1}), row(2, 0.8, leaves={"a": 2}))
    plan = make_plan(CONFIG, searched, 2, 1, False)
    assert plan.configurations == {2: {"a": 2}, 0: {"a": 1}}


def test_a_plan_that_is_resumed_only_grows(tmp_path):
    before = make_plan(CONFIG, rows(row(0, 0.5), row(1, 0.8)), 1, 2, True)
    before.write(Folder(tmp_path))
    assert RefitPlan.read(Folder(tmp_path)) == before
    after = make_plan(CONFIG, rows(row(0, 0.5), row(1, 0.8), row(2, 0.9)), 1, 3, True, before)
    assert list(after.configurations) == [1, 0, 2]
    assert set(before.trials()) < set(after.trials())
    (tmp_path / "refit.json").write_text('{"seeds": 3}')
    with pytest.raises(InputError, match=r"refit\.json: not as fracray wrote it"):
        RefitPlan.read(Folder(tmp_path))


def test_a_plan_that_is_resumed_loses_nothing_of_what_was_trained():
    before = RefitPlan({1: {"model.dropout": 0.1}, 0: {}}, (1, 2, 3, 4, 5), folds=True)
    searched = rows(row(0, 0.5), row(1, 0.8), row(2, 0.9))
    assert make_plan(CONFIG, searched, 0, 3, False, before) == before
    after = make_plan(CONFIG, searched, 1, 6, False, before)
    assert after == RefitPlan({1: {"model.dropout": 0.1}, 0: {}, 2: {"model.dropout": 0.2}}, (1, 2, 3, 4, 5, 6), True)


def test_trainings_are_named_by_trial_and_seed_and_one_seed_comes_before_the_next():
    plan = RefitPlan({7: {"model.dropout": 0.1}, 0: {}}, (1, 2))
    names = [trial_name(number) for number in plan.trials()]
    assert names == ["t0007-seed1", "t0000-seed1", "t0007-seed2", "t0000-seed2"]
    assert plan.trials()[refit_number(7, 2)] == {"model.dropout": 0.1, "train.seed": 2}


@pytest.mark.parametrize(
    ("given", "asked", "found"),
    [
        ([], {}, (3, 3, False, None)),
        ([], {"top": 1, "seeds": 1, "members": "folds"}, (1, 1, True, "folds")),
        ([], {"members": "folds", "folds": True}, (3, 3, False, None)),  # a search that ends without a refit
        (["--top", "2", "--seeds", "4"], {"top": 1, "folds": True}, (2, 4, True, None)),
        (["--members", "winner"], {"top": 1, "folds": True}, (1, 3, True, "winner")),
        (["--members", "folds"], {}, (3, 3, True, "folds")),
        (["--folds"], {"top": 1, "members": "all"}, (1, 3, True, "all")),
        (["--no-folds"], {"top": 1, "seeds": 1, "members": "folds"}, (1, 1, False, None)),
    ],
)
def test_what_the_command_leaves_open_is_as_the_search_was_to_end(given, asked, found):
    args = refit_verb.parser().parse_args(["run", *given])
    refit_verb._as_the_search_says(args, RefitConfig(**asked))
    assert (args.top, args.seeds, args.folds, args.members) == found


def test_a_refit_stops_no_trial_early_and_folds_need_folds():
    assert refit_config(CONFIG, False).search.scheduler.name == "none"
    with pytest.raises(InputError, match=r"--folds: this search is on data\.split\.protocol grouped"):
        refit_config(CONFIG, True)
    crossed = CONFIG.with_leaves({"data.split.protocol": "kfold"})
    assert refit_config(crossed, True).data.split.rotations == 4


def test_reading_the_trials_of_a_search_writes_nothing(tmp_path):
    file = tmp_path / "space.yaml"
    file.write_text("trials: 2\nspace:\n  model.dropout: {float: [0.0, 0.6]}\n")
    space = resolved(load_space(file), 2, new_console())
    assert searched_trials(space, Folder(tmp_path / "new")) == {}
    open_study(tmp_path / JOURNAL, space).ask()
    before = (tmp_path / JOURNAL).read_bytes()
    assert searched_trials(space, Folder(tmp_path)) == {}
    assert (tmp_path / JOURNAL).read_bytes() == before


# ---- handing out


def trials(tmp_path, plan):
    return RefitTrials(plan, Folder(tmp_path), CONFIG)


def test_a_training_that_loses_its_process_is_handed_out_again_until_it_makes_no_progress(tmp_path):
    searcher = trials(tmp_path, RefitPlan({0: {}}, (1,)))
    for _ in range(RETRIES + 1):
        assert searcher.suggest("a") is not None
        assert searcher.suggest("b") is None  # it may come back
        searcher.on_trial_complete("a", error=True)
    assert searcher.suggest("a") == "FINISHED"
    lost = TrialRow(refit_number(0, 1), {}, State.INTERRUPTED)
    ended, reason = searcher.ended(lost)
    assert ended.state is State.FAILED
    assert reason == "lost 3 times without progress"


def test_progress_between_two_losses_counts(tmp_path):
    searcher = trials(tmp_path, RefitPlan({0: {}}, (1,)))
    for epoch in range(1, 2 * RETRIES + 3):
        assert searcher.suggest("a") != "FINISHED"
        result = EpochResult(epoch, {}, {"val_accuracy": 0.5}, 1.0)
        searcher.on_trial_result("a", TrialReport(result).to_tune(["val_accuracy"]))
        searcher.on_trial_complete("a", error=True)
    assert searcher.remaining == 1


def test_how_a_training_ended_is_told(tmp_path):
    searcher = trials(tmp_path, RefitPlan({0: {}, 1: {}}, (1,)))
    for name in ("a", "b"):
        searcher.suggest(name)
    good = EpochResult(2, {}, {"val_accuracy": 0.5}, 1.0)
    searcher.on_trial_complete("a", TrialReport(good, done=True).to_tune(["val_accuracy"]))
    searcher.on_trial_complete("b", TrialReport.failed(InputError("no such file")).to_tune(["val_accuracy"]))
    done, failed = (searcher.ended(TrialRow(refit_number(n, 1), {}, State.RUNNING)) for n in (0, 1))
    assert (done[0].state, done[1]) == (State.DONE, "")
    assert (failed[0].state, failed[1]) == (State.FAILED, "no such file")


def test_a_training_that_failed_is_known_from_the_folder_until_the_refit_goes_on(tmp_path):
    plan, run = RefitPlan({5: {"a": 1}, 7: {"a": 2}, 0: {}}, (1, 2)), Folder(tmp_path)
    for number in plan.trials():
        if number != refit_number(5, 1):
            keep(run, number)
    searcher = trials(tmp_path, plan)
    for _ in range(RETRIES + 1):
        searcher.suggest("a")
        searcher.on_trial_complete("a", error=True)
    kept = kept_trainings(plan, run, 2)
    found = outcome(plan, kept, MAX)
    assert found.lost == {"t0005": "t0005-seed1 failed"}
    assert found.seeds == (1, 2)
    plan.write(run)
    config = CONFIG.with_leaves({"search.time_budget": 1000, "search.refit.seeds": 2})
    clock = KeepsBack(config, 1, lambda: {0: replace(kept[refit_number(0, 1)], number=0)}, run)
    clock.stop_all()
    assert clock.kept == pytest.approx(1.15 * 2 * 1.0)  # one training of two epochs
    # In a resumed refit it has another try, and until then it is unfinished for everyone.
    again = trials(tmp_path, plan)
    assert again.remaining == 1
    found = outcome(plan, again.rows(), MAX)
    assert (found.lost, found.seeds) == ({}, (2,))
    assert kept_trainings(plan, run, 2)[refit_number(5, 1)].state is State.INTERRUPTED


def test_a_training_that_diverged_in_its_last_epoch_has_diverged_after_a_resume_too(tmp_path):
    plan, run = RefitPlan({0: {}, 1: {}}, (1,)), Folder(tmp_path)
    keep(run, refit_number(0, 1))
    keep(run, refit_number(1, 1), diverged=True)
    searcher = trials(tmp_path, plan)
    assert searcher.remaining == 0
    assert [one.state for one in searcher.rows().values()] == [State.DONE, State.DIVERGED]
    assert outcome(plan, searcher.rows(), MAX).lost == {"t0001": "t0001-seed1 diverged"}


# ---- the winner


def refits(plan, values):
    """Rows of finished trainings: values by configuration, one for each seed; None for one that has not ended."""
    return {
        number: row(number, value, 1 - value, state if isinstance(state, State) else State.DONE)
        for one, each in values.items()
        for seed, given in zip(plan.seeds, each, strict=True)
        if given is not None
        for number in [refit_number(one, seed)]
        for value, state in [given if isinstance(given, tuple) else (given, None)]
    }


PLAN = RefitPlan({7: {"model.dropout": 0.7}, 3: {"model.dropout": 0.3}, 0: {}}, (1, 2, 3))


def test_the_winner_is_the_best_by_mean():
    found = outcome(PLAN, refits(PLAN, {7: [0.9, 0.5, 0.4], 3: [0.7, 0.7, 0.7], 0: [0.6, 0.6, 0.6]}), MAX)
    assert [one.number for one in found.ranked] == [3, 7, 0]
    assert found.winner.mean("val_accuracy") == pytest.approx(0.7)
    assert found.ranked[1].deviation("val_accuracy") == pytest.approx(0.2645751)
    assert found.default.number == 0
    assert found.seeds == (1, 2, 3)


MAX, LOSS = SearchConfig(), SearchConfig(metric="val_loss", mode="min")


def test_only_seeds_that_all_have_count():
    found = outcome(PLAN, refits(PLAN, {7: [0.5, 0.9, None], 3: [0.6, 0.6, None], 0: [0.4, None, None]}), MAX)
    assert found.seeds == (1,)
    assert found.winner.number == 3
    assert isnan(found.winner.deviation("val_accuracy"))
    assert outcome(PLAN, refits(PLAN, {7: [0.5, 0.9, 0.9], 3: [0.5] * 3, 0: [None] * 3}), MAX) is None


def test_a_configuration_of_which_one_training_failed_is_no_winner():
    found = outcome(
        PLAN, refits(PLAN, {7: [0.9, 0.9, (0.9, State.DIVERGED)], 3: [0.9, nan, 0.9], 0: [0.4, 0.4, 0.4]}), MAX
    )
    assert [one.number for one in found.ranked] == [0]
    assert found.lost == {"t0007": "t0007-seed3 diverged", "t0003": "t0003-seed2 has no val_accuracy"}
    with pytest.raises(RunError, match="no configuration could be refitted with every seed"):
        outcome(PLAN, refits(PLAN, {one: [0.1, 0.1, (0.1, State.FAILED)] for one in PLAN.configurations}), MAX)


# ---- the time


def test_what_is_kept_back_is_the_time_of_the_trainings_and_half_of_the_budget_at_most(tmp_path):
    own = Folder(tmp_path)
    config = CONFIG.with_leaves({"search.refit.top": 2, "search.refit.seeds": 3, "search.time_budget": 1000})
    searched = rows(row(0, 0.5, seconds=10), row(1, 0.8, seconds=20), row(2, 0.7, seconds=30), row(3, 0.1, seconds=99))
    # Three configurations with three seeds, two at a time, are five in a row; two epochs of 20 s on average.
    assert seconds_of_refit(config, searched, 2) == pytest.approx(1.15 * 5 * 2 * 20)
    assert seconds_of_refit(config, {}, 2) == 0
    crossed = config.with_leaves({"data.split.protocol": "kfold", "search.refit.members": "folds"})
    assert seconds_of_refit(crossed, searched, 2) == pytest.approx(1.15 * 5 * 2 * 20 * 4)  # a model for each fold
    searched_over_folds = crossed.with_leaves({"data.split.cross_validate": True})  # whose trials have four already
    assert seconds_of_refit(searched_over_folds, searched, 2) == pytest.approx(1.15 * 5 * 2 * 20)
    clock = KeepsBack(config, 2, lambda: searched, own)
    assert not clock.stop_all()
    assert clock.kept == pytest.approx(230)
    assert 999 < clock.left <= 1000
    slow = KeepsBack(config, 2, lambda: rows(row(0, 0.5, seconds=1e4)), own)
    assert not slow.stop_all()
    assert slow.kept == 500
    assert clock.words == "the search ended early: 230 s of the 1000 s were kept back for the refit"
    # Of one configuration, three seeds of two epochs, two at a time.
    assert f"the refit, which may take {1.15 * 4 * 1e4:.0f} s: half of the budget is the most" in slow.words
    late = KeepsBack(config.with_leaves({"search.time_budget": 1e-9}), 2, lambda: searched, own)
    assert late.stop_all()
    assert late.ended


def test_no_time_is_kept_back_for_what_is_trained_already(tmp_path):
    own = Folder(tmp_path)
    config = CONFIG.with_leaves({"search.refit.top": 1, "search.refit.seeds": 2, "search.time_budget": 1000})
    searched = rows(row(0, 0.5), row(1, 0.8))
    plan = make_plan(config, searched, 1, 1, False)
    plan.write(own)
    for number in plan.trials():
        keep(own, number)
    # Of two configurations with two seeds, one training of each is missing: two of two epochs of 10 s.
    clock = KeepsBack(config, 1, lambda: searched, own)
    assert not clock.stop_all()
    assert clock.kept == pytest.approx(1.15 * 2 * 2 * 10)
    done = KeepsBack(config.with_leaves({"search.refit.seeds": 1}), 1, lambda: searched, own)
    assert not done.stop_all()
    assert done.kept == 0
    # Of one that has begun, the epochs that are missing.
    make_plan(config, searched, 1, 2, False).write(own)
    keep(own, refit_number(0, 2), epochs=1)
    clock = KeepsBack(config, 1, lambda: searched, own)
    assert not clock.stop_all()
    assert clock.kept == pytest.approx(1.15 * 3 * 10)
    clock = KeepsBack(config, 2, lambda: searched, own)  # side by side, the longer one counts
    assert not clock.stop_all()
    assert clock.kept == pytest.approx(1.15 * 2 * 10)


# ---- what is said


def test_a_lower_loss_is_a_gain_and_accuracy_and_auroc_stand_beside_it(capsys, tmp_path):
    plan = RefitPlan({7: {"model.dropout": 0.7}, 0: {}}, (1, 2))
    found = outcome(plan, refits(plan, {7: [0.75, 0.75], 0: [0.5, 0.5]}), LOSS)
    say_outcome(new_console(), plan, found, rows(row(0, 0.5)), LOSS)
    config = CONFIG.with_leaves({"search.metric": "val_loss", "search.mode": "min"})
    say_gains(new_console(), gains_over_folds(Folder(tmp_path), found, config))  # an older one, which kept no folds
    told = [line.partition("): ")[2] for line in capsys.readouterr().out.splitlines() if line.startswith("gain over")]
    assert told == ["val_loss lower by 0.2500", "+0.2500 val_accuracy", "+0.2500 val_auroc"]


def test_a_mean_alone_is_not_called_the_best_of_several(capsys):
    plan = RefitPlan({0: {}}, (1, 2))
    say_outcome(new_console(), plan, outcome(plan, refits(plan, {0: [0.5, 0.6]}), MAX), {}, MAX)
    assert "optimistic" not in capsys.readouterr().out
    say_outcome(
        new_console(), PLAN, outcome(PLAN, refits(PLAN, {7: [0.5] * 3, 3: [0.4] * 3, 0: [0.3] * 3}), MAX), {}, MAX
    )
    assert "the best of 3 means is still somewhat optimistic" in capsys.readouterr().out
