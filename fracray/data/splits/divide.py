"""The split of a data set: groups, parts, held-out sets, and the scores of no-pixel predictors on them.

Read from the cache if the manifest, the settings of the split and the rules are the same. Knows what is computed and
where it is stored, but not how groups are assigned (`assign`) or how predictors are fitted (`baselines`).
"""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from fracray.config import SplitConfig
from fracray.data.baselines import Baseline, cross_fitted_baselines, no_pixel_baselines
from fracray.data.manifest import Manifest, text_of
from fracray.data.splits.assign import assign_splits, explain
from fracray.data.splits.groups import name_groups
from fracray.errors import InputError
from fracray.runtime.storage import atomic_path

# Part of the key of cached splits: raise it when the same manifest would be split or described differently.
DIVISION_VERSION = 4

# The columns that splits, their explanation and the predictors read.
_READ = (
    "image_id",
    "path",
    "label",
    "status",
    "duplicate_of",
    "component",
    "width",
    "height",
    "batch",
    "region",
    "view",
    "hardware",
    "multiscan",
    "patient",
    "study",
    "brightness",
    "boxes",
    "boxes_width",
    "boxes_height",
)
_EXTRA = b"fracray.division"
_BETWEEN = "\x1f"  # cells of a column, in the key


@dataclass(frozen=True)
class DataSplit:
    """A manifest with `group`, `split` and `unused` filled.

    rotations: the split column of the used rows in each rotation a trial trains on, the first as in the manifest; empty
    if no part was assigned. notes: what the split holds out, leaves unused or borrows.
    """

    manifest: Manifest
    rotations: tuple[np.ndarray, ...]
    baselines: tuple[Baseline, ...]
    notes: tuple[str, ...]


def divide(manifest: Manifest, config: SplitConfig, parts: bool, cache: Path) -> DataSplit:
    """Assign groups and, with `parts`, the sets of `config`; or read them from `cache`. Raises as `assign_splits` does.

    A split that is read from a file is never cached, because the file may change.
    """
    if config.file is not None:
        return _divide(manifest, config, parts)
    path = cache / "divisions" / f"{_key(manifest, config, parts)}.parquet"
    found = _read(manifest, path, parts)
    if found is None:
        found = _divide(manifest, config, parts)
        try:
            _write(found, path)
        except OSError as error:
            raise InputError(f"{path}: cannot be written: {error}; free space, or choose another data.cache") from None
    return found


def _divide(manifest: Manifest, config: SplitConfig, parts: bool) -> DataSplit:
    if not parts:
        manifest = name_groups(manifest, config)
        return DataSplit(manifest, (), cross_fitted_baselines(_table(manifest), seed=config.seed), ())
    divided = [assign_splits(manifest, config, rotation) for rotation in range(config.rotations)]
    manifest = divided[0]
    return DataSplit(
        manifest,
        tuple(one.used["split"].to_numpy() for one in divided),
        no_pixel_baselines(_table(manifest), seed=config.seed),
        explain(manifest, config),
    )


def _table(manifest: Manifest) -> pd.DataFrame:
    return manifest.used.reset_index(drop=True)


# ---------------------------------------------------------------- the cache


def _key(manifest: Manifest, config: SplitConfig, parts: bool) -> str:
    digest = hashlib.sha256(f"{DIVISION_VERSION}:{parts}:{config.model_dump_json()}".encode())
    for name in _READ:
        values = manifest.table[name]
        digest.update(f"{name}:{len(values)}:".encode())
        if name == "boxes":
            # Most images have none.
            digest.update(repr([(at, boxes) for at, boxes in enumerate(values.tolist()) if boxes]).encode())
        elif values.dtype.kind in "iuf":
            digest.update(hashlib.sha256(values.to_numpy(np.float64).tobytes()).hexdigest().encode())
        else:
            digest.update(text_of([values], "", _BETWEEN)[: -len(_BETWEEN)])
        digest.update(b"\x1e")
    return digest.hexdigest()[:32]


def _write(split: DataSplit, path: Path) -> None:
    used = split.manifest.used
    columns = {"group": used["group"].tolist(), "unused": used["unused"].tolist()}
    columns |= {f"split {number}": cells.tolist() for number, cells in enumerate(split.rotations)}
    extra = {"baselines": [one.as_dict() for one in split.baselines], "notes": list(split.notes)}
    table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
    with atomic_path(path) as partial:
        pq.write_table(table.replace_schema_metadata({_EXTRA: json.dumps(extra).encode()}), partial)


def _read(manifest: Manifest, path: Path, parts: bool) -> DataSplit | None:
    """None where the file does not exist or is damaged: it is then computed again."""
    try:
        stored = pq.read_table(path)
        extra = json.loads(stored.schema.metadata[_EXTRA])
    except (OSError, pa.ArrowInvalid):
        return None
    columns = {name: stored[name].to_pandas().to_numpy(object) for name in stored.column_names}
    table = manifest.table.copy(deep=False)
    used = table.index.isin(manifest.used.index)
    for name, stem in (("group", "group"), ("unused", "unused"), ("split", "split 0")):
        filled = np.full(len(table), "", dtype=object)
        if stem in columns:
            filled[used] = columns[stem]
        table[name] = pd.Series(filled, index=table.index, dtype=table[name].dtype)
    divided = replace(manifest, table=table)
    rotations = tuple(values for name, values in columns.items() if name.startswith("split ")) if parts else ()
    baselines = tuple(Baseline.from_dict(one) for one in extra["baselines"])
    return DataSplit(divided, rotations, baselines, tuple(extra["notes"]))
