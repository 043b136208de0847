"""How well fractured and other radiographs are told apart, whether probabilities can be taken at their word, and what
other thresholds would give: on validation, from the predictions that a checkpoint keeps.
"""

from itertools import pairwise
from math import isnan, nan

import numpy as np
from markupsafe import Markup

from fracray.evaluation.operating import OWN, rule_words
from fracray.metrics.curves import confusion, histogram, precision_recall_points, reliability_diagram, roc_points
from fracray.metrics.operating import choose_operating_points, decision_curve, operating_scores
from fracray.reporting import parts
from fracray.reporting.charts import Axis, Plot
from fracray.reporting.parts import Section, key, score, with_interval
from fracray.reporting.subject import Subject, Validation

SQUARE = 300  # units, the height of charts whose two axes are shares


def discrimination(subject: Subject) -> Section | None:
    """None without stored predictions of both classes."""
    found = _of_both_classes(subject)
    if found is None:
        return None
    body = parts.charts([_roc(found), _precision(found), _reliability(found), _histogram(found)]) + _confusion(found)
    return Section(
        "discrimination",
        "Discrimination and calibration",
        f"How well the {len(found.labels):,} validation radiographs are told apart, and whether a probability "
        "of 0.3 means a "
        "fracture in three of ten. Epoch, threshold and calibration were chosen on these radiographs, so "
        "expect less of new ones.",
        body,
    )


def operating_points(subject: Subject) -> Section | None:
    """What other thresholds would reach, and for whom the model is of use; None as `discrimination`."""
    found = _of_both_classes(subject)
    if found is None:
        return None
    share = float(found.labels.mean())
    return Section(
        "operating",
        "Operating points",
        "A lower threshold finds more fractures and raises more false alarms; which is right depends on what "
        "each costs. Thresholds were chosen on the radiographs that they are shown on, so expect less of new ones. "
        f"Predictive values are for the prevalence of validation, {share:.1%}; at a lower one a positive call "
        "means less.",
        _points(found) + parts.charts([_decision(found)]),
    )


def _of_both_classes(subject: Subject) -> Validation | None:
    found = subject.judged.validation if subject.judged else None
    return found if found is not None and len(set(found.labels)) == 2 else None


def _share_axis(words: str) -> Axis:
    return Axis(words, -0.02, 1.02)


def _roc(found: Validation) -> Markup:
    points = roc_points(found.labels, found.probabilities)
    here = confusion(found.labels, found.probabilities, found.card.threshold)
    sensitivity = here["true_positive"] / max(1, here["true_positive"] + here["false_negative"])
    alarms = here["false_positive"] / max(1, here["false_positive"] + here["true_negative"])
    plot = Plot(_share_axis("false alarms: 1 - specificity"), _share_axis("sensitivity"), SQUARE)
    plot.line([0, 1], [0, 1], "chance")
    plot.line(points["false_positive_rate"], points["sensitivity"], "first")
    plot.dots([alarms], [sensitivity], "second big")
    area = with_interval(found.scores["auroc"])
    words = (
        key("first", f"AUROC {area}")
        + ", "
        + key("second", f"threshold {found.card.threshold:.3f}")
        + ", dashed: chance."
    )
    return parts.chart(
        "ROC",
        plot.svg(f"ROC curve, AUROC {area}; at the threshold sensitivity {sensitivity:.2f}, false alarms {alarms:.2f}"),
        words,
    )


def _precision(found: Validation) -> Markup:
    points = precision_recall_points(found.labels, found.probabilities)
    plot = Plot(_share_axis("recall: sensitivity"), _share_axis("precision: positive predictive value"), SQUARE)
    plot.across(float(found.labels.mean()), "chance")
    recall, precision = points["recall"], points["precision"]
    # The average precision is the area under these steps.
    before = [0.0, *recall[:-1]]
    plot.line(
        [at for pair in zip(before, recall, strict=True) for at in pair],
        [at for at in precision for _ in range(2)],
        "first",
    )
    area = with_interval(found.scores["average_precision"])
    words = key("first", f"average precision {area}") + ", dashed: the prevalence, which chance reaches."
    return parts.chart("Precision and recall", plot.svg(f"Precision over recall, average precision {area}"), words)


