"""All trials: a scatter whose axes the reader chooses, and beside it the same trials as a table.

The script draws; here its numbers are written. Without scripts the table is there.
"""

import json
from collections.abc import Sequence
from math import isfinite
from typing import Any

from markupsafe import Markup, escape

from fracray.reporting import parts
from fracray.reporting.parts import paragraph
from fracray.reporting.subject import Search, state_words
from fracray.runtime.console import setting_cell
from fracray.search.space import Choices, Range
from fracray.search.states import State
from fracray.search.trials_table import TrialRow

BESIDE = ("val_auroc", "val_accuracy", "val_sensitivity", "val_specificity", "val_loss")
PRINTED = 40  # rows of the table on paper


def explorer(search: Search) -> Markup:
    """The chart with its choices, and the table: the best trials first."""
    lost = [row for row in search.rows.values() if row not in search.ranked]
    rows = [*search.ranked, *sorted(lost, key=lambda row: row.number)]
    metrics = list(dict.fromkeys((*search.space.metrics, *search.space.config.search.constraints, *BESIDE)))
    metrics = [name for name in metrics if any(isfinite(row.best(name)) for row in rows)]
    paths = [dimension.path for dimension in search.space.dimensions]
    first = search.importances.shares[0].path if search.importances else next(iter(paths), "trial")
    data = {
        "names": [row.name for row in rows],
        "states": [state_words(row) for row in rows],
        "best": 0 if search.ranked else -1,
        "x": first,
        "y": search.metric,
        "columns": _columns(search, rows, metrics),
    }
    script = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return (
        parts.heading("All trials")
        + paragraph(
            "Choose what the axes and the colour show. With the chart in focus, the arrow keys go from trial "
            "to trial, and "
            "Home goes to the best one. The table below has the same trials, the best first; its headings sort it.",
            "soft scripted",
        )
        + Markup(
            '<div id="explorer" hidden></div>\n<script type="application/json" id="trials-data">{}</script>\n'
        ).format(Markup(script))
        + _table(search, rows, metrics, paths)
    )


def _state(search: Search, row: TrialRow) -> str:
    """The state of a trial, and whether it breaks a constraint."""
    broken = row.history and search.space.config.search.broken(row.best)
    return f"{state_words(row)}{', breaks a constraint' if broken else ''}"


def _columns(search: Search, rows: Sequence[TrialRow], metrics: Sequence[str]) -> list[dict[str, Any]]:
    columns: list[dict[str, Any]] = [
        {"key": "trial", "values": [row.number for row in rows]},
        {"key": "epochs", "values": [len(row.history) for row in rows]},
        {"key": "core-seconds", "values": [round(_seconds(row), 1) for row in rows]},
    ]
    columns += [{"key": name, "values": [_plain(row.best(name)) for row in rows]} for name in metrics]
    for dimension in search.space.dimensions:
        column: dict[str, Any] = {"key": dimension.path}
        values = [search.leaves(row).get(dimension.path) for row in rows]
        if isinstance(dimension.values, Choices):
            names = [str(value) for value in dimension.values.values]
            column["names"] = names
            column["values"] = [names.index(str(value)) if str(value) in names else None for value in values]
        else:
            column["log"] = isinstance(dimension.values, Range) and dimension.values.log
            column["values"] = [None if value is None else _plain(float(value)) for value in values]
        columns.append(column)
    return columns


def _seconds(row: TrialRow) -> float:
    return sum(sum(result.core_seconds.values()) for result in row.history)


def _plain(value: float) -> float | None:
    """As JSON, in six digits."""
    return float(f"{value:.6g}") if isfinite(value) else None


def _table(search: Search, rows: Sequence[TrialRow], metrics: Sequence[str], paths: Sequence[str]) -> Markup:
    headings = ("trial", "state", "epochs", *metrics, *paths)
    head = "".join(
        f'<th scope="col"{"" if at < 2 else " class=number"}>{escape(words)}</th>' for at, words in enumerate(headings)
    )
    lines = []
    for row in rows:
        cells = [str(len(row.history))]
        cells += [f"{row.best(name):.4f}" if isfinite(row.best(name)) else "" for name in metrics]
        cells += [setting_cell(leaves[path]) if path in (leaves := search.leaves(row)) else "" for path in paths]
        told = "".join(f"<td class=n>{escape(cell)}</td>" for cell in cells)
        best = " (best)" if search.ranked and row is search.ranked[0] else ""
        kind = "" if row.state is State.DONE else ' class="dim"'
        lines.append(f'<tr{kind}><th scope="row">{row.name}{best}</th><td>{_state(search, row)}</td>{told}</tr>')
    more = (
        f'<p class="soft printed">On paper: the first {PRINTED} of {len(rows):,} trials.</p>\n'
        if len(rows) > PRINTED
        else ""
    )
    return Markup(
        '<div class="scroll tall" tabindex="0" role="group" aria-label="All trials">'
        '<table class="data trials" id="trials">'
        f'<caption class="unseen">All trials, the best first</caption><thead><tr>{head}</tr></thead>\n<tbody>\n'
        + "\n".join(lines)
        + f"\n</tbody></table></div>\n{more}"
    )
