"""What is wrong with a cluster file, by Ray's own schema and by fracray's rules: each fault with its line and remedy.

Reaches no network and starts nothing but `bash -n`.
"""

import difflib
import io
import json
import logging
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from itertools import pairwise
from pathlib import Path
from typing import Any

import ray
import yaml

from fracray.cluster.files import KUBERAY, LAUNCHER, SLURM, ClusterFile, Need, kuberay_spec
from fracray.cluster.slurm import COMMANDS as SCRIPT
from fracray.cluster.slurm import LATE, OPTIONS
from fracray.config import nearest
from fracray.runtime.resources import PROMISED, promise
from fracray.runtime.yaml_lines import ParsedFile

PLACEHOLDER = "YOUR-"  # what fracray's own cluster files leave to their user
LARGE_BYTES = 100 * 2**20  # of a file mount: Ray copies it to every node with rsync
SECRETS = re.compile(
    r"\.pem$|id_(rsa|ed25519|ecdsa)|auth_token|credentials|\.(aws|ray|ssh|kube|azure)(/|$)|gcloud(/|$)|\.env$|\.netrc"
    r"|secret",
    re.I,
)
# A secret as it stands: what fetches one ($(...), $NAME, valueFrom) does not match.
SECRET_NAME = r"\w*(?:SECRET|PASSWORD|ACCESS_KEY|AUTH_TOKEN)\w*(?<!_ID)(?<!_PATH)(?<!_FILE)(?<!_NAME)"
PLAIN = re.compile(rf"\b(?P<name>{SECRET_NAME})=['\"]?[A-Za-z0-9/+]{{8}}")
PIPED = re.compile(r"\b(?:curl|wget)\b[^|;&]*\|\s*(?:sudo\s+)?(?:ba|z)?sh\b")
TAKES_VALUE = re.compile(  # the options of pip install whose next word is no requirement
    r"-[cifrt]|--(requirement|constraint|index-url|extra-index-url|find-links|only-binary|no-binary|target|prefix|timeout"
    r"|platform|python-version)"
)
WORLD = re.compile(r"(?<![\d.])0\.0\.0\.0/0|(?<!\w)::/0")
IMAGE = re.compile(r"^(?:[\w.-]+/)*ray(?:-ml|-llm)?:(?P<ray>\d+\.\d+\.\d+)(?:\.\w+)?-py(?P<python>3\d+)")
RAY_PIN = re.compile(r"\bray(?:\[[\w,-]+\])?\s*==\s*(?P<ray>\d+\.\d+\.\d+)")
PIP = re.compile(r"\bpip3?\s+install\b(?P<rest>[^;&|]*)")
COMMANDS = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
    SCRIPT,
)
SPOT_FIRST = "fracray.cluster.aws_spot.SpotFirst"  # named only: it needs boto3, which a check does not
# What a node type of AWS must say, for what Ray or AWS does otherwise.
AWS = {
    "SecurityGroupIds": "Ray would make a group whose SSH port is open to the world",
    "IamInstanceProfile": "it could read neither the token nor the bucket, and for the head Ray would make a role "
    "with full rights to EC2 and S3",
    "ImageId": "Ray would take an image of its own choice, whose NVIDIA driver is too old",
}


def faults(cluster: ClusterFile, need: Need, storage: str | None) -> list[str]:
    """Every fault of a cluster file for a search whose trials `need` so much and whose runs lie in `storage`.

    Each as `FILE:LINE: what is wrong; what to do`. `storage` None takes what the file says of it.
    """
    rules: list[Callable[[], Iterator[str]]] = [
        lambda: _placeholders(cluster.file),
        lambda: _schema(cluster),
        lambda: _trials(cluster, need),
        lambda: _promised(cluster),
        lambda: unshared(cluster, storage or cluster.storage),
        lambda: _versions(cluster),
        lambda: _open_ports(cluster),
        lambda: _mounts(cluster),
        lambda: _secrets(cluster),
        lambda: _downloads(cluster),
        lambda: _batch(cluster),
        lambda: _limits(cluster),
    ]
    # Once each: what an anchor stands for is found wherever it is used.
    return list(dict.fromkeys(fault for rule in rules for fault in rule()))


def remarks(cluster: ClusterFile) -> list[str]:
    """What is no fault and may yet not be as meant, each as `FILE:LINE: note: ...`."""
    if cluster.kind != LAUNCHER or cluster.file.tree["provider"].get("type") == "local":
        return []
    return [*_stays(cluster), *_caps(cluster.file)]


