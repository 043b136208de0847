"""The start of Ray's servers, which are slow on a busy machine."""

import json
import subprocess
import sys

import pytest

# The first nodes, as many as asked, fail when their servers are up: a driver sees the same where they are late.
DRIVER = """
import json, sys, time
import psutil, ray
from ray._private import services
from fracray.errors import run_verb
from fracray.runtime import ray_session

failing, slow = int(sys.argv[1]), sys.argv[2] == "slow"
looked_up, seen = services.get_node, []
ray_session.SLOW_SECONDS = 0.0 if slow else 60.0

def get_node(*words):
    found = looked_up(*words)
    if len(seen) < failing:
        while not any("default_worker" in " ".join(one.cmdline()) for one in below()):
            time.sleep(0.1)
        seen.append([one.pid for one in below()])
        raise Exception("The current node timed out during startup. This could happen because ...\\nmore")
    return found

def below():
    return [one for one in psutil.Process().children(recursive=True) if one.name() != "cat"]  # waits with the driver

def main(_):
    with ray_session.connect(None):
        left = {one.pid for one in below()} & set(sum(seen, []))
        servers = sorted(one.name() for one in psutil.Process().children() if one.name() in ("raylet", "gcs_server"))
        print(json.dumps({"failed": len(seen), "left": sorted(left), "servers": servers, "two": ray.get(add.remote())}))

@ray.remote
def add():
    return 2

services.get_node = get_node
code = run_verb(main, [])
print(json.dumps({"alive": [pid for pid in sum(seen, []) if psutil.pid_exists(pid)]}))
sys.exit(code)
"""
TIMED_OUT = "Ray's servers did not start in time on this machine (The current node timed out during startup. This could"


@pytest.fixture
def run(tmp_path):
    """A function that runs the driver: its exit code, the JSON lines it printed, and the lines of stderr."""
    (tmp_path / "driver.py").write_text(DRIVER)

    def drive(failing, how="slow"):
        command = [sys.executable, str(tmp_path / "driver.py"), str(failing), how]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
        return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr.splitlines()

    return drive


def test_servers_that_are_late_are_ended_and_started_once_more(run):
    code, (inside, after), said = run(1)
    assert code == 0
    assert inside == {"failed": 1, "left": [], "servers": ["gcs_server", "raylet"], "two": 2}
    assert after == {"alive": []}
    (note,) = said
    assert note.startswith(f"note: {TIMED_OUT}"), note
    assert note.endswith("they are started once more")


def test_a_machine_that_is_too_busy_twice_is_named_and_nothing_is_left_running(run):
    code, (after,), said = run(2)
    assert code == 1
    assert after == {"alive": []}
    assert [line.partition(":")[0] for line in said] == ["note", "failed"]
    assert said[-1].startswith(f"failed: {TIMED_OUT}")
    assert "too busy" in said[-1]
    assert said[-1].endswith("end other programs or wait for them, and give the same command again")


def test_what_fails_at_once_is_not_tried_again(run):
    code, (after,), said = run(1, how="at once")
    assert code == 1
    assert after == {"alive": []}
    assert len(said) == 1
    assert said[0].startswith("failed: Ray could not be started on this machine: The current node")
