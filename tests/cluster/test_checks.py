"""`python -m fracray.cluster`: the faults of cluster files with their lines, and jobs until a head is asked."""

import io
import json
import re
import shutil
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
import yaml

from fracray.cluster.__main__ import _prepared, main, told
from fracray.cluster.files import read_cluster
from fracray.cluster.jobs import Follower
from fracray.config import Config, parse_config
from fracray.errors import InputError, RunError, run_verb
from fracray.runtime.resources import EXPECTED, PROMISED
from fracray.runtime.run_folder import CLUSTER_FILE

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


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    """The cluster of other tests, which knows no token, is not to be asked for one."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")


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
    return checked(file, capsys, *options)


def checked(file, capsys, *options):
    """The lines of a file and the faults that `check` tells of it."""
    code = run_verb(main, ["check", str(file), *options])
    said = capsys.readouterr()
    told = [line for line in said.out.splitlines() if re.match(rf"{file}(:\d+)?: (?!note:)", line)]
    told = told[1:]  # the first is the title
    faults = [line for line in told if "nothing wrong was found" not in line]
    assert (code, len(told)) == ((2, len(faults)) if faults else (0, 1))
    assert said.err == (f"error: {file}: {len(faults)} fault(s), see above\n" if faults else "")
    return file.read_text().splitlines(), faults


def test_a_sound_file_has_no_fault(tmp_path, capsys):
    assert check(tmp_path, capsys)[1] == []
    assert check(tmp_path, capsys, (), "--gpus-per-trial", "0.25")[1] == []
    assert check(tmp_path, capsys, (), "--workers-per-trial", "3", "--gpus-per-trial", "1")[1] == []


KEYS = ("head_setup_commands", "worker_setup_commands", "cluster_synced_files", "rsync_exclude", "rsync_filter")
EXTERNAL = [("provider/type", "external"), *((key, []) for key in KEYS)]
GROUP = "available_node_types/gpu/node_config"


@pytest.mark.parametrize(
    ("changes", "options", "line", "words"),
    [
        ([("cluster_nam", "x")], (), "cluster_nam:", "did you mean 'cluster_name'"),
        ([("available_node_types/gpu/max_worker", 2)], (), "max_worker:", "did you mean 'max_workers'"),
        ([("available_node_types/gpu/min_workers", "two")], (), "min_workers", "not of type 'integer'"),
        ([("head_node_type", "haed")], (), "haed", "did you mean 'head'"),
        ([("metadata/storage", "s3://YOUR-BUCKET/runs")], (), "storage", "put your own"),
        ([("metadata/storage", None)], (), "metadata", "nothing says where runs are kept"),
        ([("metadata/storage", "/home/ubuntu/runs")], (), "storage", "share no disk"),
        ([("metadata/data", "FracAtlas")], (), "data:", "whole path as the head sees it"),
        (
            [("available_node_types/gpu", None)],
            ("--gpus-per-trial", "1"),
            "available_node_types",
            "no node type has a GPU",
        ),
        ([], ("--workers-per-trial", "4", "--gpus-per-trial", "1"), "gpu:", "hold 3 such"),
        ([], ("--cpus-per-trial", "16"), "gpu:", "hold 0 such"),
        ([("docker/image", "rayproject/ray:2.9.0-py311")], (), "image", "has Ray 2.9.0"),
        ([("docker/image", f"rayproject/ray:{ray.__version__}-py39")], (), "image", "has Python 3.9"),
        ([("docker/image", "rayproject/ray:latest")], (), "image", "names no version"),
        ([("setup_commands", ["pip install 'ray[default]==2.1.0'"])], (), "- pip", "installs Ray 2.1.0"),
        ([("setup_commands", ["true", "pip install -U fracray"])], (), "- pip", "not pinned"),
        ([("setup_commands", ["pip install boto3==1.40.0 numpy"])], (), "- pip", "not pinned"),
        ([("setup_commands", ["pip install -r some.txt"])], (), "- pip", "not pinned"),
        ([("setup_commands", ["curl -L https://x.org/y.sh | sudo bash"])], (), "- curl", "runs whatever is there"),
        (
            [("setup_commands", ["export RAY_AUTH_TOKEN_PATH=/home/x/auth", "pip install -U x"])],
            (),
            "- pip",
            "not pinned",
        ),
        ([("setup_commands", ["export AWS_SECRET_ACCESS_KEY=abcdefgh1"])], (), "- export", "for all to read"),
        ([("setup_commands", ["pip install https://x.org/ray-nightly.whl"])], (), "- pip", "pin it"),
        ([(f"{GROUP}/SecurityGroupIds", None)], (), "node_config", "gpu names no SecurityGroupIds"),
        ([(f"{GROUP}/IamInstanceProfile", None)], (), "node_config", "gpu names no IamInstanceProfile"),
        ([(f"{GROUP}/ImageId", None)], (), "node_config", "gpu names no ImageId"),
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
            "does not turn Ray's authentication on",
        ),
        (
            [("head_start_ray_commands", ["RAY_AUTH_MODE=token ray start --head --dashboard-host=0.0.0.0"])],
            (),
            "- RAY_AUTH",
            "listens to every network",
        ),
        (
            [("head_start_ray_commands", ["export RAY_AUTH_MODE=token", "ray start --head"])],
            (),
            "head_start",
            "each command has a shell of its own",
        ),
        (
            [("provider/type", "external"), ("provider/module", "mine.Provider")],
            (),
            None,
            "head_setup_commands is missing",
        ),
        ([*EXTERNAL], (), "provider", "'' is none"),
        (
            [*EXTERNAL, ("provider/module", "fracray.cluster.aws_spot.SpotFrist")],
            (),
            "module",
            "'fracray.cluster.aws_spot.SpotFrist' is none",
        ),
        ([("auth/ssh_private_key", "/nowhere/key")], (), "ssh_private_key", "does not exist here"),
        ([("file_mounts", {"/k": "~/.ssh/id_ed25519"})], (), "/k", "looks like a secret"),
        ([("file_mounts", {"/k": "~/.ray"})], (), "/k", "looks like a secret"),
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


def test_a_mounted_folder_that_holds_what_is_private_is_told(tmp_path, capsys):
    (tmp_path / "home/.kube").mkdir(parents=True)
    (tmp_path / "home/.kube/config").touch()
    (fault,) = check(tmp_path, capsys, [("file_mounts", {"/home": str(tmp_path / "home")})])[1]
    assert f"{tmp_path}/home/.kube looks like a secret" in fault


def test_the_token_mode_of_the_container_holds_for_all_that_is_started_in_it(tmp_path, capsys):
    changes = [("docker/run_options", ["-e RAY_AUTH_MODE=token"]), ("head_start_ray_commands", ["ray start --head"])]
    assert check(tmp_path, capsys, changes)[1] == []


def test_a_machine_that_stays_is_said_and_is_no_fault(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(LAUNCHER).replace("min_workers: 0", "min_workers: 2"))
    main(["check", str(tmp_path / "c.yaml")])
    assert re.search(r"c\.yaml:\d+: note: 2 of gpu stay, and cost", capsys.readouterr().out)


def test_fewer_machines_than_are_listed_are_told_with_their_line(tmp_path, capsys):
    file = tmp_path / "own.yaml"
    own = {"type": "local", "head_ip": "a", "worker_ips": ["b", "c"]}
    starts = {at: LAUNCHER[at] for at in ("head_start_ray_commands", "worker_start_ray_commands")}
    tree = {"cluster_name": "own", "provider": own, "max_workers": 1, "metadata": {"storage": "s3://b/r"}, **starts}
    file.write_text(yaml.safe_dump(tree))
    lines, (fault,) = checked(file, capsys)
    assert "max_workers is 1, and worker_ips lists 2" in fault
    assert "max_workers" in lines[int(fault.split(":")[1]) - 1]


@pytest.mark.parametrize(
    ("option", "words"),
    [(("--cpus-per-trial", "-1"), "--cpus-per-trial"), (("--workers-per-trial", "0"), "--workers-per-trial")],
)
def test_a_trial_that_asks_for_nonsense_is_refused(option, words, tmp_path):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(LAUNCHER))
    with pytest.raises(InputError, match=words):
        main(["check", str(tmp_path / "c.yaml"), *option])


def test_a_path_below_a_shared_mount_is_seen_by_all(tmp_path, capsys):
    shared = {"storage": "/mnt/all/runs", "shared": ["/mnt/all"]}
    assert check(tmp_path, capsys, [("metadata", shared)])[1] == []


@pytest.mark.parametrize(
    ("most", "words"),
    [(2, "is 2, and those of the node types add up to 3: not all"), (4, "is 4, .* add up to 3: no more"), (3, None)],
)
def test_a_cap_that_is_not_the_sum_of_the_types_caps_is_said_and_is_no_fault(most, words, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**LAUNCHER, "max_workers": most}))
    assert run_verb(main, ["check", str(tmp_path / "c.yaml")]) == 0
    said = capsys.readouterr().out
    assert ("note:" in said) == (words is not None)
    assert words is None or re.search(rf"c\.yaml:\d+: note: max_workers {words}", said)


# ---- KubeRay

KEPT = {"fracray/storage": "s3://bucket/runs"}


@pytest.fixture
def kuberay(filled):
    return {name: yaml.safe_load((filled / f"{name}.yaml").read_text()) for name in ("raycluster", "rayjob")}


@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
@pytest.mark.parametrize(
    ("changes", "line", "words"),
    [
        ([("headGroupSpec/serviceType", "LoadBalancer")], "serviceType", "reached from outside"),
        ([("headGroupSpec/serviceType", "NodePort")], "serviceType", "reached from outside"),
        ([("headGroupSpec/enableIngress", True)], "enableIngress", "lets others than Ray's pods"),
        ([("headGroupSpec/template/spec/hostNetwork", True)], "hostNetwork", "lets others than Ray's pods"),
        ([("headGroupSpec/template/spec/containers/0/ports/1/hostPort", 80)], "hostPort", "lets others than Ray's"),
        (
            [("headGroupSpec/template/spec/containers/0/env", [{"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}])],
            "value",
            "take it from a secret",
        ),
        ([("authOptions", None)], "pec:", "authentication is off"),
        ([("authOptions/mode", "disabled")], "authOptions", "authentication is off"),
        ([("rayVersion", "2.9.0")], "rayVersion", "Ray 2.9.0"),
        ([("/metadata/annotations", {"fracray/storage": "/mnt/all/runs"})], "fracray/storage", "share no disk"),
        ([("/metadata/annotations", {"x": "y"})], "annotations:", "give annotations.fracray/storage"),
        ([("/metadata/annotations", {**KEPT, "fracray/data": "atlas"})], "fracray/data", "whole path as the head"),
    ],
)
def test_a_fault_for_kuberay_is_told_with_its_line(changes, line, words, name, kuberay, tmp_path, capsys):
    root = "spec" if name == "raycluster" else "spec/rayClusterSpec"
    changes = [(path[1:] if path[0] == "/" else f"{root}/{path}", value) for path, value in changes]
    lines, faults = check(tmp_path, capsys, changes, base=kuberay[name])
    (fault,) = faults
    assert words in fault
    assert line in lines[int(re.match(r"\S+\.yaml:(\d+): ", fault)[1]) - 1]


def test_a_path_that_all_pods_see_is_no_fault(kuberay, tmp_path, capsys):
    notes = {"fracray/storage": "/mnt/all/runs", "fracray/data": "/data/x", "fracray/shared": "/mnt/all, /data"}
    assert check(tmp_path, capsys, [("metadata/annotations", notes)], base=kuberay["raycluster"])[1] == []


# ---- Slurm


@pytest.mark.parametrize(
    ("old", "new", "options", "line", "words"),
    [
        ("", "", (), None, None),
        ("", "", ("--gpus-per-trial", "0.5", "--workers-per-trial", "4"), None, None),
        ("", "", ("--storage", "/all/runs"), None, None),
        ("", "", ("--storage", "/home/me/runs"), None, "share no disk"),
        ("", "", ("--gpus-per-trial", "1", "--workers-per-trial", "3"), "--nodes", "hold 2 such"),
        ("--nodes=2", "--nodes=1-3", ("--cpus-per-trial", "16", "--workers-per-trial", "3"), None, None),
        ("--nodes=2", "--nodes=two", (), None, "a number of nodes"),
        ("--cpus-per-task=16", "-c 8", ("--cpus-per-trial", "9"), "--nodes", "hold 0 such"),
        ("#SBATCH --cpus-per-task=16\n", "", (), "#SBATCH", "--cpus-per-task is missing"),
        ("--cpus-per-task=16", "--cpus-per-task=all", (), None, "expected a number"),
        ("--gpus-per-node=1", "--gres=gpu:a100:2,lscratch:9", ("--gpus-per-trial", "2"), None, None),
        ("--gpus-per-node=1", "--gpus=2", ("--gpus-per-trial", "2"), "--nodes", "hold 0 such"),
        ("#SBATCH --gpus-per-node=1\n", "", ("--gpus-per-trial", "1"), "--nodes", "no node type has a GPU"),
        ("#SBATCH --time=08:00:00\n", "", (), "#SBATCH", "--time is missing"),
        ("--time=08:00:00", "-t 8:00:00", (), None, None),
        ("--ntasks-per-node=1", "--ntasks-per-node=4", (), "--ntasks-per-node", "once on each node"),
        ("--ntasks-per-node=1", "--ntask-per-node=1", (), "--ntask-per-node", "once on each node"),
        ("ray symmetric-run", "ray symetric-run", (), None, "starts no Ray"),
        ("set -euo pipefail\n", "set -euo pipefail\nif true; then\n", (), None, "bash cannot read it"),
        ("set -euo pipefail\n", "set -euo pipefail\n#SBATCH --mem=9G\n", (), "--mem=9G", "below the first command"),
        ("shared=/all", "shared=YOUR-SHARED", (), "shared=", "put your own"),
        ("export RAY_AUTH_MODE=token\n", "", (), None, "does not turn Ray's authentication on"),
        ("dashboard-host=127.0.0.1", "dashboard-host=0.0.0.0", (), "srun --kill", "listens to every network"),
        ("set -euo pipefail\n", "set -eu\npip install -U fracray\n", (), "pip install", "not pinned"),
        ("set -euo pipefail\n", "set -eu\npip install ray==2.9.0\n", (), "pip install", "installs Ray 2.9.0"),
        ("--job-name=fracray", "--job-name=fracray extra", (), None, "belongs to no option"),
        ("--job-name=fracray", "--job-name='fracray", (), None, "cannot be read"),
    ],
)
def test_a_fault_of_a_script_for_slurm_is_told_with_its_line(old, new, options, line, words, tmp_path, capsys):
    text = (FILES / "slurm.sh").read_text().replace("YOUR-SHARED", "/all")
    assert old in text
    file = tmp_path / "slurm.sh"
    file.write_text(text.replace(old, new, 1) if old else text)
    if words in ("a number of nodes", "expected a number", "belongs to no option", "cannot be read"):
        with pytest.raises(InputError, match=rf"slurm\.sh:\d+: .*{words}"):
            main(["check", str(file), *options])
        return
    lines, faults = checked(file, capsys, *options)
    assert len(faults) == (words is not None), faults
    if faults:
        assert words in faults[0]
        assert line is None or line in lines[int(re.match(r"\S+\.sh:(\d+): ", faults[0])[1]) - 1]


@pytest.mark.parametrize(("verb", "words"), [("submit", "sbatch"), ("attach", "tail -f")])
def test_what_slurm_does_itself_is_said(verb, words):
    with pytest.raises(InputError, match=words):
        main([verb, str(FILES / "slurm.sh"), *(["--", "tune"] if verb == "submit" else [])])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("provider: {", "not valid YAML"),
        ("provider:\n\ttype: aws", "indent with spaces"),
        ("provider:\n    type: aws\n  region: x", "look at the indentation"),
        ("", "the file is empty"),
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


# ---------------------------------------------------------------- the files that fracray comes with


@pytest.fixture
def filled(tmp_path, monkeypatch):
    """fracray's own cluster files with every YOUR- filled in, and the wheel built, as their user would have them."""
    shutil.copytree(FILES, tmp_path / "cluster")
    for path in (tmp_path / "cluster").glob("*.yaml"):
        path.write_text(path.read_text().replace("YOUR-", "my-"))
    (tmp_path / "my-KEY").touch()
    (local := tmp_path / "cluster/local.yaml").write_text(local.read_text().replace("~/.ssh", str(tmp_path)))
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / f"fracray-{metadata.version('fracray')}-py3-none-any.whl").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cluster"


