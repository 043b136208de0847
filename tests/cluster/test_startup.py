"""Help and early refusals of `python -m fracray.cluster` import nothing slow."""

import os
import subprocess
import sys

import pytest

SLOW = ("torch", "ray", "pandas", "pyarrow", "numpy")
RUN = f"""
import sys
from fracray.cluster.__main__ import main
from fracray.errors import run_verb
try:
    code = run_verb(main, sys.argv[1:])
except SystemExit as ended:
    code = ended.code
print("slow:", [name for name in {SLOW} if name in sys.modules])
sys.exit(code)
"""


def run(folder, *words):
    return subprocess.run(
        [sys.executable, "-c", RUN, *words], cwd=folder, env=os.environ, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("words", [["--help"], ["check", "--help"], ["submit", "--help"], ["attach", "--help"]])
def test_help(words, tmp_path):
    done = run(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")
    assert done.stdout.endswith("slow: []\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["check", "none.yaml"], "error: none.yaml: no such cluster file"),
        (["check", "broken.yaml"], "error: broken.yaml:2: not valid YAML"),
        (["check", "binary.yaml"], "error: binary.yaml: not readable: it is not text"),
        (["check", "own.yaml", "--cpus-per-trial", "-1"], "error: --cpus-per-trial"),
        (["submit", "none.yaml", "--", "tune"], "error: none.yaml: no such cluster file"),
        (["submit", "own.yaml", "--", "evaluate"], "error: submit: after -- give tune or train"),
        (["attach", "none.yaml"], "error: none.yaml: no such cluster file"),
        (["check"], "usage: "),
    ],
)
def test_refusals(words, message, tmp_path):
    (tmp_path / "broken.yaml").write_text("provider: {\n")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "own.yaml").write_text("provider: {type: local, head_ip: a, worker_ips: []}\n")
    done = run(tmp_path, *words)
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert done.stdout == "slow: []\n"
