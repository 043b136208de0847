"""Rehearsal: cluster/serve.yaml deployed with `serve deploy` on a head with Ray's token, asked, hurt and shut down."""

import subprocess
import threading
from pathlib import Path

import httpx
import psutil
import pytest
import yaml
from drawn_fracatlas import jpeg, picture
from heads import ROOT, started_head, wait_for
from machines import free_ports
from served import tiny_checkpoint

pytestmark = pytest.mark.cluster
SECRET = "serve-" + "0123456789" * 3
QUEUE = 8
ASKERS = 4


def serve(head, *words):
    """What `serve WORDS` prints; it must end well."""
    command = ["serve", *map(str, words), "--address", head.url]
    done = subprocess.run(command, env=head.environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def status(head):
    """(status of the application, what Ray Serve says of it)."""
    found = yaml.safe_load(serve(head, "status"))["applications"].get("fracray", {})
    return found.get("status"), found.get("message")


def replicas(head, deployment="replica"):
    """Ray's processes of a deployment's replicas, by pid."""
    found = {}
    for child in psutil.Process(head.process.pid).children(recursive=True):
        try:
            if child.cmdline()[:1] and child.cmdline()[0].startswith(f"ray::ServeReplica:fracray:{deployment}"):
                found[child.pid] = child
        except psutil.Error:  # it has just ended
            continue
    return found


@pytest.fixture(scope="module")
def deployed(tmp_path_factory):
    """The head, the file as it was deployed, and the address of the service."""
    folder = tmp_path_factory.mktemp("service")
    (folder / ".ray").mkdir()
    (folder / ".ray/serve_token").write_text(SECRET + "\n")
    tree = yaml.safe_load((ROOT / "cluster/serve.yaml").read_text())
    tree["http_options"]["port"] = free_ports(1, "127.0.0.1")[0]
    (application,) = tree["applications"]
    application["args"] |= {"checkpoint": str(tiny_checkpoint(folder / "t0001")), "queue": QUEUE, "decoders": 1}
    replica = application["deployments"][1]
    replica["autoscaling_config"] |= {"min_replicas": 2, "max_replicas": 2, "target_ongoing_requests": 2}
    replica["ray_actor_options"] = {"num_cpus": 1, "num_gpus": 0.5}
    file = folder / "serve.yaml"
    file.write_text(yaml.safe_dump(tree))
    with started_head(folder, "--num-cpus=3", "--num-gpus=1") as head:
        serve(head, "deploy", file)
        wait_for(lambda: status(head)[0] in ("RUNNING", "DEPLOY_FAILED"), head.process)
        assert status(head)[0] == "RUNNING", status(head)
        yield head, file, f"http://127.0.0.1:{tree['http_options']['port']}"


def client(url, token=SECRET):
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False)


def ask(client):
    return client.post("/predict", files={"files": ("a.jpg", jpeg(picture(1)))})


def test_the_application_is_that_of_one_machine(deployed):
    head, _, url = deployed
    with client(url) as asking:
        (row,) = ask(asking).json()["rows"]
        assert (row["path"], row["error"]) == ("a.jpg", "")
        assert asking.get("/model").json()["checkpoint"] == row["checkpoint"]
        assert asking.get("/ready").json() == {"status": "ready"}
        assert "fracray_replicas 2.0" in asking.get("/metrics").text
        archive = asking.post("/predict", files={"files": ("a.zip", b"PK\x03\x04" + bytes(100))})
        assert archive.status_code == 413
        many = asking.post("/predict", files=[("files", (f"{at}.jpg", b"x")) for at in range(65)])
        assert (many.status_code, many.json()["error"][:18]) == (413, "more than 64 files")
    for token in ("", "another-token-than-that"):
        with client(url, token) as stranger:
            assert ask(stranger).status_code == 401
            assert stranger.get("/model").status_code == 401
            assert stranger.get("/").status_code == 200  # the page asks for the token
    port = int(url.rpartition(":")[2])
    processes = psutil.Process(head.process.pid).children(recursive=True)
    opened = [one for process in processes for one in process.net_connections("tcp") if one.status == "LISTEN"]
    assert {one.laddr.ip for one in opened if one.laddr.port == port} == {"127.0.0.1"}


