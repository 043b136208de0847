"""`python -m fracray.cluster check`: every fault of a cluster file is told with its line and its remedy."""

import re
from pathlib import Path

import pytest
import ray
import yaml

from fracray.cluster import main
from fracray.errors import InputError

FILES = Path(__file__).parent.parent / "cluster"
LAUNCHER = {
    "cluster_name": "here",
    "provider": {"type": "aws", "region": "eu-central-1", "cache_stopped_nodes": False},
    "max_workers": 4,
    "idle_timeout_minutes": 5,
    "metadata": {"storage": "s3://bucket/runs"},
    "auth": {"ssh_user": "ubuntu"},
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 4}, "node_config": {"SecurityGroupIds": ["sg-1"], "InstanceType": "m6i.xlarge"}},
        "gpu": {
            "resources": {"CPU": 8, "GPU": 1},
            "min_workers": 0,
            "max_workers": 3,
            "node_config": {"SecurityGroupIds": ["sg-1"], "InstanceType": "g5.2xlarge"},
        },
    },
    "docker": {"image": f"rayproject/ray:{ray.__version__}-py311", "container_name": "fracray"},
    "setup_commands": ["pip install --require-hashes -r requirements.lock"],
    "head_start_ray_commands": ["RAY_AUTH_MODE=token ray start --head --dashboard-host=127.0.0.1"],
    "worker_start_ray_commands": ["RAY_AUTH_MODE=token ray start --address=$RAY_HEAD_IP:6379"],
}


def check(tmp_path, capsys, changes=(), *options, base=LAUNCHER):
    """The faults that `check` tells of a file with these changes ((path, value) pairs; None takes the key away)."""
    tree = yaml.safe_load(yaml.safe_dump(base))
    for path, value in changes:
        inner = tree
        *keys, last = path.split("/")
        for key in keys:
            inner = inner[int(key) if isinstance(inner, list) else key]
        if value is None:
            del inner[last]
        else:
            inner[last] = value
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(tree, sort_keys=False, width=1000))
    try:
        main(["check", str(file), *options])
    except InputError as error:
        assert "fault(s), see above" in str(error)
        said = capsys.readouterr().out
        return file.read_text().splitlines(), [line for line in said.splitlines() if line.startswith(f"{file}:")][1:]
    assert "nothing wrong was found" in capsys.readouterr().out
    return file.read_text().splitlines(), []


def test_a_sound_file_has_no_fault(tmp_path, capsys):
    assert check(tmp_path, capsys)[1] == []
    assert check(tmp_path, capsys, (), "--gpus-per-trial", "0.25")[1] == []
    assert check(tmp_path, capsys, (), "--workers-per-trial", "3", "--gpus-per-trial", "1")[1] == []


GROUP = "available_node_types/gpu/node_config"


@pytest.mark.parametrize(
    ("changes", "options", "line", "words"),
    [
        ([("cluster_nam", "x")], (), None, "'cluster_nam' was unexpected"),
        ([("available_node_types/gpu/min_workers", "two")], (), "min_workers", "not of type 'integer'"),
        ([("head_node_type", "haed")], (), None, "must be one of"),
        ([("metadata/storage", "s3://YOUR-BUCKET/runs")], (), "storage", "put your own"),
        ([("metadata/storage", None)], (), "metadata", "nothing says where runs are kept"),
        ([("metadata/storage", "/home/ubuntu/runs")], (), "storage", "share no disk"),
        ([("metadata/data", "FracAtlas")], (), "data:", "share no disk"),
        ([("available_node_types/gpu", None)], ("--gpus-per-trial", "1"), "available_node_types", "no node type has a GPU"),
        ([], ("--workers-per-trial", "4", "--gpus-per-trial", "1"), "gpu:", "hold 3 such"),
        ([], ("--cpus-per-trial", "16"), "gpu:", "hold 0 such"),
        ([("docker/image", "rayproject/ray:2.9.0-py311")], (), "image", "has Ray 2.9.0"),
        ([("docker/image", f"rayproject/ray:{ray.__version__}-py39")], (), "image", "has Python 3.9"),
        ([("docker/image", "rayproject/ray:latest")], (), "image", "names no version"),
        ([("setup_commands", ["pip install 'ray[default]==2.1.0'"])], (), "- pip", "installs Ray 2.1.0"),
        ([("setup_commands", ["true", "pip install -U fracray"])], (), "- pip", "not pinned"),
        ([("setup_commands", ["pip install https://x.org/ray-nightly.whl"])], (), "- pip", "pin it"),
        ([(f"{GROUP}/SecurityGroupIds", None)], (), "node_config", "names no SecurityGroupIds"),
        (
            [("provider/security_group", {"IpPermissions": [{"IpRanges": [{"CidrIp": "0.0.0.0/0"}]}]})],
            (),
            "CidrIp",
            "opens a port to the world",
        ),
        ([("head_start_ray_commands", ["ray start --head"])], (), "head_start", "does not turn Ray's authentication on"),
        (
            [("head_start_ray_commands", ["RAY_AUTH_MODE=token ray start --head --dashboard-host=0.0.0.0"])],
            (),
            "- RAY_AUTH",
            "listens to every network",
        ),
        ([("file_mounts", {"/k": "~/.ssh/id_ed25519"})], (), "/k", "looks like a secret"),
        ([("file_mounts", {"/k": "/nowhere/fracray-0.1.0-py3-none-any.whl"})], (), "/k", "make it with"),
        ([("idle_timeout_minutes", None)], (), None, "idle_timeout_minutes is missing"),
        ([("max_workers", None)], (), None, "max_workers is missing"),
    ],
)
def test_a_fault_is_told_with_its_line(changes, options, line, words, tmp_path, capsys):
    lines, faults = check(tmp_path, capsys, changes, *options)
    (fault,) = faults
    assert words in fault
    if line is not None:
        number = int(re.match(r"\S+\.yaml:(\d+): ", fault)[1])
        assert line in lines[number - 1]


def test_a_large_file_mount_is_told(tmp_path, capsys):
    large = tmp_path / "images"
    large.mkdir()
    with open(large / "all.bin", "wb") as file:
        file.truncate(200 * 2**20)
    assert "200 MiB" in check(tmp_path, capsys, [("file_mounts", {"/data": str(large)})])[1][0]


def test_a_path_below_a_shared_mount_is_seen_by_all(tmp_path, capsys):
    shared = {"storage": "/mnt/all/runs", "shared": ["/mnt/all"]}
    assert check(tmp_path, capsys, [("metadata", shared)])[1] == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("provider: {", "not valid YAML"),
        ("a: 1", "neither a cluster file"),
        ("[1]", "expected a mapping"),
        ("provider: {type: aws}\navailable_node_types: 3", "must be a mapping"),
        ("provider: {}\nprovider: {}", "stands twice"),
    ],
)
def test_what_is_no_cluster_file_is_refused(text, words, tmp_path):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(InputError, match=words):
        main(["check", str(tmp_path / "c.yaml")])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="no such cluster file"):
        main(["check", str(tmp_path / "none.yaml")])
