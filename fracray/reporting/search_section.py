"""The second section: how the search went, which settings mattered, what it cost, and every trial."""

from collections import Counter
from collections.abc import Callable
from math import isfinite, isnan, nan
from typing import Any

from markupsafe import Markup

from fracray.reporting import parts
from fracray.reporting.charts import Axis, Plot
from fracray.reporting.cost import cost
from fracray.reporting.explorer import explorer
from fracray.reporting.parts import Section, key, paragraph, score
from fracray.reporting.subject import Search, Subject, state_words
from fracray.runtime.console import counted, duration, setting_cell
from fracray.search.constraints import USED_BY, verdict
from fracray.search.importance import FEWEST_TRIALS
from fracray.search.space import Choices, Dimension, Range
from fracray.search.states import State
from fracray.training.rungs import stopping_epochs

MOST_CURVES = 300  # learning curves in a chart; of more, every k-th
MOST_FAILED = 50  # failed trials that are listed
LOST = (State.FAILED, State.DIVERGED)


def search_section(subject: Subject) -> Section | None:
    """None for what is no search."""
    search = subject.search
    if search is None:
        return None
    config = search.space.config.search
    words = (
        f"{counted(len(search.space.dimensions), 'setting')} searched with {config.sampler.name} and "
        f"{config.scheduler.name}, for {'the highest' if search.mode == 'max' else 'the lowest'} "
        f"{' and '.join(search.space.metrics)}. Each point is one trained network; a trial's value is that of "
        "its best epoch."
    )
    if not search.ranked:
        body = paragraph("No trial has finished an epoch yet.") + _failed(search)
    else:
        boxes = [_history(search), _rung_chart(search)]
        if search.front:
            boxes.append(_pareto(search))
        body = (
            _counts(search)
            + _constraints(search)
            + parts.charts(boxes)
            + _rungs(search)
            + _importance(search)
            + _slices(search)
            + _failed(search)
            + cost(subject, list(search.rows.values()))
            + explorer(search)
        )
    return Section("search", "The search", words, body)


def _counts(search: Search) -> Markup:
    states = Counter(state_words(row) for row in search.rows.values())
    told = [f"{counted(len(search.rows), 'trial')} of {search.planned:,} begun"]
    told += [f"{count} {state}" for state, count in states.most_common()]
    hours = max(search.ended.values(), default=0.0)
    if hours:
        told.append(f"{duration(hours * 3600)} from the first trial to the last result")
    return paragraph(", ".join(told) + ".")


def _constraints(search: Search) -> Markup:
    config = search.space.config.search
    if not config.constraints:
        return Markup("")
    words, _ = verdict([(row.name, row.best) for row in search.ranked], config)
    unused = "" if config.sampler.name in USED_BY else f" {config.sampler.name} did not look for them."
    return paragraph(
        f"Constraints, at a trial's best epoch: {words}. A trial that breaks one is never the best where another "
        f"satisfies all; if none does, the one that comes closest is.{unused}"
    )


def _history(search: Search) -> Markup:
    metric = search.metric
    rows = sorted(search.rows.values(), key=lambda row: row.number)
    values = [row.best(metric) if row.state not in LOST else nan for row in rows]
    best, so_far, bound = nan, [], search.space.config.search
    fine = [not bound.broken(row.best) for row in rows]
    for value, eligible in zip(values, fine if any(fine) else [True] * len(rows), strict=True):
        if eligible and isfinite(value) and (isnan(best) or (value > best if search.mode == "max" else value < best)):
            best = value
        so_far.append(best)
    plot = Plot(
        Axis.over("trial", [row.number for row in rows], whole=True), Axis.without_outliers(metric, values, so_far)
    )
    for kind, states in (("faint", (State.STOPPED, State.RUNNING, State.INTERRUPTED)), ("first", (State.DONE,))):
        inside = [(row.number, value) for row, value in zip(rows, values, strict=True) if row.state in states]
        plot.dots([at for at, _ in inside], [value for _, value in inside], kind)
    plot.steps([row.number for row in rows], so_far, "second")
    words = (
        key("first", "all epochs")
        + ", "
        + key("faint", "stopped early or unfinished")
        + ", "
        + key("second", "best so far")
    )
    return parts.chart(
        "History",
        plot.svg(f"{metric} of each trial in turn; the best so far ends at {score(best, 4)}"),
        words + Markup(". Where the line has long been level, more trials of this kind will hardly help."),
    )


