"""Cluster files: the types of nodes that a file starts, and what each node has.

Reads cluster files of `ray up`, KubeRay's RayCluster, RayJob and RayService, Slurm's batch scripts, and configurations
of Ray Serve, which name no nodes. Starts nothing and contacts no network.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fracray.cluster.shapes import RAY_UP_SHAPES, kuberay_shapes, refuse_other_shapes, service_shapes
from fracray.cluster.slurm import COMMANDS, OPTIONS, is_batch, read_batch
from fracray.errors import InputError
from fracray.runtime.resources import Machine, WorkerResources
from fracray.runtime.yaml_lines import ParsedFile, parse_yaml, read_yaml

RAY_UP, SLURM, SERVE = "ray up", "Slurm", "Ray Serve"
# The kinds of KubeRay, and the path to the cluster's spec in each.
KUBERAY = {"RayCluster": ("spec",), "RayJob": ("spec", "rayClusterSpec"), "RayService": ("spec", "rayClusterConfig")}
# The kinds that describe a service, and the path to Ray Serve's configuration in each.
SERVICES: Mapping[str, tuple[str, ...]] = {SERVE: (), "RayService": ("spec", "serveConfigV2")}
# Slurm's options for GPUs; the first one that is given counts: per node, per task (one on each node), per job.
GPU_OPTIONS = ("gpus-per-node", "gres", "gpus-per-task", "gpus")


@dataclass(frozen=True)
class NodeType:
    """A type of node: its line in the file, its resources, and the smallest and the largest number of nodes.

    place: as FILE:LINE. cpus, gpus: of one node; None where the file does not say, and Ray counts them on the node.
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
        """The nodes of this type as a search needs them; None where the file does not say what a node has."""
        return None if self.cpus is None else Machine(self.cpus, self.gpus or 0.0, self.most)

    def workers(self, need: WorkerResources) -> float:
        """Number of trial workers that fit on one such node; infinite where the file does not say what it has."""
        if self.machine is None or (need.gpus and self.gpus is None):
            return math.inf
        return self.machine.workers(need.cpus, need.gpus)


@dataclass(frozen=True)
class ClusterFile:
    """A cluster file: its kind (RAY_UP, SLURM, SERVE or one of KUBERAY), its types of nodes, and its places for files.

    shared: paths that show the same files on all nodes. cap: largest number of nodes of all types without the head.
    """

    kind: str
    file: ParsedFile
    nodes: tuple[NodeType, ...]
    storage: str | None
    data: str | None
    shared: tuple[str, ...]
    cap: int | None = None

    @property
    def most(self) -> int:
        """Largest number of nodes, with the head."""
        return sum(node.most for node in self.at_full_size(lambda node: 0.0))

    def at_full_size(self, value: Callable[[NodeType], float]) -> tuple[NodeType, ...]:
        """The node types with their counts at the cluster's largest size; under the cap the most valuable first."""
        left = math.inf if self.cap is None else self.cap
        granted = []
        for node in sorted(self.nodes, key=lambda node: (not node.head, -value(node))):
            count = node.most if node.head else int(min(node.most, left))
            left -= 0 if node.head else count
            granted.append(replace(node, most=count))
        return tuple(granted)


def read_cluster(path: str | Path) -> ClusterFile:
    """Read a cluster file. Raises InputError, with the line, where it is no YAML or no cluster file."""
    if is_batch(path):
        return _slurm(read_batch(path))
    file = read_yaml(path, "cluster file", " as in the files of cluster/")
    if (root := KUBERAY.get(str(file.tree.get("kind")))) is not None:
        refuse_other_shapes(file, kuberay_shapes(root))
        return _kuberay(_with_service(file))
    if "provider" in file.tree:
        refuse_other_shapes(file, RAY_UP_SHAPES)
        return _ray_up(file)
    if "applications" in file.tree:
        refuse_other_shapes(file, service_shapes(SERVICES[SERVE]))
        return ClusterFile(SERVE, file, (), None, None, ())
    raise InputError(
        f"{file.origin}: not a cluster file: a file for `ray up` has a provider, one for KubeRay has kind "
        f"{', '.join(KUBERAY)}, one for Ray Serve has applications, a Slurm script starts with #!"
    )


def _with_service(file: ParsedFile) -> ParsedFile:
    """A KubeRay file with the tree of its `serveConfigV2` in place of the text, and the lines of that."""
    root = SERVICES["RayService"]
    text = (file.tree.get("spec") or {}).get(root[-1])
    if file.tree["kind"] != "RayService" or not text:
        return file
    service = parse_yaml(text, file.origin, before=file.lines[root])  # the text starts below its key
    tree = {**file.tree, "spec": {**file.tree["spec"], root[-1]: service.tree}}
    lines = {**file.lines} | {(*root, *path): line for path, line in service.lines.items()}
    found = ParsedFile(file.origin, tree, lines)
    refuse_other_shapes(found, service_shapes(root))
    return found


