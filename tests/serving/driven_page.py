"""The page of fracray.serve as a user has it: pressed, typed into, dropped on, read and looked at, through selenium."""

import base64
import re
import time

import numpy as np

WAIT = 30  # seconds for what the page does at once on an idle machine
CHROMIUM_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--window-size=1500,900",
)


def wait(found, seconds=WAIT, why=lambda: ""):
    """What `found` gives once it is true."""
    end = time.monotonic() + seconds
    while not (got := found()):
        assert time.monotonic() < end, why() or "it did not come"
        time.sleep(0.05)
    return got


def gray_of(values, window, inverted=False):
    """LINEAR_EXACT of DICOM PS3.3 C.11.2.1.3.2, to 0..255."""
    center, width = window
    share = np.clip((values.astype(np.float64) - center) / width + 0.5, 0, 1)
    return np.floor(255 * (1 - share if inverted else share) + 0.5).astype(np.uint8)


def share_in(words):
    """The first percentage in a text, in percent."""
    return float(re.search(r"([\d.]+)%", words)[1])


class Page:
    """The page as a user has it: elements by id, and the files that are saved."""

    def __init__(self, driver, address, downloads):
        self.driver, self.address, self.downloads = driver, address, downloads

    def load(self, *tokens):
        self.driver.get(self.address)
        for token in tokens:
            wait(lambda: self.get("token-dialog").is_displayed())
            self.get("token").send_keys(token)
            self.press("token-give")
            wait(lambda: not self.get("token-dialog").is_displayed() or self.text("token-words").startswith("That"))

    def get(self, name):
        return self.driver.find_element("id", name)

    def text(self, name):
        return self.get(name).text

    def press(self, name):
        self.get(name).click()

    def type(self, name, value):
        self.driver.execute_script(
            "const [e, v] = arguments; e.value = v; e.dispatchEvent(new Event('input', {bubbles: true}))",
            self.get(name),
            str(value),
        )

    def drop(self, *paths):
        """Drop files and folders, as the system's file manager does."""
        files = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.driver.execute_cdp_cmd("Input.dispatchDragEvent", {"type": kind, "x": 200, "y": 200, "data": files})

    def rows(self):
        return [row.get_attribute("aria-label") for row in self.driver.find_elements("css selector", "#list button")]

    def read(self, count):
        """Wait until so many rows are in the list and the open picture is shown; the rows."""
        wait(lambda: len(self.rows()) == count and not self.get("reading").is_displayed(), why=lambda: str(self.rows()))
        wait(lambda: not self.text("stage-words").startswith(("Reading", "Sending")))
        return self.rows()

    def canvas(self, *size):
        """What the canvas shows (h, w, 3) once it is drawn in full, or its middle part of this height and width."""
        self.driver.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
        wait(lambda: self.get("canvas").get_attribute("aria-busy") == "false")
        height, width, data = self.driver.execute_script(
            "const c = document.getElementById('canvas'); let text = '';"
            "const pixels = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
            "for (let at = 0; at < pixels.length; at += 9999) "
            "text += String.fromCharCode(...pixels.subarray(at, at + 9999)); return [c.height, c.width, btoa(text)]"
        )
        whole = np.frombuffer(base64.b64decode(data), np.uint8).reshape(height, width, 4)[..., :3]
        if not size:
            return whole
        top, left = (height - size[0]) // 2, (width - size[1]) // 2
        return whole[top : top + size[0], left : left + size[1]]

    def shows(self, gray):
        """Whether the middle of the canvas is this picture (h, w), one to one, to the gray level."""
        height, width = gray.shape
        near = self.canvas(height + 2, width + 2)
        parts = [near[top : top + height, left : left + width] for top in range(3) for left in range(3)]
        return any((part == gray[..., None]).all() for part in parts)

    def saved(self, name):
        """The bytes of a file that the page saves; the file is removed."""
        file = self.downloads / name
        wait(file.exists)
        data = file.read_bytes()
        file.unlink()
        return data

    def watch(self, name):
        """Collect all words of an element from now on, also those that are gone at once."""
        self.driver.execute_script(
            "const e = arguments[0]; window.watched = [];"
            "new MutationObserver(() => watched.push(e.textContent)).observe(e, {childList: true})",
            self.get(name),
        )

    def watched(self):
        return self.driver.execute_script("return watched")
