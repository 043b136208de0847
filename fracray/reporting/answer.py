"""The first section: what was found, how much better it is than the default, and what to think of it."""

from collections.abc import Iterator, Mapping
from math import isnan, nan
from typing import Any

from markupsafe import Markup

from fracray.config import PHANTOM, Config, SearchConfig
from fracray.data.baselines import Baseline
from fracray.data.prepare import PHANTOM_NOTICE
from fracray.data.splits.set_names import is_validation
from fracray.evaluation.report import HEADINGS, say_beaten, say_calibration, say_few_groups
from fracray.metric_names import lower_is_better
from fracray.metrics import CalibrationError, Interval
from fracray.reporting import parts
from fracray.reporting.parts import Section, paragraph, said, score, with_interval
from fracray.reporting.subject import Refit, Search, Subject, Validation
from fracray.runtime.console import counted, setting_cell
from fracray.search.constraints import standing, verdict
from fracray.search.refit_report import BESIDE, default_wins, spread
from fracray.search.results import OVER_DEFAULT, gain_words

BARS = ("accuracy", "balanced_accuracy", "auroc", "average_precision", "sensitivity", "specificity", "f1")  # 0 to 1


def answer(subject: Subject) -> Section:
    """The best configuration, its gain, its scores beside the predictors without pixels, and the warnings."""
    body = [paragraph(words, "lead") for words in _lead(subject)]
    body.append(parts.warnings(_warnings(subject)))
    if subject.search and subject.search.best:
        body.append(_gains(subject.search, subject.refit))
    if subject.refit and subject.refit.found:
        body.append(_refitted(subject.refit, subject.search))
    settings = _settings(subject)
    if settings:
        body.append(settings)
    if subject.judged and subject.judged.validation:
        body.append(_scores(subject, subject.judged.validation))
    return Section(
        "answer",
        "The answer",
        "What was found, and how far it can be trusted. All scores are on validation, by which choices were made: "
        "they are too high. The test part, scored once with evaluate, is the judge.",
        Markup("").join(body),
    )


def _lead(subject: Subject) -> Iterator[str]:
    search, refit, judged = subject.search, subject.refit, subject.judged
    if search:
        yield from _lead_of_search(search)
        if refit and refit.found:
            yield _lead_of_refit(refit, search.space.config.search)
    elif subject.training:
        reached = subject.training[-1]
        yield (
            f"{subject.config.model.name}, trained for {len(subject.training)} of "
            f"{counted(subject.config.train.epochs, 'epoch')}: validation accuracy "
            f"{score(reached.value('val_accuracy'))}, AUROC {score(reached.value('val_auroc'))} at the best epoch"
            f"{_mean_over(subject.config)}."
        )
    elif subject.run:
        yield "No epoch has finished yet."
    if judged and judged.members:
        yield (
            f"The checkpoint is an ensemble, the mean logit of {counted(len(judged.members), 'model')}: "
            f"{', '.join(judged.members)}."
        )
        if search and search.space.config.search.constraints:
            metrics = judged.card.metrics
            told = ", scored out of fold" if judged.card.out_of_fold else ""
            yield f"It {standing(lambda name: metrics.get(name, nan), search.space.config.search)}{told}."
    elif judged and not subject.run:
        card = judged.card
        yield f"{card.trial or 'A checkpoint'} of {card.config.model.name}, at epoch {card.epoch}."


def _mean_over(config: Config) -> str:
    split = config.data.split
    return f", the mean over {split.rotations_in_words}" if split.cross_validate else ""


def _lead_of_search(search: Search) -> Iterator[str]:
    best, metric, config = search.best, search.metric, search.space.config.search
    ended = sum(row.state.finished for row in search.rows.values())
    if not search.finished:
        yield (
            f"The search is not finished: {sum(row.state.ended for row in search.rows.values())} of "
            f"{counted(search.planned, 'trial')} have ended. This is what is there so far."
        )
    if best is None:
        yield "No trial has finished an epoch yet."
        return
    reached = f"{metric} {best.best(metric):.4f} at its best epoch{_mean_over(search.space.config)}"
    of = (
        f"the best of {counted(ended, 'finished trial')}"
        if best.state.finished
        else "the best so far, and not finished"
    )
    if best.number == 0:
        yield f"The default configuration was not beaten: {best.name} is {of}, {reached}."
    else:
        yield f"{best.name} is {of}: {reached}."
    if config.broken(best.best):
        yield f"It breaks a constraint: {verdict([(row.name, row.best) for row in search.ranked], config)[0]}."


