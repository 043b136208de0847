"""evaluate --by, --operating-points, --saliency, --against and --csv, on trained networks, counted again by hand."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import auc, average_precision_score, brier_score_loss, roc_auc_score

from fracray.config import PhantomConfig
from fracray.data.phantom.draw import write_phantoms
from fracray.data.prepare import Prepared, prepare
from fracray.errors import InputError
from fracray.evaluate import main
from fracray.evaluation.comparison import rows_for
from fracray.evaluation.operating import score_operating_points, validation
from fracray.evaluation.scoring import Scored
from fracray.metrics import choose_operating_points
from fracray.runtime.console import new_console
from fracray.train import main as train
from fracray.training.checkpoint import SEEN_COLUMNS, load_checkpoint, read_predictions, save_checkpoint

SETTINGS = ("data.size=96", "data.phantom.count=200", "data.split.block=10", "model.width=8", "train.lr=5e-3")


@pytest.fixture(scope="module")
def runs(ray_local, tmp_path_factory):
    """The folder of two trainings, with a map and without, and of radiographs that neither has seen."""
    folder = tmp_path_factory.mktemp("runs")
    for name, localise in (("where", "true"), ("blind", "false")):
        settings = [word for setting in (*SETTINGS, f"model.localise={localise}") for word in ("--set", setting)]
        train([*settings, "--epochs", "5", "--storage", str(folder), "--name", name, "--cpus-per-worker", "1"])
    write_phantoms(folder / "other", PhantomConfig(count=200, seed=9))
    return folder


def evaluate(run, folder, *flags):
    main([str(run), "--json", str(folder / "scores.json"), *map(str, flags)])
    return json.loads((folder / "scores.json").read_text())


@pytest.fixture(scope="module")
def found(runs, tmp_path_factory):
    """All flags at once on the unseen radiographs."""
    folder = tmp_path_factory.mktemp("found")
    flags = ["--by", "region,hardware,box", "--operating-points", "--cost-ratio", "10:1", "--saliency"]
    flags += ["--against", runs / "blind", "--csv", folder / "tables", "--data", runs / "other"]
    return evaluate(runs / "where", folder, *flags), folder / "tables"


def told(tree):
    return tuple(np.array([one[name] for one in tree["predictions"]]) for name in ("label", "probability"))


def test_thresholds_are_those_of_validation_and_what_they_reach_is_counted_here(runs, found):
    tree, _ = found
    labels, probabilities = told(tree)
    checkpoint = load_checkpoint(runs / "where/best")
    kept = read_predictions(runs / "where/best")
    kept = kept[kept["split"] == "val"]
    there = checkpoint.metadata.calibration.apply(kept["logit"].to_numpy())
    points = {one["name"]: one for one in tree["operating_points"]["points"]}
    assert list(points) == [
        "checkpoint",
        *("specificity_0.90", "specificity_0.95", "sensitivity_0.90", "sensitivity_0.95", "youden", "cost"),
    ]
    assert points["checkpoint"]["thresholds"] == [checkpoint.metadata.threshold]
    for name, one in points.items():
        (threshold,) = one["thresholds"]
        on_val = ((there >= threshold) == 1)[kept["label"] == 1].mean(), (there < threshold)[kept["label"] == 0].mean()
        assert tuple(one["on_validation"].values()) == pytest.approx(on_val), name
        kind, _, target = name.partition("_")
        if target:
            assert one["on_validation"][kind] >= float(target)
        called = probabilities >= threshold
        known = {
            "sensitivity": called[labels == 1].mean(),
            "specificity": (~called)[labels == 0].mean(),
            "ppv": labels[called].mean() if called.any() else None,
            "npv": (1 - labels)[~called].mean() if not called.all() else None,
        }
        for score, value in known.items():
            assert one["reached"][score]["value"] == (value if value is None else pytest.approx(value)), (name, score)
    assert tree["operating_points"]["prevalence"] == pytest.approx(labels.mean())
    assert tree["operating_points"]["prevalence_is"] == "of the set itself"
    row = next(row for row in tree["decision_curve"] if row["threshold_probability"] == 0.25)
    called = probabilities >= 0.25
    benefit = (labels * called).mean() - ((1 - labels) * called).mean() / 3
    assert row["model"] == pytest.approx(benefit)
    assert row["model_low"] < benefit < row["model_high"]


def test_at_a_given_prevalence_the_probabilities_move_to_it(runs, tmp_path):
    tree = evaluate(runs / "where", tmp_path, "--data", runs / "other", "--operating-points", "--prevalence", "0.05")
    labels, probabilities = told(tree)
    share = validation(load_checkpoint(runs / "where/best"))[0].mean()
    odds = probabilities / (1 - probabilities) * (0.05 / 0.95) / (share / (1 - share))
    called = odds / (1 + odds) >= 0.1
    benefit = 0.05 * called[labels == 1].mean() - 0.95 * called[labels == 0].mean() / 9
    row = next(row for row in tree["decision_curve"] if row["threshold_probability"] == 0.1)
    assert row["model"] == pytest.approx(benefit)
    assert row["treat_all"] == pytest.approx(0.05 - 0.95 / 9)
    one = next(one for one in tree["operating_points"]["points"] if one["name"] == "youden")["reached"]
    hits, alarms = 0.05 * one["sensitivity"]["value"], 0.95 * (1 - one["specificity"]["value"])
    assert one["ppv"]["value"] == pytest.approx(hits / (hits + alarms))


def test_curves_and_subgroups_in_the_json(found):
    tree, _ = found
    labels, probabilities = told(tree)
    curves = tree["curves"]
    area = auc(curves["roc"]["false_positive_rate"], curves["roc"]["sensitivity"])
    assert (
        area == pytest.approx(tree["scores"]["auroc"]["value"]) == pytest.approx(roc_auc_score(labels, probabilities))
    )
    steps = np.diff([0, *curves["precision_recall"]["recall"]]) * curves["precision_recall"]["precision"]
    assert steps.sum() == pytest.approx(average_precision_score(labels, probabilities))
    assert sum(curves["confusion"].values()) == len(labels)
    reached = curves["confusion"]["true_positive"] / labels.sum()
    assert reached == pytest.approx(tree["scores"]["sensitivity"]["value"])
    assert sum(one["images"] for one in curves["reliability"]) == len(labels)
    by_axis = {}
    for one in tree["subgroups"]:
        by_axis.setdefault(one["axis"], []).append(one)
    assert list(by_axis) == ["region", "hardware", "box"]
    assert sum(one["positives"] for one in by_axis["hardware"]) == labels.sum()
    assert sum(one["negatives"] for one in by_axis["hardware"]) == (1 - labels).sum()
    assert all(bool(one["suppressed"]) == (not one["scores"]) for one in tree["subgroups"])


def test_where_it_looks_and_the_sanity_check(found):
    tree, _ = found
    assert [one["method"] for one in tree["saliency"]] == ["localiser", "grad_cam"]
    assert [one["cells"] for one in tree["saliency"]] == [6, 3]
    for one in tree["saliency"]:
        everything = one["looked"][0]
        assert everything["images"] == sum(row["label"] for row in tree["predictions"])
        called = {row["name"]: row["images"] for row in one["looked"]}
        assert called["called fractured"] + called.get("missed", 0) == everything["images"]
        for pointer in everything["pointers"].values():
            assert all(0 <= pointer[measure]["low"] <= pointer[measure]["high"] <= 1 for measure in ("hit", "energy"))
        levels = one["sanity"]["levels"]
        assert [level["random"] for level in levels][::3] == ["the head", "all weights"]
        assert abs(levels[-1]["similarity"]["value"]) < 0.5
    # No cell is highest together with another one, so the hits are those of the sentence.
    localiser = tree["saliency"][0]["looked"][0]["pointers"]
    assert localiser["map"]["hit"]["value"] == pytest.approx(tree["localisation"]["hit"]["value"])
    assert localiser["random"]["hit"]["value"] == pytest.approx(tree["localisation"]["random"]["value"])
    assert localiser["map"]["hit"]["value"] > localiser["random"]["hit"]["value"]


def test_differences_are_those_of_two_evaluations(runs, found, tmp_path):
    tree, _ = found
    alone = evaluate(runs / "blind", tmp_path, "--data", runs / "other")
    labels, ours = told(tree)
    _, theirs = told(alone)
    compared = tree["against"]["metrics"]
    for name in ("auroc", "average_precision", "accuracy", "balanced_accuracy", "brier"):
        one = compared[name]
        assert one["ours"] == pytest.approx(tree["scores"][name]["value"]), name
        assert one["theirs"] == pytest.approx(alone["scores"][name]["value"]), name
        assert one["difference"]["value"] == pytest.approx(one["ours"] - one["theirs"]), name
        assert one["difference"]["low"] < one["difference"]["value"] < one["difference"]["high"], name
    assert compared["brier"]["theirs"] == pytest.approx(brier_score_loss(labels, theirs))
    check = tree["against"]["delong"]
    assert check["difference"] == pytest.approx(roc_auc_score(labels, ours) - roc_auc_score(labels, theirs))
    assert 0 <= check["p"] <= 1


def test_a_folder_of_tables_describes_one_evaluation(runs, tmp_path):
    (tmp_path / "predictions.csv").write_text("of predict")
    with pytest.raises(InputError, match=r"holds predictions\.csv, which is of no evaluation"):
        main([str(runs / "where"), "--csv", str(tmp_path)])
    assert (tmp_path / "predictions.csv").read_text() == "of predict"

    for name in ("predictions.csv", "scores.csv", "saliency.csv"):
        (tmp_path / name).write_text("of an evaluation with --saliency")
    evaluate(runs / "where", tmp_path, "--csv", tmp_path)
    assert sorted(path.stem for path in tmp_path.glob("*.csv")) == [
        *("precision_recall", "predictions", "reliability", "roc", "scores")
    ]


def test_every_table_is_a_csv(found):
    tree, folder = found
    tables = {path.stem: pd.read_csv(path) for path in folder.iterdir()}
    assert set(tables) == {
        *("scores", "predictions", "roc", "precision_recall", "reliability", "subgroups", "operating_points"),
        *("decision_curve", "saliency", "sanity", "against"),
    }
    scores = tables["scores"].set_index(["set", "metric"])
    assert scores.loc[("all", "auroc"), "low"] == pytest.approx(tree["scores"]["auroc"]["low"])
    assert len(tables["predictions"]) == len(tree["predictions"])
    assert list(tables["roc"]["sensitivity"]) == pytest.approx(tree["curves"]["roc"]["sensitivity"])
    points = tables["operating_points"].set_index("name")
    known = tree["operating_points"]["points"][5]
    assert points.loc[known["name"], "ppv_high"] == pytest.approx(known["reached"]["ppv"]["high"])
    assert points.loc[known["name"], "threshold"] == pytest.approx(known["thresholds"][0])
    subgroups = tables["subgroups"]
    for place, one in enumerate(tree["subgroups"]):
        value = one["scores"].get("auroc", {"value": math.nan})["value"]
        assert subgroups["auroc"][place] == pytest.approx(value, nan_ok=True)
    assert set(tables["saliency"]["pointer"]) == {"map", "random", "centre", "usual"}
    assert "difference_low" in tables["against"]


def said(capsys):
    return " ".join(capsys.readouterr().out.split())


def test_what_is_printed_says_how_to_read_it(runs, tmp_path, capsys):
    flags = ["--split", "val", "--by", "region,box", "--operating-points", "--saliency", "--against", runs / "where"]
    tree = evaluate(runs / "where", tmp_path, *flags)
    out = said(capsys)
    for words in (
        "subgroups, at the same threshold and calibration",
        "too few: fewer than 10 radiographs of a class",
        "a radiograph with several regions or views counts in each of them",
        "operating points: thresholds fixed on validation",
        "which is no clinic's: give yours with --prevalence",
        "note: these radiographs are the validation set itself, so its thresholds look better than on new ones",
        "a missed fracture",
        "the groups are too few for intervals, so it cannot be said where the model is clearly worth more",
        "where it looks: the map of the localiser, 6 x 6 cells",
        "where it looks: Grad-CAM, 3 x 3 cells",
        "sanity check on",
        "lower is better",
        "another seed of either training could still change it",
    ):
        assert words in out, words
    assert "nan" not in out
    assert "DeLong" not in out  # of a model against itself there is no test
    assert all(one["difference"]["value"] == 0 for one in tree["against"]["metrics"].values())


def made_of(run, folder, leaves, seen=None, predictions=None):
    made = load_checkpoint(run)
    metadata = replace(made.metadata, config=made.metadata.config.with_leaves(leaves))
    save_checkpoint(folder, made.model.state_dict(), metadata, predictions, made.seen if seen is None else seen)
    return folder


def test_a_checkpoint_without_its_validation_has_no_operating_points(runs, tmp_path):
    bare = made_of(runs / "where/best", tmp_path / "bare", {})
    with pytest.raises(InputError, match=r"bare: has no val_predictions\.parquet, and operating points are fixed on"):
        main([str(bare), "--operating-points"])


def test_a_model_that_was_trained_on_these_radiographs_is_no_rival(runs, tmp_path):
    seen = load_checkpoint(runs / "blind/best").seen[[*SEEN_COLUMNS]]
    other = made_of(runs / "blind/best", tmp_path / "other", {}, seen.assign(split="train"))
    with pytest.raises(InputError, match=r"--against .*other: name a model of the same split: \d+ of these"):
        main([str(runs / "where"), "--split", "val", "--against", str(other)])


def test_a_network_without_maps_has_no_saliency(runs, tmp_path):
    settings = ["model.name=vit_tiny_patch16_224", "model.spatial_dropout=0", "data.size=32", *SETTINGS[1:3]]
    words = [word for setting in settings for word in ("--set", setting)]
    train([*words, "--epochs", "1", "--storage", str(tmp_path), "--name", "vit", "--cpus-per-worker", "1"])
    with pytest.raises(InputError, match="--saliency: vit_tiny_patch16_224 has neither a localiser nor feature maps"):
        main([str(tmp_path / "vit"), "--saliency"])


def test_each_fold_applies_its_own_thresholds(runs):
    """Two checkpoints with other thresholds: an image is called by the one of its fold."""
    one, two = (load_checkpoint(runs / name / "best") for name in ("where", "blind"))
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 200)
    table = pd.DataFrame({"label": labels, "group": [f"g{place // 10}" for place in range(200)]})
    prepared = Prepared(one.metadata.config.data, None, None, table, ())
    scored = Scored(prepared, np.arange(200), (labels + generator.random(200)) / 2, np.full(200, 0.5))
    fold = np.arange(len(scored.rows)) % 2
    pooled = replace(scored, folds=fold)
    point = {each.name: each for each in score_operating_points([one, two], pooled).points}["youden"]
    chosen = [choose_operating_points(*validation(each))["youden"] for each in (one, two)]
    assert point.thresholds == pytest.approx(chosen)
    called = scored.probabilities >= np.array(chosen)[fold]
    assert point.reached["sensitivity"].value == pytest.approx(called[scored.labels == 1].mean())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--prevalence", "0.1"], "--prevalence: only with --operating-points"),
        (["--cost-ratio", "2:1"], "--cost-ratio: only with --operating-points"),
        (["--operating-points", "--prevalence", "5%"], "--prevalence 5%"),
        (["--by", "colour"], "--by colour: radiographs are not divided by 'colour'"),
        (["--by", ""], "--by : radiographs are not divided by ''"),
        (["--cost-ratio", ""], "--cost-ratio: only with --operating-points"),
        (["--csv", __file__], "is a file; name a folder"),
        (["--by", "age"], "--by age: it is not known of any radiograph of phantom"),
        (["--against", "nowhere"], "no such checkpoint folder"),
    ],
)
def test_what_cannot_be_is_refused(runs, flags, words):
    with pytest.raises(InputError, match=words):
        main([str(runs / "where"), *flags])


def test_what_the_other_model_was_trained_on_does_not_count_for_it(runs):
    """On the other model's own data, which the first was not trained on, only what both have not seen is left."""
    other = load_checkpoint(runs / "blind/best")
    console = new_console()
    prepared = prepare(other.metadata.config.data, console)
    rows = np.arange(len(prepared.table))
    scored = Scored(prepared, rows, np.zeros(len(rows)), np.zeros(len(rows)))
    kept = rows_for("blind", other, scored, "the fingerprint of other data", "all", console)
    known = set(other.seen["pixel_hash"])
    assert not known & set(prepared.table["pixel_hash"][kept])
    assert set(prepared.rows("test")) <= set(rows[kept])
    assert rows_for("blind", other, scored, prepared.fingerprint, "all", console).all()  # asked for, of both


@pytest.mark.parametrize("flag", [["--saliency"], ["--against", "."]])
def test_folds_have_no_map_and_no_rival(runs, flag):
    with pytest.raises(InputError, match="takes one checkpoint at a time; name a single one"):
        main([str(runs / "where"), str(runs / "blind"), *flag])
