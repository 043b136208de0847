"""What is said of a search's gain over the default configuration."""

from math import nan

import numpy as np
import pandas as pd
import pytest

from fracray.config import Config
from fracray.data.prepare import Prepared
from fracray.metrics import Interval, cross_fitted, fit_temperature, score
from fracray.runtime.console import new_console
from fracray.search.results import _gains, _say_gains, _say_unequal, say_few_compared, told_over_folds
from fracray.search.states import State
from fracray.search.trials_table import TrialRow
from fracray.training.checkpoint import PREDICTIONS, CheckpointMetadata, save_checkpoint
from fracray.training.epochs import EpochResult
from fracray.training.model import build_model


def said(capsys, gains, number=3):
    _say_gains(new_console(), number, gains)
    return " ".join(capsys.readouterr().out.split())


def test_the_gain_says_what_its_interval_holds_and_what_it_lacks(capsys):
    """Between equal configurations of two seeds, five of ten intervals of AUROC excluded 0."""
    printed = said(capsys, {"val_auroc": Interval(0.02, -0.01, 0.05)})
    assert "+0.0200 val_auroc [-0.0100, +0.0500]" in printed
    assert "holds what other groups of validation radiographs would change" in printed
    assert "not what another training seed would" in printed
    assert "use the test split" in printed


def test_a_default_with_fewer_epochs_than_the_best_trial_is_said(capsys):
    default, best = (
        TrialRow(number, {}, State.STOPPED, tuple(EpochResult(k + 1, {}, {}, 1.0) for k in range(epochs)))
        for number, epochs in ((0, 2), (3, 9))
    )
    _say_unequal(new_console(), default, best)
    assert "t0000 had 2 epochs, t0003 had 9" in " ".join(capsys.readouterr().out.split())
    _say_unequal(new_console(), best, best)
    assert capsys.readouterr().out == ""


def test_a_gain_without_an_interval_has_no_brackets_and_no_words_on_one(capsys):
    printed = said(capsys, {"val_auroc": Interval(0.02, nan, nan)})
    assert "+0.0200 val_auroc" in printed
    assert "nan" not in printed
    assert "interval" not in printed


@pytest.fixture
def checkpoints(tmp_path):
    generator = np.random.default_rng(0)
    groups = np.repeat([f"g{k}" for k in range(12)], 20)
    labels = (generator.random(240) < 0.3).astype(np.int8)
    folders = []
    for name, strength in (("best", 1.5), ("default", 0.5)):
        logits = (generator.normal(0, 1, 240) + strength * labels).astype(np.float32)
        table = pd.DataFrame(
            {"image_id": [f"i{k}" for k in range(240)], "group": groups, "label": labels, "split": "val"}
        ).assign(logit=logits)
        calibration = fit_temperature(labels, logits)
        metadata = CheckpointMetadata(Config(), 0.4, calibration, metrics={}, data_fingerprint="", epoch=1)
        model = build_model(Config().model)
        save_checkpoint(tmp_path / name, model.state_dict(), metadata, table)
        folders.append(tmp_path / name)
    return folders


@pytest.mark.parametrize("metric", ["val_auroc", "val_brier", "val_ece", "val_accuracy"])
def test_the_gain_is_the_difference_of_what_the_epochs_report(checkpoints, metric):
    bare = metric.removeprefix("val_")
    values = []
    for folder in checkpoints:
        seen = pd.read_parquet(folder / PREDICTIONS)
        told = fit_temperature(seen["label"], seen["logit"]).apply(seen["logit"])
        honest = cross_fitted(seen["label"], seen["logit"], seen["group"])
        values.append(getattr(score(seen["label"], told, 0.4, seen["group"], honest), bare))
    gain = _gains(*checkpoints, metric, ["val"])[metric]
    assert gain.value == pytest.approx(values[0] - values[1], abs=1e-6)
    assert gain.low < gain.value < gain.high


def test_beside_the_gain_in_a_loss_stand_accuracy_and_auroc(checkpoints, capsys):
    gains = _gains(*checkpoints, "val_loss", ["val"])
    assert list(gains) == ["val_loss", "val_accuracy", "val_auroc"]
    for name in ("val_accuracy", "val_auroc"):
        assert gains[name] == _gains(*checkpoints, name, ["val"])[name]
    losses = []
    for folder in checkpoints:
        table = pd.read_parquet(folder / PREDICTIONS)
        labels, logits, groups = (table[name].to_numpy() for name in ("label", "logit", "group"))
        told = cross_fitted(labels, logits, groups)
        losses.append(-np.mean(np.where(labels > 0.5, np.log(told), np.log1p(-told))))
    assert gains["val_loss"].value == pytest.approx(losses[0] - losses[1])
    assert losses[0] < losses[1]
    assert f"val_loss lower by {losses[1] - losses[0]:.4f}" in said(capsys, gains)


def test_beside_the_gain_in_accuracy_stands_auroc(checkpoints):
    """Where most radiographs are of one class, a search by accuracy may choose a model that ranks them worse."""
    best, default = checkpoints
    assert list(_gains(best, default, "val_accuracy", ["val"])) == ["val_accuracy", "val_auroc"]
    assert list(_gains(best, default, "val_auroc", ["val"])) == ["val_auroc"]
    assert told_over_folds("val_sensitivity") == ("val_sensitivity", "val_auroc")


def test_a_gain_where_lower_is_better_is_told_as_how_much_lower(capsys):
    printed = said(capsys, {"val_brier": Interval(-0.02, -0.05, 0.01), "val_ece": Interval(0.0, nan, nan)})
    assert "val_brier lower by 0.0200 [-0.0100, 0.0500]" in printed
    assert "val_ece lower by 0.0000" in printed


def test_few_groups_are_those_of_the_sets_in_which_a_gain_is_told(capsys):
    groups = [f"g{row % 60}" for row in range(240)]
    table = pd.DataFrame({"group": groups, "label": np.arange(240) // 60 % 2, "split": "val"})
    table.loc[table["group"].isin(groups[:4]), "split"] = "val/device"
    table.loc[table["group"].isin(groups[4:15]), "split"] = "val/view"
    prepared = Prepared(Config().data, None, None, table, ())

    def noted(metric):
        say_few_compared(new_console(), prepared, metric)
        return capsys.readouterr().out

    assert noted("val_auroc") == ""
    assert "only 4 groups in val/device, and an interval needs at least 5" in noted("val/device_auroc")
    worst = noted("worst_val_auroc")
    assert "only 4 groups in val/device" in worst
    assert "only 11 groups in val/view: the intervals are rough" in worst
    crossed = Config().with_leaves({"data.split.protocol": "kfold", "data.split.cross_validate": True}).data
    few = np.where(table.index < 10, "val", "train")
    prepared = Prepared(crossed, None, None, table, (), rotations=(few, few))
    assert "only 10 groups: the intervals" in noted("val_auroc")
