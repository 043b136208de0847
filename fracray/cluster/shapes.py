"""What fracray reads in a cluster file has the form that it expects: a mapping, a list, a number, text.

Ray's and Kubernetes' own checks come later and see more; this one keeps the code behind it simple.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from fracray.errors import InputError
from fracray.runtime.yaml_lines import ParsedFile

MAPPING, LIST, TEXT, NUMBER, QUANTITY = (
    "a mapping",
    "a list",
    "text",
    "a number of at least 0",
    "a number such as 4, or 500m",
)
EACH = "*"  # any key of a mapping, any entry of a list; in a name, | stands for a dot

RAY_UP_SHAPES = {
    "provider": MAPPING,
    "provider.type": TEXT,
    "provider.worker_ips": LIST,
    "metadata": MAPPING,
    "metadata.storage": TEXT,
    "metadata.data": TEXT,
    "metadata.shared": LIST,
    "auth": MAPPING,
    "docker": MAPPING,
    "docker.run_options": LIST,
    "head_node_type": TEXT,
    "available_node_types": MAPPING,
    "available_node_types.*": MAPPING,
    "available_node_types.*.node_config": MAPPING,
    "available_node_types.*.resources": MAPPING,
    "available_node_types.*.resources.*": NUMBER,
    "file_mounts": MAPPING,
    "head_start_ray_commands": LIST,
    "worker_start_ray_commands": LIST,
}
_GROUP = {
    "": MAPPING,
    ".rayStartParams": MAPPING,
    ".rayStartParams.num-cpus": QUANTITY,
    ".rayStartParams.num-gpus": QUANTITY,
    ".template": MAPPING,
    ".template.spec": MAPPING,
    ".template.spec.containers": LIST,
    ".template.spec.containers.*": MAPPING,
    ".template.spec.containers.*.ports": LIST,
    ".template.spec.containers.*.volumeMounts": LIST,
    ".template.spec.containers.*.resources": MAPPING,
    ".template.spec.containers.*.resources.limits": MAPPING,
    ".template.spec.containers.*.resources.limits.cpu": QUANTITY,
    ".template.spec.containers.*.resources.limits.nvidia|com/gpu": QUANTITY,
}
_CLUSTER = {
    "": MAPPING,
    ".authOptions": MAPPING,
    ".workerGroupSpecs": LIST,
    **{f".headGroupSpec{path}": shape for path, shape in _GROUP.items()},
    **{f".workerGroupSpecs.*{path}": shape for path, shape in _GROUP.items()},
}
KUBERAY_SHAPES = {
    "metadata": MAPPING,
    "metadata.name": TEXT,
    "metadata.annotations": MAPPING,
    "metadata.annotations.*": TEXT,
    "spec": MAPPING,
    "spec.runtimeEnvYAML": TEXT,
    "spec.serveConfigV2": TEXT,
}


_SERVICE = {
    "applications": LIST,
    "applications.*": MAPPING,
    "applications.*.args": MAPPING,
    "applications.*.args.checkpoint": TEXT,
    "applications.*.args.token_file": TEXT,
    "applications.*.deployments": LIST,
    "applications.*.deployments.*": MAPPING,
    "applications.*.deployments.*.name": TEXT,
    "applications.*.deployments.*.autoscaling_config": MAPPING,
    "applications.*.deployments.*.ray_actor_options": MAPPING,
    "applications.*.deployments.*.ray_actor_options.num_cpus": NUMBER,
    "applications.*.deployments.*.ray_actor_options.num_gpus": NUMBER,
    "http_options": MAPPING,
}


def refuse_other_shapes(file: ParsedFile, shapes: Mapping[str, str]) -> None:
    """InputError, with the line, for the first value that has another form. An empty value is none."""
    for pattern, shape in shapes.items():
        keys = [key.replace("|", ".") for key in pattern.split(".") if key]
        for path, value in _found(file.tree, tuple(keys)):
            if value is not None and not _has(shape, value):
                raise InputError(f"{file.where(*path)}: {'.'.join(path)} = {_short(value)}: expected {shape}")


def kuberay_shapes(root: tuple[str, ...]) -> dict[str, str]:
    """The shapes of a KubeRay file whose cluster's spec is at `root`."""
    return KUBERAY_SHAPES | {".".join(root) + path: shape for path, shape in _CLUSTER.items()}


def service_shapes(root: tuple[str, ...]) -> dict[str, str]:
    """The shapes of a configuration of Ray Serve at `root`."""
    return {".".join((*root, path)): shape for path, shape in _SERVICE.items()}


def _found(tree: Any, keys: tuple[str, ...], before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if not keys:
        yield before, tree
        return
    key, *rest = keys
    if isinstance(tree, Mapping):
        inside = [(name, value) for name, value in tree.items() if key in (EACH, name)]
    else:
        inside = list(enumerate(tree)) if isinstance(tree, list) and key == EACH else []
    for name, value in inside:
        yield from _found(value, tuple(rest), (*before, str(name)))


def _has(shape: str, value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
    if shape == QUANTITY:
        return number or (isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?m?", value) is not None)
    if shape == NUMBER:
        return number
    return isinstance(value, {MAPPING: dict, LIST: list, TEXT: str}[shape])


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
