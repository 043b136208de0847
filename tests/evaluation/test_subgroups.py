"""Subgroups: the scores are those of the radiographs by themselves, and few radiographs give none."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from fracray.config import Config
from fracray.data.prepare import Prepared
from fracray.errors import InputError
from fracray.evaluation.asked import SUBGROUPS, read_axes, read_costs, read_prevalence
from fracray.evaluation.scoring import Scored
from fracray.evaluation.subgroups import AXES, FEWEST, SIZES, check_axes, divide, score_subgroups
from fracray.metrics import score_intervals


def table_of(n=400):
    """Radiographs with every tag; every tenth has a second region, and no region is known of every third."""
    generator = np.random.default_rng(0)
    at = np.arange(n)
    labels = (generator.random(n) < 0.3).astype(int)
    region = np.where(at % 10 == 0, "hand+leg", np.where(at % 3 == 0, "", np.where(at % 2, "hand", "leg")))
    side = generator.choice([5.0, 8.0, 20.0], n)  # of pictures of 100 x 100: 0.25%, 0.64% and 4%
    return pd.DataFrame(
        {
            "label": labels,
            "group": [f"g{i // 10}" for i in at],
            "region": region,
            "view": "frontal",
            "hardware": (at % 5 == 0).astype(int),
            "multiscan": 0,
            "batch": np.where(at % 4 == 0, "Maker A+B", "small"),
            "age": np.where(at % 3 == 0, np.nan, (at % 90).astype(float)),
            "sex": np.where(at % 2 == 0, "F", ""),
            "boxes": [
                [[0.0, 0.0, s, s]] if y and i % 8 else [] for i, (y, s) in enumerate(zip(labels, side, strict=True))
            ],
            "boxes_width": 100,
            "boxes_height": 100,
        }
    )


def scored_of(table, rows=None):
    generator = np.random.default_rng(1)
    prepared = Prepared(Config().data, None, None, table, ())
    rows = np.arange(len(table)) if rows is None else rows
    labels = table["label"].to_numpy()[rows]
    return Scored(prepared, rows, expit(generator.normal(1.5 * labels - 1, 1)), np.full(len(rows), 0.4))


def by_name(found):
    return {(one.axis, one.name): one for one in found}


def test_the_scores_of_a_subgroup_are_those_of_its_radiographs():
    table = table_of()
    scored = scored_of(table, np.arange(0, 400, 1)[20:])
    found = by_name(score_subgroups(scored, ["region", "device", "hardware", "sex"]))
    for key, inside in {
        ("region", "hand"): table["region"].isin(["hand", "hand+leg"]),
        ("region", "leg"): table["region"].isin(["leg", "hand+leg"]),
        ("region", "unknown"): table["region"] == "",
        ("device", "Maker A+B"): table["batch"] == "Maker A+B",  # a manufacturer's plus is no list
        ("hardware", "yes"): table["hardware"] == 1,
        ("sex", "F"): table["sex"] == "F",
        ("sex", "unknown"): table["sex"] == "",
    }.items():
        mask = inside.to_numpy()[scored.rows]
        known = score_intervals(
            scored.labels[mask], scored.probabilities[mask], scored.groups[mask], scored.thresholds[mask]
        )
        one = found[key]
        assert (one.positives, one.negatives) == (scored.labels[mask].sum(), (1 - scored.labels[mask]).sum())
        for name in ("auroc", "sensitivity", "specificity", "balanced_accuracy", "calibration_intercept"):
            assert one.scores[name].value == pytest.approx(known[name].value), (key, name)
            assert one.scores[name].low == pytest.approx(known[name].low), (key, name)


def test_a_size_of_fracture_has_a_sensitivity_and_an_auroc_against_all_negatives():
    table = table_of()
    scored = scored_of(table)
    found = by_name(score_subgroups(scored, ["box"]))
    assert [name for _, name in found] == ["below 0.4%", "0.4% to 1.0%", "1.0% and more", "no box"]
    assert sum(one.positives for one in found.values()) == table["label"].sum()
    area = table["boxes"].map(lambda boxes: sum(w * h for _, _, w, h in boxes) / 1e4).to_numpy()
    small = (area > 0) & (area < SIZES[0])
    one = found["box", "below 0.4%"]
    assert one.negatives == (table["label"] == 0).sum()
    against = small | (scored.labels == 0)
    assert one.scores["auroc"].value == pytest.approx(
        roc_auc_score(scored.labels[against], scored.probabilities[against])
    )
    assert one.scores["sensitivity"].value == pytest.approx((scored.probabilities[small] >= 0.4).mean())
    assert set(one.scores) == {"auroc", "sensitivity"}


def test_fewer_than_ten_of_a_class_have_no_score_and_a_word():
    table = table_of()
    positives = np.flatnonzero(table["label"] == 1)
    table["sex"] = "M"
    for sex, count in (("F", FEWEST), ("O", FEWEST - 1)):
        table.loc[positives[:count], "sex"] = sex
        positives = positives[count:]
    negatives = np.flatnonzero(table["label"] == 0)
    table.loc[negatives[:40], "sex"] = "F"
    table.loc[negatives[40:80], "sex"] = "O"
    found = by_name(score_subgroups(scored_of(table), ["sex"]))
    assert found["sex", "F"].scores
    assert not found["sex", "O"].scores
    assert found["sex", "O"].suppressed == "only 9 fractured: fewer than 10"
    assert found["sex", "O"].as_dict()["suppressed"]


def test_ages_are_in_bands_and_every_radiograph_is_in_one():
    table = table_of()
    parts = divide(table, "age")
    assert list(parts) == ["under 18", "18 to 39", "40 to 64", "65 and over", "unknown"]
    assert (np.sum(list(parts.values()), axis=0) == 1).all()
    assert table["age"][parts["18 to 39"]].between(18, 39).all()
    assert parts["unknown"].sum() == table["age"].isna().sum()
    assert divide(table.assign(age=17.9), "age")["under 18"].all()
    assert divide(table.assign(age=18.0), "age")["18 to 39"].all()


def test_the_axes_of_the_command_are_those_that_there_are():
    assert tuple(AXES) == SUBGROUPS
    assert read_axes("view, region,view") == ("view", "region")
    with pytest.raises(InputError, match=r"--by regoin: .* not divided by 'regoin' \(did you mean 'region'\?\)"):
        read_axes("regoin")
    table = table_of().assign(age=np.nan, sex="")
    check_axes(table, ["region", "box"], "there")
    with pytest.raises(InputError, match=r"--by sex: it is not known of .* there; known are region, view"):
        check_axes(table, ["region", "sex"], "there")


@pytest.mark.parametrize("text", ["10", "0:1", "1:-1", "a:b", "1:2:3", "inf:1", "nan:1", ""])
def test_a_cost_ratio_is_two_numbers_above_0(text):
    assert read_costs("10:1") == (10, 1)
    with pytest.raises(InputError, match=r"--cost-ratio .*10:1"):
        read_costs(text)


@pytest.mark.parametrize("text", ["0", "1", "5%", "5", "nan", "-0.1"])
def test_a_prevalence_is_a_share(text):
    assert read_prevalence("0.05") == 0.05
    with pytest.raises(InputError, match=r"--prevalence .*0\.05 for 5%"):
        read_prevalence(text)