@pytest.mark.parametrize("name", ["local", "gpu", "gcp", "azure", "raycluster", "rayjob"])
def test_the_files_that_come_with_fracray_are_sound_once_filled_in(name, filled, capsys):
    main(["check", str(filled / f"{name}.yaml"), "--gpus-per-trial", "0.25"])
    assert "nothing wrong was found" in capsys.readouterr().out


def test_the_rules_of_aws_hold_for_the_provider_that_turns_from_spot_to_on_demand(filled, capsys):
    text = (filled / "gpu.yaml").read_text()
    (filled / "gpu.yaml").write_text(text.replace("      SecurityGroupIds: [sg-my-GROUP]\n", "", 1))
    assert run_verb(main, ["check", str(filled / "gpu.yaml")]) == 2
    assert "head names no SecurityGroupIds; Ray would make a group" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["local", "gpu", "gcp", "azure", "raycluster", "rayjob"])
def test_what_is_left_to_fill_in_is_told(name, capsys, monkeypatch):
    monkeypatch.chdir(FILES.parent)
    assert run_verb(main, ["check", f"cluster/{name}.yaml"]) == 2
    said = "\n".join(line for line in capsys.readouterr().out.splitlines() if "put your own" in line)
    values = "\n".join(line.split(" #")[0] for line in Path(f"cluster/{name}.yaml").read_text().splitlines())
    values = re.sub(r"^#.*", "", values, flags=re.M)
    assert set(re.findall(r"YOUR-[A-Z0-9-]+", said)) == set(re.findall(r"YOUR-[A-Z0-9-]+", values)) != set()