def _stays(cluster: ClusterFile) -> Iterator[str]:
    for node in cluster.nodes:
        if node.least and not node.head:
            where = cluster.file.where("available_node_types", node.name, "min_workers")
            yield f"{where}: note: {node.least} of {node.name} stay, and cost, until `ray down`; with 0 they go"


def _caps(file: ParsedFile) -> list[str]:
    tree = file.tree
    if not isinstance(tree.get("max_workers"), int):
        return []
    caps = [
        (settings or {}).get("max_workers")
        for name, settings in (tree.get("available_node_types") or {}).items()
        if name != tree.get("head_node_type")
    ]
    given = [cap for cap in caps if isinstance(cap, int)]
    if not caps or len(given) < len(caps):
        return []
    cap, total = tree["max_workers"], sum(given)
    where = f"{file.where('max_workers')}: note: max_workers is {cap}, and those of the node types add up to"
    if cap < total:
        return [f"{where} {total}: not all of them can run at once"]
    return [f"{where} {total}: no more than that can ever run"] if cap > total else []


def _strings(file: ParsedFile) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every value of a file that is no mapping or list, as text, with the path to it."""

    def walk(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from walk(inner, (*path, str(key)))
        elif isinstance(value, list):
            for at, inner in enumerate(value):
                yield from walk(inner, (*path, str(at)))
        elif value is not None:
            yield path, str(value)

    return walk(file.tree, ())


def _placeholders(file: ParsedFile) -> Iterator[str]:
    for path, text in _strings(file):
        if found := re.findall(rf"[\w:/.@~-]*{PLACEHOLDER}[\w:/.@~-]*", text):
            yield f"{file.where(*path)}: {', '.join(dict.fromkeys(found))}: put your own in its place"


def _schema(cluster: ClusterFile) -> Iterator[str]:
    """Ray's own judgement of a launcher's file. KubeRay's is its cluster's, which judges on `kubectl apply`."""
    if cluster.kind != LAUNCHER:
        return
    if own := list(_counts(cluster.file)):  # which Ray tells without a line
        yield from own
        return
    import jsonschema  # type: ignore[import-untyped]  # comes with ray[default]
    from ray.autoscaler._private.util import prepare_config, validate_config

    logging.getLogger("ray.autoscaler").setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # it warns of Docker where there is none
            validate_config(prepare_config(json.loads(json.dumps(cluster.file.tree))))
    except jsonschema.ValidationError as error:
        path = [str(key) for key in error.absolute_path]
        if error.validator == "additionalProperties":
            known = error.schema["properties"]
            for key in error.instance.keys() - known.keys():
                yield f"{cluster.file.where(*path, key)}: '{key}' is no setting of Ray's{nearest(key, known)}"
            return
        yield f"{cluster.file.where(*path)}: {error.message.splitlines()[0]}, says Ray's schema"
    except KeyError as error:  # of providers other than the clouds that Ray knows
        yield f"{cluster.file.origin}: {error.args[0]} is missing: Ray has no value of its own for it here"
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:
        yield f"{cluster.file.origin}: Ray cannot use it: {' '.join(str(error).split())}"


def _counts(file: ParsedFile) -> Iterator[str]:
    tree, types = file.tree, file.tree.get("available_node_types") or {}
    head = tree.get("head_node_type")
    if types and head not in types:
        said = f"'{head}' is no node type{nearest(str(head), types)}" if head else "head_node_type is missing"
        yield f"{file.where('head_node_type')}: {said}; name one of available_node_types: {', '.join(types)}"
    listed = len(tree["provider"].get("worker_ips") or []) if tree["provider"].get("type") == "local" else 0
    if isinstance(cap := tree.get("max_workers"), int) and cap < listed:
        yield f"{file.where('max_workers')}: max_workers is {cap}, and worker_ips lists {listed}; Ray wants as many"


def _trials(cluster: ClusterFile, need: Need) -> Iterator[str]:
    file = cluster.file
    room = sum(node.most * node.workers(need) for node in cluster.at_best(lambda node: node.workers(need)) if node.most)
    if room >= need.workers:
        return
    if need.gpus and not any(node.most and (node.gpus is None or node.gpus) for node in cluster.nodes):
        place = cluster.nodes[-1].place if cluster.kind != LAUNCHER else file.where("available_node_types")
        yield f"{place}: a trial asks for {need}, and no node type has a GPU; add one, or ask for no GPUs"
        return
    told = ", ".join(
        f"{node.name} ({node.cpus:g} CPUs, {node.gpus or 0:g} GPUs, at most {node.most})"
        for node in cluster.nodes
        if node.cpus is not None
    )
    place = next((node.place for node in cluster.nodes if not node.head), file.origin)
    yield (
        f"{place}: a trial asks for {need}, and all nodes together hold {room:g} such worker(s): {told}; allow more or "
        "larger nodes, or ask for less"
    )


def _promised(cluster: ClusterFile) -> Iterator[str]:
    """A RayJob's search is told by its environment what pods it may get; `submit` tells it for the others."""
    known = [node.machine for node in cluster.nodes if node.machine is not None]
    if cluster.kind != "RayJob" or len(known) < len(cluster.nodes):
        return
    told = promise(known)[PROMISED]
    where = cluster.file.where("spec", "runtimeEnvYAML")
    try:
        given = yaml.safe_load(cluster.file.tree["spec"].get("runtimeEnvYAML") or "")["env_vars"][PROMISED]
        same = json.loads(given) == json.loads(told)
    except (TypeError, KeyError, ValueError, yaml.YAMLError):
        same = False
    if not same:
        yield f"{where}: {PROMISED} does not say what pods this file allows; set it to {told}"


