"""What runs in a training's inner loop imports no Ray: it can be read, tested and profiled alone."""

import subprocess
import sys

import pytest

WITHOUT_RAY = [
    "fracray.training.model",
    "fracray.training.loop",
    "fracray.training.metered",
    "fracray.training.cross_validation",
    "fracray.training.checkpoint",
    "fracray.metrics",
    "fracray.data.loading.augment",
]


def imported_by(module):
    """The names of all modules that a fresh interpreter has imported after `module`."""
    code = f"import sys, {module}; print(*sys.modules)"
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()


@pytest.mark.parametrize("module", WITHOUT_RAY)
def test_no_ray_is_imported(module):
    names = imported_by(module)
    assert module in names
    assert [name for name in names if name == "ray" or name.startswith("ray.")] == []


def test_counting_time_imports_no_torch():
    names = imported_by("fracray.runtime.efficiency")
    assert "fracray.runtime.efficiency" in names
    assert "torch" not in names
