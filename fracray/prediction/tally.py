"""Counts of the rows of a prediction, as they are written. Knows tables."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from fracray.prediction.scoring import DICOM_OUT, DICOM_WRITTEN
from fracray.runtime.console import counted


@dataclass
class Tally:
    """rows: of files; failed: those with an error; positive: called fractured; seen: by the training.

    flagged: those with a flag at least; flags: how many have each of them. dicom: what became of the DICOM results, and
    of how many files.
    """

    rows: int = 0
    failed: int = 0
    positive: int = 0
    flagged: int = 0
    seen: int = 0
    flags: Counter[str] = field(default_factory=Counter)
    dicom: Counter[str] = field(default_factory=Counter)

    def over(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """The tables, of SCORED, each counted as it passes."""
        for table in tables:
            self.rows += len(table)
            self.failed += _count(pc.not_equal(table["error"], ""))
            self.positive += _count(pc.equal(table["call"], 1))
            self.flagged += _count(pc.not_equal(table["flags"], ""))
            self.flags.update(flag for flags in table["flags"].to_pylist() if flags for flag in flags.split("+"))
            self.seen += _count(pc.invert(pc.is_in(table["seen_in_training"], pa.array(["no", "", None], pa.string()))))
            self.dicom.update(table[DICOM_OUT].drop_null().to_pylist())
            yield table

    def words(self) -> str:
        """'200 radiographs, 31 called fractured, 4 flagged (dark 3, small 1); 2 could not be read: see the ...'."""
        read = self.rows - self.failed
        named = ", ".join(f"{flag} {count:,}" for flag, count in self.flags.most_common())
        words = f"{counted(read, 'radiograph')}, {self.positive:,} called fractured, {self.flagged:,} flagged"
        words += f" ({named})" if named else ""
        return f"{words}; {self.failed:,} could not be read: see the column error" if self.failed else words

    def dicom_words(self, folder: str) -> str:
        """'DICOM results of 3 radiographs in results; none of 5 files: not a DICOM file (4), ... (1)'."""
        done = self.dicom[DICOM_WRITTEN]
        reasons = [f"{why} ({count:,})" for why, count in self.dicom.most_common() if why != DICOM_WRITTEN]
        without = f"; none of {counted(self.dicom.total() - done, 'file')}: {', '.join(reasons)}" if reasons else ""
        return f"DICOM results of {counted(done, 'radiograph')} in {folder}{without}"


def _count(holds: pa.ChunkedArray) -> int:
    return int(pc.sum(holds).as_py() or 0)
