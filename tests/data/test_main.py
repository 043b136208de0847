"""python -m fracray.data: quick to refuse and to explain, and its contact sheet."""

import subprocess
import sys

import numpy as np
import pytest

from fracray.data.__main__ import contact_sheet

SLOW = ("torch", "ray", "pandas", "cv2", "pyarrow", "numpy")
CHECK = f"""
import sys
from fracray.data.__main__ import main
from fracray.errors import run_verb
try:
    code = run_verb(main, sys.argv[1:])
except SystemExit as stop:
    code = stop.code
print("imported:", [name for name in {SLOW} if name in sys.modules])
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("--help", 0),
        *((f"{verb} --help", 0) for verb in ("download", "import", "check", "audit", "sheet", "phantom")),
        ("check /nowhere/FracAtlas", 2),
        ("audit /nowhere/FracAtlas", 2),
        ("sheet /nowhere/FracAtlas --to x.png", 2),
        ("import /nowhere/hospital --to /nowhere/set", 2),
        ("import /nowhere/hospital --to /nowhere/set --column label", 2),
        ("check phantom --set data.siez=3", 2),
        ("phantom --count 1 --to /nowhere/phantoms", 2),
    ],
)
def test_help_and_refusals_import_nothing_slow(words: str, code: int) -> None:
    done = subprocess.run([sys.executable, "-c", CHECK, *words.split()], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert done.stdout.endswith("imported: []\n")
    assert ("error: " in done.stderr) == (code == 2)


def test_a_contact_sheet_shows_each_image_in_reading_order_with_its_caption() -> None:
    images = [np.full((40, 40), gray, np.uint8) for gray in (50, 100, 150)]
    sheet = contact_sheet(images, 2, ["", "", "caption"])
    assert sheet.dtype == np.uint8
    height, width = sheet.shape[0] // 2, sheet.shape[1] // 2
    corners = [(0, 0, 50), (0, width, 100), (height, 0, 150)]
    for y, x, gray in corners:
        assert (sheet[y : y + height, x : x + width] == gray).sum() >= 1600
    # Below the image: black without a caption, else its letters.
    assert set(np.unique(sheet[:height, :width])) == {0, 50}
    assert len(np.unique(sheet[height + 44 :, :width])) > 2
