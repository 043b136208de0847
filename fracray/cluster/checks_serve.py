"""Checks of a service: a configuration of Ray Serve, alone or in KubeRay's RayService. Starts nothing.

Ray Serve itself ignores keys that it does not know, and tells of a wrong value only once the service is deployed.
"""

import logging
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from pydantic import BaseModel, ValidationError

from fracray.cluster.deployments import (
    HTTP,
    REPLICA,
    Place,
    applications,
    at_place,
    deployments,
    fitting,
    number,
    room_problems,
)
from fracray.cluster.files import SERVE, SERVICES, ClusterFile
from fracray.errors import InputError, nearest
from fracray.runtime.locations import refuse_secret
from fracray.runtime.yaml_lines import ParsedFile
from fracray.serving.settings import ServiceSettings

BUILDER = "fracray.serving.service:build"
DEPLOYMENT: Place = ("applications", "*", "deployments", "*")
SCALING: Place = (*DEPLOYMENT, "autoscaling_config")


def serve_problems(cluster: ClusterFile) -> Iterator[str]:
    file, root = cluster.file, SERVICES[cluster.kind]
    config = at_place(file.tree, root)
    if not config:
        yield f"{file.where(*root)}: serveConfigV2 is missing: what is served; see cluster/rayservice.yaml"
        return
    found = list(_unknown_keys(file, root, config))
    yield from found or _schema(file, root, config)
    yield from _http(cluster, root, config.get("http_options") or {})
    if not config.get("applications"):
        yield f"{file.where(*root, 'applications')}: nothing is served: applications is empty; see cluster/serve.yaml"
    for at, application in enumerate(config.get("applications") or []):
        yield from _application(file, (*root, "applications", str(at)), application or {})
    yield from room_problems(cluster)
    if cluster.kind != SERVE:
        yield from _mounted(cluster)


def serve_warnings(cluster: ClusterFile) -> Iterator[str]:
    """A log that keeps something of a request; more replicas than the nodes can hold, which would wait for ever."""
    yield from _logged(cluster)
    for one in deployments(cluster) if cluster.nodes else ():
        if one.least <= (room := fitting(cluster, one)) < one.most and one.name == REPLICA:
            where = cluster.file.where(*one.place)
            yield f"{where}: warning: all nodes together can hold {room:g} of at most {one.most} replicas"


def _logged(cluster: ClusterFile) -> Iterator[str]:
    """Where Ray Serve would write a line for each request: by its default, in the HTTP server's log.

    The line has no name of a picture, and of the URL only the kind of path, but the identifier that a client or a proxy
    may have given the request (X-Request-ID), and when it came. Of a deployment `BUILDER` has it off, unless the file
    says otherwise; what the file says of an application does not reach it.
    """
    file, root = cluster.file, SERVICES[cluster.kind]
    model, name = _schemas()[("logging_config",)], "logging_config"
    given: list[tuple[Place, Any]] = [(root, (at_place(file.tree, root) or {}).get(name) or {})]
    for place, application in applications(cluster):
        for at, one in enumerate(application.get("deployments") or []):
            if (one or {}).get(name) is not None:
                given.append(((*place, "deployments", str(at)), one[name]))
    for place, tree in given:
        try:
            found: Any = model.model_validate(tree)
        except ValidationError:  # a problem
            continue
        if found.enable_access_log and logging.getLevelName(found.log_level) <= logging.INFO:
            yield (
                f"{file.where(*place, name)}: warning: Ray Serve writes each request into a log, with the X-Request-ID "
                "that a client or a proxy has given it, which may name a patient; set logging_config: {log_level: "
                "ERROR, enable_access_log: false}"
            )


# ---------------------------------------------------------------- Ray Serve's own schema


def _schemas() -> Mapping[Place, type[BaseModel]]:
    """Ray Serve's models by the places that they describe; * is any entry of a list."""
    try:
        from ray.serve import schema
        from ray.serve.config import AutoscalingConfig
    except ImportError as error:
        raise InputError(f'{error.name} is not installed; install it with: pip install "fracray[serve]"') from None
    application, deployment = DEPLOYMENT[:2], DEPLOYMENT
    return {
        (): schema.ServeDeploySchema,
        ("http_options",): schema.HTTPOptionsSchema,
        ("logging_config",): schema.LoggingConfig,
        application: schema.ServeApplicationSchema,
        (*application, "logging_config"): schema.LoggingConfig,
        deployment: schema.DeploymentSchema,
        (*deployment, "logging_config"): schema.LoggingConfig,
        (*deployment, "ray_actor_options"): schema.RayActorOptionsSchema,
        SCALING: AutoscalingConfig,
    }