def _reliability(found: Validation) -> Markup:
    bins = reliability_diagram(found.labels, found.cross_fitted, found.groups)
    plot = Plot(_share_axis("predicted probability"), _share_axis("share fractured"), SQUARE)
    plot.line([0, 1], [0, 1], "chance")
    x, y = [one["mean_probability"] for one in bins], [one["share"] for one in bins]
    banded = [one for one in bins if not isnan(one["low"])]
    at = [one["mean_probability"] for one in banded]
    plot.band(at, [one["low"] for one in banded], [one["high"] for one in banded], "first")
    plot.line(x, y, "first")
    plot.dots(x, y, "first")
    error = with_interval(found.scores["ece"])
    band = " The band is where the share is in 95% of samples of groups." if banded else " Too few groups for a band."
    words = f"Calibration error {error}; dashed: perfectly calibrated. Below it, probabilities are too high.{band}"
    return parts.chart(
        "Reliability",
        plot.svg(f"Share of fractured by predicted probability in {len(bins)} bins, calibration error {error}"),
        words,
    )


def _histogram(found: Validation) -> Markup:
    counts = histogram(found.labels, found.probabilities)
    edges = counts["edges"]
    top = max(*counts["positive"], *counts["negative"], 1)
    plot = Plot(_share_axis("predicted probability"), Axis("radiographs", 0, top * 1.05, whole=True), SQUARE)
    middle = [(a + b) / 2 for a, b in pairwise(edges)]
    for left, centre, right, ill, other in zip(
        edges, middle, edges[1:], counts["positive"], counts["negative"], strict=False
    ):
        if other:
            plot.bar(left, centre, 0, other, "first")
        if ill:
            plot.bar(centre, right, 0, ill, "second")
    plot.upright(found.card.threshold, "rung")
    words = key("first", "not fractured") + ", " + key("second", "fractured") + ", dotted: the threshold."
    return parts.chart(
        "Probabilities", plot.svg("Histogram of predicted probabilities of fractured and other radiographs"), words
    )


def _confusion(found: Validation) -> Markup:
    here = confusion(found.labels, found.probabilities, found.card.threshold)
    no, yes = found.card.classes
    rows = [
        (yes, f"{here['true_positive']:,} found", f"{here['false_negative']:,} missed"),
        (no, f"{here['false_positive']:,} false alarms", f"{here['true_negative']:,} rightly passed"),
    ]
    words = f"Calls at the threshold {found.card.threshold:.3f}"
    headings = ("labelled", f"called {yes}", f"called {no}")
    return parts.heading(words) + parts.table(headings, rows, (1, 2), kind="confusion", caption=words)


def _points(found: Validation) -> Markup:
    chosen = {OWN: found.card.threshold} | choose_operating_points(found.labels, found.probabilities)
    rows = []
    for name, threshold in chosen.items():
        scores = operating_scores(found.labels, found.probabilities, found.groups, threshold)
        shown = f"{threshold:.3f}" if np.isfinite(threshold) else "–"
        reached = (with_interval(scores[each], 2) for each in ("sensitivity", "specificity", "ppv", "npv"))
        rows.append((rule_words(name, found.card.config.train.operating_point), shown, *reached))
    headings = ("operating point", "threshold", "sensitivity", "specificity", "PPV", "NPV")
    words = "Thresholds chosen on validation, with 95% intervals over groups"
    return parts.heading(words) + parts.table(headings, rows, range(1, 6), kind="points", caption=words)


def _decision(found: Validation) -> Markup:
    curve = decision_curve(found.labels, found.cross_fitted, found.groups)
    at = list(curve.thresholds)
    model, treat_all = [one.value for one in curve.model], [one.value for one in curve.all]
    low, high = [one.low for one in curve.model], [one.high for one in curve.model]
    lowest = -0.15 * max(*model, 0.05)  # where a strategy does more harm than that, it is of no interest
    y = Axis.over("net benefit", [lowest, *model[:1], max(model), 0.0, treat_all[0]])
    plot = Plot(Axis("threshold probability", 0.0, max(at) * 1.02), y)
    if not any(isnan(value) for value in (*low, *high)):
        plot.band(at, low, high, "first")
    plot.across(0.0, "frame")
    for values, kind in ((treat_all, "faint"), (model, "first")):
        plot.line(at, [value if value >= y.low else nan for value in values], kind)
    better = [one for one, gain in zip(at, curve.gain, strict=True) if gain.low > 0]
    told = (
        f"Clearly better than both at {len(better)} of {len(at)} threshold probabilities, between "
        f"{min(better):.2f} and "
        f"{max(better):.2f}."
        if better
        else "At no threshold probability is the model clearly better than both."
    )
    words = (
        key("first", "the model")
        + ", "
        + key("faint", "call all fractured")
        + "; 0: call none. True positives less weighted false alarms, per radiograph: at 0.2, a missed "
        f"fracture is as bad as four false alarms. {told}"
    )
    return parts.chart(
        "Decision curve",
        plot.svg(f"Net benefit over the threshold probability; highest {score(max(model))}. {told}"),
        words,
    )
