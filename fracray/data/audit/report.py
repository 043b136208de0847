"""An audit on the console: the flow, prevalence, what predicts the label without the picture, and the verdicts."""

from collections.abc import Sequence
from functools import partial
from math import isnan

from rich.console import Console

from fracray.data.audit.facts import Findings
from fracray.data.audit.verdicts import Verdict, sum_up
from fracray.metrics import Interval
from fracray.runtime.console import new_table

MOST_NOTES = 20  # notes on images that are printed


def say_audit(console: Console, findings: Findings, verdicts: Sequence[Verdict]) -> None:
    """Print the flow, the prevalence, the scores of the no-pixel predictors, and one verdict per section."""
    say = partial(console.print, soft_wrap=True)
    say(f"data: {findings.origin}")
    say("\n".join(findings.files.flow.lines()))
    for name, ids in findings.files.left_out:
        say(f"{name}: {', '.join(ids)}")
    alike = findings.duplicates
    counts = {"byte by byte": alike.byte, "pixel by pixel": alike.pixel, "nearly, or more": alike.near}
    say("similar images: " + "; ".join(f"{kind} {c.images:,} images in {c.sets:,} sets" for kind, c in counts.items()))
    for row in findings.cut.refilled_rows:
        say(f"filled: {row[0]}, the last {row[1]} rows")
    if findings.grays.opposed_ids:
        say(f"look inverted: {', '.join(findings.grays.opposed_ids)}")
    for note in findings.files.notes[:MOST_NOTES]:
        say(f"note: {note}")
    if len(findings.files.notes) > MOST_NOTES:
        say(f"and notes on {len(findings.files.notes) - MOST_NOTES:,} more images: see --json, or `check`")
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
