"""An audit as files: JSON of all findings and verdicts, and one self-contained HTML page with the same figures.

Shows what find.py and verdicts.py found, reads the pictures that are shown, and decides nothing. The page loads
nothing from elsewhere: styles, charts (SVG) and pictures (JPEG) are inside.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from markupsafe import Markup

from fracray import __version__
from fracray.data.audit.facts import Blocks, Findings
from fracray.data.audit.shares import PictureSet
from fracray.data.audit.verdicts import Verdict, sum_up
from fracray.data.images.decode import preview
from fracray.data.manifest import Manifest
from fracray.runtime.page import page_environment, picture_uri

PICTURE = 176  # px, longer side of a picture on the page
MOST_NAMES = 200  # ids and notes listed one by one; the JSON has all
MOST_ALIKE = 8  # pictures shown of one set

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 720, 250, 40, 46, 10  # of the chart, px

HEADINGS = {
    "files": "Files",
    "formats": "Formats",
    "duplicates": "Duplicates",
    "conflicts": "Contradicting labels",
    "cut": "Pictures without their lower end",
    "grays": "Blank or inverted pictures",
    "patients": "Patients",
    "prevalence": "Prevalence",
    "shortcuts": "Shortcuts",
}


def as_json(findings: Findings, verdicts: Sequence[Verdict]) -> str:
    """All findings and verdicts; NaN is null."""
    tree = {
        "fracray": __version__,
        "verdict": asdict(sum_up(verdicts)),
        "verdicts": [asdict(verdict) for verdict in verdicts],
        "findings": findings.as_dict(),
    }
    return json.dumps(tree, indent=1, allow_nan=False) + "\n"


def as_html(findings: Findings, verdicts: Sequence[Verdict], manifest: Manifest) -> str:
    """The page, with pictures read from the manifest's files; a text replaces those that cannot be shown."""
    tree = findings.as_dict()
    sets = (*findings.duplicates.shown, *findings.conflicts.sets, *findings.cut.shown, *findings.grays.shown)
    return (
        page_environment("fracray.data.audit")
        .get_template("audit.html")
        .render(
            findings=findings,
            overall=sum_up(verdicts),
            verdicts={verdict.section: verdict for verdict in verdicts},
            headings=HEADINGS,
            version=__version__,
            pictures=_pictures(sets, manifest),
            chart=_chart(findings.prevalence.blocks, findings.prevalence.overall.share),
            flow=[name for name, count in tree["files"]["flow"].items() if count or name in ("found", "used")],
            most_names=MOST_NAMES,
            most_alike=MOST_ALIKE,
            fact=lambda path, style="count": _fact(tree, path, style),
        )
    )


def _fact(tree: dict[str, Any], path: str, style: str) -> Markup:
    """A figure of the JSON by its dotted path: as count, share (per cent) or score, and unformatted for machines."""
    value: Any = tree
    for key in path.split("."):
        value = value[int(key)] if isinstance(value, list) else value[key]
    pattern = {"count": "{:,}", "share": "{:.1%}", "score": "{:.3f}"}[style]
    text = "–" if value is None else pattern.format(value)
    raw = json.dumps(value)
    return Markup('<data class="figure" data-fact="{}" value="{}">{}</data>').format(path, raw, text)


def _pictures(sets: Sequence[PictureSet], manifest: Manifest) -> dict[str, Markup]:
    """Data URIs of the pictures shown, by image_id; without those that cannot be decoded."""
    paths = dict(zip(manifest.table["image_id"], manifest.table["path"], strict=True))
    shown = {image.image_id for each in sets for image in each.images[:MOST_ALIKE] if paths[image.image_id]}
    uris = {}
    for image_id in sorted(shown):
        pixels = preview(manifest.root / paths[image_id], PICTURE)
        if pixels is not None:
            uris[image_id] = picture_uri(pixels)
    return uris


@dataclass(frozen=True)
class Bar:
    """A block of file numbers in the chart, in its pixels; `low` and `high` are the ends of the interval."""

    x: float
    width: float
    y: float
    height: float
    low: float
    high: float
    label: str
    title: str


@dataclass(frozen=True)
class Chart:
    """Prevalence by file number: bars, the heights of the grid lines with their labels, the overall share."""

    width: int
    height: int
    left: int
    base: float
    bars: tuple[Bar, ...]
    grid: tuple[tuple[float, str], ...]
    overall: float


def _chart(blocks: Blocks | None, overall: float) -> Chart | None:
    if blocks is None or math.isnan(overall):
        return None
    base = _HEIGHT - _BOTTOM

    def y(share: float) -> float:
        return round(base - share * (base - _TOP), 1)

    step = (_WIDTH - _LEFT) / len(blocks.values)
    every = math.ceil(len(blocks.values) / 12)
    bars = [
        Bar(
            x=round(_LEFT + number * step + step * 0.15, 1),
            width=round(step * 0.7, 1),
            y=y(block.share),
            height=round(base - y(block.share), 1),
            low=y(block.low),
            high=y(block.high),
            label=block.name.split(" ")[0] if number % every == 0 else "",
            title=f"{block.name}: {block.fractured} of {block.images} fractured ({block.share:.0%})",
        )
        for number, block in enumerate(blocks.values)
    ]
    grid = tuple((y(share), f"{share:.0%}") for share in (0, 0.25, 0.5, 0.75, 1))
    return Chart(_WIDTH, _HEIGHT, _LEFT, base, tuple(bars), grid, y(overall))
