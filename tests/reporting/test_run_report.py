"""The report as a user gets it: of a real search while it runs and at its end, a training, a refit, a checkpoint."""

import base64
import hashlib
import json
import random
import re
import shutil
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import optuna
import pandas as pd
import pytest
import yaml
from markupsafe import escape
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

import fracray.train
from fracray import report
from fracray.errors import run_verb
from fracray.reporting import write
from fracray.reporting.checklists import CLAIM, TRIPOD_AI
from fracray.reporting.data_section import spoken
from fracray.reporting.documents import model_card
from fracray.reporting.explorer import explorer
from fracray.reporting.run_facts import run_facts
from fracray.reporting.subject import Search, opened
from fracray.runtime.storage import Folder
from fracray.search.space import Choices, Dimension, SearchSpace
from fracray.search.states import State
from fracray.search.trials_table import TrialRow
from fracray.training.checkpoint import read_metadata, read_predictions
from fracray.training.epochs import EpochResult

EVIL = "</script><script>alert(1)</script>&\"'><img src=x onerror=alert(2)>"
OF_A_SEARCH = [
    "answer",
    "search",
    "training",
    "discrimination",
    "operating",
    "subgroups",
    "looks",
    "errors",
    "robustness",
    "data",
    "reproduce",
]


class Page(HTMLParser):
    """Tags and their attributes, ids, the text, and the text of each section."""

    VOID = frozenset(("meta", "img", "br", "wbr"))

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text, self.sections, self.source = [], [], "", {}, text
        self.scripts = []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append((tag, dict(attrs).get("id")))

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if self.open and self.open[-1][0] == "script":
            self.scripts.append(data)
            return
        self.text += data
        for tag, name in self.open:
            if tag == "section":
                self.sections[name] = self.sections.get(name, "") + data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    def data(self):
        return json.loads(self.scripts[0])


def page_of(path):
    return Page(Path(path).read_text(encoding="utf-8"))


@pytest.fixture
def run(searched, tmp_path):
    """A copy of the search, to be changed."""
    return Path(shutil.copytree(searched / "first", tmp_path / "runs/first"))


def written(*words):
    assert run_verb(report.main, [str(word) for word in words]) == 0


