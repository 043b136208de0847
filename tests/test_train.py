"""python -m fracray.train, with real Ray Train workers that are killed for real."""

import json
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
import ray
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fracray.errors import InputError, RunError
from fracray.train import main
from fracray.training.checkpoint import load_checkpoint, read_predictions
from fracray.tune import main as tune

SMALL = [
    "--set",
    "data.size=32",
    "--set",
    "data.phantom.count=150",
    "--set",
    "data.split.block=10",
    "--set",
    "model.width=8",
]


def history(run):
    return json.loads((run / "trials/t0000/epochs.json").read_text())


def metrics(run):
    return [{k: v for k, v in entry.items() if not k.startswith("seconds")} for entry in history(run)]


def train(tmp_path, name, *more):
    main([*SMALL, "--storage", str(tmp_path), "--name", name, "--cpus-per-worker", "1", *more])
    return tmp_path / name


def start(tmp_path, name, *more):
    command = [sys.executable, "-m", "fracray.train", *SMALL, "--storage", str(tmp_path), "--name", name, *more]
    command += ["--address", ray.get_runtime_context().gcs_address]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_epoch(run, epoch, process=None, seconds=180):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process is None or process.poll() is None, process.stdout.read()
        if (run / "trials/t0000/epochs.json").exists() and len(history(run)) >= epoch:
            return
        time.sleep(0.05)
    raise AssertionError(f"no epoch {epoch} within {seconds} s")


def workers_of(title):
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if title in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


@pytest.fixture(scope="module")
def one_worker(ray_local, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return train(folder, "one", "--epochs", "3", "--log", f"tensorboard:{folder / 'tb'}")


def test_a_training_leaves_a_complete_run_folder(one_worker):
    names = {path.name for path in one_worker.iterdir()}
    assert {"config.yaml", "environment.json", "data.json", "DATASHEET.md", "manifest.parquet", "trials"} <= names
    data = json.loads((one_worker / "data.json").read_text())
    assert data["flow"]["found"] == 150
    assert {baseline["name"] for baseline in data["baselines"]} == {"majority", "tags", "id neighbours"}
    assert [entry["epoch"] for entry in history(one_worker)] == [1, 2, 3]
    checkpoint = load_checkpoint(one_worker / "trials/t0000/best")
    assert checkpoint.metadata.data_fingerprint == data["fingerprint"]
    best = max(history(one_worker), key=lambda e: (e["val_accuracy"], -e["val_loss"]))
    assert checkpoint.metadata.epoch == best["epoch"]
    assert len(read_predictions(checkpoint.folder)) == data["parts"]["val"]["images"]


def test_tensorboard_has_every_epoch_once(one_worker):
    read = EventAccumulator(str(one_worker.parent / "tb/one"))
    read.Reload()
    values = [(one.step, one.value) for one in read.Scalars("val_loss")]
    assert values == [(int(one["epoch"]), np.float32(one["val_loss"])) for one in history(one_worker)]
    assert read.Tensors("state/text_summary")[-1].tensor_proto.string_val == [b"done"]


def test_ray_data_streaming_gives_the_same_metrics_as_memory(one_worker, tmp_path):
    streamed = train(tmp_path, "streamed", "--epochs", "3", "--set", "data.stream=ray")
    assert metrics(streamed) == metrics(one_worker)


def test_a_training_that_diverges_fails_with_a_message(ray_local, tmp_path):
    wild = ["--set", "train.lr=1e30", "--set", "train.clip_norm=0", "--set", "train.ema=0"]
    with pytest.raises(RunError, match=r"became infinite or NaN.*train\.lr"):
        train(tmp_path, "wild", "--epochs", "3", *wild)


def test_a_training_that_diverges_later_keeps_what_it_has_and_says_so(ray_local, tmp_path, capsys):
    settings = ("train.lr=1e4", "train.warmup=0", "train.clip_norm=0", "train.precision=fp32")
    wild = [word for setting in settings for word in ("--set", setting)]
    run = train(tmp_path, "later", "--epochs", "12", *wild)
    epochs = history(run)
    assert epochs[-1]["diverged"]
    assert 1 < len(epochs) < 12
    words = f"warning: the loss became infinite or NaN in epoch {len(epochs)} of 12"
    assert words in " ".join(capsys.readouterr().out.split())
    assert load_checkpoint(run / "best").metadata.epoch < len(epochs)
    main(["--storage", str(tmp_path), "--name", "later", "--resume", "--cpus-per-worker", "1"])
    assert history(run) == epochs  # nothing is trained from weights that are no numbers
    assert words in " ".join(capsys.readouterr().out.split())


def test_the_best_epoch_by_a_loss_is_the_lowest(ray_local, tmp_path):
    run = train(tmp_path, "loss", "--epochs", "4", "--set", "search.metric=val_loss")
    losses = [epoch["val_loss"] for epoch in history(run)]
    assert len(set(losses)) == 4
    assert load_checkpoint(run / "best").metadata.epoch == 1 + losses.index(min(losses))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["search.metric=val_lossy"], "search.metric: metric 'val_lossy' is not reported"),
        (["search.metric=val_loss", "search.mode=max"], "search.mode: val_loss is better when lower; set min"),
        (["search.metric=[]"], "search.metric: names no metric; name one"),
    ],
)
def test_a_metric_that_cannot_choose_an_epoch_is_refused(tmp_path, settings, words):
    more = [word for setting in settings for word in ("--set", setting)]
    with pytest.raises(InputError, match=words):
        train(tmp_path, "metric", *more)
    assert not (tmp_path / "metric").exists()


