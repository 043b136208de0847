"""tune --callback: the user's own callbacks of Ray Tune."""

import json
import sys

import pytest
from ray.tune import Callback

from fracray import tune
from fracray.errors import InputError, run_verb
from fracray.search.callbacks import load_callbacks

CODE = """
import json
from pathlib import Path

from ray.tune import Callback

class Notes(Callback):
    def __init__(self):
        self.seen = []

    def on_trial_result(self, iteration, trials, trial, result, **info):
        self.seen.append([trial.config["number"], result["val_accuracy"]])
        Path("notes.json").write_text(json.dumps(self.seen))

class Ends(Callback):
    def on_experiment_end(self, trials, **info):
        Path("ended.json").write_text(json.dumps(len(trials)))

class Needs(Callback):
    def __init__(self, address):
        pass

class Plain:
    pass

NUMBER = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module in the current folder, from which a shell would give the command."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    name = f"callbacks_of_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(CODE)
    return name


def test_callbacks_are_made_from_modules_in_the_current_folder(module):
    first, second = load_callbacks([f"{module}:Notes", f"{module}:Ends"])
    assert isinstance(first, Callback)
    assert [type(first).__name__, type(second).__name__] == ["Notes", "Ends"]
    assert load_callbacks([]) == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("MODULE", "expected module:Class"),
        (":Notes", "expected module:Class"),
        ("no_such_module:Notes", "no module no_such_module; install it"),
        ("MODULE.inner:Notes", "no module"),
        ("MODULE:Note", "has no Note (did you mean 'Notes'?)"),
        ("MODULE:Plain", "Plain is not a subclass of ray.tune.Callback"),
        ("MODULE:NUMBER", "NUMBER is not a subclass of ray.tune.Callback"),
        ("MODULE:Needs", "Needs() failed: TypeError"),
        ("faulty:Notes", "importing faulty failed: ValueError: broken"),
        ("lacking:Notes", "lacking imports no_such_package, which is not installed"),
    ],
)
def test_a_bad_name_is_refused_in_one_line_before_anything_is_written(module, tmp_path, capsys, name, words):
    (tmp_path / "faulty.py").write_text("raise ValueError('broken')")
    (tmp_path / "lacking.py").write_text("import no_such_package")
    (tmp_path / "space.yaml").write_text("space:\n  model.dropout: {float: [0, 0.5]}\n")
    name = name.replace("MODULE", module)
    assert run_verb(tune.main, ["--space", "space.yaml", "--callback", name]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --callback {name}: ")
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_an_error_names_the_callback(module):
    with pytest.raises(InputError, match="--callback os:path"):
        load_callbacks([f"{module}:Notes", "os:path"])


def test_tune_calls_the_users_callbacks(ray_local, module, tmp_path):
    (tmp_path / "space.yaml").write_text("space:\n  model.dropout: {float: [0, 0.5]}\n")
    small = ["--set", "data.size=32", "--set", "data.phantom.count=150", "--set", "data.split.block=10"]
    small += ["--set", "model.width=8", "--trials", "2", "--epochs", "2"]
    small += ["--callback", f"{module}:Notes", "--callback", f"{module}:Ends"]
    tune.main(["--space", "space.yaml", "--name", "called", *small])
    seen = json.loads((tmp_path / "notes.json").read_text())
    assert sorted(number for number, _ in seen) == [0, 0, 1, 1]
    assert all(0 <= accuracy <= 1 for _, accuracy in seen)
    assert json.loads((tmp_path / "ended.json").read_text()) >= 2
