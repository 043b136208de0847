"""Cluster files: what Ray's launcher, KubeRay or Slurm is to start, as machines and what each of them has.

Reads Ray's cluster YAML (`ray up`), KubeRay's RayCluster and RayJob, and Slurm's batch scripts. Starts nothing and
reaches no network.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fracray.cluster.slurm import COMMANDS, OPTIONS, is_batch, read_batch
from fracray.errors import InputError
from fracray.runtime.resources import Machine
from fracray.runtime.yaml_lines import ParsedFile, read_yaml

LAUNCHER, SLURM = "ray up", "Slurm"
# Where the cluster's spec stands in the files of KubeRay.
KUBERAY = {"RayCluster": ("spec",), "RayJob": ("spec", "rayClusterSpec")}
# Slurm's, in the order in which one stands before the others: of a node, of the one task on it, of the whole job.
GPU_OPTIONS = ("gpus-per-node", "gres", "gpus-per-task", "gpus")


@dataclass(frozen=True)
class Need:
    """What one worker of a trial asks for, and how many there are."""

    workers: int
    cpus: float
    gpus: float

    def __str__(self) -> str:
        gpus = f" and {self.gpus:g} GPU(s)" if self.gpus else ""
        return f"{self.workers} worker(s) of {self.cpus:g} CPU(s){gpus}"


@dataclass(frozen=True)
class NodeType:
    """A kind of machine: where it stands in the file, what each has, how many there are at least and at most.

    cpus, gpus: None where the file leaves them to be found out on the machine.
    """

    name: str
    place: str
    cpus: float | None
    gpus: float | None
    least: int
    most: int
    head: bool = False

    @property
    def machine(self) -> Machine | None:
        """As a search is told of it; None where the file does not say what it has."""
        return None if self.cpus is None else Machine(self.cpus, self.gpus or 0.0, self.most)

    def workers(self, need: Need) -> float:
        """How many workers of a trial fit one such machine; infinite where the file does not say what it has."""
        if self.machine is None or (need.gpus and self.gpus is None):
            return math.inf
        return self.machine.workers(need.cpus, need.gpus)


@dataclass(frozen=True)
class ClusterFile:
    """A cluster file: its kind (LAUNCHER, SLURM or one of KUBERAY), its machines, and what it says of storage."""

    kind: str
    file: ParsedFile
    nodes: tuple[NodeType, ...]
    storage: str | None
    data: str | None
    shared: tuple[str, ...]  # paths that all machines see alike
    cap: int | None = None  # machines there may be in all beside the head, whatever their types allow

    @property
    def most(self) -> int:
        """Machines there are at most, the head among them."""
        return sum(node.most for node in self.at_best(lambda node: 0.0))

    def at_best(self, worth: Callable[[NodeType], float]) -> tuple[NodeType, ...]:
        """The machines when the cluster is as large as it may be: under the cap, those that are worth the most."""
        left = math.inf if self.cap is None else self.cap
        granted = []
        for node in sorted(self.nodes, key=lambda node: (not node.head, -worth(node))):
            count = node.most if node.head else int(min(node.most, left))
            left -= 0 if node.head else count
            granted.append(replace(node, most=count))
        return tuple(granted)


def read_cluster(path: str | Path) -> ClusterFile:
    """Read a cluster file. Raises InputError, with the line, for one that is no YAML or of no known kind."""
    if is_batch(path):
        return _slurm(read_batch(path))
    file = read_yaml(path, "cluster file", " as in the files of cluster/")
    if file.tree.get("kind") in KUBERAY:
        return _kuberay(file)
    if "provider" in file.tree:
        return _launcher(file)
    raise InputError(
        f"{file.origin}: neither a cluster file of `ray up` (with a provider), nor a RayCluster or RayJob of KubeRay, "
        "nor a script for Slurm (which begins with #!)"
    )


def kuberay_spec(file: ParsedFile) -> dict[str, Any]:
    """The spec of the cluster in a file of KubeRay's. Raises InputError, with the line, where it is no mapping."""
    spec, root = file.tree, KUBERAY[str(file.tree["kind"])]
    for depth, key in enumerate(root, start=1):
        spec = _mapping(file, spec.get(key) or {}, *root[:depth])
    return spec


def _launcher(file: ParsedFile) -> ClusterFile:
    tree, cap = file.tree, None
    provider = _mapping(file, tree["provider"], "provider")
    told = _mapping(file, tree.get("metadata") or {}, "metadata")
    if provider.get("type") == "local":
        hosts = provider.get("worker_ips") or []
        if not isinstance(hosts, list):
            raise InputError(f"{file.where('provider', 'worker_ips')}: expected a list of machines")
        most = min(len(hosts), _count(tree.get("max_workers"), len(hosts)))
        least = min(most, _count(tree.get("min_workers"), len(hosts)))
        nodes = [NodeType("head", file.where("provider", "head_ip"), None, None, 1, 1, head=True)]
        if most:
            nodes.append(NodeType("workers", file.where("provider", "worker_ips"), None, None, least, most))
    else:
        cap = _count(tree.get("max_workers"), 2**31)
        types = _mapping(file, tree.get("available_node_types") or {}, "available_node_types")
        nodes = [_node_type(file, name, tree.get("head_node_type") == name, cap) for name in types]
    shared = told.get("shared") or []
    if not isinstance(shared, list):
        raise InputError(f"{file.where('metadata', 'shared')}: expected a list of paths")
    return ClusterFile(
        LAUNCHER, file, tuple(nodes), told.get("storage"), told.get("data"), tuple(str(path) for path in shared), cap
    )


