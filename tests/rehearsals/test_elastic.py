"""An elastic training: it uses a second node when that starts, and continues without it when it is killed."""

import json
import signal
import subprocess
import time
from contextlib import ExitStack
from itertools import groupby

import pytest
from heads import end, fracray, started_head, wait_for

pytestmark = pytest.mark.cluster

EPOCHS = 100_000  # never reached: the test ends the training


def test_a_training_uses_a_new_node_and_continues_when_it_is_killed(tmp_path):
    epochs = tmp_path / "runs/elastic/trials/t0000/epochs.json"

    def workers():
        return [int(epoch["workers"]) for epoch in json.loads(epochs.read_text())] if epochs.exists() else []

    def wait(condition):
        wait_for(condition, training, 150)

    memory = "--object-store-memory=200000000"
    with started_head(tmp_path, "--num-cpus=1", "--num-gpus=0", memory) as head, ExitStack() as stack:
        words = ["--workers", "1-2", "--cpus-per-worker", 1, "--name", "elastic", "--address", head.address]
        words += ["--epochs", EPOCHS, "--set", "data.size=48", "--set", "model.width=8", "--set", "data.stream=memory"]
        words += ["--set", "data.phantom.count=160", "--set", "data.split.block=2", "--set", "train.keep_seconds=2"]
        training = fracray(head, "train", *words, cwd=tmp_path)
        stack.callback(training.kill)
        wait(lambda: len(workers()) > 5)
        node = subprocess.Popen(
            ["ray", "start", f"--address={head.address}", "--num-cpus=1", "--num-gpus=0", memory, "--block"],
            env=head.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
        )
        stack.callback(end, node)
        wait(lambda: workers()[-1] == 2)
        wait(lambda: workers()[-10:] == [2] * 10)
        time.sleep(5)  # past train.keep_seconds: epochs that are not kept would be trained again, by one worker
        end(node)
        killed, known = time.monotonic(), len(workers())
        wait(lambda: workers()[-1] == 1 and len(workers()) > known)
        lost = time.monotonic() - killed
        training.send_signal(signal.SIGINT)
        output, _ = training.communicate(timeout=60)
    print(f"the first new epoch came {lost:.1f} s after the kill")
    assert training.returncode == 130, output
    assert "continue with: python -m fracray.train --name elastic --resume" in output
    assert "2 workers" in output
    assert [workers for workers, _ in groupby(workers())] == [1, 2, 1]
    history = [int(epoch["epoch"]) for epoch in json.loads(epochs.read_text())]
    assert history == list(range(1, len(history) + 1))
