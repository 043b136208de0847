"""The labels in doubt as a list and as a page: phantoms with turned labels, and FracAtlas' contradictions."""

import base64
import io
from dataclasses import replace
from html.parser import HTMLParser

import cv2
import numpy as np
import pandas as pd
import pytest
from drawn_fracatlas import Atlas, jpeg, picture

from fracray.config import Config
from fracray.data.audit import doubtful_page as page_module
from fracray.data.audit.doubtful import list_doubtful
from fracray.data.audit.doubtful_page import MOST_SHOWN, PICTURE, doubtful_page
from fracray.data.audit.scan import examine
from fracray.data.manifest import Manifest
from fracray.data.prepare import examined
from fracray.data.sources.fracatlas import read_fracatlas
from fracray.runtime.console import new_console
from fracray.runtime.spreadsheets import of_cell

EVIL = "<script>alert(1)</script>&\"'><img src=x onerror=alert(2)>"
COUNT, TURNED = 120, 6


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def held_of(manifest: Manifest, truth: pd.Series, seed: int = 0) -> pd.DataFrame:
    """What good models say: probabilities that follow the truth and not the label; five folds; of used images only."""
    used = manifest.used
    true = truth[used.index].to_numpy()
    sure = np.random.default_rng(seed).uniform(0, 0.1, len(used))
    sure[used["label"].to_numpy() != true] = 0.15
    return pd.DataFrame(
        {
            "image_id": used["image_id"].to_numpy(),
            "fold": np.arange(len(used)) % 5,
            "probability": np.where(true == 1, 0.8 + sure, 0.2 - sure),
        }
    )


def read_csv(text: str) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)


@pytest.fixture(scope="module")
def phantoms(cache):
    """Phantoms, some of whose labels are turned; what gives them away are the models and, as they have boxes, these."""
    config = Config().with_leaves({"data.phantom.count": COUNT}, "test").data
    manifest = examined(config, new_console())
    table = manifest.table.copy()
    turned = np.random.default_rng(0).choice(manifest.used.index, TURNED, replace=False)
    table.loc[turned, "label"] = 1 - table.loc[turned, "label"]
    table.loc[table["image_id"] == table["image_id"][turned[0]], "region"] = "nowhere"
    return replace(manifest, table=table), manifest.table["label"], set(table["image_id"][turned])


@pytest.fixture(scope="module")
def contradicted(tmp_path_factory):
    """Each contradiction of FracAtlas, once."""
    atlas = Atlas(tmp_path_factory.mktemp("drawn") / "FracAtlas")
    for number in range(1, 31):
        name = atlas.add(number, number % 2)
        if number % 2 and number != 15:
            atlas.box(name, (20.0, 30.0, 40.0, 50.0))
    atlas.add(41, 0, data=jpeg(picture(1)))  # the same picture as 1, with the other label
    near = picture(4)
    near[:70] = picture(99)[:70]
    atlas.add(44, 1, data=jpeg(near))
    atlas.box("IMG0000044", (1.0, 1.0, 9.0, 9.0))
    atlas.add(50, 0, folders=(1,))  # as 3298: the table says 0, folder and box say fractured
    atlas.box("IMG0000050", (5.0, 5.0, 10.0, 10.0))
    atlas.add(51, 0)
    atlas.box("IMG0000051", (5.0, 5.0, 10.0, 10.0))
    return examine(read_fracatlas(atlas.write()))


def test_turned_labels_come_first_and_are_flagged(phantoms):
    manifest, truth, turned = phantoms
    listed = list_doubtful(manifest, held_of(manifest, truth))
    assert set(listed.table["image_id"].head(TURNED)) == turned
    assert set(listed.table["image_id"][listed.table["flagged"]]) == turned
    assert listed.flagged == TURNED == listed.doubt.disputed
    confidence = listed.judged["self_confidence"].iloc[TURNED:]
    assert confidence.is_monotonic_increasing
    assert turned <= set(listed.found["image_id"]), "a turned label contradicts the boxes"


