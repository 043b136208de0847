"""Splits: which used radiographs train, validate and test, so that training reveals nothing about a test image.

Groups are those of `groups.name_groups`. Must not look at pixels, and must not know of models.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pandas as pd

from fracray.config import AXES, SplitConfig
from fracray.data.manifest import PARTS, Manifest, in_set, part_of, sets_named, sets_of
from fracray.data.splits.groups import TIES, in_order, name_groups
from fracray.data.splits.guard import in_guard_band
from fracray.data.splits.held_out import HeldOutSet, hold_out
from fracray.data.splits.set_names import UNSHIFTED, validation_sets
from fracray.data.splits.stratify import deal_groups, deal_rows
from fracray.errors import InputError
from fracray.runtime.console import counted

# A part may miss its wanted size by this factor; beyond it there are too few groups or one is too large.
_TOLERANCE = 2.0

# A group with more than this share of held-out images is kept out of train, where most of it would be unused.
_MOSTLY = 0.8

_DEALINGS = 50  # attempts to deal folds anew in another way

FEW = 10  # images of a class below which a set is called small


# ---------------------------------------------------------------- the split
# What a division into parts tears apart, for `counted`.
DIVIDED = ("group, patient or set of duplicates is", "groups, patients or sets of duplicates are")


def assign_splits(manifest: Manifest, config: SplitConfig, rotation: int = 0) -> Manifest:
    """Fill `group` and `split` of the used rows, stratified by label, or, where a row is in no part, `unused`.

    First, groups are assigned to three parts, each group to one (except in protocol 'random'). A group joins images
    by duplicate component, patient, study, small folder (`groups.in_order`) and, for images with neither patient nor
    study, block of file numbers; it is named after its first image. Components include unused files: two images similar
    to a third one are joined even if that one is not used. Blocks and folders join only used images. (If unused files
    joined blocks too, single copies in FracAtlas would chain 17 blocks into two groups of 550 and 510 images with
    nearly all large pictures, which fit only into train; 145 of the 149 files in its series of copies have a twin, so
    little is lost.)
    'blocks' does not join blocks that share a duplicate, and takes a small folder for a block: images whose duplicates
    or patient are in two parts are left out of the part that comes first in train, val, test.
    'kfold' makes `config.folds` equal parts: `config.fold` is test, the next one val (or, by `rotation`, one of the
    others), the rest train. Rotations beyond the others deal all but the test fold into folds anew, each time with
    another seed.
    Where blocks of file numbers stand for patients, the images of a part that are next to a later part (in train, val,
    test) are left out of it: `guard.in_guard_band`.

    Then the parts are divided into sets. Images that an axis holds out are unused in train, and form the set 'val/view'
    in val (and likewise in test); 'val' has the images that no axis holds out. In a protocol that is itself an axis,
    'val' is its held-out set, and 'val/unshifted' the rest. An image may be in several sets, joined by '+': where a
    held-out set is of one class by definition (`HeldOutSet.one_class`), it borrows the unshifted images of the other.
    Last, `config.training_budget` images of train are kept, stratified by label; a smaller budget keeps a subset of
    those of a larger one.

    Equal manifest and config give equal splits. InputError when a set would lack a class, or a part would miss its
    wanted size by more than a factor of two.
    """
    where = str(manifest.root)
    used = in_order(manifest)
    label = used["label"].to_numpy()
    if len(set(label)) < 2:
        raise InputError(
            f"{where}: the {len(used)} used images are not of both classes ({manifest.flow().summary()}); "
            "a classifier needs fractured and not fractured ones. A set of one class can be evaluated, not trained on"
        )
    if config.file is not None:
        return _split_from_file(manifest, config, config.file)
    table = name_groups(manifest, config).table
    group = table.loc[used.index, "group"].to_numpy()
    patients = used["patient"].nunique() if (used["patient"] != "").all() else 0
    if config.protocol != "random" and patients == 1:
        raise InputError(
            f"{where}: all {len(used)} used images have the same patient, who cannot be in two parts, so there is no "
            "split; correct the column or the folders that the patients were read from, and import the set again"
        )
    held = hold_out(used, config, where)
    rng = np.random.default_rng(config.seed)
    if config.protocol == "random":
        part = deal_rows(label, _shares(config), rng)
        wanted = _shares(config) * len(label)
    else:
        part, wanted = _deal(label, group, held, config, rotation, rng, where)
    unused = np.where((part == 0) & _shifted(held, label), "held_out", "").astype(object)
    if config.protocol == "blocks":
        part = _leave_out(part, _divided_ties(used, part), "tied", unused)
    groups, remedy = len(set(group)), _remedy(config, patients)
    _check_sizes(part, wanted, where, groups, remedy)
    if config.guard_size and (band := in_guard_band(used, part, config)).any():
        part = _leave_out(part, band, "guard", unused)
        remedy = f"lower data.split.guard (now {config.guard_size}), or {remedy}"
        _check_sizes(part, wanted, where, groups, remedy)
    sets = _cut_sets(label, part, held, config)
    if config.training_budget is not None:
        unused[_exceed_budget(sets, label, config.training_budget, rng, where)] = "over_budget"
    names = validation_sets(config)
    names = ("train", *names, *(name.replace("val", "test", 1) for name in names))
    _check_classes(sets, names, label, where, remedy)
    table.loc[used.index, "split"] = ["+".join(names) for names in sets]
    table.loc[used.index, "unused"] = unused
    return replace(manifest, table=table)


def leaks(table: pd.DataFrame) -> list[str]:
    """The groups, patients, studies and duplicate components with images in more than one part, as text."""
    assigned = table.assign(part=part_of(table["split"]))
    assigned = assigned[assigned["part"] != ""]
    found = []
    for column, word in (
        ("group", "group"),
        ("patient", "patient"),
        ("study", "study"),
        ("component", "duplicates of"),
    ):
        named = assigned.loc[assigned[column] != "", [column, "part"]]
        parts_of = named.drop_duplicates()[column].value_counts(sort=False)
        divided = named[named[column].isin(parts_of.index[parts_of > 1])]
        for name, parts in divided.groupby(column)["part"]:
            counts = parts.value_counts()
            spread = ", ".join(f"{counts[part]} in {part}" for part in PARTS if part in counts)
            found.append(f"{word} {name}: {spread}")
    return found


def explain(manifest: Manifest, config: SplitConfig) -> tuple[str, ...]:
    """Notes on this split: what is held out, unused and borrowed."""
    if config.file is not None:
        return (f"the split is read from {config.file}",)
    used, flow = manifest.used, manifest.flow()
    label = used["label"].to_numpy()
    held = hold_out(used, config, str(manifest.root))
    notes = [
        f"{axis.axis}: {axis.description}, {counted(axis.mask.sum(), 'image')}, none of them in train" for axis in held
    ]
    if flow.held_out:
        share, are = ("shares", "is") if flow.held_out == 1 else ("share", "are")
        notes.append(f"{flow.held_out} of these {share} a group with training images and {are} unused")
    for name in sets_named(used["split"]):
        own = name.partition("/")[2] or (config.protocol if config.protocol in AXES else "")
        mask = next((axis.mask for axis in held if axis.axis == own), None)
        inside = in_set(used["split"], name)
        if mask is not None and name != "train" and (borrowed := inside & ~mask).any():
            kinds = [word for value, word in enumerate(("not fractured", "fractured")) if value in label[borrowed]]
            notes.append(
                f"{name} borrows {counted(borrowed.sum(), 'unshifted image')} ({', '.join(kinds)}), having none of its "
                "own: its sensitivity is of held-out images, its specificity of the others"
            )
    for name in sets_named(used["split"]):
        for value, word in enumerate(("not fractured", "fractured")):
            count = int((label[in_set(used["split"], name)] == value).sum())
            if 0 < count < FEW:
                notes.append(f"{name} has only {counted(count, 'image')} {word}: its scores are imprecise")
    near = f"within {counted(config.guard_size, 'file number')} of a later part, or duplicates of such, and"
    reasons = (
        (flow.tied, ("shares", "share"), "duplicates, a patient or a study with a later part and", ""),
        (flow.guard, ("is", "are"), near, " (a guard band: data.split.guard)"),
        (flow.over_budget, ("exceeds", "exceed"), f"the training budget of {config.training_budget} and", ""),
    )
    for count, (one, many), what, why in reasons:
        if count:
            subject = counted(count, f"image {one}", f"images {many}")
            notes.append(f"{subject} {what} {'is' if count == 1 else 'are'} unused{why}")
    return tuple(notes)


def _shifted(held: Sequence[HeldOutSet], label: np.ndarray) -> np.ndarray:
    """Which images any axis holds out."""
    return np.any([axis.mask for axis in held], axis=0) if held else np.zeros(len(label), bool)


def _divided_ties(used: pd.DataFrame, part: np.ndarray) -> np.ndarray:
    """Which images have duplicates, or their patient, in a later part as well."""
    divided = np.zeros(len(used), bool)
    for column in TIES:
        left = pd.Series(np.where(divided, -1, part), index=used.index)
        last = left.groupby(used[column]).transform("max").to_numpy()
        divided |= (used[column] != "").to_numpy() & (part < last)
    return divided


def _leave_out(part: np.ndarray, mask: np.ndarray, why: str, unused: np.ndarray) -> np.ndarray:
    """The parts, with -1 in the mask; its reason is kept in `unused` where there is none yet."""
    unused[mask & (unused == "")] = why
    return np.where(mask, -1, part)


# ---------------------------------------------------------------- parts


def _shares(config: SplitConfig) -> np.ndarray:
    return np.array([config.train, config.val, 1 - config.train - config.val])


def _deal(
    label: np.ndarray,
    group: np.ndarray,
    held: Sequence[HeldOutSet],
    config: SplitConfig,
    rotation: int,
    rng: np.random.Generator,
    where: str,
) -> tuple[np.ndarray, np.ndarray]:
    """The part of each image, groups kept together, and the wanted sizes of the parts: (n,) and (3,)."""
    named, member = np.unique(group, return_inverse=True)
    shifted = _shifted(held, label)
    # Held-out images are separate strata. Groups that consist mostly of them go to val and test, the others to all
    # parts by the wanted shares.
    mostly = (np.bincount(member, shifted) > _MOSTLY * np.bincount(member))[member]
    strata = label + 2 * shifted
    counts = np.zeros((len(named), 4))
    np.add.at(counts, (member, strata), 1)
    if config.protocol == "kfold":
        fold = _deal_folds(counts, config.folds, rng)
        test = fold == config.fold
        repeat, turn = divmod(rotation, config.folds - 1)
        if repeat:
            fold[~test] = _deal_anew(counts[~test], fold[~test], config, repeat, where)
            val = ~test & (fold == turn)
        else:
            val = fold == (config.fold + 1 + turn) % config.folds
        part = np.where(test, 2, np.where(val, 1, 0))
        return part[member], np.array([config.folds - 2, 1, 1]) / config.folds * len(label)
    shares = _shares(config)
    spread = np.bincount(strata[~(mostly & shifted)], minlength=4)
    gathered = np.bincount(strata[mostly & shifted], minlength=4)
    late = shares * [0, 1, 1] / shares[1:].sum()
    wanted = shares[:, None] * spread + late[:, None] * gathered
    return deal_groups(counts, wanted, rng)[member], wanted.sum(1)


def _deal_folds(counts: np.ndarray, folds: int, rng: np.random.Generator, tries: int | None = None) -> np.ndarray:
    """The fold of each group, (g,), by their counts (g, strata)."""
    return deal_groups(counts, np.full((folds, 1), 1 / folds) * counts.sum(0), rng, tries)


def _deal_anew(counts: np.ndarray, first: np.ndarray, config: SplitConfig, repeat: int, where: str) -> np.ndarray:
    """The folds, 0 to folds - 2, of the groups outside the test fold when they are dealt again for the repeat-th time.

    No dealing equals the first one or one before. The best of many tries would: few groups have few good dealings.
    """
    words = counts.tobytes(), counts.shape[1], _dealing(first), config.folds, config.seed, config.repeats
    dealt = _dealings(*words)
    if repeat > len(dealt):
        raise InputError(
            f"{where}: {counted(len(first), 'group')} outside the test fold cannot be dealt into "
            f"{config.folds - 1} folds in {config.repeats} different ways; lower data.split.repeats to {len(dealt) + 1}"
        )
    return dealt[repeat - 1]


@lru_cache(maxsize=4)  # every rotation of a split asks for one of them
def _dealings(counts: bytes, strata: int, first: bytes, folds: int, seed: int, repeats: int) -> tuple[np.ndarray, ...]:
    """What follows the first dealing, as far as there are other ways to deal; counts: (g, strata) float64."""
    groups, known, found = np.frombuffer(counts).reshape(-1, strata), {first}, list[np.ndarray]()
    for time in range(1, repeats):
        for attempt in range(_DEALINGS):
            rng = np.random.default_rng([seed, time, attempt])
            fold = _deal_folds(groups, folds - 1, rng, tries=1 if attempt else 3)
            if _dealing(fold) not in known:
                break
        else:
            break
        known.add(_dealing(fold))
        found.append(fold)
    return tuple(found)


def _dealing(fold: np.ndarray) -> bytes:
    """Which groups are together, whatever the numbers of their folds."""
    return bytes(pd.factorize(fold)[0].tobytes())


# ---------------------------------------------------------------- sets


def _cut_sets(label: np.ndarray, part: np.ndarray, held: Sequence[HeldOutSet], config: SplitConfig) -> list[list[str]]:
    """The names of the sets that each image is in."""
    shifted = _shifted(held, label)
    sets: list[list[str]] = [["train"] if mine else [] for mine in (part == 0) & ~shifted]
    own = config.protocol in AXES
    for index, name in enumerate(PARTS[1:], start=1):
        inside = part == index
        masks = {name: held[0].mask if own else ~shifted}
        if own:
            masks[f"{name}/{UNSHIFTED}"] = ~shifted
        masks |= {f"{name}/{axis.axis}": axis.mask for axis in held[1 if own else 0 :]}
        borrowing = {f"{name}/{axis.axis}" for axis in held if axis.one_class}
        if own and held[0].one_class:
            borrowing.add(name)
        for set_name, mask in masks.items():
            chosen = inside & mask
            if set_name in borrowing:
                # Of the other class only. What reveals the held-out property then reveals the class: `explain` says so.
                rarer = int(label[mask].mean() < 0.5)
                chosen |= inside & (label == rarer) & ~shifted
            for row in np.flatnonzero(chosen):
                sets[row].append(set_name)
    return sets


def _exceed_budget(
    sets: list[list[str]], label: np.ndarray, budget: int, rng: np.random.Generator, where: str
) -> list[int]:
    """Keep `budget` images in train, at its prevalence; returns the others, which are then in no set."""
    train = np.array([names == ["train"] for names in sets])
    if budget > train.sum():
        raise InputError(
            f"{where}: a budget of {budget} training images, but train has {train.sum()}; lower data.split.budget"
        )
    order = rng.permutation(len(label))
    fractured = round(budget * label[train].mean())
    exceeding = [
        int(row)
        for value, keep in ((0, budget - fractured), (1, fractured))
        for row in order[(train & (label == value))[order]][keep:]
    ]
    for row in exceeding:
        sets[row].clear()
    return exceeding


def _check_sizes(part: np.ndarray, wanted: np.ndarray, where: str, groups: int, remedy: str) -> None:
    for index, name in enumerate(PARTS):
        share, goal = (part == index).mean(), wanted[index] / len(part)
        if not 1 / _TOLERANCE <= share / goal <= _TOLERANCE:
            raise InputError(
                f"{where}: {len(part)} used images in {counted(groups, 'group')} cannot be split: {name} would have "
                f"{share:.0%} of the images instead of {goal:.0%}; {remedy}"
            )


def _check_classes(sets: list[list[str]], names: Sequence[str], label: np.ndarray, where: str, remedy: str) -> None:
    for name in names:
        mine = label[[name in names for names in sets]]
        if len(set(mine)) < 2:
            raise InputError(
                f"{where}: {len(label)} used images cannot be split: {name} would have "
                f"{counted(int((mine == 0).sum()), 'image')} not fractured and {int(mine.sum())} fractured; {remedy}"
            )


def _remedy(config: SplitConfig, patients: int) -> str:
    """What to change; `patients` is their number where all are known, so that no block of file numbers matters."""
    if config.training_budget is not None and config.training_budget < 50:
        return f"raise data.split.budget (now {config.training_budget})"
    if config.protocol == "random":
        return "change data.split.train and val, or add images"
    if patients:
        folds = "lower data.split.folds" if config.protocol == "kfold" else "change data.split.train and val"
        return f"no patient is divided, and there are {patients}: {folds}, or add patients"
    if config.protocol == "kfold":
        return f"lower data.split.folds (now {config.folds}) or data.split.block (now {config.block_size})"
    hold = ", hold out something else" if config.held_out else ""
    return f"lower data.split.block (now {config.block_size}), change data.split.train and val{hold}, or add images"


# ---------------------------------------------------------------- a split from a file


def _split_from_file(manifest: Manifest, config: SplitConfig, path: str) -> Manifest:
    """The groups and sets of the manifest at `path`, for the same pictures with the same ids."""
    stored = Manifest.read(path).table.set_index("image_id")
    table = manifest.table.copy()
    table["group"] = table["split"] = table["unused"] = ""
    assigned = stored[stored["split"] != ""]
    used = manifest.used
    absent = assigned.index.difference(used["image_id"])
    if len(absent):
        raise InputError(
            f"{path}: splits {counted(len(absent), 'image')} that {manifest.root} does not contain or use, such as "
            f"{absent[0]}; give the data that it was made from"
        )
    known = used[used["image_id"].isin(stored.index)]
    there = stored.loc[known["image_id"]]
    changed = (there["pixel_hash"].to_numpy() != known["pixel_hash"].to_numpy()) | (
        there["label"].to_numpy() != known["label"].to_numpy()
    )
    if changed.any():
        raise InputError(
            f"{path}: {counted(changed.sum(), 'image has', 'images have')} other pixels or another label than in "
            f"{manifest.root}, such as "
            f"{there.index[changed][0]}; give the data that it was made from, or make the split again"
        )
    for column in ("group", "split", "unused"):
        table.loc[known.index, column] = there[column].to_numpy()
    untold = (table.loc[used.index, ["split", "unused"]] == "").all(axis=1)
    table.loc[used.index[untold], "unused"] = "not_in_file"
    sets = [sets_of(cell) for cell in table.loc[known.index, "split"]]
    remedy = f"correct {path}, or leave out data.split.file"
    _check_classes(sets, sets_named(assigned["split"]), known["label"].to_numpy(), path, remedy)
    return replace(manifest, table=table)