def test_the_locks_of_the_cluster_are_those_of_the_project():
    """What the nodes install is what the tests ran with, and no compiler is needed for it."""
    pins = {path.stem: set(re.findall(r"^([\w.-]+==[^ ;]+)", path.read_text(), re.M)) for path in FILES.glob("*.lock")}
    project = set(re.findall(r"^([\w.-]+==[^ ;]+)", (FILES.parent / "requirements.lock").read_text(), re.M))
    assert pins["requirements"] < project
    known = {pin.partition("==")[0]: pin for pin in project}
    for cloud in ("aws", "gcp", "azure"):
        assert pins[cloud]
        assert all(pin == known.get(pin.partition("==")[0], pin) for pin in pins[cloud])


# ---------------------------------------------------------------- submit and attach


@pytest.fixture
def cluster_file(tmp_path):
    shared = tmp_path / "shared"
    tree = {**LAUNCHER, "metadata": {"storage": str(shared), "shared": [str(shared)]}}
    (tmp_path / "here.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path / "here.yaml"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["evaluate", "x"], "stands tune or train"),
        ([], "stands tune or train"),
        (["tune", "--storage", "runs"], "whole path"),
        (["tune", "--storage", "phantom"], "whole path"),
        (["tune", "--storage", "/home/ray/runs"], "share no disk"),
        (["tune", "--space", "none.yaml"], "no such file here"),
        (["tune", "--space", "/none.yaml"], "no such file here"),
        (["tune", "--space", str(FILES / "local.yaml")], "unknown key"),
        (["tune", "--resume"], "name the run"),
        (["tune", "oops"], "belongs to no option"),
    ],
)
def test_what_cannot_be_submitted_is_refused_before_the_cluster_is_asked(words, told, cluster_file):
    with pytest.raises(InputError, match=told):
        main(["submit", str(cluster_file), "--address", "http://127.0.0.1:1", "--", *words])


