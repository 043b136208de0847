"""Jobs on a running head: submitted, left, followed again, refused."""

import re
import signal
from dataclasses import replace

import pytest
import yaml
from heads import end, fracray, read_until, space, started_head

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    with started_head(tmp_path_factory.mktemp("head"), "--num-cpus=2") as head:
        yield head


def command(head, verb, *words, **options):
    return fracray(head, "cluster", verb, "--address", head.url, *words, **options)


@pytest.fixture
def cluster_file(tmp_path):
    """The cluster file of one own machine, next to a search space."""
    (tmp_path / "space.yaml").write_text(space(3, 100))
    tree = {
        "cluster_name": "here",
        "metadata": {"storage": str(tmp_path / "shared")},
        "provider": {"type": "local", "head_ip": "127.0.0.1", "worker_ips": []},
    }
    (tmp_path / "here.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path / "here.yaml"


def test_a_search_is_submitted_left_and_followed_again(head, cluster_file, tmp_path):
    """The space is sent along, Ctrl-C leaves the job running, and attach prints its complete output once."""
    words = ["tune", "--space", "space.yaml", "--name", "atlas", "--concurrent", "1"]
    process = command(head, "submit", cluster_file, "--", *words, cwd=tmp_path)
    output = read_until(process, "of 3 trials to run")
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 130, rest
    assert "Traceback" not in output + rest
    # The command that the message gives.
    attach = re.search(r"python -m fracray\.cluster (attach .* atlas --address .*)\n", rest)[1].split()
    process = fracray(head, "cluster", *attach)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    assert out.count("of 3 trials to run") == 1
    assert [f"[{number}/3]" in out for number in (1, 2, 3)] == [True] * 3
    assert "best of 3 finished trials" in out
    assert (tmp_path / "shared/atlas/best/model.safetensors").exists()


def test_a_failed_job_ends_the_command_with_an_error(head, cluster_file, tmp_path):
    process = command(head, "submit", cluster_file, "--", "tune", "--name", "none", "--resume", cwd=tmp_path)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 1, out
    assert "Traceback" not in out
    assert "error: --resume: there is no run none" in out
    assert "ended as FAILED" in out


def test_no_job_without_the_token(head, cluster_file, tmp_path):
    other = replace(head, environment={**head.environment, "RAY_AUTH_TOKEN": "f" * 64})
    for words in (["attach"], ["submit", "--", "tune"]):
        process = command(other, words[0], cluster_file, *words[1:])
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 1, out
        assert "put the cluster's token into ~/.ray/auth_token" in out
        assert "Traceback" not in out


def test_a_run_has_one_job_at_a_time_and_a_lost_head_is_reported(head, cluster_file, tmp_path):
    """The last test, because it kills the head."""
    (tmp_path / "long.yaml").write_text(space(3, 100_000))
    words = ["tune", "--space", "long.yaml", "--name", "busy"]
    process = command(head, "submit", cluster_file, "--", *words, cwd=tmp_path)
    read_until(process, "of 3 trials to run")
    again = command(head, "submit", cluster_file, "--", *words, cwd=tmp_path)
    out, _ = again.communicate(timeout=120)
    assert again.returncode == 2, out
    assert "the job busy still runs" in out
    end(head.process)
    read_until(process, "trying again for 10 minutes")
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "connection lost; job state unknown; follow it again with: " in rest
    assert "Traceback" not in rest
