"""What the tests of reports share: one small search with its refit."""

import shutil

import pytest

import fracray.refit
import fracray.tune

SPACE = """
metric: val_auroc
mode: max
trials: 4
epochs: 3
sampler: {name: random, seed: 0}
scheduler: {name: asha, grace_epochs: 1, reduction_factor: 2}
base:
  data: {size: 32, phantom: {count: 200}, split: {block: 10}}
  model: {width: 8, localise: true}
space:
  model.dropout: {float: [0.0, 0.7]}
  augment.rotate: {float: [0, 30]}
  train.lr: {log_float: [1.0e-3, 1.0e-1]}
  train.loss: {categorical: [weighted, plain]}
"""


@pytest.fixture(scope="session")
def searched(tmp_path_factory, ray_local):
    """The folder of runs, with a search and its refit, and what they printed."""
    root = tmp_path_factory.mktemp("searched")
    (root / "space.yaml").write_text(SPACE)
    words = ["--space", root / "space.yaml", "--storage", root / "runs", "--name", "first", "--concurrent", 1]
    fracray.tune.main([str(word) for word in words])
    shutil.copytree(root / "runs/first", root / "runs/unrefitted")
    fracray.refit.main([str(root / "runs/first"), "--top", "1", "--seeds", "2", "--concurrent", "1"])
    return root / "runs"
