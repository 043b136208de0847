"""The network's process: a batch that its threads share out, and one that is taken as a whole."""

import pytest
import torch
from drawn_fracatlas import jpeg, picture
from served import SIZE, tiny_checkpoint

from fracray.prediction.familiar import Familiar
from fracray.prediction.scoring import Scorer
from fracray.serving.decoding import Reader
from fracray.serving.model import Model

COUNT = 7


@pytest.fixture(scope="module")
def batches():
    reader = Reader(SIZE, False, 80_000_000, Familiar({}, {}, {}))
    return [reader.batch(f"{at}.jpg", jpeg(picture(at))) for at in range(COUNT)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "t0001")


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_rows_of_a_batch_in_parts_are_those_of_each_picture_in_order(checkpoint, batches):
    model = Model(checkpoint, 2, 0.9)
    alone = [model.rows([batch], [False])[0] for batch in batches]
    together = model.rows(batches, [False] * COUNT)
    assert [row["path"] for row in together] == [f"{at}.jpg" for at in range(COUNT)]
    assert len({row["logit"] for row in together}) == COUNT
    for one, other in zip(alone, together, strict=True):
        assert one["logit"] == pytest.approx(other["logit"], abs=1e-6)
        assert {**one, "logit": 0, "probability": 0} == {**other, "logit": 0, "probability": 0}


def test_threads_that_compute_at_the_same_time_do_not_take_each_others_maps(tmp_path, batches):
    """A network of timm gives its maps by hooks, which keep them for a moment."""
    model = Model(tiny_checkpoint(tmp_path / "t0001", "tf_efficientnet_lite0"), 2, 0.9)
    alone = [model.rows([batch], [False])[0]["logit"] for batch in batches]
    for _ in range(10):
        together = [row["logit"] for row in model.rows(batches, [False] * COUNT)]
        assert together == pytest.approx(alone, abs=1e-5 * max(map(abs, alone)))


def test_each_thread_takes_a_part_and_computes_by_itself(checkpoint, batches, monkeypatch):
    """The thread that takes a batch as a whole keeps all CPUs."""
    seen, score = [], Scorer.__call__

    def watched(scorer, batch):
        seen.append((len(batch["path"]), torch.get_num_threads()))
        return score(scorer, batch)

    monkeypatch.setattr(Scorer, "__call__", watched)
    model = Model(checkpoint, 2, 0.9)
    model.rows(batches, [False] * COUNT)
    assert sorted(seen) == [(3, 1), (4, 1)]
    seen.clear()
    model.rows(batches[:1], [False])
    assert seen == [(1, 2)]


def test_pictures_with_and_without_a_heatmap_in_one_batch(checkpoint, batches):
    model = Model(checkpoint, 2, 0.9)
    wanted = [at % 2 == 0 for at in range(COUNT)]
    rows = model.rows(batches, wanted)
    assert ["heatmap" in row for row in rows] == wanted
    assert [row["path"] for row in rows] == [f"{at}.jpg" for at in range(COUNT)]
