"""Which processes Ray Data starts on the cluster of a command."""

import json
import subprocess
import sys

DRIVER = """
import json
import ray
from fracray.runtime.ray_data import few_processes
from fracray.runtime.ray_session import connect

def work():
    data = ray.data.range(1000, override_num_blocks=20).map_batches(lambda batch: {"id": 2 * batch["id"]})
    return sum(int(batch["id"].sum()) for batch in data.iter_batches())

def actors():
    return sorted(one["name"] for one in ray.util.list_named_actors(all_namespaces=True))

with connect(None):
    with few_processes():
        few = work(), work(), actors()
    print(json.dumps([few, [work(), actors()]]))
"""


def test_only_those_of_its_tasks_in_the_block(tmp_path):
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    done = subprocess.run([sys.executable, str(script)], check=True, capture_output=True, text=True, timeout=300)
    few, (whole, servers) = json.loads(done.stdout)
    assert few == [999_000, 999_000, []]
    assert whole == 999_000
    assert servers == ["AutoscalingCoordinator", "datasets_stats_actor"]
    assert done.stderr == ""
