"""A tiny checkpoint with a localiser, and the command as a process that serves it, on a free port of loopback."""

import contextlib
import os
import re
import subprocess
import sys
import threading

import httpx
import numpy as np
import pandas as pd
import torch

from fracray.config import Config
from fracray.metrics import Calibration
from fracray.training.checkpoint import CheckpointMetadata, save_checkpoint
from fracray.training.model import build_model

SIZE = 64


def tiny_checkpoint(folder, name="fracture_cnn"):
    """A network with random weights that localises, and a validation whose logits mean something."""
    config = Config().with_leaves({"model.name": name, "model.width": 8, "model.localise": True, "data.size": SIZE})
    metadata = CheckpointMetadata(
        config, 0.4, Calibration(1.5, 0.1), {"val_accuracy": 0.7}, data_fingerprint="f", epoch=3, trial="t0001"
    )
    torch.manual_seed(0)
    model = build_model(config.model)
    state = model.state_dict()
    state["localiser.weight"] = torch.randn_like(state["localiser.weight"])
    rng = np.random.default_rng(0)
    labels = np.arange(240) % 3 == 0
    validation = pd.DataFrame(
        {
            "image_id": [f"v{number}" for number in range(240)],
            "group": [f"g{number // 2}" for number in range(240)],
            "label": labels.astype(np.int64),
            "split": "val",
            "logit": (rng.normal(size=240) + 2 * labels - 1).astype(np.float32),
        }
    )
    save_checkpoint(folder, state, metadata, predictions=validation)
    return folder


def probability_in(report):
    """The probability that a DICOM SR (a dataset of pydicom) measures."""
    waiting = [report]
    found = []
    while waiting:
        item = waiting.pop()
        waiting.extend(item.get("ContentSequence", []))
        if "MeasuredValueSequence" in item:
            name, value = item.ConceptNameCodeSequence[0], item.MeasuredValueSequence[0]
            assert (name.CodeValue, value.MeasurementUnitsCodeSequence[0].CodeValue) == ("122157", "1")
            found.append(float(value.get("FloatingPointValue", value.NumericValue)))
    (probability,) = found
    return probability


class Served:
    """`python -m fracray.serve` as a process; `url`, and `lines` of what it printed."""

    def __init__(self, checkpoint, *words):
        command = [sys.executable, "-m", "fracray.serve", str(checkpoint), "--port", "0", *map(str, words)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ
        )
        self.lines, self.url = [], ""
        for line in self.process.stdout:
            self.lines.append(line)
            if found := re.search(r"at (http://\S+)", line):
                self.url = found[1]
                break
        assert self.url, "".join(self.lines)
        self._reader = threading.Thread(target=lambda: self.lines.extend(self.process.stdout), daemon=True)
        self._reader.start()

    def client(self, **options):
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False, **options)

    def end(self, signum=None):
        """The exit code, after a signal; what was printed is in `lines`."""
        if signum is not None:
            self.process.send_signal(signum)
        code = self.process.wait(60)
        self._reader.join(10)
        return code


@contextlib.contextmanager
def served(checkpoint, *words):
    server = Served(checkpoint, *words)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()
