"""The cluster that a command starts for itself, what becomes of the command when it is killed, and what fits on one."""

import subprocess
import sys

import psutil
import pytest

from fracray.errors import InputError
from fracray.runtime.own_cluster import SERVERS
from fracray.runtime.resources import (
    EXPECTED,
    PROMISED,
    Machine,
    WorkerResources,
    alone,
    cpus_for,
    gather,
    gpu_words,
    gpus_for,
    machines,
    promise,
    require_seen,
    trials_at_once,
)

CODE = """
import time
from fracray.runtime.ray_session import connect

with connect(None, lambda: "continue with: this"):
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
    assert err.endswith("; continue with: this\n")
    assert err.count("\n") == 1


# ---------------------------------------------------------------- what fits on the machines


def on(monkeypatch, *machines):
    for name, text in promise(machines).items():
        monkeypatch.setenv(name, text)


@pytest.mark.parametrize(
    ("machines", "trial", "spare", "fit"),
    [
        ([Machine(2, 0, 1)], (1, 1, 0), 0, 2),
        ([Machine(2, 0, 1)], (1, 1, 0), 0.5, 1),
        ([Machine(2, 0, 1), Machine(4, 0, 1)], (1, 1, 0), 0.5, 5),
        ([Machine(2.5, 0, 1), Machine(4, 0, 1)], (1, 1, 0), 0.5, 6),
        ([Machine(2, 0, 1)], (1, 0.25, 0), 0.5, 6),
        ([Machine(0, 0, 1), Machine(8, 1, 3), Machine(8, 1, 1)], (1, 1, 0.25), 0, 16),
        ([Machine(0, 0, 1), Machine(8, 1, 4)], (1, 4, 0.25), 0, 8),
        ([Machine(0, 0, 1), Machine(8, 1, 4)], (2, 8, 1), 0, 2),  # the workers of a trial may be on two machines
        (
            [Machine(4, 0, 1), Machine(8, 1, 1)],
            (1, 3, 0),
            0,
            3,
        ),  # parts of a worker on several machines are not counted
    ],
)
def test_trials_are_packed_machine_by_machine(machines, trial, spare, fit, monkeypatch):
    on(monkeypatch, *machines)
    assert trials_at_once(WorkerResources(*trial), spare) == fit
    assert trials_at_once(WorkerResources(*trial), spare, asked=1) == 1
    with pytest.raises(InputError, match=f"only {fit} trial"):
        trials_at_once(WorkerResources(*trial), spare, asked=fit + 1)


@pytest.mark.parametrize(
    ("machines", "trial", "words"),
    [
        ([Machine(2, 0, 3)], (1, 3, 0), "a worker needs one machine, and only 0 fit"),
        ([Machine(8, 0, 1), Machine(0, 4, 1)], (1, 1, 1), "a worker needs one machine"),
        ([Machine(8, 0, 1)], (1, 1, 0.5), r"need 0.5 GPU\(s\), and the cluster has 0"),
        ([Machine(1, 0, 1)], (2, 1, 0), r"need 2 CPU\(s\), and the cluster has 1"),
    ],
)
def test_what_would_wait_for_ever_is_refused(machines, trial, words, monkeypatch):
    on(monkeypatch, *machines)
    with pytest.raises(InputError, match=words):
        trials_at_once(WorkerResources(*trial))


@pytest.mark.parametrize(
    ("machines", "workers", "gpus", "spare", "cpus"),
    [
        ([Machine(8, 0, 1)], 1, 0, 0, 8),
        ([Machine(8, 0, 1)], 3, 0, 0, 2),
        ([Machine(8, 0, 4)], 4, 0, 0.5, 7),
        ([Machine(1, 0, 4)], 4, 0, 0.5, 0.5),
        ([Machine(4, 0, 1), Machine(8, 1, 3)], 3, 1, 0.5, 8),
        ([Machine(0, 0, 1), Machine(8, 1, 3)], 6, 0, 0, 4),
    ],
)
def test_workers_share_out_the_cpus_of_their_machines(machines, workers, gpus, spare, cpus, monkeypatch):
    on(monkeypatch, *machines)
    assert cpus_for(workers, gpus, spare) == cpus
    assert trials_at_once(WorkerResources(workers, cpus, gpus), spare) >= 1


def test_machines_that_are_being_set_up_are_waited_for(ray_local, monkeypatch):
    monkeypatch.setenv(EXPECTED, "2")
    assert not alone()
    monkeypatch.setattr("fracray.runtime.resources.GATHER_SECONDS", 1.5)
    said = []
    gather(said.append)
    assert [line.partition(" machines")[0] for line in said] == [
        "1 of the cluster's 2",
        "continuing with 1 of the cluster's 2",
    ]
    monkeypatch.setenv(EXPECTED, "1")
    gather(said.append)
    assert len(said) == 2


def test_a_promise_that_cannot_be_read_is_named(monkeypatch):
    monkeypatch.setenv(PROMISED, "four")
    with pytest.raises(InputError, match=f"{PROMISED}: four"):
        machines()


def test_a_folder_that_machines_do_not_see_is_refused(ray_local, tmp_path, monkeypatch):
    assert alone()
    require_seen(str(tmp_path / "nowhere"), "--storage runs")  # a single machine sees what it sees
    on(monkeypatch, Machine(2, 0, 2))
    assert not alone()
    require_seen(str(tmp_path), "--storage runs")
    with pytest.raises(InputError, match=r"--storage runs: the machine\(s\) [\d.]+ of the cluster do not see"):
        require_seen(str(tmp_path / "nowhere"), "--storage runs")


# ---------------------------------------------------------------- GPUs that nobody asked for


@pytest.mark.parametrize(
    ("machines", "workers", "cpus", "gpus", "words"),
    [
        ([Machine(8, 0, 2)], 1, 1, 0, "no GPU: trials train on CPUs"),
        ([Machine(8, 2, 1)], 1, 1, 1, "1 x GPU for each trial"),
        ([Machine(8, 0, 1), Machine(8, 1, 2)], 2, 1, 1, "1 x GPU for each of a trial's 2 workers"),
        ([Machine(8, 1, 2)], 3, 1, 0, "as 3 workers need one each and the cluster has 2: trials train on CPUs"),
        ([Machine(16, 0, 1), Machine(4, 1, 1)], 1, 8, 0, "as no machine has both the GPUs and the CPUs for it"),
    ],
)
def test_a_gpu_that_is_there_is_used(ray_local, monkeypatch, machines, workers, cpus, gpus, words):
    on(monkeypatch, *machines)
    assert gpus_for(workers, None, cpus) == gpus
    assert words in gpu_words(WorkerResources(workers, cpus, gpus), "trial", None)


def test_what_is_asked_is_what_is_used(ray_local, monkeypatch):
    on(monkeypatch, Machine(8, 2, 1))
    assert gpus_for(1, 0.0) == 0
    assert gpus_for(1, 0.25) == 0.25
    assert gpu_words(WorkerResources(1, 1), "trial", 0.0) == (
        "no GPU, as asked, of the cluster's 2: trials train on CPUs"
    )
    assert gpu_words(WorkerResources(4, 1, 0.5), "worker", 0.5) == "0.5 x GPU for each worker"


def test_a_gpu_that_torch_cannot_use_is_left(ray_local, monkeypatch):
    on(monkeypatch, Machine(8, 2, 1))
    monkeypatch.setattr("torch.backends.cuda.is_built", lambda: False)
    assert gpus_for(1, None) == 0
    assert "as PyTorch cannot use the cluster's 2" in gpu_words(WorkerResources(1, 1), "trial", None)


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        (["H200"], "NVIDIA H200"),
        (["GeForce-RTX-5090"], "NVIDIA GeForce RTX 5090"),
        (["AMD-Instinct-MI300X-OAM"], "AMD Instinct MI300X OAM"),
        (["A100", "H100"], "NVIDIA A100 or NVIDIA H100"),
        ([], "GPU"),
    ],
)
def test_gpus_are_named_as_ray_names_them(monkeypatch, kinds, words):
    nodes = [{"Alive": True, "Resources": {"GPU": 1.0, f"accelerator_type:{kind}": 1.0}} for kind in kinds]
    nodes.append({"Alive": True, "Resources": {"CPU": 4.0, "accelerator_type:TPU-V4": 1.0}})
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    assert gpu_words(WorkerResources(1, 1, 1.0), "trial", None) == f"1 x {words} for each trial"


FAKE_GPU = """
from pathlib import Path
import ray, torch
torch.cuda.is_available = lambda: True  # in this process, which asks; the trial's has none and trains on its CPU
ray.init(address="local", num_cpus=2, num_gpus=1, resources={"accelerator_type:H200": 1}, include_dashboard=False,
         log_to_driver=False, logging_level="ERROR")
