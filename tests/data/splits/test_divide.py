"""Cached splits: a cached split equals the computed one, and every change of its input changes it."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from fracray.config import DataConfig, SplitConfig
from fracray.data.prepare import examined
from fracray.data.splits import divide as module
from fracray.data.splits.divide import divide
from fracray.errors import InputError
from fracray.runtime.console import new_console

BLOCK = {"block": 10}


@pytest.fixture(scope="module")
def manifest():
    return examined(DataConfig(size=32, phantom={"count": 150}), new_console())


def assert_same(one, other):
    pd.testing.assert_frame_equal(one.manifest.table, other.manifest.table)
    assert one.manifest.root == other.manifest.root
    assert repr(one.baselines) == repr(other.baselines)  # nan is not equal to itself
    assert one.notes == other.notes
    assert len(one.rotations) == len(other.rotations)
    assert all(np.array_equal(a, b) for a, b in zip(one.rotations, other.rotations, strict=True))


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        (SplitConfig(**BLOCK), True),
        (SplitConfig(**BLOCK), False),
        (SplitConfig(**BLOCK, protocol="kfold", folds=4, cross_validate=True), True),
        (SplitConfig(**BLOCK, protocol="kfold", folds=3, cross_validate=True, repeats=7), True),
        (SplitConfig(**BLOCK, protocol="severity", shifts=("exposure",)), True),
        (SplitConfig(block=5, protocol="view"), True),
    ],
)
def test_a_cached_split_is_read_unchanged_and_needs_only_the_columns_of_its_key(manifest, tmp_path, config, parts):
    first = divide(manifest, config, parts, tmp_path)
    (kept,) = (tmp_path / "divisions").iterdir()
    written = kept.stat().st_mtime_ns
    assert_same(divide(manifest, config, parts, tmp_path), first)
    assert [(path, path.stat().st_mtime_ns) for path in (tmp_path / "divisions").iterdir()] == [(kept, written)]
    bare = replace(manifest, table=manifest.table[[*module._READ, "group", "split", "unused"]])
    computed = divide(bare, config, parts, tmp_path / "bare")
    assert [path.name for path in (tmp_path / "bare" / "divisions").iterdir()] == [kept.name]
    assert_same(computed, replace(first, manifest=replace(manifest, table=first.manifest.table[list(bare.table)])))


def test_folds_that_are_dealt_anew_hold_each_image_out_once_a_time_and_leave_the_test_fold(manifest, tmp_path):
    config = SplitConfig(block=5, guard=0, protocol="kfold", folds=4, fold=2, cross_validate=True, repeats=3)
    found = divide(manifest, config, True, tmp_path)
    once = divide(manifest, config.model_copy(update={"repeats": 1}), True, tmp_path)
    assert len(found.rotations) == config.rotations == 9
    assert all(np.array_equal(a, b) for a, b in zip(found.rotations[:3], once.rotations, strict=True))
    used = found.manifest.used
    for cells in found.rotations:
        assert np.array_equal(cells == "test", found.rotations[0] == "test")
        parts = pd.DataFrame({"group": used["group"].to_numpy(), "part": cells})
        assert (parts.groupby("group")["part"].nunique() == 1).all()
        assert used["label"][cells == "val"].nunique() == used["label"][cells == "train"].nunique() == 2
    times = [np.stack(found.rotations[at : at + 3]) for at in (0, 3, 6)]
    assert all(((one == "val").sum(0) == (one[0] != "test")).all() for one in times)
    held = [{frozenset(np.flatnonzero(cells == "val")) for cells in one} for one in times]
    assert len(set.union(*held)) == 9


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("groups", [9, 12])
def test_few_groups_are_dealt_in_another_way_each_time_or_not_at_all(manifest, tmp_path, groups, seed):
    few = replace(manifest, table=manifest.table.assign(patient=[f"p{n % groups}" for n in range(len(manifest.table))]))
    config = SplitConfig(protocol="kfold", folds=3, cross_validate=True, repeats=6, seed=seed)
    found = divide(few, config, True, tmp_path).rotations
    ways = [{frozenset(np.flatnonzero(cells == "val")) for cells in found[at : at + 2]} for at in range(0, 12, 2)]
    assert all(ways.count(way) == 1 for way in ways)


def test_folds_that_cannot_be_dealt_so_often_are_refused(manifest, tmp_path):
    few = replace(manifest, table=manifest.table.assign(patient=[f"p{n % 4}" for n in range(len(manifest.table))]))
    config = SplitConfig(protocol="kfold", folds=4, cross_validate=True, repeats=3)
    with pytest.raises(InputError, match=r"3 groups outside the test fold .* lower data\.split\.repeats to 1"):
        divide(few, config, True, tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.assign(label=[1 - table["label"].iloc[0], *table["label"].iloc[1:]]),
        lambda table: table.assign(component=[table["image_id"].iloc[0], *table["component"].iloc[1:]]),
        lambda table: table.assign(brightness=table["brightness"] + 1),
        lambda table: table.assign(boxes=[((1.0, 2.0, 3.0, 4.0),), *table["boxes"].iloc[1:]]),
        lambda table: table.assign(view="frontal"),
        lambda table: table.iloc[:-1],
    ],
)
def test_another_manifest_is_split_again(manifest, tmp_path, change):
    config = SplitConfig(**BLOCK)
    divide(manifest, config, True, tmp_path)
    divide(replace(manifest, table=change(manifest.table)), config, True, tmp_path)
    assert len(list((tmp_path / "divisions").iterdir())) == 2


def test_other_settings_give_another_split(manifest, tmp_path):
    one, other = (divide(manifest, SplitConfig(**BLOCK, seed=seed), True, tmp_path) for seed in (0, 1))
    assert not np.array_equal(one.rotations[0], other.rotations[0])
    assert divide(manifest, SplitConfig(**BLOCK), False, tmp_path).rotations == ()
    assert len(list((tmp_path / "divisions").iterdir())) == 3


def test_a_damaged_cached_split_is_computed_again(manifest, tmp_path):
    config = SplitConfig(**BLOCK)
    first = divide(manifest, config, True, tmp_path)
    (kept,) = (tmp_path / "divisions").iterdir()
    kept.write_bytes(kept.read_bytes()[:100])
    assert_same(divide(manifest, config, True, tmp_path), first)
    assert kept.stat().st_size > 100


def test_a_split_from_a_file_is_read_each_time(manifest, tmp_path):
    config = SplitConfig(**BLOCK)
    divide(manifest, config, True, tmp_path).manifest.write(tmp_path / "split.parquet")
    taken = SplitConfig(file=str(tmp_path / "split.parquet"))
    assert divide(manifest, taken, True, tmp_path / "taken").rotations[0].tolist()
    assert not (tmp_path / "taken").exists()


def test_a_cache_that_cannot_be_written_is_named(manifest, tmp_path):
    (tmp_path / "divisions").write_text("not a folder")
    with pytest.raises(InputError, match=r"choose another data\.cache"):
        divide(manifest, SplitConfig(**BLOCK), True, tmp_path)
