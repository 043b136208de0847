"""Rehearsal: cluster/ray*.yaml, for KubeRay, against the schemas of Kubernetes, KubeRay and Ray Serve."""

import copy
import json
import shlex
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from fracray import tune
from fracray.cluster.files import read_cluster
from fracray.runtime.resources import PROMISED, Machine, machines

pytestmark = pytest.mark.cluster
HERE = Path(__file__).parent
ROOT = HERE.parent.parent
SCHEMA = json.loads((HERE / "kuberay.schema.json").read_text())
FILES = ("raycluster.yaml", "rayjob.yaml", "rayservice.yaml")
KUBERNETES = ("1.30", "1.34")


def tree(name):
    return yaml.safe_load((ROOT / "cluster" / name).read_text())


def cluster_spec(resource):
    spec = resource["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def groups(resource):
    spec = cluster_spec(resource)
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def validate(resource):
    """Validate as `kubectl apply` does: by KubeRay's types, and each pod template by those of Kubernetes."""
    kind = resource.get("kind")
    jsonschema.validate(resource, {**SCHEMA, "oneOf": [{"$ref": f"#/$defs/{kind}"}]})
    for group in groups(resource):
        template = {"metadata": {}, **group["template"]}
        pod = {"apiVersion": "v1", "kind": "Pod", **template, "metadata": {"name": "pod", **template["metadata"]}}
        for version in KUBERNETES:
            kubernetes_validate.validate(pod, version, strict=True)


@pytest.mark.parametrize("name", FILES)
def test_the_file_is_valid(name):
    validate(tree(name))


def at(resource, path):
    *keys, last = path.split("/")
    for key in keys:
        resource = resource[int(key) if isinstance(resource, list) else key]
    return resource, last


CONTAINER = "headGroupSpec/template/spec/containers/0"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("enableInTreeAutoScaling", True),
        ("authOptions/mod", "token"),
        ("authOptions/mode", "tokens"),
        ("autoscalerOptions/idleTimeoutSecond", 300),
        ("autoscalerOptions/idleTimeoutSeconds", "300"),
        ("autoscalerOptions/version", "v3"),
        ("headGroupSpec/rayStartParams/num-cpus", 0),
        ("headGroupSpec/serviceType", "clusterIP"),
        ("workerGroupSpecs/0/maxReplica", 4),
        ("workerGroupSpecs/0/minReplicas", None),
        ("workerGroupSpecs/0/rayStartParams", None),
        (f"{CONTAINER}/imagePullPolice", "Always"),
        (f"{CONTAINER}/resources/limit", {"cpu": "4"}),
        (f"{CONTAINER}/ports/0/containerPort", "6379"),
        (f"{CONTAINER}/name", None),
        ("workerGroupSpecs/0/template/spec/serviceAccount_Name", "x"),
        ("workerGroupSpecs/0/template/spec/tolerations/0/effects", "NoSchedule"),
    ],
)
def test_a_field_that_is_misspelt_mistyped_or_missing_is_refused(name, path, value):
    resource = tree(name)
    inner, last = at(cluster_spec(resource), path)
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        validate(resource)


@pytest.mark.parametrize("field", ["shutdownAfterJobFinished", "ttlSecondsAfterFinish", "entryPoint"])
def test_a_misspelt_field_of_a_job_is_refused(field):
    resource = tree("rayjob.yaml")
    resource["spec"][field] = 1
    with pytest.raises(jsonschema.ValidationError, match=field):
        validate(resource)


def test_the_service_is_that_of_serve_yaml():
    """Only where the HTTP server listens and where the token lies differ: in pods, a secret is mounted."""
    inside, alone = yaml.safe_load(tree("rayservice.yaml")["spec"]["serveConfigV2"]), tree("serve.yaml")
    assert inside.pop("http_options") == {"host": "0.0.0.0", "port": 8000}
    assert alone.pop("http_options") == {"host": "127.0.0.1", "port": 8000}
    assert alone.pop("proxy_location") == "HeadOnly"
    token = inside["applications"][0]["args"].pop("token_file")
    assert alone["applications"][0]["args"].pop("token_file") != token
    assert inside == alone
    for group in groups(tree("rayservice.yaml")):
        pod = group["template"]["spec"]
        (mount,), (volume,) = pod["containers"][0]["volumeMounts"], pod["volumes"]
        assert (mount["name"], mount["readOnly"]) == (volume["name"], True)
        assert Path(token).parent == Path(mount["mountPath"])
        assert volume["secret"] == {"secretName": "fracray-serve-token"}


