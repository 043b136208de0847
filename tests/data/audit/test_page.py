"""The audit as a user gets it: the verb, its JSON, and its page, parsed as a browser would."""

import base64
import json
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from drawn_fracatlas import Atlas, jpeg, picture

from fracray.data import __main__ as data
from fracray.data.audit.find import find
from fracray.data.audit.page import HEADINGS, as_html, as_json
from fracray.data.audit.scan import examine
from fracray.data.audit.verdicts import judge
from fracray.data.manifest import Manifest
from fracray.data.sources.fracatlas import read_fracatlas
from fracray.errors import run_verb

EVIL = "<script>alert(1)</script>&\"'><img src=x onerror=alert(2)>"


class Page(HTMLParser):
    """Tags and their attributes, the text, and each figure as it is shown and as machines read it."""

    VOID = frozenset(("meta", "img", "br", "line", "circle", "rect"))

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.facts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] == "data":
            attributes = next(attributes for tag, attributes in reversed(self.tags) if tag == "data")
            self.facts[attributes["data-fact"]] = [attributes["value"], data]

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def drawn(root: Path) -> Atlas:
    """A folder with one of each defect."""
    atlas = Atlas(root)
    for number in range(1, 31):
        atlas.add(number, number % 2, hand=int(number % 3 == 0), leg=int(number % 3 > 0))
    atlas.add(41, 0, data=jpeg(picture(1)))
    atlas.add(42, 0, data=jpeg(picture(2)))
    atlas.add(43, 1, data=jpeg(picture(3))[:-300])
    atlas.add(44, 0, data=b"no image")
    refilled = picture(45, 160, 192)
    refilled[128:] = np.tile(np.eye(8, dtype=np.uint8) * 90 + 20, (8, 20))
    atlas.add(45, 1, data=jpeg(refilled, 95))
    return atlas


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Manifest:
    return examine(read_fracatlas(drawn(tmp_path_factory.mktemp("drawn") / "FracAtlas").write()))


def audited(manifest: Manifest) -> tuple[dict, Page, str]:
    findings = find(manifest, "drawn", block=1)
    verdicts = judge(findings)
    html = as_html(findings, verdicts, manifest)
    return json.loads(as_json(findings, verdicts)), Page(html), html


def at(tree: object, path: str) -> object:
    for key in path.split("."):
        tree = tree[int(key)] if isinstance(tree, list) else tree[key]  # type: ignore[index]
    return tree


def test_the_page_has_every_section_and_the_figures_of_the_json(manifest):
    tree, page, _ = audited(manifest)
    assert [section["id"] for section in page.all("section")] == list(HEADINGS)
    assert [verdict["section"] for verdict in tree["verdicts"]] == list(HEADINGS)
    for verdict in (tree["verdict"], *tree["verdicts"]):
        assert verdict["why"] in page.text
        assert verdict["done"] in page.text
    for kind in ("byte", "pixel", "near"):
        assert {f"duplicates.{kind}.sets", f"duplicates.{kind}.images"} <= set(page.facts)
    assert len(page.facts) > 40
    for path, (raw, shown) in page.facts.items():
        value = at(tree["findings"], path)
        assert json.loads(raw) == value, path
        if value is None:
            assert shown == "–"
        elif path.endswith("share"):
            assert shown == f"{value:.1%}"
        elif ".auroc." in path:
            assert shown == f"{value:.3f}"
        else:
            assert shown == f"{value:,}"
    assert page.facts["cut.refilled.images"] == ["1", "1"]
    assert page.facts["files.flow.truncated"] == ["1", "1"]


