"""From the table of an examined manifest to the findings of an audit.

Must not open a file, and must not judge: verdicts.py does.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from fracray.config import SplitConfig
from fracray.data.audit.facts import (
    Blocks,
    Breakdown,
    Conflicts,
    CutPictures,
    Duplicates,
    Files,
    Findings,
    Formats,
    Prevalence,
    SetCount,
    Shortcuts,
)
from fracray.data.audit.grays import find_grays
from fracray.data.audit.shares import fracture_share, picture_set, shares
from fracray.data.baselines import score_leak, score_shortcuts
from fracray.data.file_numbers import file_number, number_files
from fracray.data.manifest import STATUSES, UNLABELLED, Manifest
from fracray.data.patients import known_patients
from fracray.data.splits.groups import name_groups

MOST_SIZES = 10
MOST_VALUES = 12
MOST_BLOCKS = 24
BLOCK_SIZES = tuple(step * 10**power for power in range(17) for step in (10, 25, 50))
LEAK_BLOCKS = (1, 10, 50, 200)  # 1: row by row, like a random split


def find(manifest: Manifest, origin: str, block: int, guard: int = 0, most_sets: int = 8, seed: int = 0) -> Findings:
    """All findings on an examined manifest; shows `most_sets` near sets, and 3 times as many of conflicts and cuts.

    `block` file numbers are held out together, as `splits.groups.name_groups` does, and a split leaves out images
    within `guard` of another part.
    """
    used = name_groups(manifest, SplitConfig(block=block)).used
    return Findings(
        origin=origin,
        fingerprint=manifest.fingerprint(),
        files=_files(manifest),
        formats=_formats(manifest.table[manifest.table["pixel_hash"] != ""]),
        duplicates=_duplicates(manifest, most_sets),
        conflicts=_conflicts(manifest, 3 * most_sets),
        cut=_cut(manifest, 3 * most_sets),
        grays=find_grays(manifest, 3 * most_sets),
        prevalence=_prevalence(manifest),
        shortcuts=_shortcuts(manifest, used, block, guard, seed),
        patients=known_patients(used),
    )


# ---------------------------------------------------------------- files and formats


def _files(manifest: Manifest) -> Files:
    table = manifest.table
    return Files(
        flow=manifest.flow(),
        decoded=int((table["pixel_hash"] != "").sum()),
        left_out=tuple(
            (name, tuple(ids)) for name in STATUSES[1:] if len(ids := table["image_id"][table["status"] == name])
        ),
        notes=manifest.notes(),
    )


def _formats(table: pd.DataFrame) -> Formats:
    size = table["width"].astype(str) + "x" + table["height"].astype(str)
    longer = table[["width", "height"]].max(axis=1)
    return Formats(
        sizes=shares(size, table["label"], MOST_SIZES),
        smallest=int(longer.min()) if len(table) else 0,
        largest=int(longer.max()) if len(table) else 0,
        modes=shares(table["mode"], table["label"], MOST_VALUES),
        orientations=shares(table["exif_orientation"].astype(str), table["label"], MOST_VALUES),
        turned=tuple(table["image_id"][table["exif_orientation"] > 1]),
    )


# ---------------------------------------------------------------- sets of pictures


def _duplicates(manifest: Manifest, most: int) -> Duplicates:
    table = manifest.table[manifest.table["status"] != "blank"]  # all alike, without being copies
    components = table[table["component"] != ""].groupby("component", sort=False)
    largest = sorted(components.groups.items(), key=lambda item: (-len(item[1]), item[0]))[:most]
    return Duplicates(
        byte=_set_count(table["sha256"]),
        pixel=_set_count(table["pixel_hash"]),
        near=_set_count(table["component"]),
        shown=tuple(picture_set(table.loc[rows], _likeness(table.loc[rows])) for _, rows in largest),
    )


def _set_count(keys: pd.Series) -> SetCount:
    sizes = keys[keys != ""].value_counts()
    sizes = sizes[sizes > 1]
    return SetCount(len(sizes), int(sizes.sum()), int(sizes.max()) if len(sizes) else 0)


def _likeness(rows: pd.DataFrame) -> str:
    words, most = [], 0
    for column, word in (("sha256", "bytes"), ("pixel_hash", "pixels")):
        count = _set_count(rows[column])
        if count.sets == 1 and count.images == len(rows):
            return f"the same {word}"
        if count.images > most:
            words.append(f"{count.images} have the same {word}")
            most = count.images
    cut = int((rows["status"] == "truncated").sum())
    return ", ".join(
        [*words, "the others are near duplicates" if words else "near duplicates", *([f"{cut} truncated"] * bool(cut))]
    )


def _conflicts(manifest: Manifest, most: int) -> Conflicts:
    table = manifest.table
    contradicted = table[table["status"] == "conflict"]
    sets = []
    for row in contradicted.itertuples():
        alike = table["component"] == row.component if row.component else table["image_id"] == row.image_id
        sets.append((tuple(table.index[alike]), row.note))
    unique = dict(reversed(sets))  # the note of the first of each set
    ordered = sorted(unique.items())[:most]
    return Conflicts(len(contradicted), tuple(picture_set(table.loc[list(r)], why) for r, why in ordered))


def _cut(manifest: Manifest, most: int) -> CutPictures:
    table = manifest.table
    refilled = table[table["refilled"] > 0]
    shown = []
    for row in list(refilled.itertuples())[:most]:
        alike = (table["component"] == row.component) & (table["component"] != "") | (table.index == row.Index)
        twins = int(alike.sum()) - 1
        words = f"{row.image_id}: {row.refilled} of {row.height} rows filled; " + (
            "the same exposure is shown next to it" if twins else "no other picture of this exposure"
        )
        shown.append(picture_set(table[alike], words))
    return CutPictures(
        truncated=fracture_share("truncated files", table["label"][table["status"] == "truncated"]),
        refilled=fracture_share("filled and saved again", refilled["label"]),
        refilled_rows=tuple(zip(refilled["image_id"], refilled["refilled"].astype(int).tolist(), strict=True)),
        shown=tuple(shown),
    )


# ---------------------------------------------------------------- prevalence and shortcuts


def _prevalence(manifest: Manifest) -> Prevalence:
    used = manifest.used
    labelled = manifest.table[~manifest.table["status"].isin(UNLABELLED)]
    known: dict[str, pd.Series] = {
        "region": used["region"],
        "view": used["view"],
        "device batch": used["batch"],
        "hardware": used["hardware"].map({0: "none visible", 1: "visible"}),
        "exposures": used["multiscan"].map({0: "one", 1: "several"}),
        "sex": used["sex"],
        "format": pd.Series(
            np.select(
                [used["width"] < used["height"], used["width"] > used["height"]], ["portrait", "landscape"], "square"
            ),
            used.index,
        ),
        "mode": used["mode"],
        "lower end": (used["refilled"] > 0).map({False: "complete", True: "filled"}),
    }
    breakdowns = tuple(
        Breakdown(name, shares(values.replace("", "unknown"), used["label"], MOST_VALUES))
        for name, values in known.items()
        if values.nunique() > 1
    )
    return Prevalence(fracture_share("all used images", used["label"]), breakdowns, _blocks(labelled))


def _blocks(table: pd.DataFrame) -> Blocks | None:
    """None unless most files have running numbers of one series."""
    files = number_files(table)
    ordered = files[files["ordered"]]
    if ordered.empty:
        return None
    mine = ordered[ordered["series"] == ordered["series"].mode()[0]]
    if 2 * len(mine) < len(table):
        return None
    names = table["path"].where(table["path"] != "", table["image_id"])[mine.index]
    prefix = pd.Series([found[0] for name in names if (found := file_number(name))]).mode()[0]
    order = mine["number"].sort_values(kind="stable")
    number, rows = order.reset_index(drop=True), table.loc[order.index].reset_index(drop=True)
    size = next(step for step in BLOCK_SIZES if (number.iloc[-1] // step) - (number.iloc[0] // step) < MOST_BLOCKS)
    block = number // size
    values = tuple(
        fracture_share(f"{index * size} to {index * size + size - 1}", rows["label"][block == index])
        for index in sorted(block.unique())
    )
    return Blocks(prefix, size, values, _longest_run(rows["image_id"].tolist(), rows["label"].tolist()))


def _longest_run(ids: Sequence[str], labels: Sequence[int]) -> tuple[str, str, int]:
    best, start = ("", "", 0), 0
    for at, label in enumerate(labels):
        if not label:
            start = at + 1
        elif at - start + 1 > best[2]:
            best = ids[start], ids[at], at - start + 1
    return best


def _shortcuts(manifest: Manifest, used: pd.DataFrame, block: int, guard: int, seed: int) -> Shortcuts:
    by_block = {
        size: name_groups(manifest, SplitConfig(block=size)).used["group"].to_numpy()
        if size > 1
        else np.arange(len(used))
        for size in LEAK_BLOCKS
    }
    return Shortcuts(
        block=block,
        guard=guard,
        groups=int(used["group"].nunique()),
        scores=score_shortcuts(used, seed) if len(used) else (),
        leaks=score_leak(used, by_block, seed) if len(used) else (),
    )
