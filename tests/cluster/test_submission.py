"""`python -m fracray.cluster submit` and `attach` up to the first connection, and the output of a job."""

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from fracray.cluster.__main__ import main
from fracray.cluster.files import read_cluster
from fracray.cluster.jobs import Follower
from fracray.cluster.submission import job_environment, prepare
from fracray.config import Config, parse_config
from fracray.errors import InputError, RunError
from fracray.runtime.resources import EXPECTED, PROMISED
from fracray.runtime.run_folder import CLUSTER_FILE

FILES = Path(__file__).parent.parent.parent / "cluster"
NOWHERE = ("--address", "http://127.0.0.1:1")  # where no server listens


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    """The Ray of other tests uses no token."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")


@pytest.fixture
def cluster_file(tmp_path):
    """A cluster of a head with 4 CPUs and three nodes with a GPU, and a shared folder."""
    shared = str(tmp_path / "shared")
    types = {
        "head": {"resources": {"CPU": 4}, "node_config": {}},
        "gpu": {"resources": {"CPU": 8, "GPU": 1}, "min_workers": 0, "max_workers": 3, "node_config": {}},
    }
    tree = {
        "provider": {"type": "aws"},
        "max_workers": 3,
        "metadata": {"storage": shared, "shared": [shared]},
        "head_node_type": "head",
        "available_node_types": types,
    }
    (tmp_path / "here.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path / "here.yaml"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate", "x"], "after -- give tune, refit or train"),
        ([], "after -- give tune, refit or train"),
        (["tune", "--storage", "runs"], "absolute path"),
        (["tune", "--storage", "phantom"], "absolute path"),
        (["tune", "--storage", "/home/ray/runs"], "no shared disk"),
        (["tune", "--space", "none.yaml"], "no such file here"),
        (["tune", "--space", "/none.yaml"], "no such file here"),
        (["tune", "--space", str(FILES / "local.yaml")], "unknown key"),
        (["tune", "--resume"], "name the run"),
        (["tune", "--log", "tensorboard:tb"], "--log tensorboard:tb: lies in the job's own folder"),
        (
            ["train", "--log=mlflow:sqlite:///mlflow.db"],
            "--log mlflow:sqlite:///mlflow.db: lies in the job's own folder",
        ),
        (["train", "--log", "mlflow:mlruns"], "--log mlflow:mlruns: lies in the job's own folder"),
        (["tune", "oops"], "belongs to no option"),
        (["refit", "atlas"], "refit atlas: on a cluster give a URI, or an absolute path"),
        (["refit", "/home/ray/runs/atlas"], "storage /home/ray/runs is a path, and the file names no shared disk"),
    ],
)
def test_a_wrong_command_is_refused_before_the_cluster_is_contacted(words, message, cluster_file, capsys):
    with pytest.raises(InputError, match=message):
        main(["submit", str(cluster_file), *NOWHERE, "--", *words])


def test_a_command_without_dashes_before_it_is_refused(cluster_file):
    with pytest.raises(InputError, match=r"submit: put -- before tune"):
        main(["submit", str(cluster_file), "tune", "--name", "atlas"])


def test_an_unknown_option_of_the_command_is_refused_here(cluster_file, capsys):
    with pytest.raises(SystemExit) as refused:
        main(["submit", str(cluster_file), *NOWHERE, "--", "tune", "--spce", "x"])
    assert refused.value.code == 2
    assert "unrecognized arguments: --spce" in capsys.readouterr().err


def test_a_dashboard_that_is_the_same_on_every_machine_is_sent(cluster_file):
    places = (
        "mlflow:http://a:5000",
        "mlflow:sqlite:////shared/m.db",
        "tensorboard:/shared/tb",
        "mlflow",
        "mlflow:databricks",
    )
    for place in places:
        sent = prepare(read_cluster(cluster_file), "train", ["--log", place])
        assert sent.command[3:5] == ("--log", place)


def test_an_option_is_given_by_its_full_name(cluster_file, capsys):
    """Taken for `--storage`, it would be overridden by the place in the file's metadata."""
    with pytest.raises(SystemExit):
        prepare(read_cluster(cluster_file), "tune", ["--stor", "s3://other"])
    assert "unrecognized arguments: --stor" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["submit", str(cluster_file), "--addr", NOWHERE[1], "--", "tune"])
    assert "unrecognized arguments: --addr" in capsys.readouterr().err


