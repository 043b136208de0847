"""What is known of the patients of a data set, and what may leak between training and test where they are not known.

Reads the manifest's table only. Must not know how a split keeps images together (`splits.groups`).
"""

from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
from rich.console import Console

from fracray.data.file_numbers import number_files

REMEDY = "import the set with a patient column (--column patient=NAME) or with --patient-from"


@dataclass(frozen=True)
class KnownPatients:
    """Counts of used images by what keeps those of one patient together; each image is counted once.

    patients: how many different ones are known. named: images with a patient. study: without a patient, but with a
    study. numbered: with neither, but with a running file number. restarted: likewise, but the numbers start again in
    other folders or after other names. nothing: all others.
    """

    patients: int
    named: int
    study: int
    numbered: int
    restarted: int
    nothing: int

    @property
    def images(self) -> int:
        return self.named + self.study + self.numbered + self.restarted + self.nothing

    def words(self) -> str:
        """What is known of patients, in one line."""
        if self.named == self.images:
            several = "s" if self.patients != 1 else ""
            return f"patients: all {self.images:,} images are of {self.patients:,} known patient{several}"
        other = {
            "with a study only": self.study,
            "with a running file number": self.numbered,
            "with a file number that occurs in other folders or series too": self.restarted,
            "with neither study nor running file number": self.nothing,
        }
        words = ", ".join(f"{count:,} {how}" for how, count in other.items() if count)
        first = f"{self.patients:,} known, of {self.named:,} images; without one" if self.named else "none known;"
        return f"patients: {first} {words}"

    def warning(self, divided: bool = True) -> str:
        """What may be wrong for lack of patients, '' where nothing is known to be.

        divided: the set has parts; without them, images of one patient only count as independent.
        """
        doubtful = self.study + self.restarted + self.nothing
        if not doubtful and not (self.named and self.numbered):
            return ""
        harm = (
            "pictures of one patient may lie in training and test at once, and scores may be too high"
            if divided
            else "pictures of one patient count as independent, and intervals may be too narrow"
        )
        if self.named:
            without = self.images - self.named
            return f"no patient is known for {without:,} of {self.images:,} images: {harm}; {REMEDY}"
        lacking = {
            "no patient and no file number is known": self.nothing,
            "no patient is known, and the same file numbers occur in several folders or series": self.restarted,
            "no patient is known, only the study": self.study,
        }
        first, count = next((words, count) for words, count in lacking.items() if count)
        some = "" if count == self.images else f" for {count:,} of {self.images:,} images"
        return f"{first}{some}: {harm}; {REMEDY}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the counts."""
        return asdict(self)


def known_patients(used: pd.DataFrame) -> KnownPatients:
    """What is known of the patients of these rows of a manifest."""
    files = number_files(used)
    named = used["patient"] != ""
    study = ~named & (used["study"] != "")
    numbered = ~named & ~study & files["counted"]
    restarted = numbered & files["repeats"]
    return KnownPatients(
        patients=int(used["patient"][named].nunique()),
        named=int(named.sum()),
        study=int(study.sum()),
        numbered=int((numbered & ~restarted).sum()),
        restarted=int(restarted.sum()),
        nothing=int((~named & ~study & ~numbered).sum()),
    )


def say_patients(console: Console, known: KnownPatients, divided: bool = True) -> None:
    """Print how images of one patient are kept together, and a warning where they may not be."""
    console.print(known.words(), soft_wrap=True)
    if warning := known.warning(divided):
        console.print(f"warning: {warning}", style="yellow", soft_wrap=True)
