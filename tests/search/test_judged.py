"""The gain over folds, from what cross-validated trials keep of them."""

from dataclasses import astuple, replace
from math import isnan

import numpy as np
import pandas as pd
import pytest

from fracray.config import Config
from fracray.runtime.console import new_console
from fracray.runtime.run_folder import FOLDS, refit_number, trial_folder
from fracray.runtime.storage import Folder
from fracray.search.judged import fold_metric, judged_folds, read_folds
from fracray.search.refit import Outcome, Refitted
from fracray.search.refit_report import gains_over_folds, say_gains
from fracray.search.results import fold_gains
from fracray.search.space import SearchSpace
from fracray.search.states import State
from fracray.search.trials_table import TrialRow
from fracray.training.epochs import EpochResult
from fracray.training.validation import score_validation

N, GROUPS, FOLD = 480, 24, 4
GROUP = np.repeat(np.arange(GROUPS), N // GROUPS)
LABELS = (np.random.default_rng(0).random(N) < 0.3).astype(np.int8)
CONFIG = Config().with_leaves({"data.split.protocol": "kfold", "data.split.cross_validate": True})


def trained(run, number, strength, seed):
    """A trial whose folds' models have this strength: its predictions in its folder, and its row."""
    logits = (np.random.default_rng(seed).normal(0, 1, N) + strength * LABELS).astype(np.float32)
    fold = GROUP % FOLD + 1
    names = [f"g{group}" for group in GROUP]
    table = pd.DataFrame({"image_id": [f"i{k}" for k in range(N)], "group": names, "label": LABELS, "fold": fold})
    with trial_folder(run, number).building(FOLDS) as path:
        table.assign(logit=logits).to_parquet(path, index=False)
    each = []
    for k in range(1, FOLD + 1):
        rows = np.flatnonzero(fold == k)
        inside = {"val": np.arange(len(rows))}
        labels = LABELS[rows].astype(np.float32)
        each.append(score_validation(labels, logits[rows], np.array(names)[rows], inside, "accuracy")[2])
    best = {name: float(np.mean([metrics[name] for metrics in each])) for name in each[0]}
    return TrialRow(number, {"model.dropout": number / 1000}, State.DONE, (EpochResult(1, {}, best, 1.0),))


def test_a_search_over_folds_tells_its_gain_with_an_interval(tmp_path):
    run = Folder(tmp_path)
    rows = {number: trained(run, number, strength, number) for number, strength in ((0, 0.6), (3, 1.6))}
    for metric, mode in (("val_accuracy", "max"), ("val_loss", "min")):
        config = CONFIG.with_leaves({"search.metric": metric, "search.mode": mode})
        gains = fold_gains(run, SearchSpace(config, (), "space.yaml"), rows, rows[3])
        assert set(gains) == {metric, "val_accuracy", "val_auroc"}
        for name, gain in gains.items():
            assert gain.value == pytest.approx(rows[3].best(name) - rows[0].best(name)), "what the epochs report"
            if name != "val_loss":  # of one training, a loss has none
                assert 0 < gain.low < gain.value < gain.high
    one = judged_folds(read_folds(trial_folder(run, 3)), "accuracy", "accuracy")
    assert [len(np.unique(one.threshold[one.folds == k])) for k in range(1, FOLD + 1)] == [1] * FOLD


def test_the_interval_of_folds_dealt_twice_leaves_out_a_group_with_all_that_was_said_of_it(tmp_path):
    run = Folder(tmp_path)
    rows = {number: trained(run, number, strength, number) for number, strength in ((0, 0.6), (3, 1.6))}
    space = SearchSpace(CONFIG, (), "space.yaml")
    once = fold_gains(run, space, rows, rows[3])
    for number in rows:  # a second dealing whose models say the same: nothing new is known
        table = read_folds(trial_folder(run, number))
        with trial_folder(run, number).building(FOLDS) as path:
            pd.concat([table, table.assign(fold=table["fold"] + 5)]).to_parquet(path, index=False)
    twice = fold_gains(run, space, rows, rows[3])
    for name, gain in once.items():
        assert astuple(twice[name]) == pytest.approx(astuple(gain))


def test_where_the_folds_are_not_kept_or_the_metric_is_of_other_images_there_is_no_interval(tmp_path):
    run = Folder(tmp_path)
    rows = {number: trained(run, number, 1.0, number) for number in (0, 3)}
    space = SearchSpace(CONFIG, (), "space.yaml")
    (tmp_path / "trials/t0000" / FOLDS).unlink()
    assert isnan(fold_gains(run, space, rows, rows[3])["val_accuracy"].low)
    assert fold_gains(run, space, rows, rows[0]) == {}
    # A default that failed, diverged or runs is nothing to compare with.
    for state in (State.FAILED, State.DIVERGED, State.RUNNING):
        assert fold_gains(run, space, {**rows, 0: replace(rows[0], state=state)}, rows[3]) == {}
    assert fold_metric("val_ece") == "ece"
    assert fold_metric("worst_val_auroc") is fold_metric("val/view_auroc") is fold_metric("val_n") is None


def test_a_refit_over_folds_tells_its_gain_with_an_interval_of_groups_and_seeds(tmp_path, capsys):
    run, seeds = Folder(tmp_path), (1, 2, 3)
    found = []
    for number, strength in ((3, 1.6), (0, 0.6)):
        names = [refit_number(number, seed) for seed in seeds]
        found.append(Refitted(number, {}, tuple(trained(run, name, strength, name) for name in names)))
    gains = gains_over_folds(run, Outcome(tuple(found), seeds, {}), CONFIG)
    gain = gains["val_accuracy"]
    assert gain.value == pytest.approx(found[0].mean("val_accuracy") - found[1].mean("val_accuracy"))
    assert 0 < gain.low < gain.value < gain.high
    say_gains(new_console(), gains)
    out = " ".join(capsys.readouterr().out.split())
    assert f"{gain.value:+.4f} val_accuracy [{gain.low:+.4f}, {gain.high:+.4f}]" in out
    assert "what other training seeds would change" in out
    alone = Outcome(tuple(Refitted(one.number, {}, one.rows[:1]) for one in found), seeds[:1], {})
    assert isnan(gains_over_folds(run, alone, CONFIG)["val_accuracy"].low)