def test_the_page_is_one_file_that_loads_nothing(manifest):
    tree, page, html = audited(manifest)
    assert "http:" not in html
    assert "https:" not in html
    assert "@import" not in html
    assert "url(" not in html
    assert not {"script", "link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert all(a["href"].startswith("#") for a in page.all("a"))
    assert {"style", "svg"} <= {tag for tag, _ in page.tags}
    images = page.all("img")
    shown = {
        image["image_id"]
        for kind in (("duplicates", "shown"), ("conflicts", "sets"), ("cut", "shown"), ("grays", "shown"))
        for each in tree["findings"][kind[0]][kind[1]]
        for image in each["images"]
    }
    assert {image["alt"] for image in images} == shown
    assert {"IMG0000003", "IMG0000043", "IMG0000045"} <= shown
    for image in images:
        head, _, body = image["src"].partition(",")
        assert head == "data:image/jpeg;base64"
        pixels = cv2.imdecode(np.frombuffer(base64.b64decode(body), np.uint8), cv2.IMREAD_GRAYSCALE)
        assert 0 < max(pixels.shape) <= 176


def test_pictures_are_shown_with_their_id(manifest):
    _, page, _ = audited(manifest)
    by_id = {image["alt"]: image["src"] for image in page.all("img")}
    pixels = cv2.imdecode(np.frombuffer(base64.b64decode(by_id["IMG0000003"].split(",")[1]), np.uint8), 0)
    original = cv2.resize(picture(3), pixels.shape[::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(pixels.astype(int) - original).mean() < 4


def test_ids_origins_and_tags_with_markup_are_words(manifest):
    table = manifest.table.copy()
    marked = {name: f"{EVIL}{number}" for number, name in enumerate(table["image_id"])}
    for column in ("image_id", "duplicate_of", "component"):
        table[column] = table[column].map(lambda name: marked.get(name, ""))
    table["note"] = EVIL
    table["region"] = np.where(np.arange(len(table)) % 2, EVIL, "b")
    evil = Manifest(table, manifest.root)
    findings = find(evil, EVIL, block=1)
    html = as_html(findings, judge(findings), evil)
    page = Page(html)
    assert "script" not in {tag for tag, _ in page.tags}
    assert "<script" not in html
    assert "onerror" not in {name for _, attributes in page.tags for name in attributes}
    assert f"Audit of {EVIL}" in page.text
    assert any(image["alt"].startswith(EVIL) for image in page.all("img"))


def test_a_missing_or_unreadable_picture_is_replaced_by_text(manifest, tmp_path):
    moved = Manifest(manifest.table, tmp_path)
    findings = find(moved, "drawn", block=1)
    page = Page(as_html(findings, judge(findings), moved))
    assert not page.all("img")
    assert "cannot be shown" in page.text


def test_a_set_without_defects_tags_or_numbers_has_a_page(tmp_path):
    atlas = Atlas(tmp_path / "plain")
    for number in range(12):
        atlas.add(number, number % 2, leg=0, frontal=0)
    manifest = examine(read_fracatlas(atlas.write()))
    manifest.table["image_id"] = [f"wrist {chr(97 + n)}" for n in range(12)]
    manifest.table["path"] = manifest.table["image_id"] + ".jpg"
    tree, page, _ = audited(manifest)
    assert [section["id"] for section in page.all("section")] == list(HEADINGS)
    assert not page.all("img")
    assert tree["findings"]["prevalence"]["blocks"] is None
    assert "file names without running numbers" in page.text


# ---------------------------------------------------------------- the verb


def test_the_verb_prints_writes_and_examines_only_once(tmp_path, capsys):
    root = drawn(tmp_path / "FracAtlas").write()
    words = ["audit", str(root), "--set", "data.split.block=1", "--set", f"data.cache={tmp_path / 'cache'}"]
    assert run_verb(data.main, [*words, "--json", f"{tmp_path}/a.json", "--html", f"{tmp_path}/a.html"]) == 0
    out = capsys.readouterr().out
    tree = json.loads((tmp_path / "a.json").read_text())
    assert [verdict["section"] for verdict in tree["verdicts"]] == list(HEADINGS)
    for verdict in tree["verdicts"]:
        assert f"{verdict['level']:>4}  {verdict['section']}: {verdict['why']}" in out
    assert "35 images found" in out
    assert "truncated: IMG0000043" in out
    assert "filled: IMG0000045, the last 64 rows" in out
    assert Page((tmp_path / "a.html").read_text()).facts["files.flow.found"] == ["35", "35"]
    (cached,) = (tmp_path / "cache" / "manifests").iterdir()
    before = cached.stat().st_mtime_ns
    assert run_verb(data.main, words) == 0
    assert capsys.readouterr().out in out
    assert cached.stat().st_mtime_ns == before


@pytest.mark.parametrize("flag", ["--json", "--html"])
def test_a_target_that_cannot_be_written_is_named(manifest, tmp_path, capsys, flag):
    words = ["audit", str(manifest.root), "--set", "data.split.block=1", flag, f"{tmp_path}/no/such/folder"]
    assert run_verb(data.main, words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {flag} {tmp_path}/no/such/folder: cannot be written: No such file or directory;")


def test_the_phantoms_can_be_audited(tmp_path, capsys):
    words = ["audit", "phantom", "--set", "data.phantom.count=60", "--json", f"{tmp_path}/p.json"]
    assert run_verb(data.main, words) == 0
    assert "phantom (60 drawn, seed 0)" in capsys.readouterr().out
    assert json.loads((tmp_path / "p.json").read_text())["findings"]["files"]["flow"]["found"] == 60
