"""Ctrl-C and SIGTERM at any moment of any command: one line that says what to type next, exit code 130, no traceback.

Only Python's own start, before it imports fracray, is out of reach.
"""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest

from fracray import interrupts
from fracray.interrupts import AGAIN

COMMANDS = {
    "tune": ["tune", "--space", "space.yaml", "--name", "atlas"],
    "train": ["train", "--name", "atlas"],
    "fetch": ["fetch", "runs/none", "--to", "out"],
    "evaluate": ["evaluate", "runs/none"],
    "data check": ["data", "check", "phantom"],
    "data phantom": ["data", "phantom", "--to", "phantoms", "--count", "5000"],
    "cluster check": ["cluster", "check", "cluster.yaml"],
}
SPACE = "space:\n  model.dropout: {float: [0.0, 0.5]}\n"
# Waits for a file once `module` begins to be imported: the signal then comes in the middle of an import.
SLOW = """
import os, sys, time
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            open("importing", "w").close()
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                time.sleep(0.01)
sys.meta_path.insert(0, Slow())
"""


def started(tmp_path, words, group=False, slow=None):
    (tmp_path / "space.yaml").write_text(SPACE)
    (tmp_path / "cluster.yaml").write_text("provider: {type: local, head_ip: a, worker_ips: []}\n")
    path = os.pathsep.join([str(tmp_path / "site"), *filter(None, sys.path)])
    if slow:
        (tmp_path / "site").mkdir()
        (tmp_path / "site/sitecustomize.py").write_text(SLOW.format(module=slow))
    return subprocess.Popen(
        [sys.executable, "-m", "fracray", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=group,
    )


def end(process, seconds=120):
    try:
        out, said = process.communicate(timeout=seconds)
    finally:
        process.kill()
    assert "Traceback" not in out + said
    return process.returncode, out, said


@pytest.mark.parametrize("word", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
@pytest.mark.parametrize(
    ("name", "module"),
    [
        *((name, "fracray.errors") for name in COMMANDS),
        ("tune", "argparse"),
        ("tune", "pydantic"),
        ("tune", "numpy"),
        ("train", "numpy"),
        ("data check", "ray"),
        ("data phantom", "cv2"),
        ("cluster check", "yaml"),
    ],
)
def test_in_an_import_a_command_ends_at_once(tmp_path, name, module, word):
    process = started(tmp_path, COMMANDS[name], slow=module)
    wait_for(tmp_path / "importing", process)
    process.send_signal(word)
    assert end(process, seconds=20) == (130, "", "interrupted; give the same command again\n")
    assert not (tmp_path / "runs/atlas/space.yaml").exists()


@pytest.mark.parametrize("name", ["tune", "train"])
def test_in_an_import_of_a_run_the_run_is_left_in_order(tmp_path, name):
    """Once the run is claimed, the signal waits for the end of the import, and a second one ends the process."""
    process = started(tmp_path, COMMANDS[name], slow="ray.tune" if name == "tune" else "ray")
    wait_for(tmp_path / "importing", process)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    code, _, said = end(process)
    assert (code, said) == (130, "interrupted; give the same command again\n")


def test_ctrl_c_in_a_terminal_reaches_all_processes_and_gives_one_line(tmp_path):
    process = started(tmp_path, COMMANDS["data phantom"], group=True)
    wait_for(tmp_path, process, ".*.partial")
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)
    assert end(process) == (130, "", "interrupted; give the same command again\n")
    assert not list(tmp_path.glob("*phantoms*"))


SMALL = ["data.size=32", "data.phantom.count=150", "data.split.block=10", "model.width=8", "train.precision=fp32"]
SMALL = [word for setting in SMALL for word in ("--set", setting)]
LONG = {
    "tune": ["--trials", "2", "--epochs", "40", "--concurrent", "1", *SMALL],
    "train": ["--epochs", "80", "--cpus-per-worker", "1", *SMALL],  # on one thread an epoch takes less than 0.1 s
}


@pytest.mark.slow
@pytest.mark.parametrize("way", ["group", "all"])
@pytest.mark.parametrize(
    ("name", "moment"), [("tune", "trains"), ("train", "trains"), ("tune", "starts Ray"), ("train", "starts Ray")]
)
def test_sigterm_to_all_processes_is_no_killed_cluster(tmp_path, cache, name, moment, way):
    """`timeout` and shells send it to the process group, which Ray leaves; systemd and Slurm also to Ray."""
    process = started(tmp_path, [*COMMANDS[name], *LONG[name]], group=True)
    wait_until(lambda: raylets(process), process)
    assert all(os.getpgid(raylet.pid) != process.pid for raylet in raylets(process))
    if moment == "trains":
        wait_for(tmp_path, process, "runs/atlas/trials/*/epochs.json")
    if way == "group":
        os.killpg(process.pid, signal.SIGTERM)
    else:
        for victim in [*psutil.Process(process.pid).children(recursive=True), process]:
            with suppress(psutil.NoSuchProcess):
                victim.send_signal(signal.SIGTERM)
    code, _, said = end(process, seconds=180)
    again = "(the search is not finished; )?continue with: python -m fracray." if moment == "trains" else AGAIN
    assert code == 130, said
    assert re.fullmatch(rf"interrupted; {again}.*\n", said), said
    if moment == "trains":
        done = started(tmp_path, said.split("-m fracray.")[1].split())
        code, out, said = end(done, seconds=600)
        assert (code, said) == (0, "")
        assert "checkpoint: " in out


@pytest.mark.slow
def test_a_ray_that_does_not_come_up_is_started_twice_and_then_an_error(tmp_path, cache):
    """As on a machine with far too much to do: Ray waits half a minute, and raises a plain Exception."""
    process = started(tmp_path, [*COMMANDS["train"], *LONG["train"]], group=True)
    stopped = []

    def stops_another():
        new = [one for one in raylets(process) if one not in stopped]
        for one in new:
            one.send_signal(signal.SIGSTOP)
        stopped.extend(new)
        return new

    wait_until(stops_another, process)
    wait_until(stops_another, process)
    code, _, said = end(process, seconds=180)
    assert code == 1
    note, error = said.splitlines()
    assert re.fullmatch(r"note: Ray's servers did not start in time .+: they are started once more", note), said
    assert re.fullmatch(r"failed: Ray's servers did not start in time .+ give the same command again", error), said
    assert not any(one.is_running() for one in stopped)


def raylets(process):
    return [child for child in psutil.Process(process.pid).children() if child.name() == "raylet"]


def wait_for(place, process, pattern=None):
    wait_until(lambda: any(place.glob(pattern)) if pattern else place.exists(), process)


def wait_until(condition, process):
    deadline = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_program_that_uses_the_package_keeps_its_handlers():
    code = (
        "import signal; before = signal.getsignal(signal.SIGINT); import fracray, fracray.errors; "
        "print(signal.getsignal(signal.SIGINT) is before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_what_a_run_says_after_an_interruption():
    with (
        pytest.raises(KeyboardInterrupt, match=r"^continue with: that$"),
        interrupts.remedy(lambda: "continue with: that"),
    ):
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt, match=r"^said already$"), interrupts.remedy(lambda: "continue with: that"):
        raise KeyboardInterrupt("said already")
    with pytest.raises(KeyboardInterrupt, match=r"^$"), interrupts.remedy(lambda: 1 / 0):
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="a fault"), interrupts.remedy(lambda: "continue with: that"):
        raise ValueError("a fault")
