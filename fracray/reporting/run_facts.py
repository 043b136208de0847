"""What a run knows of itself in sentences, for the model card and the reporting checklists. Must not know of either."""

from collections.abc import Iterator, Mapping
from math import isnan
from typing import Any

from fracray.config import PHANTOM
from fracray.data.manifest import REASONS
from fracray.data.splits.set_names import is_validation
from fracray.evaluation.report import HEADINGS
from fracray.metrics.curves import confusion
from fracray.reporting.parts import score, with_interval
from fracray.reporting.subject import Subject
from fracray.runtime.console import counted, setting_cell
from fracray.search.results import gain_words

MAIN = ("auroc", "accuracy", "sensitivity", "specificity", "average_precision", "brier", "ece")


# Settings that do nothing unless another one is set; those that are told in words of their own, or change how fast a
# training runs and how it is kept, and not the model; and those for which 0 is not off.
_NEEDED = {"train.focal_gamma": ("train.loss", "focal"), "train.box_weight": ("model.localise", True)}
_TOLD_OR_OF_THE_MACHINE = {
    f"train.{name}" for name in ("epochs", "threads", "graphs", "keep_seconds", "channels_last", "compile")
}
_ZERO_COUNTS = ("train.seed", "train.focal_gamma", "augment.stretch")


def run_facts(subject: Subject, pictures: bool) -> dict[str, str]:
    """Sentences by what they are about; without what this run does not know.

    pictures: whether the radiographs are at hand, and so whether the report has maps and shows the errors.
    """
    sources = (_of_data, _of_partitions, _of_model, _of_training, _of_results)
    facts = dict(pair for source in sources for pair in source(subject))
    return facts | dict(_of_pictures(subject, pictures))


def _of_data(subject: Subject) -> Iterator[tuple[str, str]]:
    summary, config = subject.data, subject.judged.card.config.data if subject.judged else subject.config.data
    crop = "cropped to the part that holds the anatomy (found by fracray, data.crop), " * config.crop
    yield (
        "preprocessing",
        f"Decoded to 8-bit gray, turned upright by EXIF, {crop}letterboxed to {config.size} x {config.size} pixels; "
        "normalised inside the network.",
    )
    strengths = _settings(subject, "augment.")
    yield (
        "augmentation",
        f"Training images are augmented: {strengths}." if strengths else "Training images are not augmented.",
    )
    if summary is None:
        return
    origin = "synthetic phantoms drawn by fracray" if config.source == PHANTOM else summary["origin"]
    yield "sources", f"{origin}. Licence: {summary['licence']}. Fingerprint (sha256): {summary['fingerprint']}."
    flow = summary["flow"]
    lost = [f"{flow[name]:,} {name} ({why})" for name, why in REASONS.items() if flow.get(name)]
    yield (
        "included",
        f"{flow['found']:,} images found, {flow['used']:,} used, {flow.get('in_parts', flow['used']):,} in parts. "
        f"Left out: {'; '.join(lost) or 'none'}.",
    )
    yield "exclusion", f"Left out by the audit: {'; '.join(lost) or 'none'}. All other images are used."
    yield (
        "missing",
        (
            "Images without a label or a readable file are left out and counted. Tags that are missing stay "
            "unknown and are "
            "not imputed; the network sees the picture alone."
        ),
    )
    known = summary["patients"]
    yield "patients", f"{counted(known['patients'], 'patient')} known, of {known['named']:,} images."
    if summary["prevalence"]:
        axes = (f"By {axis}, {_cells(some)}" for axis, some in summary["prevalence"].items())
        yield "characteristics", f"Of all used images. {'. '.join(axes)}. Per part: {_parts(summary)}."


def _cells(cells: Mapping[str, Mapping[str, int]]) -> str:
    return ", ".join(
        f"{name or 'unknown'}: {cell['images']:,} ({cell['fractured']:,} fractured)" for name, cell in cells.items()
    )


def _parts(summary: Mapping[str, Any]) -> str:
    return "; ".join(
        f"{name} {part['images']:,} images, {part['fractured']:,} fractured, {counted(part['groups'], 'group')}"
        for name, part in summary["parts"].items()
    )


