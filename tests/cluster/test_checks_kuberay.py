"""`python -m fracray.cluster check` of KubeRay's RayCluster and RayJob."""

import re

import pytest
import yaml
from checking import change, check

from fracray.cluster.checks import warnings
from fracray.cluster.files import read_cluster

KEPT = {"fracray/storage": "s3://bucket/runs"}


@pytest.fixture
def kuberay(filled):
    return {name: yaml.safe_load((filled / f"{name}.yaml").read_text()) for name in ("raycluster", "rayjob")}


@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
@pytest.mark.parametrize(
    ("changes", "line", "words"),
    [
        ([("headGroupSpec/serviceType", "LoadBalancer")], "serviceType", "be reached from outside"),
        ([("headGroupSpec/serviceType", "NodePort")], "serviceType", "be reached from outside"),
        ([("headGroupSpec/enableIngress", True)], "enableIngress", "others than Ray's pods"),
        ([("headGroupSpec/template/spec/hostNetwork", True)], "hostNetwork", "others than Ray's pods"),
        ([("headGroupSpec/template/spec/containers/0/ports/1/hostPort", 80)], "hostPort", "others than Ray's"),
        (
            [("headGroupSpec/template/spec/containers/0/env", [{"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}])],
            "value",
            "take it from valueFrom",
        ),
        ([("authOptions", None)], "pec:", "authentication is off"),
        ([("authOptions/mode", "disabled")], "authOptions", "authentication is off"),
        ([("rayVersion", "2.9.0")], "rayVersion", "Ray 2.9.0"),
        ([("/metadata/annotations", {"fracray/storage": "/mnt/all/runs"})], "fracray/storage", "no shared disk"),
        ([("/metadata/annotations", {"x": "y"})], "annotations:", "set annotations.fracray/storage"),
        ([("/metadata/annotations", {**KEPT, "fracray/data": "atlas"})], "fracray/data", "absolute path as the head"),
    ],
)
def test_a_problem_for_kuberay_is_reported_with_its_line(changes, line, words, name, kuberay, tmp_path, capsys):
    root = "spec" if name == "raycluster" else "spec/rayClusterSpec"
    changes = [(path[1:] if path[0] == "/" else f"{root}/{path}", value) for path, value in changes]
    lines, (problem,) = check(tmp_path, capsys, changes, base=kuberay[name])
    assert words in problem
    assert line in lines[int(re.match(r"\S+\.yaml:(\d+): ", problem)[1]) - 1]


@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_without_the_autoscaler_a_group_keeps_its_pods(name, kuberay, tmp_path, capsys):
    root = "spec" if name == "raycluster" else "spec/rayClusterSpec"
    changes = [(f"{root}/enableInTreeAutoscaling", None)]
    _, problems = check(tmp_path, capsys, changes, "--gpus-per-trial", "1", base=kuberay[name])
    assert "no node type has a GPU" in " ".join(problems)
    cluster = read_cluster(tmp_path / "cluster.yaml")
    assert [(node.least, node.most) for node in cluster.nodes] == [(1, 1), (0, 0), (0, 0)]
    assert any("gpu has 0 pods and never more: enableInTreeAutoscaling is off" in line for line in warnings(cluster))
    changes.append((f"{root}/workerGroupSpecs/0/replicas", 3))
    check(tmp_path, capsys, changes, base=kuberay[name])
    assert [(node.least, node.most) for node in read_cluster(tmp_path / "cluster.yaml").nodes][1] == (3, 3)


@pytest.mark.parametrize(("name", "warned"), [("raycluster", True), ("rayjob", False)])
def test_pods_that_never_stop_are_a_warning(name, warned, kuberay, tmp_path):
    root = "spec" if name == "raycluster" else "spec/rayClusterSpec"
    file = tmp_path / "cluster.yaml"
    for least in (0, 4):
        change(kuberay[name], [(f"{root}/workerGroupSpecs/0/minReplicas", least)])
        file.write_text(yaml.safe_dump(kuberay[name]))
        found = [line for line in warnings(read_cluster(file)) if "4 of gpu cost money until `kubectl delete`" in line]
        assert bool(found) == (warned and least > 0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ([("spec/shutdownAfterJobFinishes", None)], "cost money after the search has ended"),
        ([("spec/shutdownAfterJobFinishes", False)], "cost money after the search has ended"),
        ([("spec/activeDeadlineSeconds", None)], "activeDeadlineSeconds is missing"),
    ],
)
def test_a_ray_job_without_an_end_is_reported(changes, words, kuberay, tmp_path, capsys):
    (problem,) = check(tmp_path, capsys, changes, base=kuberay["rayjob"])[1]
    assert words in problem


def test_a_path_that_all_pods_see_is_valid(kuberay, tmp_path, capsys):
    notes = {"fracray/storage": "/mnt/all/runs", "fracray/data": "/data/x", "fracray/shared": "/mnt/all, /data"}
    assert check(tmp_path, capsys, [("metadata/annotations", notes)], base=kuberay["raycluster"])[1] == []
