"""What an evaluation found, as one JSON tree and as CSV tables."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from fracray.errors import InputError
from fracray.evaluation.comparison import Comparison
from fracray.evaluation.localisation import Localisation
from fracray.evaluation.operating import Operating
from fracray.evaluation.robustness import CorruptionScores
from fracray.evaluation.saliency import Saliency
from fracray.evaluation.scoring import Scored
from fracray.evaluation.subgroups import Subgroup
from fracray.metrics import (
    Interval,
    confusion,
    histogram,
    precision_recall_points,
    reliability_diagram,
    roc_points,
)
from fracray.runtime.spreadsheets import as_cell
from fracray.runtime.storage import write_named
from fracray.training.checkpoint import Checkpoint


@dataclass
class Findings:
    """What was found on one part: its scores and those of its sets by name, and what each flag adds if it is given."""

    part: str
    scored: Scored
    sets: Mapping[str, Mapping[str, Interval]]  # the part's own among them
    perfect_ece: float
    curves: dict[str, Any]
    localisation: Localisation | None = None
    subgroups: Sequence[Subgroup] = field(default_factory=tuple)
    operating: Operating | None = None
    saliency: Sequence[Saliency] = field(default_factory=tuple)
    against: Comparison | None = None
    corruptions: CorruptionScores | None = None


def curves_of(scored: Scored, seed: int) -> dict[str, Any]:
    """The points of the ROC and precision-recall curves, the reliability diagram, the histogram, the confusion matrix.

    Keys roc, precision_recall, reliability, histogram, confusion; values as of `metrics.curves`. seed: of the band of
    the reliability diagram, which is of the probabilities by which the calibration is judged.
    """
    labels, probabilities = scored.labels, scored.probabilities
    return {
        "roc": roc_points(labels, probabilities),
        "precision_recall": precision_recall_points(labels, probabilities),
        "reliability": reliability_diagram(labels, scored.told, scored.groups, seed),
        "histogram": histogram(labels, probabilities),
        "confusion": confusion(labels, probabilities, scored.thresholds),
    }


def as_tree(found: Findings, locations: Sequence[str], checkpoints: Sequence[Checkpoint]) -> dict[str, Any]:
    """All of it as JSON values; nan and infinity become null."""
    scored = found.scored
    table = scored.prepared.table.iloc[scored.rows]
    tree: dict[str, Any] = {
        "checkpoints": [
            {
                "location": location,
                "trial": checkpoint.metadata.trial,
                "epoch": checkpoint.metadata.epoch,
                "threshold": checkpoint.metadata.threshold,
                "members": [member.metadata.trial for member in checkpoint.members],
                "out_of_fold": checkpoint.metadata.out_of_fold,
            }
            for location, checkpoint in zip(locations, checkpoints, strict=True)
        ],
        "data": (data := scored.prepared.summary()),
        "warnings": data["warnings"],
        "split": found.part,
        "images": len(table),
        "groups": int(table["group"].nunique()),
        "scores": _as_dicts(found.sets[found.part]),
        "ece_of_a_perfect_model": found.perfect_ece,
        "sets": {name: _as_dicts(intervals) for name, intervals in found.sets.items() if name != found.part},
        "curves": found.curves,
        "predictions": [
            {"image_id": image_id, "group": group, "label": int(label), "probability": float(f"{probability:.9g}")}
            for image_id, group, label, probability in zip(
                table["image_id"], table["group"], table["label"], scored.probabilities, strict=True
            )
        ],
    }
    if found.localisation is not None:
        tree["localisation"] = found.localisation.as_dict()
    if found.subgroups:
        tree["subgroups"] = [one.as_dict() for one in found.subgroups]
    if found.operating is not None:
        tree["operating_points"] = found.operating.as_dict()
        tree["decision_curve"] = found.operating.curve.rows()
    if found.saliency:
        tree["saliency"] = [one.as_dict() for one in found.saliency]
    if found.against is not None:
        tree["against"] = found.against.as_dict()
    if found.corruptions is not None:
        tree["corruptions"] = found.corruptions.as_dict()
    return _plain(tree)


def _as_dicts(intervals: Mapping[str, Interval]) -> dict[str, dict[str, float | None]]:
    return {name: interval.as_dict() for name, interval in intervals.items()}


def _plain(value: Any) -> Any:
    """JSON has no nan: null in its place."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def write_json(path: str, tree: Mapping[str, Any]) -> None:
    """One file; InputError where it cannot be written."""
    try:
        write_named(Path(path), (json.dumps(tree, indent=1, allow_nan=False) + "\n").encode())
    except OSError as error:
        raise InputError(f"--json {path}: cannot be written: {error}") from None


