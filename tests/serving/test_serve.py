"""python -m fracray.serve: agreement with predict, pictures, limits, bad input, many at once, and how it stops."""

import base64
import dataclasses
import io
import json
import signal
import socket
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor

import cv2
import httpx
import numpy as np
import psutil
import pydicom
import pytest
from drawn_dicom import as_bytes, dataset
from drawn_fracatlas import jpeg, picture
from served import probability_in, served, tiny_checkpoint

from fracray.data.images.decode import decode
from fracray.errors import InputError
from fracray.predict import main as predict
from fracray.serve import main
from fracray.serving.server import open_port
from fracray.training.checkpoint import load_checkpoint, save_checkpoint

TOKEN = "0123456789abcdef0123"
QUEUE = 4
SR = "/predict?format=dicom-sr"
SERIES = {"StudyInstanceUID": "1.2.3.7", "SeriesInstanceUID": "1.2.3.8"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "t0001")


@pytest.fixture(scope="module")
def server(checkpoint):
    limits = ("--max-megabytes", 2, "--max-megapixels", 1, "--max-files", 3, "--queue", QUEUE)
    with served(checkpoint, *limits) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with server.client() as asking:
        yield asking


def png(image):
    return cv2.imencode(".png", image)[1].tobytes()


def dicom(number, **tags):
    made = dataset(picture(number).astype(np.uint16) * 16, f"1.2.3.{number}", bits=12, **tags)
    return as_bytes(made)


def form(*files):
    return [("files", (name, data)) for name, data in files]


# ---------------------------------------------------------------- what it says


def test_rows_are_those_of_predict(client, checkpoint, ray_local, tmp_path):
    files = {"a.jpg": jpeg(picture(1)), "b.png": png(picture(2)), "c.dcm": dicom(3), "text.dcm": b"text"}
    files["d.dcm"] = as_bytes(dataset(picture(4), "REMOVED", StudyInstanceUID="REMOVED"))
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    predict([str(checkpoint), *(str(tmp_path / name) for name in files), "--to", str(tmp_path / "out.jsonl")])
    wanted = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    found = [
        row
        for some in (["a.jpg", "b.png"], ["c.dcm", "text.dcm", "d.dcm"])
        for row in client.post("/predict", files=form(*((name, files[name]) for name in some))).json()["rows"]
    ]
    assert [list(row) for row in found] == [list(row) for row in wanted]
    assert wanted[0]["logit"] != wanted[1]["logit"]
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.pop("path") == theirs.pop("path").rpartition("/")[2]
        for name in ("logit", "probability", "peak_x", "peak_y"):
            assert ours.pop(name) == pytest.approx(theirs.pop(name), abs=1e-6)
        assert ours == theirs


def test_a_heatmap_lies_on_the_whole_picture(client):
    wide = cv2.resize(picture(4), (900, 300))
    row, failed = client.post("/predict?heatmap=1", files=form(("w.png", png(wide)), ("t.dcm", b"text"))).json()["rows"]
    assert failed["heatmap"] is None
    assert failed["error"].startswith("not readable")
    found = cv2.imdecode(np.frombuffer(base64.b64decode(row["heatmap"]), np.uint8), cv2.IMREAD_UNCHANGED)
    assert found.shape == (171, 512)
    assert found.dtype == np.uint8
    assert (found.min(), found.max()) == (0, 255)


def shown(answer):
    """What a viewer draws of an answer of /picture: gray, 0 to 255."""
    told = {name: float(answer.headers[f"X-{name}"]) for name in ("Width", "Height", "Window-Center", "Window-Width")}
    values = np.frombuffer(answer.content, "<u2").reshape(int(told["Height"]), int(told["Width"]))
    assert values.max() < 2 ** int(answer.headers["X-Bits"])
    gray = np.clip((values - (told["Window-Center"] - told["Window-Width"] / 2)) / told["Window-Width"], 0, 1)
    return values, 255 * (1 - gray if answer.headers["X-Inverted"] == "1" else gray)


def test_a_picture_has_its_full_depth_and_the_gray_of_the_training(client):
    data = dicom(5, WindowCenter=1500, WindowWidth=2000)
    answer = client.post("/picture", files=form(("a.dcm", data)))
    values, gray = shown(answer)
    assert (values == picture(5).astype(np.uint16) * 16).all()
    assert answer.headers["X-Bits"] == "12"
    assert np.abs(gray - decode(data).gray).max() <= 1


