"""SIGTERM to a command and its own Ray cluster, with a program in the raylet's place that ends when a test wants."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from fracray.runtime.own_cluster import OwnCluster

# Ray's C++ code ends the driver with exit code 1 as soon as the raylet's object store is closed, here a pipe.
DRIVER = """
import os, subprocess, sys, threading, time
sys.argv = ["fracray"]  # a command, whose signals fracray answers
import psutil
from fracray import interrupts
from fracray.runtime.own_cluster import OwnCluster

def started(*words):
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)

def as_ray():
    raylet.stdout.read()
    os._exit(1)

os.symlink(sys.executable, "raylet")
raylet = started("./raylet", "raylet.py")
raylet.stdout.readline()
monitor = started("sleep", "60")
threading.Thread(target=as_ray, daemon=True).start()
interrupts.signal.signal(interrupts.signal.SIGTERM, lambda *_: None)  # as a library's, which goes on
own = OwnCluster(lambda: "continue with: that")
own.is_up()
print(raylet.pid, monitor.pid, flush=True)
while not (interrupts.terminated() and LEAVES):
    time.sleep(0.001)
print(own.closes(), psutil.Process(raylet.pid).status() != psutil.STATUS_STOPPED, flush=True)
raylet.kill()
monitor.kill()
time.sleep(60)
"""
# Told to end, it closes its store only a second later. It is killed when the driver has ended, as Ray's is.
RAYLET = """
import ctypes, os, signal, time
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
signal.signal(signal.SIGTERM, lambda *_: time.sleep(1) or os._exit(0))
print("up", flush=True)
while True:
    time.sleep(60)
"""


@pytest.fixture
def begun(tmp_path):
    """A function that starts the driver, which leaves its block after SIGTERM or not: its process and its children."""
    (tmp_path / "raylet.py").write_text(RAYLET)
    made = []

    def begin(leaves):
        driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER.replace("LEAVES", str(leaves))],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        made.append(driver)
        return driver, [int(pid) for pid in driver.stdout.readline().split()]

    yield begin
    for driver in made:
        if driver.poll() is None:
            for process in [*psutil.Process(driver.pid).children(), driver]:
                process.kill()


def living(pid):
    try:
        process = psutil.Process(pid)
        return [process] if process.status() != psutil.STATUS_ZOMBIE else []
    except psutil.NoSuchProcess:
        return []


def test_a_raylet_that_also_got_sigterm_cannot_close_before_the_command_has_ended(begun):
    driver, (raylet, monitor) = begun(leaves=False)
    for pid in (raylet, monitor, driver.pid):
        os.kill(pid, signal.SIGTERM)
    _, said = driver.communicate(timeout=60)
    assert (driver.returncode, said) == (130, "interrupted; continue with: that\n")
    psutil.wait_procs([process for pid in (raylet, monitor) for process in living(pid)], timeout=20)
    assert not living(raylet) + living(monitor)


def test_a_raylet_that_did_not_get_sigterm_goes_on_and_can_be_ended(begun):
    driver, _ = begun(leaves=True)
    driver.send_signal(signal.SIGTERM)
    assert driver.stdout.readline() == "True True\n"  # it may be ended, and it is not held


def test_a_process_that_was_forked_meanwhile_does_not_keep_it_from_closing():
    """As by a callback of the user's: it has inherited every pipe."""
    code = (
        "import os, time; from fracray.runtime.own_cluster import OwnCluster; own = OwnCluster(str); own.is_up(); "
        "forked = os.fork(); forked or (time.sleep(60), os._exit(0)); alive = own.closes(); os.kill(forked, 9); "
        "print(alive)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "True\n"


def test_a_sigterm_that_comes_as_the_block_is_left_does_not_hold_servers_that_are_to_end(monkeypatch):
    monkeypatch.setattr(OwnCluster, "_look", lambda own: None)
    own, sent = OwnCluster(str), []
    own._starts, own._processes = False, [own._witness.pid]
    monkeypatch.setattr(own, "_signal_servers", sent.append)
    monkeypatch.setattr("fracray.interrupts.terminates", lambda seconds: own.closes())  # it comes just then
    own._ends()
    assert own._closing.is_set()
    assert sent == []
