"""What the commands print: sentences and tables that can be read on a screen and copied from it.

Takes values and returns renderables; decides nothing and computes nothing but text.
"""

import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from math import isnan, nan
from shlex import quote
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from fracray.config import PHANTOM, Config
from fracray.data.audit.facts import Findings
from fracray.data.audit.verdicts import Verdict, sum_up
from fracray.data.baselines import Baseline
from fracray.data.prepare import PHANTOM_NOTICE, Prepared
from fracray.data.splits.assign import leaks
from fracray.evaluation.robustness import CorruptionScores, Summary
from fracray.metrics import Interval, by_set
from fracray.runtime.efficiency import WORDS, Efficiency
from fracray.runtime.ray_session import FILE
from fracray.runtime.storage import Folder

FEW_GROUPS = 10  # below this many groups a bootstrap over them understates the uncertainty

SHIFTED_ACCURACY = re.compile(r"(val/[a-z]+|worst_val)_accuracy")

EFFICIENCY_NOTE = {"CPU": "work in CPU time, waits in wall time", "GPU": "device time"}

HEADINGS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC",
    "average_precision": "average precision",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "f1": "F1",
    "brier": "Brier",
    "ece": "ECE",
}


def new_console() -> Console:
    """Standard output; as wide as the terminal, or wide enough for the tables where it goes to a file.

    Without markup: names of files and settings may hold brackets.
    """
    told = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(highlight=False, markup=False, width=None if told else 120)


def new_table(*headings: str) -> Table:
    """A table in the house's style, which stays readable when copied as text."""
    return Table(*headings, box=box.SIMPLE_HEAD, pad_edge=False)


def say_phantom(console: Console, config: Config) -> None:
    """One line on where the radiographs come from when none were named."""
    if config.data.source == PHANTOM:
        console.print(PHANTOM_NOTICE, style="yellow", soft_wrap=True)


def say_flow(console: Console, prepared: Prepared) -> None:
    """Where the radiographs come from, and the flow from files found to images used."""
    console.print(f"data: {prepared.origin}", soft_wrap=True)
    console.print(f"flow: {prepared.flow.summary()}", soft_wrap=True)


def say_prepared(console: Console, prepared: Prepared) -> None:
    """The flow, the parts, and what no pixel is needed for."""
    say_flow(console, prepared)
    if prepared.notes:
        look = f"python -m fracray.data check {quote(prepared.config.source)}"
        console.print(f"notes on {len(prepared.notes)} single images: see {look}", soft_wrap=True)
    say_split(console, prepared)


def say_split(console: Console, prepared: Prepared) -> None:
    """The sets, whether anything straddles them, and what no pixel is needed for."""
    sets = []
    for name in prepared.sets:
        rows = prepared.rows(name)
        labels = prepared.table["label"].to_numpy()[rows]
        groups = prepared.table["group"].iloc[rows].nunique()
        sets.append(f"{name} {len(rows)} ({labels.mean():.1%} fractured, {groups} groups)")
    protocol = "from a file" if prepared.config.split.file else prepared.config.split.protocol
    console.print(f"split ({protocol}): {', '.join(sets)}", soft_wrap=True)
    for note in prepared.split_notes:
        console.print(f"  {note}", soft_wrap=True)
    straddling = leaks(prepared.table)
    if straddling:
        console.print(
            f"note: {len(straddling)} groups, patients or sets of duplicates straddle two parts: scores flatter; "
            "data.split.protocol=grouped keeps them together",
            style="yellow",
            soft_wrap=True,
        )
    console.print(
        f"a predictor that sees no pixel reaches, on validation: {baseline_words(prepared.baselines, 'val')}",
        soft_wrap=True,
    )


def baseline_words(baselines: Sequence[Baseline], part: str) -> str:
    """'majority: accuracy 0.824; tags: ...' in one line."""
    words = []
    for baseline in baselines:
        if baseline.part == part:
            auroc = "" if isnan(baseline.auroc) else f", AUROC {baseline.auroc:.3f}"
            words.append(f"{baseline.name}: accuracy {baseline.accuracy:.3f}{auroc}")
    return "; ".join(words)


