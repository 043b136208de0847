"""Robustness to corruptions: balanced error and relative balanced error, by corruption and severity.

After MedMNIST-C (Di Salvo et al., arXiv 2406.17536) and ImageNet-C (Hendrycks and Dietterich, arXiv 1903.12261).
Balanced error (BE) is 1 - balanced accuracy at the threshold fixed on validation: nothing is tuned to a corruption.
Takes networks as functions from radiographs to probabilities; knows nothing of how they are built, trained or printed.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import isfinite, nan
from typing import Any

import numpy as np

from fracray.data.images.corruptions import CORRUPTIONS, SEVERITIES, Corruption, corrupt
from fracray.data.loading.shards import Shards
from fracray.errors import InputError
from fracray.metrics import Array, GroupJackknife, Interval, Scale, balanced_errors, score

CHUNK = 64  # radiographs corrupted and classified at a time
CHUNK_BYTES = 4 * 2**20  # fewer of them where they are large
# What the values of a summary can be, for their intervals.
SCALES: dict[str, Scale] = {
    "mean": "share",
    "excess": "number",
    "ratio": "ratio",
    "normalised": "ratio",
    "relative": "number",
}


@dataclass(frozen=True)
class ModelUnderTest:
    """A model to be scored: the radiographs at the size it takes, its probabilities, and its fixed threshold.

    classify: (n, S, S) uint8 to (n,) probabilities; called from one thread.
    """

    shards: Shards
    classify: Callable[[np.ndarray], np.ndarray]
    threshold: float


@dataclass(frozen=True)
class Cell:
    """One corruption at one severity; severity 0 is the clean radiographs."""

    severity: int
    balanced_error: Interval
    auroc: float


@dataclass(frozen=True)
class Summary:
    """One corruption over its severities, or all corruptions together.

    mean: BE averaged over severities; excess: mean less the clean BE; ratio: mean over the clean BE. Against a
    reference, else None: normalised, the mean over the reference's mean (MedMNIST-C's BE), and relative, the excess
    over the reference's excess (its rBE), nan unless the corruption clearly hurts the reference.
    auroc: averaged over severities. Over all corruptions each is the mean over corruptions, as in MedMNIST-C.
    """

    mean: Interval
    excess: Interval
    ratio: Interval
    auroc: float
    normalised: Interval | None = None
    relative: Interval | None = None


@dataclass(frozen=True)
class Row:
    """One corruption: its cells in the order of the severities asked for, and their summary."""

    corruption: Corruption
    cells: tuple[Cell, ...]
    summary: Summary


@dataclass(frozen=True)
class CorruptionScores:
    """All cells of a model; `reference` holds those of the model that it is compared with."""

    clean: Cell
    rows: tuple[Row, ...]
    overall: Summary
    reference: "CorruptionScores | None" = None

    def worst(self) -> tuple[Row, ...]:
        """The corruptions that raise the balanced error beyond chance, the worst first."""
        hurt = [row for row in self.rows if row.summary.excess.low > 0]
        return tuple(sorted(hurt, key=lambda row: -row.summary.excess.value))

    def as_dict(self) -> dict[str, Any]:
        """A tree of JSON values with every cell; nan and infinity become null."""
        tree: dict[str, Any] = {
            "clean": _cell(self.clean),
            "overall": _summary(self.overall),
            "corruptions": {
                row.corruption.name: {
                    "imitates": row.corruption.words,
                    "unit": row.corruption.unit,
                    "severities": [
                        {"parameter": row.corruption.values[cell.severity - 1], **_cell(cell)} for cell in row.cells
                    ],
                    **_summary(row.summary),
                }
                for row in self.rows
            },
        }
        if self.reference is not None:
            tree["reference"] = self.reference.as_dict()
        return tree


def score_corruptions(
    model: ModelUnderTest,
    rows: np.ndarray,
    names: Sequence[str],
    labels: np.ndarray,
    groups: np.ndarray,
    severities: Sequence[int] = SEVERITIES,
    reference: ModelUnderTest | None = None,
    seed: int = 0,
    step: Callable[[int, int], None] | None = None,
) -> CorruptionScores:
    """Score a model on these rows of its shards, clean and under every corruption at these severities.

    names, labels, groups: (n,), of these rows: their image_ids, 0 or 1, and what is left out for the intervals.
    step: called with (done, of how many). Raises InputError where the images are all of one class.
    """
    if len(np.unique(labels)) < 2:
        raise InputError("--corruptions: all radiographs are of one class, for which there is no balanced error")
    grid = [(corruption, severity) for corruption in CORRUPTIONS for severity in severities]
    models = [model] if reference is None else [model, reference]
    total = len(models) * len(rows) * (1 + len(grid))
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if step is not None:
            step(done, total)

    probabilities = [_probabilities(each, rows, names, grid, seed, advance) for each in models]
    called = np.concatenate([p >= each.threshold for p, each in zip(probabilities, models, strict=True)])
    jackknife = GroupJackknife(labels, groups)
    values, left_out = balanced_errors(labels, called, jackknife)
    width = 1 + len(grid)
    scored: CorruptionScores | None = None
    # The reference first: the model is compared with it.
    for place in reversed(range(len(models))):
        part = slice(place * width, (place + 1) * width)
        aurocs = np.array([score(labels, p, models[place].threshold).auroc for p in probabilities[place]])
        paired = (values[width:], left_out[:, width:]) if place == 0 and reference is not None else None
        scored = _scored((values[part], left_out[:, part]), aurocs, severities, jackknife, paired, scored)
    assert scored is not None
    return scored


# ---- probabilities ---------------------------------------------------------------------------------------------------


def _probabilities(
    model: ModelUnderTest,
    rows: np.ndarray,
    names: Sequence[str],
    grid: Sequence[tuple[Corruption, int]],
    seed: int,
    advance: Callable[[int], None],
) -> np.ndarray:
    """(1 + len(grid), n) probabilities: of the clean rows, then of each corruption and severity.

    Threads corrupt images ahead of the network; at most a shard and a few chunks are in memory at a time.
    """
    found = np.full((1 + len(grid), len(rows)), nan)
    cpus = os.cpu_count() or 1
    workers = min(16, max(1, cpus - cpus // 2))  # the other half is for the network

    def work(images: np.ndarray, at: np.ndarray, place: int) -> np.ndarray:
        if place == 0:
            return images
        corruption, severity = grid[place - 1]
        return np.stack(
            [corrupt(image, corruption.name, severity, seed, names[i]) for image, i in zip(images, at, strict=True)]
        )

    with ThreadPoolExecutor(workers, thread_name_prefix="corrupt-ahead") as pool:
        pending: deque[tuple[int, np.ndarray, Future[np.ndarray]]] = deque()

        def classify_next() -> None:
            place, at, future = pending.popleft()
            found[place, at] = model.classify(future.result())
            advance(len(at))

        for images, at in _chunks(model.shards, rows):
            for place in range(1 + len(grid)):
                pending.append((place, at, pool.submit(work, images, at, place)))
                if len(pending) > workers + 2:
                    classify_next()
        while pending:
            classify_next()
    return found


def _chunks(shards: Shards, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The images of these rows, a few at a time, with their positions in `rows`."""
    count = max(1, min(CHUNK, CHUNK_BYTES // shards.size**2))
    for file in shards.files:
        inside = np.flatnonzero((rows >= file.first) & (rows < file.first + file.count))
        images = shards.read_file(file)[rows[inside] - file.first] if len(inside) else np.empty((0,))
        for start in range(0, len(inside), count):
            yield images[start : start + count], inside[start : start + count]


# ---- arithmetic ------------------------------------------------------------------------------------------------------


def _statistics(errors: Array, count: int) -> dict[str, Array]:
    """Mean, excess and ratio, each (r, corruptions), of balanced errors (r, 1 + corruptions * count), clean first."""
    clean = errors[:, :1]
    cells = errors[:, 1:].reshape(len(errors), -1, count)
    mean = cells.mean(axis=2)
    # Differences before averaging: where nothing changes, the excess is exactly 0 and not clearly above it.
    excess = (cells - clean[:, :, None]).mean(axis=2)
    with np.errstate(divide="ignore", invalid="ignore"):
        return {"mean": mean, "excess": excess, "ratio": mean / clean}


def _scored(
    errors: tuple[Array, Array],
    aurocs: Array,
    severities: Sequence[int],
    jackknife: GroupJackknife,
    paired: tuple[Array, Array] | None,
    reference: CorruptionScores | None,
) -> CorruptionScores:
    """Cells and summaries from balanced errors (k,), those (r, k) with groups left out, and the reference's, if any."""
    values, left_out = errors
    count = len(severities)
    # The values come before those with groups left out, so the same arithmetic serves both.
    stacked = _statistics(np.concatenate([values[None], left_out]), count)
    if paired is not None and reference is not None:
        other = _statistics(np.concatenate([paired[0][None], paired[1]]), count)
        clear = np.array([row.summary.excess.low > 0 for row in reference.rows])
        with np.errstate(divide="ignore", invalid="ignore"):
            stacked["normalised"] = stacked["mean"] / other["mean"]
            stacked["relative"] = np.where(clear, stacked["excess"] / other["excess"], nan)

    def summary(columns: slice) -> Summary:
        intervals = {name: _column(table[:, columns], jackknife, SCALES[name]) for name, table in stacked.items()}
        cells = aurocs[1:].reshape(-1, count)[columns]
        return Summary(auroc=float(cells.mean()), **intervals)

    def cell(place: int, severity: int) -> Cell:
        return Cell(severity, jackknife.interval(float(values[place]), left_out[:, place]), float(aurocs[place]))

    return CorruptionScores(
        clean=cell(0, 0),
        rows=tuple(
            Row(
                corruption,
                tuple(cell(1 + i * count + j, severity) for j, severity in enumerate(severities)),
                summary(slice(i, i + 1)),
            )
            for i, corruption in enumerate(CORRUPTIONS)
        ),
        overall=summary(slice(None)),
        reference=reference,
    )


def _column(table: Array, jackknife: GroupJackknife, scale: Scale) -> Interval:
    """Value and interval of the mean over columns (1 + r, c), the value in front; columns of nan are left out."""
    defined = table[:, ~np.isnan(table[0])]
    if not defined.shape[1]:
        return Interval(nan, nan, nan)
    averaged = defined.mean(axis=1)
    return jackknife.interval(float(averaged[0]), averaged[1:], scale=scale)


def _cell(cell: Cell) -> dict[str, Any]:
    return {"severity": cell.severity, "balanced_error": cell.balanced_error.as_dict(), "auroc": _finite(cell.auroc)}


def _summary(summary: Summary) -> dict[str, Any]:
    tree = {name: getattr(summary, name).as_dict() for name in ("mean", "excess", "ratio")}
    for name in ("normalised", "relative"):
        if (value := getattr(summary, name)) is not None:
            tree[name] = value.as_dict()
    return {**tree, "auroc": _finite(summary.auroc)}


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None
