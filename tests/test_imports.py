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


def test_the_code_runs_where_it_is_on_the_path_but_not_installed(monkeypatch):
    # As where a checkout is sent along with a job: a trial would end as it writes its checkpoint.
    from importlib import metadata

    from fracray import __version__
    from fracray.cli import version_line
    from fracray.runtime.run_folder import environment
    from fracray.training import card

    def version(name):
        if name == "fracray":
            raise metadata.PackageNotFoundError(name)
        return known(name)

    known = metadata.version
    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(card, "version", version)
    assert card._packages.__wrapped__()["fracray"] == __version__
    assert environment()["packages"]["fracray"] == __version__
    assert version_line().startswith(f"fracray {__version__} (")
