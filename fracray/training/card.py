"""The card of a checkpoint: everything but its tensors, as JSON that is checked when it is read.

Knows nothing of files, of tensors or of how a model was trained.
"""

import functools
import math
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from typing import Any

from fracray import __version__
from fracray.config import Config, resolve
from fracray.errors import InputError
from fracray.metrics import Calibration, Interval

AS_TRAINED, FLOAT32 = "as trained", "float32"  # the arithmetic of a validation; the first in older checkpoints


@functools.cache  # reading them takes longer than writing the tensors
def _packages() -> dict[str, str]:
    others = ("torch", "torchvision", "timm", "albumentations", "numpy")
    return {"fracray": __version__, **{name: version(name) for name in others}}


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **_packages()}


@dataclass(frozen=True)
class CheckpointMetadata:
    """Everything in a checkpoint except its tensors.

    `threshold` applies to calibrated probabilities; `metrics` and `intervals` are by reported name (`val_accuracy`);
    `data_fingerprint` identifies the files and labels of the training data; `classes` are the names of labels 0 and 1;
    `arithmetic` is that of the validation, which calibration, threshold and metrics belong to; `out_of_fold`: of an
    ensemble, whether each radiograph of the validation was judged by those members alone that were not trained on it.
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
    out_of_fold: bool = False
    versions: dict[str, str] = field(default_factory=_versions)

    @property
    def of_fold(self) -> str:
        """Of which models the validation is, in words; empty where there is only one answer."""
        if self.out_of_fold:
            return ", out of fold"
        return " of one fold" if self.config.data.split.cross_validate else ""

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
                    "arithmetic": tree.get("arithmetic", AS_TRAINED),
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
            ("out_of_fold", self.out_of_fold, "true or false", type(self.out_of_fold) is bool),
            ("classes, trial, data_fingerprint or versions", names, "text", all(isinstance(n, str) for n in names)),
            *((at, value, "a number or null", math.isnan(value) or math.isfinite(value)) for at, value in numbers),
        ]
        return [f"{at} is {value!r}, and must be {must}" for at, value, must, sound in checks if not sound]


def _between(value: Any, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _to_null(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _from_null(value: float | None) -> float:
    return math.nan if value is None else float(value)
