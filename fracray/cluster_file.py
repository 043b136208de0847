"""Cluster files: what Ray's launcher and KubeRay are to start, and whether a search can run on it as its owner means.

Reads Ray's cluster YAML (`ray up`) and KubeRay's RayCluster and RayJob. Starts nothing and reaches no network.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fracray.errors import InputError
from fracray.marked import Marked, read_marked


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

    def workers(self, need: Need) -> float:
        """How many workers of a trial fit one such machine; infinite where the file does not say what it has."""
        if self.cpus is None or (need.gpus and self.gpus is None):
            return math.inf
        fit = self.cpus // need.cpus if need.cpus else math.inf
        return min(fit, (self.gpus or 0.0) // need.gpus) if need.gpus else fit


@dataclass(frozen=True)
class ClusterFile:
    """A cluster file: its kind ('ray up', 'RayCluster', 'RayJob'), its machines, and what it says of storage."""

    kind: str
    file: Marked
    nodes: tuple[NodeType, ...]
    storage: str | None
    data: str | None
    shared: tuple[str, ...]  # paths that all machines see alike

    @property
    def most(self) -> int:
        """Machines there are at most, the head among them."""
        return sum(node.most for node in self.nodes)


def read_cluster(path: str | Path) -> ClusterFile:
    """Read a cluster file. Raises InputError, with the line, for one that is no YAML or of no known kind."""
    file = read_marked(path, "cluster file")
    if file.tree.get("kind") in ("RayCluster", "RayJob"):
        return _kuberay(file)
    if "provider" in file.tree:
        return _launcher(file)
    raise InputError(
        f"{file.origin}: neither a cluster file of `ray up` (with a provider) nor a RayCluster or RayJob of KubeRay"
    )


def _launcher(file: Marked) -> ClusterFile:
    tree = file.tree
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
        "ray up", file, tuple(nodes), told.get("storage"), told.get("data"), tuple(str(path) for path in shared)
    )


def _node_type(file: Marked, name: str, head: bool, cap: int) -> NodeType:
    place = ("available_node_types", name)
    settings = _mapping(file, file.tree["available_node_types"][name], *place)
    resources = _mapping(file, settings.get("resources") or {}, *place, "resources")
    least = _count(settings.get("min_workers"), 0)
    most = 1 if head else min(cap, _count(settings.get("max_workers"), cap))
    cpus, gpus = resources.get("CPU"), resources.get("GPU", 0 if "CPU" in resources else None)
    return NodeType(name, file.where(*place), cpus, gpus, 1 if head else least, most, head)


def _kuberay(file: Marked) -> ClusterFile:
    kind = str(file.tree["kind"])
    root = ("spec",) if kind == "RayCluster" else ("spec", "rayClusterSpec")
    spec = file.tree
    for key in root:
        spec = _mapping(file, spec.get(key) or {}, *root)
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
    return ClusterFile(kind, file, tuple(nodes), notes.get("fracray/storage"), notes.get("fracray/data"), ())


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


def _mapping(file: Marked, value: Any, *keys: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{file.where(*keys)}: {keys[-1]} must be a mapping")
    return value