def _unknown_keys(file: ParsedFile, root: Place, config: dict[str, Any]) -> Iterator[str]:
    for pattern, model in _schemas().items():
        for place, tree in _matching(config, pattern, root):
            for key in tree:
                if key not in model.model_fields:
                    hint = nearest(str(key), model.model_fields)
                    yield f"{file.where(*place, str(key))}: Ray Serve has no setting '{key}'{hint}"


def _matching(tree: Any, pattern: Place, place: Place) -> Iterator[tuple[Place, dict[str, Any]]]:
    if not pattern:
        if isinstance(tree, dict):
            yield place, tree
    elif pattern[0] == "*":
        for at, inner in enumerate(tree if isinstance(tree, list) else []):
            yield from _matching(inner, pattern[1:], (*place, str(at)))
    elif isinstance(tree, dict):
        yield from _matching(tree.get(pattern[0]), pattern[1:], (*place, pattern[0]))


def _schema(file: ParsedFile, root: Place, config: dict[str, Any]) -> Iterator[str]:
    """What Ray Serve refuses when the file is deployed."""
    schemas = _schemas()
    # Where the whole allows any mapping, Ray Serve reads it by its model later.
    for pattern in ((), SCALING):
        for place, tree in _matching(config, pattern, root):
            try:
                schemas[pattern].model_validate(tree)
            except ValidationError as error:
                yield from dict.fromkeys(_lines(file, place, error, "Ray Serve"))
            except Exception as error:  # its own checks raise all kinds of errors
                yield f"{file.where(*place)}: Ray Serve cannot use it: {' '.join(str(error).split())}"


def _lines(file: ParsedFile, place: Place, error: ValidationError, who: str) -> Iterator[str]:
    """Each fault of a model, with the line of the value; the names of alternatives in the path are left out."""
    for fault in error.errors():
        path: Place = place
        for key in map(str, fault["loc"]):
            if (*path, key) in file.lines:
                path = (*path, key)
        name, why = str(fault["loc"][-1]) if fault["loc"] else "", str(fault["msg"]).removeprefix("Value error, ")
        if fault["type"] == "missing":
            yield f"{file.where(*path)}: {name} is missing: {who} needs it"
        elif fault["type"] == "extra_forbidden":
            hint = nearest(name, ServiceSettings.model_fields)
            yield f"{file.where(*path)}: {who} has no setting '{name}'{hint}"
        else:
            yield f"{file.where(*path)}: {name}: {' '.join(why.split())}"


# ---------------------------------------------------------------- fracray's application


def _http(cluster: ClusterFile, root: Place, options: Mapping[str, Any]) -> Iterator[str]:
    file, where = cluster.file, cluster.file.where(*root, "http_options")
    for key, example in (("host", "127.0.0.1" if cluster.kind == SERVE else "0.0.0.0"), ("port", "8000")):
        if options.get(key) is None:
            yield f"{where}: http_options.{key} is missing: say where the service listens, for example {example}"
    port = options.get("port")
    if port is not None and not (isinstance(port, int) and 1 <= port <= 65535):
        yield f"{file.where(*root, 'http_options', 'port')}: port {port}: expected a number from 1 to 65535"
    if cluster.kind == SERVE:
        return
    if options.get("host") not in (None, "0.0.0.0"):
        where = file.where(*root, "http_options", "host")
        yield f"{where}: the Kubernetes service does not reach {options['host']}; set host: 0.0.0.0"
    head = ("spec", "rayClusterConfig", "headGroupSpec", "template", "spec", "containers")
    containers = at_place(file.tree, head) or [{}]
    ports = (containers[0] or {}).get("ports") or []
    named = {str(port.get("name")): port.get("containerPort") for port in ports if isinstance(port, dict)}
    if port is not None and named.get("serve") != port:
        place = file.where(*head, "0", "ports")
        yield f"{place}: the head's container has no port {port} with the name serve, which KubeRay's service uses"