def _of_partitions(subject: Subject) -> Iterator[tuple[str, str]]:
    split = subject.config.data.split
    kind = "read from a file" if split.file else f"protocol '{split.protocol}', seed {split.seed}"
    sizes = f" {_parts(subject.data)}." if subject.data else ""
    notes = f" {'. '.join(subject.data['split'])}." if subject.data and subject.data["split"] else ""
    yield "partition", f"Assigned by fracray, {kind}.{sizes}{notes}"
    if split.protocol == "random" and not split.file:
        yield "level", "Single images: groups may be in two parts, so scores are optimistic."
    else:
        divided = subject.data["straddling"] if subject.data else 0
        yield (
            "level",
            "Groups of images: patients and studies where they are known, duplicates and near duplicates, "
            "blocks of neighbouring "
            f"file numbers. Groups in two parts: {divided}.",
        )
    if subject.data:
        yield "sample", f"Not calculated beforehand: all usable images. {_parts(subject.data)}."


def _of_model(subject: Subject) -> Iterator[tuple[str, str]]:
    config, judged = subject.judged.card.config if subject.judged else subject.config, subject.judged
    model = config.model
    members = (
        f" An ensemble: the mean logit of {counted(len(judged.members), 'network')}."
        if judged and judged.members
        else ""
    )
    head = " A second head gives a coarse map of where the fracture is." if model.localise else ""
    yield (
        "model",
        f"{model.name}, a convolutional or other image network of one output, the logit of 'fractured'; input "
        f"{config.data.size} x {config.data.size} gray; dropout {setting_cell(model.dropout)}.{head}{members}",
    )
    yield "initialisation", f"{model.weights} weights" if model.weights else "Random, by the training seed."
    if judged and judged.members:
        yield (
            "ensemble",
            f"Mean logit of {', '.join(judged.members)}, calibrated anew on validation{judged.card.of_fold}.",
        )
    elif judged:
        yield "ensemble", "None: one network."
    versions = {**(subject.environment or {}).get("packages", {}), **(judged.card.versions if judged else {})}
    if versions:
        yield "software", ", ".join(f"{name} {version}" for name, version in versions.items())
    if judged:
        temperature, bias = judged.card.calibration.temperature, judged.card.calibration.bias
        added = f"{'-' if bias < 0 else '+'} {abs(bias):.3f}"
        yield (
            "output",
            f"A probability of a fracture, 0 to 1: sigmoid(logit / {temperature:.3f} {added}), fitted on "
            f"validation{judged.card.of_fold}. Called "
            f"fractured from {judged.card.threshold:.3f} on, which maximises {config.train.operating_point} there.",
        )


def _of_training(subject: Subject) -> Iterator[tuple[str, str]]:
    config, search = subject.judged.card.config if subject.judged else subject.config, subject.search
    yield "training", f"Up to {counted(config.train.epochs, 'epoch')}; {_settings(subject, 'train.')}."
    balance = config.train.balance
    epoch = (
        f"the images of an epoch go {balance:.0%} of the way towards half of each class, those of the rarer class "
        "several times"
        if balance
        else "images are not resampled"
    )
    yield "imbalance", f"Loss: {config.train.loss}. Probabilities are recalibrated on validation; {epoch}."
    if search is None:
        yield "selection", "The epoch with the best validation metric. No search of settings."
        return
    settings = search.space.config.search
    again = ""
    if subject.refit and subject.refit.found:
        winner = subject.refit.found.winner.name
        again = f" The best were trained again with {subject.refit.found.seeds_in_words}, and {winner} wins by mean."
    yield (
        "selection",
        f"{counted(len(search.rows), 'trial')} over {', '.join(one.path for one in search.space.dimensions)} with "
        f"{settings.sampler.name} and {settings.scheduler.name}, by {' and '.join(search.space.metrics)} on "
        "validation; the "
        f"default configuration was the first trial.{again} The test part was not used.",
    )


def _settings(subject: Subject, start: str) -> str:
    """The settings that had an effect, as 'flip 0.5, rotate 10'."""
    leaves = (subject.judged.card.config if subject.judged else subject.config).leaves()
    chosen = {
        path.removeprefix(start): value
        for path, value in leaves.items()
        if path.startswith(start) and path not in _TOLD_OR_OF_THE_MACHINE and _has_effect(path, value, leaves)
    }
    return ", ".join(f"{name} {setting_cell(value)}" for name, value in chosen.items())


