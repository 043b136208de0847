"""Where the network looks in a picture of the report: it gets the square it was trained on, and the map lies there."""

from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from fracray.config import Config
from fracray.data.images.kept import Kept
from fracray.data.images.square import decode, decode_part
from fracray.reporting import pictures
from fracray.reporting.pictures import SIDE, over_picture


@pytest.fixture
def radiograph(tmp_path):
    """A file whose anatomy is at the lower right of a wide dark ground, in a table of one row."""
    rng = np.random.default_rng(0)
    gray = rng.normal(25, 3, (600, 900))
    gray[250:, 500:720] += 130
    cv2.imwrite(str(tmp_path / "one.png"), np.clip(gray, 0, 255).astype(np.uint8))
    return tmp_path, pd.DataFrame({"image_id": ["one"], "path": ["one.png"], "width": [900], "height": [600]})


@pytest.mark.parametrize("crop", [False, True])
def test_the_network_gets_the_squares_that_it_was_trained_on(radiograph, monkeypatch, crop):
    root, table = radiograph
    seen = []

    def maps(model, method, images):
        seen.append(images)
        return torch.ones(1, 2, 2)

    monkeypatch.setattr(pictures, "load_checkpoint", lambda _: SimpleNamespace(model=None))
    monkeypatch.setattr(pictures, "methods", lambda _: ("grad_cam",))
    monkeypatch.setattr(pictures, "maps", maps)
    config = Config().with_leaves({"data.size": 64, "data.crop": crop})
    judged = SimpleNamespace(folder=root, card=SimpleNamespace(config=config, out_of_fold=False))
    words, found = pictures._maps(root, table, judged)
    read = (root / "one.png").read_bytes()
    part, kept = decode_part(read, 900, 64)
    assert kept.right - kept.left < 600  # it is one that is cut
    assert np.array_equal(seen[0][0, 0].numpy(), part if crop else decode(read, 900, 64))
    assert words == "Grad-CAM"
    assert not found["one"].any()  # the same everywhere
    judged.card.out_of_fold = True  # some of its models were trained on this picture
    assert pictures._maps(root, table, judged) == ("", {})


def test_a_map_of_a_part_lies_over_that_part():
    cells = np.zeros((8, 8))
    cells[4, 4] = 1
    whole = over_picture(cells, None, 800, 400)
    assert whole.shape == (SIDE, SIDE)
    assert np.unravel_index(whole.argmax(), whole.shape) == pytest.approx((SIDE * 4.5 / 8,) * 2, abs=1)
    cells[0, 0] = 9  # beside the picture, in the border of its square
    assert np.array_equal(over_picture(cells, None, 800, 400), whole)
    cells[0, 0] = 0
    found = over_picture(cells, Kept(400, 0, 800, 400, 0.0), 800, 400)  # the right half, at the lower half of SIDE
    rows, columns = np.nonzero(found)
    assert columns.min() >= SIDE / 2
    assert rows.min() >= SIDE / 4
    assert rows.max() < SIDE * 3 / 4
    down, across = np.unravel_index(found.argmax(), found.shape)
    assert (down, across) == pytest.approx((SIDE * (1 / 4 + 4.5 / 16), SIDE * (1 / 2 + 4.5 / 16)), abs=1)
    assert found.max() == pytest.approx(1, abs=0.1)
