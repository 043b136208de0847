"""A trial's folder: what is written when, and what a resumed trial finds there."""

import itertools
import json
import resource
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from fracray.config import Config
from fracray.data.loading.shards import ShardFile, Shards
from fracray.errors import InputError, RunError
from fracray.runtime.efficiency import PHASES, TRAINING, TRANSFORM, VALIDATION
from fracray.runtime.run_folder import BEST, EPOCHS, FOLDS, STATE, trial_folder
from fracray.runtime.storage import Folder
from fracray.training.checkpoint import load_checkpoint, load_state, read_metadata, read_predictions, save_state
from fracray.training.epochs import read_epochs, saved_epochs
from fracray.training.job import Job
from fracray.training.loop import Fit
from fracray.training.trial import TrialRunner

TRAIN, VAL, SIZE = 48, 24, 32


def make_job(folder, **leaves):
    config = Config().with_leaves(
        {
            "train.epochs": 4,
            "train.batch_size": 16,
            "train.threads": 1,
            "model.width": 8,
            "search.scheduler.name": "none",
            **leaves,
        }
    )
    rng = np.random.default_rng(0)
    labels = np.arange(TRAIN + VAL) % 2
    images = rng.integers(0, 100, (TRAIN + VAL, SIZE, SIZE), dtype=np.uint8)
    images[labels == 1, 8:24, 12:20] += 120
    table = pd.DataFrame(
        {
            "image_id": [f"i{row}" for row in range(TRAIN + VAL)],
            "group": [f"g{row // 4}" for row in range(TRAIN + VAL)],
            "label": labels,
            "split": ["train"] * TRAIN + ["val"] * VAL,
            "pixel_hash": "",
            "look": b"",
            "width": SIZE,
            "height": SIZE,
            "brightness": images.mean(axis=(1, 2)),
        }
    )
    return Job(
        config=config,
        run=Folder(folder),
        shards=Shards(Folder(folder), SIZE, (ShardFile("0.parquet", 0, TRAIN + VAL),)),
        table=table,
        fingerprint="drawn",
        rotations=(table["split"].to_numpy(),),
        metrics=("val_accuracy",),
        images=images,
    )


def epochs_kept(folder):
    path = folder / "trials/t0000" / STATE
    return load_state(path)[1]["epochs_done"] if path.exists() else 0


def without_time(entries):
    return [{k: v for k, v in entry.items() if not k.startswith("seconds")} for entry in entries]


def test_the_state_is_kept_every_so_often_and_the_metrics_after_every_epoch(tmp_path):
    runner = TrialRunner(make_job(tmp_path, **{"train.keep_seconds": 3600}), 0, {})
    for epoch in (1, 2, 3):
        runner.run_epoch()
        runner.settle()
        assert len(json.loads((tmp_path / "trials/t0000" / EPOCHS).read_text())) == epoch
        assert epochs_kept(tmp_path) == 0
    runner.run_epoch()  # the last: no process need wait for it to be written
    assert epochs_kept(tmp_path) == 4
    runner.close()


def test_with_no_seconds_to_lose_every_epoch_is_kept(tmp_path):
    runner = TrialRunner(make_job(tmp_path, **{"train.keep_seconds": 0}), 0, {})
    for epoch in (1, 2):
        runner.run_epoch()
        runner.settle()
        assert epochs_kept(tmp_path) == epoch
    runner.close()


def test_what_is_kept_while_the_next_epoch_trains_is_the_epoch_before(tmp_path):
    job = make_job(tmp_path / "one", **{"train.keep_seconds": 0})
    runner = TrialRunner(job, 0, {})
    runner.run_epoch()  # written by a thread while epoch 2 changes the weights
    runner.run_epoch()
    runner.close()
    calm = TrialRunner(make_job(tmp_path / "two", **{"train.keep_seconds": 0}), 0, {})
    for _ in (1, 2):
        calm.run_epoch()
        calm.settle()
    calm.close()
    ours, theirs = (load_state(tmp_path / name / "trials/t0000" / STATE)[0] for name in ("one", "two"))
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "killed"])
def test_a_resumed_trial_continues_as_if_it_had_never_stopped(tmp_path, closed):
    complete = TrialRunner(make_job(tmp_path / "complete"), 0, {})
    while not complete.done:
        complete.run_epoch()
    complete.close()

    first = TrialRunner(make_job(tmp_path / "cut"), 0, {})
    first.run_epoch()
    first.run_epoch()
    if closed:
        first.close()
    else:
        first.settle()  # the process is gone; its ten seconds had not passed
    second = TrialRunner(make_job(tmp_path / "cut"), 0, {})
    assert second.epochs_done == (2 if closed else 0)
    while not second.done:
        second.run_epoch()
    second.close()
    found = [json.loads(trial_folder(Folder(tmp_path / name), 0).read(EPOCHS)) for name in ("complete", "cut")]
    assert without_time(found[0]) == without_time(found[1])
    saved = [read_metadata(tmp_path / name / "trials/t0000" / BEST) for name in ("complete", "cut")]
    assert saved[0].epoch == saved[1].epoch
    assert saved[0].metrics == saved[1].metrics


def test_an_epoch_that_breaks_off_is_not_kept_as_the_one_before(tmp_path, monkeypatch):
    """Its optimiser has taken steps of the next epoch: resuming from there would train those images twice."""
    runner = TrialRunner(make_job(tmp_path), 0, {})
    runner.run_epoch()
    steps = itertools.count()
    step = Fit._step

    def break_off(*arguments):
        if next(steps) == 2:
            raise RuntimeError("out of memory")
        return step(*arguments)

    monkeypatch.setattr(Fit, "_step", break_off)
    with pytest.raises(RuntimeError, match="out of memory"):
        runner.run_epoch()
    runner.close()
    assert epochs_kept(tmp_path) == 0
    assert saved_epochs(trial_folder(Folder(tmp_path), 0)) == []


