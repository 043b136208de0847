"""Checkpoint folders and resumable training state: safetensors and JSON, never pickle.

A checkpoint folder holds `model.safetensors`, `config.json` and, optionally, `val_predictions.parquet` and
`seen.parquet`; it opens without any other file. Paths here are local folders. Knows nothing of Ray, of URIs or of how a
model was trained.
"""

import functools
import hashlib
import json
import math
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from fracray.config import Config, resolve
from fracray.errors import InputError
from fracray.metrics import Calibration, Interval
from fracray.runtime.storage import atomic_path
from fracray.training.model import Classifier, build_model
from fracray.training.pretrained import PICKLE_SUFFIXES, read_tensors, refuse_pickle

FORMAT = 2  # 1: validated in the training's arithmetic
AS_TRAINED, FLOAT32 = "as trained", "float32"
WEIGHTS = "model.safetensors"
METADATA = "config.json"
PREDICTIONS = "val_predictions.parquet"
SEEN = "seen.parquet"
SEEN_COLUMNS = ("image_id", "split", "pixel_hash", "look")  # older checkpoints lack the last
PREDICTION_COLUMNS = ("image_id", "group", "label", "split", "logit")


@functools.cache  # reading them takes longer than writing the tensors
def _packages() -> dict[str, str]:
    return {name: version(name) for name in ("fracray", "torch", "torchvision", "timm", "albumentations", "numpy")}


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **_packages()}