def test_the_list_has_every_image_once_and_its_counts_add_up(phantoms):
    manifest, truth, turned = phantoms
    held = held_of(manifest, truth).iloc[::2]
    listed = list_doubtful(manifest, held)
    csv = read_csv(listed.csv())
    assert sorted(csv["image_id"]) == sorted(manifest.table["image_id"])
    assert csv["rank"].tolist() == [str(number) for number in range(1, len(csv) + 1)]
    assert (csv["probability"] != "").sum() == len(held) == (csv["fold"] != "").sum() == len(listed.judged)
    assert (csv["flagged"] == "1").sum() == listed.flagged == len(turned & set(held["image_id"]))
    assert (csv["audit"] != "").sum() == len(listed.found)
    assert (csv["verdict"] == "").all()
    labels = dict(zip(manifest.table["image_id"], manifest.table["label"], strict=True))
    assert all(int(label) == labels[name] for name, label in zip(csv["image_id"], csv["label"], strict=True))
    known = dict(zip(held["image_id"], held["probability"], strict=True))
    for row in csv[csv["probability"] != ""].itertuples():
        assert float(row.probability) == pytest.approx(known[row.image_id], abs=1e-6)
        own = known[row.image_id] if row.label == "1" else 1 - known[row.image_id]
        assert float(row.self_confidence) == pytest.approx(own, abs=1e-6)


def test_no_text_of_the_list_is_a_formula(phantoms):
    manifest, truth, _ = phantoms
    table = manifest.table.copy()
    table["image_id"], table["path"] = "-" + table["image_id"], "=" + table["path"]
    odd = replace(manifest, table=table)
    listed = read_csv(list_doubtful(odd, held_of(odd, truth)).csv())
    assert listed["image_id"].str.startswith("'-").all()
    assert listed["path"].str.startswith("'=").all()
    assert [of_cell(cell) for cell in sorted(listed["path"])] == sorted(table["path"])
    assert (listed["region"] == "hand").any()


def test_what_the_audit_found_is_named_with_its_twins(contradicted):
    listed = list_doubtful(contradicted, held_of(contradicted, contradicted.table["label"]))
    rows = listed.table.set_index("image_id")
    found = set(listed.found["image_id"])
    assert found == {f"IMG{number:07d}" for number in (1, 4, 15, 41, 44, 50, 51)}
    assert rows.loc["IMG0000001", "audit"].endswith("the same picture as IMG0000041, with the other label")
    assert rows.loc["IMG0000001", "use"] == "not used: conflict"
    assert rows.loc["IMG0000041", "twins"] == ("IMG0000001",)
    assert rows.loc["IMG0000004", "audit"] == "nearly the same picture as IMG0000044, with the other label"
    assert rows.loc["IMG0000004", "probability"] < 0.3, "near duplicates are used"
    assert rows.loc["IMG0000015", "audit"].startswith("labelled fractured, but has no box")
    assert "taken as fractured" in rows.loc["IMG0000050", "audit"]
    assert rows.loc["IMG0000050", "label"] == 1
    assert "1 box, but dataset.csv and folder say 0" in rows.loc["IMG0000051", "audit"]
    assert np.isnan(rows.loc["IMG0000051", "probability"])
    assert set(listed.table["image_id"].tail(3)) == {"IMG0000001", "IMG0000041", "IMG0000051"}, "the unjudged are last"


def test_where_few_of_the_fractured_have_a_box_a_missing_one_says_nothing(contradicted):
    table = contradicted.table.copy()
    table["boxes"] = [boxes if number in (2, 4) else () for number, boxes in enumerate(table["boxes"])]
    listed = list_doubtful(replace(contradicted, table=table), held_of(contradicted, table["label"]))
    assert not listed.found["audit"].str.contains("no box").any()


def test_files_without_a_label_have_none_in_the_list(contradicted):
    table = contradicted.table.copy()
    table.loc[table["image_id"] == "IMG0000002", "status"] = "unlisted"
    manifest = replace(contradicted, table=table)
    csv = read_csv(list_doubtful(manifest, held_of(manifest, table["label"])).csv()).set_index("image_id")
    assert csv.loc["IMG0000002", ["label", "probability", "use"]].tolist() == ["", "", "not used: unlisted"]


# ---------------------------------------------------------------- the page


def shown(manifest: Manifest, truth: pd.Series, origin: str = "drawn") -> tuple[Page, str]:
    html = doubtful_page(list_doubtful(manifest, held_of(manifest, truth)), manifest, origin, "five folds")
    return Page(html), html


