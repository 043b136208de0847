from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from fracray.config import DataConfig
from fracray.data.baselines import (
    cross_fitted_baselines,
    no_pixel_baselines,
    score_leak,
    score_shortcuts,
)
from fracray.data.manifest import BORDERS
from fracray.data.prepare import Prepared

# ---------------------------------------------------------------- baselines


def drawn_table(seed: int = 0, count: int = 400) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    label = rng.random(count) < np.where(np.arange(count) // 20 % 2, 0.9, 0.05)
    return pd.DataFrame(
        {
            "image_id": [f"IMG{n:07d}" for n in range(count)],
            "path": "",
            "component": "",
            "label": label.astype(np.int8),
            "split": rng.choice(["train", "val", "test"], count, p=[0.7, 0.15, 0.15]),
            "region": rng.choice(["hand", "leg", "hand+hip"], count),
            "view": rng.choice(["frontal", "lateral"], count),
            "hardware": (label & (rng.random(count) < 0.8)).astype(np.int8),
            "multiscan": rng.integers(0, 2, count).astype(np.int8),
        }
    )


def test_baselines_find_the_shortcut_that_was_put_there():
    table = drawn_table()
    scores = {(score.name, score.part): score for score in no_pixel_baselines(table)}
    assert {name for name, _ in scores} == {"majority", "tags", "id neighbours"}
    for part in ("val", "test"):
        label = table.loc[table["split"] == part, "label"]
        majority = scores["majority", part]
        assert (majority.auroc, majority.balanced_accuracy) == (0.5, 0.5)
        frequent = table.loc[table["split"] == "train", "label"].mode()[0]
        assert majority.accuracy == pytest.approx((label == frequent).mean())
        hardware = roc_auc_score(label, table.loc[table["split"] == part, "hardware"])
        assert scores["tags", part].auroc == pytest.approx(hardware, abs=0.05)
        assert scores["id neighbours", part].auroc > 0.8


def test_baselines_see_nothing_in_labels_drawn_at_random():
    table = drawn_table(count=4000)
    table["label"] = np.random.default_rng(1).integers(0, 2, len(table))
    table["hardware"] = 0
    for score in no_pixel_baselines(table):
        assert score.auroc == pytest.approx(0.5, abs=0.08)


def test_baselines_without_numbers_classes_or_parts():
    table = drawn_table()
    named = table.assign(image_id=[f"{name}-left" for name in table["image_id"]])
    assert {score.name for score in no_pixel_baselines(named)} == {"majority", "tags"}
    one_class = table.assign(label=np.where(table["split"] == "test", 1, table["label"]))
    assert all(np.isnan(score.auroc) for score in no_pixel_baselines(one_class, sets=("test",)))
    assert {score.part for score in no_pixel_baselines(table[table["split"] != "val"])} == {"test"}
    assert no_pixel_baselines(table[table["split"] == "test"]) == ()
    untaught = table.assign(label=np.where(table["split"] == "train", 0, table["label"]))
    assert all(score.auroc == 0.5 for score in no_pixel_baselines(untaught))


def test_beside_means_over_folds_stand_the_predictors_means_over_the_same_folds():
    splits = tuple(drawn_table(seed)["split"].to_numpy() for seed in range(3))
    table = drawn_table().assign(split=splits[0])
    prepared = Prepared(DataConfig(), None, None, table, no_pixel_baselines(table), rotations=splits)
    each = [no_pixel_baselines(table.assign(split=split), ["val"]) for split in splits]
    assert len(each[0]) == 3
    for name, *folds in zip([one.name for one in each[0]], *each, strict=True):
        (found,) = [one for one in prepared.over_folds().baselines if (one.name, one.part) == (name, "val")]
        assert found.accuracy == pytest.approx(np.mean([one.accuracy for one in folds]))
        assert found.auroc == pytest.approx(np.mean([one.auroc for one in folds]))
        assert found.accuracy != folds[0].accuracy
    alone = replace(prepared, rotations=splits[:1])
    assert alone.over_folds() is alone


# ---------------------------------------------------------------- shortcuts of an audit


def used_table(seed: int = 0, count: int = 800) -> pd.DataFrame:
    """Labels that nothing predicts; a test then adds one shortcut to them."""
    rng = np.random.default_rng(seed)
    return drawn_table(seed, count).assign(
        label=rng.integers(0, 2, count).astype(np.int8),
        group=[f"g{n // 10}" for n in range(count)],
        hardware=0,
        width=rng.integers(300, 400, count),
        height=rng.integers(300, 400, count),
        brightness=rng.normal(100, 10, count),
        mode=rng.choice(["L", "RGB"], count),
        **{name: rng.integers(0, 20, count) for name in BORDERS},
    )


def scored(table: pd.DataFrame) -> dict[str, float]:
    return {shortcut.name: shortcut.auroc.value for shortcut in score_shortcuts(table)}


NO_BORDERS = dict.fromkeys(BORDERS, 0)  # their shares of the side would tell the size
NAMES = ["size", "mode", "borders", "brightness", "tags", "id neighbours", "together"]


def test_without_a_shortcut_every_interval_holds_chance():
    found = score_shortcuts(used_table())
    assert [shortcut.name for shortcut in found] == NAMES
    for shortcut in found:
        assert not shortcut.unscored
        assert shortcut.auroc.low <= shortcut.auroc.value <= shortcut.auroc.high
        assert shortcut.auroc.value == pytest.approx(0.5, abs=0.1), shortcut.name


@pytest.mark.parametrize(
    ("name", "add_shortcut"),
    [
        ("size", lambda t: dict.fromkeys(("width", "height"), np.where(t["label"], 400, 300)) | NO_BORDERS),
        ("mode", lambda t: {"mode": np.where(t["label"], "L", "RGB")}),
        ("borders", lambda t: {"white_bottom": 30 * t["label"]}),
        ("borders", lambda t: {"black_left": 30 * t["label"], "black_right": 30 * t["label"]}),
        ("brightness", lambda t: {"brightness": np.where(t["label"], 120.0, np.nan)}),
        ("tags", lambda t: {"view": np.where(t["label"], "lateral", "frontal")}),
        ("id neighbours", lambda t: {"label": (np.arange(len(t)) // 100 % 2).astype(np.int8)}),
    ],
    ids=["size", "mode", "white border", "letterbox", "brightness", "tags", "id neighbours"],
)
def test_the_only_shortcut_is_named(name, add_shortcut):
    table = used_table()
    found = scored(table.assign(**add_shortcut(table)))
    assert found[name] > 0.95
    assert found["together"] > 0.9
    for other in set(NAMES) - {name, "together"}:
        assert np.isnan(found[other]) or found[other] == pytest.approx(0.5, abs=0.12), other


def test_a_shortcut_is_found_in_forty_images_too():
    table = used_table(count=40)
    sizes = dict.fromkeys(("width", "height"), np.where(table["label"], 400, 300))
    assert scored(table.assign(**sizes))["size"] > 0.95


def test_what_cannot_be_scored_says_why():
    table = used_table().assign(mode="L", region="", view="", hardware=0, multiscan=0, **dict.fromkeys(BORDERS, 0))
    table["image_id"] = [f"{name}-left" for name in table["image_id"]]
    why = {shortcut.name: shortcut.unscored for shortcut in score_shortcuts(table)}
    assert why == {
        "size": "",
        "mode": "the same in every file",
        "borders": "the same in every file",
        "brightness": "",
        "tags": "no tags",
        "id neighbours": "file names without running numbers",
        "together": "",
    }
    assert score_leak(table, {1: np.arange(len(table))}) == ()
    one = score_shortcuts(used_table().assign(group="g"))
    assert {shortcut.unscored for shortcut in one} == {"fewer than two groups"}
    assert all(np.isnan(shortcut.auroc.value) for shortcut in one)


def test_file_numbers_give_away_less_the_larger_the_blocks_held_out():
    table = used_table()
    table["label"] = (np.arange(len(table)) // 60 % 2).astype(np.int8)
    groups = {block: np.arange(len(table)) // block for block in (1, 60, len(table))}
    random, blocks = score_leak(table, groups)
    assert (random.block, blocks.block) == (1, 60)  # all in one group: nothing to hold out
    assert random.auroc.value > 0.98
    assert blocks.auroc.value < 0.6


def test_equal_tables_give_equal_scores():
    assert score_shortcuts(used_table(count=300)) == score_shortcuts(used_table(count=300))


def test_cross_fitted_baselines_hold_out_groups():
    table = used_table().assign(hardware=lambda t: t["label"])
    scores = {score.name: score for score in cross_fitted_baselines(table)}
    assert scores["tags"].auroc == 1.0
    assert (scores["majority"].part, scores["majority"].auroc) == ("all", 0.5)
    assert cross_fitted_baselines(table.assign(group="g")) == ()