def test_a_search_is_not_resumed_as_a_training(tmp_path):
    (tmp_path / "search").mkdir()
    for name in ("config.yaml", "space.yaml"):
        (tmp_path / "search" / name).write_text("{}")
    with pytest.raises(InputError, match=r"is a search, not a training; continue .*fracray.tune .*--resume"):
        train(tmp_path, "search", "--resume")


def test_a_training_is_not_resumed_as_a_search_and_a_refit_not_as_a_training(tmp_path):
    for name, file in (("training", "config.yaml"), ("refit", "config.yaml"), ("refit", "trials.parquet")):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / file).write_text("{}")
    with pytest.raises(InputError, match=r"is a training, not a search; continue .*fracray.train .*--resume"):
        tune(["--storage", str(tmp_path), "--name", "training", "--resume"])
    with pytest.raises(InputError, match=r"is the refit of a search; continue it with python -m fracray.refit"):
        train(tmp_path, "refit", "--resume")


def test_a_training_whose_controller_is_killed_says_so_and_resumes(ray_local, tmp_path):
    process = start(tmp_path, "controller", "--epochs", "40", "--set", "train.keep_seconds=0")
    wait_for_epoch(tmp_path / "controller", 1, process)
    (controller,) = workers_of("ray::TrainController")
    controller.kill()
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 1, out
    assert "controller was lost (killed, or out of memory?); --resume continues from" in out
    assert "Traceback" not in out
    train(tmp_path, "controller", "--resume", "--epochs", "40", "--set", "train.keep_seconds=0")
    assert [epoch["epoch"] for epoch in history(tmp_path / "controller")] == list(range(1, 41))


def test_two_workers_see_the_complete_set(one_worker, tmp_path):
    pair = train(tmp_path, "pair", "--epochs", "2", "--workers", "2")
    assert len(history(pair)) == 2
    assert history(pair)[0]["val_n"] == history(one_worker)[0]["val_n"]
    assert history(pair)[0]["train_loss"] == pytest.approx(history(one_worker)[0]["train_loss"], abs=0.05)


def test_a_training_shows_its_steps_and_the_time_left_within_an_epoch(ray_local, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fracray.runtime.console.LINE_SECONDS", 0.0)
    slow = ["--set", "model.width=96", "--set", "data.size=224", "--set", "train.batch_size=2"]
    train(tmp_path, "slow", "--epochs", "2", "--workers", "2", *slow)
    shown = re.findall(
        r"^epoch (\d) of 2: (\d+) of (\d+) steps, .*images/s, at least .* left$", capsys.readouterr().out, re.M
    )
    assert shown
    images = json.loads((tmp_path / "slow/data.json").read_text())["parts"]["train"]["images"]
    assert {int(of) for _, _, of in shown} == {-(-images // 2)}
    assert all(0 < int(done) <= int(of) for _, done, of in shown)


def test_resume_continues_where_the_run_stopped(ray_local, tmp_path):
    """Killed with SIGKILL; the epochs that follow are those of an uninterrupted run of the same seed.

    Its cluster stays up, and the run resumes on it.
    """
    process = start(tmp_path, "killed", "--epochs", "20", "--cpus-per-worker", "1", "--set", "train.keep_seconds=0")
    run = tmp_path / "killed"
    wait_for_epoch(run, 2, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = history(run)
    assert 2 <= len(kept) < 20
    main(["--storage", str(tmp_path), "--name", "killed", "--resume", "--cpus-per-worker", "1"])
    # Every epoch but the last, whose state may not have been written, ran once: its wall-clock time is the same.
    assert history(run)[: len(kept) - 1] == kept[:-1]
    assert [entry["epoch"] for entry in history(run)] == list(range(1, 21))
    assert metrics(run) == metrics(train(tmp_path, "complete", "--epochs", "20"))


def test_a_killed_worker_process_costs_what_was_not_kept_yet(ray_local, tmp_path):
    run = tmp_path / "hit"

    def kill():
        wait_for_epoch(run, 3)
        victims = workers_of("RayTrainWorker")
        assert len(victims) == 2
        before = history(run)
        victims[1].kill()
        return before

    with ThreadPoolExecutor() as pool:
        killed = pool.submit(kill)
        train(tmp_path, "hit", "--epochs", "20", "--workers", "2", "--set", "train.keep_seconds=0")
        before = killed.result()
    after = history(run)
    assert [entry["epoch"] for entry in after] == list(range(1, 21))
    assert after[: len(before) - 1] == before[:-1]  # ran once, as above
