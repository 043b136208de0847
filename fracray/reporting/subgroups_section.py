"""Subgroups of the validation radiographs: whether some are served worse than others."""

from itertools import groupby
from math import isnan

import numpy as np
import pandas as pd
from markupsafe import Markup

from fracray.evaluation.scoring import Scored
from fracray.evaluation.subgroups import AXES, FEWEST, Subgroup, divide, score_subgroups
from fracray.reporting import parts
from fracray.reporting.parts import Section, paragraph, with_interval
from fracray.reporting.rows import rows_of, unread
from fracray.reporting.subject import Subject, Validation

SCORES = {"auroc": "AUROC", "sensitivity": "sensitivity", "specificity": "specificity"}


def subgroups_section(subject: Subject) -> Section | None:
    """None where the run's manifest or the predictions are not stored, or there is nothing to divide by."""
    found = subject.judged.validation if subject.judged else None
    if found is None or subject.manifest is None:
        return None
    scored = _scored(subject, found)
    if scored is None:
        return None
    axes = [axis for axis in AXES if sum(inside.any() for inside in divide(_table(scored), axis).values()) > 1]
    if not axes:
        return None
    overall = scored.intervals()["auroc"].value
    body = Markup("")
    for axis, some in groupby(score_subgroups(scored, axes), key=lambda one: one.axis):
        rows = [_row(one, overall) for one in some]
        headings = (axis, "fractured", "others", "AUROC", "0 to 1", "sensitivity", "specificity")
        body += parts.heading(_WORDS.get(axis, axis.capitalize())) + parts.table(
            headings, rows, (1, 2, 3, 5, 6), kind="subgroups", caption=f"Scores by {axis}"
        )
    about = (
        f"Scores are given from {FEWEST} radiographs of either class on, with 95% intervals over groups; the "
        "dotted line is "
        "the AUROC of all. Of many subgroups some differ by chance. Threshold and calibration are those of "
        "all. Of a size of "
        "fracture, the others are all radiographs without one."
    )
    return Section(
        "subgroups",
        "Subgroups",
        "Whether the model works equally well for every region, view, device and size of fracture. Where "
        "intervals are wide, "
        "it is not known: that is no sign that all is well.",
        body + paragraph(about, "soft"),
    )


_WORDS = {"box": "Size of the fracture, by its boxes", "device": "Device or size of the picture"}


def _row(one: Subgroup, overall: float) -> tuple[str | Markup, ...]:
    counts = (one.name, f"{one.positives:,}", f"{one.negatives:,}")
    if one.suppressed:
        return (*counts, Markup('<span class="few">{}</span>').format(one.suppressed), "", "", "")
    shown = {name: with_interval(one.scores[name], 2) if name in one.scores else "" for name in SCORES}
    mark = None if isnan(overall) else overall
    picture = parts.interval_picture(one.scores["auroc"], 0.0, 1.0, mark)
    return (*counts, shown["auroc"], picture, shown["sensitivity"], shown["specificity"])


def _table(scored: Scored) -> pd.DataFrame:
    return scored.prepared.table.iloc[scored.rows]


def _scored(subject: Subject, found: Validation) -> Scored | None:
    """The stored predictions beside the run's manifest; None where that is of other images."""
    assert subject.manifest is not None
    table = subject.manifest.used.reset_index(drop=True)
    rows = rows_of(found, table)
    if rows is None:
        return None
    prepared = unread(found.card, subject.manifest, table, subject.baselines)
    thresholds = np.full(len(rows), found.card.threshold)
    return Scored(prepared, rows, found.probabilities, thresholds, cross_fitted=found.cross_fitted)
