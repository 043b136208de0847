"""python -m fracray.serve --ray: two replicas; one is killed while requests are asked, as is Ray Serve's controller."""

import io
import signal
import threading
import time

import numpy as np
import psutil
import pydicom
import pytest
import ray
from drawn_dicom import as_bytes, dataset
from drawn_fracatlas import jpeg, picture
from served import probability_in, served, tiny_checkpoint

from fracray.errors import InputError
from fracray.serve import main
from fracray.serving.replicas import application_name

ASKERS = 4
WAIT = 120  # seconds, on a busy machine


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "t0001")


@pytest.fixture(scope="module")
def server(checkpoint):
    with served(checkpoint, "--ray", "--replicas", 2, 2) as running:
        yield running


def replicas(server, kind="ServeReplica"):
    """Ray's processes of the replicas, or of another actor of Ray Serve, by pid."""
    found = {}
    for child in psutil.Process(server.process.pid).children(recursive=True):
        try:
            if child.cmdline()[:1] and child.cmdline()[0].startswith(f"ray::{kind}"):
                found[child.pid] = child
        except psutil.Error:  # it has just ended
            continue
    return found


def metric(client, name):
    return float(dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines())[name])


def wait(found):
    end = time.monotonic() + WAIT
    while not (got := found()):
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.2)
    return got


@pytest.mark.slow
def test_the_app_is_that_of_one_machine(server):
    stored = picture(8).astype(np.uint16) * 16
    series = {"StudyInstanceUID": "1.2.3.7", "SeriesInstanceUID": "1.2.3.8"}
    files = {"files": ("a.dcm", as_bytes(dataset(stored, "1.2.3.9", bits=12, **series)))}
    with server.client() as client:
        row = client.post("/predict?heatmap=1", files=files).json()["rows"][0]
        assert row["heatmap"]
        report = client.post("/predict?format=dicom-sr", files=files)
        assert probability_in(pydicom.dcmread(io.BytesIO(report.content))) == pytest.approx(row["probability"])
        shown = client.post("/picture", files=files)
        assert np.array_equal(np.frombuffer(shown.content, "<u2"), stored.ravel())
        assert client.get("/model").json()["checkpoint"] == row["checkpoint"]
        refused = client.post("/predict?format=dicom-sr", files={"files": ("a.jpg", jpeg(picture(1)))})
        assert refused.status_code == 422
        assert refused.json()["error"].startswith("a.jpg: not a DICOM file")
        assert client.get("/health", headers={"Host": "elsewhere.org"}).status_code == 403
    listening = [
        one for one in psutil.Process(server.process.pid).net_connections("tcp") if one.status == psutil.CONN_LISTEN
    ]
    assert {one.laddr.ip for one in listening if one.laddr.port == int(server.url.rpartition(":")[2])} == {"127.0.0.1"}


@pytest.mark.slow
def test_a_controller_of_ray_serve_that_is_killed_costs_no_answer(server):
    ((pid, controller),) = replicas(server, "ServeController").items()
    answers, ready = [], []
    with server.client() as client:
        controller.kill()
        end = time.monotonic() + WAIT
        counted = False  # by the controller that has started again
        while not counted or len(answers) < 20:
            assert time.monotonic() < end, "it did not come"
            answers.append(client.post("/predict", files={"files": ("a.jpg", jpeg(picture(1)))}))
            ready.append(client.get("/ready").status_code)
            again = replicas(server, "ServeController").keys() - {pid}
            counted = again and metric(client, "fracray_replicas_age_seconds") < 2 and len(answers) > 20
            time.sleep(0.1)
        assert metric(client, "fracray_replicas") == 2
    assert {answer.status_code for answer in answers} == {200}
    assert set(ready) == {200}


@pytest.mark.slow
def test_a_replica_that_is_killed_costs_no_answer_and_comes_back(server):
    first = replicas(server)
    assert len(first) == 2
    answers, done = [], threading.Event()

    def ask():
        with server.client() as client:
            while not done.is_set():
                answers.append(client.post("/predict", files={"files": ("a.jpg", jpeg(picture(1)))}))

    threads = [threading.Thread(target=ask) for _ in range(ASKERS)]
    for thread in threads:
        thread.start()
    try:
        wait(lambda: len(answers) > 2 * ASKERS)
        killed, process = next(iter(first.items()))
        own = process.children()
        for one in own:
            one.suspend()  # so that it dies with what it has been asked
        time.sleep(2)
        before = len(answers)
        for one in (process, *own):
            one.kill()
        with server.client() as client:
            wait(lambda: metric(client, "fracray_answers_lost"))
            wait(lambda: len(answers) > before + 2 * ASKERS)
            wait(lambda: len(replicas(server).keys() - {killed}) == 2)
            wait(lambda: metric(client, "fracray_replicas") == 2)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert {answer.status_code for answer in answers} <= {200, 503}
    assert all("send the request once more" in one.json()["error"] for one in answers if one.status_code == 503)
    good = [answer.json()["rows"][0]["logit"] for answer in answers if answer.status_code == 200]
    assert len(good) > len(answers) / 2
    assert max(good) - min(good) < 1e-6


@pytest.mark.slow
def test_sigterm_ends_the_server_and_its_replicas(server):
    """The last test of this server."""
    running = replicas(server)
    assert server.end(signal.SIGTERM) == 0
    assert "all that was asked is answered" in server.lines[-1]
    lines = [line for line in server.lines if "(raylet)" not in line]  # Ray's own words on the controller's death
    assert len(lines) == 3, lines  # that it starts, where it serves, that it stops
    wait(lambda: not any(one.is_running() for one in running.values()))


def test_each_server_has_an_application_of_its_own(monkeypatch):
    """Two machines may have one name, and a machine has several addresses with the same port each."""
    names = []
    for machine in ("10.0.0.5", "10.0.0.6"):
        monkeypatch.setattr(ray.util, "get_node_ip_address", lambda machine=machine: machine)
        names += [application_name(host, port) for host in ("127.0.0.1", "::1") for port in (8000, 8001)]
    assert len(set(names)) == 8
    assert not any(":" in name for name in names)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--replicas", "1", "2"), "--replicas: is for replicas on Ray; add --ray"),
        (("--address", "auto"), "add --ray"),
        (("--ray", "--replicas", "2", "1"), "--replicas 2 1: expected the least and the most"),
        (("--ray", "--gpus-per-replica", "2"), "--gpus-per-replica 2"),
    ],
)
def test_options_that_say_nothing_are_refused(checkpoint, words, why):
    with pytest.raises(InputError, match=why):
        main([str(checkpoint), *words])


def test_more_replicas_than_fit_are_refused(checkpoint, ray_local):
    with pytest.raises(InputError, match=r"--replicas 3 3: 2 replicas of 1 CPU.* fit the cluster"):
        main([str(checkpoint), "--port", "0", "--ray", "--replicas", "3", "3"])