def test_the_page_is_one_file_that_loads_nothing(contradicted):
    page, html = shown(contradicted, contradicted.table["label"])
    for word in ("http:", "https:", "@import", "url("):
        assert word not in html
    assert not {"script", "link", "iframe", "object", "embed", "base", "img", "a"} & {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert {"default-src 'none'; img-src data:; style-src 'unsafe-inline'"} <= {
        a.get("content") for a in page.all("meta")
    }
    for image in page.all("image"):
        head, _, body = image["href"].partition(",")
        assert head == "data:image/jpeg;base64"
        pixels = cv2.imdecode(np.frombuffer(base64.b64decode(body), np.uint8), cv2.IMREAD_GRAYSCALE)
        assert 0 < max(pixels.shape) <= PICTURE


def test_the_page_says_what_it_is_and_shows_the_most_doubtful_with_their_boxes(phantoms):
    manifest, truth, turned = phantoms
    page, html = shown(manifest, truth)
    words = " ".join(page.text.split())
    judged = len(manifest.used)
    assert f"Nothing was removed or relabelled. {TURNED} of {judged} images are flagged" in words
    assert f"for {TURNED} of the {judged} images" in words
    assert f"Shown are the {MOST_SHOWN} most doubtful of {judged} images; doubtful.csv has all." in words
    assert html.count('<span class="pill look">flagged</span>') == 2 * TURNED, "in both parts"
    ids = [svg["aria-label"] for svg in page.all("svg")]
    assert set(ids[:TURNED]) == turned
    assert len(ids) == MOST_SHOWN + TURNED
    count = dict(zip(manifest.table["image_id"], manifest.table["boxes"].map(len), strict=True))
    assert len(page.all("rect")) == sum(count[name] for name in ids) > 0
    assert len(html) < 5_000_000


def test_a_box_is_drawn_where_the_manifest_has_it(contradicted):
    page, _ = shown(contradicted, contradicted.table["label"])
    tags = page.tags
    at = next(n for n, (tag, a) in enumerate(tags) if tag == "svg" and a["aria-label"] == "IMG0000003")
    assert tags[at][1]["viewbox"] == "0 0 160 200"
    assert tags[at + 1][0] == "image"
    box = tags[at + 2][1]
    assert (box["x"], box["y"], box["width"], box["height"]) == ("20.0", "30.0", "40.0", "50.0")


def test_twins_stand_side_by_side(contradicted):
    _, html = shown(contradicted, contradicted.table["label"])
    audit = html[html.index('<section id="audit">') :]
    entry = next(part for part in audit.split('<div class="set">') if 'aria-label="IMG0000001"' in part)
    assert 'aria-label="IMG0000041"' in entry
    assert "the same picture as IMG0000041" in entry
    first = html[: html.index('<section id="audit">')]
    entry = next(part for part in first.split('<div class="set">') if 'aria-label="IMG0000004"' in part)
    assert 'aria-label="IMG0000044"' in entry, "beside a doubtful image too"


def test_pictures_end_where_the_page_would_be_too_large(contradicted, monkeypatch):
    whole, html = shown(contradicted, contradicted.table["label"])
    monkeypatch.setattr(page_module, "MOST_BYTES", len(html) // 4)
    page, _ = shown(contradicted, contradicted.table["label"])
    assert 0 < len(page.all("image")) < len(whole.all("image"))
    assert "not shown: the page is full" in page.text
    assert sum(len(image["href"]) for image in page.all("image")) <= len(html) // 4


def test_missing_pictures_and_markup_in_names_do_no_harm(contradicted, tmp_path):
    table = contradicted.table.copy()
    names = {name: f"{name}{EVIL}" for name in table["image_id"]}
    for column in ("image_id", "component", "duplicate_of"):
        table[column] = table[column].map(lambda name: names.get(name, ""))
    table["region"] = EVIL
    table.loc[table["note"] != "", "note"] += EVIL
    page, html = shown(Manifest(table, tmp_path), table["label"], EVIL)
    assert "cannot be shown" in page.text
    assert not page.all("image")
    assert "<script" not in html
    assert "onerror" not in {name for _, attributes in page.tags for name in attributes}


def test_of_fracatlas_the_contradicting_twins_and_the_corrected_label_are_named(fracatlas):
    """Where the folder has all files of the release; 3298 is listed as 0, and has a box in the folder of fractures."""
    listed = list_doubtful(fracatlas, held_of(fracatlas, fracatlas.table["label"]))
    found = listed.found.set_index("image_id")
    assert "taken as fractured" in found.loc["IMG0003298", "audit"]
    assert not np.isnan(found.loc["IMG0003298", "probability"])
    conflicts = fracatlas.table["image_id"][fracatlas.table["status"] == "conflict"]
    assert set(conflicts) <= set(found.index)
    twins = found.drop("IMG0003298")
    assert all(twins["twins"].map(len) > 0)
    assert all(name in set(found.index) for others in twins["twins"] for name in others)
    assert twins["probability"].isna().all(), "no model was trained on either"