def unshared(cluster: ClusterFile, storage: str | None) -> Iterator[str]:
    """The faults of where runs are to be kept, and of where the data are."""
    kuberay = cluster.kind in KUBERAY
    place, prefix = (["metadata", "annotations"], "fracray/") if kuberay else (["metadata"], "")
    kept, shared = f"{place[-1]}.{prefix}storage", f"{place[-1]}.{prefix}shared"
    where = cluster.file.where(*place, f"{prefix}storage")
    if storage is None:
        # Slurm's script is given it by whoever submits it.
        if cluster.most > 1 and cluster.kind != SLURM:
            yield (
                f"{where}: nothing says where runs are kept, and {cluster.most} nodes share no disk; give "
                f"{kept} (s3://..., gs://..., or a path below {shared}), or --storage"
            )
    elif "://" not in storage and cluster.most > 1 and not _inside(storage, cluster.shared):
        said = f"the mount that all nodes see under {shared}" if cluster.kind != SLURM else "a folder below `shared`"
        yield (
            f"{where}: storage {storage} is a path, and {cluster.most} nodes share no disk that the file names; "
            f"give a URI (s3://..., gs://...), or name {said}"
        )
    # The head alone reads the data, and hands them out.
    if cluster.data is not None and "://" not in cluster.data and not Path(cluster.data).is_absolute():
        where = cluster.file.where(*place, f"{prefix}data")
        yield f"{where}: data {cluster.data}: give a URI (s3://..., gs://...), or a whole path as the head sees it"


def _inside(path: str, folders: tuple[str, ...]) -> bool:
    return any(Path(path).is_relative_to(folder) for folder in folders)


def _versions(cluster: ClusterFile) -> Iterator[str]:
    """Ray refuses nodes whose Python or Ray differs from the head's, and jobs are written for the driver's."""
    python = ".".join(platform.python_version_tuple()[:2])
    for path, text in _strings(cluster.file):
        where = cluster.file.where(*path)
        if path[-1] in ("image", "head_image", "worker_image") and (found := IMAGE.match(text)):
            if found["ray"] != ray.__version__:
                yield f"{where}: the image has Ray {found['ray']}, and here is {ray.__version__}; take the same"
            if (theirs := f"3.{found['python'][1:]}") != python:
                yield f"{where}: the image has Python {theirs}, and here is {python}; take the same"
        elif path[-1] == "rayVersion" and text != ray.__version__:
            yield f"{where}: Ray {text}, and here is {ray.__version__}; take the same"
        elif (
            not set(COMMANDS).isdisjoint(path) and (pinned := RAY_PIN.search(text)) and pinned["ray"] != ray.__version__
        ):
            yield f"{where}: installs Ray {pinned['ray']}, and here is {ray.__version__}; take the same"
    for path, source in _file_mounts(cluster.file):
        pinned = RAY_PIN.search(source.read_text()) if source.suffix == ".lock" and source.is_file() else None
        if pinned and pinned["ray"] != ray.__version__:
            where = cluster.file.where(*path)
            yield f"{where}: {source} pins Ray {pinned['ray']}, and here is {ray.__version__}; take the same"


def _file_mounts(file: ParsedFile) -> Iterator[tuple[tuple[str, ...], Path]]:
    mounts = file.tree.get("file_mounts") or {}
    for target, source in mounts.items() if isinstance(mounts, dict) else ():
        yield ("file_mounts", str(target)), Path(str(source)).expanduser()


