"""What evaluate's flags print: subgroups, operating points, the decision curve, where a map looks, two checkpoints.

Each table stands under a sentence that says what it shows and above one that says how to read it.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from math import isnan

from rich.console import Console

from fracray.evaluation.comparison import Comparison
from fracray.evaluation.maps import WORDS
from fracray.evaluation.operating import Operating
from fracray.evaluation.report import HEADINGS, with_interval
from fracray.evaluation.saliency import Looked, Saliency, Sanity
from fracray.evaluation.subgroups import FEWEST, Subgroup
from fracray.metrics import Interval
from fracray.runtime.console import counted, new_table, score_cell

CURVE_AT = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)  # threshold probabilities that are printed; the JSON has all
POINTERS = {"map": "the map", "random": "random\nplace", "centre": "the\ncentre", "usual": "usual\nplace"}
PASSED = 0.3  # a rank correlation below this is called little alike


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(text, soft_wrap=True, style=style)


def say_subgroups(console: Console, found: Sequence[Subgroup], overall: Mapping[str, Interval]) -> None:
    """Print a table of each axis' subgroups, and those that are clearly below all radiographs."""
    _say(
        console,
        "\nsubgroups, at the same threshold and calibration; each score with its 95% interval over groups in brackets",
    )
    table = new_table()
    table.add_column("", no_wrap=True)
    table.add_column("subgroup")
    scores = ("AUROC", "sensitivity", "specificity", "balanced\naccuracy", "calibration\nintercept")
    for heading in ("fract.", "not\nfract.", *scores):
        table.add_column(heading, justify="right", no_wrap=True)
    shown = ("auroc", "sensitivity", "specificity", "balanced_accuracy", "calibration_intercept")
    for axis, members in groupby(found, key=lambda one: one.axis):
        for at, one in enumerate(members):
            name = one.name
            cells = [_stacked(one.scores.get(score)) for score in shown]
            if one.suppressed:
                cells = ["too few", *[""] * (len(shown) - 1)]
            table.add_row("" if at else axis, name, str(one.positives), str(one.negatives), *cells)
        table.add_section()
    console.print(table)
    if any(one.suppressed for one in found):
        _say(console, f"too few: fewer than {FEWEST} radiographs of a class, whose scores would say next to nothing")
    _say(
        console,
        "calibration intercept: 0 is right; below 0 the probabilities are too high in this subgroup, above 0 too low",
    )
    if any(one.axis in ("region", "view") for one in found):
        _say(console, "a radiograph with several regions or views counts in each of them")
    if any(one.axis == "box" for one in found):
        _say(
            console,
            "box: the area of the fracture's boxes as a share of the picture; AUROC is against all radiographs "
            "without a fracture, which have no size, so specificity and what depends on it have no value",
        )
    below = [one for one in found if _clearly_below(one.scores.get("auroc"), overall.get("auroc"))]
    if below:
        names = ", ".join(f"{one.axis} {one.name} ({one.scores['auroc'].value:.3f})" for one in below)
        _say(
            console,
            f"the interval of the AUROC lies below the AUROC of all radiographs, {overall['auroc'].value:.3f}, in: "
            f"{names}. Of many subgroups, some do so by chance",
        )


def _clearly_below(one: Interval | None, overall: Interval | None) -> bool:
    return one is not None and overall is not None and one.high < overall.value


def _stacked(value: Interval | None, decimals: int = 2) -> str:
    """The score, and its interval in a line below."""
    if value is None or isnan(value.value):
        return ""
    ends = "" if isnan(value.low) else f"\n[{value.low:.{decimals}f}, {value.high:.{decimals}f}]"
    return f"{value.value:.3f}{ends}"