def _lead_of_refit(refit: Refit, config: SearchConfig) -> str:
    found, metric = refit.found, config.metrics[0]
    assert found is not None
    seeds = f"trained again with {found.seeds_in_words}"
    if found.winner is found.default:
        why = default_wins(found, config)
        return f"{seeds[0].upper()}{seeds[1:]}, the default configuration {why}: it was not beaten."
    return f"{seeds[0].upper()}{seeds[1:]}, {found.winner.name} wins by mean {metric}: {spread(found.winner, metric)}."


def _warnings(subject: Subject) -> Iterator[str]:
    """What the commands print beside the scores."""
    if subject.config.data.source == PHANTOM:
        yield PHANTOM_NOTICE.partition(". ")[0] + ". A score on them says nothing about radiographs."
    found = subject.judged.validation if subject.judged else None
    if found:
        point = subject.config.train.operating_point
        yield from said(say_beaten, found.scores, subject.baselines, "val", point)
        yield from said(say_few_groups, found.groups, found.labels)
    elif subject.judged:
        yield "This checkpoint was saved without its predictions on validation, so nothing can be drawn of them."
    if subject.search and subject.search.gains and not (subject.refit and subject.refit.found):
        yield (
            "The best of many validation scores is optimistic, and each configuration was trained once: another "
            "training seed may change more than the gain. Refit the search (python -m fracray.refit) to know."
        )


def _gains(search: Search, refit: Refit | None) -> Markup:
    """The gains, each with its interval as a picture around no gain at all."""
    shown: list[tuple[str, Mapping[str, Interval]]] = [("in the search", search.gains)]
    if refit and refit.found:
        shown.append((f"mean of {counted(len(refit.found.seeds), 'seed')}", refit.gains))
    rows = []
    for where, gains in shown:
        for name, gain in gains.items():
            sign = -1.0 if lower_is_better(name) else 1.0
            ends = sorted((sign * gain.low, sign * gain.high))
            turned = Interval(sign * gain.value, *ends)
            known = [abs(end) for end in (turned.value, *ends) if not isnan(end)]
            reach = max(0.05, *known) * 1.1
            rows.append((where, gain_words(name, gain), parts.interval_picture(turned, -reach, reach, 0.0)))
    if not rows:
        return Markup("")
    words = OVER_DEFAULT[0].upper() + OVER_DEFAULT[1:]
    both = any(not isnan(gain.low) for _, gains in shown for gain in gains.values())
    said_ = (
        "In brackets, the 95% interval over groups of radiographs; where it holds the dotted line, no gain, "
        "the gain may be "
        "chance. That of one training knows nothing of other training seeds."
        if both
        else "There is no interval: too few groups, or the predictions that it needs were not kept."
    )
    return (
        parts.heading(words)
        + parts.table(("trained", "gain", ""), rows, kind="gains", caption=words)
        + paragraph(said_, "soft")
    )


def _refitted(refit: Refit, search: Search | None) -> Markup:
    found = refit.found
    assert found is not None
    assert search is not None
    metric = search.metric
    shown = tuple(dict.fromkeys((metric, *search.space.config.search.constraints, *BESIDE)))
    rows = []
    for one in found.ranked:
        before = search.rows[one.number].best(metric) if one.number in search.rows else float("nan")
        name = f"{one.name} (default)" if one.number == 0 else one.name
        rows.append((name, *(spread(one, each) for each in shown), score(before, 4)))
    rows += [(name, reason, *("" for _ in shown)) for name, reason in found.lost.items()]
    folds = ", each the mean over the folds" if refit.plan.folds else ""
    words = f"Trained again with {counted(len(found.seeds), 'seed')}{folds}: mean ± standard deviation"
    headings = ("configuration", *shown, f"in the search: {metric}")
    return parts.heading(words) + parts.table(headings, rows, range(1, len(headings)), caption=words)


