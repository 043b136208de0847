"""Ray's autoscaler with nodes that are only processes: nodes start on demand, run four trials per GPU, and stop.

The GPUs exist only in Ray's accounts; the trials train on the CPU.
"""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from heads import finished, fracray, space, started_head, wait_for
from machines import free_ports
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

from fracray.cluster.files import read_cluster
from fracray.cluster.submission import job_environment

pytestmark = pytest.mark.cluster

IDLE_MINUTES = 0.1
WATCH = """
import json, sys, time
import ray
ALIVE = [("state", "=", "ALIVE")]
from ray.util.state import list_actors
address, url = sys.argv[1:]
ray.init(address=address, log_to_driver=False, logging_level="ERROR")
while True:
    alive = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    actors = list_actors(address=url, filters=ALIVE)
    trials = [actor.node_id for actor in actors if "Trainable" in actor.class_name]
    free = ray.available_resources().get("GPU", 0.0)
    seen = {
        "time": time.time(),
        "gpu_nodes": sum("GPU" in node for node in alive.values()),
        "cpu_nodes": sum("CPU" in node and "GPU" not in node for node in alive.values()),
        "trials": [sum(at == node for at in trials) for node, has in alive.items() if "GPU" in has],
        "outside": sum("GPU" not in alive.get(at, {}) for at in trials),
        "free": free,
    }
    print(json.dumps(seen), flush=True)
    time.sleep(0.5)
"""


def cluster(storage, port):
    """A cluster file for the autoscaler's fake provider: a head without CPUs, and two types of workers."""
    memory = {"object_store_memory": 200 * 2**20}
    return {
        "cluster_name": "fake",
        "max_workers": 2,
        "idle_timeout_minutes": IDLE_MINUTES,
        "upscaling_speed": 1,
        "metadata": {"storage": str(storage), "shared": [str(storage)]},
        "provider": {
            "type": "external",  # the type fake_multinode needs a file of defaults that Ray's wheel does not have
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": f"127.0.0.1:{port}",
            "head_node_id": FAKE_HEAD_NODE_ID,
            "launch_multiple": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "auth": {},
        "docker": {},
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "gpu": {"resources": {"CPU": 2, "GPU": 1, **memory}, "node_config": {}, "min_workers": 0, "max_workers": 1},
            "cpu": {"resources": {"CPU": 2, **memory}, "node_config": {}, "min_workers": 0, "max_workers": 1},
        },
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }


def test_nodes_start_on_demand_run_four_trials_per_gpu_and_stop(tmp_path):
    ports = free_ports(6, "127.0.0.1")
    tree = cluster(tmp_path / "runs", ports[0])
    (tmp_path / "fake.yaml").write_text(yaml.safe_dump(tree))
    (tmp_path / "fake.json").write_text(json.dumps(tree))
    (tmp_path / "space.yaml").write_text(space(6, 60))
    options = ["--num-cpus=0", "--num-gpus=0", f"--autoscaling-config={tmp_path / 'fake.json'}"]
    # Version 2 of the autoscaler, as in `ray up`.
    pace = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_enable_autoscaler_v2": "1"}
    pace |= {"RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID}

    def looks():
        lines = (tmp_path / "seen").read_text().splitlines()
        return [json.loads(line) for line in lines if re.fullmatch(r"\{.*\}", line)]  # Ray prints lines too

    with open(tmp_path / "seen", "w") as seen, started_head(tmp_path, *options, ports=ports, **pace) as head:
        watcher = subprocess.Popen(
            [sys.executable, "-c", WATCH, head.address, head.url], env=head.environment, stdout=seen
        )
        # With the environment of `submit`, but not as a job: these nodes share a disk, and a new node would unpack the
        # job's files again, into the folder in which the job runs.
        words = ["--space", "space.yaml", "--storage", tmp_path / "runs", "--name", "packed", "--address", head.address]
        words += ["--gpus-per-trial", 0.25, "--cpus-per-trial", 0.5]
        head.environment.update(job_environment(read_cluster(tmp_path / "fake.yaml")))
        try:
            output = finished(fracray(head, "tune", *words, cwd=tmp_path), 300)
            ended = time.time()
            wait_for(lambda: not looks()[-1]["gpu_nodes"] + looks()[-1]["cpu_nodes"], watcher, 60)
        finally:
            watcher.kill()
    print(output)
    seen = looks()
    assert "6 of 6 trials to run, 4 at a time" in output
    trials = pd.read_parquet(tmp_path / "runs/packed/trials.parquet")
    assert trials.groupby("trial")["epoch"].max().tolist() == [60] * 6
    assert seen[0]["gpu_nodes"] == seen[0]["cpu_nodes"] == 0
    assert max(look["gpu_nodes"] for look in seen) == 1
    full = [look for look in seen if look["trials"] == [4]]
    assert full
    assert min(look["free"] for look in full) == 0
    assert max(sum(look["trials"]) for look in seen) == 4
    assert not any(look["outside"] for look in seen)
    assert seen[-1]["gpu_nodes"] == seen[-1]["cpu_nodes"] == 0
    print(f"the last node stopped {seen[-1]['time'] - ended:.0f} s after the search")
    assert Path(tmp_path, "runs/packed/best/model.safetensors").exists()