def test_a_submit_without_its_dashes_is_told(cluster_file):
    with pytest.raises(InputError, match=r"submit: put -- before tune"):
        main(["submit", str(cluster_file), "tune", "--name", "atlas"])


def test_what_the_head_would_not_understand_is_refused_here(cluster_file, capsys):
    with pytest.raises(SystemExit) as refused:
        main(["submit", str(cluster_file), "--address", "http://127.0.0.1:1", "--", "tune", "--spce", "x"])
    assert refused.value.code == 2
    assert "unrecognized arguments: --spce" in capsys.readouterr().err


def test_a_job_of_kubernetes_is_followed_by_kubernetes(tmp_path):
    with pytest.raises(InputError, match="kubectl logs -f -l job-name=fracray"):
        main(["attach", str(FILES / "rayjob.yaml")])


def test_a_cluster_out_of_reach_is_told_in_words(cluster_file):
    with pytest.raises(RunError, match="no Ray dashboard answers there"):
        main(["attach", str(cluster_file), "--address", "http://127.0.0.1:1"])


def test_a_checkpoint_goes_along_as_its_config(cluster_file, tmp_path, monkeypatch):
    monkeypatch.setattr("fracray.cluster.__main__.read_metadata", lambda path: SimpleNamespace(config=Config()))
    (tmp_path / "t0007").mkdir()
    _, command, files = _prepared(
        read_cluster(cluster_file), ["train", "--config", str(tmp_path / "t0007"), "--name", "final"]
    )
    assert command[:5] == ["python", "-m", "fracray.train", "--config", "config.yaml"]
    assert parse_config(files["config.yaml"], "sent") == Config()


