"""The network's process: a batch that its threads share out, and one that is taken as a whole."""

import asyncio

import pytest
import torch
from drawn_fracatlas import jpeg, picture
from served import SIZE, tiny_checkpoint

from fracray.errors import RunError
from fracray.prediction.familiar import Familiar
from fracray.prediction.scoring import Scorer
from fracray.serving import engine
from fracray.serving.decoding import Reader
from fracray.serving.engine import Engine, Plan, Upload, gpus_seen
from fracray.serving.limits import Limits
from fracray.serving.model import Model
from fracray.training.checkpoint import read_metadata

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


@pytest.mark.parametrize(
    ("named", "count", "seen"),
    [(None, 2, ("0", "1")), ("2,GPU-8932", 2, ("2", "GPU-8932")), ("2,9,3", 1, ("2",)), ("", 0, ()), (None, 0, ())],
)
def test_each_network_sees_one_gpu_in_turn_or_none(named, count, seen, checkpoint, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert gpus_seen() == seen
    given = []
    monkeypatch.setattr(engine, "Pool", lambda *_, environments=({},), **more: given.append(environments))
    Engine(checkpoint, read_metadata(checkpoint).config, Plan(3, gpus=gpus_seen()), Limits(), 0.9)
    assert given[1] == [{"CUDA_VISIBLE_DEVICES": name} for name in seen or [""]]


def test_a_picture_on_which_the_network_fails_leaves_the_others_of_its_request_their_rows(checkpoint, monkeypatch):
    uploads = [Upload(f"{at}.jpg", jpeg(picture(at))) for at in range(4)]

    async def ask():
        running = Engine(checkpoint, read_metadata(checkpoint).config, Plan(wait=0.5), Limits(), 0.9)
        await running.start()
        call = running._models.call

        async def failing(name, *arguments):
            if name == "rows" and any(b["path"][0] == "2.jpg" and not b["error"][0] for b in arguments[0]):
                raise RunError("ValueError: no memory for it")
            return await call(name, *arguments)

        monkeypatch.setattr(running._models, "call", failing)
        try:
            return await running.rows(uploads, False)
        finally:
            running.stop()

    rows = asyncio.run(ask())
    assert [row["path"] for row in rows] == [upload.name for upload in uploads]
    assert [row["error"] for row in rows] == ["", "", "the network failed on it: no memory for it", ""]
    assert [row["logit"] is None for row in rows] == [False, False, True, False]