@dataclass(frozen=True)
class CheckpointMetadata:
    """Everything in a checkpoint except its tensors.

    `threshold` applies to calibrated probabilities; `metrics` and `intervals` are by reported name (`val_accuracy`);
    `data_fingerprint` identifies the files and labels of the training data; `classes` are the names of labels 0 and 1;
    `arithmetic` is that of the validation, which calibration, threshold and metrics belong to.
    """

    config: Config
    threshold: float
    calibration: Calibration
    metrics: dict[str, float]
    data_fingerprint: str
    epoch: int
    trial: str = ""
    intervals: dict[str, Interval] = field(default_factory=dict)
    classes: tuple[str, str] = ("not fractured", "fractured")
    arithmetic: str = FLOAT32
    versions: dict[str, str] = field(default_factory=_versions)

    def to_json(self) -> dict[str, Any]:
        """A tree of JSON values; nan and infinity become null."""
        tree = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        tree["config"] = self.config.model_dump(mode="json")
        tree["calibration"] = asdict(self.calibration)
        tree["metrics"] = {name: _to_null(value) for name, value in self.metrics.items()}
        tree["intervals"] = {name: interval.as_dict() for name, interval in self.intervals.items()}
        return tree

    @classmethod
    def from_json(cls, tree: Mapping[str, Any], where: str) -> "CheckpointMetadata":
        """Inverse of `to_json`; InputError naming `where` for a missing, unknown or wrong entry."""
        try:
            card = cls(
                **dict(tree)
                | {
                    "config": resolve(tree["config"], where, known_extra=True),
                    "threshold": float(tree["threshold"]),
                    "calibration": Calibration(**tree["calibration"]),
                    "metrics": {name: _from_null(value) for name, value in tree["metrics"].items()},
                    "intervals": {
                        name: Interval(**{part: _from_null(value) for part, value in interval.items()})
                        for name, interval in tree["intervals"].items()
                    },
                    "classes": tuple(tree["classes"]),
                    "arithmetic": tree.get("arithmetic", AS_TRAINED),  # older checkpoints do not say it
                }
            )
        except KeyError as error:
            raise InputError(f"{where}: {error} is missing; the file was changed after fracray wrote it") from None
        except (TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{where}: {error}; the file was changed after fracray wrote it") from None
        faults = card.faults()
        if faults:
            raise InputError(f"{where}: {faults[0]}; the file was changed after fracray wrote it")
        return card

    def faults(self) -> list[str]:
        """What no training writes: numbers that are none, infinite or out of range, and texts that are none."""
        names = (*self.classes, self.trial, self.data_fingerprint, *self.versions.values())
        intervals = [(f"intervals.{name}", interval) for name, interval in self.intervals.items()]
        numbers = [(f"metrics.{name}", value) for name, value in self.metrics.items()]
        numbers += [(f"{at}.{part}", value) for at, interval in intervals for part, value in asdict(interval).items()]
        temperature, bias = self.calibration.temperature, self.calibration.bias
        checks = [
            ("threshold", self.threshold, "a number from 0 to 1", _between(self.threshold, 0, math.nextafter(1, 2))),
            ("calibration.temperature", temperature, "a finite number above 0", _between(temperature, 1e-300, 1e300)),
            ("calibration.bias", bias, "a finite number", _between(bias, -1e300, 1e300)),
            ("epoch", self.epoch, "a whole number from 0", type(self.epoch) is int and self.epoch >= 0),
            ("classes", self.classes, "two names", len(self.classes) == 2),
            ("arithmetic", self.arithmetic, f"{FLOAT32!r}", self.arithmetic in (FLOAT32, AS_TRAINED)),
            ("classes, trial, data_fingerprint or versions", names, "text", all(isinstance(n, str) for n in names)),
            *((at, value, "a number or null", math.isnan(value) or math.isfinite(value)) for at, value in numbers),
        ]
        return [f"{at} is {value!r}, and must be {must}" for at, value, must, sound in checks if not sound]


def _between(value: Any, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


@dataclass(frozen=True)
class Checkpoint:
    """A model in evaluation mode on the CPU, its metadata, and its folder."""

    model: Classifier
    metadata: CheckpointMetadata
    folder: Path
    seen: pd.DataFrame | None = None  # see read_seen


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
            assert tuple(predictions.columns) == PREDICTION_COLUMNS, f"columns {tuple(predictions.columns)}"
            predictions.to_parquet(partial / PREDICTIONS, index=False)
        if seen is not None:
            assert tuple(seen.columns) == SEEN_COLUMNS, f"columns {tuple(seen.columns)}"
            seen.to_parquet(partial / SEEN, index=False)
        tree = {
            "format": FORMAT,
            "sha256": {path.name: _sha256(path) for path in sorted(partial.iterdir())},
            "input": _input(metadata.config, state_dict),
            **metadata.to_json(),
        }
        (partial / METADATA).write_text(json.dumps(tree, indent=2, allow_nan=False) + "\n")


def load_checkpoint(folder: str | Path) -> Checkpoint:
    """Open a checkpoint folder.

    Raises InputError for missing files, a pickle, a file that is not the one that was saved (by sha256), tensors that
    do not match the config, damaged JSON, values out of range, and a format newer than this fracray's.
    """
    folder = Path(folder)
    metadata = verify(folder)
    tensors = read_tensors(folder / WEIGHTS).tensors
    with torch.random.fork_rng(devices=[]):  # the initial weights are overwritten: keep the caller's random state
        model = build_model(metadata.config.model, load_weights=False)
    _check_tensors(model.state_dict(), tensors, folder)
    model.load_state_dict(tensors)
    return Checkpoint(model.eval(), metadata, folder, read_seen(folder))


def read_metadata(folder: str | Path) -> CheckpointMetadata:
    """A checkpoint's metadata, without its tensors; InputError as `load_checkpoint`."""
    return _metadata(_read_json(Path(folder)), Path(folder))


def read_predictions(folder: str | Path) -> pd.DataFrame | None:
    """The predictions on all validation sets saved with a checkpoint, with PREDICTION_COLUMNS; None without any."""
    return _read_table(Path(folder) / PREDICTIONS, PREDICTION_COLUMNS)


def read_seen(folder: str | Path) -> pd.DataFrame | None:
    """The images that a checkpoint was trained and validated on, with SEEN_COLUMNS; None if not saved."""
    return _read_table(Path(folder) / SEEN, SEEN_COLUMNS[:3])


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
    metadata = _metadata(tree, folder)
    hashes = _hashes(tree, folder)
    for name in hashes:
        _check_hash(folder, name, hashes)
    for name in (PREDICTIONS, SEEN):
        if name not in hashes and (folder / name).exists():
            raise InputError(
                f"{folder / name}: is not listed in {METADATA}; put the files of one checkpoint together again"
            )
    return metadata


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


def _input(config: Config, state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the network expects, for those who serve it without fracray."""
    return {
        "shape": ["batch", 1, config.data.size, config.data.size],
        "range": [0, 255],
        "geometry": "letterboxed: longer side scaled to the size, padded with 0 to a square",
        "mean": float(state_dict["mean"].flatten()[0]),
        "std": float(state_dict["std"].flatten()[0]),
        "normalised_by": "the network itself: (x / 255 - mean) / std",
    }


def _read_json(folder: Path) -> dict[str, Any]:
    if folder.is_file():
        refuse_pickle(folder)
        raise InputError(f"{folder}: this is a file; name the checkpoint folder that holds {WEIGHTS} and {METADATA}")
    if not folder.is_dir():
        raise InputError(f"{folder}: no such checkpoint folder")
    missing = [name for name in (METADATA, WEIGHTS) if not (folder / name).is_file()]
    if missing:
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
    if tree["format"] > FORMAT:
        wrote = tree["versions"].get("fracray", "?") if isinstance(tree.get("versions"), dict) else "?"
        raise InputError(
            f"{path}: format {tree['format']}, written by fracray {wrote}; this one reads up to {FORMAT}: upgrade"
        )
    return tree


def _metadata(tree: dict[str, Any], folder: Path) -> CheckpointMetadata:
    rest = {name: value for name, value in tree.items() if name not in ("format", "sha256", "input")}
    return CheckpointMetadata.from_json(rest, str(folder / METADATA))


def _hashes(tree: dict[str, Any], folder: Path) -> dict[str, str]:
    hashes = tree.get("sha256")
    # The names become paths, so only the files of a checkpoint are allowed.
    if not isinstance(hashes, dict) or not {WEIGHTS} <= set(hashes) <= {WEIGHTS, PREDICTIONS, SEEN}:
        raise InputError(
            f"{folder / METADATA}: sha256 does not list {WEIGHTS}; the file was changed after fracray wrote it"
        )
    return hashes


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


def _to_null(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _from_null(value: float | None) -> float:
    return math.nan if value is None else float(value)