def say_operating_points(console: Console, found: Operating, validated_here: bool) -> None:
    """Print what each operating point reached on validation, and reaches here."""
    prevalence = f"{found.prevalence:.1%}"
    _say(
        console,
        "\noperating points: thresholds fixed on validation, and what they reach on these radiographs, with 95% "
        "intervals over groups",
    )
    table = new_table()
    table.add_column("threshold fixed on validation for", max_width=34)
    table.add_column("threshold", justify="right")
    table.add_column("there:\nsens., spec.", justify="right", no_wrap=True)
    for heading in ("here:\nsensitivity", "\nspecificity", f"\nPPV at {prevalence}", f"\nNPV at {prevalence}"):
        table.add_column(heading, justify="right", no_wrap=True)
    for point in found.points:
        thresholds = [f"{each:.3f}" for each in point.thresholds]
        there = ", ".join(f"{point.on_validation[name]:.2f}" for name in ("sensitivity", "specificity"))
        here = [_stacked(point.reached[name]) for name in ("sensitivity", "specificity", "ppv", "npv")]
        table.add_row(point.words, "\n".join(thresholds), there, *here)
    console.print(table)
    source = (
        "the prevalence that was given"
        if found.given
        else "the share of fractured radiographs in this set, which is no clinic's: give yours with --prevalence"
    )
    _say(
        console,
        f"PPV, NPV: of the radiographs called fractured, or not, the share that is, at a prevalence of {prevalence}, "
        f"{source}. A target that is met on validation may be missed here, as that is another sample",
    )
    if validated_here:
        _say(
            console,
            "note: these radiographs are the validation set itself, so its thresholds look better than on new ones",
            style="yellow",
        )


def say_decision_curve(console: Console, found: Operating) -> None:
    """Print the net benefit at some threshold probabilities, and where the model is worth more than no model."""
    curve = found.curve
    _say(
        console,
        "\ndecision curve: net benefit, in correctly treated fractures per 100 radiographs, of treating those that the "
        "model calls fractured at a threshold probability",
    )
    table = new_table()
    table.add_column("threshold\nprobability", justify="right")
    for heading in ("a missed fracture\nis as bad as", "the model", "treat all", "treat\nnone"):
        table.add_column(heading, justify="right")
    table.add_column("model, less the better\nof all and none", justify="right")
    for wanted in CURVE_AT:
        at = curve.thresholds.index(wanted)
        alarms = (1 - wanted) / wanted
        worth = f"{alarms:.3g} false {'alarm' if round(alarms, 2) == 1 else 'alarms'}"
        table.add_row(
            f"{wanted:.0%}",
            worth,
            *(_hundred(each) for each in (curve.model[at], curve.all[at])),
            "0",
            _gain(curve.gain[at]),
        )
    console.print(table)
    useful = [t for t, gain in zip(curve.thresholds, curve.gain, strict=True) if gain.low > 0]
    where = f"at a threshold probability of {_ranges(useful)}" if useful else "at no threshold probability"
    clearly = f"the model is clearly worth more than treating all or none (interval above 0) {where}"
    if all(isnan(gain.low) for gain in curve.gain):
        clearly = "the groups are too few for intervals, so it cannot be said where the model is clearly worth more"
    moved = (
        ". Its probabilities are moved from the prevalence of validation to that (their odds are multiplied)"
        if found.given
        else ""
    )
    _say(
        console,
        f"{clearly}, at a prevalence of {found.prevalence:.1%}{moved}. Choose the row by how many false alarms you "
        "would accept to find one fracture more",
    )


def _hundred(value: Interval) -> str:
    return "" if isnan(value.value) else f"{round(100 * value.value, 1) + 0.0:.1f}"  # no -0.0


def _gain(value: Interval) -> str:
    if isnan(value.value):
        return ""
    ends = "" if isnan(value.low) else f" [{100 * value.low:+.1f}, {100 * value.high:+.1f}]"
    return f"{round(100 * value.value, 1) + 0.0:+.1f}{ends}"


def _ranges(thresholds: Sequence[float]) -> str:
    """'5% to 12%, 20%' of threshold probabilities in steps of a hundredth."""
    steps = [round(100 * each) for each in thresholds]
    runs: list[list[int]] = []
    for step in steps:
        if runs and step == runs[-1][-1] + 1:
            runs[-1].append(step)
        else:
            runs.append([step])
    return ", ".join(f"{run[0]}%" + (f" to {run[-1]}%" if len(run) > 1 else "") for run in runs)


def say_saliency(console: Console, found: Sequence[Saliency]) -> None:
    """Print of each map where it looks, beside pointers that see no pixel, and the sanity check."""
    for one in found:
        _say(console, f"\nwhere it looks: {WORDS[one.method]}, {one.cells} x {one.cells} cells")
        if one.looked:
            _say_looked(console, one.looked, one.usual_place)
        else:
            _say(console, "none of these fractured radiographs has a box, so there are no hits to count")
        _say_sanity(console, one)