def _settings(subject: Subject) -> Markup:
    """The searched settings, or what of a training differs from the defaults."""
    if subject.search:
        refitted = subject.refit.found if subject.refit else None
        best = refitted.winner if refitted else subject.search.best
        if best is None:
            return Markup("")
        defaults = subject.search.space.config.leaves()
        paths = [one.path for one in subject.search.space.dimensions]
        chosen: Mapping[str, Any] = {path: best.leaves.get(path) for path in paths if path in best.leaves}
        if not best.leaves:
            chosen = {path: defaults[path] for path in paths}
        words = f"Best configuration ({best.name})"
    else:
        config = subject.judged.card.config if subject.judged else subject.config
        defaults, leaves = Config().leaves(), config.leaves()
        chosen = {path: value for path, value in leaves.items() if value != defaults.get(path)}
        chosen = {
            path: value
            for path, value in chosen.items()
            if not path.startswith(("search.", "data.source", "data.cache"))
        }
        words = "Settings that differ from the defaults"
    if not chosen:
        return parts.heading(words) + paragraph("None: all settings are the defaults.")
    rows = [
        (path, setting_cell(value), setting_cell(defaults.get(path)), "changed" if value != defaults.get(path) else "")
        for path, value in chosen.items()
    ]
    return parts.heading(words) + parts.table(
        ("setting", "here", "default", ""), rows, (1, 2), kind="settings", caption=words
    )


def _scores(subject: Subject, found: Validation) -> Markup:
    rivals = [one for one in subject.baselines if one.part == "val"]
    rows = []
    for name, words in HEADINGS.items():
        value = found.scores.get(name)
        if value is None:
            continue
        others = [getattr(rival, name, None) for rival in rivals]
        best = max((one for one in others if one is not None and not isnan(one)), default=None)
        picture = parts.interval_picture(value, 0.0, 1.0, best) if name in BARS else Markup("")
        unknown = name == "calibration_slope" and isnan(value.value)
        rows.append((words, "not determined" if unknown else with_interval(value), picture, *map(score, others)))
    headings = ("score", "model [95% interval]", "0 to 1", *(f"no pixel: {rival.name}" for rival in rivals))
    images, groups = counted(len(found.labels), "radiograph"), counted(len(set(found.groups)), "group")
    words = f"On validation{found.card.of_fold}: {images} in {groups}"
    perfect = CalibrationError(found.labels, found.cross_fitted, found.groups).perfect()
    dotted = (
        "The dotted line is the best predictor that sees no pixel; a model near it has learned nothing from "
        "radiographs. "
        if rivals
        else "What predictors without pixels reach is not stored with this checkpoint. "
    )
    threshold = f"The decision threshold is {found.card.threshold:.3f}, fixed on validation. "
    if found.card.out_of_fold:
        threshold += (
            "Each radiograph is judged by the models that were not trained on it. The mean of all of them, which the "
            "ensemble gives, spreads less: its probabilities are nearer to the prevalence, the more the models differ. "
        )
    about = " ".join(line[0].upper() + line[1:] + "." for line in said(say_calibration, found.scores, perfect))
    table = parts.table(headings, rows, (1, *range(3, len(headings))), kind="scores", caption=words)
    return parts.heading(words) + table + paragraph(dotted + threshold + about, "soft") + _other_sets(subject)


def _other_sets(subject: Subject) -> Markup:
    """The held-out validation sets, where there are several."""
    assert subject.judged is not None
    metrics = subject.judged.card.metrics
    names = [name for name in (subject.data or {}).get("parts", {}) if is_validation(name)]
    if len(names) < 2:
        return Markup("")
    rivals = {(one.part, one.name): one for one in subject.baselines if one.name != "majority"}
    others = list(dict.fromkeys(name for _, name in rivals))
    rows = [
        (
            name,
            *(score(metrics.get(f"{name}_{each}")) for each in ("accuracy", "auroc", "sensitivity", "specificity")),
            *(score(_auroc(rivals.get((name, other)))) for other in others),
        )
        for name in names
    ]
    of_fold = ", of one fold's model" if subject.judged.card.config.data.split.cross_validate else ""
    headings = (
        f"set{of_fold}",
        "accuracy",
        "AUROC",
        "sensitivity",
        "specificity",
        *(f"AUROC, no pixel: {one}" for one in others),
    )
    words = "Validation sets that are meant to be different"
    return parts.heading(words) + parts.table(headings, rows, range(1, len(headings)), caption=words)


def _auroc(one: Baseline | None) -> float | None:
    return None if one is None else one.auroc
