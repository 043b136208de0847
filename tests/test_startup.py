"""Help and refusals come before Torch and Ray are imported."""

import subprocess
import sys

import pytest

CODE = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
except SystemExit as end:
    print(end.code, *sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""
SLOW = {"torch", "ray", "torchvision", "timm", "optuna", "pandas", "albumentations", "cv2"}
SPACE = "metric: val_acuracy\nspace:\n  model.dropout: {float: [0.0, 0.5]}\n"


def loaded(folder, *words):
    """The exit code of a command, what it said, and the packages that it loaded."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, *words], cwd=folder, capture_output=True, text=True, check=False, timeout=120
    )
    *said, last = done.stderr.splitlines()
    code, *packages = last.split()
    return int(code), done.stdout + "\n".join(said), set(packages)


@pytest.mark.parametrize(
    "words",
    [
        "fracray",
        "fracray.tune",
        "fracray.train",
        "fracray.fetch",
        "fracray.refit",
        "fracray.evaluate",
        "fracray.predict",
        "fracray.report",
        "fracray.data",
        *(f"fracray.data {verb}" for verb in ("download", "import", "check", "audit", "sheet", "phantom")),
        "fracray.cluster",
        *(f"fracray.cluster {verb}" for verb in ("check", "submit", "attach")),
    ],
)
def test_help_loads_nothing_slow(tmp_path, words):
    code, said, packages = loaded(tmp_path, *words.split(), "--help")
    assert code == 0
    assert "usage:" in said
    assert not packages & (SLOW | {"numpy", "pyarrow"})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("tune --space nowhere.yaml", "nowhere.yaml: no such search-space file"),
        ("tune --space misspelt.yaml", "misspelt.yaml:1: metric 'val_acuracy' is not reported"),
        ("tune --space misspelt.yaml --set model.dropuot=1", "did you mean 'model.dropout'?"),
        ("tune --space misspelt.yaml --data nowhere", "nowhere: no such file or folder"),
        ("train --data nowhere", "nowhere: no such file or folder"),
        ("train --config nowhere.yaml", "nowhere.yaml: no such config file"),
        ("train --workers 3-2", "the minimum must not exceed the maximum"),
        ("fetch nowhere --to out", "nowhere: no such run folder"),
        ("refit nowhere", "nowhere: no such run folder"),
        ("evaluate nowhere", "nowhere: no such checkpoint folder or run"),
        ("evaluate nowhere --severities 3", "only with --corruptions"),
        ("predict nowhere . --to out.csv", "nowhere: no such checkpoint folder or run"),
        ("predict . nowhere --to out.csv", "nowhere: no such file or folder"),
        ("predict . . --to out.txt", "--to out.txt: name a file that ends in .csv"),
        ("data check nowhere", "nowhere"),
        ("data audit nowhere", "nowhere"),
        ("data sheet nowhere --to x.png", "nowhere"),
        ("data import nowhere --to set", "nowhere"),
        ("data import nowhere --to set --column label", "--column label"),
        ("data check phantom --set data.siez=3", "did you mean 'data.size'?"),
        ("data phantom --count 1 --to phantoms", "data.phantom.count = 1"),
        ("cluster check nowhere.yaml", "nowhere.yaml: no such cluster file"),
        ("cluster check broken.yaml", "broken.yaml:2: not valid YAML"),
        ("cluster check binary.yaml", "binary.yaml: not readable: it is not text"),
        ("cluster check own.yaml --cpus-per-trial -1", "--cpus-per-trial"),
        ("cluster submit nowhere.yaml -- tune", "nowhere.yaml: no such cluster file"),
        ("cluster submit own.yaml -- evaluate", "submit: after -- give tune, refit or train"),
        ("cluster attach nowhere.yaml", "nowhere.yaml: no such cluster file"),
    ],
)
def test_a_refusal_loads_nothing_slow(tmp_path, words, message):
    (tmp_path / "misspelt.yaml").write_text(SPACE)
    (tmp_path / "broken.yaml").write_text("provider: {\n")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "own.yaml").write_text("provider: {type: local, head_ip: a, worker_ips: []}\n")
    code, said, packages = loaded(tmp_path, *f"fracray.{words}".split())
    assert code == 2
    assert message in said
    assert not packages & SLOW
    assert not list(tmp_path.glob("runs/*"))


def test_importing_the_package_loads_nothing_slow_and_its_names_are_there(tmp_path):
    code = "import fracray, sys; print(sorted({n.partition('.')[0] for n in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert not set(eval(done.stdout)) & (SLOW | {"numpy"})
    import fracray

    assert all(getattr(fracray, name) is not None for name in fracray.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = fracray.nothing
