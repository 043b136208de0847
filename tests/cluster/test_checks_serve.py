"""`python -m fracray.cluster check` of a service: cluster/serve.yaml, and KubeRay's RayService."""

import re

import pytest
import yaml
from checking import change, check, checked

from fracray.cluster.__main__ import main
from fracray.cluster.deployments import deployments
from fracray.cluster.files import read_cluster
from fracray.errors import InputError, run_verb


def service(filled, name):
    """(a file's tree, its configuration of Ray Serve, which `written` puts back)."""
    tree = yaml.safe_load((filled / f"{name}.yaml").read_text())
    return tree, tree if name == "serve" else yaml.safe_load(tree["spec"]["serveConfigV2"])


def written(filled, name, tree, config):
    """The file, with its configuration as a block below everything else."""
    if name == "rayservice":
        spec = {key: value for key, value in tree["spec"].items() if key != "serveConfigV2"}
        block = "".join(f"    {line}\n" for line in yaml.safe_dump(config, sort_keys=False, width=1000).splitlines())
        text = yaml.safe_dump({**tree, "spec": spec}, sort_keys=False, width=1000) + f"  serveConfigV2: |\n{block}"
    else:
        text = yaml.safe_dump(config, sort_keys=False, width=1000)
    (file := filled / f"{name}.yaml").write_text(text)
    return file


@pytest.mark.parametrize("words", [("serve",), ("serve", "--nodes", "gpu.yaml"), ("rayservice",)])
def test_fracrays_own_services_are_valid_once_filled_in(words, filled, capsys):
    name, *options = words
    if options:
        options[1] = str(filled / options[1])
    assert checked(filled / f"{name}.yaml", capsys, *options)[1] == []


@pytest.mark.parametrize("name", ["serve", "rayservice"])
@pytest.mark.parametrize(
    ("changes", "line", "words"),
    [
        ([("http_options/port", None)], "http_options", "http_options.port is missing"),
        ([("http_options/host", None)], "http_options", "http_options.host is missing"),
        ([("applications/0/args/token_file", None)], "args:", "token_file is missing: the service needs it"),
        ([("applications/0/args/checkpoint", None)], "args:", "checkpoint is missing"),
        ([("applications/0/args/checkpoint", "runs/atlas")], "checkpoint:", "give a URI (s3://..., gs://...)"),
        ([("applications/0/args/token_file", "/run/secrets/fracray/auth_token")], "token_file:", "Ray's own token"),
        ([("applications/0/args/batch", 0)], "batch:", "greater than or equal to 1"),
        ([("applications/0/args/queue", "64")], "queue:", "should be a valid integer"),
        ([("applications/0/import_path", "fracray.serving.servce:build")], "import_path:", "(did you mean"),
        ([("applications/0/route_prefix", "/atlas")], "route_prefix:", "set route_prefix: /"),
        ([("applications/0/deployments/1/name", "replicas")], "name:", "(did you mean 'replica'?)"),
        ([("applications/0/deployments/1/name", "http")], "name:", "the deployment 'http' is given twice"),
        (
            [("applications/0/deployments/1/autoscaling_config/min_replicas", 0)],
            "min_replicas:",
            "the service answers 503 and none is started",
        ),
        (
            [("applications/0/deployments/1/autoscaling_config/min_replicas", 9)],
            "autoscaling_config:",
            "max_replicas",
        ),
        ([("applications/0/deployments/1/ray_actor_options/num_gpus", 2)], "num_gpus:", "a replica uses one GPU"),
        ([("applications/0/deployments/1/ray_actor_options/num_cpus", 1)], "num_cpus:", "for 2 decoders"),
        ([("applications/0/deployments/1/ray_actor_options", {"num_gpus": 1})], "ray_actor_options:", "reserves 1 CPU"),
        ([("applications/0/import_path", "fracay.serving.service:build")], "import_path:", "no application of fracray"),
        ([("applications/0/args/checkpoint", "s3://key:secret@bucket/run")], "checkpoint:", "leave the secret out"),
        ([("http_options/port", "8000")], "port:", "expected a number from 1 to 65535"),
        (
            [("applications/0/runtime_env", {"pip": ["ray[serve]==2.9.0"]})],
            "- ray",
            "installs Ray 2.9.0",
        ),
        (
            [("applications/0/runtime_env", {"image_uri": "rayproject/ray:2.9.0-py311"})],
            "image_uri:",
            "the image has Ray 2.9.0",
        ),
        (
            [("applications/0/runtime_env", {"env_vars": {"T": "export MY_AUTH_TOKEN=abcdefgh1"}})],
            "T:",
            "the secret MY_AUTH_TOKEN is written in the file",
        ),
        (
            [("applications/0/runtime_env", {"env_vars": {"AWS_SECRET_ACCESS_KEY": "abcdefgh1"}})],
            "AWS_SECRET_ACCESS_KEY:",
            "the secret AWS_SECRET_ACCESS_KEY is written in the file",
        ),
    ],
)
def test_a_problem_of_a_service_is_reported_with_its_line(changes, line, words, name, filled, capsys):
    tree, config = service(filled, name)
    change(config, changes)
    lines, problems = checked(written(filled, name, tree, config), capsys)
    (problem,) = [problem for problem in problems if words in problem]
    assert line in lines[int(re.match(r"\S+\.yaml:(\d+): ", problem)[1]) - 1]


