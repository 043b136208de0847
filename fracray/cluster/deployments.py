"""The deployments of a service in a cluster file, and whether its nodes can hold them. Starts nothing."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fracray.cluster.files import SERVICES, ClusterFile, NodeType

if TYPE_CHECKING:
    from fracray.runtime.resources import WorkerResources

HTTP, REPLICA = "http", "replica"  # the deployments of fracray's application
Place = tuple[str, ...]
ENDS = ("min_replicas", "max_replicas")
AUTO_MOST = 100  # replicas that Ray Serve starts at most for `num_replicas: auto`, where the file does not say


@dataclass(frozen=True)
class Deployment:
    """How many replicas of a deployment there are, and the CPUs and GPUs of each. place: its path in the file."""

    name: str
    place: Place
    least: int
    most: int
    cpus: float
    gpus: float


def deployments(cluster: ClusterFile) -> list[Deployment]:
    """Those of fracray's applications in the file, as the file says, or else as `serving.service` makes them."""
    found = []
    for place, application in applications(cluster):
        listed = {
            one.get("name"): ((*place, "deployments", str(at)), one)
            for at, one in enumerate(application.get("deployments") or [])
            if one
        }
        for name, cpus in ((HTTP, 1), (REPLICA, (application.get("args") or {}).get("decoders", 1))):
            where, given = listed.get(name, (place, {}))
            options = given.get("ray_actor_options") or {"num_cpus": cpus}
            scaled, count = given.get("autoscaling_config") or {}, given.get("num_replicas", 1)
            ends = {"min_replicas": 1, "max_replicas": AUTO_MOST} if count == "auto" else dict.fromkeys(ENDS, count)
            least, most = (
                value if isinstance(value, int) else 1 for value in (scaled.get(key, ends[key]) for key in ENDS)
            )
            amounts = (options.get(key, default) or 0 for key, default in (("num_cpus", 1), ("num_gpus", 0)))
            found.append(Deployment(name, where, least, most, *map(number, amounts)))
    return found


def number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def applications(cluster: ClusterFile) -> Iterator[tuple[Place, dict[str, Any]]]:
    """fracray's applications in the file, each with its path."""
    root = SERVICES[cluster.kind]
    for at, application in enumerate((at_place(cluster.file.tree, root) or {}).get("applications") or []):
        if str((application or {}).get("import_path", "")).startswith("fracray"):
            yield (*root, "applications", str(at)), application


def at_place(tree: Any, path: Place) -> Any:
    for key in path:
        tree = (tree or {}).get(key)
    return tree


def room_problems(cluster: ClusterFile) -> Iterator[str]:
    """Whether the nodes can hold the smallest numbers of replicas, of each deployment and of all of them together."""
    found = list(_alone(cluster))
    yield from found
    needed = deployments(cluster)
    if cluster.nodes and needed and not found and not _together(cluster, needed):
        amounts = ", ".join(f"{one.least} of {one.name} ({one.cpus:g} CPUs, {one.gpus:g} GPUs)" for one in needed)
        yield (
            f"{cluster.file.where(*needed[-1].place)}: the nodes can hold the replicas of each deployment, but not of "
            f"all of them together: {amounts}; allow more or larger nodes, or reduce what a replica needs"
        )


def _alone(cluster: ClusterFile) -> Iterator[str]:
    for one in deployments(cluster) if cluster.nodes else ():
        where, room = cluster.file.where(*one.place), fitting(cluster, one)
        gpus = f" and {one.gpus:g} GPU(s)" if one.gpus else ""
        needs = f"a replica of {one.name} needs {one.cpus:g} CPU(s){gpus}"
        if room >= one.least:
            continue
        if one.gpus and not any(node.most and (node.gpus is None or node.gpus) for node in cluster.nodes):
            yield f"{where}: {needs}, and no node has a GPU; add one, or use no GPUs"
        else:
            yield (
                f"{where}: {needs}, and all nodes together can hold {room:g} of {one.least}; allow more or larger "
                "nodes, or reduce what a replica needs"
            )


def fitting(cluster: ClusterFile, one: Deployment) -> float:
    """How many replicas of a deployment fit all nodes at their largest number."""
    if not one.cpus and not one.gpus:
        return one.most
    return sum(node.most * node.workers(_need(one)) for node in _at_full_size(cluster, one))


def _need(one: Deployment) -> "WorkerResources":
    """What a replica needs."""
    from fracray.runtime.resources import WorkerResources

    return WorkerResources(1, one.cpus, one.gpus)


def _at_full_size(cluster: ClusterFile, one: Deployment) -> list[NodeType]:
    """The nodes at their largest number; where that is too many for the cluster, those that suit this come first."""
    need = _need(one)
    return [node for node in cluster.at_full_size(lambda node: node.workers(need)) if node.most]


def _together(cluster: ClusterFile, needed: Sequence[Deployment]) -> bool:
    """Whether the smallest numbers of replicas of all deployments fit the nodes at their largest number.

    Those that need most choose first. They fill one node after another, or spread: if either fits, Ray may find it.
    """
    chosen = sorted(needed, key=lambda one: (-one.gpus, -one.cpus))
    replicas = [one for one in chosen for _ in range(one.least)]
    for one in chosen:
        nodes = _at_full_size(cluster, one)
        if any(node.cpus is None for node in nodes):  # the file does not say what they have
            return True
        sizes = [(node.gpus or 0.0, node.cpus or 0.0) for node in nodes for _ in range(min(node.most, len(replicas)))]
        if _placed(replicas, sizes, lambda left: left) or _placed(replicas, sizes, lambda left: (-left[1], left[0])):
            return True
    return False


def _placed(
    replicas: Sequence[Deployment],
    sizes: Sequence[tuple[float, float]],
    order: Callable[[tuple[float, float]], tuple[float, float]],
) -> bool:
    """Whether all find a place, each on the first in this order of the nodes (GPUs, CPUs) that have room for it."""
    left = list(sizes)
    for one in replicas:
        places = [at for at, (gpus, cpus) in enumerate(left) if gpus + 1e-9 >= one.gpus and cpus + 1e-9 >= one.cpus]
        if not places:
            return False
        at = min(places, key=lambda at: order(left[at]))
        left[at] = (left[at][0] - one.gpus, left[at][1] - one.cpus)
    return True