def test_the_dicom_sr_of_a_file_is_that_of_predict(client, checkpoint, ray_local, tmp_path):
    data = dicom(8, **SERIES)
    (tmp_path / "a.dcm").write_bytes(data)
    words = [str(checkpoint), str(tmp_path / "a.dcm"), "--to", str(tmp_path / "out.csv")]
    predict([*words, "--dicom-out", str(tmp_path / "results")])
    wanted = pydicom.dcmread(tmp_path / "results/1.2.3.8-sr.dcm")
    answer = client.post(SR, files=form(("a.dcm", data)))
    assert answer.headers["Content-Type"] == "application/dicom"
    found = pydicom.dcmread(io.BytesIO(answer.content))
    row = client.post("/predict", files=form(("a.dcm", data))).json()["rows"][0]
    assert probability_in(found) == pytest.approx(row["probability"], rel=1e-12)
    assert probability_in(found) == pytest.approx(probability_in(wanted), abs=1e-6)
    assert found.SOPInstanceUID == wanted.SOPInstanceUID
    assert [(one.tag, one.VR) for one in found.iterall()] == [(one.tag, one.VR) for one in wanted.iterall()]


def test_the_card_says_what_validation_says(client):
    card = client.get("/model").json()
    own = card["operating_points"][0]
    assert own["threshold"] == card["threshold"] == 0.4
    assert own["sensitivity"]["low"] < own["sensitivity"]["value"] < own["sensitivity"]["high"]
    bins = card["reliability"]
    assert bins[0]["from"] == 0
    assert bins[-1]["to"] == 1
    assert [one["to"] for one in bins[:-1]] == [one["from"] for one in bins[1:]]
    assert all(one["from"] <= one["mean_probability"] <= one["to"] for one in bins)
    assert sum(one["images"] for one in bins) == card["validation"]["images"] == 240
    assert card["conformal"] == {"coverage": 0.9, "groups": [120, 80], "promised": [True, True]}


def test_pages_load_nothing_from_elsewhere(client):
    docs = client.get("/docs")
    assert "POST /predict" in docs.text
    assert "://" not in docs.text
    assert "default-src 'self'" in docs.headers["Content-Security-Policy"]
    assert {"/predict", "/picture", "/model"} <= set(client.get("/openapi.json").json()["paths"])
    assert client.get("/").status_code == 200
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"status": "ready"}


def test_metrics_count_what_was_asked(client):
    def count():
        lines = client.get("/metrics").text.splitlines()
        return float(dict(line.rsplit(" ", 1) for line in lines)['fracray_pictures_total{outcome="failed"}'])

    client.post("/predict", files=form(("t.dcm", b"text")))
    before = count()
    client.post("/predict", files=form(("t.dcm", b"text"), ("a.jpg", jpeg(picture(1)))))
    assert count() == before + 1


# ---------------------------------------------------------------- bad input


def zipped():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(2**24))
    return stream.getvalue()


TINY = jpeg(picture(1))


def named(charset, name, field="files"):
    """A request whose names are written in a charset of the client's choice."""
    head = f'--x\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'
    kind = f"multipart/form-data; boundary=x; charset={charset}"
    return {"content": head.encode() + TINY + b"\r\n--x--\r\n", "headers": {"Content-Type": kind}}


