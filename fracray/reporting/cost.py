"""What trainings cost: core-hours by phase, and an estimate in money where prices were given."""

from collections import Counter
from collections.abc import Sequence

from markupsafe import Markup

from fracray.reporting import parts
from fracray.reporting.parts import paragraph
from fracray.reporting.subject import Subject
from fracray.runtime.console import duration
from fracray.runtime.efficiency import WORDS
from fracray.runtime.prices import HOLDS, Span, Work, money
from fracray.search.trials_table import TrialRow


def cost(subject: Subject, rows: Sequence[TrialRow]) -> Markup:
    """Core-hours by phase, as the trainings counted them, and the share of the machine that was useful."""
    phases: Counter[str] = Counter()
    for row in rows:
        for result in row.history:
            phases.update(result.core_seconds)
    total = sum(phases.values())
    if not total:
        return Markup("")
    unit = (subject.efficiency or {}).get("unit", "CPU")
    core = "GPU" if unit == "GPU" else "core"
    hours, scale = (f"{core}-hours", 3600) if total >= 3600 else (f"{core}-seconds", 1)
    lines = [
        (
            WORDS.get(phase, phase),
            f"{seconds / scale:,.1f}",
            f"{seconds / total:.1%}",
            parts.share_picture(seconds / total),
        )
        for phase, seconds in phases.most_common()
        if seconds
    ]
    words = f"Cost: {total / 3600:.3g} {core}-hours ({total:,.0f} {core}-seconds)"
    stored, told = subject.efficiency, ""
    if stored:
        held = stored["wall_seconds"] * stored["cores"] / 3600
        told = (
            f"The last command ran for {duration(stored['wall_seconds'])} on {stored['cores']:.3g} {unit}(s): "
            f"{held:.3g} {core}-hours, of which a share of {stored['efficiency']:.2f} went into training and "
            "augmentation."
        )
    table = parts.table(("what the time went into", hours, "share", ""), lines, (1, 2), kind="cost", caption=words)
    return (
        parts.heading(words) + table + (paragraph(told, "soft") if told else Markup("")) + _money(subject, total, core)
    )


def _money(subject: Subject, seconds: float, core: str) -> Markup:
    """What so much work costs on the nodes whose prices were given."""
    ended = max(subject.search.ended.values(), default=0.0) if subject.search else 0.0
    wall = ended or (subject.efficiency or {}).get("wall_seconds", 0.0) / 3600
    busy, none = Span(seconds / 3600, seconds / 3600), Span(0.0, 0.0)
    if not subject.prices:
        return paragraph(
            "For an estimate in money, name a cluster file and the prices of its nodes: --cluster FILE "
            "--price-per-hour NODE=PRICE.",
            "soft",
        )
    gpu = core == "GPU"
    work = Work(none if gpu else busy, busy if gpu else none, Span(wall, wall))
    lines = Markup("").join(Markup("<li>{}</li>").format(line) for line in money(subject.prices, work))
    about = f"{HOLDS}; what a refit cost is not in it either."
    return parts.heading("In money") + Markup("<ul>{}</ul>").format(lines) + paragraph(about, "soft")
