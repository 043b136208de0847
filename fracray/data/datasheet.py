"""The datasheet of a prepared set: the contents of data.json as Markdown.

After "Datasheets for Datasets" (Gebru et al., Communications of the ACM 2021, doi 10.1145/3458723). Takes the tree of
`Prepared.summary` and nothing else, so the two cannot differ.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fracray.data.loading.kept import CUT
from fracray.data.manifest import REASONS, UNUSED
from fracray.data.splits.assign import DIVIDED
from fracray.runtime.console import counted

MOST_NOTES = 200  # notes on images that are listed; the manifest has all of them

MEANING = {"found": "images found, listed or on disk", **REASONS, "used": "images used"}
MEANING |= {**UNUSED, "in_parts": "images in parts"}


def datasheet(summary: Mapping[str, Any]) -> str:
    """Markdown from the tree of `Prepared.summary`, which is also what data.json holds."""
    parts = [
        f"# Datasheet: {_cell(summary['origin'])}",
        _facts(summary),
        "## From files found to images used",
        _table(("images", "outcome"), [(f"{count:,}", MEANING[name]) for name, count in _flow(summary)]),
    ]
    if summary["ignored"]:
        parts.append(f"- {counted(summary['ignored'], 'file')} of operating systems beside them: ignored")
    parts += [f"- {_cell(remark)}" for remark in summary["remarks"]]
    if summary["parts"]:
        parts += ["## Parts", _parts(summary)]
        parts += [f"- {note}" for note in summary["split"]]
    for name, cells in summary["prevalence"].items():
        parts += [f"## Fractured by {name}", _prevalence(cells)]
    parts += ["## No-pixel predictors", _baselines(summary["baselines"])]
    parts += ["## Known defects", *(_defects(summary) or ["None found."])]
    return "\n\n".join(_joined(parts)) + "\n"


def _facts(summary: Mapping[str, Any]) -> str:
    rows = [
        ("origin", summary["origin"]),
        ("licence", summary["licence"]),
        ("data (sha256 of ids, files and labels)", f"`{summary['fingerprint']}`"),
        ("split (sha256 of ids and sets)", f"`{summary['split_fingerprint']}`"),
        ("images used", f"{summary['flow']['used']:,}"),
        ("fractured", f"{summary['fractured']:,} ({summary['fractured'] / summary['flow']['used']:.1%})"),
        ("patients known", f"{summary['patients']['patients']:,}, of {summary['patients']['named']:,} images"),
        ("groups", f"{summary['groups']:,}"),
        ("prepared as", f"gray, letterboxed to {summary['size']} x {summary['size']} pixels, 8 bit"),
        *([("cropped to the anatomy", crop_words(summary["crop"]))] if summary.get("crop") else []),
    ]
    return _table(("", ""), rows)


def crop_words(crop: Mapping[str, Any]) -> str:
    """How many radiographs are cropped, by how much, and whether boxes are cut: from `loading.kept.cropping`."""
    words = f"{crop['images']:,} of {crop['of']:,} radiographs"
    if crop["images"]:
        words += f", enlarged {crop['median']:.2f} times (median; at most {crop['largest']:.2f})"
    if crop["boxes"]:
        words += f"; {crop['cut']:,} of {counted(crop['boxes'], 'fracture box', 'fracture boxes')} cut"
    return words


def cut_words(crop: Mapping[str, Any]) -> str:
    """A warning of fracture boxes that are cut, with what to do."""
    return (
        f"data.crop cuts {counted(crop['cut'], 'fracture box', 'fracture boxes')} by more than {CUT:.0%} of the area: "
        f"{', '.join(crop['cut_images'])}{', ...' * crop['more']}; set data.crop=false, or "
        "look at them with `python -m fracray.data sheet --crops`"
    )


def _flow(summary: Mapping[str, Any]) -> list[tuple[str, int]]:
    return [(name, count) for name, count in summary["flow"].items() if count or name in ("found", "used")]


def _parts(summary: Mapping[str, Any]) -> str:
    rows = [
        (name, f"{part['images']:,}", f"{part['fractured']:,}", _share(part), f"{part['groups']:,}")
        for name, part in summary["parts"].items()
    ]
    if summary["unused"]:
        rows.append(("unused", f"{summary['unused']:,}", "", "", ""))
    return _table(("set", "images", "fractured", "prevalence", "groups"), rows)


def _prevalence(cells: Mapping[str, Mapping[str, int]]) -> str:
    rows = [
        (name or "unknown", f"{cell['images']:,}", f"{cell['fractured']:,}", _share(cell))
        for name, cell in cells.items()
    ]
    return _table(("", "images", "fractured", "prevalence"), rows)


def _baselines(baselines: Sequence[Mapping[str, Any]]) -> str:
    if not baselines:
        return "Not measured: there is no training part to fit a predictor to."
    rows = [
        (one["part"], one["name"], *(_number(one[key]) for key in ("accuracy", "balanced_accuracy", "auroc")))
        for one in baselines
    ]
    return _table(("set", "predictor", "accuracy", "balanced accuracy", "AUROC"), rows)


def _defects(summary: Mapping[str, Any]) -> list[str]:
    flow = summary["flow"]
    found = [f"- {_cell(warning)}" for warning in summary["warnings"]]
    if (crop := summary.get("crop")) and crop["cut"]:
        found.append(f"- {_cell(cut_words(crop))}")
    found += [f"- {flow[name]:,} {name}: {why}" for name, why in REASONS.items() if flow[name]]
    if summary["near_duplicates"]["sets"]:
        near = summary["near_duplicates"]
        found.append(
            f"- {counted(near['sets'], 'set')} of exact or near duplicates among {near['images']:,} used images"
        )
    if summary["straddling"]:
        found.append(f"- {counted(summary['straddling'], *DIVIDED)} in two parts")
    notes = summary["notes"]
    found += [f"- {_cell(note)}" for note in notes[:MOST_NOTES]]
    if len(notes) > MOST_NOTES:
        found.append(f"- and notes on {len(notes) - MOST_NOTES:,} more images, in the manifest")
    return found


def _share(part: Mapping[str, int]) -> str:
    return f"{part['fractured'] / part['images']:.1%}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    """One line with Markdown's special characters escaped: file names may contain anything."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _joined(parts: Sequence[str]) -> list[str]:
    """List items follow each other without a blank line."""
    joined: list[str] = []
    for part in parts:
        if part.startswith("- ") and joined and joined[-1].startswith("- "):
            joined[-1] += f"\n{part}"
        else:
            joined.append(part)
    return joined