def kuberay_spec(file: ParsedFile) -> dict[str, Any]:
    """The cluster's spec in a KubeRay file."""
    spec = file.tree
    for key in KUBERAY[str(file.tree["kind"])]:
        spec = spec.get(key) or {}
    return spec


def _ray_up(file: ParsedFile) -> ClusterFile:
    tree, cap = file.tree, None
    provider, notes = tree["provider"] or {}, tree.get("metadata") or {}
    if provider.get("type") == "local":
        hosts = provider.get("worker_ips") or []
        most = min(len(hosts), _count(tree.get("max_workers"), len(hosts)))
        least = min(most, _count(tree.get("min_workers"), len(hosts)))
        nodes = [NodeType("head", file.where("provider", "head_ip"), None, None, 1, 1, head=True)]
        if most:
            nodes.append(NodeType("workers", file.where("provider", "worker_ips"), None, None, least, most))
    else:
        cap = _count(tree.get("max_workers"), 2**31)
        types = tree.get("available_node_types") or {}
        nodes = [_node_type(file, name, tree.get("head_node_type") == name, cap) for name in types]
    shared = notes.get("shared") or []
    return ClusterFile(
        RAY_UP, file, tuple(nodes), notes.get("storage"), notes.get("data"), tuple(str(path) for path in shared), cap
    )


def _node_type(file: ParsedFile, name: str, head: bool, cap: int) -> NodeType:
    place = ("available_node_types", name)
    settings = file.tree["available_node_types"][name] or {}
    resources = settings.get("resources") or {}
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
        limits = (_container(group).get("resources") or {}).get("limits") or {}
        cpus, gpus = (
            limits.get(limit) if start.get(name) is None else start[name]
            for name, limit in (("num-cpus", "cpu"), ("num-gpus", "nvidia.com/gpu"))
        )
        replicas = _count(group.get("replicas"), 1)
        least, most = _count(group.get("minReplicas"), replicas), _count(group.get("maxReplicas"), replicas)
        if not spec.get("enableInTreeAutoscaling"):  # nothing starts or stops pods
            least = most = min(max(replicas, least), most)
        nodes.append(
            NodeType(
                "head" if head else str(group.get("groupName", "workers")),
                file.where(*place),
                None if cpus is None else _quantity(cpus),
                _quantity(gpus or 0),
                1 if head else least,
                1 if head else most,
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
    """A batch script, whose job is the cluster. All its nodes have the same CPUs and GPUs."""
    options = file.tree[OPTIONS]
    place = file.where(OPTIONS, "nodes")
    counts = re.fullmatch(r"(\d+)(?:-(\d+))?", options.get("nodes", "1"))
    if counts is None:
        raise InputError(f"{place}: --nodes={options['nodes']}: expected a number of nodes, such as 2 or 2-4")
    least, most = int(counts[1]), int(counts[2] or counts[1])
    cpus = _number(file, "cpus-per-task")
    given = next((name for name in GPU_OPTIONS if name in options), None)
    gpus = (_number(file, given) or 0.0) / (most if given == "gpus" else 1) if given else 0.0
    node = NodeType("nodes", place, 1.0 if cpus is None else cpus, gpus, least, most)
    # The script reads its environment and token from the folder `shared`, so all nodes must see it.
    assigned = [re.match(r"shared=(['\"]?)(?P<path>[^\s'\"]+)\1", command) for command in file.tree[COMMANDS]]
    return ClusterFile(SLURM, file, (node,), None, None, tuple(found["path"] for found in assigned if found))


def _number(file: ParsedFile, option: str) -> float | None:
    """The number in an option such as 16, a100:2, gpu:2 or gpu:a100:2; None where the option is not given."""
    text = file.tree[OPTIONS].get(option)
    if text is None:
        return None
    parts = [part for part in text.split(",") if option != "gres" or re.match(r"gpu\b", part)]
    found = [re.fullmatch(r"(?:[A-Za-z][\w.-]*:){0,2}(\d+)|gpu(?::[A-Za-z][\w.-]*)?", part) for part in parts]
    if not all(found):
        raise InputError(f"{file.where(OPTIONS, option)}: --{option}={text}: expected a number, as in 2 or gpu:a100:2")
    return math.fsum(float(one[1] or 1) for one in found if one)


def _container(group: Mapping[str, Any]) -> Mapping[str, Any]:
    """The first container of a pod template, in which Ray runs."""
    containers = ((group.get("template") or {}).get("spec") or {}).get("containers") or [{}]
    return containers[0] or {}


def _quantity(value: Any) -> float:
    """A Kubernetes quantity of CPUs or GPUs: 4, '4' or '500m'."""
    text = str(value)
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)


def _count(value: Any, default: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else default
