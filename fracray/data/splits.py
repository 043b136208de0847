"""Splits: which used radiographs train, validate and test, so that nothing about a test image is known from training.

Groups are inferred, for FracAtlas names no patient: duplicate components joined with blocks of neighbouring file
numbers. Must not look at pixels, and must not know of models.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from fracray.config import SplitConfig
from fracray.data.duplicates import Link, components
from fracray.data.manifest import SPLITS, Manifest, file_number
from fracray.errors import InputError

# A part may be off its wanted size by this factor; beyond, the groups are too few or one is too large.
_TOLERANCE = 2.0


def assign_splits(manifest: Manifest, config: SplitConfig) -> Manifest:
    """Fill `group` and `split` (train, val or test) of the used rows, stratified by label; '' in the others.

    A group is what the transitive closure of duplicate components and blocks of `config.block` file numbers ties
    together, named after its first image. Components count all files, so two images alike to a third are tied although
    that one is not used; blocks tie only images that are used. (Were blocks tied through unused files as well, the lone
    copies in FracAtlas would chain 17 blocks to two groups of 550 and 510 images that hold nearly all large pictures
    and fit into no part but train; of the 149 files in its series of copies, 145 have a twin, so little is tied less.)
    Protocol 'grouped' keeps groups whole and comes as close to the wanted sizes and prevalence as they allow; 'random'
    deals row by row, for comparison, and names the same groups.
    Equal manifest and config give equal splits. InputError when a part would stay empty, lack a class, or be off its
    wanted size by more than a factor of two.
    """
    used = manifest.used.index
    label = manifest.table.loc[used, "label"].to_numpy()
    if len(set(label)) < 2:
        raise InputError(
            f"{manifest.root}: the {len(used)} used images are not of both classes ({manifest.flow().summary()}); "
            "a classifier needs fractured and not fractured ones"
        )
    table = name_groups(manifest, config.block).table
    group = table.loc[used, "group"].to_numpy()
    rng = np.random.default_rng(config.seed)
    if config.protocol == "random":
        part = _deal_rows(label, config, rng)
    else:
        named, member = np.unique(group, return_inverse=True)
        part = _deal_groups(_counts(label, member, len(named)), config, rng)[member]
    _check(label, part, config, str(manifest.root), len(set(group)))
    table.loc[used, "split"] = np.array(SPLITS, dtype=object)[part]
    return Manifest(table, manifest.root)


def name_groups(manifest: Manifest, block: int) -> Manifest:
    """Fill `group` of the used rows, as `assign_splits` explains, and clear `split`: for data that is not divided."""
    table = manifest.table.copy()
    table["split"] = table["group"] = ""
    used = manifest.used.index
    table.loc[used, "group"] = table.loc[used, "image_id"].to_numpy()[_groups(manifest.used, block)]
    return Manifest(table, manifest.root)


def leaks(table: pd.DataFrame) -> list[str]:
    """The groups and duplicate components with images in more than one part, in words; empty for a grouped split."""
    dealt = table[table["split"] != ""]
    found = []
    for column, word in (("group", "group"), ("component", "duplicates of")):
        named = dealt[dealt[column] != ""]
        for name, parts in named.groupby(column)["split"]:
            if parts.nunique() > 1:
                counts = parts.value_counts()
                spread = ", ".join(f"{counts[part]} in {part}" for part in SPLITS if part in counts)
                found.append(f"{word} {name}: {spread}")
    return found


def _groups(used: pd.DataFrame, block: int) -> np.ndarray:
    """For each row the position of the first row of its group."""
    first: dict[tuple[str, str, int], int] = {}
    links: list[Link] = []
    for at, (image_id, component) in enumerate(zip(used["image_id"], used["component"], strict=True)):
        keys = [("component", component, 0)] if component else []
        if number := file_number(image_id):
            keys.append(("block", number[0], number[1] // block))
        links += [(first.setdefault(key, at), at) for key in keys]
    number_of = components(len(used), links)
    _, start = np.unique(number_of, return_index=True)
    return start[number_of]


def _counts(label: np.ndarray, member: np.ndarray, groups: int) -> np.ndarray:
    """Images per group and class: (groups, 2)."""
    counts = np.zeros((groups, 2))
    np.add.at(counts, (member, label), 1)
    return counts


def _shares(config: SplitConfig) -> np.ndarray:
    return np.array([config.train, config.val, 1 - config.train - config.val])


def _deal_rows(label: np.ndarray, config: SplitConfig, rng: np.random.Generator) -> np.ndarray:
    part = np.empty(len(label), dtype=np.int64)
    edges = np.cumsum(_shares(config))[:2]
    for value in (0, 1):
        rows = rng.permutation(np.flatnonzero(label == value))
        part[rows] = np.searchsorted(np.rint(edges * len(rows)), np.arange(len(rows)), side="right")
    return part


def _deal_groups(counts: np.ndarray, config: SplitConfig, rng: np.random.Generator) -> np.ndarray:
    """The part of each group: the best of many seeded greedy deals, improved by moving single groups.

    A deal is judged by chi-square: the squared differences between the images of each class in each part and the
    wanted ones, over the wanted ones. Groups are dealt in random order, the larger rather first, each to the part
    that lowers it most.
    """
    wanted = _shares(config)[:, None] * counts.sum(0)
    size = counts.sum(1)
    best, best_cost = np.zeros(len(counts), dtype=np.int64), np.inf
    for _ in range(int(np.clip(3_000 // len(counts), 3, 30))):
        order = np.argsort(-size * rng.uniform(0.25, 1.0, len(size)), kind="stable")
        part = _greedy(counts, wanted, order)
        cost = _chi_square(counts, part, wanted)
        if cost < best_cost:
            best, best_cost = part, cost
    return best


def _greedy(counts: np.ndarray, wanted: np.ndarray, order: Sequence[int] | np.ndarray) -> np.ndarray:
    part = np.full(len(counts), -1)
    held = np.zeros_like(wanted)
    for pass_ in range(3):  # the first deals, the others move what now stands better elsewhere
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


def _check(label: np.ndarray, part: np.ndarray, config: SplitConfig, where: str, groups: int) -> None:
    remedy = (
        f"lower data.split.block (now {config.block}), change data.split.train and val, or add images"
        if config.protocol == "grouped"
        else "change data.split.train and val, or add images"
    )
    for index, (name, share) in enumerate(zip(SPLITS, _shares(config), strict=True)):
        mine = label[part == index]
        if len(set(mine)) < 2:
            fault = f"{name} would hold {int((mine == 0).sum())} images not fractured and {int(mine.sum())} fractured"
        elif not 1 / _TOLERANCE <= len(mine) / (share * len(label)) <= _TOLERANCE:
            fault = f"{name} would hold {len(mine) / len(label):.0%} of the images instead of {share:.0%}"
        else:
            continue
        raise InputError(f"{where}: {len(label)} used images in {groups} groups cannot be split: {fault}; {remedy}")
