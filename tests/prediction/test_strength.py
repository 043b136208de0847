"""A map as a gray picture and in an overlay: where the strongest cell of a square lies in the whole picture."""

import cv2
import numpy as np
import pytest

from fracray.data.images.kept import Kept
from fracray.prediction.scoring import overlay, strength


def drawn(found, kept, sides):
    data = strength(found.astype(np.float32), Kept(*kept, 0.0), sides, np.zeros((1, 1), np.uint8))
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


@pytest.mark.parametrize(
    ("kept", "sides", "place"),
    [
        # A square of 8 x 8 cells; the cell (3, 5) has its centre at 5.5/8 of the width and 3.5/8 of the height.
        ((0, 0, 800, 800), (800, 800), (5.5 / 8, 3.5 / 8)),
        ((0, 0, 800, 400), (800, 400), (5.5 / 8, (3.5 - 2) / 4)),  # the picture is rows 2 to 5
        ((400, 100, 800, 500), (800, 600), ((400 + 400 * 5.5 / 8) / 800, (100 + 400 * 3.5 / 8) / 600)),  # cropped
        ((0, 0, 80, 80), (80, 80), (5.5 / 8, 3.5 / 8)),  # not enlarged
    ],
)
def test_the_strongest_place_is_where_its_cell_is(kept, sides, place):
    found = np.zeros((8, 8))
    found[3, 5] = 1
    picture = drawn(found, kept, sides)
    scale = min(1, 512 / max(sides))
    assert picture.shape == tuple(round(side * scale) for side in sides[::-1])
    rows, columns = np.nonzero(picture > 250)
    assert (columns.mean() + 0.5) / picture.shape[1] == pytest.approx(place[0], abs=0.02)
    assert (rows.mean() + 0.5) / picture.shape[0] == pytest.approx(place[1], abs=0.02)
    assert (picture == 0).mean() > 0.5


def test_a_map_that_is_the_same_everywhere_shows_nothing():
    assert not drawn(np.full((8, 8), 0.7), (0, 0, 300, 200), (300, 200)).any()


def test_what_lies_beside_the_picture_does_not_fade_the_colours_in_it():
    found = np.zeros((8, 8), dtype=np.float32)
    found[3, 5] = 0.1
    beside = found.copy()
    beside[0, 0] = 1  # the picture is rows 2 to 5
    kept, sides, shown = Kept(0, 0, 800, 400, 0.0), (800, 400), np.full((128, 128), 90, np.uint8)
    assert overlay(beside, kept, sides, shown) == overlay(found, kept, sides, shown)
    assert strength(beside, kept, sides, shown) == strength(found, kept, sides, shown)
