"""The cluster that a command starts for itself, and what becomes of the command when it is killed."""

import subprocess
import sys

import psutil
import pytest

from fracray.connection import SERVERS

CODE = """
import time
from fracray.connection import connect

with connect(None, lambda: "go on with: this"):
    print("up", flush=True)
    time.sleep(120)
"""


@pytest.mark.parametrize("victim", SERVERS)
def test_a_command_ends_in_one_line_when_its_cluster_is_killed(victim):
    with subprocess.Popen(
        [sys.executable, "-c", CODE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as command:
        assert command.stdout.readline() == "up\n"
        next(child for child in psutil.Process(command.pid).children() if child.name() == victim).kill()
        out, err = command.communicate(timeout=60)
    assert (command.returncode, out) == (1, "")
    assert err.startswith("failed: the Ray cluster of this command was killed")
    assert err.endswith("; go on with: this\n")
    assert err.count("\n") == 1