def _rung_chart(search: Search) -> Markup:
    metric, epochs = search.metric, search.space.config.train.epochs
    rows = [row for row in search.rows.values() if row.history]
    rows = rows[:: -(-len(rows) // MOST_CURVES)]
    best = search.best
    assert best is not None
    curves = {
        row.number: ([r.epoch for r in row.history], [r.value(metric) for r in row.history]) for row in (*rows, best)
    }
    y = Axis.without_outliers(metric, [value for _, values in curves.values() for value in values], [best.best(metric)])
    plot = Plot(Axis("epoch", 0.5, epochs + 0.5, whole=True), y)
    rungs = stopping_epochs(search.space.config)
    for rung in rungs if len(rungs) <= 12 else ():
        plot.upright(rung, "rung")
    stopped = [row for row in rows if row.state is not State.DONE]
    plot.lines([curves[row.number] for row in stopped], "faint thin")
    plot.dots([row.history[-1].epoch for row in stopped], [row.best(metric) for row in stopped], "faint small")
    plot.lines([curves[row.number] for row in rows if row.state is State.DONE], "first thin")
    plot.line(*curves[best.number], "second")
    words = key("first", "all epochs") + ", " + key("faint", "stopped") + ", " + key("second", f"best ({best.name})")
    some = (
        ""
        if len(rows) == len([row for row in search.rows.values() if row.history])
        else " A part of the trials is shown."
    )
    dotted = " Dotted: the rungs, at which the scheduler stops the worse trials." if rungs and len(rungs) <= 12 else ""
    return parts.chart(
        "Learning curves",
        plot.svg(f"{metric} at the best epoch so far, of each trial over {epochs} epochs"),
        words + f", each at its best epoch so far.{dotted}{some}",
    )


def _rungs(search: Search) -> Markup:
    """What was stopped when, for schedulers with rungs."""
    config, metric = search.space.config, search.metric
    epochs = stopping_epochs(config)
    if not epochs or not search.stopped:
        return Markup("")
    rows = []
    for epoch in (*epochs, config.train.epochs):
        reached = [row for row in search.rows.values() if len(row.history) >= epoch]
        values = sorted((row.history[epoch - 1].value(metric) for row in reached), reverse=search.mode == "max")
        values = [value for value in values if isfinite(value)]
        stopped = sum(at == epoch for at in search.stopped.values())
        when = [search.ended[number] for number, at in search.stopped.items() if at == epoch and number in search.ended]
        if stopped or len(epochs) <= 12:
            rows.append(
                (
                    f"{epoch}" if epoch < config.train.epochs else f"{epoch} (all)",
                    f"{len(reached):,}",
                    f"{stopped:,}" if epoch < config.train.epochs else "",
                    " to ".join(dict.fromkeys(duration(3600 * hours) for hours in (min(when), max(when))))
                    if when
                    else "",
                    score(values[0], 4) if values else "–",
                    score(values[len(values) // 2], 4) if values else "–",
                )
            )
    spent = sum(len(row.history) for row in search.rows.values())
    full = len(search.rows) * config.train.epochs
    headings = (
        "after epoch",
        "trials that reached it",
        "stopped there",
        "when, after the start",
        f"best {metric}",
        "median",
    )
    return (
        parts.heading("What was stopped when")
        + parts.table(headings, rows, range(1, 6), caption="What was stopped when")
        + paragraph(
            f"Early stopping trained {spent:,} epochs in the place of {full:,}. A stopped trial might have become good "
            "later: strong regularisation and augmentation gain late.",
            "soft",
        )
    )


def _importance(search: Search) -> Markup:
    words = parts.heading("Which settings mattered")
    full = sum(row.state is State.DONE for row in search.rows.values())
    if len(search.space.metrics) > 1 or len(search.space.dimensions) < 2:
        return words + paragraph("Importance is given for a search of several settings by one metric.", "soft")
    found = search.importances
    if found is None:
        few = f"{counted(full, 'trial')} ran all epochs, and at least {FEWEST_TRIALS} that differ are needed to tell."
        return words + paragraph(few, "soft")
    rows = [
        (
            each.path,
            f"{each.share:.2f}",
            f"{each.chance:.2f}",
            parts.share_picture(each.share, each.chance),
            "more than chance" if found.told_apart and each.share > each.chance else "",
        )
        for each in found.shares
    ]
    verdict = (
        "The largest share exceeds what chance alone gives."
        if found.told_apart
        else "No setting can be told from chance: where none matters, the largest share is up to "
        f"{found.strongest:.2f}."
    )
    about = (
        f"{verdict} Share of the differences between the {full} trials that ran all epochs (random forest); "
        "the line in "
        "each bar is what a setting stays below, in 95%, when the values of the trials change places at random."
    )
    table = parts.table(
        ("setting", "share", "by chance", "0 to 1", ""), rows, (1, 2), kind="importance", caption="Importance"
    )
    return words + table + paragraph(about, "soft")


def _slices(search: Search) -> Markup:
    boxes = [_slice(search, dimension) for dimension in search.space.dimensions]
    legend = (
        key("first", "all epochs") + ", " + key("faint", "stopped early or unfinished") + ", " + key("second", "best")
    )
    return (
        parts.heading("Each setting")
        + paragraph(
            legend + Markup(". Dashed: the default. A slope that is seen here may belong to another setting."), "soft"
        )
        + parts.charts(boxes)
    )


def _slice(search: Search, dimension: Dimension) -> Markup:
    metric, path = search.metric, dimension.path
    default = search.space.config.leaves().get(path)
    rows = [row for row in search.ranked if path in row.leaves]
    x, place = _axis(dimension)
    plot = Plot(
        x,
        Axis.without_outliers(metric, [row.best(metric) for row in search.ranked], [search.ranked[0].best(metric)]),
        190,
    )
    named = isinstance(dimension.values, Choices)
    if isinstance(default, int | float) and not named and x.low <= default <= x.high:
        plot.upright(float(default), "default")
    for kind, some in (
        ("faint", [row for row in rows if row.state is not State.DONE]),
        ("first", [row for row in rows if row.state is State.DONE]),
        ("second big", [row for row in rows if row is search.best]),
    ):
        # Of a setting with names, trials stand side by side.
        at = [place(row.leaves[path]) + (((row.number * 7) % 11 - 5) * 0.05 if named else 0.0) for row in some]
        plot.dots(at, [row.best(metric) for row in some], kind)
    best = search.best
    chosen = setting_cell(best.leaves[path]) if best and path in best.leaves else "not searched in the best trial"
    return Markup('<figure class="chart-box">{}<p class="soft">best: {}, default: {}</p></figure>\n').format(
        plot.svg(f"{metric} over {path}, {counted(len(rows), 'trial')}; best at {chosen}"),
        chosen,
        setting_cell(default),
    )


def _axis(dimension: Dimension) -> tuple[Axis, Callable[[Any], float]]:
    """The axis of a setting, and where on it a value is."""
    if isinstance(dimension.values, Range):
        low, high = float(dimension.values.low), float(dimension.values.high)
        return Axis.over(dimension.path, (low, high), dimension.values.log), float
    names = [str(value) for value in dimension.values.values]
    return Axis.of_names(dimension.path, names), lambda value: float(names.index(str(value)))


def _pareto(search: Search) -> Markup:
    first, second = search.space.metrics[:2]
    rows = search.ranked
    front = [row for row in rows if row.number in search.front]
    plot = Plot(
        Axis.without_outliers(first, [row.best(first) for row in rows], [row.best(first) for row in front]),
        Axis.without_outliers(second, [row.best(second) for row in rows], [row.best(second) for row in front]),
    )
    plot.dots([row.best(first) for row in rows], [row.best(second) for row in rows], "faint")
    ordered = sorted(front, key=lambda row: row.best(first))
    if len(search.space.metrics) == 2:
        plot.line([row.best(first) for row in ordered], [row.best(second) for row in ordered], "second thin")
    plot.dots([row.best(first) for row in ordered], [row.best(second) for row in ordered], "second big")
    names = ", ".join(row.name for row in sorted(front, key=lambda row: row.number))
    return parts.chart(
        "Pareto front",
        plot.svg(f"{second} over {first}; {counted(len(front), 'trial')} on the front: {names}"),
        key("second", f"on the front: {names}")
        + Markup(". No trial is better than these in all metrics at once; which one to take is a choice."),
    )


def _failed(search: Search) -> Markup:
    lost = [row for row in search.rows.values() if row.state in LOST]
    if not lost:
        return Markup("")
    rows = [
        (
            row.name,
            str(row.state),
            f"{len(row.history)}",
            search.reasons.get(
                row.number, "the loss became infinite or NaN" if row.state is State.DIVERGED else "not told"
            ),
            ", ".join(f"{path}={setting_cell(value)}" for path, value in row.leaves.items()),
        )
        for row in lost[:MOST_FAILED]
    ]
    more = f" The first {MOST_FAILED} are listed." if len(lost) > MOST_FAILED else ""
    words = f"{counted(len(lost), 'trial')} without a result"
    return (
        parts.heading(words)
        + parts.table(("trial", "", "epochs", "why", "settings"), rows, (2,), kind="failed", caption=words)
        + paragraph(f"Trials that diverge mark where the space is too wide.{more}", "soft")
    )
