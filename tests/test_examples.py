"""The example in Ray's own pattern, as a user runs it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fracray.training.checkpoint import load_checkpoint

pytestmark = pytest.mark.pages

EXAMPLE = Path(__file__).parent.parent / "examples/ray_native.py"


@pytest.mark.slow
def test_the_example_searches_and_keeps_checkpoints_that_open(tmp_path):
    words = ["--phantoms", "200", "--trials", "2", "--epochs", "2", "--storage", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), *words], capture_output=True, text=True, timeout=800, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert re.search(r"2 trials in \d+ s; errors: 0", done.stdout)
    best = float(re.search(r"best validation AUROC (\d\.\d+) with \{'model.dropout'", done.stdout)[1])
    folders = sorted(tmp_path.glob("train-*/checkpoint*/best"))
    assert len({folder.parent.parent for folder in folders}) == 2, "each trial kept its best epoch"
    assert best == pytest.approx(
        max(load_checkpoint(folder).metadata.metrics["val_auroc"] for folder in folders), abs=5e-4
    )
