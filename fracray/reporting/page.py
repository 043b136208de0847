"""A report as one self-contained HTML page, section by section.

A section that a later version adds is one more function in `SECTIONS`: it gets the subject and what is at hand, and
returns a Section, or None where there is nothing to show.
"""

import base64
import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files

from markupsafe import Markup
from rich.console import Console

from fracray import __version__
from fracray.data.manifest import Manifest
from fracray.reporting.answer import answer
from fracray.reporting.data_section import data_section, reproduce
from fracray.reporting.discrimination import discrimination, operating_points
from fracray.reporting.gallery import gallery
from fracray.reporting.looks import looks
from fracray.reporting.parts import Section
from fracray.reporting.robustness_section import robustness
from fracray.reporting.search_section import search_section
from fracray.reporting.subgroups_section import subgroups_section
from fracray.reporting.subject import Subject
from fracray.reporting.training_section import training_section
from fracray.runtime.page import page_environment

REPORT = "report.html"  # in a run folder


@dataclass(frozen=True)
class AtHand:
    """What a report may use besides the run: the examined files of the data, and time."""

    images: Manifest | None = None
    console: Console | None = None  # for the progress of what takes seconds, which is left out without it

    in_run: bool = True  # the page is written into the run folder, so that its links to the run's files hold

    @property
    def thorough(self) -> bool:
        return self.console is not None


SECTIONS: tuple[Callable[[Subject, AtHand], Section | None], ...] = (
    lambda subject, _: answer(subject),
    lambda subject, _: search_section(subject),
    lambda subject, _: training_section(subject),
    lambda subject, _: discrimination(subject),
    lambda subject, _: operating_points(subject),
    lambda subject, _: subgroups_section(subject),
    lambda subject, at_hand: looks(subject, at_hand.images, at_hand.console),
    lambda subject, at_hand: gallery(subject, at_hand.images, at_hand.in_run),
    lambda subject, _: robustness(subject),
    lambda subject, at_hand: data_section(subject, at_hand.thorough),
    lambda subject, _: reproduce(subject),
)


def as_html(subject: Subject, at_hand: AtHand) -> str:
    """The page of a subject; everything that it shows is inside."""
    script = files("fracray.reporting").joinpath("templates/explorer.js").read_text(encoding="utf-8")
    script = f"\n{script}"
    return (
        page_environment("fracray.reporting")
        .get_template("report.html")
        .render(
            title=f"{subject.name}: {subject.kind}",
            kind=subject.kind,
            name=subject.name,
            location=subject.location,
            written=time.strftime("%Y-%m-%d %H:%M %Z"),
            version=__version__,
            sections=list(_sections(subject, at_hand)),
            script=Markup(script) if subject.search and subject.search.ranked else None,
            hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )


def _sections(subject: Subject, at_hand: AtHand) -> Iterator[Section]:
    for make in SECTIONS:
        section = make(subject, at_hand)
        if section is not None:
            yield section
