"""Scores on the console: tables with intervals next to the no-pixel predictors, and the corruption suite."""

from collections.abc import Iterable, Mapping, Sequence
from math import isnan

import numpy as np
from rich.console import Console
from rich.table import Table

from fracray.config import SplitConfig
from fracray.data.baselines import Baseline
from fracray.data.prepare import Prepared
from fracray.data.splits.set_names import is_validation
from fracray.evaluation.localisation import Localisation
from fracray.evaluation.robustness import CorruptionScores, Summary
from fracray.metrics import FEWEST_GROUPS, FEWEST_OF_A_CLASS, ROUGH_BELOW, Interval, by_set
from fracray.runtime.console import new_table, score_cell

HEADINGS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC",
    "average_precision": "average precision",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "f1": "F1",
    "brier": "Brier",
    "ece": "calibration error",
    "calibration_slope": "calibration slope",
    "calibration_intercept": "calibration intercept",
}


def scores_table(scores: Mapping[str, float | Interval], baselines: Sequence[Baseline], part: str) -> Table:
    """Scores by metric, with intervals where there are any, next to those of the no-pixel predictors."""
    others = [baseline for baseline in baselines if baseline.part == part]
    table = new_table("metric")
    table.add_column("model", justify="right")
    if any(isinstance(value, Interval) for value in scores.values()):
        table.add_column("95% interval", justify="right")
    for baseline in others:
        table.add_column(f"no pixel:\n{baseline.name}", justify="right")
    for name, heading in HEADINGS.items():
        value = scores.get(name)
        if value is None:
            continue
        if isinstance(value, Interval):
            unknown = name == "calibration_slope" and isnan(value.value)
            shown = "not determined" if unknown else score_cell(value.value)
            cells = [shown, "" if isnan(value.low) else f"[{value.low:.3f}, {value.high:.3f}]"]
        else:
            cells = [score_cell(value)]
        table.add_row(heading, *cells, *(score_cell(getattr(baseline, name, None)) for baseline in others))
    return table


def corruptions_table(scores: CorruptionScores) -> Table:
    """Balanced error by corruption and severity, its difference to the clean one, and the ratio to a reference."""
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
    table.add_row("clean", *blank, score_cell(scores.clean.balanced_error.value), "", score_cell(scores.clean.auroc))
    for row in scores.rows:
        words = [] if compared else [row.corruption.words]
        cells = [score_cell(cell.balanced_error.value) for cell in row.cells]
        table.add_row(row.corruption.name, *words, *cells, *_summary_cells(row.summary))
    table.add_section()
    table.add_row("mean of all", *blank, *_summary_cells(scores.overall))
    return table


def _summary_cells(summary: Summary) -> list[str]:
    excess = summary.excess
    cells = [
        score_cell(summary.mean.value),
        f"{excess.value:+.3f}" + ("" if isnan(excess.low) else f" [{excess.low:.3f}, {excess.high:.3f}]"),
        score_cell(summary.auroc),
    ]
    against_reference = (summary.normalised, summary.relative)
    return cells + [
        "-" if isnan(value.value) else f"{value.value:.2f}" for value in against_reference if value is not None
    ]