def _has_effect(path: str, value: Any, leaves: Mapping[str, Any]) -> bool:
    if path == "train.grow_at":
        return leaves["train.first_size"] is not None
    if path in _NEEDED:
        other, wanted = _NEEDED[path]
        if leaves[other] != wanted:
            return False
    return value not in (None, {}, []) and (bool(value) or path in _ZERO_COUNTS)


def _of_results(subject: Subject) -> Iterator[tuple[str, str]]:
    yield "metrics", f"{', '.join(HEADINGS[name] for name in MAIN)}; beside them those of predictors that see no pixel."
    yield (
        "uncertainty",
        (
            "95% intervals over groups of images (t-intervals of a jackknife over groups), not over single "
            "images; of gains over "
            "seeds, also over training seeds."
        ),
    )
    found = subject.judged.validation if subject.judged else None
    if found is None:
        return
    scores = [
        f"{HEADINGS[name]} {with_interval(found.scores[name])}" for name in MAIN if not isnan(found.scores[name].value)
    ]
    of_fold = found.card.of_fold
    yield (
        "performance",
        f"On validation{of_fold} ({len(found.labels):,} images), by which choices were made: {', '.join(scores)}.",
    )
    rivals = [
        f"{one.name} accuracy {one.accuracy:.3f}" + ("" if isnan(one.auroc) else f", AUROC {one.auroc:.3f}")
        for one in subject.baselines
        if one.part == "val"
    ]
    if rivals:
        yield "rivals", f"Predictors without pixels on validation: {'; '.join(rivals)}."
    if (told := _robustness(subject)) is not None:
        yield "robustness", told
    compared = subject.refit if subject.refit and subject.refit.found else subject.search
    gains = compared.gains if compared else {}
    if gains:
        yield "gain", "; ".join(gain_words(name, gain) for name, gain in gains.items())
    few = len(set(found.groups))
    yield (
        "limitations",
        f"Scores are on validation, in {counted(few, 'group')}; scores on the test part and on other sites "
        "are separate steps. "
        "Labels were taken as given."
        + (
            " The radiographs are synthetic: nothing follows for patients."
            if subject.config.data.source == PHANTOM
            else ""
        ),
    )


def _robustness(subject: Subject) -> str | None:
    """The held-out validation sets, and the corruptions where they were run; None where neither is there."""
    assert subject.judged is not None
    metrics = subject.judged.card.metrics
    names = [name for name in (subject.data or {}).get("parts", {}) if is_validation(name)]
    told = []
    if len(names) > 1:
        areas = ", ".join(f"{name} {score(metrics.get(f'{name}_auroc'))}" for name in names)
        of_fold = " (of one fold's model)" if subject.judged.card.config.data.split.cross_validate else ""
        told.append(f"AUROC on validation sets of other kinds{of_fold}: {areas}.")
    found = subject.evaluated
    if found and found.corruptions:
        hurt = [one.name for one in found.corruptions if one.hurts]
        count = f"{len(hurt) or 'none'} clearly raise the balanced error"
        told.append(
            f"Of {len(found.corruptions)} simulated corruptions on {found.part}, {count}{': ' if hurt else ''}"
            f"{', '.join(hurt)}."
        )
    return " ".join(told) or None


def _of_pictures(subject: Subject, pictures: bool) -> Iterator[tuple[str, str]]:
    """What is said of maps and errors, which the report shows only where it has the radiographs."""
    if subject.judged and subject.judged.card.out_of_fold:
        maps = "No maps were made: each radiograph of the validation was trained on by some of the ensemble's models."
    elif pictures:
        maps = (
            "Maps of where the network looks (the localiser's and Grad-CAM, where the network has them): in the report "
            "beside the fractures' boxes for the most confident errors, with hit rates and a sanity check with random "
            "weights (Adebayo et al. 2018)."
        )
    else:
        maps = "No maps were made, as the radiographs were not at hand when this was written."
    yield "explanation", maps
    found = subject.judged.validation if subject.judged else None
    if found is None:
        return
    calls = confusion(found.labels, found.probabilities, found.card.threshold)
    shown = "with their pictures" if pictures else "by name, without their pictures"
    yield (
        "failures",
        f"At the threshold on validation {calls['false_negative']:,} fractures are missed and "
        f"{calls['false_positive']:,} other images are false alarms; the report shows the most confident ones {shown}.",
    )
