"""What a report takes besides its run: the network's maps, an evaluation, prices, the page of doubtful labels."""

import json
import shutil
from dataclasses import replace

import pytest
from markupsafe import escape
from rich.console import Console

from fracray import evaluate, report
from fracray.errors import run_verb
from fracray.evaluation.saliency import Check
from fracray.metrics import Interval
from fracray.reporting import looks as looks_section
from fracray.reporting.checklists import CLAIM, TRIPOD_AI
from fracray.reporting.documents import claim_json, model_card
from fracray.reporting.evaluated import read_evaluated
from fracray.reporting.gallery import gallery
from fracray.reporting.looks import looks
from fracray.reporting.page import AtHand, as_html
from fracray.reporting.pictures import images_at_hand
from fracray.reporting.robustness_section import robustness
from fracray.reporting.run_facts import run_facts
from fracray.reporting.subject import opened

CLUSTER = """
provider: {type: aws}
head_node_type: head
max_workers: 4
available_node_types:
  head: {resources: {CPU: 0, GPU: 0}, node_config: {}}
  small: {resources: {CPU: 4}, max_workers: 4, node_config: {}}
"""


@pytest.fixture(scope="module")
def console():
    return Console(width=200, quiet=True)


@pytest.fixture(scope="module")
def evaluated(searched, tmp_path_factory):
    """What evaluate wrote of the search's checkpoint on validation: the file, and its tree."""
    file = tmp_path_factory.mktemp("evaluated") / "val.json"
    words = ["--split", "val", "--saliency", "--operating-points", "--corruptions", "--severities", "1,5"]
    evaluate.main([str(searched / "unrefitted"), *words, "--json", str(file)])
    return file, json.loads(file.read_text())