def say_corruptions(console: Console, scores: CorruptionScores) -> None:
    """Print the table of the corruption suite, and a sentence on the corruptions that hurt most."""
    console.print(
        "\ncorruption suite: balanced error (BE), 0 is perfect and 0.5 is chance, at the threshold fixed on validation"
    )
    console.print(corruptions_table(scores))
    worst, clean = scores.worst(), scores.clean
    if worst:
        words = [
            f"{row.corruption.name} (BE {clean.balanced_error.value:.3f} to {row.summary.mean.value:.3f} on average, "
            f"AUROC {clean.auroc:.3f} to {row.summary.auroc:.3f})"
            for row in worst[:3]
        ]
        said = f"{len(worst)} of {len(scores.rows)} corruptions clearly raise it (interval above 0), most of all"
        console.print(f"{said} {', '.join(words)}.", soft_wrap=True)
    else:
        console.print("no corruption clearly raises it (interval above 0)")
    console.print(
        "where BE rises and AUROC does not, the ranking of the radiographs holds and only the threshold is wrong",
        soft_wrap=True,
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
    """One set per row, with the AUROC of the no-pixel predictors on it."""
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
        both = [with_interval(values.get(metric)) for metric in ("accuracy", "auroc")]
        alone = [score_cell(_value(values.get(metric))) for metric in ("sensitivity", "specificity")]
        others = [score_cell(rival.auroc) for rival in rivals if rival.part == name]
        table.add_row(name, str(len(rows)), f"{fractured:.1%}", *both, *alone, *others)
    return table


def with_interval(value: float | Interval | None) -> str:
    """A score with three decimals and its interval in brackets; empty where there is none."""
    text = score_cell(_value(value))
    if isinstance(value, Interval) and not isnan(value.low):
        text += f" [{score_cell(value.low)}, {score_cell(value.high)}]"
    return text


def _value(value: float | Interval | None) -> float | None:
    return value.value if isinstance(value, Interval) else value


def on_validation(split: SplitConfig) -> str:
    """What the metrics of a trial are of, in words."""
    if not split.cross_validate:
        return "on validation"
    return f"on validation, the mean over {split.rotations_in_words}; counts are of the first"


def say_validation(
    console: Console, prepared: Prepared, best: Mapping[str, float], operating_point: str = "accuracy"
) -> None:
    """Print the best epoch's metrics (by reported name) on 'val', and on all validation sets if there are several.

    prepared: with `Prepared.over_folds` where the metrics are means over folds.
    """
    scores = by_set(best, [name for name in prepared.sets if is_validation(name)])
    console.print(scores_table(scores["val"], prepared.baselines, "val"))
    if len(scores) > 1:
        console.print(sets_table(scores, prepared))
    console.print(
        "epoch and threshold were chosen on these radiographs, so expect less on others; Brier score and calibration "
        "error are of calibrations fitted to other groups of them",
        soft_wrap=True,
    )
    say_beaten(console, scores["val"], prepared.baselines, "val", operating_point)


def say_beaten(
    console: Console,
    scores: Mapping[str, float | Interval],
    baselines: Sequence[Baseline],
    part: str,
    operating_point: str = "accuracy",
) -> None:
    """Warn where what the threshold maximises, on `part`, is not above that of every no-pixel predictor."""
    metric = {"accuracy": "accuracy", "balanced": "balanced_accuracy"}[operating_point]
    rivals = [rival for rival in baselines if rival.part == part and not isnan(getattr(rival, metric))]
    reached = _value(scores.get(metric))
    best = max(rivals, key=lambda rival: getattr(rival, metric), default=None)
    if best is not None and reached is not None and reached <= getattr(best, metric):
        console.print(
            f"warning: the {metric.replace('_', ' ')} on {part}, {reached:.3f}, is not above "
            f"{getattr(best, metric):.3f}, that of the predictor "
            f"'{best.name}', which sees no pixel. Until it is, the model is not worth having: try model.weights="
            "imagenet (search_spaces/fracatlas.yaml has a recipe), a larger data.size, or more epochs",
            style="yellow",
            soft_wrap=True,
        )


def say_localisation(console: Console, found: Localisation | None) -> None:
    """Print how often the map points at a fracture, beside two pointers that see no pixel."""
    if found is None:
        return
    console.print(
        f"where: the map's highest cell of {found.cells} x {found.cells} touches a fracture's box in "
        f"{with_interval(found.hit)} of the {found.images} fractured radiographs with boxes; a cell of the picture at "
        f"random does in {with_interval(found.random)}, {found.usual_place} in "
        f"{with_interval(found.usual)}",
        soft_wrap=True,
    )


def say_one_class(console: Console, labels: np.ndarray) -> None:
    """Say which scores mean nothing where all labels, (n,) in {0, 1}, are equal."""
    if len(labels) and labels.min() == labels.max():
        word, undefined = (
            ("fractured", "specificity, balanced accuracy and AUROC are not defined, and average precision is always 1")
            if labels[0]
            else ("not fractured", "sensitivity, balanced accuracy, average precision and AUROC are not defined")
        )
        console.print(f"note: all of these radiographs are {word}: {undefined}", style="yellow", soft_wrap=True)


def say_calibration(console: Console, scores: Mapping[str, Interval], perfect: float) -> None:
    """Print how the calibration error compares with that of a perfect model, and what slope and intercept mean."""
    compared = ""
    if not isnan(perfect):
        within = "is within" if scores["ece"].value <= perfect else "exceeds"
        compared = (
            f"; {scores['ece'].value:.3f} {within} what a perfectly calibrated model shows on these groups "
            f"(up to {perfect:.3f} in 95% of the draws)"
        )
    console.print(
        f"the calibration error is a root mean square without the floor of the usual ECE{compared}. "
        "A slope below 1: probabilities are too extreme; an intercept below 0: they are too high on average",
        soft_wrap=True,
    )


def say_gap(
    console: Console, validation: Mapping[str, float], test: Mapping[str, Interval], out_of_fold: bool = False
) -> None:
    """Print how much better a checkpoint is on 'val', by whose metrics it was chosen, than on the test part.

    validation: by reported name; nothing is printed of what it lacks. out_of_fold: it is that of an ensemble's models
    one by one.
    """
    found = []
    for name in ("accuracy", "balanced_accuracy", "auroc", "average_precision"):
        # As they are printed, so that the difference is that of the numbers before it.
        before, now = (round(value, 3) for value in (validation.get(f"val_{name}", float("nan")), test[name].value))
        if not isnan(before - now):
            found.append(f"{HEADINGS[name]} {before:.3f} - {now:.3f} = {before - now:+.3f}")
    if found:
        console.print(
            f"gap, validation minus test: {', '.join(found)}. "
            + (
                "On validation each radiograph is judged by those models that were not trained on it, on test by "
                "the mean of all, which is mostly better: a gap below 0 is to be expected. A sensitivity far below "
                "that on validation says that the threshold does not fit the mean"
                if out_of_fold
                else "Threshold, epoch and configuration were chosen on validation, so a gap above 0 is to be expected"
            ),
            soft_wrap=True,
        )


def say_few_groups(console: Console, groups: Iterable[str], labels: Iterable[int], where: str = "") -> None:
    """Say where groups (one name per image) are too few for an interval, or for one to be relied on.

    where: which images these are, as ' in val/device'; empty where that is clear.
    """
    pairs = list(zip(groups, labels, strict=True))
    count = len({group for group, _ in pairs})
    if count < FEWEST_GROUPS:
        some = f"there is only one group{where}" if count == 1 else f"there are only {count} groups{where}"
        console.print(f"note: {some}, and an interval needs at least {FEWEST_GROUPS}: there is none", soft_wrap=True)
        return
    for label, name, scores in ((1, "fractured", "sensitivity"), (0, "other", "specificity")):
        holding = len({group for group, mine in pairs if mine == label})
        if 0 < holding < FEWEST_OF_A_CLASS:
            console.print(
                f"note: the {name} radiographs{where} are all in {holding} of {count} groups, and an interval needs at "
                f"least {FEWEST_OF_A_CLASS}: {scores} has none, nor has what depends on both classes, such as AUROC",
                soft_wrap=True,
            )
    if count < ROUGH_BELOW:
        console.print(
            f"note: only {count} groups{where}: the intervals are rough, and too narrow if a few groups are unlike all "
            "others",
            soft_wrap=True,
        )