def say_audit(console: Console, findings: Findings, verdicts: Sequence[Verdict]) -> None:
    """An audit in words and tables: the flow, a verdict a section, shares of fractured, and what sees no picture."""
    say = partial(console.print, soft_wrap=True)
    say(f"data: {findings.origin}")
    say("\n".join(findings.files.flow.lines()))
    for name, ids in findings.files.left_out:
        say(f"{name}: {', '.join(ids)}")
    alike = findings.duplicates
    counts = {"byte by byte": alike.byte, "pixel by pixel": alike.pixel, "nearly, or more": alike.near}
    say("alike: " + "; ".join(f"{kind} {c.images:,} images in {c.sets:,} sets" for kind, c in counts.items()))
    for row in findings.cut.refilled_rows:
        say(f"filled: {row[0]}, the last {row[1]} rows")
    values = new_table("of the used images")
    for heading in ("images", "fractured", "95% interval"):
        values.add_column(heading, justify="right")
    overall = findings.prevalence.overall
    for name, share in [("all", overall)] + [
        (f"{each.name}: {share.name}", share) for each in findings.prevalence.breakdowns for share in each.values
    ]:
        values.add_row(name, f"{share.images:,}", f"{share.share:.1%}", f"[{share.low:.1%}, {share.high:.1%}]")
    console.print(values)
    scores = new_table("label predicted from", "which sees")
    for heading in ("AUROC", "95% interval"):
        scores.add_column(heading, justify="right")
    for score in findings.shortcuts.scores:
        scores.add_row(score.name, score.sees, *_interval_cells(score.auroc, score.unscored))
    for leak in findings.shortcuts.leaks:
        held = "rows at random" if leak.block == 1 else f"blocks of {leak.block} file numbers"
        scores.add_row("id neighbours", f"held out: {held}", *_interval_cells(leak.auroc, "too few groups"))
    console.print(scores)
    for verdict in (*verdicts, sum_up(verdicts)):
        say(f"{verdict.level:>4}  {verdict.section}: {verdict.words}")


def _interval_cells(interval: Interval, absent: str) -> tuple[str, str]:
    if isnan(interval.value):
        return "-", absent
    return f"{interval.value:.3f}", "" if isnan(interval.low) else f"[{interval.low:.3f}, {interval.high:.3f}]"


def epoch_line(metrics: Mapping[str, float], epochs: int) -> str:
    """One epoch in one line."""
    accuracy, auroc = (metrics.get(name, nan) for name in ("val_accuracy", "val_auroc"))
    beside = [f"{name.replace('_', ' ')} {metrics[name]:.4f}" for name in metrics if SHIFTED_ACCURACY.fullmatch(name)]
    return "  ".join(
        (
            f"epoch {metrics['epoch']:>3.0f}/{epochs}",
            f"train loss {metrics['train_loss']:.4f}",
            f"val loss {metrics['val_loss']:.4f}",
            f"val accuracy {accuracy:.4f}",
            f"val AUROC {auroc:.4f}",
            *beside,
            f"{metrics['seconds']:.1f} s",
            *([f"{metrics['workers']:.0f} workers"] if metrics.get("workers", 1) > 1 else []),
        )
    )


def scores_table(scores: Mapping[str, float | Interval], baselines: Sequence[Baseline], part: str) -> Table:
    """Scores by metric, with their intervals where known, beside those of the predictors that see no pixel."""
    beside = [baseline for baseline in baselines if baseline.part == part]
    table = new_table("metric")
    table.add_column("model", justify="right")
    if any(isinstance(value, Interval) for value in scores.values()):
        table.add_column("95% interval", justify="right")
    for baseline in beside:
        table.add_column(f"no pixel:\n{baseline.name}", justify="right")
    for name, heading in HEADINGS.items():
        value = scores.get(name)
        if value is None:
            continue
        if isinstance(value, Interval):
            cells = [f"{value.value:.3f}", f"[{value.low:.3f}, {value.high:.3f}]"]
        else:
            cells = [f"{value:.3f}"]
        table.add_row(heading, *cells, *(_cell(getattr(baseline, name, None)) for baseline in beside))
    return table


def corruptions_table(scores: CorruptionScores) -> Table:
    """Balanced error by corruption and severity, what it adds to the clean one, and how it compares to a reference."""
    compared = scores.reference is not None
    table = new_table()
    table.add_column("corruption", no_wrap=True)
    if not compared:  # both do not fit in one line
        table.add_column("imitates", no_wrap=True)
    for cell in scores.rows[0].cells:
        table.add_column(f"BE at\n{cell.severity}", justify="right", no_wrap=True)
    headings = (
        "mean\nBE",
        "more than clean\n[95% interval]",
        "mean\nAUROC",
        *(("BE/\nref.", "rBE") if compared else ()),
    )
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    blank = [""] * (len(scores.rows[0].cells) + (not compared))
    table.add_row("clean", *blank, _cell(scores.clean.balanced_error.value), "", _cell(scores.clean.auroc))
    for row in scores.rows:
        words = [] if compared else [row.corruption.words]
        cells = [_cell(cell.balanced_error.value) for cell in row.cells]
        table.add_row(row.corruption.name, *words, *cells, *_summary_cells(row.summary))
    table.add_section()
    table.add_row("mean of all", *blank, *_summary_cells(scores.overall))
    return table


def _summary_cells(summary: Summary) -> list[str]:
    excess = summary.excess
    cells = [
        _cell(summary.mean.value),
        f"{excess.value:+.3f} [{excess.low:.3f}, {excess.high:.3f}]",
        _cell(summary.auroc),
    ]
    beside = (summary.normalised, summary.relative)
    return cells + ["-" if isnan(value.value) else f"{value.value:.2f}" for value in beside if value is not None]