def test_the_saved_epochs_are_those_whose_best_epoch_is_the_checkpoint(tmp_path):
    runner = TrialRunner(make_job(tmp_path, **{"train.keep_seconds": 0}), 0, {})
    for _ in (1, 2, 3):
        runner.run_epoch()
    runner.settle()
    folder = trial_folder(Folder(tmp_path), 0)
    history = folder.read_json(EPOCHS)
    results = read_epochs(folder)
    assert [result.to_json() for result in results] == history
    assert saved_epochs(folder) == results
    # As after a process that finished two more epochs, the first of them better, and was lost before it saved them.
    better = {name: value + 0.1 if name.startswith("best_") else value for name, value in history[-1].items()}
    folder.write_json(EPOCHS, [*history, {**better, "epoch": 4.0}, {**better, "epoch": 5.0}])
    assert saved_epochs(folder) == results
    runner.close()


def test_a_trial_that_the_scheduler_may_stop_is_kept_before_it_is_reported(tmp_path):
    asha = {"search.scheduler.name": "asha", "search.scheduler.grace_epochs": 2}
    runner = TrialRunner(make_job(tmp_path, **asha), 0, {})
    runner.run_epoch()
    assert epochs_kept(tmp_path) == 0
    runner.run_epoch()
    assert epochs_kept(tmp_path) == 2
    runner.close()


def test_a_full_disk_is_reported_and_what_was_kept_before_stays(tmp_path):
    runner = TrialRunner(make_job(tmp_path, **{"train.keep_seconds": 0}), 0, {})
    runner.run_epoch()
    runner.settle()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, hard))  # bytes of a file: fewer than the weights have
    try:
        runner.run_epoch()
        with pytest.raises(RunError, match=r"cannot write (best|state\.safetensors)"):
            runner.settle()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert epochs_kept(tmp_path) == 1
    assert not [path for path in (tmp_path / "trials/t0000").iterdir() if path.name not in (EPOCHS, STATE, BEST)]
    runner.close()


def test_a_state_without_a_setting_that_is_newer_is_resumed(tmp_path):
    job = make_job(tmp_path, **{"train.keep_seconds": 0})
    runner = TrialRunner(job, 0, {})
    runner.run_epoch()
    runner.close()
    state = tmp_path / "trials/t0000" / STATE
    tensors, meta = load_state(state)
    del meta["config"]["augment"]["extra"]
    save_state(state, tensors, meta)
    assert TrialRunner(job, 0, {}).epochs_done == 1
    meta["config"]["train"]["lr"] = 0.5
    save_state(state, tensors, meta)
    with pytest.raises(InputError, match="was started with another config"):
        TrialRunner(job, 0, {})


def test_an_epoch_reports_its_core_seconds_by_phase(tmp_path):
    runner = TrialRunner(make_job(tmp_path), 0, {})
    runner.run_epoch()
    report = runner.run_epoch()
    runner.close()
    assert all(report.core_seconds[phase] >= 0 for phase in PHASES)
    assert 0 < report.core_seconds[TRAINING] < report.seconds * 1.5
    assert report.core_seconds[VALIDATION] > 0
    assert report.core_seconds[TRANSFORM] > 0


def test_of_folds_every_image_is_kept_once_with_the_logit_of_the_model_that_never_saw_it(tmp_path):
    job = make_job(tmp_path, **{"train.epochs": 2})
    whole = TrialRunner(job, 0, {})
    for _ in range(2):
        whole.run_epoch()
    whole.close()
    assert not (tmp_path / "trials/t0000" / FOLDS).exists()
    cells = job.table["split"].to_numpy()
    rotated = np.where(np.arange(len(cells)) < VAL, "val", "train").astype(object)
    rotated[-4:] = ""
    folds = TrialRunner(replace(job, rotations=(cells, rotated)), 1, {})
    for _ in range(2):
        folds.run_epoch()
    folds.close()
    kept = pd.read_parquet(tmp_path / "trials/t0001" / FOLDS)
    assert sorted(kept["image_id"]) == sorted(job.table["image_id"][(cells == "val") | (rotated == "val")])
    assert kept.groupby("fold")["image_id"].apply(set).to_dict() == {
        1: set(job.table["image_id"][cells == "val"]),
        2: set(job.table["image_id"][rotated == "val"]),
    }
    by_id = job.table.set_index("image_id")
    assert (kept["label"] == by_id.loc[kept["image_id"], "label"].to_numpy()).all()
    assert (kept["group"] == by_id.loc[kept["image_id"], "group"].to_numpy()).all()
    first = read_predictions(tmp_path / "trials/t0001" / BEST).set_index("image_id")["logit"]
    mine = kept[kept["fold"] == 1].set_index("image_id")["logit"]
    np.testing.assert_array_equal(mine, first[mine.index])
    card = read_metadata(tmp_path / "trials/t0001" / BEST)
    alone = read_epochs(Folder(tmp_path / "trials/t0000"))[card.epoch - 1]
    assert card.metrics["val_loss"] == pytest.approx(alone.metrics["val_loss"]), "of the model that is kept"
    means = read_epochs(Folder(tmp_path / "trials/t0001"))[card.epoch - 1]
    assert means.metrics["val_loss"] != pytest.approx(alone.metrics["val_loss"])
    model = load_checkpoint(tmp_path / "trials/t0001" / BEST).model
    of_first = model(torch.from_numpy(job.images[:VAL][:, None])).detach().numpy()
    assert not np.allclose(kept["logit"][kept["fold"] == 2], of_first, atol=1e-3), "of the second fold's model"
