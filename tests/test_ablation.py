"""benchmarks/ablation.py, signals.py and anytime.py, from a pack of phantoms to their tables."""

import json
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml

from fracray.config import Config
from fracray.data.loading.plan import make_plan
from fracray.data.prepare import prepare
from fracray.metrics import auroc_over_folds
from fracray.runtime.console import new_console
from fracray.training.growth import work_in

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
SMALL = ["data.phantom.count=120", "data.split.block=2"]
TINY = {"model.width": 4, "train.batch_size": 32, "train.epochs": 2, "data.size": 32}


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        patch.setenv("FRACRAY_CACHE", str(tmp_path_factory.mktemp("cache")))
        import ablation
        import anytime
        import signals

        yield ablation, signals, anytime


@pytest.fixture(scope="module")
def pack(modules, ray_local, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pack") / "phantoms"
    modules[0].main(["pack", "--data", "phantom", "--size", "48", "--to", str(folder), "--set", *SMALL])
    return folder


def test_a_pack_holds_the_squares_and_the_folds(modules, pack):
    ablation = modules[0]
    table = pd.read_parquet(pack / "table.parquet")
    settings = {"data.phantom.count": 120, "data.split.block": 2, "data.size": 48, "data.split.protocol": "kfold"}
    for fold in range(5):
        config = Config().with_leaves({**settings, "data.split.fold": fold, "model.localise": True})
        prepared = prepare(config.data, new_console())
        assert (prepared.table["split"].to_numpy() == table[f"fold{fold}"].to_numpy()).all()
        ours, theirs = (
            ablation.plan_of(config, table, table[f"fold{fold}"]),
            make_plan(config, prepared.table, prepared.shards),
        )
        for name in ("train_rows", "val_rows", "labels", "groups"):
            assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name
        assert np.array_equal(ours.boxes.edges, theirs.boxes.edges)
        assert np.array_equal(ours.pictures.frames, theirs.pictures.frames)
        assert np.array_equal(ours.pictures.means, theirs.pictures.means)
    squares = ablation.unpacked(pack, 48).astype(int)
    assert np.abs(squares - prepared.shards.load()).mean() < 2  # they were coded as JPEG
    assert ablation.unpacked(pack, 24).shape == (len(table), 24, 24)
    with pytest.raises(SystemExit, match="holds squares of 48 pixels, and a recipe wants 96"):
        ablation.unpacked(pack, 96)


def test_steps_are_trained_on_every_fold_and_compared(modules, pack, tmp_path, capsys):
    ablation, signals, _ = modules
    recipes = {"base": TINY, "steps": {"default": {}, "wide": {"model.width": 8}}}
    (tmp_path / "recipes.yaml").write_text(yaml.safe_dump(recipes))
    words = ["run", "--pack", str(pack), "--recipes", str(tmp_path / "recipes.yaml"), "--every-epoch"]
    ablation.main([*words, "--seeds", "0", "1", "--processes", "2", "--to", str(tmp_path / "steps.npz")])
    assert "missing" not in capsys.readouterr().out
    found = ablation.read_runs([tmp_path / "steps.npz"])
    assert set(found) == {(name, fold, seed) for name in ("default", "wide") for fold in range(5) for seed in (0, 1)}

    ablation.main(["show", str(tmp_path / "steps.npz"), "--pack", str(pack), "--json", str(tmp_path / "a.json")])
    rows = json.loads((tmp_path / "a.json").read_text())["rows"]
    table = pd.read_parquet(pack / "table.parquet")
    first = rows[0]
    assert (first["recipe"], first["seeds"], first["gain"]["value"]) == ("default", [0], 0)
    assert first["images"] == len(table)  # every one is test once
    assert {(row["recipe"], tuple(row["seeds"])) for row in rows} == {
        *((name, seeds) for name in ("default", "wide") for seeds in ((0,), (1,), (0, 1))),
        *((f"{name}, and its mirror image", (0, 1)) for name in ("default", "wide")),
    }
    # The order of images within a fold is what counts, which no calibration changes.
    parts = [found["default", fold, 0] for fold in range(5)]
    test = np.concatenate([part["test_rows"] for part in parts])
    expected = auroc_over_folds(
        table["label"].to_numpy()[test],
        1 / (1 + np.exp(-np.concatenate([part["test_logits"] for part in parts]))),
        table["group"].to_numpy()[test],
        np.repeat(range(5), [len(part["test_rows"]) for part in parts]),
    )
    assert first["auroc"]["value"] == pytest.approx(expected.value)

    signals.main(["show", str(tmp_path / "steps.npz"), "--pack", str(pack), "--json", str(tmp_path / "s.json")])
    told = {row["metric"]: row for row in json.loads((tmp_path / "s.json").read_text())["rows"]}
    assert set(told) == set(ablation.CURVE)
    curves = np.array(
        [[[found[n, f, s]["curve"][:, 2] for s in (0, 1)] for f in range(5)] for n in ("default", "wide")]
    )
    assert told["val_auroc"]["seeds"] == pytest.approx(curves.max(-1).std(2, ddof=1).mean())
    assert all(-1 <= row["correlation"] <= 1 for row in told.values() if row["correlation"] == row["correlation"])


def test_the_models_of_all_rotations_of_a_fold_are_one_ensemble(modules, pack, tmp_path, capsys):
    ablation = modules[0]
    (tmp_path / "recipes.yaml").write_text(yaml.safe_dump({"base": TINY, "steps": {"default": {}}}))
    words = ["run", "--pack", str(pack), "--recipes", str(tmp_path / "recipes.yaml"), "--rotations", "4"]
    ablation.main([*words, "--processes", "2", "--to", str(tmp_path / "folds.npz")])
    assert set(ablation.read_runs([tmp_path / "folds.npz"])) == {("default", fold, 0) for fold in range(5)}
    models = ablation.read_rotations([tmp_path / "folds.npz"])
    ablation.main(["show", str(tmp_path / "folds.npz"), "--pack", str(pack), "--json", str(tmp_path / "a.json")])
    names = {row["recipe"]: row for row in json.loads((tmp_path / "a.json").read_text())["rows"]}
    table = pd.read_parquet(pack / "table.parquet")
    labels, groups = table["label"].to_numpy(), table["group"].to_numpy()
    tested, told, folds = [], [], []
    for fold in range(5):
        each = models["default", fold]
        held_out = np.concatenate([one["val_rows"] for one in each])
        outside = np.flatnonzero((table[f"fold{fold}"] != "test").to_numpy())
        assert sorted(held_out) == sorted(set(held_out)), "each is held out once"
        assert set(held_out) <= set(outside)
        for one, column in zip(each, (f"fold{fold}", *(f"fold{fold}.{turn}" for turn in (1, 2, 3))), strict=True):
            assert np.array_equal(one["val_rows"], np.flatnonzero((table[column] == "val").to_numpy()))
        tested.append(each[0]["test_rows"])
        told.append(np.mean([one["test_logits"] for one in each], axis=0))
        folds.append(np.full(len(told[-1]), fold))
    rows = np.concatenate(tested)
    auroc = auroc_over_folds(labels[rows], np.concatenate(told), groups[rows], np.concatenate(folds)).value
    assert names["default, 4 models of each fold"]["auroc"]["value"] == pytest.approx(auroc)
    assert "default, 4 models of each fold, and mirrored" in names


def test_a_fold_that_is_missing_leaves_its_step_out(modules, pack, tmp_path, capsys):
    ablation = modules[0]
    (tmp_path / "recipes.yaml").write_text(yaml.safe_dump({"base": TINY, "steps": {"default": {}}}))
    words = ["run", "--pack", str(pack), "--recipes", str(tmp_path / "recipes.yaml"), "--budget", "0"]
    ablation.main([*words, "--to", str(tmp_path / "none.npz")])
    assert "5 of 5 trainings are missing" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no step is called other"):
        ablation.main([*words, "--only", "other", "--to", str(tmp_path / "none.npz")])


def test_the_metric_that_tells_configurations_apart_is_found(modules):
    """Ten configurations of known worth: one metric follows it, the other is noise."""
    signals = modules[1]
    random = np.random.default_rng(0)
    worth = np.linspace(0.7, 0.9, 10)[:, None, None, None] + np.zeros((10, 5, 3, 4))
    test = worth + 0.002 * random.standard_normal(worth.shape)
    names = [signals.DEFAULT, *(f"random {number}" for number in range(9))]
    good = signals._row("val_auroc", worth + 0.005 * random.standard_normal(worth.shape), test, names)
    loss = signals._row("val_loss", 1 - worth + 0.005 * random.standard_normal(worth.shape), test, names)
    noise = signals._row("val_accuracy", random.standard_normal(worth.shape), test, names)
    assert good["correlation"] > 0.9
    assert loss["correlation"] > 0.9  # less is better
    assert abs(noise["correlation"]) < 0.4
    assert good["gain"] == pytest.approx(0.2, abs=0.02)
    assert good["configurations"] > 5 * good["seeds"]
    assert noise["gain"] < good["gain"]


def test_the_cost_of_a_step_is_that_of_all_its_epochs_on_all_images(modules, pack, tmp_path, monkeypatch):
    ablation = modules[0]
    steps = {"short": {}, "growing": {"train.epochs": 12, "train.first_size": 16}}
    (tmp_path / "recipes.yaml").write_text(yaml.safe_dump({"base": {**TINY, "train.epochs": 3}, "steps": steps}))
    words = ["cost", "--pack", str(pack), "--recipes", str(tmp_path / "recipes.yaml"), "--processes", "1"]
    ablation.main([*words, "--images", "40", "--json", str(tmp_path / "cost.json")])
    found = {row["recipe"]: row for row in json.loads((tmp_path / "cost.json").read_text())["rows"]}
    assert {name: row["epochs"] for name, row in found.items()} == {"short": 3, "growing": 12}
    assert all(0 < row["minutes"] <= row["most"] for row in found.values())
    with pytest.raises(SystemExit, match="short: too few epochs; the second of at least three is timed"):
        ablation.main([*words, "--only", "short", "--set", "train.epochs=2"])

    trained = []  # images of each epoch; one of all of them takes a second

    class Timed:
        def __init__(self, config, stream, *_):
            self.stream = stream

        def run_epoch(self):
            trained.append(sum(len(batch.rows) for batch in self.stream.train(len(trained))))
            assert trained[-1] < len(rows) / 2
            return SimpleNamespace(seconds=trained[-1] / len(rows))

    table = pd.read_parquet(pack / "table.parquet")
    rows = np.flatnonzero(table["fold0"] == "train")
    np.save(tmp_path / "32.npy", ablation.unpacked(pack, 32))
    monkeypatch.setattr(ablation, "Fit", Timed)
    config = Config().with_leaves({**TINY, "train.epochs": 12, "train.first_size": 16})
    cost = ablation._seconds(ablation.Training("a", 0, 0, config), table, tmp_path, 20)
    shares = [work_in(config, epoch) for epoch in range(1, 13)]  # of an epoch of full images
    assert shares[1] < shares[-1] == 1
    assert cost == pytest.approx(sum(shares) / shares[1])
    assert len(trained) == 2


# ---- anytime.py


@pytest.fixture
def asked(modules, tmp_path):
    """A call of anytime.py that compares three methods after two and four trials of three epochs."""
    tiny = [f"{name}={value}" for name, value in TINY.items() if name in ("model.width", "train.batch_size")]
    words = ["--methods", "random/none", "tpe/none", "tpe/asha", "--trials", "2", "4", "--epochs", "3", "--grace", "1"]
    words += ["--size", "32", "--startup", "2", "--seeds", "2", "--set", *tiny, "--json", str(tmp_path / "found.json")]
    return modules[2].parser().parse_args(words)


def test_methods_search_alike_but_for_what_they_differ_in(modules, pack, asked):
    ablation, _, anytime = modules
    table = pd.read_parquet(pack / "table.parquet")
    parts = tuple(table[f"fold{fold}"] for fold in range(5))
    data = anytime.Radiographs(ablation.unpacked(pack, 32), table, parts)
    found = {method: anytime.search(method, 1, asked, data) for method in asked.methods}
    default = {trials[0] for trials in found.values()}
    assert len(default) == 1, "all begin with the default configuration"
    assert {len(trials) for trials in found.values()} == {4}
    lengths = {method: [len(trial.values) for trial in trials] for method, trials in found.items()}
    assert lengths["random/none"] == lengths["tpe/none"] == [3] * 4
    assert all(1 <= length <= 3 for length in lengths["tpe/asha"])
    assert found["random/none"] == anytime.search("random/none", 1, asked, data)
    for trial in found["random/none"]:
        assert trial.value == max(trial.values)
        assert 0 <= trial.test_auroc <= 1


def test_methods_are_compared_by_what_their_winners_are_worth(modules, asked):
    anytime = modules[2]

    def trial(value, test, epochs=3):
        return anytime.Trial((value,) * epochs, value, 0.5, test, test)

    def searches(method, *trials):
        return [anytime.Search(method, seed, tuple(trials)) for seed in range(2)]

    random = searches("random/none", trial(0.5, 0.5), trial(0.6, 0.4), trial(0.55, 0.9), trial(0.7, 0.8))
    tpe = searches("tpe/none", trial(0.5, 0.5), trial(0.8, 0.7), trial(0.6, 0.9), trial(0.7, 0.1))
    asha = searches("tpe/asha", trial(0.5, 0.5), trial(0.9, 0.2, 1), trial(0.6, 0.9, 1), trial(0.95, 0.6, 1))
    rows = {(row["method"], row["after"]): row for row in anytime.compared([*random, *tpe, *asha], asked)}
    assert rows["default", "4 trials"]["value"] == (0.5, 0.0)
    assert rows["random/none", "2 trials"]["test_auroc"] == (0.4, 0.0)
    assert rows["tpe/none", "4 trials"]["test_auroc_gain"] == pytest.approx((0.7 - 0.8, 0))
    asha_row = rows["tpe/asha", "4 trials"]
    assert (asha_row["epochs"], asha_row["value"][0], asha_row["test_auroc"][0]) == (6, 0.95, 0.6)
    equal = rows["tpe/none", "4 trials, equal epochs"]  # within the six epochs of the shortest search
    assert (equal["epochs"], equal["value"][0]) == (6, 0.8)
    assert rows["tpe/asha", "4 trials, equal epochs"]["value"][0] == 0.95
    curve = asha[0].curve("max")
    assert curve.tolist() == list(accumulate([0.5] * 3 + [0.9, 0.6, 0.95], max))


def test_searches_are_kept_for_a_call_with_the_same_settings(modules, asked, capsys):
    anytime = modules[2]
    trials = (anytime.Trial((0.5, 0.6, 0.6), 0.6, 0.5, 0.7, 0.8),) * 4
    found = {(method, seed): anytime.Search(method, seed, trials) for method in asked.methods for seed in range(2)}
    shared = {key: value for key, value in vars(asked).items() if key not in anytime.NOT_SHARED} | {"data": "phantom"}
    anytime._write(asked.json, shared, found)
    assert anytime._kept(asked.json, shared) == found
    assert anytime._kept(asked.json, {**shared, "epochs": 9}) == {}
    words = ["--methods", *asked.methods, "--trials", "2", "4", "--epochs", "3", "--grace", "1", "--size", "32"]
    words += ["--startup", "2", "--seeds", "2", "--set", *asked.set, "--json", str(asked.json)]
    anytime.main(words)  # trains nothing
    assert "tpe/asha" in capsys.readouterr().out
    assert len(json.loads(asked.json.read_text())["compared"]) == 4 * 4
    assert asked.json.with_suffix(".png").exists()
    with pytest.raises(SystemExit, match="random/none is what the others are compared with"):
        anytime.main(["--methods", "tpe/none"])
