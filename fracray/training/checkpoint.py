"""Checkpoint folders and resumable training state: safetensors and JSON, never pickle.

A checkpoint folder holds `model.safetensors`, `config.json` and, optionally, `val_predictions.parquet` and
`seen.parquet`; it opens without any other file. That of an ensemble has `members/`, each a checkpoint folder, in the
place of the tensors. Paths here are local folders. Knows nothing of Ray, of URIs or of how a model was trained.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from fracray.errors import InputError
from fracray.runtime.storage import atomic_path
from fracray.training.card import CheckpointMetadata
from fracray.training.ensemble import Ensemble
from fracray.training.model import Classifier, build_model
from fracray.training.pretrained import PICKLE_SUFFIXES, read_tensors, refuse_pickle

# The formats of a checkpoint folder; before 2, a network was validated in the training's arithmetic.
SINGLE, ENSEMBLE = 2, 3
WEIGHTS = "model.safetensors"
METADATA = "config.json"
PREDICTIONS = "val_predictions.parquet"
SEEN = "seen.parquet"
MEMBERS = "members"
# Older checkpoints have only the first ones, and SEEN_LEAST at least.
SEEN_COLUMNS = ("image_id", "split", "pixel_hash", "look", "width", "height", "brightness")
SEEN_LEAST = 3
PREDICTION_COLUMNS = ("image_id", "group", "label", "split", "logit")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # of a member
_NONE: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Checkpoint:
    """A model in evaluation mode on the CPU, its metadata, and its folder.

    members: of an ensemble, whose model gives the mean of their logits; else empty.
    """

    model: Classifier | Ensemble
    metadata: CheckpointMetadata
    folder: Path
    seen: pd.DataFrame | None = None  # see read_seen
    members: tuple["Checkpoint", ...] = ()
    predictions: pd.DataFrame | None = None  # see read_predictions


def save_checkpoint(
    folder: str | Path,
    state_dict: Mapping[str, Tensor],
    metadata: CheckpointMetadata,
    predictions: pd.DataFrame | None = None,
    seen: pd.DataFrame | None = None,
) -> None:
    """Write a checkpoint folder, replacing an existing one; a reader finds the old or the new one, never a part.

    `predictions`: the validation sets with the columns image_id, group, label, split, logit. `seen`: the images trained
    and validated on, with the columns SEEN_COLUMNS.
    """
    with atomic_path(Path(folder)) as partial:
        partial.mkdir()
        _save_tensors(partial / WEIGHTS, state_dict, {})
        if predictions is not None:
            _write_table(predictions, PREDICTION_COLUMNS, partial / PREDICTIONS)
        if seen is not None:
            _write_seen(seen, partial / SEEN)
        values = {name: float(state_dict[name].flatten()[0]) for name in ("mean", "std")}
        about = {**values, "normalised_by": "the network itself: (x / 255 - mean) / std"}
        _write_card(partial, SINGLE, metadata, about)


def save_ensemble(
    folder: str | Path,
    members: Mapping[str, Path],
    metadata: CheckpointMetadata,
    predictions: pd.DataFrame,
    seen: pd.DataFrame,
) -> None:
    """Write the checkpoint folder of an ensemble as `save_checkpoint` does; `members`: checkpoint folders, by name.

    Raises InputError as `load_checkpoint`, also where a member is of other data, another split or another size.
    """
    with atomic_path(Path(folder)) as partial:
        partial.mkdir()
        for name, member in members.items():
            _refuse_other(metadata, verify(member), member)
            shutil.copytree(member, partial / MEMBERS / name)
        _write_table(predictions, PREDICTION_COLUMNS, partial / PREDICTIONS)
        _write_seen(seen, partial / SEEN)
        about = {"normalised_by": "each member itself, which returns a logit; the ensemble's is their mean"}
        _write_card(partial, ENSEMBLE, metadata, about, {MEMBERS: list(members)})


def load_checkpoint(folder: str | Path) -> Checkpoint:
    """Open a checkpoint folder.

    Raises InputError for missing files, a pickle, a file that is not the one that was saved (by sha256), tensors that
    do not match the config, damaged JSON, values out of range, a format newer than this fracray's, and members of an
    ensemble that do not belong together.
    """
    folder = Path(folder)
    return _open(folder, verify(folder))


def _open(folder: Path, metadata: CheckpointMetadata) -> Checkpoint:
    names = _members(_read_json(folder), folder)
    if names:
        inside = [folder / MEMBERS / name for name in names]
        members = tuple(_open(member, read_metadata(member)) for member in inside)
        ensemble = Ensemble([member.model for member in members if isinstance(member.model, Classifier)])
        return Checkpoint(ensemble.eval(), metadata, folder, read_seen(folder), members, read_predictions(folder))
    tensors = read_tensors(folder / WEIGHTS).tensors
    with torch.random.fork_rng(devices=[]):  # the initial weights are overwritten: keep the caller's random state
        model = build_model(metadata.config.model, load_weights=False)
    _check_tensors(model.state_dict(), tensors, folder)
    model.load_state_dict(tensors)
    return Checkpoint(model.eval(), metadata, folder, read_seen(folder), predictions=read_predictions(folder))


def read_metadata(folder: str | Path, whole: bool = True) -> CheckpointMetadata:
    """A checkpoint's metadata, without its tensors; InputError as `load_checkpoint`.

    whole: its weights must be there; not so for a copy of some of its files.
    """
    return _metadata(_read_json(Path(folder), (METADATA, WEIGHTS) if whole else (METADATA,)), Path(folder))


def read_predictions(folder: str | Path) -> pd.DataFrame | None:
    """The predictions on all validation sets saved with a checkpoint, with PREDICTION_COLUMNS; None without any."""
    return _read_table(Path(folder) / PREDICTIONS, PREDICTION_COLUMNS)


def read_seen(folder: str | Path) -> pd.DataFrame | None:
    """The images that a checkpoint was trained and validated on, with SEEN_COLUMNS; None if not saved."""
    return _read_table(Path(folder) / SEEN, SEEN_COLUMNS[:SEEN_LEAST])


def _read_table(path: Path, columns: tuple[str, ...]) -> pd.DataFrame | None:
    if not path.is_file():
        return None
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's errors are among these
        raise InputError(f"{path}: not readable as Parquet: {error}; copy the checkpoint folder again") from None
    missing = [column for column in columns if column not in table]
    if missing or table.empty:
        what = f"has no column {missing[0]}" if missing else "is empty"
        raise InputError(f"{path}: {what}; the file was changed after fracray wrote it")
    return table


def verify(folder: str | Path) -> CheckpointMetadata:
    """Compare every file of a checkpoint with the sha256 in its JSON, and return the metadata.

    InputError for a file that is missing, different or not listed.
    """
    folder = Path(folder)
    tree = _read_json(folder)
    metadata, names = _metadata(tree, folder), _members(tree, folder)
    hashes = _hashes(tree, names, folder)
    for name in hashes:
        _check_hash(folder, name, hashes)
    for name in (PREDICTIONS, SEEN):
        if name not in hashes and (folder / name).exists():
            raise InputError(
                f"{folder / name}: is not listed in {METADATA}; put the files of one checkpoint together again"
            )
    if names:
        for member in sorted((folder / MEMBERS).iterdir()):
            if member.name not in names:
                raise InputError(
                    f"{member}: is not listed in {METADATA}; put the files of one checkpoint together again"
                )
            _refuse_other(metadata, verify(member), member)
    return metadata


def copy_checkpoint(folder: str | Path, target: Path) -> None:
    """Copy a checkpoint's files, and nothing else that lies beside them, to the new folder `target`.

    InputError as `verify`, of the folder or of the copy: that one also where the folder was replaced meanwhile.
    """
    folder = Path(folder)
    verify(folder)
    tree = _read_json(folder)
    for name in (METADATA, *_hashes(tree, _members(tree, folder), folder)):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, target / name)
    verify(target)


def save_state(path: str | Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write resumable training state as one safetensors file, `meta` (JSON values) in its header, atomically."""
    with atomic_path(Path(path)) as partial:
        _save_tensors(partial, tensors, {"meta": json.dumps(meta)})


