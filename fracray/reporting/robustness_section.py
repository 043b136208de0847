"""Robustness: the held-out sets, and the scores under corruptions where `evaluate` measured them."""

from collections.abc import Iterator, Mapping
from math import isnan

import numpy as np
from markupsafe import Markup

from fracray.data.manifest import in_set, sets_named
from fracray.data.splits.set_names import is_validation
from fracray.metrics import Interval, score_intervals
from fracray.reporting import parts
from fracray.reporting.charts import Axis, Plot
from fracray.reporting.evaluated import Corrupted, Evaluated
from fracray.reporting.parts import Section, key, paragraph, score, with_interval
from fracray.reporting.subject import Judged, Subject
from fracray.runtime.console import counted

SCORES = {"auroc": "AUROC", "balanced_accuracy": "balanced accuracy", "sensitivity": "sensitivity"}
SCORES |= {"specificity": "specificity"}
MOST_NAMED = 3  # corruptions in the sentence
BY_CHANCE = 0.5  # the balanced error of chance


def robustness(subject: Subject) -> Section | None:
    """None without stored predictions."""
    if subject.judged is None or subject.judged.validation is None:
        return None
    body = _sets(subject, subject.judged) + _corruptions(subject)
    return Section(
        "robustness",
        "Robustness",
        "How the scores change on radiographs unlike those of the training. Held-out sets are real radiographs of "
        "another kind; corruptions are simulated, and passing them does not imply that another site's radiographs are "
        "read as well.",
        body,
    )


# ---- held-out sets -------------------------------------------------------------------------------------------------


def _sets(subject: Subject, judged: Judged) -> Markup:
    found = dict(_scores_of_sets(judged))
    if subject.evaluated and not is_validation(subject.evaluated.part):
        found |= subject.evaluated.scores
    words = parts.heading("Held-out sets")
    if len(found) < 2:
        return words + paragraph(
            "The split holds nothing out: data.split.protocol (device, view, region, hardware, severity, exposure) "
            "trains without one kind of radiograph and is judged on it, and data.split.shifts adds such sets.",
            "soft",
        )
    rows = []
    for name, scores in found.items():
        area = scores["auroc"]
        picture = parts.interval_picture(area, 0.0, 1.0, BY_CHANCE)
        rows.append((name, with_interval(area, 2), picture, *(with_interval(scores[one], 2) for one in [*SCORES][1:])))
    headings = ("set", "AUROC", "0 to 1", *[*SCORES.values()][1:])
    values = {name: scores["auroc"].value for name, scores in found.items() if not isnan(scores["auroc"].value)}
    told = ""
    if len(values) > 1:
        low, high = min(values, key=lambda name: values[name]), max(values, key=lambda name: values[name])
        told = f"The AUROC is lowest on {low}, {values[low]:.3f}, and highest on {high}, {values[high]:.3f}. "
    about = (
        f"{told}Threshold and calibration are those fixed on val. Intervals are 95%, over groups: where they overlap, "
        "a difference may be chance. The dotted line is chance."
    )
    return words + parts.table(headings, rows, (1, 3, 4, 5), kind="shifts", caption="Held-out sets") + paragraph(about)


def _scores_of_sets(judged: Judged) -> Iterator[tuple[str, Mapping[str, Interval]]]:
    """The scores on each validation set of the predictions that the checkpoint keeps."""
    table, card = judged.predictions, judged.card
    assert table is not None
    for name in sets_named(table["split"]):
        if not is_validation(name):
            continue
        some = table[in_set(table["split"], name)]
        told = card.calibration.apply(some["logit"].to_numpy())
        thresholds = np.full(len(some), card.threshold)
        yield name, score_intervals(some["label"].to_numpy().astype(int), told, some["group"].to_numpy(), thresholds)


# ---- corruptions ---------------------------------------------------------------------------------------------------


def _corruptions(subject: Subject) -> Markup:
    words = parts.heading("Corruptions")
    found = subject.evaluated
    if found is None or not found.corruptions:
        run = subject.run.location if subject.run else subject.location
        how = Markup(
            "Not measured. <code>python -m fracray.evaluate {} --corruptions --json scores.json</code> scores 21 "
            "simulated faults, of exposure, noise, blur, positioning and others, and "
            "<code>python -m fracray.report {} --evaluated scores.json</code> shows them here."
        ).format(run, run)
        return words + paragraph(how, "soft")
    return words + paragraph(_told(found)) + parts.charts([_over_severity(found)]) + _table(found)


def _told(found: Evaluated) -> str:
    assert found.clean is not None
    hurt = [one for one in found.corruptions if one.hurts]
    on = f"On {counted(found.images, 'radiograph')} of {found.part}, "
    clean = f"the balanced error of the radiographs as they are is {with_interval(found.clean)}"
    if not hurt:
        return f"{on}{clean}; no corruption clearly raises it."
    worst = ", ".join(f"{one.name} (to {one.mean.value:.3f} on average)" for one in hurt[:MOST_NAMED])
    count = f"{len(hurt)} of {counted(len(found.corruptions), 'corruption')} clearly raise it"
    return f"{on}{clean}; {count}, most of all {worst}."


def _over_severity(found: Evaluated) -> Markup:
    assert found.clean is not None
    curves = {one.name: {0: found.clean.value} | dict(one.errors) for one in found.corruptions}
    steps = sorted({severity for curve in curves.values() for severity in curve})
    worst = found.corruptions[0]
    values = [value for curve in curves.values() for value in curve.values()]
    plot = Plot(Axis("severity", -0.2, max(steps) + 0.2, whole=True), Axis.over("balanced error", [*values, BY_CHANCE]))
    plot.across(BY_CHANCE, "chance")
    plot.lines([([*curve], [*curve.values()]) for curve in curves.values()], "faint thin")
    average = [float(np.mean([curve[step] for curve in curves.values()])) for step in steps]
    plot.line(steps, average, "first")
    plot.line([*curves[worst.name]], [*curves[worst.name].values()], "second")
    words = key("first", "mean of all") + ", " + key("second", worst.name) + ", " + key("faint", "each of the others")
    return parts.chart(
        "Balanced error by severity",
        plot.svg(
            f"Balanced error over the severity of each corruption; on average {average[0]:.3f} to {average[-1]:.3f}"
        ),
        words + Markup("; 0: as they are; dashed: chance."),
    )


def _table(found: Evaluated) -> Markup:
    assert found.clean is not None
    rows = [_row(one, found.clean.value) for one in found.corruptions]
    headings = ("corruption", "imitates", "balanced error", "0 to 1", "more than clean", "AUROC", "")
    about = (
        "Averaged over the severities, with 95% intervals over groups; the dotted line is the error of the radiographs "
        "as they are. Where the error rises and the AUROC does not fall, the ranking holds and the threshold is wrong."
    )
    table = parts.table(headings, rows, (2, 4, 5), kind="corruptions", caption="Corruptions")
    return table + paragraph(about, "soft")


def _row(one: Corrupted, clean: float) -> tuple[str | Markup, ...]:
    excess = one.excess
    ends = "" if isnan(excess.low) else f" [{excess.low:+.2f}, {excess.high:+.2f}]"
    picture = parts.interval_picture(one.mean, 0.0, 1.0, clean)
    verdict = "clearly worse" if one.hurts else ""
    told = with_interval(one.mean, 2), picture, f"{excess.value:+.2f}{ends}", score(one.auroc, 2)
    return (one.name, one.imitates, *told, verdict)
