"""`python -m fracray.cluster check`: problems of cluster files with their lines."""

import re
from pathlib import Path

import pytest
import ray
import yaml
from checking import FILES, LAUNCHER, check, checked

from fracray.cluster.__main__ import main
from fracray.cluster.checks import warnings
from fracray.cluster.files import read_cluster
from fracray.errors import InputError, run_verb


@pytest.mark.parametrize("module", ["fracray.spot.SpotFirst", "fracray.cluster.aws_spot.SpotFrist", ""])
def test_a_provider_of_fracray_that_does_not_exist_is_named(tmp_path, capsys, module):
    """An older copy of gpu.yaml names the provider's old place; `ray up` would end in an import error."""
    file = tmp_path / "gpu.yaml"
    text = (FILES / "gpu.yaml").read_text()
    file.write_text(text.replace("fracray.cluster.aws_spot.SpotFirst", module))
    _, problems = checked(file, capsys)
    line = next(at for at, line in enumerate(text.splitlines(), start=1) if "module:" in line)
    assert [problem for problem in problems if "is not a node provider" in problem] == [
        f"{file}:{line}: '{module}' is not a node provider; write module: fracray.cluster.aws_spot.SpotFirst"
    ]


def test_a_valid_file_has_no_problem(tmp_path, capsys):
    assert check(tmp_path, capsys)[1] == []
    assert check(tmp_path, capsys, (), "--gpus-per-trial", "0.25")[1] == []
    assert check(tmp_path, capsys, (), "--workers-per-trial", "3", "--gpus-per-trial", "1")[1] == []


def test_a_trial_needs_a_gpu_where_the_nodes_have_one(tmp_path, capsys):
    check(tmp_path, capsys)
    for options, needed in (((), "1 CPU(s) and 1 GPU(s)"), (("--gpus-per-trial", "0"), "1 CPU(s)")):
        run_verb(main, ["check", str(tmp_path / "cluster.yaml"), *options])
        title = " ".join(capsys.readouterr().out.split())
        assert f"a trial needs 1 worker(s) of {needed} nodes at least" in title


GROUP = "available_node_types/gpu/node_config"