def load_state(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_state` wrote, tensors on the CPU; InputError for a missing, damaged or foreign file."""
    file = read_tensors(path)
    if "meta" not in file.metadata:
        raise InputError(f"{path}: holds tensors but no training state; name a state file that fracray wrote")
    return file.tensors, json.loads(file.metadata["meta"])


# ---- the parts -----------------------------------------------------------------------------------------------------


def _save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    # Each gets its own dense storage: safetensors refuses views, channels-last strides and shared tensors.
    dense = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    try:
        save_file(dense, path, metadata=metadata)
    except SafetensorError as error:  # most often a full disk
        raise OSError(str(error)) from None


def _write_seen(seen: pd.DataFrame, path: Path) -> None:
    # Those of members of an older version lack the last columns.
    _write_table(seen, SEEN_COLUMNS[: max(len(seen.columns), SEEN_LEAST)], path)


def _write_table(table: pd.DataFrame, columns: tuple[str, ...], path: Path) -> None:
    assert tuple(table.columns) == columns, f"columns {tuple(table.columns)}"
    table.to_parquet(path, index=False)


def _write_card(
    folder: Path, number: int, metadata: CheckpointMetadata, about: Mapping[str, Any], more: Mapping[str, Any] = _NONE
) -> None:
    """Write config.json: the format, the hashes of all files that are in the folder by now, and what they hold."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    size = metadata.config.data.size
    tree = {
        "format": number,
        **more,
        "sha256": {path.relative_to(folder).as_posix(): _sha256(path) for path in files},
        "input": {  # for those who serve it without fracray
            "shape": ["batch", 1, size, size],
            "range": [0, 255],
            "geometry": f"{'cropped to the anatomy (fracray.data.images.crop), then ' * metadata.config.data.crop}"
            "letterboxed: longer side scaled to the size, padded with 0 to a square",
            **about,
        },
        **metadata.to_json(),
    }
    (folder / METADATA).write_text(json.dumps(tree, indent=2, allow_nan=False) + "\n")


def _read_json(folder: Path, needed: Sequence[str] = (METADATA, WEIGHTS)) -> dict[str, Any]:
    if folder.is_file():
        refuse_pickle(folder)
        raise InputError(f"{folder}: this is a file; name the checkpoint folder that holds {WEIGHTS} and {METADATA}")
    if not folder.is_dir():
        raise InputError(f"{folder}: no such checkpoint folder")
    missing = [name for name in needed if not (folder / name).is_file()]
    if METADATA in missing or (missing and not (folder / MEMBERS).is_dir()):
        for pickled in sorted(path for path in folder.iterdir() if path.suffix.lower() in PICKLE_SUFFIXES):
            refuse_pickle(pickled)
        raise InputError(f"{folder}: not a checkpoint folder: {' and '.join(missing)} missing; copy the whole folder")
    path = folder / METADATA
    try:
        tree = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise InputError(f"{path}: damaged JSON ({error}); copy the folder again") from None
    if not isinstance(tree, dict) or not isinstance(tree.get("format"), int):
        raise InputError(f"{path}: no format number; the file was changed after fracray wrote it")
    if tree["format"] > ENSEMBLE:
        wrote = tree["versions"].get("fracray", "?") if isinstance(tree.get("versions"), dict) else "?"
        raise InputError(
            f"{path}: format {tree['format']}, written by fracray {wrote}; this one reads up to {ENSEMBLE}: upgrade"
        )
    return tree


def _metadata(tree: dict[str, Any], folder: Path) -> CheckpointMetadata:
    rest = {name: value for name, value in tree.items() if name not in ("format", "sha256", "input")}
    if tree["format"] == ENSEMBLE:
        rest.pop(MEMBERS, None)
    return CheckpointMetadata.from_json(rest, str(folder / METADATA))


def _members(tree: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
    """The names of an ensemble's members; empty for one model."""
    if tree["format"] != ENSEMBLE:
        return ()
    names = tree.get(MEMBERS)
    # The names become paths.
    if not isinstance(names, list) or not names or not all(isinstance(n, str) and _NAME.fullmatch(n) for n in names):
        raise InputError(f"{folder / METADATA}: no list of members; the file was changed after fracray wrote it")
    return tuple(names)


def _hashes(tree: Mapping[str, Any], members: tuple[str, ...], folder: Path) -> dict[str, str]:
    hashes = tree.get("sha256")
    inside = [f"{MEMBERS}/{name}/" for name in members]
    needed = {f"{start}{name}" for start in inside for name in (METADATA, WEIGHTS)} or {WEIGHTS}
    # The names become paths, so only the files of a checkpoint are allowed.
    known = needed | {f"{start}{name}" for start in ("", *inside) for name in (PREDICTIONS, SEEN)}
    if not isinstance(hashes, dict) or not needed <= set(hashes) <= known:
        missing = next(iter(sorted(needed - set(hashes if isinstance(hashes, dict) else ()))), "only its files")
        raise InputError(
            f"{folder / METADATA}: sha256 does not list {missing}; the file was changed after fracray wrote it"
        )
    return hashes


def _refuse_other(card: CheckpointMetadata, member: CheckpointMetadata, folder: Path) -> None:
    """InputError unless a member takes the same pictures as its ensemble, and was trained on the same images."""
    ours, theirs = card.config.data, member.config.data
    for what, mine, other in (
        ("image size", ours.size, theirs.size),
        ("data.crop", ours.crop, theirs.crop),
        ("classes", card.classes, member.classes),
        ("data", card.data_fingerprint, member.data_fingerprint),
        ("split", ours.split, theirs.split),
    ):
        if mine != other:
            values = "" if what == "split" else f" ({other}, not {mine})"
            raise InputError(
                f"{folder}: {what} of another kind than its ensemble's{values}; members must agree in the size of the "
                "images, data.crop, the classes, the data and the split"
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_hash(folder: Path, name: str, hashes: Mapping[str, str]) -> None:
    path = folder / name
    if not path.is_file():
        raise InputError(f"{path}: missing; copy the whole checkpoint folder again")
    if name == WEIGHTS:
        refuse_pickle(path)
    if _sha256(path) != hashes[name]:
        raise InputError(
            f"{path}: sha256 differs from the one in {METADATA} ({path.stat().st_size} bytes here): changed or "
            "cut short on its way; copy it again"
        )


def _check_tensors(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], folder: Path) -> None:
    faults = [f"{name} is missing" for name in expected if name not in given]
    faults += [f"{name} is unknown" for name in given if name not in expected]
    faults += [
        f"{name} has shape {tuple(given[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in given and given[name].shape != tensor.shape
    ]
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise InputError(
            f"{folder / WEIGHTS}: does not match the model section of {METADATA}: {'; '.join(faults[:5])}{more}; "
            "put the files of one checkpoint together again"
        )
