"""The page of a report in a real browser: Chromium without a window, driven by its own driver. Skipped without them."""

import base64
import shutil

import pytest

pytest.importorskip("selenium")
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed")

WIDTHS = (400, 1000, 1600)


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    # No sandbox: tests may run as root, and open only pages of their own.
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def opened_page(browser, searched):
    """The report of a search, opened from its file."""
    browser.get((searched / "first/report.html").as_uri())
    return browser


def resize(browser, width):
    # A window without a screen cannot be narrower than 500 pixels; what it shows can.
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    )


def test_the_page_opens_from_its_file_and_loads_nothing_else(opened_page):
    assert opened_page.title == "first: search"
    assert opened_page.execute_script("return document.readyState") == "complete"
    loaded = opened_page.execute_script("return performance.getEntriesByType('resource').map(one => one.name)")
    assert [name for name in loaded if not name.startswith("data:")] == []
    # Errors of scripts and what the page's own policy refused stand in the console's log.
    assert [entry["message"] for entry in opened_page.get_log("browser")] == []
    pictures = opened_page.execute_script("return [...document.images].map(one => [one.src, one.naturalWidth])")
    assert pictures
    assert all(source.startswith("data:image/jpeg") and width > 0 for source, width in pictures)


def test_the_policy_of_the_page_refuses_what_is_loaded_or_run_all_the_same(opened_page):
    opened_page.execute_script(
        "window.refused = [];"
        "document.addEventListener('securitypolicyviolation', one => refused.push(one.effectiveDirective));"
        "const script = document.createElement('script'); script.textContent = 'window.ran = 1';"
        "const image = document.createElement('img'); image.src = 'http://127.0.0.1:9/x.png';"
        "document.body.append(script, image);"
    )
    refused = opened_page.execute_async_script("setTimeout(() => arguments[0]([refused, window.ran]), 300)")
    assert sorted(refused[0]) == ["img-src", "script-src-elem"]
    assert refused[1] is None
    opened_page.refresh()
    opened_page.get_log("browser")


def test_the_pictures_are_printed_too(opened_page):
    printed = base64.b64decode(opened_page.execute_cdp_cmd("Page.printToPDF", {})["data"])
    pictures = opened_page.execute_script("return new Set([...document.images].map(one => one.src)).size")
    assert printed.count(b"/DCTDecode") == pictures > 0  # the filter of a JPEG in a PDF


@pytest.mark.parametrize("width", WIDTHS)
def test_no_width_needs_scrolling_to_the_side(opened_page, width):
    resize(opened_page, width)
    page = "document.documentElement"
    reaches, room, all_of_it = opened_page.execute_script(
        f"return [{page}.scrollWidth, {page}.clientWidth, innerWidth]"
    )
    assert all_of_it == width
    assert reaches == room  # what the bar for scrolling down leaves
    # Nothing outside of a scrolling box reaches beyond the page either, where it would be cut off.
    beyond = opened_page.execute_script(
        "return [...document.querySelectorAll('main *')].filter(one => !one.closest('.scroll, pre, .unseen, svg') &&"
        " one.getBoundingClientRect().right > innerWidth + 1).map(one => one.tagName + '.' + one.className)"
    )
    assert beyond == []


def test_the_chart_of_all_trials_answers_the_keyboard(opened_page):
    chart = opened_page.find_element(By.CSS_SELECTOR, "svg.explorer")
    opened_page.execute_script("arguments[0].focus()", chart)

    def told(key):
        chart.send_keys(key)
        return opened_page.find_element(By.CSS_SELECTOR, ".said").text

    best = opened_page.execute_script("return JSON.parse(document.querySelector('#trials-data').textContent).names[0]")
    assert best in told(Keys.HOME)
    others = {told(Keys.ARROW_RIGHT) for _ in range(4)}
    assert len(others) > 1
    assert best in told(Keys.HOME)


def test_the_table_of_trials_is_sorted_by_its_headings(opened_page):
    rows = "return [...document.querySelectorAll('#trials tbody tr th')].map(one => one.textContent)"
    before = opened_page.execute_script(rows)
    heading = opened_page.find_elements(By.CSS_SELECTOR, "#trials thead button")[0]
    opened_page.execute_script("arguments[0].click()", heading)
    sorted_once = opened_page.execute_script(rows)
    assert sorted(before) == sorted(sorted_once)
    assert heading.find_element(By.XPATH, "..").get_attribute("aria-sort") in ("ascending", "descending")
    assert sorted_once in (sorted(before), sorted(before, reverse=True))


def test_both_colour_schemes_and_print_can_be_read(opened_page):
    """The contrast of text on the page is at least 4.5 (WCAG 2.1, 1.4.3) in light, dark and print."""

    def contrast():
        colours = opened_page.execute_script(
            "const s = getComputedStyle(document.body), o = getComputedStyle(document.querySelector('.soft'));"
            "return [s.color, o.color, s.backgroundColor]"
        )
        text, soft, ground = ([int(part) for part in one.strip("rgb()").split(",")] for one in colours)
        return min(ratio(text, ground), ratio(soft, ground)), sum(ground)

    def ratio(one, two):
        light, dark = sorted((luminance(one), luminance(two)), reverse=True)
        return (light + 0.05) / (dark + 0.05)

    def luminance(colour):
        parts = [part / 255 for part in colour]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    grounds = {}
    for media, scheme in (("screen", "light"), ("screen", "dark"), ("print", "dark")):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        opened_page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
        least, grounds[media, scheme] = contrast()
        assert least >= 4.5
    opened_page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    assert grounds["screen", "light"] == grounds["print", "dark"] == 3 * 255
    assert grounds["screen", "dark"] < 3 * 64