# ---- CSV -----------------------------------------------------------------------------------------------------------


SCORES = "scores.csv"  # in every folder of these tables
NAMES = {SCORES} | {
    f"{name}.csv"
    for name in (
        *("predictions", "reliability", "roc", "precision_recall", "subgroups", "decision_curve", "operating_points"),
        *("saliency", "sanity", "against"),
    )
}


def refuse_other_tables(folder: str) -> None:
    """InputError where the folder holds files of these names that are not of `write_csv`, such as those of predict."""
    held = sorted(name for name in NAMES if Path(folder, name).exists())
    if held and SCORES not in held:
        raise InputError(f"--csv {folder}: holds {held[0]}, which is of no evaluation; name another folder")


def write_csv(folder: str, tree: Mapping[str, Any]) -> list[str]:
    """A table a file, of what is in the tree, into a folder, made if it is missing; returns the files' names.

    Those of an earlier evaluation are replaced, or removed: a folder describes one. An interval's ends are columns of
    their own: auroc, auroc_low, auroc_high. InputError where they cannot be written.
    """
    written = []
    tables = {f"{name}.csv": rows for name, rows in _tables(tree).items()}
    assert set(tables) == NAMES
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, rows in tables.items():
            if not rows:
                Path(folder, name).unlink(missing_ok=True)
                continue
            text = io.StringIO()
            columns = dict.fromkeys(column for row in rows for column in row)
            writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(map(_as_cells, rows))
            write_named(Path(folder) / name, text.getvalue().encode())
            written.append(name)
    except OSError as error:
        raise InputError(f"--csv {folder}: cannot be written: {error}; name a folder") from None
    return written


def _as_cells(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: as_cell(value) if isinstance(value, str) else value for name, value in row.items()}


def _tables(tree: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    curves = tree["curves"]
    sets = {tree["split"]: tree["scores"]} | tree["sets"]
    tables = {
        "scores": [
            {"set": name, "metric": metric} | value for name, scores in sets.items() for metric, value in scores.items()
        ],
        "predictions": tree["predictions"],
        "reliability": curves["reliability"],
        **{
            name: [dict(zip(curves[name], row, strict=True)) for row in zip(*curves[name].values(), strict=True)]
            for name in ("roc", "precision_recall")
        },
        "subgroups": [_flat(one) for one in tree.get("subgroups", ())],
        "decision_curve": tree.get("decision_curve", []),
        "operating_points": [
            _flat(
                {"name": one["name"], "rule": one["rule"], "threshold": " ".join(map(str, one["thresholds"]))}
                | {f"validation_{key}": value for key, value in one["on_validation"].items()}
                | one["reached"]
            )
            for one in tree.get("operating_points", {}).get("points", ())
        ],
        "saliency": [
            _flat(
                {"map": one["method"], "radiographs": looked["name"], "images": looked["images"], "pointer": name}
                | both
            )
            for one in tree.get("saliency", ())
            for looked in one["looked"]
            for name, both in looked["pointers"].items()
        ],
        "sanity": [
            _flat({"map": one["method"], "random": level["random"], "similarity": level["similarity"]})
            for one in tree.get("saliency", ())
            for level in one["sanity"]["levels"]
        ],
    }
    metrics = tree.get("against", {}).get("metrics", {})
    tables["against"] = [_flat({"metric": name} | one) for name, one in metrics.items()]
    return tables


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """Without the names of what is nested; the ends of an interval become columns."""
    found: dict[str, Any] = {}
    for name, value in row.items():
        if not isinstance(value, dict):
            found[name] = value
        elif set(value) == {"value", "low", "high"}:
            found |= {name: value["value"], f"{name}_low": value["low"], f"{name}_high": value["high"]}
        else:
            found |= _flat(value)
    return found