def _open_ports(cluster: ClusterFile) -> Iterator[str]:
    file, tree = cluster.file, cluster.file.tree
    for path, text in _strings(file):
        if WORLD.search(text):
            yield f"{file.where(*path)}: {text} opens a port to the world; name your own network"
        if "dashboard-host" in text and re.search(r"dashboard-host[= ]'?(0\.0\.0\.0|::)", text):
            yield (
                f"{file.where(*path)}: the dashboard runs whatever code it is sent, and listens to every network; "
                "give --dashboard-host=127.0.0.1 (submit reaches it through SSH)"
            )
        if path[-1] in ("type", "serviceType") and text in ("LoadBalancer", "NodePort"):
            yield f"{file.where(*path)}: a service of type {text} is reached from outside the cluster; take ClusterIP"
        if (path[-1], text) in (("enableIngress", "True"), ("hostNetwork", "True")) or path[-1] == "hostPort":
            yield f"{file.where(*path)}: {path[-1]} lets others than Ray's pods reach them; leave it out"
    if cluster.kind == LAUNCHER:
        for at in ("head_start_ray_commands", "worker_start_ray_commands"):
            if not _authenticated(tree, at):
                yield (
                    f"{file.where(at)}: {at} does not turn Ray's authentication on; export RAY_AUTH_MODE=token in the "
                    "same command, before ray start (each command has a shell of its own)"
                )
        yield from _aws(cluster)
    elif cluster.kind in KUBERAY:
        if (kuberay_spec(file).get("authOptions") or {}).get("mode") != "token":
            where = file.where(*KUBERAY[cluster.kind], "authOptions")
            yield f"{where}: Ray's authentication is off; give authOptions: {{mode: token}}"
    elif not any(re.search(r"\bRAY_AUTH_MODE=token\b", command) for command in tree[SCRIPT]):
        yield f"{file.origin}: does not turn Ray's authentication on; export RAY_AUTH_MODE=token in it"


def _authenticated(tree: dict[str, Any], at: str) -> bool:
    """Whether every Ray that these commands start asks for the token; without a command Ray's own starts one openly."""
    docker = tree.get("docker") or {}
    if any("RAY_AUTH_MODE=token" in str(option) for option in docker.get("run_options") or []):
        return True
    before = [str(command).partition("ray start") for command in tree.get(at) or []]
    starts = [first for first, start, _ in before if start]
    return bool(starts) and all("RAY_AUTH_MODE=token" in first for first in starts)


def _aws(cluster: ClusterFile) -> Iterator[str]:
    """AWS' machines, under Ray's provider or fracray's."""
    provider = cluster.file.tree["provider"]
    module = str(provider.get("module") or "")
    if provider.get("type") == "external" and (not module or (module.startswith("fracray.") and module != SPOT_FIRST)):
        where = cluster.file.where("provider", "module")
        yield f"{where}: an external provider is a class, as module: {SPOT_FIRST}; '{module}' is none"
    for name, settings in (cluster.file.tree.get("available_node_types") or {}).items():
        node = (settings or {}).get("node_config") or {}
        if provider.get("type") != "aws" and "InstanceType" not in node:
            continue
        for key, otherwise in AWS.items():
            if key not in node and not (key == "SecurityGroupIds" and "NetworkInterfaces" in node):
                where = cluster.file.where("available_node_types", name, "node_config")
                yield f"{where}: {name} names no {key}; {otherwise}; add it, as cluster/gpu.yaml does"


def _batch(cluster: ClusterFile) -> Iterator[str]:
    """What Slurm itself would not tell."""
    if cluster.kind != SLURM:
        return
    file, options = cluster.file, cluster.file.tree[OPTIONS]
    for at, line in enumerate(file.tree[LATE]):
        yield f"{file.where(LATE, str(at))}: {line}: Slurm reads no option below the first command; move it up"
    if "cpus-per-task" not in options:
        yield f"{file.where(OPTIONS)}: --cpus-per-task is missing: Slurm gives the one task on each node a single CPU"
    each = options.get("ntasks-per-node")
    if each != "1":
        meant = next(iter(difflib.get_close_matches("ntasks-per-node", options, n=1)), "ntasks-per-node")
        where = file.where(OPTIONS, meant)
        yield f"{where}: --ntasks-per-node is {each or 'missing'}: Ray is to start once on each node; give 1"
    if not any(re.search(r"\bray (symmetric-run|start)\b", command) for command in file.tree[SCRIPT]):
        yield f"{file.origin}: starts no Ray: no command is `ray symmetric-run` or `ray start`; see cluster/slurm.sh"
    if bash := shutil.which("bash"):
        told = subprocess.run([bash, "-n", file.origin], capture_output=True, text=True, check=False).stderr
        for line, words in re.findall(r"line (\d+): (.*)", told):
            yield f"{file.origin}:{line}: bash cannot read it: {words}"


