"""Where it looks: how often the network's maps point at the fracture, beside pointers that see no pixel, and their
sanity check, on a sample of the validation radiographs.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from markupsafe import Markup
from rich.console import Console

from fracray.data.images.kept import KEPT
from fracray.data.loading.boxes import Boxes
from fracray.data.manifest import Manifest, in_set
from fracray.evaluation.flag_tables import beside_the_usual_place, verdict_of_check
from fracray.evaluation.inference import BATCH
from fracray.evaluation.maps import WORDS, methods
from fracray.evaluation.saliency import Check, Looked, OverRows, Saliency, Sanity, look_over, spread
from fracray.evaluation.scoring import Scored
from fracray.evaluation.subgroups import FEWEST
from fracray.metrics import Interval
from fracray.reporting import parts
from fracray.reporting.parts import Section, paragraph, score, with_interval
from fracray.reporting.pictures import squares_of
from fracray.reporting.rows import rows_of, unread
from fracray.reporting.subject import Subject, Validation
from fracray.runtime.console import counted, progress_bar
from fracray.training.checkpoint import load_checkpoint

MOST_LOOKED = 150  # fractured radiographs with boxes; of more, every k-th
CHECK = Check(images=24, draws=1)  # evaluate --saliency takes more of both
POINTERS = {"random": "hits of a random place", "centre": "hits of the centre", "usual": "hits of the usual place"}
MEANING = (
    "Whether the network looks at the fracture when it calls one: a model that is right for a wrong reason fails "
    "elsewhere. A map is worth reading only if it hits more often than a pointer that sees no pixel, and if it changes "
    "once the weights are random."
)


def looks(subject: Subject, images: Manifest | None, console: Console | None) -> Section | None:
    """None without stored predictions, and where no radiograph of validation has a box.

    images: the examined files, if they are at hand; console: for the progress; without one it is not counted here.
    """
    found = subject.judged.validation if subject.judged else None
    if subject.judged is None or found is None or not _any_boxes(subject, images, found):
        return None
    if found.card.out_of_fold:
        words = (
            "Not counted: each radiograph of validation was trained on by some of the ensemble's models. "
            "python -m fracray.evaluate --saliency --split test counts on those that none has seen."
        )
        return _section(paragraph(words, "soft"))
    if images is None:
        words = "The radiographs are not at hand: name the data with --data to have it counted."
        return _section(paragraph(words, "soft"))
    if console is None:
        words = "Not counted here, as that takes a while: python -m fracray.report counts it."
        return _section(paragraph(words, "soft"))
    checkpoint = load_checkpoint(subject.judged.folder)
    kinds = methods(checkpoint.model)
    if not kinds:
        name = found.card.config.model.name
        words = f"{name} has neither a localiser nor feature maps for Grad-CAM, so there is no map to look at."
        return _section(paragraph(words, "soft"))
    sample = _sample(subject, images, found, console)
    if sample is None:
        return None
    scored, over, shown, boxed = sample
    body = Markup("").join(map(_method, look_over(checkpoint, kinds, scored, over, CHECK, console)))
    some = (
        f"Counted on {counted(shown, 'radiograph')}, every k-th of the {boxed:,} fractured ones of validation with "
        "boxes; python -m fracray.evaluate --saliency --split val counts all. "
        if shown < boxed
        else f"Counted on all {boxed:,} fractured radiographs of validation with boxes. "
    )
    return _section(paragraph(some + _HOW, "soft") + body)


_HOW = (
    "A hit: the highest cell of the map touches a box. Energy: the share of the map's sum that lies inside of the "
    "boxes. Intervals are 95%, over groups. The dotted line is the best pointer that sees no pixel."
)


def _section(body: Markup) -> Section:
    return Section("looks", "Where it looks", MEANING, body)


def _used(subject: Subject, images: Manifest | None) -> pd.DataFrame:
    manifest = subject.manifest or images
    return pd.DataFrame() if manifest is None else manifest.used.reset_index(drop=True)


def _any_boxes(subject: Subject, images: Manifest | None, found: Validation) -> bool:
    table = _used(subject, images)
    return len(table) > 0 and rows_of(found, table) is not None and bool(_boxed(found, table).any())


def _boxed(found: Validation, table: pd.DataFrame) -> np.ndarray:
    """(n,) bool, of the predictions: fractured, and with a box."""
    rows = rows_of(found, table)
    assert rows is not None
    return (found.labels == 1) & table["boxes"].iloc[rows].map(len).to_numpy().astype(bool)


def _sample(
    subject: Subject, images: Manifest, found: Validation, console: Console
) -> tuple[Scored, OverRows, int, int] | None:
    """The radiographs that are looked at, what reads their squares, how many are fractured with a box, and of how many.

    None where no box lies in what the network gets.
    """
    table, config = _used(subject, images), found.card.config.data
    rows, boxed = rows_of(found, table), np.flatnonzero(_boxed(found, table))
    assert rows is not None
    chosen = np.union1d(boxed[spread(len(boxed), MOST_LOOKED)], spread(len(rows), CHECK.images))
    needed = np.unique(rows[chosen])
    # The usual place is that of the training part.
    train = in_set(table["split"], "train") & (table["boxes"].map(len).to_numpy() > 0)
    needed = np.union1d(needed, np.flatnonzero(train))
    some = table.iloc[needed].reset_index(drop=True)
    at = np.searchsorted(needed, rows[chosen])
    # Of a cropped set the boxes of the training part lie in what is kept of a picture, which is known once it is read.
    read = np.arange(len(some)) if config.crop else np.unique(at)
    files = images.table.set_index("image_id", drop=False).loc[some["image_id"].iloc[read]]
    squares, kept = [], []
    with progress_bar(console, "reading radiographs") as step:
        for square, part in squares_of(images.root, files, config):
            squares.append(square)
            kept.append(part)
            step(len(squares), len(files))
    if config.crop:
        some = some.assign(**dict(zip(KEPT, zip(*kept, strict=True), strict=True)))
    if Boxes.of_table(some, config.size) is None:
        return None
    stacked = np.stack(squares)

    def over(run: Callable[[np.ndarray], np.ndarray], rows: np.ndarray, words: str) -> np.ndarray:
        inside = stacked[np.searchsorted(read, rows)]
        made = []
        with progress_bar(console, words) as step:
            for start in range(0, len(inside), BATCH):
                made.append(run(inside[start : start + BATCH]))
                step(min(start + BATCH, len(inside)), len(inside))
        return np.concatenate(made)

    prepared = unread(found.card, subject.manifest or images, some, subject.baselines)
    scored = Scored(prepared, at, found.probabilities[chosen], np.full(len(at), found.card.threshold))
    return scored, over, int(np.isin(boxed, chosen).sum()), len(boxed)


def _method(one: Saliency) -> Markup:
    words = WORDS[one.method]
    body = parts.heading(f"{words[0].upper()}{words[1:]}, {one.cells} x {one.cells} cells")
    everything = one.looked[0] if one.looked else None
    if everything is None:
        return body + paragraph("No box lies in what the network gets.", "soft") + _check(one.sanity, words)
    body += _table(one.looked, f"Hits and energy: {words}")
    if everything.pointers:
        gain = beside_the_usual_place(everything.hit_gain)
        body += paragraph(f"{gain[0].upper()}{gain[1:]}. The usual place is {one.usual_place}.")
    return body + _check(one.sanity, words)


def _table(looked: tuple[Looked, ...], caption: str) -> Markup:
    rows = []
    for one in looked:
        if not one.pointers:
            few = Markup('<span class="few">fewer than {}: not counted</span>').format(FEWEST)
            rows.append((one.name, f"{one.images:,}", few, *[""] * 6))
            continue
        hits = {name: pointer.hit.value for name, pointer in one.pointers.items()}
        ours = one.pointers["map"]
        picture = parts.interval_picture(ours.hit, 0.0, 1.0, max(hits[name] for name in POINTERS))
        energy = [one.pointers[name].energy.value for name in POINTERS]
        others = (score(hits[name], 2) for name in POINTERS)
        best = score(max(energy))
        rows.append((one.name, f"{one.images:,}", with_interval(ours.hit, 2), picture, *others))
        rows[-1] += (with_interval(ours.energy), best)
    headings = ("fractured radiographs", "number", "hits of the map", "0 to 1", *POINTERS.values())
    headings += ("energy in the boxes", "energy, best without pixels")
    return parts.table(headings, rows, (1, 2, 4, 5, 6, 7, 8), kind="looks", caption=caption)


def _check(sanity: Sanity, words: str) -> Markup:
    told = verdict_of_check(sanity)
    told = f"{told[0].upper()}{told[1:]}."
    if not sanity.images:
        return paragraph(told)
    levels: dict[str, Interval] = {f"random: {name}": value for name, value in sanity.levels.items()}
    levels["nothing random, another radiograph"] = sanity.others
    rows = [
        (name, with_interval(value, 2), parts.interval_picture(value, -1.0, 1.0, 0.0)) for name, value in levels.items()
    ]
    headings = ("weights", "likeness to the map", "-1 to 1")
    table = parts.table(headings, rows, (1,), kind="sanity", caption=f"Sanity check: {words}")
    return table + paragraph(told)