@pytest.mark.parametrize(
    ("changes", "options", "line", "words"),
    [
        ([("cluster_nam", "x")], (), "cluster_nam:", "did you mean 'cluster_name'"),
        ([("available_node_types/gpu/max_worker", 2)], (), "max_worker:", "did you mean 'max_workers'"),
        ([("available_node_types/gpu/min_workers", "two")], (), "min_workers", "is not of type 'integer'"),
        ([("head_node_type", "haed")], (), "head_node_type", "'haed' is not a node type (did you mean 'head'?)"),
        ([("metadata/storage", "s3://YOUR-BUCKET/runs")], (), "storage", "fill in your own"),
        ([("metadata/storage", None)], (), "metadata", "the place for runs is not given"),
        ([("metadata/storage", "/home/ubuntu/runs")], (), "storage", "no shared disk"),
        ([("metadata/data", "FracAtlas")], (), "data:", "absolute path as the head sees it"),
        (
            [("available_node_types/gpu", None)],
            ("--gpus-per-trial", "1"),
            "available_node_types",
            "no node type has a GPU",
        ),
        ([], ("--workers-per-trial", "4", "--gpus-per-trial", "1"), "gpu:", "can hold 3:"),
        ([], ("--cpus-per-trial", "16"), "gpu:", "can hold 0:"),
        ([("docker/image", "rayproject/ray:2.9.0-py311")], (), "image", "has Ray 2.9.0"),
        ([("docker/image", f"rayproject/ray:{ray.__version__}-py39")], (), "image", "has Python 3.9"),
        ([("docker/image", "rayproject/ray:latest")], (), "image", "has no version"),
        ([("setup_commands", ["pip install 'ray[default]==2.1.0'"])], (), "- pip", "installs Ray 2.1.0"),
        (
            [("setup_commands", ["curl -L https://x.org/y.sh | sudo bash"])],
            (),
            "- curl",
            "executes a download without a check",
        ),
        (
            [("setup_commands", ["export AWS_SECRET_ACCESS_KEY=abcdefgh1"])],
            (),
            "- export",
            "the secret AWS_SECRET_ACCESS_KEY is written in the file",
        ),
        (
            [("setup_commands", ["echo 'AWS_SECRET_ACCESS_KEY: abcdefgh1' > keys"])],
            (),
            "echo",
            "the secret AWS_SECRET_ACCESS_KEY is written in the file",
        ),
        ([(f"{GROUP}/SecurityGroupIds", None)], (), "node_config", "gpu has no SecurityGroupIds"),
        ([(f"{GROUP}/IamInstanceProfile", None)], (), "node_config", "gpu has no IamInstanceProfile"),
        ([(f"{GROUP}/ImageId", None)], (), "node_config", "gpu has no ImageId"),
        (
            [("provider/security_group", {"IpPermissions": [{"IpRanges": [{"CidrIp": "0.0.0.0/0"}]}]})],
            (),
            "CidrIp",
            "opens a port to the world",
        ),
        (
            [("head_start_ray_commands", ["ray start --head"])],
            (),
            "head_start",
            "does not turn on Ray's authentication",
        ),
        (
            [("head_start_ray_commands", ["RAY_AUTH_MODE=token ray start --head --dashboard-host=0.0.0.0"])],
            (),
            "- RAY_AUTH",
            "listens on every network",
        ),
        (
            [("head_start_ray_commands", ["export RAY_AUTH_MODE=token", "ray start --head"])],
            (),
            "head_start",
            "every command has its own shell",
        ),
        (
            [("provider/type", "external"), ("provider/module", "mine.Provider")],
            (),
            None,
            "head_setup_commands is missing",
        ),
        ([("auth/ssh_private_key", "/nowhere/key")], (), "ssh_private_key", "does not exist here"),
        ([("file_mounts", {"/k": "~/.ssh/id_ed25519"})], (), "/k", "looks like a secret"),
        ([("file_mounts", {"/k": "~/.ray"})], (), "/k", "looks like a secret"),
        ([("file_mounts", {"/k": "/nowhere/fracray-0.1.0-py3-none-any.whl"})], (), "/k", "make it with"),
        ([("idle_timeout_minutes", None)], (), None, "idle_timeout_minutes is missing"),
        ([("max_workers", None)], (), None, "max_workers is missing"),
    ],
)
def test_a_problem_is_reported_with_its_line(changes, options, line, words, tmp_path, capsys):
    lines, (problem,) = check(tmp_path, capsys, changes, *options)
    assert words in problem
    if line is not None:
        number = int(re.match(r"\S+\.yaml:(\d+): ", problem)[1])
        assert line in lines[number - 1]


def test_a_large_file_mount_is_reported(tmp_path, capsys):
    large = tmp_path / "images"
    large.mkdir()
    with open(large / "all.bin", "wb") as file:
        file.truncate(200 * 2**20)
    assert "200 MiB" in check(tmp_path, capsys, [("file_mounts", {"/data": str(large)})])[1][0]


def test_a_private_file_in_a_mounted_folder_is_reported(tmp_path, capsys):
    (tmp_path / "home/.kube").mkdir(parents=True)
    (tmp_path / "home/.kube/config").touch()
    (problem,) = check(tmp_path, capsys, [("file_mounts", {"/home": str(tmp_path / "home")})])[1]
    assert f"{tmp_path}/home/.kube looks like a secret" in problem


def test_the_token_mode_of_the_container_covers_the_start_commands(tmp_path, capsys):
    changes = [("docker/run_options", ["-e RAY_AUTH_MODE=token"]), ("head_start_ray_commands", ["ray start --head"])]
    assert check(tmp_path, capsys, changes)[1] == []


def test_nodes_that_never_stop_are_a_warning(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(LAUNCHER).replace("min_workers: 0", "min_workers: 2"))
    main(["check", str(tmp_path / "c.yaml")])
    assert re.search(r"c\.yaml:\d+: warning: 2 of gpu cost money until", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("provider", "warned"),
    [
        ({"type": "aws"}, True),
        ({"type": "aws", "cache_stopped_nodes": False}, False),
        ({"type": "azure"}, True),
        ({"type": "external", "module": "fracray.cluster.aws_spot.SpotFirst"}, True),
        ({"type": "gcp"}, False),
        ({"type": "gcp", "cache_stopped_nodes": True}, True),
        ({"type": "local", "cache_stopped_nodes": True}, False),
    ],
)
def test_machines_whose_disks_stay_are_a_warning(provider, warned, tmp_path):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**LAUNCHER, "provider": provider}))
    found = warnings(read_cluster(tmp_path / "c.yaml"))
    assert any("only stops the machines" in line for line in found) == warned