@pytest.mark.parametrize(
    ("path", "asked", "status", "words"),
    [
        ("/predict", {"files": form(("a.png", bytes(2**21)))}, 413, "--max-megabytes"),
        ("/predict", {"files": form(*[("a.jpg", TINY)] * 4)}, 413, "more than 3 files"),
        ("/predict", {"files": form(("big.png", png(np.zeros((1100, 1100), np.uint8))))}, 413, "1,000,000 pixels"),
        ("/picture", {"files": form(("big.png", png(np.zeros((1100, 1100), np.uint8))))}, 413, "1,000,000 pixels"),
        ("/predict", {"files": form(("a.zip", zipped()))}, 413, "send the pictures in it"),
        ("/predict", {"files": [("image", ("a.jpg", TINY))]}, 400, "the field 'image' is not known"),
        ("/predict", {"data": {"files": "text"}, "files": {}}, 415, "multipart/form-data"),
        ("/predict", {"json": {}}, 415, "multipart/form-data"),
        ("/predict", {"files": form(("a.jpg", TINY)), "headers": {"Content-Encoding": "gzip"}}, 415, "compression"),
        (SR, {"files": form(("a.jpg", TINY))}, 422, "a.jpg: not a DICOM file; send one"),
        (SR, {"files": form(("cut.dcm", dicom(5, **SERIES)[:9000]))}, 422, "send a sound DICOM file"),
        (SR, {"files": form(("bare.dcm", dicom(5)))}, 422, "no DICOM SR: (0020,000D) StudyInstanceUID is missing"),
        (SR, {"files": form(*[("a.dcm", dicom(5, **SERIES))] * 2)}, 400, "2 files; send one at a time"),
        ("/predict", named("unicode_escape", r"\ud800.png"), 400, "no valid Unicode; send names in UTF-8"),
        ("/picture", named("unicode_escape", r"\ud800.png"), 400, "no valid Unicode; send names in UTF-8"),
        ("/predict", named("unicode_escape", "a.png", r"\ud800"), 400, "no valid Unicode; send names in UTF-8"),
        ("/predict", named("undefined", "a.png"), 400, "no valid Unicode; send names in UTF-8"),
        ("/predict?format=pdf", {"files": form(("a.jpg", TINY))}, 422, "format: "),
        ("/picture", {"files": form(("a.jpg", TINY), ("b.jpg", TINY))}, 400, "one picture at a time"),
        ("/picture", {"files": form(("cut.jpg", TINY[:2000]))}, 422, "cut.jpg: the file is cut short"),
        ("/nothing", {"files": form(("a.jpg", TINY))}, 405, "not answered here"),
        ("/predict", {"files": form(("a.jpg", TINY)), "headers": {"Origin": "https://elsewhere.org"}}, 403, "site"),
        ("/predict", {"files": form(("a.jpg", TINY)), "headers": {"Host": "elsewhere.org"}}, 403, "site"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_requests_have_one_clear_answer(client, path, asked, status, words):
    answer = client.post(path, **asked)
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    assert words in answer.json()["error"]


def test_a_form_that_ends_too_early_is_refused(client):
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n' + TINY
    answer = client.post("/predict", content=body, headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert answer.status_code == 400, answer.text


def test_many_at_once_wait_or_are_told_when_to_come_back(server):
    def ask(number):
        with server.client() as asking:
            return asking.post("/predict", files=form((f"{number}.png", png(picture(number)))))

    alone = {number: ask(number).json()["rows"][0]["logit"] for number in range(3)}
    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(ask, [number % 3 for number in range(64)]))
    assert {answer.status_code for answer in answers} == {200, 429}
    for number, answer in enumerate(answers):
        if answer.status_code == 429:
            assert int(answer.headers["Retry-After"]) >= 1
            assert f"{QUEUE} requests are waiting" in answer.json()["error"]
        else:
            assert answer.json()["rows"][0]["logit"] == pytest.approx(alone[number % 3], abs=1e-6)


def test_nothing_of_a_picture_is_printed(server, client):
    client.post("/predict", files=form(("Doe^Jane.dcm", dicom(6)), ("Doe^Jane.jpg", TINY[:2000])))
    time.sleep(0.5)
    assert len(server.lines) == 2, server.lines  # that it starts, and where it serves


# ---------------------------------------------------------------- start and stop


@pytest.fixture(scope="module")
def guarded(checkpoint, tmp_path_factory):
    file = tmp_path_factory.mktemp("token") / "token"
    file.write_text(f"{TOKEN}\n")
    with served(checkpoint, "--host", "0.0.0.0", "--token-file", file, "--timeout", 5) as running:
        running.url = running.url.replace("0.0.0.0", "127.0.0.1")
        yield running


@pytest.mark.parametrize("given", ["", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}0", f"Basic {TOKEN}", "Bearer \xe9"])
def test_a_wrong_token_is_refused(guarded, given):
    with guarded.client() as asking:
        answer = asking.post(
            "/predict", files=form(("a.jpg", TINY)), headers={b"Authorization": given.encode("latin-1")}
        )
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert "Authorization: Bearer" in answer.json()["error"]
        assert asking.get("/model").status_code == 401
        assert asking.get("/health").status_code == asking.get("/").status_code == 200


def test_the_right_token_is_let_in(guarded):
    with guarded.client(headers={"Authorization": f"Bearer {TOKEN}"}) as asking:
        assert asking.post("/predict", files=form(("a.jpg", TINY))).status_code == 200


def test_a_slow_upload_ends(guarded):
    def drops():
        yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n'
        for _ in range(60):
            time.sleep(0.25)
            yield b"."

    headers = {"Content-Type": "multipart/form-data; boundary=x", "Authorization": f"Bearer {TOKEN}"}
    with guarded.client() as asking:
        answer = asking.post("/predict", content=drops(), headers=headers)
    assert answer.status_code == 408
    assert "longer than 5 s" in answer.json()["error"]


def test_sigterm_answers_what_is_in_work_and_ends_with_0(guarded):
    """The last test of this server."""
    answers = []

    def ask():
        with guarded.client(headers={"Authorization": f"Bearer {TOKEN}"}) as asking:
            answers.append(asking.post("/predict", files=form(*[("a.jpg", TINY)] * 40)))

    asking = threading.Thread(target=ask)
    asking.start()
    with guarded.client(headers={"Authorization": f"Bearer {TOKEN}"}) as looking:
        while "fracray_requests_here 1.0" not in looking.get("/metrics").text and not answers:
            pass
    assert guarded.end(signal.SIGTERM) == 0
    asking.join()
    assert answers[0].status_code == 200
    assert len(answers[0].json()["rows"]) == 40
    with pytest.raises(httpx.ConnectError), guarded.client() as late:
        late.get("/health")


def test_ctrl_c_ends_with_130(server):
    """The last test of this server."""
    assert server.end(signal.SIGINT) == 130
    assert server.lines[-1].startswith("interrupted; the server is stopped")


def test_a_server_keeps_its_checkpoint_where_its_network_starts_again(tmp_path):
    place = tiny_checkpoint(tmp_path / "best")
    files = form(("a.jpg", jpeg(picture(1))))
    with served(place) as running, running.client() as asking:
        before = asking.post("/predict", files=files).json()["rows"][0]
        other = load_checkpoint(place)
        weights = {
            name: tensor + tensor.is_floating_point() * 0.25 for name, tensor in other.model.state_dict().items()
        }
        save_checkpoint(place, weights, dataclasses.replace(other.metadata, threshold=0.9), other.predictions)
        for child in psutil.Process(running.process.pid).children(recursive=True):
            child.kill()
        end = time.monotonic() + 120
        while (answer := asking.post("/predict", files=files)).status_code == 503 or answer.json()["rows"][0]["error"]:
            assert time.monotonic() < end, "it did not come back"
            time.sleep(0.2)
        assert answer.json()["rows"][0] == before
        assert asking.get("/model").json()["checkpoint"] == before["checkpoint"]
        assert running.end(signal.SIGINT) == 130


def test_what_cannot_be_served_is_refused_at_once(checkpoint, tmp_path):
    def refuse(*words, folder=checkpoint):
        with pytest.raises(InputError) as raised:
            main([str(folder), *map(str, words)])
        return str(raised.value)

    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "another program uses it" in refuse("--port", taken.getsockname()[1])
    with open_port("127.0.0.1", 0) as starting:  # of a server whose network is not there yet
        assert "another program uses it" in refuse("--port", starting.getsockname()[1])
    assert "--token-file" in refuse("--host", "0.0.0.0")
    assert "--token-file" in refuse("--host", "some-name")
    (tmp_path / "short").write_text("secret\n")
    assert "at least 16" in refuse("--token-file", tmp_path / "short")
    assert "cannot be read" in refuse("--token-file", tmp_path / "none")
    assert "--queue 0" in refuse("--queue", 0)
    assert "--coverage 1" in refuse("--coverage", 1)
    assert "no such checkpoint" in refuse(folder=tmp_path / "none")
    newer = tmp_path / "newer"
    newer.mkdir()
    card = json.loads((checkpoint / "config.json").read_text())
    (newer / "config.json").write_text(json.dumps(card | {"format": 99}))
    (newer / "model.safetensors").write_bytes(b"")
    assert "upgrade" in refuse("--port", 0, folder=newer)
