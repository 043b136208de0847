"""Checks of RayCluster and RayJob files for KubeRay. The schema itself is checked by Kubernetes on `kubectl apply`."""

import json
from collections.abc import Iterator

import yaml

from fracray.cluster.files import KUBERAY, ClusterFile, kuberay_spec
from fracray.runtime.resources import PROMISED, promise


def kuberay_problems(cluster: ClusterFile) -> Iterator[str]:
    file = cluster.file
    if (kuberay_spec(file).get("authOptions") or {}).get("mode") != "token":
        where = file.where(*KUBERAY[cluster.kind], "authOptions")
        yield f"{where}: Ray's authentication is off; set authOptions: {{mode: token}}"
    for path, text in file.values():
        where, key = file.where(*path), path[-1]
        if key in ("type", "serviceType") and text in ("LoadBalancer", "NodePort"):
            yield f"{where}: a service of type {text} can be reached from outside the cluster; use ClusterIP"
        if (key, text) in (("enableIngress", "True"), ("hostNetwork", "True")) or key == "hostPort":
            yield f"{where}: with {key}, others than Ray's pods can reach them; remove it"
    if cluster.kind == "RayJob":
        yield from _promised(cluster)
        yield from _ends(cluster)


def kuberay_warnings(cluster: ClusterFile) -> Iterator[str]:
    """Pods that are never started; and in a cluster that stays, those that cost money while nothing runs."""
    file, spec = cluster.file, kuberay_spec(cluster.file)
    workers = [node for node in cluster.nodes if not node.head]
    for at, (group, node) in enumerate(zip(spec.get("workerGroupSpecs") or [], workers, strict=True)):
        place = (*KUBERAY[cluster.kind], "workerGroupSpecs", str(at))
        most = (group or {}).get("maxReplicas")
        if not spec.get("enableInTreeAutoscaling") and isinstance(most, int) and most > node.most:
            yield (
                f"{file.where(*place, 'maxReplicas')}: warning: {node.name} has {node.most} pods and never more: "
                "enableInTreeAutoscaling is off; set it to true"
            )
        if cluster.kind == "RayCluster" and node.least:
            yield (
                f"{file.where(*place, 'minReplicas')}: warning: {node.least} of {node.name} cost money until `kubectl "
                "delete`; with enableInTreeAutoscaling: true and minReplicas: 0 they stop"
            )


def _ends(cluster: ClusterFile) -> Iterator[str]:
    """Whether the pods of a RayJob end with its search, and whether the search ends at all."""
    file = cluster.file
    spec = file.tree.get("spec") or {}
    if not spec.get("shutdownAfterJobFinishes") and not spec.get("deletionStrategy"):
        where = file.where("spec", "shutdownAfterJobFinishes")
        yield f"{where}: the pods cost money after the search has ended; set shutdownAfterJobFinishes: true"
    if "activeDeadlineSeconds" not in spec:
        yield f"{file.where('spec')}: activeDeadlineSeconds is missing: the limit of what the job can cost"


def _promised(cluster: ClusterFile) -> Iterator[str]:
    """A RayJob's search reads from its environment which pods it may get; for other kinds `submit` sets this."""
    known = [node.machine for node in cluster.nodes if node.machine is not None]
    if len(known) < len(cluster.nodes):
        return
    expected = promise(known)[PROMISED]
    where = cluster.file.where("spec", "runtimeEnvYAML")
    try:
        given = yaml.safe_load(cluster.file.tree["spec"].get("runtimeEnvYAML") or "")["env_vars"][PROMISED]
        same = json.loads(given) == json.loads(expected)
    except (TypeError, KeyError, ValueError, yaml.YAMLError):
        same = False
    if not same:
        yield f"{where}: {PROMISED} does not match the pods that this file allows; set it to {expected}"
