"""The checks of a cluster file: each problem with its line and its remedy. What all kinds of files share is here.

Starts nothing but `bash -n` and contacts no network. Shell commands are not parsed: whoever writes a file decides what
its nodes install, except for another version of Ray.
"""

import platform
import re
from collections.abc import Iterable, Iterator
from importlib import metadata
from itertools import chain
from pathlib import Path

from fracray.cluster.checks_kuberay import kuberay_problems, kuberay_warnings
from fracray.cluster.checks_ray_up import file_mounts, ray_up_problems, ray_up_warnings
from fracray.cluster.checks_serve import serve_problems, serve_warnings
from fracray.cluster.checks_slurm import slurm_problems
from fracray.cluster.files import KUBERAY, RAY_UP, SERVICES, SLURM, ClusterFile
from fracray.cluster.slurm import COMMANDS as SCRIPT
from fracray.runtime.resources import WorkerResources
from fracray.runtime.yaml_lines import ParsedFile

PLACEHOLDER = "YOUR-"  # what the user must fill in
SECRET_NAME = r"\w*(?:SECRET|PASSWORD|ACCESS_KEY|AUTH_TOKEN)\w*(?<!_ID)(?<!_PATH)(?<!_FILE)(?<!_NAME)"
# A secret's value in a command, or in YAML within a text; commands that fetch it ($(...), $NAME) do not match.
SECRET_VALUE = re.compile(rf"\b(?P<name>{SECRET_NAME})(?:=|: +)['\"]?[A-Za-z0-9/+]{{8}}")
WORLD = re.compile(r"(?<![\d.])0\.0\.0\.0/0|(?<!\w)::/0")
DASHBOARD = re.compile(r"dashboard-host[= ]'?(0\.0\.0\.0|::)")
PIPED = re.compile(r"\b(?:curl|wget)\b[^|;&]*\|\s*(?:sudo\s+)?(?:ba|z)?sh\b")
IMAGE = re.compile(r"^(?:[\w.-]+/)*ray(?:-ml|-llm)?:(?P<ray>\d+\.\d+\.\d+)(?:\.\w+)?-py(?P<python>3\d+)")
RAY_PIN = re.compile(r"\bray(?:\[[\w,-]+\])?\s*==\s*(?P<ray>\d+\.\d+\.\d+)")
COMMANDS = frozenset(
    {
        "initialization_commands",
        "setup_commands",
        "head_setup_commands",
        "worker_setup_commands",
        "head_start_ray_commands",
        "worker_start_ray_commands",
        "pip",  # of a runtime_env
        SCRIPT,
    }
)


def problems(cluster: ClusterFile, need: WorkerResources | None, storage: str | None) -> list[str]:
    """All problems of a cluster file, each as `FILE:LINE: what is wrong; what to do`.

    need: of one trial; None for a service. storage: where runs are kept; None for the place that the file gives.
    """
    of_kind: list[Iterable[str]] = []
    if cluster.kind == RAY_UP:
        of_kind.append(ray_up_problems(cluster))
    elif cluster.kind == SLURM:
        of_kind.append(slurm_problems(cluster))
    if cluster.kind in KUBERAY:
        of_kind.append(kuberay_problems(cluster))
    if cluster.kind in SERVICES:
        of_kind.append(serve_problems(cluster))
    if need is not None:
        of_kind += [_capacity(cluster, need), storage_problems(cluster, storage or cluster.storage)]
    found = chain(_placeholders(cluster.file), _versions(cluster.file), _texts(cluster.file), *of_kind)
    # The value of a YAML anchor has the same problem at every alias: report it once.
    return list(dict.fromkeys(found))


def warnings(cluster: ClusterFile) -> list[str]:
    """What is valid but may not be intended, each as `FILE:LINE: warning: ...`."""
    of_kind: list[Iterable[str]] = []
    if cluster.kind == RAY_UP:
        of_kind.append(ray_up_warnings(cluster))
    if cluster.kind in KUBERAY:
        of_kind.append(kuberay_warnings(cluster))
    if cluster.kind in SERVICES:
        of_kind.append(serve_warnings(cluster))
    return list(chain(*of_kind))


def storage_problems(cluster: ClusterFile, storage: str | None) -> Iterator[str]:
    """Problems of the places where runs are kept and where the data are."""
    place, prefix = (["metadata", "annotations"], "fracray/") if cluster.kind in KUBERAY else (["metadata"], "")
    key, shared = f"{place[-1]}.{prefix}storage", f"{place[-1]}.{prefix}shared"
    where = cluster.file.where(*place, f"{prefix}storage")
    if storage is None:
        if cluster.most > 1 and cluster.kind != SLURM:  # a Slurm script gets it as an argument
            yield (
                f"{where}: the place for runs is not given, and {cluster.most} nodes share no disk; set {key} "
                f"(s3://..., gs://..., or a path below {shared}), or give --storage"
            )
    elif "://" not in storage and cluster.most > 1 and not any(map(Path(storage).is_relative_to, cluster.shared)):
        remedy = f"name the mount that all nodes see under {shared}"
        if cluster.kind == SLURM:
            remedy = "use a folder below `shared`"
        yield (
            f"{where}: storage {storage} is a path, and the file names no shared disk of the {cluster.most} nodes "
            f"with it; give a URI (s3://..., gs://...), or {remedy}"
        )
    # Only the head reads the data.
    if cluster.data is not None and "://" not in cluster.data and not Path(cluster.data).is_absolute():
        where = cluster.file.where(*place, f"{prefix}data")
        yield f"{where}: data {cluster.data}: give a URI (s3://..., gs://...), or an absolute path as the head sees it"


