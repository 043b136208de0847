"""The page of fracray.serve in a real browser: pictures to the pixel, windows, heatmaps, files in and out, access."""

import base64
import csv
import importlib.util
import io
import json
import re
import shutil
import socket
from contextlib import ExitStack, contextmanager
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from drawn_dicom import as_bytes, dataset
from drawn_fracatlas import jpeg, picture
from driven_page import CHROMIUM_FLAGS, Page, gray_of, share_in, wait
from served import probability_in, served, tiny_checkpoint

from fracray.data.images.decode import decode
from fracray.prediction import familiar
from fracray.runtime.spreadsheets import of_cell
from fracray.training.checkpoint import read_metadata, read_predictions

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromium-driver (Debian)")

TOKEN = "a-token-of-the-tests"
QUEUE = 3  # fewer than the page asks for at once of a folder, and enough for two files


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "best")


@pytest.fixture(scope="module")
def server(checkpoint, tmp_path_factory):
    """A client of fracray.serve that has its token."""
    token = tmp_path_factory.mktemp("server") / "token"
    token.write_text(TOKEN)
    with (
        served(checkpoint, "--decoders", 1, "--queue", QUEUE, "--token-file", token) as serving,
        serving.client(headers={"Authorization": f"Bearer {TOKEN}"}) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def browser(server, tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    downloads = tmp_path_factory.mktemp("downloads")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in CHROMIUM_FLAGS:
        options.add_argument(word)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options=options, service=Service(DRIVER)) as driver:
        yield Page(driver, str(server.base_url), downloads)


@pytest.fixture
def page(browser):
    """The page, loaded anew and with the token given."""
    browser.load(TOKEN)
    yield browser
    wrong = [entry["message"] for entry in browser.driver.get_log("browser") if entry["level"] == "SEVERE"]
    assert not [message for message in wrong if "the server responded with a status" not in message]


def share_of(page):
    """The probability of the open radiograph as it is said, in percent."""
    return share_in(page.text("probability"))


def window_of(page):
    return tuple(float(page.get(name).get_attribute("value")) for name in ("center", "width"))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """By kind: a 12-bit DICOM file with a window, a JPEG, text called .dcm, and the DICOM's stored values."""
    folder = tmp_path_factory.mktemp("files")
    stored = np.linspace(0, 4095, 240 * 301).astype(np.uint16).reshape(240, 301)
    stored[60:120, 40:90] = 3000
    series = {"StudyInstanceUID": "1.2.99", "SeriesInstanceUID": "1.2.98"}
    made = dataset(stored, bits=12, WindowCenter="1800", WindowWidth="2400", **series)
    (folder / "hand.dcm").write_bytes(as_bytes(made))
    (folder / "foot.jpg").write_bytes(jpeg(picture(3)))
    (folder / "text.dcm").write_text("text called .dcm")
    return {"dicom": folder / "hand.dcm", "jpeg": folder / "foot.jpg", "text": folder / "text.dcm", "stored": stored}


# ---------------------------------------------------------------- the picture


def test_a_dicom_file_is_shown_at_its_full_depth_under_any_window(page, files):
    stored = files["stored"]
    page.drop(files["dicom"])
    page.read(1)
    page.press("actual")
    assert page.shows(gray_of(stored, (1800 - 0.5, 2400 - 1)))  # LINEAR of PS3.3 C.11.2.1.2.1
    assert np.abs(page.canvas(*stored.shape)[..., 0].astype(int) - decode(files["dicom"].read_bytes()).gray).max() <= 1
    page.type("center", 3000)
    page.type("width", 16)  # far fewer than the 4096 stored values
    assert page.shows(gray_of(stored, (3000, 16)))
    page.press("invert")
    assert page.shows(gray_of(stored, (3000, 16), True))
    page.get("canvas").send_keys("i")
    page.get("canvas").send_keys("r")
    assert page.shows(np.rot90(gray_of(stored, (3000, 16)), -1))
    page.press("turn-left")
    page.press("turn-left")
    assert page.shows(np.rot90(gray_of(stored, (3000, 16))))
    page.get("canvas").send_keys("rx")
    assert page.shows(gray_of(stored, (1800 - 0.5, 2400 - 1)))


@pytest.mark.parametrize("window", [(32768, 65536), (-9000, 20000), (2048, 2)], ids=str)
def test_a_window_of_any_size_is_shown_as_the_network_sees_it(page, server, files, window, tmp_path):
    center, width = window
    data = as_bytes(dataset(files["stored"], bits=12, WindowCenter=str(center), WindowWidth=str(width)))
    (tmp_path / "odd.dcm").write_bytes(data)
    answer = server.post("/picture", files={"files": data})
    told = [float(answer.headers[f"X-Window-{name}"]) for name in ("Center", "Width")]
    stored = np.frombuffer(answer.content, "<u2").reshape(files["stored"].shape)
    page.drop(tmp_path / "odd.dcm")
    page.read(1)
    page.press("actual")
    assert page.shows(gray_of(stored, told))
    assert np.abs(page.canvas(*stored.shape)[..., 0].astype(int) - decode(data).gray).max() <= 1
    page.press("invert")
    assert page.shows(gray_of(stored, told, True))


def test_dragging_changes_the_window_and_moves_and_zooms_the_picture(page, files):
    from selenium.webdriver import ActionChains

    page.drop(files["dicom"])
    page.read(1)
    canvas, (center, width) = page.get("canvas"), window_of(page)

    def drag(across, down):
        ActionChains(page.driver, 10).drag_and_drop_by_offset(canvas, across, down).perform()
        return page.canvas()[..., 0]

    whole = page.canvas()[..., 0]
    lit = drag(0, -50)
    assert window_of(page)[0] < center
    assert window_of(page)[1] == width
    assert lit.mean() > whole.mean() + 3
    drag(100, 0)
    assert window_of(page)[1] > width
    canvas.send_keys("x")
    assert window_of(page) == (center, width)
    page.press("tool-move")
    moved = drag(30, 20)
    assert np.array_equal(moved[25:, 35:], whole[5:-20, 5:-30])
    canvas.send_keys(*"++")
    larger = page.canvas()[..., 0]
    assert (larger > 0).mean() > (moved > 0).mean()
    canvas.send_keys("f")
    assert np.array_equal(page.canvas()[..., 0], whole)


def test_a_large_picture_is_said_to_be_drawn_from_smaller_copies_and_is(page, tmp_path):
    stored = np.full((5200, 5000), 100, np.uint8)
    stored[::2, ::2] = 200  # mean 125
    cv2.imwrite(str(tmp_path / "large.png"), stored, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    page.drop(tmp_path / "large.png")
    page.read(1)
    assert page.text("stage-words").startswith("26 megapixels")
    assert set(np.unique(page.canvas(200, 200))) <= {125}
    page.press("actual")
    assert set(np.unique(page.canvas(200, 200))) == {100, 200}


def test_the_heatmap_lies_over_the_picture_only_while_it_is_asked_for(page, server, files):
    row = server.post("/predict?heatmap=1", files={"files": files["jpeg"].read_bytes()}).json()["rows"][0]
    level = cv2.imdecode(np.frombuffer(base64.b64decode(row["heatmap"]), np.uint8), cv2.IMREAD_UNCHANGED)
    page.drop(files["jpeg"])
    page.read(1)
    page.press("actual")
    plain = page.canvas(200, 160).astype(float)
    page.type("opacity", 50)
    page.get("canvas").send_keys("h")
    wait(lambda: page.text("heat-words").startswith("Red is"))
    under = page.canvas(200, 160).astype(float)
    weight = 0.5 * cv2.resize(level, (160, 200), interpolation=cv2.INTER_LINEAR)[..., None] / 255
    expected = plain * (1 - weight) + np.array([255, 60, 60]) * weight
    rows, columns = np.mgrid[:200, :160]
    away = np.hypot(rows - row["peak_y"], columns - row["peak_x"]) > 21  # the ring that marks the peak
    assert np.abs(under - expected)[away].mean() < 2
    assert np.abs(plain - expected)[away].mean() > 8
    assert np.abs(under - expected)[~away].max() > 50
    page.press("heat")
    assert np.array_equal(page.canvas(200, 160), plain)


# ---------------------------------------------------------------- what is said, and taken away


@contextmanager
def all_places_taken(server):
    """Within the block, uploads that do not go on fill the queue."""
    host, port = server.base_url.host, server.base_url.port
    head = (
        f"POST /predict HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 1000\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
    )
    with ExitStack() as held:
        for _ in range(QUEUE):
            held.enter_context(socket.create_connection((host, port), timeout=60)).sendall(head.encode())
        wait(lambda: f"fracray_requests_here {QUEUE}.0" in server.get("/metrics").text)
        yield


def test_a_folder_is_read_and_its_rows_are_taken_away(page, server, files, tmp_path):
    folder = tmp_path / "ward"
    (folder / "b").mkdir(parents=True)
    for seed in range(9):
        (folder / f"b/x{seed}.jpg").write_bytes(jpeg(picture(seed)))
    (folder / "notes, old.csv").write_text("a,b\n")
    shutil.copy(files["dicom"], folder)
    page.watch("busy")
    with all_places_taken(server):
        page.drop(folder, files["text"])
        wait(lambda: any("The server is busy. Trying again in " in words for words in page.watched()))
    labels = page.read(11)
    assert page.text("counts") == "10 radiographs read; 1 file without a prediction; 1 other file skipped"
    assert re.fullmatch(r"text\.dcm: error: .+", labels[-1])
    assert 'status="429"' in server.get("/metrics").text
    shares = [float(re.search(r": ([\d.]+)%", label)[1]) for label in labels[:-1]]
    assert shares == sorted(shares, reverse=True)
    page.press("take-json")
    taken = json.loads(page.saved("predictions.json"))
    assert "research" in taken["note"]
    for row in taken["rows"]:
        path = files["text"] if row["error"] else tmp_path / row["path"]
        answer = server.post("/predict", files={"files": (path.name, path.read_bytes())}).json()["rows"][0]
        same = {
            name: value for name, value in answer.items() if name not in ("path", "heatmap", "logit", "probability")
        }
        assert {name: row[name] for name in same} == same
        if not row["error"]:
            assert row["probability"] == pytest.approx(answer["probability"], abs=1e-6)
            assert row["chosen_call"] == int(row["probability"] >= row["chosen_threshold"]) == row["call"]
    page.press("take-csv")
    written = list(csv.DictReader(io.StringIO(page.saved("predictions.csv").decode())))
    assert [row["path"] for row in written] == [row["path"] for row in taken["rows"]]
    assert written[0]["probability"] == str(taken["rows"][0]["probability"])
    assert written[-1]["probability"] == written[-1]["chosen_call"] == ""


def test_no_text_of_the_csv_is_a_formula_and_numbers_stay_numbers(page):
    rows = [
        {"path": "=1+1.png", "flags": "\t@", "logit": -0.5, "error": ""},
        {"path": "'-x", "flags": "a-b", "logit": 1},
    ]
    written = page.driver.execute_async_script(
        "const [rows, done] = arguments; import('./takeaway.js').then(({ asCsv }) => "
        "done(asCsv(rows, { name: '-own', threshold: 0.5 })))",
        rows,
    )
    found = list(csv.DictReader(io.StringIO(written, newline="")))
    assert [(row["path"], row["flags"], row["logit"]) for row in found] == [
        ("'=1+1.png", "'\t@", "-0.5"),
        ("''-x", "a-b", "1"),
    ]
    assert [of_cell(row["path"]) for row in found] == [row["path"] for row in rows]
    assert {row["chosen_point"] for row in found} == {"'-own"}


def test_the_sentence_on_reliability_tells_of_the_validation_radiographs_of_that_range(page, server, files):
    page.drop(files["jpeg"])
    page.read(1)
    words = page.text("reliability")
    assert re.match(r"Of \d+ validation radiographs .+, \d+ w\w+ fractured .+; 95% band", words)
    images, low, high, fractured, share, _, least, most = map(float, re.findall(r"\d+(?:\.\d)?", words))
    assert low <= share_of(page) <= high
    row = server.post("/predict", files={"files": files["jpeg"].read_bytes()}).json()["rows"][0]
    bins = server.get("/model").json()["reliability"]
    right = next(one for one in bins if one["from"] <= row["probability"] < one["to"])
    assert images == right["images"]
    assert fractured == pytest.approx(right["images"] * right["share"])
    ends = [100 * right[name] for name in ("from", "to", "share", "low", "high")]
    assert [low, high, share, least, most] == pytest.approx(ends, abs=0.051)


def test_another_threshold_changes_the_calls_and_says_what_it_costs(page, files, checkpoint):
    from selenium.webdriver.support.ui import Select

    page.drop(files["dicom"], files["jpeg"])
    page.read(2)
    known = read_predictions(checkpoint)
    probability = read_metadata(checkpoint).calibration.apply(known["logit"])
    select = Select(page.get("point"))
    assert len(select.options) >= 2
    for number, option in enumerate([option.text for option in select.options]):
        select.select_by_index(number)
        threshold = share_in(option) / 100
        _, of_fractured, of_others = re.split("sensitivity (?=[0-9])|specificity (?=[0-9])", page.text("point-words"))
        found, left = share_in(of_fractured) / 100, share_in(of_others) / 100
        assert found == pytest.approx((probability >= threshold)[known["label"] == 1].mean(), abs=0.01)
        assert left == pytest.approx((probability < threshold)[known["label"] == 0].mean(), abs=0.01)
        assert page.text("call").startswith("At or above" if share_of(page) >= 100 * threshold else "Below")


def test_an_unreadable_file_says_why_and_the_next_one_is_read(page, files):
    page.drop(files["text"])
    page.read(1)
    assert page.text("result-error").startswith("No prediction: ")
    assert page.text("stage-words").startswith("No picture: ")
    page.drop(files["jpeg"])
    page.read(2)
    assert "probability" in page.text("probability")
    assert page.get("canvas").get_attribute("aria-label") == "Radiograph foot.jpg, 160 by 200 pixels"
    page.get("canvas").send_keys("j")
    assert page.text("result-title") == "text.dcm"
    page.press("clear")
    assert page.rows() == []
    assert not page.get("result-row").is_displayed()


def test_stop_leaves_out_what_waits(page, tmp_path):
    for seed in range(40):
        (tmp_path / f"{seed}.jpg").write_bytes(jpeg(picture(seed)))
    page.driver.execute_script(
        "const words = document.getElementById('progress-words');"
        "const watch = new MutationObserver(() => { if (words.textContent.startsWith('Read 0')) return;"
        "watch.disconnect(); document.getElementById('stop').click() });"
        "watch.observe(words, {childList: true})"
    )
    page.drop(tmp_path)
    wait(lambda: not page.get("reading").is_displayed() and page.rows())
    assert 1 <= len(page.rows()) <= 8
    assert re.fullmatch(r"\d radiographs? read; stopped, and the rest left out", page.text("counts"))


def test_dicom_sr_of_the_open_dicom_file_is_saved(page, server, files):
    page.drop(files["jpeg"])
    page.read(1)
    assert not page.get("take-sr").is_enabled()
    page.drop(files["dicom"])
    page.read(2)
    page.press("take-sr")
    wait(lambda: not page.text("sr-words").startswith(("CSV", "Writing")))
    assert page.text("sr-words") == "The DICOM SR of the open radiograph is saved."
    report = pydicom.dcmread(io.BytesIO(page.saved("hand-sr.dcm")))
    row = server.post("/predict", files={"files": files["dicom"].read_bytes()}).json()["rows"][0]
    assert report.StudyInstanceUID == row["study_instance_uid"] == "1.2.99"
    assert probability_in(report) == pytest.approx(row["probability"], rel=1e-12)


def test_each_flag_has_a_sentence(page):
    bounds = dict.fromkeys(familiar.WORDS, (9.0, 0.0))  # everything is beyond both
    odd = {"fault": "blank", "refilled": 1, "note": "", "brightness": 0.5, "width": 1, "height": 2}
    flags = [*familiar.Familiar(bounds, {}, {}, 0.0).flags(odd, 1.0), "header"]
    assert len(flags) == 10
    said = page.driver.execute_async_script(
        "const [flags, done] = arguments; import('./words.js').then(({ remarks }) => "
        "done(remarks({ flags }, {}).map(({ words }) => words)))",
        "+".join(flags),
    )
    assert len(set(said)) == 10
    assert not [words for words in said if words.startswith("Flag")]


# ---------------------------------------------------------------- access


def test_a_wrong_token_is_asked_for_again_and_nothing_is_stored(browser, files):
    browser.load("wrong", "typed – with a dash", TOKEN)  # no browser sends a dash in a header
    browser.drop(files["jpeg"])
    browser.read(1)
    assert browser.text("result-title") == "foot.jpg"
    kept = browser.driver.execute_async_script(
        "const done = arguments[0]; Promise.all([indexedDB.databases(), caches.keys()]).then(([a, b]) => done("
        "[localStorage.length, sessionStorage.length, document.cookie, a.length, b.length]))"
    )
    assert kept == [0, 0, "", 0, 0]


@pytest.mark.skipif(not importlib.util.find_spec("axe_core_python"), reason="needs axe-core-python")
@pytest.mark.parametrize("shade", ["light", "dark"])
def test_axe_finds_nothing_to_mend(page, files, shade):
    axe = importlib.util.find_spec("axe_core_python").submodule_search_locations[0]
    features = [{"name": "prefers-color-scheme", "value": shade}]
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    page.drop(files["jpeg"], files["text"])
    page.read(2)
    page.driver.execute_script(Path(axe, "axe.min.js").read_text())
    found = page.driver.execute_async_script("axe.run().then(arguments[arguments.length - 1])")
    assert len(found["passes"]) > 20
    assert [(one["id"], [node["target"] for node in one["nodes"]]) for one in found["violations"]] == []


@pytest.mark.parametrize("width", [400, 1000, 1600])
def test_no_width_needs_to_be_scrolled_sideways_and_the_warning_stays(page, files, width):
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        page.drop(files["jpeg"], files["text"])
        page.read(2)
        page.driver.execute_script("window.scrollTo(0, 1e6)")
        assert page.driver.execute_script("return document.documentElement.scrollWidth") <= width
        top = page.driver.execute_script("return document.getElementById('notice').getBoundingClientRect().top")
        assert 0 <= top < 60
        assert page.text("notice") == "For research only. Not a medical device."
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