def _node_type(file: ParsedFile, name: str, head: bool, cap: int) -> NodeType:
    place = ("available_node_types", name)
    settings = _mapping(file, file.tree["available_node_types"][name], *place)
    resources = _mapping(file, settings.get("resources") or {}, *place, "resources")
    least = _count(settings.get("min_workers"), 0)
    most = 1 if head else min(cap, _count(settings.get("max_workers"), cap))
    cpus, gpus = resources.get("CPU"), resources.get("GPU", 0 if "CPU" in resources else None)
    return NodeType(name, file.where(*place), cpus, gpus, 1 if head else least, most, head)


def _kuberay(file: ParsedFile) -> ClusterFile:
    kind = str(file.tree["kind"])
    root, spec = KUBERAY[kind], kuberay_spec(file)
    groups = [(spec.get("headGroupSpec") or {}, (*root, "headGroupSpec"), True)]
    groups += [
        (group or {}, (*root, "workerGroupSpecs", str(at)), False)
        for at, group in enumerate(spec.get("workerGroupSpecs") or [])
    ]
    nodes = []
    for group, place, head in groups:
        start = group.get("rayStartParams") or {}
        limits = _container(group).get("resources", {}).get("limits", {})
        cpus, gpus = start.get("num-cpus", limits.get("cpu")), start.get("num-gpus", limits.get("nvidia.com/gpu", 0))
        replicas = _count(group.get("replicas"), 1)
        nodes.append(
            NodeType(
                "head" if head else str(group.get("groupName", "workers")),
                file.where(*place),
                None if cpus is None else _quantity(cpus),
                _quantity(gpus),
                1 if head else _count(group.get("minReplicas"), replicas),
                1 if head else _count(group.get("maxReplicas"), replicas),
                head,
            )
        )
    notes = (file.tree.get("metadata") or {}).get("annotations") or {}
    shared = [path.strip() for path in str(notes.get("fracray/shared") or "").split(",")]
    return ClusterFile(
        kind,
        file,
        tuple(nodes),
        notes.get("fracray/storage"),
        notes.get("fracray/data"),
        tuple(path for path in shared if path),
    )


def _slurm(file: ParsedFile) -> ClusterFile:
    """A batch script, whose job is the cluster: the same CPUs and GPUs on each of its nodes."""
    options = file.tree[OPTIONS]
    place = file.where(OPTIONS, "nodes")
    counts = re.fullmatch(r"(\d+)(?:-(\d+))?", options.get("nodes", "1"))
    if counts is None:
        raise InputError(f"{place}: --nodes={options['nodes']}: a number of nodes, or two as 2-4")
    least, most = int(counts[1]), int(counts[2] or counts[1])
    cpus = _number(file, "cpus-per-task")
    given = next((name for name in GPU_OPTIONS if name in options), None)
    gpus = (_number(file, given) or 0.0) / (most if given == "gpus" else 1) if given else 0.0
    node = NodeType("nodes", place, 1.0 if cpus is None else cpus, gpus, least, most)
    # What the script calls `shared` is where its environment and token lie: on every node, or it would not run.
    assigned = [re.match(r"shared=(['\"]?)(?P<path>[^\s'\"]+)\1", command) for command in file.tree[COMMANDS]]
    return ClusterFile(SLURM, file, (node,), None, None, tuple(found["path"] for found in assigned if found))


def _number(file: ParsedFile, option: str) -> float | None:
    """An option's number, of GPUs too: 16, a100:2, gpu:2 or gpu:a100:2 among others; None where it is not given."""
    text = file.tree[OPTIONS].get(option)
    if text is None:
        return None
    parts = [part for part in text.split(",") if option != "gres" or re.match(r"gpu\b", part)]
    found = [re.fullmatch(r"(?:[A-Za-z][\w.-]*:){0,2}(\d+)|gpu(?::[A-Za-z][\w.-]*)?", part) for part in parts]
    if not all(found):
        raise InputError(f"{file.where(OPTIONS, option)}: --{option}={text}: expected a number, as 2 or gpu:a100:2")
    return math.fsum(float(one[1] or 1) for one in found if one)


def _container(group: Mapping[str, Any]) -> dict[str, Any]:
    """The first container of a pod template: Ray's."""
    containers = group.get("template", {}).get("spec", {}).get("containers") or [{}]
    return dict(containers[0])


def _quantity(value: Any) -> float:
    """Kubernetes' quantity of CPUs or GPUs: 4, '4' or '500m'."""
    text = str(value)
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)


def _count(value: Any, default: int) -> int:
    return value if isinstance(value, int) else default


def _mapping(file: ParsedFile, value: Any, *keys: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{file.where(*keys)}: {keys[-1]} must be a mapping")
    return value
