"""A checkpoint is opened as it was at one moment, however often a training replaces it."""

import contextlib
import dataclasses
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pandas as pd
import pytest
import torch
from served import tiny_checkpoint

from fracray.errors import InputError, RunError
from fracray.evaluation.opening import checkpoint_folder, open_checkpoint
from fracray.prediction.scoring import hash_of
from fracray.runtime.storage import Folder
from fracray.training import checkpoint as checkpoints
from fracray.training.checkpoint import load_checkpoint, save_checkpoint, save_ensemble, verify


@pytest.fixture
def best(tmp_path):
    return tiny_checkpoint(tmp_path / "best")


def other(folder):
    """Another checkpoint in the place of this one."""
    old = load_checkpoint(folder)
    weights = {name: torch.zeros_like(tensor) for name, tensor in old.model.state_dict().items()}
    save_checkpoint(folder, weights, dataclasses.replace(old.metadata, threshold=0.9), old.predictions)


def replace_at_the_first_copy(monkeypatch, act):
    copy = shutil.copyfile

    def first(source, target):
        monkeypatch.setattr(checkpoints.shutil, "copyfile", copy)
        act(source, target)

    monkeypatch.setattr(checkpoints.shutil, "copyfile", first)


def test_one_that_is_replaced_between_two_files_is_copied_again(best, monkeypatch):
    def act(source, target):
        shutil.copyfile(source, target)  # its metadata; the weights are then the new one's
        other(best)

    replace_at_the_first_copy(monkeypatch, act)
    opened = open_checkpoint(str(best))
    assert opened.metadata.threshold == 0.9
    assert not any(tensor.any() for tensor in opened.model.state_dict().values())


def test_the_instant_without_one_is_waited_out(best, monkeypatch):
    def act(source, target):
        best.rename(best.with_name("aside"))
        threading.Timer(0.05, lambda: best.with_name("aside").rename(best)).start()
        shutil.copyfile(source, target)

    replace_at_the_first_copy(monkeypatch, act)
    assert open_checkpoint(str(best)).metadata.threshold == 0.4


def test_a_copy_stays_as_it_is_and_holds_only_the_checkpoint(best):
    (best / "notes.txt").write_text("beside it")
    with checkpoint_folder(str(best)) as folder:
        known = hash_of(folder)
        other(best)
        assert hash_of(folder) == known != hash_of(best)
        assert verify(folder).threshold == 0.4
        assert sorted(path.name for path in folder.iterdir()) == [
            "config.json", "model.safetensors", "val_predictions.parquet"
        ]  # fmt: skip
    assert not folder.exists()


HOLD = """
import sys
from fracray.evaluation.opening import checkpoint_folder
with checkpoint_folder(sys.argv[1]) as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_the_copy_of_a_command_that_was_killed_goes_with_the_next_one_and_no_other(best, tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    strange = tmp_path / "temporary/fracray-checkpoint-strange"  # nobody locked it: it may be about to be used
    strange.mkdir()
    elsewhere = tmp_path / "temporary/fracray-checkpoint-elsewhere"  # of another machine
    elsewhere.mkdir()
    (elsewhere / ".locked").write_text("another boot")
    with contextlib.ExitStack() as held:
        killed, alive = (
            held.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", HOLD, best], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
            )
            for _ in range(2)
        )
        copies = [Path(one.stdout.readline().strip()) for one in (killed, alive)]
        killed.kill()
        killed.wait()
        assert all((copy / "config.json").exists() for copy in copies)
        with checkpoint_folder(str(best)):
            assert not copies[0].parent.exists()
            assert verify(copies[1]).threshold == 0.4
        alive.communicate("")
    assert sorted((tmp_path / "temporary").iterdir()) == [elsewhere, strange]


def test_an_ensemble_is_copied_with_its_members(best, tmp_path):
    tiny = load_checkpoint(best)
    seen = pd.DataFrame({"image_id": ["a"], "split": ["train"], "pixel_hash": ["h"]})
    save_ensemble(tmp_path / "both", {"a": best, "b": best}, tiny.metadata, tiny.predictions, seen)
    with checkpoint_folder(str(tmp_path / "both")) as folder:
        assert len(load_checkpoint(folder).members) == 2


def test_one_in_a_store_that_is_replaced_while_it_is_copied_is_copied_again(best, s3, monkeypatch):
    place, read = Folder(s3("replaced")), Folder.read
    place.upload(best, "best")
    reads = []

    def replaced(self, name):
        data = read(self, name)
        reads.append(name)
        if len(reads) == 1:
            other(best)
            place.upload(best, "best")
        return data

    monkeypatch.setattr(Folder, "read", replaced)
    assert open_checkpoint(place.sub("best").location).metadata.threshold == 0.9
    assert len(reads) == 6


def test_a_damaged_one_is_refused_by_the_name_that_the_user_knows(best, tmp_path):
    (best / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(InputError, match=f"^{best}/model.safetensors: sha256 differs"):
        open_checkpoint(str(best))
    inside = tmp_path / "runs"
    inside.mkdir()
    with pytest.raises(InputError, match="not a checkpoint folder"):
        open_checkpoint(f"{inside}/..")
    assert best.is_dir()


def test_an_opened_one_has_the_name_that_the_user_knows(best):
    assert open_checkpoint(str(best)).folder == best


def test_a_full_disk_is_named(best, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints.shutil, "copyfile", full)
    with pytest.raises(RunError, match=f"^{best}: cannot be copied to .*No space left on device; free space there"):
        open_checkpoint(str(best))
