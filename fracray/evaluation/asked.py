"""What evaluate's flags ask for, read from their texts without importing Torch, Ray or numpy."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, nan
from typing import TYPE_CHECKING

from fracray.errors import InputError, nearest

if TYPE_CHECKING:
    from fracray.metrics import CostRatio

# Those of data.images.corruptions and of evaluation.subgroups, which take long to import; a test compares them.
SEVERITIES = (1, 2, 3, 4, 5)
SUBGROUPS = ("region", "view", "hardware", "multiscan", "device", "age", "sex", "box")


@dataclass(frozen=True)
class Asked:
    """What the flags ask for, checked without opening a checkpoint."""

    severities: tuple[int, ...]
    axes: tuple[str, ...]
    costs: tuple[float, float] | None  # of a missed fracture and of a false alarm
    prevalence: float | None

    def cost_ratio(self) -> CostRatio | None:
        from fracray.metrics import CostRatio

        return CostRatio(*self.costs) if self.costs else None


def read_severities(text: str) -> tuple[int, ...]:
    """'1,3,5' to (1, 3, 5); InputError for anything else."""
    known = {str(severity): severity for severity in SEVERITIES}
    words = [word.strip() for word in text.split(",")]
    if not all(word in known for word in words):
        raise InputError(f"--severities {text}: expected some of 1 to 5 with commas between, for example 1,3,5")
    return tuple(sorted({known[word] for word in words}))


def read_axes(text: str) -> tuple[str, ...]:
    """'region,view' to ('region', 'view'), each once; InputError for a name that is not in SUBGROUPS."""
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if word not in SUBGROUPS:
            raise InputError(
                f"--by {text}: radiographs are not divided by '{word}'{nearest(word, SUBGROUPS)}; name some of "
                f"{', '.join(SUBGROUPS)}, with commas between"
            )
    return tuple(dict.fromkeys(words))


def read_costs(text: str) -> tuple[float, float]:
    """'10:1' to (10.0, 1.0); InputError for anything but two numbers above 0."""
    try:
        missed, alarm = (float(word) for word in text.split(":"))
    except ValueError:
        missed = alarm = nan
    if not (0 < missed < inf and 0 < alarm < inf):
        raise InputError(
            f"--cost-ratio {text}: expected two numbers above 0, the cost of a missed fracture and that of a false "
            "alarm, for example 10:1"
        )
    return missed, alarm


def read_prevalence(text: str) -> float:
    """'0.05' to 0.05; InputError for anything but a number above 0 and below 1."""
    try:
        share = float(text)
    except ValueError:
        share = nan
    if not 0 < share < 1:
        raise InputError(f"--prevalence {text}: expected a share above 0 and below 1, for example 0.05 for 5%")
    return share