@pytest.fixture(scope="module")
def page(searched, evaluated, tmp_path_factory):
    """The page of the command with all that it can be given."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "cluster.yaml").write_text(CLUSTER)
    words = [
        "--evaluated",
        evaluated[0],
        "--cluster",
        folder / "cluster.yaml",
        "--price-per-hour",
        "small=0.5,head=0.1",
    ]
    words += ["--to", folder / "page.html"]
    assert run_verb(report.main, [str(word) for word in (searched / "unrefitted", *words)]) == 0
    return (folder / "page.html").read_text()


def section(page, name):
    return page.partition(f'<section id="{name}"')[2].partition("</section>")[0]


def told(interval, places):
    ends = "" if interval["low"] is None else f" [{interval['low']:.{places}f}, {interval['high']:.{places}f}]"
    return f"{interval['value']:.{places}f}{ends}"


def test_the_hits_on_the_page_are_those_of_evaluate(page, evaluated):
    shown, (_, tree) = section(page, "looks"), evaluated
    for one in tree["saliency"]:
        everything = one["looked"][0]
        pointers = everything["pointers"]
        ours = pointers["map"]
        assert told(ours["hit"], 2) in shown
        assert told(ours["energy"], 3) in shown
        assert all(f">{pointers[name]['hit']['value']:.2f}</td>" in shown for name in ("random", "centre", "usual"))
        assert f"{one['cells']} x {one['cells']} cells" in shown
        assert [each["name"] for each in one["looked"] if f">{each['name']}</th>" not in shown] == []
    assert f"Counted on all {everything['images']} fractured" in shown
    assert "With a random head it is" in shown
    assert "random: all weights" in shown


def test_of_many_radiographs_a_stated_sample_is_looked_at(searched, console, monkeypatch):
    monkeypatch.setattr(looks_section, "MOST_LOOKED", 4)
    monkeypatch.setattr(looks_section, "CHECK", Check(images=2, draws=1))
    with opened(str(searched / "unrefitted")) as subject:
        images = images_at_hand(subject, None, console)
        shown = str(looks(subject, images, console).body)
    boxed = int((subject.judged.validation.labels == 1).sum())
    counted = int(shown.partition("Counted on ")[2].partition(" ")[0])
    # Those of the sanity check are looked at as well.
    assert 4 <= counted <= 6 < boxed
    assert f"every k-th of the {boxed} fractured" in shown


def test_a_network_that_gets_a_part_of_the_picture_is_looked_at_in_that_part(searched, console):
    with opened(str(searched / "unrefitted")) as subject:
        images = images_at_hand(subject, None, console)
        card = replace(subject.judged.card, config=subject.judged.card.config.with_leaves({"data.crop": True}))
        cropped = replace(subject, judged=replace(subject.judged, card=card))
        whole, part = (str(looks(one, images, console).body) for one in (subject, cropped))
    assert "hits of the map" in part
    assert part != whole


def test_without_the_radiographs_or_the_time_nothing_is_counted(searched, console):
    with opened(str(searched / "unrefitted")) as subject:
        images = images_at_hand(subject, None, console)
        assert "name the data with --data" in looks(subject, None, console).body
        assert "python -m fracray.report counts it" in looks(subject, images, None).body


# ---- robustness ----------------------------------------------------------------------------------------------------


def test_the_corruptions_on_the_page_are_those_of_the_evaluation(page, evaluated):
    shown, suite = section(page, "robustness"), evaluated[1]["corruptions"]
    for name, one in suite["corruptions"].items():
        assert f">{name}</th>" in shown
        assert told(one["mean"], 2) in shown
    clean = suite["clean"]["balanced_error"]
    assert f"the radiographs as they are is {clean['value']:.3f}" in shown
    hurt = [name for name, one in suite["corruptions"].items() if (one["excess"]["low"] or 0) > 0]
    assert (f"{len(hurt)} of 21 corruptions clearly raise it" if hurt else "no corruption clearly raises it") in shown
    assert shown.count("clearly worse") == len(hurt)
    assert "Balanced error by severity" in shown


def test_what_clearly_hurts_is_named_and_comes_first(searched, evaluated, tmp_path):
    tree = json.loads(evaluated[0].read_text())
    excess = {"rotation": (0.2, 0.1, 0.3), "pixelate": (0.3, -0.1, 0.7), "inversion": (0.1, 0.05, 0.15)}
    for name, one in tree["corruptions"]["corruptions"].items():
        one["excess"] = dict(zip(("value", "low", "high"), excess.get(name, (0.0, -0.1, 0.1)), strict=True))
        one["mean"] = {"value": 0.4, "low": 0.3, "high": 0.5}
    (tmp_path / "scores.json").write_text(json.dumps(tree))
    with opened(str(searched / "unrefitted")) as subject:
        found = read_evaluated(str(tmp_path / "scores.json"), subject.judged.card)
        with_it = replace(subject, evaluated=found)
        shown, facts = str(robustness(with_it).body), run_facts(with_it, True)
    assert [one.name for one in found.corruptions][:3] == ["pixelate", "rotation", "inversion"]
    assert "2 of 21 corruptions clearly raise it, most of all rotation (to 0.400 on average), inversion" in shown
    assert shown.count("clearly worse") == 2
    assert "+0.20 [+0.10, +0.30]" in shown
    assert "2 clearly raise the balanced error: rotation, inversion." in facts["robustness"]


def test_without_an_evaluation_the_page_says_how_to_make_one(searched, console):
    with opened(str(searched / "unrefitted")) as subject:
        shown = section(as_html(subject, AtHand()), "robustness")
    assert "The split holds nothing out" in shown
    assert f"python -m fracray.evaluate {searched / 'unrefitted'} --corruptions --json scores.json" in shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [("[]", "not what evaluate --json writes"), ("{", "not what evaluate --json writes"), (None, "is of t")],
)
def test_another_file_is_refused(searched, evaluated, tmp_path, capsys, text, expected):
    tree = evaluated[1]
    other = tree | {"checkpoints": [tree["checkpoints"][0] | {"epoch": 99}]}
    (tmp_path / "scores.json").write_text(json.dumps(other) if text is None else text)
    words = [
        str(searched / "unrefitted"),
        "--evaluated",
        str(tmp_path / "scores.json"),
        "--to",
        str(tmp_path / "x.html"),
    ]
    assert run_verb(report.main, words) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: --evaluated {tmp_path / 'scores.json'}: ")
    assert expected in said
    assert said.count("\n") == 1


# ---- operating points, money, doubtful labels ----------------------------------------------------------------------


def test_the_rules_of_operating_points_are_told_as_evaluate_tells_them(page, evaluated):
    rules = [one["rule"] for one in evaluated[1]["operating_points"]["points"]]
    assert len(rules) == 6
    assert [rule for rule in rules if f">{escape(rule)}</th>" not in section(page, "operating")] == []


def test_what_the_search_cost_is_told_in_money(page):
    shown = section(page, "search")
    core_hours = float(shown.partition(" core-seconds)")[0].rpartition("(")[2].replace(",", "")) / 3600
    line = shown.partition("on small at 0.5 an hour: ")[2]
    hours, cost = float(line.split()[0]), float(line.split()[2].rstrip(";"))
    # A node has four CPUs; the page rounds to whole core-seconds, of which so small a search has a few.
    assert hours == pytest.approx(core_hours / 4, rel=0.1, abs=0.5 / 3600 / 4)
    assert cost == pytest.approx(0.5 * hours, rel=0.1)
    assert "with head at 0.1 an hour" in line
    assert "Not in it: nodes that start or stand idle" in shown


def test_the_page_links_to_the_doubtful_labels_where_the_link_holds(searched, tmp_path):
    run = shutil.copytree(searched / "first", tmp_path / "first")
    with opened(str(run)) as subject:
        assert "doubtful" not in str(gallery(subject, None, True).body)
    (run / "refit/doubtful.html").write_text("<!DOCTYPE html>")
    with opened(str(run)) as subject:
        assert '<a href="refit/doubtful.html">' in str(gallery(subject, None, True).body)
        elsewhere = str(gallery(subject, None, False).body)
    assert "<a " not in elsewhere
    assert f"{run}/refit/doubtful.html" in elsewhere


# ---- checklists ----------------------------------------------------------------------------------------------------


def test_the_items_have_the_published_numbers_and_kinds():
    assert [item.number for item in CLAIM] == [str(number) for number in range(1, 45)]
    lettered = {3: 3, 5: 2, 6: 3, 8: 3, 9: 3, 12: 7, 18: 6, 20: 3, 23: 2, 27: 3}
    numbers = [
        f"{number}{letter}" for number in range(1, 28) for letter in ("abcdefg"[: lettered.get(number, 0)] or ("",))
    ]
    assert [item.number for item in TRIPOD_AI] == numbers
    kinds = {kind: {item.number for item in TRIPOD_AI if item.only == kind} for kind in ("development", "evaluation")}
    assert kinds["development"] == {"9a", "12a", "12b", "12c", "15", "22", "27a", "27b"}
    assert kinds["evaluation"] == {"12f", "12g", "20c", "24"}


def test_a_checklist_does_not_promise_pictures_that_were_not_at_hand(searched):
    with opened(str(searched / "unrefitted")) as subject:
        texts = {at_hand: claim_json(subject, at_hand) + model_card(subject, at_hand) for at_hand in (True, False)}
    assert "with their pictures" in texts[True]
    assert "hit rates and a sanity check" in texts[True]
    assert "with their pictures" not in texts[False]
    assert "No maps were made" in texts[False]


def test_the_gain_is_that_of_the_refit_also_where_it_found_none(searched):
    with opened(str(searched / "first")) as subject:
        search = replace(subject.search, gains={"val_auroc": Interval(0.25, 0.1, 0.4)})
        unbeaten = replace(subject, search=search, refit=replace(subject.refit, gains={}))
        assert subject.refit.found
        assert "gain" not in run_facts(unbeaten, True)
        assert "+0.2500 val_auroc" in run_facts(replace(unbeaten, refit=None), True)["gain"]


def test_settings_without_an_effect_are_left_out(searched):
    with opened(str(searched / "unrefitted")) as subject:
        facts = run_facts(subject, True)
        leaves = {"model.localise": False, "train.loss": "focal", "augment.flip": 0.0, "train.first_size": 16}
        leaves |= {"train.balance": 0.5}
        card = replace(subject.judged.card, config=subject.judged.card.config.with_leaves(leaves))
        other = run_facts(replace(subject, judged=replace(subject.judged, card=card)), True)
    assert "images are not resampled" in facts["imbalance"]
    assert "balance" not in facts["training"]
    assert "50% of the way towards half of each class" in other["imbalance"]
    assert "not resampled" not in other["imbalance"]
    assert "box_weight 1" in facts["training"]
    assert "flip 0.5" in facts["augmentation"]
    for name in ("focal_gamma", "grow_at", "label_smoothing", "keep_seconds", "threads"):
        assert name not in facts["training"]
    assert "seed 0" in facts["training"]
    assert "box_weight" not in other["training"]
    assert "focal_gamma 2" in other["training"]
    assert "grow_at 0.6" in other["training"]
    assert "flip" not in other["augmentation"].replace("vertical_flip", "")