from fracray.errors import run_verb
from fracray import tune
small = ["--set", "data.size=32", "--set", "data.phantom.count=150", "--set", "data.split.block=10"]
small += ["--set", "model.width=8"]
for more in (["--name", "auto"], ["--name", "none", "--gpus-per-trial", "0"]):
    code = run_verb(tune.main, ["--space", "space.yaml", "--trials", "1", "--epochs", "1", *small, *more])
    assert code == 0
assert '"unit": "GPU"' in Path("runs/auto/efficiency.json").read_text()
# A run of an older version, whose config names no GPUs.
config = Path("runs/auto/config.yaml")
assert "gpus_per_trial: null" in config.read_text()
config.write_text(config.read_text().replace("gpus_per_trial: null", "gpus_per_trial: 0.0"))
assert run_verb(tune.main, ["--name", "auto", "--resume", "--trials", "2"]) == 0
"""


def test_a_search_takes_the_gpu_of_its_cluster_without_being_asked(cache, tmp_path):
    """With a GPU that only Ray's books have; the counts in efficiency.json tell what the trials reserved."""
    (tmp_path / "space.yaml").write_text("space:\n  model.dropout: {float: [0, 0.5]}\n")
    done = subprocess.run(
        [sys.executable, "-c", FAKE_GPU], capture_output=True, text=True, check=False, cwd=tmp_path, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "\n1 x NVIDIA H200 for each trial\n" in done.stdout
    assert done.stdout.count("no GPU, as asked, of the cluster's 1: trials train on CPUs\n") == 2