def say_corruptions(console: Console, scores: CorruptionScores) -> None:
    """The table of the shift suite, and in words which shifts hurt most."""
    console.print("\nshift suite: balanced error (BE), 0 is perfect and 0.5 is chance, at the same fixed threshold")
    console.print(corruptions_table(scores))
    worst, clean = scores.worst(), scores.clean
    if worst:
        words = [
            f"{row.corruption.name} (BE {clean.balanced_error.value:.3f} to {row.summary.mean.value:.3f} on average, "
            f"AUROC {clean.auroc:.3f} to {row.summary.auroc:.3f})"
            for row in worst[:3]
        ]
        said = f"{len(worst)} of {len(scores.rows)} corruptions raise it clearly (interval above 0); most of all"
        console.print(f"{said} {', '.join(words)}.", soft_wrap=True)
    else:
        console.print("no corruption raises it clearly (interval above 0)")
    console.print(
        "where BE rises and AUROC does not, the order of the radiographs holds and the threshold is off", soft_wrap=True
    )
    if scores.reference is not None:
        reference = scores.reference
        console.print(
            f"reference: clean BE {reference.clean.balanced_error.value:.3f}, mean of all "
            f"{reference.overall.mean.value:.3f}. BE / ref. and rBE are MedMNIST-C's: below 1 is better than the "
            f"reference. rBE is given for the {len(reference.worst())} corruptions that clearly hurt the reference",
            soft_wrap=True,
        )


def sets_table(scores: Mapping[str, Mapping[str, float | Interval]], prepared: Prepared) -> Table:
    """Several sets beneath one another, with the AUROC that no pixel is needed for on each."""
    table = new_table()
    table.add_column("set", no_wrap=True)
    for heading in ("images", "fract.", "accuracy", "AUROC", "sens.", "spec."):
        table.add_column(heading, justify="right", no_wrap=True)
    rivals = [baseline for baseline in prepared.baselines if baseline.name != "majority"]
    for rival in dict.fromkeys(baseline.name for baseline in rivals):
        table.add_column("AUROC of\n" + rival.replace(" ", "\n"), justify="right", no_wrap=True)
    for name, values in scores.items():
        rows = prepared.rows(name)
        fractured = prepared.table["label"].to_numpy()[rows].mean()
        both = [_with_interval(values.get(metric)) for metric in ("accuracy", "auroc")]
        alone = [_cell(_value(values.get(metric))) for metric in ("sensitivity", "specificity")]
        beside = [_cell(rival.auroc) for rival in rivals if rival.part == name]
        table.add_row(name, str(len(rows)), f"{fractured:.1%}", *both, *alone, *beside)
    return table


def _with_interval(value: float | Interval | None) -> str:
    interval = f" [{_cell(value.low)}, {_cell(value.high)}]" if isinstance(value, Interval) else ""
    return f"{_cell(_value(value))}{interval}"


def _value(value: float | Interval | None) -> float | None:
    return value.value if isinstance(value, Interval) else value


def say_validation(console: Console, prepared: Prepared, epoch: Mapping[str, float]) -> None:
    """The best epoch's scores, as a later `epoch` reports them, on 'val' and then on all validation sets if several."""
    values = {name.removeprefix("best_"): value for name, value in epoch.items() if name.startswith("best_")}
    scores = by_set(values, [name for name in prepared.sets if name.startswith("val")])
    console.print(scores_table(scores["val"], prepared.baselines, "val"))
    if len(scores) > 1:
        console.print(sets_table(scores, prepared))


def _cell(value: Any) -> str:
    return "" if value is None or isnan(value) else f"{value:.3f}"


def say_few_groups(console: Console, groups: Iterable[str]) -> None:
    """Say so where too few groups, named for each image, stand behind an interval that is bootstrapped over them."""
    count = len(set(groups))
    if count < FEW_GROUPS:
        console.print(f"note: only {count} groups: the intervals understate how far the scores may be off")


def say_efficiency(console: Console, efficiency: Efficiency) -> None:
    """Which share of the machine went into training and augmenting, and where the rest went."""
    spent = f"{efficiency.cores:.3g} {efficiency.unit}(s) for {efficiency.wall:.0f} s"
    console.print(
        f"efficiency {efficiency.value:.2f}: of {spent}, this share went into training and augmentation "
        f"({EFFICIENCY_NOTE[efficiency.unit]}):",
        soft_wrap=True,
    )
    table = new_table("", "share", "")
    for phase, share in efficiency.shares().items():
        table.add_row(WORDS[phase], f"{share:.3f}", "█" * round(share * 30))
    console.print(table)


def say_next_steps(console: Console, run: Folder, checkpoint: str, source: str) -> None:
    """Where the checkpoint lies and what to type next."""
    data = "" if source == PHANTOM else f" --data {quote(source)}"
    console.print(f"\ncheckpoint: {run.sub(checkpoint)}", soft_wrap=True)
    console.print("next:", soft_wrap=True)
    fetch, target = f"  python -m fracray.fetch {quote(str(run))}", quote(f"checkpoints/{run.name}")
    if run.is_local and (file := os.environ.get(FILE)):  # typed where no path of this machine means anything
        console.print(f"{fetch} --cluster {quote(file)} --to {target}", soft_wrap=True)
        return
    console.print(f"{fetch} --to {target}", soft_wrap=True)
    console.print(f"  python -m fracray.evaluate {quote(str(run.sub(checkpoint)))}{data} --split test", soft_wrap=True)