@pytest.mark.parametrize(("verb", "words"), [("submit", "sbatch"), ("attach", "tail -f")])
def test_submit_and_attach_refer_to_slurms_own_commands(verb, words):
    with pytest.raises(InputError, match=words):
        main([verb, str(FILES / "slurm.sh"), *(["--", "tune"] if verb == "submit" else [])])


@pytest.mark.parametrize(
    ("verb", "words"), [("submit", "kubectl apply -f"), ("attach", "kubectl logs -f -l job-name=fracray")]
)
def test_submit_and_attach_refer_to_kubectl_for_a_rayjob(verb, words):
    with pytest.raises(InputError, match=words):
        main([verb, str(FILES / "rayjob.yaml"), *(["--", "tune"] if verb == "submit" else [])])


def test_a_cluster_that_does_not_answer_is_one_error(cluster_file):
    with pytest.raises(RunError, match="no Ray dashboard answers there"):
        main(["attach", str(cluster_file), *NOWHERE])


def test_the_config_of_a_checkpoint_is_sent(cluster_file, tmp_path, monkeypatch):
    monkeypatch.setattr("fracray.training.checkpoint.read_metadata", lambda path: SimpleNamespace(config=Config()))
    (tmp_path / "t0007").mkdir()
    cluster = read_cluster(cluster_file)
    sent = prepare(cluster, "train", ["--config", str(tmp_path / "t0007"), "--name", "final"])
    assert sent.command[:5] == ("python", "-m", "fracray.train", "--config", "config.yaml")
    assert parse_config(sent.files["config.yaml"], "sent") == Config()


def test_a_refit_is_sent_with_the_place_of_its_run(cluster_file, tmp_path):
    cluster, run = read_cluster(cluster_file), str(tmp_path / "shared/atlas")
    sent = prepare(cluster, "refit", ["--folds", run, "--top", "2"])
    assert sent.command == ("python", "-m", "fracray.refit", "--folds", run, "--top", "2", "--address", "auto")
    assert (sent.run, sent.files) == ("atlas", {})
    assert prepare(cluster, "refit", ["s3://bucket/runs/other?region=x", "--address", "auto"]).run == "other"


def test_a_search_is_promised_no_more_nodes_than_the_cap(cluster_file):
    tree = yaml.safe_load(cluster_file.read_text())
    tree["available_node_types"]["cpu"] = {"resources": {"CPU": 8}, "max_workers": 5, "node_config": {}}
    tree["max_workers"] = 4  # without the head; three of them have a GPU
    cluster_file.write_text(yaml.safe_dump(tree))
    promised = json.loads(job_environment(read_cluster(cluster_file))[PROMISED])
    assert sorted((one["cpus"], one["gpus"], one["count"]) for one in promised) == [(4, 0, 1), (8, 0, 1), (8, 1, 3)]


def test_a_search_on_own_machines_expects_as_many_as_the_file_lists(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("provider: {type: local, head_ip: a, worker_ips: [b, c]}\nmax_workers: 2\n")
    assert job_environment(read_cluster(file)) == {EXPECTED: "3", CLUSTER_FILE: str(file)}


def test_the_live_table_is_drawn_in_place_although_rays_log_reader_replaces_carriage_returns():
    follower = Follower("atlas", io.StringIO())
    assert follower._redrawn("a\nb\n\x1b[2K\x1b[1A\x1b[2Kc\n") == "a\nb\r\x1b[2K\x1b[1A\x1b[2Kc\n"
    assert follower._redrawn("\x1b[2Kd") == "\x1b[1A\x1b[2Kd"
    assert follower._redrawn("\x1b[2Ke\n") == "\x1b[2Ke\n"
    assert follower._redrawn("f\n") == "f\n"
