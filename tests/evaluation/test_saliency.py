"""Peaks and energy in boxes: closed forms on drawn maps, and the sanity check's correlation against scipy."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from fracray.config import Config
from fracray.data.loading.boxes import Boxes
from fracray.data.prepare import Prepared
from fracray.evaluation import saliency
from fracray.evaluation.saliency import Check, box_shares, look_at, similarity
from fracray.evaluation.scoring import Scored
from fracray.runtime.console import new_console

SIZE, CELLS = 80, 4  # cells of 20 pixels


def atlas(boxes, width=80, height=80):
    """Fractured radiographs with these boxes each (x, y, w, h), of which the first half trains."""
    n = len(boxes)
    table = pd.DataFrame(
        {
            "label": 1,
            "group": [f"g{i % 8}" for i in range(n)],
            "split": ["train"] * (n // 2) + ["test"] * (n - n // 2),
            "boxes": boxes,
            "boxes_width": width,
            "boxes_height": height,
            "width": width,
            "height": height,
        }
    )
    prepared = Prepared(Config().data, None, SimpleNamespace(size=SIZE), table, ())
    rows = np.arange(n // 2, n)
    called = np.arange(len(rows)) % 2 * 0.9
    return Boxes.of_table(table, SIZE), Scored(prepared, rows, called, np.full(len(rows), 0.5))


def looked(found):
    return {one.name: one for one in found}


def test_the_share_of_a_cell_in_a_box_is_its_area():
    boxes, _ = atlas([[[10.0, 0.0, 20.0, 10.0]], [[0.0, 0.0, 20.0, 20.0], [0.0, 0.0, 20.0, 20.0]]])
    known = np.zeros((4, 4))
    known[0, 0] = known[0, 1] = 0.25
    assert box_shares(boxes, 0, SIZE, CELLS) == pytest.approx(known)
    assert box_shares(boxes, 1, SIZE, CELLS).sum() == 1  # a box that is drawn twice counts once


def test_hits_and_energy_of_drawn_maps():
    boxes, scored = atlas([[[20.0, 20.0, 20.0, 10.0]]] * 48)  # half of the cell at (1, 1)
    shown = np.zeros((24, 4, 4))
    shown[:12, 1, 1], shown[:12, 2, 2] = 3, 1  # hits, and 3/4 of the sum in the cell, of which half is in the box
    shown[12:18, 3, 3] = 1  # misses
    # the last six say nothing at all: no hit
    found = looked(look_at(shown, boxes, scored))
    everything = found["all"].pointers
    assert everything["map"].hit.value == pytest.approx(12 / 24)
    assert everything["map"].energy.value == pytest.approx(12 / 24 * 3 / 8)
    assert everything["random"].hit.value == pytest.approx(1 / 16)
    assert everything["random"].energy.value == pytest.approx(200 / 6400)  # the area of the box
    assert everything["usual"].hit.value == 1  # all boxes of the training part are there
    assert everything["usual"].energy.value == pytest.approx(0.5)
    assert everything["centre"].hit.value == pytest.approx(1 / 4)  # of four cells in the middle, one is touched
    assert found["all"].hit_gain.value == pytest.approx(-0.5)
    assert found["all"].hit_gain.low <= -0.5 <= found["all"].hit_gain.high
    assert (found["called fractured"].images, found["missed"].images) == (12, 12)
    assert found["box 1.0% and more"].images == 24


def test_a_random_place_and_the_middle_are_in_the_picture_and_not_in_the_black_beside_it():
    boxes, scored = atlas([[[10.0, 0.0, 20.0, 20.0]]] * 40, width=40, height=80)  # the middle two columns of cells
    found = looked(look_at(np.ones((20, 4, 4)), boxes, scored))["all"].pointers
    assert found["random"].hit.value == pytest.approx(2 / 8)
    assert found["random"].energy.value == pytest.approx(400 / 3200)
    assert found["map"].energy.value == pytest.approx(400 / 6400)  # which this map does not know


def test_few_radiographs_have_no_hit_rate():
    boxes, scored = atlas([[[20.0, 20.0, 20.0, 10.0]]] * 18)
    found = looked(look_at(np.ones((9, 4, 4)), boxes, scored))
    assert found["all"].images == 9
    assert found["all"].pointers == {}


def test_likeness_is_spearmans_correlation_of_the_cells_of_the_picture():
    generator = np.random.default_rng(0)
    one, two = generator.random((5, 4, 4)).round(1), generator.random((5, 4, 4)).round(1)
    inside = generator.random((5, 4, 4)) < 0.8
    known = [spearmanr(a[cells], b[cells]).statistic for a, b, cells in zip(one, two, inside, strict=True)]
    assert similarity(one, two, inside) == pytest.approx(known)
    assert similarity(one, 3 * one + 1, inside) == pytest.approx(np.ones(5))
    assert similarity(one, np.zeros((5, 4, 4)), inside) == pytest.approx(np.zeros(5))


def test_a_centre_of_four_cells_points_at_all_of_them():
    """With 2 x 2 cells the centre lies between them: it hits as often as a random cell, and not never."""
    boxes, scored = atlas([[[10.0, 10.0, 20.0, 20.0]]] * 40)
    found = looked(look_at(np.zeros((20, 2, 2)), boxes, scored))["all"].pointers
    assert found["centre"].hit.value == found["random"].hit.value == pytest.approx(1 / 4)
    assert found["map"].hit.value == 0  # an empty map points at nothing


def test_radiographs_whose_map_is_empty_do_not_make_the_check_pass(monkeypatch):
    """A map that random weights leave as it is stays at 1, however many radiographs have none."""
    generator = np.random.default_rng(0)
    shown = generator.random((30, 4, 4))
    shown[10:] = 0
    console, method = new_console(), "grad_cam"
    _, scored = atlas([[[20.0, 20.0, 20.0, 10.0]]] * 60)
    checkpoint = SimpleNamespace(model=SimpleNamespace(to=lambda _: None, cpu=lambda: None))
    monkeypatch.setattr(saliency, "over_images", lambda images, _: images)
    monkeypatch.setattr(saliency, "randomised", lambda *_: iter([("all weights", checkpoint.model)]))

    def over(run, rows, words):
        return shown

    found, cells = saliency._sanity(checkpoint, scored, method, over, Check(), console)
    assert (found.images, found.empty, cells) == (10, 20, 4)
    assert found.levels["all weights"].value == pytest.approx(1)
    shown[:] = 0
    found, _ = saliency._sanity(checkpoint, scored, method, over, Check(), console)
    assert (found.images, found.empty, found.levels) == (0, 30, {})