def _application(file: ParsedFile, place: Place, application: Mapping[str, Any]) -> Iterator[str]:
    """What fracray's own application says of its settings and deployments."""
    if application.get("import_path") is None:  # Ray Serve's schema says so
        return
    path = str(application["import_path"])
    if path != BUILDER:
        where = file.where(*place, "import_path")
        yield f"{where}: {path} is no application of fracray{nearest(path, [BUILDER])}; write import_path: {BUILDER}"
        return
    if application.get("route_prefix", "/") != "/":
        yield f"{file.where(*place, 'route_prefix')}: the page asks for its files at /; set route_prefix: /"
    args = application.get("args") or {}
    try:
        ServiceSettings.model_validate(args)
    except ValidationError as error:
        yield from _lines(file, (*place, "args"), error, "the service")
    yield from _places(file, (*place, "args"), args)
    seen: set[str] = set()
    for at, one in enumerate(application.get("deployments") or []):
        inside = (*place, "deployments", str(at))
        yield from _deployment(file, inside, one or {}, args)
        if (name := str((one or {}).get("name"))) in seen:
            yield f"{file.where(*inside)}: the deployment '{name}' is given twice; remove one of them"
        seen.add(name)


def _places(file: ParsedFile, place: Place, args: Mapping[str, Any]) -> Iterator[str]:
    checkpoint, token = args.get("checkpoint"), args.get("token_file")
    if checkpoint:
        where = file.where(*place, "checkpoint")
        try:
            refuse_secret(checkpoint)
        except InputError as error:
            yield f"{where}: {error}"
        if "://" not in checkpoint and not PurePosixPath(checkpoint).is_absolute():
            yield (
                f"{where}: checkpoint {checkpoint}: give a URI (s3://..., gs://...), or an absolute path on every node"
            )
    if not token:
        return
    where = file.where(*place, "token_file")
    if not token.startswith(("/", "~")):
        # Not repeated here: it may be the token itself.
        yield f"{where}: token_file is no absolute path; name the file with the token, as the nodes see it"
    if PurePosixPath(token).name == "auth_token":
        yield f"{where}: {token} looks like Ray's own token, with which clients could run any code; make another one"


def _mounted(cluster: ClusterFile) -> Iterator[str]:
    """Whether each pod of a RayService has the token, whose file a Kubernetes secret is mounted to."""
    spec = ("spec", "rayClusterConfig")
    tree = at_place(cluster.file.tree, spec) or {}
    groups: list[tuple[Place, Any]] = [((*spec, "headGroupSpec"), tree.get("headGroupSpec"))]
    for at, group in enumerate(tree.get("workerGroupSpecs") or []):
        groups.append(((*spec, "workerGroupSpecs", str(at)), group))
    for _, application in applications(cluster):
        token = str((application.get("args") or {}).get("token_file") or "")
        for place, group in groups if token else ():
            containers = at_place(group, ("template", "spec", "containers")) or []
            mounts = [mount for one in containers for mount in (one or {}).get("volumeMounts") or []]
            paths = [str(mount.get("mountPath")) for mount in mounts if isinstance(mount, dict)]
            if not any(PurePosixPath(token).is_relative_to(path) for path in paths):
                yield f"{cluster.file.where(*place)}: no volume of these pods has {token}; mount the token's secret"


def _deployment(file: ParsedFile, place: Place, given: Mapping[str, Any], args: Mapping[str, Any]) -> Iterator[str]:
    name = str(given.get("name"))
    if name not in (HTTP, REPLICA):
        where = file.where(*place, "name")
        yield f"{where}: there is no deployment '{name}'{nearest(name, (HTTP, REPLICA))}; there are http and replica"
        return
    if name == HTTP:
        return
    if (given.get("autoscaling_config") or {}).get("min_replicas") == 0:
        where = file.where(*place, "autoscaling_config", "min_replicas")
        yield f"{where}: without a replica the service answers 503 and none is started; keep at least 1"
    options, decoders = given.get("ray_actor_options") or {}, args.get("decoders", 1)
    if number(gpus := options.get("num_gpus")) > 1:
        where = file.where(*place, "ray_actor_options", "num_gpus")
        yield f"{where}: num_gpus {gpus:g}: a replica uses one GPU; give a share of one, from 0 to 1"
    cpus = number(options.get("num_cpus", 1))  # what Ray Serve takes where options are given without it
    if options and isinstance(decoders, int) and cpus < decoders:
        where = file.where(*place, "ray_actor_options", "num_cpus")
        yield f"{where}: a replica reserves {cpus:g} CPU(s) for {decoders} decoders; reserve one for each"
