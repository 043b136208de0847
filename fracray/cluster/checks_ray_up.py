"""Checks of cluster files for `ray up`: Ray's own schema, authentication, AWS, file mounts and limits of cost.

Starts nothing and contacts no network.
"""

import io
import json
import logging
import re
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from fracray.cluster.files import ClusterFile
from fracray.errors import nearest
from fracray.runtime.yaml_lines import ParsedFile

LARGE_BYTES = 100 * 2**20  # of a file mount, which Ray copies to every node with rsync
SECRET_PATH = re.compile(
    r"\.pem$|id_(rsa|ed25519|ecdsa)|auth_token|credentials|\.(aws|ray|ssh|kube|azure)(/|$)|gcloud(/|$)|\.env$|\.netrc"
    r"|secret",
    re.I,
)
SPOT_FIRST = "fracray.cluster.aws_spot.SpotFirst"  # only named: it needs boto3, and a check does not
KEEPING = ("aws", "azure")  # Ray's providers that only stop a machine, unless the file says otherwise
# What a node type of AWS must set, and what Ray or AWS does without it.
AWS = {
    "SecurityGroupIds": "Ray would create a group whose SSH port is open to the world",
    "IamInstanceProfile": "the node could read neither the token nor the bucket, and for the head Ray would create a "
    "role with full rights to EC2 and S3",
    "ImageId": "Ray would choose an image whose NVIDIA driver is too old",
}


def ray_up_problems(cluster: ClusterFile) -> Iterator[str]:
    found = list(_node_types(cluster.file))
    yield from found or _schema(cluster.file)  # which would report the same without a line
    yield from _authentication(cluster.file)
    yield from _aws(cluster.file)
    yield from _mounts(cluster.file)
    if _provider(cluster.file).get("type") != "local":
        for key, meaning in (
            ("idle_timeout_minutes", "idle nodes are stopped after this time"),
            ("max_workers", "the limit of what the cluster can cost"),
        ):
            if key not in cluster.file.tree:
                yield f"{cluster.file.origin}: {key} is missing: {meaning}"


def ray_up_warnings(cluster: ClusterFile) -> Iterator[str]:
    """Nodes that cost money while nothing runs, and those that do after `ray down`."""
    provider = _provider(cluster.file)
    if provider.get("type") == "local":
        return
    keeps = provider.get("type") in KEEPING or provider.get("module") == SPOT_FIRST
    if provider.get("cache_stopped_nodes", keeps):
        yield (
            f"{cluster.file.where('provider', 'cache_stopped_nodes')}: warning: `ray down` only stops the machines, "
            "and their disks cost money until you delete them; set cache_stopped_nodes: false"
        )
    for node in cluster.nodes:
        if node.least and not node.head:
            where = cluster.file.where("available_node_types", node.name, "min_workers")
            yield f"{where}: warning: {node.least} of {node.name} cost money until `ray down`; with 0 they stop"


def _provider(file: ParsedFile) -> dict[str, Any]:
    return file.tree["provider"] or {}


def file_mounts(file: ParsedFile) -> Iterator[tuple[tuple[str, ...], Path]]:
    """The local paths that are copied to every node, each with the path of its key in the file."""
    mounts = file.tree.get("file_mounts") or {}
    for target, source in mounts.items() if isinstance(mounts, dict) else ():
        yield ("file_mounts", str(target)), Path(str(source)).expanduser()


def _schema(file: ParsedFile) -> Iterator[str]:
    """What Ray's schema and its other checks find; they raise all kinds of errors, assertions too."""
    import jsonschema  # type: ignore[import-untyped]  # comes with ray[default]
    import ray.autoscaler
    from ray.autoscaler._private.util import prepare_config, validate_config

    logging.getLogger("ray.autoscaler").setLevel(logging.ERROR)
    schema = json.loads(Path(ray.autoscaler.__file__).with_name("ray-schema.json").read_text())
    # First without Ray's defaults, which hide where a fault is; they add what is required.
    faults = [
        line
        for error in jsonschema.Draft7Validator(schema).iter_errors(file.tree)
        if error.validator != "required"
        for line in _schema_lines(file, error)
    ]
    if faults:
        yield from faults
        return
    output = io.StringIO()
    try:
        with redirect_stdout(output), redirect_stderr(output):
            validate_config(prepare_config(json.loads(json.dumps(file.tree, default=str))))
    except jsonschema.ValidationError as error:
        yield from _schema_lines(file, error)
    except KeyError as error:  # Ray has no defaults for providers other than its own
        yield f"{file.origin}: {error.args[0]} is missing: Ray has no default for it with this provider"
    except Exception as error:
        said = " ".join((output.getvalue().strip() or str(error) or type(error).__name__).split())
        yield f"{_named_line(file, said)}: Ray cannot use it: {said}"


