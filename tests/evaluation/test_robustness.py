"""The corruption suite on hand-made numbers: errors, relative errors and intervals that can be worked out on paper."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import t

from fracray.data.images.corruptions import NAMES, corrupt
from fracray.data.loading.shards import open_shards
from fracray.errors import InputError, RunError
from fracray.evaluation.robustness import ModelUnderTest, score_corruptions
from fracray.runtime.storage import Folder

# Constant radiographs: of ten fractured ones eight are bright (180) and two dark (60), all ten others are dark. Judged
# by their mean gray, 2 of 10 are missed and none is mistaken: BE = (0.2 + 0) / 2 = 0.1.
GRAYS = np.array([180] * 8 + [60] * 2 + [60] * 10, np.uint8)
LABELS = np.array([1] * 10 + [0] * 10)
IDS = [f"IMG{i:07d}" for i in range(20)]
GROUPS = np.arange(20)
ROWS = np.arange(20)


def write_shards(folder, images, rows_per_file):
    size = images.shape[1]
    files = []
    for number, first in enumerate(range(0, len(images), rows_per_file)):
        part = images[first : first + rows_per_file]
        pixels = pa.array([image.tobytes() for image in part], pa.binary(size * size))
        pq.write_table(pa.table({"image": pixels}), folder / f"{number}.parquet")
        files.append({"name": f"{number}.parquet", "first": first, "count": len(part)})
    (folder / "index.json").write_text(json.dumps({"size": size, "files": files}))
    return open_shards(Folder(folder))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    images = np.repeat(GRAYS, 32 * 32).reshape(20, 32, 32)
    return write_shards(tmp_path_factory.mktemp("shards"), images, 7)


def brightness(images):
    return images.mean(axis=(1, 2)) / 255


def by_name(scores):
    return {row.corruption.name: row for row in scores.rows}


def errors(row):
    return [cell.balanced_error.value for cell in row.cells]


def test_errors_excess_and_ratio_are_those_worked_out_by_hand(shards):
    scores = score_corruptions(ModelUnderTest(shards, brightness, 0.5), ROWS, IDS, LABELS, GROUPS)
    assert scores.clean.balanced_error.value == pytest.approx(0.1)
    assert scores.clean.auroc == pytest.approx(0.9)  # 0.8 * 1 + 0.2 * 0.5
    rows = by_name(scores)
    assert tuple(rows) == NAMES
    # Each stop halves the odds 180 / 75: below one, and so below the threshold, from 1.6 stops on.
    darker = rows["exposure_up"]
    assert errors(darker) == pytest.approx([0.1, 0.1, 0.1, 0.5, 0.5])
    assert darker.summary.mean.value == pytest.approx(0.26)
    assert darker.summary.excess.value == pytest.approx(0.16)
    assert darker.summary.ratio.value == pytest.approx(2.6)
    assert darker.summary.auroc == pytest.approx(0.9)  # the order holds
    # Inverted, 8 of 10 and 10 of 10 are wrong.
    assert errors(rows["inversion"])[-1] == pytest.approx(0.9)
    # A constant radiograph has no edges and no detail.
    for name in ("motion_blur", "defocus_blur", "pixelate", "contrast_up"):
        assert errors(rows[name]) == pytest.approx([0.1] * 5), name
        assert rows[name].summary.excess.value == pytest.approx(0)
    worst = scores.worst()
    assert worst[0].summary.excess.value == max(row.summary.excess.value for row in scores.rows)
    assert {"exposure_up", "inversion"} < {row.corruption.name for row in worst}
    assert "pixelate" not in {row.corruption.name for row in worst}
    assert scores.overall.mean.value == pytest.approx(np.mean([row.summary.mean.value for row in scores.rows]))
    assert scores.overall.normalised is None


def test_against_a_reference_they_are_medmnist_cs_be_and_rbe(shards):
    model, reference = ModelUnderTest(shards, brightness, 0.5), ModelUnderTest(shards, brightness, 0.6)
    scores = score_corruptions(model, ROWS, IDS, LABELS, GROUPS, reference=reference)
    assert scores.reference is not None
    other, ours = by_name(scores.reference), by_name(scores)
    # The reference calls odds of 1.5 and more: lost from 0.8 stops on.
    assert errors(other["exposure_up"]) == pytest.approx([0.1, 0.5, 0.5, 0.5, 0.5])
    assert ours["exposure_up"].summary.normalised.value == pytest.approx(0.26 / 0.42)
    assert ours["exposure_up"].summary.relative.value == pytest.approx(0.16 / 0.32)
    # The same share of images inverted hurts both alike.
    assert ours["inversion"].summary.relative.value == pytest.approx(1)
    # What does not hurt the reference has no relative error, and does not count in the mean of them.
    assert np.isnan(ours["pixelate"].summary.relative.value)
    assert ours["pixelate"].summary.normalised.value == pytest.approx(1)
    defined = [row.summary.relative.value for row in scores.rows if not np.isnan(row.summary.relative.value)]
    assert len(defined) == len(scores.reference.worst())
    assert scores.overall.relative.value == pytest.approx(np.mean(defined))
    alone = score_corruptions(model, ROWS, IDS, LABELS, GROUPS)
    assert by_name(alone)["exposure_up"].cells == ours["exposure_up"].cells
    tree = json.loads(json.dumps(scores.as_dict(), allow_nan=False))
    assert tree["corruptions"]["pixelate"]["relative"] == {"value": None, "low": None, "high": None}
    assert tree["corruptions"]["exposure_up"]["severities"][4]["parameter"] == 2.0
    assert tree["reference"]["corruptions"]["exposure_up"]["mean"]["value"] == pytest.approx(0.42)


def test_an_excess_has_the_interval_of_a_difference(shards):
    """Both errors leave out the same images: what is missed clean and dark alike cancels."""
    scores = score_corruptions(ModelUnderTest(shards, brightness, 0.5), ROWS, IDS, LABELS, GROUPS)
    row = by_name(scores)["exposure_up"].summary
    # 0.2 times the share of bright ones among ten fractured. Without one of ten, a share moves by (share - 1 or 0) / 9;
    # without one of the ten others it stays; and the fractured ones are ten groups.
    assert row.excess.value == pytest.approx(0.16)
    half = t.ppf(0.975, 9) * 0.2 * np.sqrt(19 / 20 * 10 * 0.8 * 0.2 / 9**2)
    assert (row.excess.low, row.excess.high) == pytest.approx((0.16 - half, 0.16 + half))
    same = by_name(scores)["motion_blur"].summary.excess
    assert (same.low, same.high) == (0, 0)


def test_the_corrupted_radiographs_are_those_of_corrupt_and_only_of_the_rows_asked_for(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (150, 32, 32), np.uint8)
    shards = write_shards(tmp_path, images, 100)  # more than a chunk in a file
    rows = np.flatnonzero(np.arange(150) % 3)
    names = [f"x{row}" for row in rows]
    labels = (np.arange(len(rows)) % 2).astype(int)
    seen = []

    def classify(batch):
        seen.extend(image.tobytes() for image in batch)
        return np.full(len(batch), 0.3)

    severities = (2, 5)
    done = []
    score_corruptions(
        ModelUnderTest(shards, classify, 0.5),
        rows,
        names,
        labels,
        rows,
        severities,
        seed=4,
        step=lambda d, t: done.append((d, t)),
    )
    expected = [images[row].tobytes() for row in rows] + [
        corrupt(images[row], name, severity, 4, key).tobytes()
        for row, key in zip(rows, names, strict=True)
        for name in NAMES
        for severity in severities
    ]
    assert sorted(seen) == sorted(expected)
    assert done[-1] == (len(expected), len(expected))


def test_a_set_of_one_class_and_predictions_that_are_not_finite_are_refused(shards):
    with pytest.raises(InputError, match="one class"):
        score_corruptions(ModelUnderTest(shards, brightness, 0.5), ROWS, IDS, np.ones(20, int), GROUPS)
    with pytest.raises(RunError, match="not finite"):
        score_corruptions(
            ModelUnderTest(shards, lambda images: np.full(len(images), np.nan), 0.5), ROWS, IDS, LABELS, GROUPS
        )


def test_a_fault_while_classifying_reaches_the_caller(shards):
    def classify(images):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        score_corruptions(ModelUnderTest(shards, classify, 0.5), ROWS, IDS, LABELS, GROUPS)
