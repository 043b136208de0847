"""Out-of-fold probabilities from what a refit's trainings kept, and what happens where they did not."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from fracray.errors import RunError
from fracray.metrics import cross_fitted
from fracray.runtime.console import new_console
from fracray.runtime.run_folder import FOLDS
from fracray.runtime.storage import Folder
from fracray.search.doubtful import held_out, write_doubtful


def kept(folder, seed):
    """Two folds of 40 images, in another order for each seed."""
    generator = np.random.default_rng(seed)
    table = pd.DataFrame({"image_id": [f"i{n}" for n in range(80)], "group": [f"g{n // 4}" for n in range(80)]})
    table["label"] = np.arange(80) % 2
    table["fold"] = 1 + np.arange(80) // 40
    table["logit"] = (table["label"] * 2 - 1 + generator.normal(0, 1, 80)).astype(np.float32)
    table = table.sample(frac=1, random_state=seed)
    folder.mkdir()
    table.to_parquet(folder / FOLDS, index=False)
    return table.set_index("image_id").sort_index()


def test_probabilities_are_of_the_mean_logit_calibrated_within_the_fold_on_other_groups(tmp_path):
    one, two = (kept(tmp_path / f"s{seed}", seed) for seed in (1, 2))
    found = held_out([Folder(tmp_path / "s1"), Folder(tmp_path / "s2")])
    assert sorted(found["image_id"]) == sorted(one.index)
    given = pd.read_parquet(tmp_path / "s1" / FOLDS)  # its order decides how groups of equal size are dealt
    for fold in (1, 2):
        ids = given["image_id"][given["fold"] == fold]
        rows, mean = one.loc[ids], (one.loc[ids, "logit"] + two.loc[ids, "logit"]) / 2
        expected = cross_fitted(rows["label"], mean, rows["group"])
        mine = found.set_index("image_id").loc[ids]
        assert (mine["fold"] == fold).all()
        np.testing.assert_allclose(mine["probability"], expected, atol=1e-6)


def test_where_folds_were_dealt_twice_an_image_has_the_mean_of_both_probabilities(tmp_path):
    once = kept(tmp_path / "s1", 1)
    anew = once.assign(fold=6 + np.arange(80) % 8 // 4, logit=-once["logit"].to_numpy())
    both = pd.concat([once, anew]).reset_index()
    (tmp_path / "both").mkdir()
    both.to_parquet(tmp_path / "both" / FOLDS, index=False)
    found = held_out([Folder(tmp_path / "both")]).set_index("image_id")
    assert list(found.index) == list(once.index)
    assert (found["fold"] == once["fold"]).all()
    means = np.zeros(80)
    for _, rows in both.groupby("fold"):
        told = cross_fitted(rows["label"], rows["logit"], rows["group"])
        means[found.index.get_indexer(rows["image_id"])] += told / 2
    np.testing.assert_allclose(found["probability"], means, atol=1e-6)


def test_a_training_without_them_is_named_and_the_refit_goes_on(tmp_path, capsys):
    (tmp_path / "trials/t0003-seed1").mkdir(parents=True)
    with pytest.raises(RunError, match=r"t0003-seed1 has no folds\.parquet"):
        held_out([Folder(tmp_path / "trials/t0003-seed1")])
    found = SimpleNamespace(winner=SimpleNamespace(number=3, name="t0003"), seeds=(1,))
    write_doubtful(Folder(tmp_path), None, found, new_console())  # type: ignore[arg-type]
    out = " ".join(capsys.readouterr().out.split())
    assert "warning: the list of doubtful labels could not be written" in out
    assert "older version of fracray" in out