def _schema_lines(file: ParsedFile, error: Any) -> Iterator[str]:
    path = [str(key) for key in error.absolute_path]
    if error.validator == "additionalProperties":
        known = error.schema["properties"]
        for key in map(str, error.instance):
            if key not in known:
                yield f"{file.where(*path, key)}: Ray has no setting '{key}'{nearest(key, known)}"
    else:
        yield f"{file.where(*path)}: {error.message.splitlines()[0]} (Ray's schema)"


def _named_line(file: ParsedFile, said: str) -> str:
    """FILE:LINE of the outermost key that a message names, in whole or by its first word; else the file."""
    words = {word.lower() for word in re.findall(r"\w+", said) if len(word) > 3}
    for whole in (True, False):
        for path in sorted(file.lines, key=len):
            if (path[-1] if whole else path[-1].partition("_")[0]) in words:
                return file.where(*path)
    return file.origin


def _node_types(file: ParsedFile) -> Iterator[str]:
    """The head's node type must exist, and `max_workers` must allow all machines of one's own."""
    tree, types = file.tree, file.tree.get("available_node_types") or {}
    head, names = tree.get("head_node_type"), [str(name) for name in types]
    if types and head not in types:
        problem = f"'{head}' is not a node type{nearest(str(head), names)}" if head else "head_node_type is missing"
        yield f"{file.where('head_node_type')}: {problem}; name one of available_node_types: {', '.join(names)}"
    listed = len(_provider(file).get("worker_ips") or []) if _provider(file).get("type") == "local" else 0
    if isinstance(most := tree.get("max_workers"), int) and most < listed:
        yield f"{file.where('max_workers')}: max_workers is {most}, but worker_ips lists {listed}; Ray needs as many"


def _authentication(file: ParsedFile) -> Iterator[str]:
    """Ray must require its token; where no start command is given, Ray's default command does not."""
    docker = file.tree.get("docker") or {}
    if any("RAY_AUTH_MODE=token" in str(option) for option in docker.get("run_options") or []):
        return
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        parts = [str(command).partition("ray start") for command in file.tree.get(key) or []]
        before = [first for first, start, _ in parts if start]
        if not before or not all("RAY_AUTH_MODE=token" in first for first in before):
            yield (
                f"{file.where(key)}: {key} does not turn on Ray's authentication; export RAY_AUTH_MODE=token in the "
                "same command, before ray start (every command has its own shell)"
            )


def _aws(file: ParsedFile) -> Iterator[str]:
    """Node types of AWS, with Ray's provider or fracray's."""
    provider = _provider(file)
    module = str(provider.get("module") or "")
    if provider.get("type") == "external" and (not module or (module.startswith("fracray.") and module != SPOT_FIRST)):
        yield f"{file.where('provider', 'module')}: '{module}' is not a node provider; write module: {SPOT_FIRST}"
    for name, settings in (file.tree.get("available_node_types") or {}).items():
        node = (settings or {}).get("node_config") or {}
        if provider.get("type") != "aws" and "InstanceType" not in node:
            continue
        for key, otherwise in AWS.items():
            if key not in node and not (key == "SecurityGroupIds" and "NetworkInterfaces" in node):
                where = file.where("available_node_types", name, "node_config")
                yield f"{where}: {name} has no {key}; {otherwise}; add it, as in cluster/gpu.yaml"


def _mounts(file: ParsedFile) -> Iterator[str]:
    for path, source in file_mounts(file):
        where = file.where(*path)
        if secret := _secret(source, path[-1]):
            yield f"{where}: {secret} looks like a secret; let each node fetch it, as in initialization_commands"
        elif not source.exists():
            made = "make it with: pip wheel --no-deps --wheel-dir dist ."
            relative = "a path is relative to the folder in which `ray up` runs, the repository's root"
            yield f"{where}: {source} does not exist here; {made if source.suffix == '.whl' else relative}"
        elif (size := _bytes(source)) > LARGE_BYTES:
            yield f"{where}: {source} has {size / 2**20:,.0f} MiB, copied to every node; keep data in the storage"
    key = (file.tree.get("auth") or {}).get("ssh_private_key")
    if key and "YOUR-" not in str(key) and not Path(str(key)).expanduser().is_file():
        where = file.where("auth", "ssh_private_key")
        yield f"{where}: {key} does not exist here; give a key that the machines accept"


def _secret(source: Path, target: str) -> str | None:
    """The path in a file mount that looks like a secret: its source, its target, or a file in it."""
    if SECRET_PATH.search(str(source)) or SECRET_PATH.search(target):
        return str(source)
    inside = sorted(source.rglob("*")) if source.is_dir() else []
    return next((str(file) for file in inside if SECRET_PATH.search(str(file.relative_to(source)))), None)


def _bytes(source: Path) -> int:
    if source.is_file():
        return source.stat().st_size
    return sum(file.stat().st_size for file in source.rglob("*") if file.is_file())