def _mounts(cluster: ClusterFile) -> Iterator[str]:
    for path, source in _file_mounts(cluster.file):
        where = cluster.file.where(*path)
        if secret := _secret(source, path[-1]):
            yield f"{where}: {secret} looks like a secret; have each node fetch it, as the file's head says"
        elif not source.exists():
            yield f"{where}: {source} does not exist here{_remedy(source)}"
        elif (size := _bytes(source)) > LARGE_BYTES:
            yield f"{where}: {source} holds {size / 2**20:,.0f} MiB, copied to every node; keep data in the storage"
    key = (cluster.file.tree.get("auth") or {}).get("ssh_private_key") if cluster.kind == LAUNCHER else None
    if key and PLACEHOLDER not in str(key) and not Path(str(key)).expanduser().is_file():
        where = cluster.file.where("auth", "ssh_private_key")
        yield f"{where}: {key} does not exist here; name the key that the machines let in"


def _secret(source: Path, target: str) -> str | None:
    """What of a file mount looks like a secret: where it comes from, where it goes, or a file in it."""
    if SECRETS.search(str(source)) or SECRETS.search(target):
        return str(source)
    inside = sorted(source.rglob("*")) if source.is_dir() else []
    return next((str(file) for file in inside if SECRETS.search(str(file.relative_to(source)))), None)


def _secrets(cluster: ClusterFile) -> Iterator[str]:
    """Secrets that stand in the file itself."""
    texts = dict(_strings(cluster.file))
    for path, text in texts.items():
        where = cluster.file.where(*path)
        for found in PLAIN.finditer(text):
            yield f"{where}: {found['name']} stands here for all to read; have each node fetch it"
        # Kubernetes' variables: {name: ..., value: ...} in a list.
        name = texts.get((*path[:-1], "name"), "")
        if path[-1] == "value" and re.fullmatch(SECRET_NAME, name):
            yield f"{where}: {name} stands here for all to read; take it from a secret (valueFrom: secretKeyRef)"


def _remedy(source: Path) -> str:
    if source.suffix == ".whl":
        return "; make it with: pip wheel --no-deps --wheel-dir dist ."
    return "; a path is one from where `ray up` is typed, the repository's root"


def _bytes(source: Path) -> int:
    if source.is_file():
        return source.stat().st_size
    return sum(file.stat().st_size for file in source.rglob("*") if file.is_file())


def _downloads(cluster: ClusterFile) -> Iterator[str]:
    for path, text in _strings(cluster.file):
        where = cluster.file.where(*path)
        if path[-1] in ("image", "head_image", "worker_image") and not re.search(r":[^/]*\d[^/]*$|@sha256:", text):
            yield f"{where}: the image {text} names no version; give its full tag"
        if path[0] not in COMMANDS and "command" not in path[-1] and not path[-1].isdigit():
            continue
        if "nightly" in text or "/latest/" in text:
            yield f"{where}: installs whatever is newest on that day; pin it"
        if PIPED.search(text):
            yield f"{where}: runs whatever is there on that day; fetch a version of it, and compare its hash"
        for command in PIP.finditer(text):
            if not _pinned(command["rest"].split()):
                said = f"pip install{command['rest'].rstrip()}"
                yield f"{where}: {said}: not pinned; give versions, a wheel or a lock file"


def _pinned(words: list[str]) -> bool:
    """Whether `pip install` with these words installs the same every day: locked, or each requirement pinned."""
    if "--require-hashes" in words:
        return True
    alone = "--no-deps" in words
    for before, word in pairwise(["", *words]):
        if re.fullmatch(r"-r|--requirement", before):
            return False
        if word.startswith("-") or TAKES_VALUE.fullmatch(before):
            continue
        if not ("==" in word or ".whl" in word or (alone and "/" in word) or (alone and word == ".")):
            return False
    return bool(words)


def _limits(cluster: ClusterFile) -> Iterator[str]:
    """What keeps a forgotten cluster from costing without end."""
    if cluster.kind == SLURM and "time" not in cluster.file.tree[OPTIONS]:
        yield f"{cluster.file.where(OPTIONS)}: --time is missing: the most that the job can cost"
    if cluster.kind != LAUNCHER or cluster.file.tree["provider"].get("type") == "local":
        return
    for key, meaning in (
        ("idle_timeout_minutes", "after which an idle node is given back"),
        ("max_workers", "the most that the cluster can cost"),
    ):
        if key not in cluster.file.tree:
            yield f"{cluster.file.origin}: {key} is missing: {meaning}"
