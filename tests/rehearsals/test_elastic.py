"""A training whose machines come and go: it takes the second one in, and goes on without it when it is killed."""

import json
import os
import signal
import subprocess
import time

import psutil
import pytest
from heads import finished, fracray, started_head

pytestmark = pytest.mark.cluster

EPOCHS = 400


def test_a_training_takes_a_machine_in_and_outlives_it(tmp_path):
    epochs = tmp_path / "runs/elastic/trials/t0000/epochs.json"

    def workers():
        return [int(epoch["workers"]) for epoch in json.loads(epochs.read_text())] if epochs.exists() else []

    def wait(condition):
        deadline = time.monotonic() + 150
        while not condition():
            assert training.poll() is None, training.communicate()[0]
            assert time.monotonic() < deadline, workers()
            time.sleep(0.1)

    memory = "--object-store-memory=200000000"
    with started_head(tmp_path, "--num-cpus=1", "--num-gpus=0", memory) as head:
        words = ["--workers", "1-2", "--cpus-per-worker", 1, "--name", "elastic", "--address", head.address]
        words += ["--epochs", EPOCHS, "--set", "data.size=32", "--set", "model.width=4", "--set", "data.stream=memory"]
        words += ["--set", "data.phantom.count=60", "--set", "data.split.block=2", "--set", "train.keep_seconds=2"]
        training = fracray(head, "train", *words, cwd=tmp_path)
        wait(lambda: len(workers()) > 5)
        machine = subprocess.Popen(
            ["ray", "start", f"--address={head.address}", "--num-cpus=1", "--num-gpus=0", memory, "--block"],
            env=head.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
        )
        wait(lambda: workers()[-1] == 2)
        wait(lambda: workers()[-10:] == [2] * 10)
        for process in [*psutil.Process(machine.pid).children(recursive=True), machine]:
            os.kill(process.pid, signal.SIGKILL)
        said = finished(training, 300)
        machine.wait()
    print(said)
    history = workers()
    assert len(history) == EPOCHS
    assert history[0] == history[-1] == 1
    assert history.count(2) >= 10
    assert [int(epoch["epoch"]) for epoch in json.loads(epochs.read_text())] == list(range(1, EPOCHS + 1))
    assert "2 workers" in said
    assert (tmp_path / "runs/elastic/best/model.safetensors").exists()
