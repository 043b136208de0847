"""Assign rows or groups to parts, so that each part gets its wanted share of every stratum.

Arithmetic on arrays: knows nothing of radiographs, protocols or the purpose of a part.
"""

from collections.abc import Sequence

import numpy as np


def deal_rows(label: np.ndarray, shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The part of each row, (n,) of 0 to 2: random, but each label's rows have exactly these three shares."""
    part = np.empty(len(label), dtype=np.int64)
    edges = np.cumsum(shares)[:2]
    for value in (0, 1):
        rows = rng.permutation(np.flatnonzero(label == value))
        part[rows] = np.searchsorted(np.rint(edges * len(rows)), np.arange(len(rows)), side="right")
    return part


def deal_groups(
    counts: np.ndarray, wanted: np.ndarray, rng: np.random.Generator, tries: int | None = None
) -> np.ndarray:
    """The part of each group: the best of `tries` seeded greedy assignments, improved by moving single groups.

    counts: images per group and stratum; wanted: per part and stratum; tries: None for many, fewer for more groups.
    The cost of an assignment is its chi-square: the squared differences between the images of each stratum in each part
    and the wanted ones, over the wanted ones. Groups are assigned in random order, larger ones earlier, each to the
    part that lowers the cost most.
    """
    wanted = np.maximum(wanted, 0.5)  # avoids division by zero in an empty stratum
    size = counts.sum(1)
    best, best_cost = np.zeros(len(counts), dtype=np.int64), np.inf
    for _ in range(tries or int(np.clip(3_000 // len(counts), 3, 30))):
        order = np.argsort(-size * rng.uniform(0.25, 1.0, len(size)), kind="stable")
        part = _greedy(counts, wanted, order)
        cost = _chi_square(counts, part, wanted)
        if cost < best_cost:
            best, best_cost = part, cost
    return best


def _greedy(counts: np.ndarray, wanted: np.ndarray, order: Sequence[int] | np.ndarray) -> np.ndarray:
    part = np.full(len(counts), -1)
    held = np.zeros_like(wanted)
    for pass_ in range(3):  # the first assigns, the others move groups that now fit better elsewhere
        for group in order:
            if pass_:
                held[part[group]] -= counts[group]
            rise = (counts[group] * (2 * (held - wanted) + counts[group]) / wanted).sum(1)
            part[group] = int(rise.argmin())
            held[part[group]] += counts[group]
    return part


def _chi_square(counts: np.ndarray, part: np.ndarray, wanted: np.ndarray) -> float:
    held = np.stack([counts[part == index].sum(0) for index in range(len(wanted))])
    return float((np.square(held - wanted) / wanted).sum())
