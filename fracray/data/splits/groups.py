"""Groups: the radiographs that must be in one part, as they may show the same patient or the same picture.

Where patients are unknown, groups are inferred: duplicate components joined with small folders and with blocks of
neighbouring file numbers. Must not look at pixels, and must not know of parts.
"""

from dataclasses import replace

import numpy as np
import pandas as pd

from fracray.config import SplitConfig
from fracray.data.duplicates import Pair, components
from fracray.data.file_numbers import number_files, small_folders
from fracray.data.manifest import Manifest

PERSON = ("patient", "study")  # where known
TIES = ("component", *PERSON)


def name_groups(manifest: Manifest, config: SplitConfig) -> Manifest:
    """Fill `group` of the used rows, as `assign.assign_splits` explains, and clear `split`: no part is assigned."""
    table = manifest.table.copy()
    table["split"] = table["unused"] = table["group"] = ""
    used = in_order(manifest)
    table.loc[used.index, "group"] = used["image_id"].to_numpy()[_first_of_group(used, config)]
    return replace(manifest, table=table)


def in_order(manifest: Manifest) -> pd.DataFrame:
    """The used rows by image_id, so that a split does not depend on the order of the files, with their `folder`."""
    used = manifest.used.sort_values("image_id")
    return used.assign(folder=_small_folders(used))


def _small_folders(used: pd.DataFrame) -> pd.Series:
    """The folder of each image that may be a patient's; '' where its patients are several, or all known."""
    folder = pd.Series(small_folders(used["path"].tolist()), used.index, dtype=object)
    known = used["patient"][used["patient"] != ""]
    several = known.groupby(folder[known.index]).nunique()
    complete = (used["patient"] != "").groupby(folder).all()
    return folder.where(~folder.isin([*several.index[several > 1], *complete.index[complete]]), "")


def _first_of_group(used: pd.DataFrame, config: SplitConfig) -> np.ndarray:
    """For each row, the position of the first row of its group."""
    first: dict[tuple[str, str, int], int] = {}
    pairs: list[Pair] = []
    joined = config.protocol != "blocks"
    files = number_files(used)
    columns = (files["series"], files["number"], used["folder"], *(used[tie] for tie in TIES))
    for at, (series, number, folder, *ids) in enumerate(zip(*columns, strict=True)):
        keys = [(tie, value, 0) for tie, value in zip(TIES, ids, strict=True) if value and joined]
        person_known = any(tie in PERSON for tie, _, _ in keys)
        if folder:
            keys.append(("folder", folder, 0))
        if not person_known and number >= 0 and (joined or not folder):
            keys.append(("block", series, number // config.block_size))
        pairs += [(first.setdefault(key, at), at) for key in keys]
    number_of = components(len(used), pairs)
    _, start = np.unique(number_of, return_index=True)
    return start[number_of]
