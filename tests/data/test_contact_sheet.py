"""The contact sheet of `python -m fracray.data sheet`."""

import numpy as np

from fracray.data.contact_sheet import contact_sheet


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