def test_job_and_cluster_define_the_same_cluster():
    """The annotations and the cluster's spec are equal; only the job differs."""
    stays, goes = tree("raycluster.yaml"), tree("rayjob.yaml")
    assert cluster_spec(goes) == cluster_spec(stays)
    assert goes["metadata"] == stays["metadata"]


def test_the_job_ends_by_itself_and_is_not_started_twice():
    spec = tree("rayjob.yaml")["spec"]
    assert spec["shutdownAfterJobFinishes"] is True  # else KubeRay ignores ttlSecondsAfterFinished
    assert spec["ttlSecondsAfterFinished"] > 0
    assert spec["activeDeadlineSeconds"] > 0
    assert spec["backoffLimit"] == 0


def test_the_environment_lists_the_pods_that_the_search_may_get(monkeypatch):
    environment = yaml.safe_load(tree("rayjob.yaml")["spec"]["runtimeEnvYAML"])["env_vars"]
    monkeypatch.setenv(PROMISED, environment.pop(PROMISED))
    nodes = read_cluster(ROOT / "cluster/rayjob.yaml").nodes
    assert machines() == [Machine(node.cpus, node.gpus, node.most) for node in nodes]
    assert not environment


def test_the_job_runs_a_valid_command_on_a_space_in_the_image():
    words = shlex.split(tree("rayjob.yaml")["spec"]["entrypoint"])
    assert words[:3] == ["python", "-m", "fracray.tune"]
    args = tune.parser().parse_args(words[3:])
    assert args.storage == tree("rayjob.yaml")["metadata"]["annotations"]["fracray/storage"]
    assert args.data == tree("rayjob.yaml")["metadata"]["annotations"]["fracray/data"]
    copied = (ROOT / "cluster" / "Dockerfile").read_text()
    assert "COPY --chown=ray:users search_spaces /home/ray/search_spaces" in copied
    assert (ROOT / Path(args.space).relative_to("/home/ray")).is_file()


@pytest.mark.parametrize("name", FILES)
def test_the_settings_that_kuberay_needs_for_tokens_and_the_autoscaler(name):
    resource = tree(name)
    spec = cluster_spec(resource)
    assert spec["authOptions"] == {"mode": "token"}
    assert tuple(int(part) for part in spec["rayVersion"].split(".")) >= (2, 52, 0)  # else authOptions is refused
    # Version 2 of the autoscaler identifies nodes by their pods: a restarted pod would be a lost node.
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert {group["template"]["spec"]["restartPolicy"] for group in groups(resource)} == {"Never"}


@pytest.mark.parametrize("name", FILES)
def test_ray_gets_the_resources_of_the_pods(name):
    """Except on the head, which runs no tasks, Ray schedules exactly what Kubernetes gives."""
    head, *workers = groups(tree(name))
    assert (head["rayStartParams"]["num-cpus"], head["rayStartParams"]["num-gpus"]) == ("0", "0")
    for group in workers:
        (container,) = group["template"]["spec"]["containers"]
        resources = container["resources"]
        assert resources["requests"] == resources["limits"]
        params = copy.copy(group["rayStartParams"])
        assert params.pop("num-cpus") == resources["limits"]["cpu"]
        assert params.pop("num-gpus", None) == resources["limits"].get("nvidia.com/gpu")
        assert params == {}


@pytest.mark.parametrize("name", FILES)
def test_nothing_can_be_reached_from_outside(name):
    spec = cluster_spec(tree(name))
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert spec["headGroupSpec"]["enableIngress"] is False
    for group in groups(tree(name)):
        pod = group["template"]["spec"]
        assert not pod.get("hostNetwork")
        for container in pod["containers"]:
            assert "hostPort" not in str(container.get("ports"))
            assert container["securityContext"] == {"allowPrivilegeEscalation": False}