def _say_looked(console: Console, looked: Sequence[Looked], usual_place: str) -> None:
    table = new_table("fractured radiographs")
    table.add_column("images", justify="right")
    for measure in ("hit", "energy"):
        for name, heading in POINTERS.items():
            first = f"{measure} of\n" if name == "map" else ""
            table.add_column(first + heading, justify="right", no_wrap=True)
    for one in looked:
        cells = []
        for measure in ("hit", "energy"):
            for name in POINTERS:
                value = getattr(one.pointers[name], measure) if one.pointers else None
                shown = _stacked(value, 3 if measure == "energy" else 2)
                cells.append(shown if name == "map" else score_cell(value.value if value else None))
        if not one.pointers:
            cells[0] = "too few"
        table.add_row(one.name, str(one.images), *cells)
    console.print(table)
    everything = looked[0]
    _say(
        console,
        "hit: the highest cell touches a fracture's box. energy: the share of the map's sum that lies inside the "
        "boxes. Beside the map, with no look at the picture: a cell at random, the centre of the picture, and the "
        f"usual place, which is {usual_place}",
    )
    if everything.pointers:
        _say(console, beside_the_usual_place(everything.hit_gain))


def beside_the_usual_place(gain: Interval) -> str:
    """What a map hits more than the usual place, as a sentence."""
    return (
        f"hits, the map less the usual place: {gain.value:+.3f}"
        + ("" if isnan(gain.low) else f" [{gain.low:+.3f}, {gain.high:+.3f}]")
        + (": the map clearly knows more than the usual place" if gain.low > 0 else "")
        + (": not clearly more than the usual place" if gain.low <= 0 <= gain.high else "")
        + (": clearly less than the usual place" if gain.high < 0 else "")
    )


def _say_sanity(console: Console, one: Saliency) -> None:
    sanity = one.sanity
    if not sanity.images:
        _say(console, verdict_of_check(sanity))
        return
    table = new_table("weights drawn at random (from the head down)")
    table.add_column("likeness to the trained network's map", justify="right")
    for name, value in sanity.levels.items():
        table.add_row(name, with_interval(value))
    table.add_section()
    table.add_row("none, but the map of another radiograph", with_interval(sanity.others))
    console.print(table)
    _say(console, verdict_of_check(sanity))


def verdict_of_check(sanity: Sanity) -> str:
    """What the sanity check says of a map, as a sentence."""
    if not sanity.images:
        return "the map is the same everywhere in every radiograph: it points at nothing, and cannot be checked"
    head, last = (round([*sanity.levels.values()][at].value, 2) + 0.0 for at in (0, -1))
    verdict = (
        "the map depends on what was learned"
        if max(abs(head), abs(last)) < PASSED
        else "the map shows much that the training did not put there: do not read it as the reason of a call"
    )
    empty = f", without {sanity.empty} whose map is the same everywhere" if sanity.empty else ""
    alike = (
        ". The maps of two radiographs are much alike, so it depends little on the picture"
        if sanity.others.value > 1 - PASSED
        else ""
    )
    return (
        f"sanity check on {counted(sanity.images, 'radiograph')}{empty} (Adebayo et al. 2018): the rank "
        f"correlation of the cells is 1 for the same map and 0 for an unrelated one. With a random head it is "
        f"{head:.2f}, with all weights random {last:.2f}: {verdict}{alike}"
    )


def say_comparison(console: Console, found: Comparison) -> None:
    """Print both models' scores, their differences, and DeLong's test beside them."""
    _say(
        console,
        f"\nagainst {found.location}, on the same {counted(found.images, 'radiograph')} in "
        f"{counted(found.groups, 'group')}, each at its own threshold:",
    )
    table = new_table("metric")
    for heading in ("this model", "the other", "difference", "95% interval over groups"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for name, one in found.metrics.items():
        gain = one.difference
        better = "lower is better" if name == "brier" else ""
        ends = "" if isnan(gain.low) else f"[{gain.low:+.3f}, {gain.high:+.3f}]"
        change = "" if isnan(gain.value) else f"{gain.value:+.3f}"
        table.add_row(HEADINGS[name], score_cell(one.ours), score_cell(one.theirs), change, ends, better)
    console.print(table)
    check = found.check
    if not isnan(check.p):
        _say(
            console,
            f"DeLong's test of the AUROC, as a check: {check.difference:+.3f} [{check.low:+.3f}, {check.high:+.3f}], "
            f"p = {check.p:.2g}. It takes every radiograph as independent, so where those of a group are alike it "
            "finds differences too easily; the intervals above do not",
        )
    _say(
        console,
        "an interval without 0 is a difference that other groups of radiographs would show too; another seed of either "
        "training could still change it (python -m fracray.refit trains several)",
    )