def test_a_search_is_promised_no_more_machines_than_the_cap(cluster_file):
    tree = yaml.safe_load(cluster_file.read_text())
    tree["available_node_types"]["cpu"] = {"resources": {"CPU": 8}, "max_workers": 5, "node_config": {}}
    tree["max_workers"] = 4  # beside the head, three of them with a GPU
    cluster_file.write_text(yaml.safe_dump(tree))
    (promised,) = (json.loads(text) for name, text in told(read_cluster(cluster_file)).items() if name == PROMISED)
    assert sorted((one["cpus"], one["gpus"], one["count"]) for one in promised) == [(4, 0, 1), (8, 0, 1), (8, 1, 3)]
    (tmp := cluster_file.with_name("own.yaml")).write_text(
        "provider: {type: local, head_ip: a, worker_ips: [b, c]}\nmax_workers: 2\n"
    )
    assert told(read_cluster(tmp)) == {EXPECTED: "3", CLUSTER_FILE: str(tmp)}


def test_a_table_is_drawn_over_itself_though_ray_turns_its_returns_into_new_lines():
    follower = Follower("atlas", io.StringIO())
    assert follower._redrawn("a\nb\n\x1b[2K\x1b[1A\x1b[2Kc\n") == "a\nb\r\x1b[2K\x1b[1A\x1b[2Kc\n"
    assert follower._redrawn("\x1b[2Kd") == "\x1b[1A\x1b[2Kd"
    assert follower._redrawn("\x1b[2Ke\n") == "\x1b[2Ke\n"
    assert follower._redrawn("f\n") == "f\n"