def test_more_than_the_queue_is_refused_and_not_kept_waiting(deployed):
    _, _, url = deployed
    answers = []

    def send():
        with client(url) as asking:
            answers.extend(ask(asking) for _ in range(3))

    threads = [threading.Thread(target=send) for _ in range(3 * QUEUE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    codes = {answer.status_code for answer in answers}
    assert codes == {200, 429}
    assert all(answer.headers["retry-after"] for answer in answers if answer.status_code == 429)


def test_a_replica_that_is_killed_costs_no_answer_and_comes_back(deployed):
    head, _, url = deployed
    first = replicas(head)
    assert len(first) == 2
    answers, done = [], threading.Event()

    def send():
        with client(url) as asking:
            while not done.is_set():
                answers.append(ask(asking))

    threads = [threading.Thread(target=send) for _ in range(ASKERS)]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: len(answers) > 2 * ASKERS, head.process)
        killed, process = next(iter(first.items()))
        before = len(answers)
        for one in (process, *process.children()):
            one.kill()
        wait_for(lambda: len(answers) > before + 2 * ASKERS, head.process)
        wait_for(lambda: len(replicas(head).keys() - {killed}) == 2, head.process)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert {answer.status_code for answer in answers} == {200}
    logits = [answer.json()["rows"][0]["logit"] for answer in answers]
    assert max(logits) - min(logits) < 1e-6
    wait_for(lambda: status(head)[0] == "RUNNING", head.process)


def test_the_interface_that_is_killed_comes_back(deployed):
    head, _, url = deployed
    (process,) = replicas(head, "http").values()
    process.kill()

    def answered():
        with client(url) as asking:
            return ask(asking).status_code == 200

    wait_for(lambda: process.pid not in replicas(head, "http") and replicas(head, "http"), head.process)
    wait_for(answered, head.process)


def test_neither_the_token_nor_a_picture_is_in_what_ray_keeps(deployed):
    head, _, _ = deployed
    assert SECRET not in serve(head, "config") + serve(head, "status")
    logs = [path for path in Path(head.temporary).rglob("logs/**/*") if path.is_file()]
    assert any("replica" in path.name for path in logs)
    assert not [path for path in logs if SECRET.encode() in path.read_bytes() or b"a.jpg" in path.read_bytes()]


def test_a_file_that_cannot_work_is_refused_by_ray_serve_with_the_reason(deployed):
    """The settings are checked where the application is built; the one that ran goes on."""
    head, file, url = deployed
    tree = yaml.safe_load(file.read_text())
    tree["applications"][0]["args"]["bach"] = 3
    wrong = file.with_name("wrong.yaml")
    wrong.write_text(yaml.safe_dump(tree))
    serve(head, "deploy", wrong)
    wait_for(lambda: status(head)[0] == "DEPLOY_FAILED", head.process)
    assert "bach" in status(head)[1]
    with client(url) as asking:
        assert ask(asking).status_code == 200


def test_replicas_come_with_the_load_and_go_with_it(deployed):
    """As cluster/serve.yaml says it, with shorter delays; no request is lost, in neither direction."""
    head, file, url = deployed
    tree = yaml.safe_load(file.read_text())
    scaling = tree["applications"][0]["deployments"][1]["autoscaling_config"]
    scaling |= {"min_replicas": 1, "target_ongoing_requests": 1, "upscale_delay_s": 1, "downscale_delay_s": 3}
    scaled = file.with_name("scaled.yaml")
    scaled.write_text(yaml.safe_dump(tree))
    serve(head, "deploy", scaled)
    wait_for(lambda: len(replicas(head)) == 1 and status(head)[0] == "RUNNING", head.process)
    answers, done = [], threading.Event()

    def send():
        with client(url) as asking:
            while not done.is_set():
                answers.append(ask(asking).status_code)

    threads = [threading.Thread(target=send) for _ in range(ASKERS)]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: len(replicas(head)) == 2, head.process)
        before = len(answers)
        wait_for(lambda: len(answers) > before + 2 * ASKERS, head.process)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    with client(url) as asking:

        def asked_until_one_is_left():
            answers.append(ask(asking).status_code)
            return len(replicas(head)) == 1

        wait_for(asked_until_one_is_left, head.process)
        answers += [ask(asking).status_code for _ in range(5)]
    assert set(answers) == {200}


def test_shutdown_leaves_the_cluster_without_it(deployed):
    """The last test of this service."""
    head, _, url = deployed
    serve(head, "shutdown", "--yes")
    wait_for(lambda: not replicas(head) and not replicas(head, "http"), head.process)
    with client(url) as asking, pytest.raises(httpx.ConnectError):
        asking.get("/health")
    assert head.process.poll() is None