@pytest.mark.parametrize("setting", ["token_file", "token"])
def test_a_token_that_is_written_in_the_file_is_not_repeated(setting, filled, capsys):
    tree, config = service(filled, "serve")
    config["applications"][0]["args"][setting] = "0123456789abcdef"
    with pytest.raises(InputError, match="1 problem"):
        main(["check", str(written(filled, "serve", tree, config))])
    assert "0123456789abcdef" not in capsys.readouterr().out


@pytest.mark.parametrize(("count", "most"), [(3, 3), ("auto", 100)])
def test_a_number_of_replicas_without_autoscaling_is_counted(count, most, filled, capsys):
    tree, config = service(filled, "serve")
    replica = config["applications"][0]["deployments"][1]
    del replica["autoscaling_config"]
    replica["num_replicas"] = count
    file = written(filled, "serve", tree, config)
    found = next(one for one in deployments(read_cluster(file)) if one.name == "replica")
    assert (found.least, found.most) == (1 if count == "auto" else count, most)
    assert checked(file, capsys)[1] == []


def test_replicas_that_no_node_can_hold_are_reported(filled, capsys):
    """With --nodes against the cluster's file, in a RayService against its own pods."""
    nodes = ("--nodes", str(filled / "gpu.yaml"))
    tree, config = service(filled, "serve")
    replica = config["applications"][0]["deployments"][1]
    replica["ray_actor_options"] = {"num_cpus": 64, "num_gpus": 1}
    lines, (problem,) = checked(written(filled, "serve", tree, config), capsys, *nodes)
    assert "a replica of replica needs 64 CPU(s) and 1 GPU(s), and all nodes together can hold 0 of 1" in problem
    assert "name: replica" in lines[int(re.match(r"\S+\.yaml:(\d+): ", problem)[1]) - 1]

    tree, config = service(filled, "rayservice")
    del tree["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["rayStartParams"]["num-gpus"]
    limits = tree["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["resources"]
    del limits["limits"]["nvidia.com/gpu"]
    _, (problem,) = checked(written(filled, "rayservice", tree, config), capsys)
    assert "a replica of replica needs 2 CPU(s) and 0.5 GPU(s), and no node has a GPU" in problem


@pytest.mark.parametrize(
    ("cpus", "pods", "least", "fits"),
    [
        ("2", 1, 1, False),  # http has no place beside the replica
        ("3", 1, 1, True),
        ("2", 2, 1, True),
        ("2", 2, 2, False),
        ("5", 1, 2, True),
    ],
)
def test_the_replicas_of_all_deployments_must_fit_together(cpus, pods, least, fits, filled, capsys):
    tree, config = service(filled, "rayservice")
    group = tree["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    group["rayStartParams"]["num-cpus"] = cpus
    group["maxReplicas"] = pods
    config["applications"][0]["deployments"][1]["autoscaling_config"]["min_replicas"] = least
    lines, problems = checked(written(filled, "rayservice", tree, config), capsys)
    assert len(problems) == (not fits)
    for problem in problems:
        assert f"not of all of them together: 1 of http (1 CPUs, 0 GPUs), {least} of replica (2 CPUs, 0.5" in problem
        assert "name: replica" in lines[int(re.match(r"\S+\.yaml:(\d+): ", problem)[1]) - 1]


@pytest.mark.parametrize("name", ["serve", "rayservice"])
@pytest.mark.parametrize(
    ("place", "given", "line"),
    [
        ("logging_config", None, ""),  # Ray Serve's default
        ("logging_config", {"log_level": "ERROR"}, None),
        ("logging_config", {"enable_access_log": False}, None),
        ("logging_config", {"encoding": "JSON"}, "logging_config:"),
        ("logging_config", {"log_level": "INFO", "enable_access_log": True}, "logging_config:"),
        ("logging_config", {"log_level": 10}, "logging_config:"),
        ("applications/0/logging_config", {"log_level": "INFO"}, None),  # does not reach fracray's deployments
        ("applications/0/deployments/0/logging_config", {"log_level": "INFO"}, "logging_config:"),
        ("applications/0/deployments/0/logging_config", {}, "logging_config:"),
        ("applications/0/deployments/1/logging_config", {"log_level": "DEBUG"}, "logging_config:"),
        ("applications/0/deployments/1/logging_config", {"log_level": "DEBUG", "enable_access_log": False}, None),
    ],
)
def test_a_log_that_keeps_something_of_each_request_is_a_warning(place, given, line, name, filled, capsys):
    tree, config = service(filled, name)
    change(config, [(place, given)])
    file = written(filled, name, tree, config)
    main(["check", str(file)])
    found = re.findall(r"\.yaml:?(\d*): warning: Ray Serve writes each request into a log", capsys.readouterr().out)
    assert len(found) == (line is not None)
    if line:
        assert line in file.read_text().splitlines()[int(found[0]) - 1]


def test_more_replicas_than_fit_are_a_warning(filled, capsys):
    tree, config = service(filled, "rayservice")
    config["applications"][0]["deployments"][1]["autoscaling_config"]["max_replicas"] = 5
    assert run_verb(main, ["check", str(written(filled, "rayservice", tree, config))]) == 0
    out = capsys.readouterr().out
    assert re.search(r"rayservice\.yaml:\d+: warning: all nodes together can hold 4 of at most 5 replicas", out)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("headGroupSpec/template/spec/containers/0/ports/3/name", "http", "no port 8000 with the name serve"),
        ("workerGroupSpecs/0/template/spec/containers/0/volumeMounts", [], "has /run/secrets/fracray/token; mount"),
        ("authOptions/mode", "disabled", "authentication is off"),
        ("headGroupSpec/serviceType", "LoadBalancer", "be reached from outside"),
    ],
)
def test_a_service_that_its_pods_do_not_carry_is_reported(path, value, words, filled, tmp_path, capsys):
    base = yaml.safe_load((filled / "rayservice.yaml").read_text())
    _, (problem,) = check(tmp_path, capsys, [(f"spec/rayClusterConfig/{path}", value)], base=base)
    assert words in problem


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("check", "serve.yaml", "--gpus-per-trial", "1"), "--gpus-per-trial: is for searches"),
        (("check", "serve.yaml", "--nodes", "rayjob.yaml"), None),
        (("check", "serve.yaml", "--nodes", "serve.yaml"), "describes a service; name the file of a cluster"),
        (("check", "rayservice.yaml", "--nodes", "gpu.yaml"), "has its own nodes"),
        (("check", "gpu.yaml", "--nodes", "gpu.yaml"), "has its own nodes"),
        (("submit", "serve.yaml", "--", "tune"), "start it with serve deploy"),
        (("submit", "rayservice.yaml", "--", "tune"), "start it with kubectl apply"),
        (("attach", "serve.yaml"), "`serve status` shows it"),
    ],
)
def test_what_makes_no_sense_for_a_service_is_refused(words, why, filled, capsys):
    words = [str(filled / word) if word.endswith(".yaml") else word for word in words]
    if why is None:
        main(words)
        return
    with pytest.raises(InputError, match=re.escape(why)):
        main(words)
