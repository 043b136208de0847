"""A data set divided: groups, parts, what they hold out, and what predictors without a pixel reach on them.

Found again in the cache where manifest, settings of the split and rules are the same. Knows what is computed and where
it is kept; not how groups are dealt (`splits`) or predictors fitted (`shortcuts`).
"""

import hashlib
import json
import uuid
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from fracray.config import SplitConfig
from fracray.data.baselines import Baseline, cross_fitted_baselines, no_pixel_baselines
from fracray.data.manifest import Manifest
from fracray.data.splits.assign import assign_splits, explain, name_groups
from fracray.errors import InputError

# Part of the key of cached divisions: raise it when the same manifest would be divided or described otherwise.
DIVISION_VERSION = 1

# All that splits, their explanation and the predictors read.
_READ = (
    "image_id",
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
_BESIDE = b"fracray.division"


@dataclass(frozen=True)
class Division:
    """A manifest with `group` and `split` filled.

    rotations: the split column of the used rows in each division a trial trains on, the first as in the manifest;
    empty where no part was assigned. notes: what the split holds out, leaves unused or borrows.
    """

    manifest: Manifest
    rotations: tuple[np.ndarray, ...]
    baselines: tuple[Baseline, ...]
    notes: tuple[str, ...]


def divide(manifest: Manifest, config: SplitConfig, parts: bool, cache: Path) -> Division:
    """Assign groups and, with `parts`, the sets of `config`; or find them in `cache`. Raises as `assign_splits`.

    A split that is taken over from a file is never kept, for the file may change.
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


def _divide(manifest: Manifest, config: SplitConfig, parts: bool) -> Division:
    if not parts:
        manifest = name_groups(manifest, config)
        return Division(manifest, (), cross_fitted_baselines(_table(manifest), seed=config.seed), ())
    divided = [assign_splits(manifest, config, rotation) for rotation in range(config.rotations)]
    manifest = divided[0]
    return Division(
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
        if name == "boxes":
            # Most images have none.
            words = repr([(at, boxes) for at, boxes in enumerate(values.tolist()) if len(boxes)])
        elif values.dtype.kind in "iuf":
            words = hashlib.sha256(values.to_numpy(np.float64).tobytes()).hexdigest()
        else:
            words = "\x1f".join(values.tolist())
        digest.update(f"{name}:{len(values)}:{words}\x1e".encode(errors="surrogateescape"))
    return digest.hexdigest()[:32]


def _write(division: Division, path: Path) -> None:
    used = division.manifest.used
    columns = {"group": used["group"].tolist()}
    columns |= {f"split {number}": split.tolist() for number, split in enumerate(division.rotations)}
    beside = {"baselines": [one.as_dict() for one in division.baselines], "notes": list(division.notes)}
    table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        pq.write_table(table.replace_schema_metadata({_BESIDE: json.dumps(beside).encode()}), temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _read(manifest: Manifest, path: Path, parts: bool) -> Division | None:
    """None where it is not there, or damaged: it is made anew then."""
    try:
        stored = pq.read_table(path)
        beside = json.loads(stored.schema.metadata[_BESIDE])
    except (OSError, pa.ArrowInvalid):
        return None
    columns = {name: stored[name].to_pandas().to_numpy(object) for name in stored.column_names}
    table = manifest.table.copy(deep=False)
    used = manifest.used.index
    for name, stem in (("group", "group"), ("split", "split 0")):
        filled = pd.Series("", index=table.index, dtype=table[name].dtype)
        if stem in columns:
            filled.loc[used] = columns[stem]
        table[name] = filled
    divided = replace(manifest, table=table)
    rotations = tuple(values for name, values in columns.items() if name != "group") if parts else ()
    baselines = tuple(Baseline.from_dict(one) for one in beside["baselines"])
    return Division(divided, rotations, baselines, tuple(beside["notes"]))
