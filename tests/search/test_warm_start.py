"""A search that begins with the best configurations of an earlier one."""

from dataclasses import replace

import pytest

from fracray.config import DataConfig, SplitConfig
from fracray.data.manifest import MANIFEST
from fracray.data.prepare import examined
from fracray.data.splits.divide import divide
from fracray.errors import InputError
from fracray.runtime.console import new_console
from fracray.runtime.run_folder import DATA
from fracray.runtime.storage import Folder
from fracray.search.study import JOURNAL, StudySearcher
from fracray.search.warm_start import MOST, WarmStart, _images, refuse_other_split, warm_points
from fracray.tune import main as tune
from tests.search.test_study import DEFAULTS, DROPOUT, TOP, result, space_of

NARROW = "space:\n  model.dropout: {float: [0.1, 0.3]}\n  augment.rotate: {float: [0, 30]}\n"


@pytest.fixture
def earlier(tmp_path):
    """A finished search of eight trials, whose accuracy is the higher the nearer dropout is to 0.25."""
    folder = tmp_path / "earlier"
    folder.mkdir()
    space = space_of(tmp_path, TOP.replace("6", "8") + DROPOUT)
    searcher = StudySearcher(space, folder / JOURNAL, 8)
    chosen = []
    for number in range(8):
        searcher.suggest(str(number))
        dropout = searcher.study.get_trials()[number].user_attrs["leaves"]["model.dropout"]
        chosen.append(dropout)
        searcher.on_trial_complete(str(number), result(2, 1 - abs(dropout - 0.25)))
    return folder, space, chosen


def begun(space, journal, warm):
    searcher = StudySearcher(space, journal, 10, warm)
    for number in range(7):
        searcher.suggest(str(number))
    return [trial.user_attrs["leaves"] for trial in searcher.study.get_trials()]


def test_the_best_follow_the_default_and_then_the_sampler(earlier, tmp_path):
    folder, space, chosen = earlier
    points, notes = warm_points(space, str(folder))
    assert notes == []
    assert len(points) == MOST
    # The earlier default is the new one too, which runs anyway.
    best = sorted(chosen[1:], key=lambda dropout: abs(dropout - 0.25))[:MOST]
    assert [point["model.dropout"] for point in points] == best
    found = begun(space, tmp_path / "new", lambda: points)
    assert found[0] == DEFAULTS
    assert found[1 : MOST + 1] == points
    assert found[MOST + 1] not in points


def test_the_default_of_the_new_space_is_not_run_twice(earlier, tmp_path):
    folder, _, chosen = earlier
    best = min(chosen, key=lambda dropout: abs(dropout - 0.25))
    dropout = space_of(
        tmp_path, f"{TOP}base: {{model: {{dropout: {best}}}}}\nspace:\n  model.dropout: {{float: [0.0, 0.6]}}\n"
    )
    points, _ = warm_points(dropout, str(folder))
    assert {"model.dropout": best} not in points
    assert len(points) == MOST


def test_a_search_on_another_split_of_the_same_radiographs_is_refused(tmp_path):
    """Fold 0's search validated on what is fold 1's test part; more folds to validate on have the same test part."""
    manifest = examined(DataConfig(size=32, phantom={"count": 150}), new_console())
    folds = {"block": 5, "protocol": "kfold", "folds": 4}
    splits = {"fold0": folds, "fold1": {**folds, "fold": 1}, "crossed": {**folds, "cross_validate": True}}
    for name, split in {**splits, "other": folds}.items():
        folder = Folder(tmp_path / name)
        fingerprint = "another set" if name == "other" else manifest.fingerprint()
        folder.write_json(DATA, {"fingerprint": fingerprint, "split_fingerprint": name})
        divide(manifest, SplitConfig(**split), True, tmp_path / "cache").manifest.write(tmp_path / name / MANIFEST)
    fold0, fold1, crossed = (Folder(tmp_path / name) for name in splits)
    refuse_other_split(fold0, fold0.location)
    refuse_other_split(fold0, str(tmp_path / "other"))
    refuse_other_split(crossed, fold0.location)
    refuse_other_split(fold0, crossed.location)
    tested = len(_images(fold1, ("test",)))
    with pytest.raises(
        InputError, match=rf"search\.warm_start: .*fold0 divided .* rests on {tested} of this run's test part"
    ):
        refuse_other_split(fold1, fold0.location)


def test_a_setting_that_was_not_searched_has_the_default_and_what_lies_outside_is_left_out(earlier, tmp_path):
    folder, _, chosen = earlier
    narrow = space_of(tmp_path, TOP + NARROW)
    points, notes = warm_points(narrow, str(folder))
    # The first is the default of both, which runs anyway.
    inside = [dropout for dropout in chosen[1:] if 0.1 <= dropout <= 0.3]
    assert {point["model.dropout"] for point in points} <= set(inside)
    assert {point["augment.rotate"] for point in points} == {narrow.config.augment.rotate}
    assert len(points) == min(MOST, len(inside))
    assert all("model.dropout = " in note and "which this space does not" in note for note in notes)


def test_a_resumed_search_does_not_ask_the_earlier_one_again(earlier, tmp_path):
    folder, space, _ = earlier
    points, _ = warm_points(space, str(folder))
    first = StudySearcher(space, tmp_path / "new", 10, lambda: points)
    first.suggest("a")
    first.suggest("b")

    def gone():
        raise AssertionError("asked again")

    again = StudySearcher(space, tmp_path / "new", 10, gone)
    for number in range(4):
        again.suggest(str(number))  # two that were lost, and two more
    assert [trial.user_attrs["leaves"] for trial in again.study.get_trials()][1:4] == points[:3]


def test_the_earlier_search_is_read_once(earlier, tmp_path):
    folder, space, _ = earlier
    config = space.config.with_leaves({"search.warm_start": str(folder)})
    warm = WarmStart(replace(space, config=config))
    points, _ = warm.points
    assert points == warm_points(space, str(folder))[0]
    (folder / JOURNAL).unlink()
    assert warm.points[0] is points
    assert WarmStart(space).points == ([], [])


def test_what_is_no_search_is_refused_before_anything_is_written(tmp_path):
    space = space_of(tmp_path)
    with pytest.raises(InputError, match=r"search\.warm_start: .*nowhere is no run of fracray\.tune"):
        warm_points(space, str(tmp_path / "nowhere"))
    empty = tmp_path / "empty"
    empty.mkdir()
    StudySearcher(space, empty / JOURNAL, 3)
    with pytest.raises(InputError, match=r"no trial of .*empty ran all of its epochs"):
        warm_points(space, str(empty))
    runs = tmp_path / "runs"
    with pytest.raises(InputError, match="warm_start"):
        tune(
            [
                "--space",
                str(tmp_path / "space.yaml"),
                "--warm-start",
                str(empty),
                "--storage",
                str(runs),
                "--name",
                "new",
            ]
        )
    assert not (runs / "new").exists()


def test_a_grid_takes_none(tmp_path):
    grid = "sampler: {name: grid}\nwarm_start: runs/x\nspace:\n  model.dropout: {categorical: [0.1, 0.2]}\n"
    with pytest.raises(InputError, match=r"space\.yaml:2: warm_start: a grid"):
        space_of(tmp_path, grid)
