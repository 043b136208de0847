"""Which processes a training of Ray Train has beside its workers, and which a command's Ray has at all."""

import json
import subprocess
import sys

import psutil
import pytest

DRIVER = """
import json, sys
import ray
from fracray.runtime.ray_session import connect, set_environment
from fracray.runtime.resources import WorkerResources
from fracray.runtime.storage import Folder
from fracray.training.workers import run_workers

def work(settings):
    import psutil, ray.train
    titles = [" ".join(one.cmdline()) for one in psutil.Process().parent().children()]
    with open(f"{settings['folder']}/{ray.train.get_context().get_world_rank()}.json", "w") as file:
        json.dump(titles, file)

folder, cluster, memory = sys.argv[1:]
set_environment()
if cluster == "shared":
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
with connect(None):
    run_workers(Folder(folder), "a", work, {"folder": folder}, WorkerResources(2, 0.5, 0.0), memory == "memory")
    print(json.dumps(sorted(one["name"] for one in ray.util.list_named_actors(all_namespaces=True))))
"""
NEEDED = {"RayTrainWorker", "TrainController", "SynchronizationActor", "RuntimeEnvAgent"}


@pytest.mark.parametrize(
    ("cluster", "images", "more", "named"),
    [
        ("own", "memory", {"idle_agent.py"}, []),
        ("own", "ray", {"idle_agent.py", "_AutoscalingCoordinatorActor"}, ["AutoscalingCoordinator"]),
        (
            "shared",
            "memory",
            {"DashboardAgent", "PlacementGroupCleaner", "_AutoscalingCoordinatorActor"},
            ["AutoscalingCoordinator"],
        ),
    ],
)
def test_no_more_than_it_needs_on_this_cluster(tmp_path, cluster, images, more, named):
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    command = [sys.executable, str(script), str(tmp_path), cluster, images]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == named
    assert (tmp_path / "1.json").exists()
    assert _kinds(json.loads((tmp_path / "0.json").read_text())) - {"IDLE"} == NEEDED | more


def _kinds(titles):
    """DatasetManager of "ray::DatasetManager.execute"; of a program its file."""
    ray = {title.removeprefix("ray::").split()[0].partition(".")[0] for title in titles if title.startswith("ray::")}
    return ray | {word.rpartition("/")[2] for title in titles for word in title.split() if word.endswith("_agent.py")}


def test_what_stands_in_for_the_dashboards_agent_ends_with_its_raylet():
    driver = (
        "import time, psutil\nfrom fracray.runtime.ray_session import connect\nwith connect(None):\n"
        "    print(next(one.pid for one in psutil.Process().children() if one.name() == 'raylet'), flush=True)\n"
        "    time.sleep(60)"
    )
    command = [sys.executable, "-c", driver]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        raylet = psutil.Process(int(process.stdout.readline()))
        (agent,) = (one for one in raylet.children() if any("idle_agent.py" in word for word in one.cmdline()))
        raylet.kill()
        assert agent.wait(timeout=30) is None  # no child of this process
        assert process.wait(timeout=60) == 1
