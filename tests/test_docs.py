"""The pages: the one of settings is current, links lead somewhere, and what a page names exists."""

import importlib.util
import re
from pathlib import Path

import pytest

from fracray.config import Config

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks/README.md"]
named = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@pytest.fixture(scope="module")
def generator():
    spec = importlib.util.spec_from_file_location("make_settings", ROOT / "docs/make_settings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_settings_is_current(generator):
    assert generator.PAGE.read_text(encoding="utf-8") == generator.page(), (
        "docs/settings.md is not what the config says: run `python docs/make_settings.py`"
    )


def test_the_page_of_settings_has_a_row_for_every_setting_with_its_default(generator):
    rows = dict(re.findall(r"^\| `([^`]+)` \| ([^|]*) \|", generator.page(), flags=re.MULTILINE))
    leaves = Config().leaves()
    assert set(leaves) <= set(rows)
    assert rows["model.dropout"] == "0.2"
    assert rows["data.split.block"] == "none"
    assert rows["train.channels_last"] == "true"


def test_a_row_says_what_a_setting_may_be(generator):
    page = generator.page()
    assert "| number at least 0, below 1 | dropout rate before the head" in page
    assert "| `auto`, `memory`, `ray` |" in page
    assert re.search(r"`search.time_budget` \| none \| number above 0 or none \|", page)


@named
def test_a_link_leads_to_a_file(page):
    for target in re.findall(r"\]\((?!https?://)([^)#]*)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert not target or (page.parent / target).exists(), target


@named
def test_a_path_of_the_repository_that_is_named_exists(page):
    rooms = "fracray|search_spaces|cluster|benchmarks|docs|examples|tests"
    for path in re.findall(rf"`((?:{rooms})/[^` ]*)`", page.read_text(encoding="utf-8")):
        assert (ROOT / path).exists() or "NAME" in path, path


@named
def test_a_setting_that_is_named_exists(page, generator):
    rows = dict(re.findall(r"^\| `([^`]+)` \| [^|]* \| ([^|]*) \|", generator.page(), flags=re.MULTILINE))
    mappings = tuple(f"{path}." for path, values in rows.items() if values == "mapping")
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"[` ]((?:data|augment|model|train|search)\.[a-z_.]+[a-z_])\b(?=[`=:])", text):
        known = path in rows or path.startswith(mappings) or any(row.startswith(f"{path}.") for row in rows)
        assert known or path.endswith((".py", ".json", ".md")), path


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 220