def refused(capsys, *words):
    assert run_verb(report.main, [str(word) for word in words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    return said


# ---- a search ------------------------------------------------------------------------------------------------------


def test_a_search_and_a_refit_leave_a_report(searched):
    plain, refitted = (page_of(searched / name / "report.html") for name in ("unrefitted", "first"))
    for page in (plain, refitted):
        assert list(page.sections) == OF_A_SEARCH
    assert "Trained again with seeds 1, 2" not in plain.text
    assert "Trained again with seeds 1, 2" in refitted.text
    assert "The checkpoint is an ensemble" in refitted.text


def test_what_the_page_says_is_what_the_run_holds(searched):
    page = page_of(searched / "unrefitted/report.html")
    table = pd.read_parquet(searched / "unrefitted/trials.parquet")
    last = table.sort_values("epoch").groupby("trial").last()
    best = last.sort_values(["best_val_auroc", "best_val_loss"], ascending=[False, True]).iloc[0]
    assert f"{best.name} is the best of" in page.text
    assert f"val_auroc {best['best_val_auroc']:.4f}" in page.text
    shown = page.data()
    assert sorted(shown["names"]) == sorted(last.index)
    assert shown["names"][0] == best.name
    columns = {column["key"]: column["values"] for column in shown["columns"]}
    assert columns["val_auroc"] == sorted(columns["val_auroc"], reverse=True)
    assert columns["val_auroc"][0] == pytest.approx(best["best_val_auroc"], rel=1e-5)
    assert columns["epochs"][0] == best["epoch"]
    card = read_metadata(searched / "unrefitted/best")
    assert f"threshold is {card.threshold:.3f}" in page.sections["answer"]
    stored = json.loads((searched / "unrefitted/data.json").read_text())
    assert stored["fingerprint"] in page.sections["reproduce"]
    assert f"{stored['flow']['found']:,} images found" in page.sections["data"]
    for one in stored["baselines"]:
        assert f"{one['accuracy']:.3f}" in page.sections["data"]
    spent = sum(table[name].sum() for name in table if name.startswith("seconds_"))
    assert f"({spent:,.0f} core-seconds)" in page.sections["search"]


def test_the_calls_on_validation_are_those_of_the_stored_predictions(searched):
    page, folder = page_of(searched / "first/report.html"), searched / "first/best"
    card, table = read_metadata(folder), read_predictions(folder)
    called = card.calibration.apply(table["logit"]) >= card.threshold
    found, missed = ((table["label"] == 1) & called).sum(), ((table["label"] == 1) & ~called).sum()
    assert f"{found} found" in page.sections["discrimination"]
    assert f"{missed} missed" in page.sections["discrimination"]
    wrong = table[(table["label"] == 1) != called]
    pictures = [image for image in page.all("img") if "under" not in image["alt"]]
    assert {image["alt"].split()[1].rstrip(",") for image in pictures} <= set(wrong["image_id"])
    shown = sum(min(8, int(some.sum())) for some in ((table["label"] == 1) & ~called, (table["label"] == 0) & called))
    assert len(pictures) == shown > 0
    assert len(page.all("img")) == 2 * shown  # each under its map as well


def test_the_page_loads_nothing_and_runs_only_its_own_script(searched):
    page = page_of(searched / "first/report.html")
    links = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert links
    assert all(link.startswith(("#", "data:image/jpeg;base64,")) for link in links)
    assert "url(" not in page.source
    policy = next(meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
    hashed = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert policy == (f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{hashed}'")
    assert not re.search(r"\son\w+=", page.source.partition("<script>")[0])


def test_what_is_drawn_is_told_too(searched):
    page = page_of(searched / "first/report.html")
    charts = [svg for svg in page.all("svg") if svg.get("role") == "img"]
    assert len(charts) > 12
    assert all(svg["aria-label"] for svg in charts)
    assert all(image["alt"] for image in page.all("img"))
    assert len(page.all("table")) == len(page.all("caption"))
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(names) == len(set(names))
    assert {link["href"][1:] for link in page.all("a")} <= set(names)
    assert {attributes["aria-labelledby"] for attributes in page.all("section")} <= set(names)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all("tabindex" in attributes for attributes in page.all("div") if "scroll" in attributes.get("class", ""))


def test_the_command_adds_the_verdicts_and_writes_where_it_is_told(searched, tmp_path):
    written(searched / "first", "--to", tmp_path / "page.html")
    page = page_of(tmp_path / "page.html")
    assert "Not judged here" in page_of(searched / "first/report.html").text
    assert "Not judged here" not in page.text
    assert "shortcuts" in page.sections["data"]


def test_the_run_folder_of_a_refit_stands_for_its_search(searched, tmp_path):
    written(searched / "first/refit", "--to", tmp_path / "page.html")
    assert "Report of a search" in page_of(tmp_path / "page.html").text


def test_a_run_in_a_bucket_gets_its_report_there_and_each_file_is_read_once(searched, s3, monkeypatch):
    store, asked = Folder(s3("reports")), Counter()
    store.upload(searched / "first", "bucketed")
    store.remove("bucketed/report.html")
    read = Folder.read_if_there
    monkeypatch.setattr(Folder, "read_if_there", lambda self, name: asked.update([self.path(name)]) or read(self, name))
    written(s3("reports/bucketed"))
    monkeypatch.undo()
    page = Page(store.read("bucketed/report.html").decode())
    assert list(page.sections) == OF_A_SEARCH
    assert page.all("img")
    assert {path: times for path, times in asked.items() if times > 1} == {}
    trials = [path.partition("/trials/")[2] for path in asked if "bucketed/trials/" in path]
    assert sum(path.endswith("epochs.json") for path in trials) == 4
    assert not [path for path in trials if path.endswith(".safetensors")]  # scores take no weights


def test_a_search_that_runs_is_shown_as_far_as_it_is(run):
    study = study_of(run)
    study.add_trial(optuna.trial.create_trial(state=TrialState.RUNNING))
    overrides = json.loads((run / "overrides.json").read_text())
    (run / "overrides.json").write_text(json.dumps({**overrides, "search.trials": 9}))
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("trials: 4", "trials: 9"))
    for gone in ("best", "refit"):
        shutil.rmtree(run / gone)
    (run / "efficiency.json").unlink()
    written(run)
    page = page_of(run / "report.html")
    assert "The search is not finished: 4 of 9 trials have ended" in page.text
    assert "1 running or interrupted" in page.text
    assert list(page.sections) == OF_A_SEARCH  # from the best trial's own checkpoint


def test_a_search_without_a_finished_epoch_is_a_page_too(run):
    for gone in ("best", "refit", "trials"):
        shutil.rmtree(run / gone)
    for gone in ("optuna.journal", "trials.parquet", "efficiency.json", "data.json", "manifest.parquet"):
        (run / gone).unlink()
    written(run)
    page = page_of(run / "report.html")
    assert list(page.sections) == ["answer", "search", "reproduce"]
    assert "No trial has finished an epoch yet" in page.text
    assert len(page.scripts) == 0


def study_of(run):
    return optuna.load_study(
        study_name="fracray", storage=JournalStorage(JournalFileBackend(str(run / "optuna.journal")))
    )


def test_a_thousand_trials_fit_in_a_page(run):
    study, generator = study_of(run), random.Random(0)
    whole = next(trial for trial in study.trials if trial.state is TrialState.COMPLETE)
    history = json.loads((run / f"trials/t{whole.number:04d}/epochs.json").read_text())
    more, most = [], max(trial.value for trial in study.trials if trial.value is not None)
    for number in range(len(study.trials), 1000):
        leaves = {
            "model.dropout": generator.uniform(0, 0.7),
            "augment.rotate": generator.uniform(0, 30),
            "train.lr": 10 ** generator.uniform(-3, -1),
            "train.loss": generator.choice(["weighted", "plain"]),
        }
        value = most - 0.05 - 0.3 * (0.7 - leaves["model.dropout"]) - 0.02 * generator.random()
        folder = run / f"trials/t{number:04d}"
        folder.mkdir()
        (folder / "epochs.json").write_text(json.dumps([{**epoch, "best_val_auroc": value} for epoch in history]))
        more.append(
            optuna.trial.create_trial(
                params=leaves, distributions=whole.distributions, value=value, user_attrs={"leaves": leaves}
            )
        )
    study.add_trials(more)
    written(run)
    page = page_of(run / "report.html")
    assert len((run / "report.html").read_bytes()) < 2_000_000
    assert len(page.data()["names"]) == 1000
    rows = re.search(r'id="trials">(.*?)</table>', page.source, re.DOTALL)[1].count("<tr")
    assert rows == 1001
    importance = re.search(r"Which settings mattered(.*?)by chance(.*?)%", page.sections["search"], re.DOTALL)
    assert importance
    assert "more than chance" in page.sections["search"]


# ---- other subjects ------------------------------------------------------------------------------------------------


def test_a_training_leaves_a_report(tmp_path, ray_local, capsys):
    words = ["--epochs", "2", "--storage", str(tmp_path), "--name", "one"]
    small = ["data.size=32", "data.phantom.count=150", "data.split.block=10", "model.width=8"]
    fracray.train.main([*words, *(word for leaf in small for word in ("--set", leaf))])
    assert f"report: {tmp_path}/one/report.html" in capsys.readouterr().out
    page = page_of(tmp_path / "one/report.html")
    assert list(page.sections) == [name for name in OF_A_SEARCH if name != "search"]
    assert "trained for 2 of 2 epochs" in page.text
    assert "python -m fracray" in page.sections["reproduce"] or "pytest" in page.sections["reproduce"]
    assert "core-seconds" in page.sections["training"]


def test_a_checkpoint_outside_of_its_run_has_what_it_holds(searched, tmp_path, monkeypatch):
    folder = shutil.copytree(searched / "unrefitted/best", tmp_path / "t0009")
    monkeypatch.chdir(tmp_path)
    written(folder)
    page = page_of(tmp_path / "t0009.html")
    assert list(page.sections) == [
        "answer",
        "discrimination",
        "operating",
        "looks",
        "errors",
        "robustness",
        "reproduce",
    ]
    assert "What predictors without pixels reach is not stored" in page.text
    assert page.all("img")  # phantoms can be drawn anywhere


def test_a_checkpoint_inside_of_its_run_knows_the_data(searched, tmp_path):
    written(searched / "first/trials/t0000/best", "--to", tmp_path / "page.html")
    page = page_of(tmp_path / "page.html")
    assert list(page.sections) == ["answer", *OF_A_SEARCH[3:]]


def test_a_checkpoint_without_predictions_says_so(searched, tmp_path):
    folder = shutil.copytree(searched / "unrefitted/best", tmp_path / "bare")
    (folder / "val_predictions.parquet").unlink()
    written(folder, "--to", tmp_path / "page.html")
    page = page_of(tmp_path / "page.html")
    assert "saved without its predictions" in page.text
    assert list(page.sections) == ["answer", "reproduce"]


# ---- model card and checklists -------------------------------------------------------------------------------------


def test_the_model_card_and_the_checklists_hold_what_the_run_knows(searched, tmp_path):
    files = {name: tmp_path / name for name in ("page.html", "card.md", "claim.json")}
    words = ["--to", files["page.html"], "--model-card", files["card.md"], "--claim", files["claim.json"]]
    written(searched / "first", *words)
    _, front, body = files["card.md"].read_text().split("---\n", 2)
    head = yaml.safe_load(front)
    assert head["library_name"] == "fracray"
    told = {one["type"]: one["value"] for one in head["model-index"][0]["results"][0]["metrics"]}
    with opened(str(searched / "first")) as subject:
        scores = subject.judged.validation.scores
    assert told["roc_auc"] == pytest.approx(scores["auroc"].value, abs=1e-4)
    assert f"| accuracy | {scores['accuracy'].value:.3f}" in body
    assert body.count("TODO: ") >= 4
    assert "Trained again" not in body
    assert "were trained again with seeds 1, 2" in body
    tree = json.loads(files["claim.json"].read_text())
    claim, tripod = tree["CLAIM 2024"], tree["TRIPOD+AI"]
    assert [item["item"] for item in claim] == [str(number) for number in range(1, 45)]
    assert len(tripod) == 52
    assert len({item["item"] for item in tripod}) == 52
    for item in (*claim, *tripod):
        assert ("TODO: " in item["answer"]) == (item["status"] != "filled")
        assert item["answer"].removeprefix("TODO: ")
    known = {item["item"]: item["answer"] for item in claim if item["status"] != "TODO"}
    assert {"7", "9", "19", "20", "22", "23", "24", "25", "26", "27", "28", "29", "35", "36", "37", "39", "43"} <= set(
        known
    )
    assert "t0000" in known["27"] or "seed1" in known["27"]
    stored = json.loads((searched / "first/data.json").read_text())
    assert stored["fingerprint"] in known["7"]
    assert "synthetic" in known["40"]


def test_every_fact_of_a_checklist_is_one_that_a_run_can_have(searched):
    with opened(str(searched / "first")) as subject:
        facts = run_facts(subject, True)
    asked = {name for item in (*CLAIM, *TRIPOD_AI) for name in item.facts}
    # There is no gain where the default configuration wins, and no robustness where nothing is held out or evaluated.
    assert asked - set(facts) <= {"gain", "robustness"}


def test_a_crop_is_part_of_what_the_network_gets(run):
    with opened(str(run)) as subject:
        plain = run_facts(subject, True)["preprocessing"]
        card = replace(subject.judged.card, config=subject.judged.card.config.with_leaves({"data.crop": True}))
        cropped = replace(subject, judged=replace(subject.judged, card=card))
        assert "cropped" not in plain + model_card(subject, True)
        assert "cropped to the part that holds the anatomy" in run_facts(cropped, True)["preprocessing"]
        assert "square.decode_part" in model_card(cropped, True)


# ---- faults --------------------------------------------------------------------------------------------------------


def test_a_report_that_fails_does_not_fail_the_search(searched, monkeypatch, capsys):
    from rich.console import Console

    monkeypatch.setattr(write, "as_html", lambda *_: 1 / 0)
    before = (searched / "first/report.html").read_bytes()
    with opened(str(searched / "first")) as subject:
        write.leave_report(Folder(searched / "first"), subject.manifest, Console(width=200))
    assert capsys.readouterr().out == "warning: no report was written: ZeroDivisionError: division by zero\n"
    assert (searched / "first/report.html").read_bytes() == before


def test_bad_input_is_refused(searched, tmp_path, capsys):
    assert "no such run folder or checkpoint" in refused(capsys, tmp_path / "nowhere")
    assert "not a run folder" in refused(capsys, tmp_path)
    assert "its folder does not exist" in refused(capsys, searched / "first", "--to", tmp_path / "no/page.html")
    assert "no such file or folder" in refused(capsys, searched / "first", "--data", tmp_path / "nowhere")
    other = tmp_path / "other"
    other.mkdir()
    refused(capsys, searched / "first", "--data", other)
    assert "cannot be written" in refused(capsys, searched / "first", "--to", other)


def test_names_cannot_become_part_of_the_page():
    values = Choices((EVIL, "plain"))
    from fracray.config import Config

    space = SearchSpace(Config(), (Dimension("model.name", values),), "space.yaml")
    history = (EpochResult(1, {"val_accuracy": 0.5}, {"val_accuracy": 0.5, "val_loss": 1.0}, 1.0),)
    rows = {number: TrialRow(number, {"model.name": EVIL}, State.DONE, history) for number in (0, 1)}
    shown = str(explorer(Search(space, rows, {}, {}, {}, (), None, {})))
    assert "<img" not in shown
    assert shown.count("<script") == shown.count("</script>") == 1
    assert json.loads(re.search(r"<script[^>]*>(.*)</script>", shown)[1])["columns"][-1]["names"] == [EVIL, "plain"]
    assert str(escape(EVIL)) in shown


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["/opt/x/fracray/tune.py", "--set", "a=b c"], "python -m fracray.tune --set 'a=b c'"),
        (["/opt/x/bin/fracray", "tune", "--name", "x"], "fracray tune --name x"),
        (["/opt/x/fracray/__main__.py", "tune"], "fracray tune"),
    ],
)
def test_the_command_is_told_as_it_is_typed(command, told):
    assert spoken(command) == told