OWN = {
    "cluster_name": "own",
    "metadata": {"storage": "s3://b/r"},
    "provider": {"type": "local", "head_ip": "a", "worker_ips": ["b", "c"]},
    **{key: LAUNCHER[key] for key in ("head_start_ray_commands", "worker_start_ray_commands")},
}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ([("max_workers", 1)], "max_workers is 1, but worker_ips lists 2"),
        ([("provider/head_ip", None)], "supply a `head_ip`"),
    ],
)
def test_what_ray_refuses_of_own_machines_is_reported(changes, words, tmp_path, capsys):
    assert check(tmp_path, capsys, base=OWN)[1] == []
    (problem,) = check(tmp_path, capsys, changes, base=OWN)[1]
    assert words in problem


@pytest.mark.parametrize(
    ("option", "words"),
    [(("--cpus-per-trial", "-1"), "--cpus-per-trial"), (("--workers-per-trial", "0"), "--workers-per-trial")],
)
def test_impossible_resources_of_a_trial_are_refused(option, words, tmp_path):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(LAUNCHER))
    with pytest.raises(InputError, match=words):
        main(["check", str(tmp_path / "c.yaml"), *option])


def test_a_storage_on_a_shared_mount_is_valid(tmp_path, capsys):
    shared = {"storage": "/mnt/all/runs", "shared": ["/mnt/all"]}
    assert check(tmp_path, capsys, [("metadata", shared)])[1] == []


# ---- Slurm


@pytest.mark.parametrize(
    ("old", "new", "options", "line", "words"),
    [
        ("", "", (), None, None),
        ("", "", ("--gpus-per-trial", "0.5", "--workers-per-trial", "4"), None, None),
        ("", "", ("--storage", "/all/runs"), None, None),
        ("", "", ("--storage", "/home/me/runs"), None, "no shared disk"),
        ("", "", ("--gpus-per-trial", "1", "--workers-per-trial", "3"), "--nodes", "can hold 2:"),
        ("--nodes=2", "--nodes=1-3", ("--cpus-per-trial", "16", "--workers-per-trial", "3"), None, None),
        ("--nodes=2", "--nodes=two", (), None, "expected a number of nodes"),
        ("--cpus-per-task=16", "-c 8", ("--cpus-per-trial", "9"), "--nodes", "can hold 0:"),
        ("#SBATCH --cpus-per-task=16\n", "", (), "#SBATCH", "--cpus-per-task is missing"),
        ("--cpus-per-task=16", "--cpus-per-task=all", (), None, "expected a number"),
        ("--gpus-per-node=1", "--gres=gpu:a100:2,lscratch:9", ("--gpus-per-trial", "2"), None, None),
        ("--gpus-per-node=1", "--gpus=2", ("--gpus-per-trial", "2"), "--nodes", "can hold 0:"),
        ("#SBATCH --gpus-per-node=1\n", "", ("--gpus-per-trial", "1"), "--nodes", "no node type has a GPU"),
        ("#SBATCH --time=08:00:00\n", "", (), "#SBATCH", "--time is missing"),
        ("--time=08:00:00", "-t 8:00:00", (), None, None),
        ("--time=08:00:00", "--time=UNLIMITED", (), "--time", "no limit of what the job can cost"),
        ("--time=08:00:00", "-t 0-00:00", (), "-t 0", "no limit of what the job can cost"),
        ("--ntasks-per-node=1", "--ntasks-per-node=4", (), "--ntasks-per-node", "once on each node"),
        ("--ntasks-per-node=1", "--ntask-per-node=1", (), "#SBATCH", "once on each node"),
        ("ray symmetric-run", "ray symetric-run", (), None, "starts no Ray"),
        ("set -euo pipefail\n", "set -euo pipefail\nif true; then\n", (), None, "bash cannot parse it"),
        ("set -euo pipefail\n", "set -euo pipefail\n#SBATCH --mem=9G\n", (), "--mem=9G", "below the first command"),
        ("shared=/all", "shared=YOUR-SHARED", (), "shared=", "fill in your own"),
        ("export RAY_AUTH_MODE=token\n", "", (), None, "does not turn on Ray's authentication"),
        ("dashboard-host=127.0.0.1", "dashboard-host=0.0.0.0", (), "srun --kill", "listens on every network"),
        ("set -euo pipefail\n", "set -eu\npip install ray==2.9.0\n", (), "pip install", "installs Ray 2.9.0"),
        ("--job-name=fracray", "--job-name=fracray extra", (), None, "belongs to no option"),
        ("--job-name=fracray", "--job-name='fracray", (), None, "cannot be read"),
    ],
)
def test_a_problem_of_a_slurm_script_is_reported_with_its_line(old, new, options, line, words, tmp_path, capsys):
    text = (FILES / "slurm.sh").read_text().replace("YOUR-SHARED", "/all")
    assert old in text
    file = tmp_path / "slurm.sh"
    file.write_text(text.replace(old, new, 1) if old else text)
    if words in ("expected a number of nodes", "expected a number", "belongs to no option", "cannot be read"):
        with pytest.raises(InputError, match=rf"slurm\.sh:\d+: .*{words}"):
            main(["check", str(file), *options])
        return
    lines, problems = checked(file, capsys, *options)
    assert len(problems) == (words is not None), problems
    if problems:
        assert words in problems[0]
        assert line is None or line in lines[int(re.match(r"\S+\.sh:(\d+): ", problems[0])[1]) - 1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("provider: {", "not valid YAML"),
        ("provider:\n\ttype: aws", "indent with spaces"),
        ("provider:\n    type: aws\n  region: x", "look at the indentation"),
        ("", "the file is empty"),
        ("a: 1", "not a cluster file"),
        ("[1]", "expected a mapping"),
        ("provider: {type: aws}\navailable_node_types: 3", ":2: available_node_types = 3: expected a mapping"),
        ("provider: {}\nprovider: {}", "is given twice"),
    ],
)
def test_a_file_that_is_not_a_cluster_file_is_refused(text, words, tmp_path):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(InputError, match=words):
        main(["check", str(tmp_path / "c.yaml")])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="no such cluster file"):
        main(["check", str(tmp_path / "none.yaml")])


