"""The one atomic write: a reader finds the old or the new file or folder, never a part, and nothing is left over."""

import pytest

from fracray.runtime.storage import atomic_path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_gets_its_name_at_the_end(tmp_path):
    target = tmp_path / "new" / "file"
    with atomic_path(target) as partial:
        partial.write_text("one")
        assert not target.exists()
    with atomic_path(target) as partial:
        partial.write_text("two")
        assert target.read_text() == "one"
    assert target.read_text() == "two"
    assert names(target.parent) == ["file"]


def test_a_folder_replaces_another(tmp_path):
    target = tmp_path / "folder"
    for word in ("one", "two"):
        with atomic_path(target) as partial:
            partial.mkdir()
            (partial / word).touch()
    assert names(target) == ["two"]
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_error_leaves_the_old_one_and_nothing_else(tmp_path, kind):
    target = tmp_path / "target"

    def write(path):
        if kind == "folder":
            path.mkdir()
            path = path / "inside"
        path.write_text("x")

    with atomic_path(target) as partial:
        write(partial)

    def fail_half_way():
        with atomic_path(target) as partial:
            write(partial)
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail_half_way()
    assert target.exists()
    assert names(tmp_path) == ["target"]


def test_without_replace_the_first_one_stays(tmp_path):
    target = tmp_path / "file"
    for word in ("one", "two"):
        with atomic_path(target, replace=False) as partial:
            partial.write_text(word)
    assert target.read_text() == "one"
    assert names(tmp_path) == ["file"]


def test_a_folder_that_cannot_take_its_name_leaves_the_old_one(tmp_path, monkeypatch):
    target = tmp_path / "folder"
    target.mkdir()
    (target / "old").touch()
    rename = type(target).rename

    def fail_once(self, other):
        if other == target:
            monkeypatch.undo()
            raise FileNotFoundError("gone")
        return rename(self, other)

    def replace():
        with atomic_path(target) as partial:
            partial.mkdir()
            monkeypatch.setattr(type(target), "rename", fail_once)

    with pytest.raises(FileNotFoundError):
        replace()
    assert names(target) == ["old"]
    assert names(tmp_path) == ["folder"]
