"""Machines in network namespaces, each with its own address: one is killed, one joins late, a link is cut for 30 s.

No packet leaves these namespaces.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from functools import partial

import pandas as pd
import pytest
from heads import finished, fracray, space, started_head, wait_for

pytestmark = pytest.mark.cluster

CUT_SECONDS = 30
EPOCHS = 90
TRIALS = 4
LOOK = """
import sys
from ray.util.state import list_nodes
ALIVE = [("state", "=", "ALIVE")]
print(*(node.node_ip for node in list_nodes(address=sys.argv[1], filters=ALIVE, raise_on_missing_output=False)))
"""


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Network:
    """Namespaces joined by a bridge, which has its own namespace."""

    def __init__(self):
        self._mark = f"fr{os.getpid()}"
        self._made = []
        self._switch = self._namespace("switch")
        ip("-n", self._switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", self._switch, "link", "set", "bridge", "up")

    def _namespace(self, name):
        made = f"{self._mark}-{name}"
        ip("netns", "add", made)
        self._made.append(made)
        ip("-n", made, "link", "set", "lo", "up")
        return made

    def machine(self, name, number):
        """Add a machine with the address 10.77.0.NUMBER; returns the prefix of commands that run on it."""
        made = self._namespace(name)
        ip("-n", made, "link", "add", "eth0", "type", "veth", "peer", "name", name, "netns", self._switch)
        ip("-n", self._switch, "link", "set", name, "master", "bridge", "up")
        ip("-n", made, "address", "add", f"10.77.0.{number}/24", "dev", "eth0")
        ip("-n", made, "link", "set", "eth0", "up")
        return ["ip", "netns", "exec", made]

    def link(self, name, state):
        ip("-n", self._switch, "link", "set", name, state)

    def kill(self, name):
        """Kill every process of the machine at once, as in a power cut."""
        found = subprocess.run(
            ["ip", "netns", "pids", f"{self._mark}-{name}"], check=False, capture_output=True, text=True
        )
        for pid in found.stdout.split():
            os.kill(int(pid), signal.SIGKILL)

    def remove(self):
        for made in reversed(self._made):
            self.kill(made.partition("-")[2])
            subprocess.run(["ip", "netns", "delete", made], check=False)


@pytest.fixture
def network():
    if os.geteuid() or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2's ip")
    try:
        network = Network()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
    yield network
    network.remove()


@contextmanager
def worker(head, machine, number, log):
    """A worker with one CPU on a machine, until the block ends."""
    options = ["--num-cpus=1", "--num-gpus=0", "--object-store-memory=200000000", "--block"]
    start = ["ray", "start", f"--address={head.address}", f"--node-ip-address=10.77.0.{number}", *options]
    # Ray gives a node 30 s to start, which a busy machine may exceed: then once more.
    process = subprocess.Popen(
        [*machine, "sh", "-c", '"$@" || "$@"', "sh", *start],
        env=head.environment,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    yield process
    process.kill()
    process.wait()


def history(run, trial):
    file = run / f"trials/{trial}/epochs.json"
    return json.loads(file.read_text()) if file.exists() else []


def test_a_search_survives_a_killed_machine_and_a_cut_link_and_uses_a_late_machine(network, tmp_path):
    (tmp_path / "space.yaml").write_text(space(TRIALS, EPOCHS, size=48, count=160, width=8, keep_seconds=2))
    run = tmp_path / "runs/net"
    machines = {name: network.machine(name, number) for number, name in enumerate(("head", "one", "two", "late"), 1)}
    ports = [6379, 8265, 52365, 52366, 52367, 10001]
    with ExitStack() as stack, open(tmp_path / "workers.log", "w") as log:
        options = ["--num-cpus=0", "--num-gpus=0", "--object-store-memory=300000000"]
        head = stack.enter_context(
            started_head(tmp_path, *options, before=machines["head"], ip="10.77.0.1", ports=ports)
        )
        words = ["--space", "space.yaml", "--name", "net", "--address", head.address]
        looked = [*machines["head"], sys.executable, "-c", LOOK, head.url]

        def alive():
            return set(subprocess.run(looked, check=True, env=head.environment, stdout=subprocess.PIPE).stdout.split())

        def is_alive(number):
            return f"10.77.0.{number}".encode() in alive()

        # One after the other: started together on one disk, they would choose the same names for their sockets.
        for number, name in ((2, "one"), (3, "two")):
            process = stack.enter_context(worker(head, machines[name], number, log))
            wait_for(partial(is_alive, number), process)
        search = fracray(head, "tune", *words, before=machines["head"], cwd=tmp_path)
        stack.callback(search.kill)
        wait_for(lambda: len(history(run, "t0000")) > 20 and len(history(run, "t0001")) > 20, search)
        before = {trial: len(history(run, trial)) for trial in ("t0000", "t0001")}
        killed = time.monotonic()
        network.kill("one")
        stack.enter_context(worker(head, machines["late"], 4, log))

        # One of the two trials resumes at once, the other when the late machine has joined or the first has ended.
        def both_resumed():
            return all(len(history(run, trial)) > done + 12 for trial, done in before.items())

        wait_for(both_resumed, search)
        lost = time.monotonic() - killed
        wait_for(partial(is_alive, 4), search)
        network.link("two", "down")
        time.sleep(CUT_SECONDS)
        network.link("two", "up")
        output = finished(search, 400)
    print(output)
    print(f"both trials were 12 epochs further {lost:.1f} s after the kill")
    assert "will be resumed" in output
    assert f"best of {TRIALS} finished trials" in output
    table = pd.read_parquet(run / "trials.parquet")
    assert set(table["state"]) == {"done"}
    # Every trial has all its epochs, each of them once.
    assert {trial: list(rows["epoch"]) for trial, rows in table.groupby("trial")} == {
        f"t{number:04d}": list(range(1, EPOCHS + 1)) for number in range(TRIALS)
    }
    assert (run / "best/model.safetensors").exists()