# ---------------------------------------------------------------- fracray's own cluster files


@pytest.mark.parametrize("name", ["local", "gpu", "gcp", "azure", "raycluster", "rayjob"])
def test_fracrays_own_files_are_valid_once_filled_in(name, filled, capsys):
    main(["check", str(filled / f"{name}.yaml"), "--gpus-per-trial", "0.25"])
    assert "no problems found" in capsys.readouterr().out


def test_the_checks_for_aws_apply_to_fracrays_provider_too(filled, capsys):
    text = (filled / "gpu.yaml").read_text()
    (filled / "gpu.yaml").write_text(text.replace("      SecurityGroupIds: [sg-my-GROUP]\n", "", 1))
    assert run_verb(main, ["check", str(filled / "gpu.yaml")]) == 2
    assert "head has no SecurityGroupIds; Ray would create a group" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["local", "gpu", "gcp", "azure", "raycluster", "rayjob", "serve", "rayservice"])
def test_every_placeholder_is_reported(name, capsys, monkeypatch):
    monkeypatch.chdir(FILES.parent)
    assert run_verb(main, ["check", f"cluster/{name}.yaml"]) == 2
    output = "\n".join(line for line in capsys.readouterr().out.splitlines() if "fill in your own" in line)
    values = "\n".join(line.split(" #")[0] for line in Path(f"cluster/{name}.yaml").read_text().splitlines())
    values = re.sub(r"^#.*", "", values, flags=re.M)
    assert set(re.findall(r"YOUR-[A-Z0-9-]+", output)) == set(re.findall(r"YOUR-[A-Z0-9-]+", values)) != set()


def test_the_locks_of_the_cluster_are_those_of_the_project():
    """The nodes install the versions with which the tests run."""
    pins = {path.stem: set(re.findall(r"^([\w.-]+==[^ ;]+)", path.read_text(), re.M)) for path in FILES.glob("*.lock")}
    project = set(re.findall(r"^([\w.-]+==[^ ;]+)", (FILES.parent / "requirements.lock").read_text(), re.M))
    assert pins["requirements"] < project
    known = {pin.partition("==")[0]: pin for pin in project}
    for cloud in ("aws", "gcp", "azure"):
        assert pins[cloud]
        assert all(pin == known.get(pin.partition("==")[0], pin) for pin in pins[cloud])
