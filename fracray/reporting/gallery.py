"""The gallery of errors: the most confident wrong calls on validation, with the pictures where they are at hand."""

import numpy as np
from markupsafe import Markup

from fracray.data.manifest import Manifest
from fracray.reporting import parts
from fracray.reporting.parts import Section, paragraph
from fracray.reporting.pictures import Shown, show
from fracray.reporting.subject import Subject, Validation
from fracray.runtime.console import counted

MOST = 8  # of each kind

_PICTURE = Markup('<img src="{}" alt="{}">')


def gallery(subject: Subject, images: Manifest | None, in_run: bool) -> Section | None:
    """None without stored predictions. images: the examined files, if they are at hand; in_run: as of `AtHand`."""
    if subject.judged is None or subject.judged.validation is None:
        return None
    found = subject.judged.validation
    called = found.probabilities >= found.card.threshold
    missed = _most_confident((found.labels == 1) & ~called, found.probabilities)
    alarms = _most_confident((found.labels == 0) & called, 1 - found.probabilities)
    names = [str(found.table["image_id"].iloc[row]) for row in (*missed, *alarms)]
    shown = show(images, names, subject.judged) if images is not None and names else {}
    body = Markup("")
    if images is None:
        body += paragraph("The pictures are not at hand: name the data with --data to see them.", "soft")
    elif shown:
        words = next((one.words for one in shown.values()), "")
        about = (
            f"Left with the boxes of the fractures (orange), right under {words}: red is the highest place in this "
            "picture, however low that is; without red, nothing in it speaks for a fracture."
            + " The network gets the part that data.crop keeps; outside of it nothing is red."
            * subject.judged.card.config.data.crop
            if words
            else "Boxes of fractures, where there are any, are orange."
        )
        body += paragraph(about, "soft")
    body += _doubtful(subject, in_run)
    no, yes = found.card.classes
    for words, rows, total in (
        (f"Missed: {yes}, called {no}", missed, int(((found.labels == 1) & ~called).sum())),
        (f"False alarms: {no}, called {yes}", alarms, int(((found.labels == 0) & called).sum())),
    ):
        body += parts.heading(f"{words} ({len(rows)} of {total:,})" if total else f"{words}: none")
        body += Markup('<div class="cards">\n{}</div>\n').format(
            Markup("").join(_card(found, row, shown) for row in rows)
        )
    return Section(
        "errors",
        "The most confident errors",
        "Wrong calls on validation that the model was surest of. Look for what they have in common: labels "
        "that are wrong, a "
        "view or region that is rare, metal, a bad exposure.",
        body,
    )


def _doubtful(subject: Subject, in_run: bool) -> Markup:
    """Where the labels stand that the refit over folds puts in doubt, if there was one."""
    if subject.doubtful is None:
        return Markup("")
    place = f"{subject.location.rstrip('/')}/{subject.doubtful}"
    link = Markup('<a href="{}">{}</a>').format(subject.doubtful, subject.doubtful) if in_run else place
    words = Markup(
        "A wrong call may be a wrong label. The labels that the refit's folds put in doubt, with their pictures: {}."
    )
    return paragraph(words.format(link))


def _most_confident(wrong: np.ndarray, doubt: np.ndarray) -> list[int]:
    """The rows that are wrong, those with the least doubt first."""
    rows = np.flatnonzero(wrong)
    return [int(row) for row in rows[np.argsort(doubt[rows], kind="stable")][:MOST]]


def _card(found: Validation, row: int, shown: dict[str, Shown]) -> Markup:
    name, label = str(found.table["image_id"].iloc[row]), int(found.labels[row])
    words = f"probability {found.probabilities[row]:.3f}"
    picture = shown.get(name)
    drawn = Markup("")
    if picture is not None:
        boxes = f", {counted(picture.boxes, 'box', 'boxes')}" if picture.boxes else ""
        drawn = _PICTURE.format(picture.plain, f"radiograph {name}{boxes}")
        if picture.looked is not None:
            drawn += _PICTURE.format(picture.looked, f"radiograph {name} under {picture.words}")
        drawn = Markup('<div class="pair">{}</div>').format(drawn)
    return Markup(
        '<figure class="error">{}<figcaption><b>{}</b><br><span class="label{}">{}</span>, {}</figcaption></figure>\n'
    ).format(drawn, name, label, found.card.classes[label], words)
