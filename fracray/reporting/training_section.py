"""The third section: how the trainings went, epoch by epoch."""

from collections.abc import Iterator, Sequence
from math import isfinite

from markupsafe import Markup

from fracray.reporting import parts
from fracray.reporting.charts import Axis, Plot
from fracray.reporting.cost import cost
from fracray.reporting.parts import Section, key
from fracray.reporting.subject import Subject
from fracray.search.states import State
from fracray.search.trials_table import TrialRow
from fracray.training.epochs import EpochResult

Training = tuple[str, Sequence[EpochResult]]


def training_section(subject: Subject) -> Section | None:
    """None where no epoch has finished, or none is stored."""
    trainings = list(_trainings(subject))
    if not trainings:
        return None
    metric = subject.search.metric if subject.search else subject.config.search.metrics[0]
    boxes = []
    for name, history in trainings:
        boxes += [_losses(name, history), _metric(name, history, metric)]
    boxes.append(_rates(trainings))
    body = parts.charts(boxes)
    if subject.training:
        row = TrialRow(0, {}, State.DONE, subject.training)
        body += cost(subject, [row])
    return Section(
        "training",
        "Training",
        "Loss and score over the epochs. A training loss that falls while the validation loss rises means "
        "overfitting; both "
        "high and still falling, too few epochs. Only their directions can be compared: augmentation, dropout and the "
        "class weights (train.loss) act on the training loss alone, and the validation loss is that of calibrated "
        "probabilities.",
        body,
    )


def _trainings(subject: Subject) -> Iterator[Training]:
    """The best and the median trial of a search, the winner's trainings of a refit, or the one training."""
    if subject.training:
        yield subject.name, subject.training
    if subject.search and subject.search.ranked:
        ranked = subject.search.ranked
        yield f"{ranked[0].name}, the best trial", ranked[0].history
        whole = [row for row in ranked if row.state is State.DONE]
        median = (whole or ranked)[len(whole or ranked) // 2]
        if median is not ranked[0]:
            which = "the trials that ran all epochs" if whole else "all trials, none of which ran all epochs"
            yield f"{median.name}, the median of {which}", median.history
    if subject.refit and subject.refit.found:
        winner = subject.refit.found.winner
        yield f"{winner.rows[0].name}, of the refit", winner.rows[0].history


def _losses(name: str, history: Sequence[EpochResult]) -> Markup:
    epochs = [result.epoch for result in history]
    train, val = ([result.metrics.get(key_, float("nan")) for result in history] for key_ in ("train_loss", "val_loss"))
    plot = Plot(_epochs(epochs), Axis.without_outliers("loss", [*train, *val]))
    for values, kind in ((train, "faint"), (val, "first")):
        plot.line(epochs, values, kind)
        plot.dots(epochs, values, f"{kind} small")
    known = [value for value in val if isfinite(value)]
    lowest = epochs[val.index(min(known))] if known else 0
    words = (
        key("faint", "training") + ", " + key("first", "validation") + f"; validation is lowest after epoch {lowest}."
    )
    return parts.chart(
        f"{name}: loss", plot.svg(f"Training and validation loss of {name} over {len(epochs)} epochs"), words
    )


def _metric(name: str, history: Sequence[EpochResult], metric: str) -> Markup:
    epochs = [result.epoch for result in history]
    names = list(dict.fromkeys((metric, "val_auroc")))
    each = {one: [result.metrics.get(one, float("nan")) for result in history] for one in names}
    plot = Plot(
        _epochs(epochs), Axis.without_outliers("score", [value for values in each.values() for value in values])
    )
    for one, kind in zip(names, ("first", "third"), strict=False):
        plot.line(epochs, each[one], kind)
        plot.dots(epochs, each[one], f"{kind} small")
    legend = Markup(", ").join(key(kind, one) for one, kind in zip(names, ("first", "third"), strict=False))
    return parts.chart(f"{name}: score", plot.svg(f"{' and '.join(names)} of {name} over {len(epochs)} epochs"), legend)


def _rates(trainings: Sequence[Training]) -> Markup:
    rates = [
        ([r.epoch for r in history], [r.metrics.get("lr", float("nan")) for r in history]) for _, history in trainings
    ]
    values = [value for _, line in rates for value in line if isfinite(value) and value > 0]
    if not values:
        return Markup("")
    longest = max((epochs for epochs, _ in rates), key=len)
    plot = Plot(_epochs(longest), Axis.over("learning rate", values, log=True))
    kinds = ("first", "second", "third")
    for (epochs, line), kind in zip(rates, kinds, strict=False):
        plot.line(epochs, line, kind)
        plot.dots(epochs, line, f"{kind} small")
    legend = Markup(", ").join(key(kind, name) for (name, _), kind in zip(trainings, kinds, strict=False))
    return parts.chart("Learning rate", plot.svg("Learning rate over the epochs"), legend)


def _epochs(epochs: Sequence[int]) -> Axis:
    return Axis("epoch", min(epochs) - 0.3, max(epochs) + 0.3, whole=True)