def _placeholders(file: ParsedFile) -> Iterator[str]:
    for path, text in file.values():
        if found := re.findall(rf"[\w:/.@~-]*{PLACEHOLDER}[\w:/.@~-]*", text):
            yield f"{file.where(*path)}: {', '.join(dict.fromkeys(found))}: fill in your own value"


def _capacity(cluster: ClusterFile, need: WorkerResources) -> Iterator[str]:
    """Whether all nodes together can hold one trial."""
    nodes = cluster.at_full_size(lambda node: node.workers(need))
    room = sum(node.most * node.workers(need) for node in nodes if node.most)
    if room >= need.workers:
        return
    if need.gpus and not any(node.most and (node.gpus is None or node.gpus) for node in cluster.nodes):
        where = cluster.nodes[-1].place if cluster.kind != RAY_UP else cluster.file.where("available_node_types")
        yield f"{where}: a trial needs {need}, and no node type has a GPU; add one, or use no GPUs"
        return
    types = ", ".join(
        f"{node.name} ({node.cpus:g} CPUs, {node.gpus or 0:g} GPUs, at most {node.most})"
        for node in cluster.nodes
        if node.cpus is not None
    )
    where = next((node.place for node in cluster.nodes if not node.head), cluster.file.origin)
    yield (
        f"{where}: a trial needs {need}, and all nodes together can hold {room:g}: {types}; allow more or larger "
        "nodes, or reduce what a trial needs"
    )


def _versions(file: ParsedFile) -> Iterator[str]:
    """Ray refuses nodes and jobs whose Python or Ray version differs from the head's."""
    python, ray = ".".join(platform.python_version_tuple()[:2]), metadata.version("ray")
    for path, text in file.values():
        where = file.where(*path)
        if path[-1] in ("image", "head_image", "worker_image", "image_uri"):
            if not re.search(r":[^/]*\d[^/]*$|@sha256:", text):
                yield f"{where}: the image {text} has no version; give its full tag"
            elif found := IMAGE.match(text):
                if found["ray"] != ray:
                    yield f"{where}: the image has Ray {found['ray']}, this machine has {ray}; use the same"
                if (theirs := f"3.{found['python'][1:]}") != python:
                    yield f"{where}: the image has Python {theirs}, this machine has {python}; use the same"
        elif path[-1] == "rayVersion" and text != ray:
            yield f"{where}: Ray {text}, this machine has {ray}; use the same"
        elif not COMMANDS.isdisjoint(path) and (pin := RAY_PIN.search(text)) and pin["ray"] != ray:
            yield f"{where}: installs Ray {pin['ray']}, this machine has {ray}; use the same"
    for path, source in file_mounts(file):
        pin = RAY_PIN.search(source.read_text()) if source.suffix == ".lock" and source.is_file() else None
        if pin and pin["ray"] != ray:
            yield f"{file.where(*path)}: {source} pins Ray {pin['ray']}, this machine has {ray}; use the same"


def _texts(file: ParsedFile) -> Iterator[str]:
    """Open ports, secrets and unchecked downloads, anywhere in the file."""
    texts = dict(file.values())
    for path, text in texts.items():
        where = file.where(*path)
        if WORLD.search(text):
            yield f"{where}: {text} opens a port to the world; give your own network"
        if DASHBOARD.search(text):
            yield (
                f"{where}: the dashboard executes any code that it receives, and here it listens on every network; "
                "give --dashboard-host=127.0.0.1 (submit connects through SSH)"
            )
        for found in SECRET_VALUE.finditer(text):
            yield f"{where}: the secret {found['name']} is written in the file; let each node fetch it"
        name = texts.get((*path[:-1], "name"), "")  # Kubernetes' variables are a list of {name: ..., value: ...}
        if path[-1] == "value" and re.fullmatch(SECRET_NAME, name):
            yield f"{where}: the secret {name} is written in the file; take it from valueFrom: secretKeyRef"
        if text and text[0] != "$" and re.fullmatch(SECRET_NAME, path[-1]):  # as in a runtime_env's env_vars
            yield f"{where}: the secret {path[-1]} is written in the file; let each node fetch it"
        if PIPED.search(text):
            yield f"{where}: executes a download without a check; download a fixed version and compare its hash"
