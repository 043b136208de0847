"""What the tests of `check` share: a valid file for `ray up`, and what `check` reports of a file."""

import re
from pathlib import Path

import ray
import yaml

from fracray.cluster.__main__ import main
from fracray.errors import run_verb

FILES = Path(__file__).parent.parent.parent / "cluster"
MACHINE = {"SecurityGroupIds": ["sg-1"], "IamInstanceProfile": {"Name": "mine"}, "ImageId": "ami-1"}
LAUNCHER = {
    "cluster_name": "here",
    "provider": {"type": "aws", "region": "eu-central-1", "cache_stopped_nodes": False},
    "max_workers": 3,
    "idle_timeout_minutes": 5,
    "metadata": {"storage": "s3://bucket/runs"},
    "auth": {"ssh_user": "ubuntu"},
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 4}, "node_config": {**MACHINE, "InstanceType": "m6i.xlarge"}},
        "gpu": {
            "resources": {"CPU": 8, "GPU": 1},
            "min_workers": 0,
            "max_workers": 3,
            "node_config": {**MACHINE, "InstanceType": "g5.2xlarge"},
        },
    },
    "docker": {"image": f"rayproject/ray:{ray.__version__}-py311", "container_name": "fracray"},
    "setup_commands": ["pip install --require-hashes -r requirements.lock"],
    "head_start_ray_commands": ["RAY_AUTH_MODE=token ray start --head --dashboard-host=127.0.0.1"],
    "worker_start_ray_commands": ["RAY_AUTH_MODE=token ray start --address=$RAY_HEAD_IP:6379"],
}


def change(tree, changes):
    """Make the changes, (path, value) pairs, in a file's tree; None removes the key."""
    for path, value in changes:
        inner = tree
        *keys, last = path.split("/")
        for key in keys:
            inner = inner[int(key) if isinstance(inner, list) else key]
        if value is None:
            del inner[last]
        else:
            inner[last] = value


def check(tmp_path, capsys, changes=(), *options, base=LAUNCHER):
    """The lines of a file with these changes, and its problems."""
    tree = yaml.safe_load(yaml.safe_dump(base))
    change(tree, changes)
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(tree, sort_keys=False, width=1000))
    return checked(file, capsys, *options)


def checked(file, capsys, *options):
    """The lines of a file and the problems that `check` reports."""
    code = run_verb(main, ["check", str(file), *options])
    output = capsys.readouterr()
    lines = [line for line in output.out.splitlines() if re.match(rf"{file}(:\d+)?: (?!warning:)", line)]
    lines = lines[1:]  # the first is the title
    problems = [line for line in lines if "no problems found" not in line]
    assert (code, len(lines)) == ((2, len(problems)) if problems else (0, 1))
    assert output.err == (f"error: {file}: {len(problems)} problem(s), see above\n" if problems else "")
    return file.read_text().splitlines(), problems
