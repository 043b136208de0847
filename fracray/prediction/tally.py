"""Counts of the rows of a prediction, as they are written. Knows tables."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from fracray.runtime.console import counted


@dataclass
class Tally:
    """rows: of files; failed: those with an error; positive: called fractured; flagged; seen: by the training."""

    rows: int = 0
    failed: int = 0
    positive: int = 0
    flagged: int = 0
    seen: int = 0

    def over(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """The tables, each counted as it passes."""
        for table in tables:
            self.rows += len(table)
            self.failed += _count(pc.not_equal(table["error"], ""))
            self.positive += _count(pc.equal(table["call"], 1))
            self.flagged += _count(pc.not_equal(table["flags"], ""))
            self.seen += _count(pc.invert(pc.is_in(table["seen_in_training"], pa.array(["no", "", None], pa.string()))))
            yield table

    def words(self) -> str:
        """'200 radiographs, 31 called fractured, 4 flagged; 2 could not be read: see the column error'."""
        read = self.rows - self.failed
        words = f"{counted(read, 'radiograph')}, {self.positive:,} called fractured, {self.flagged:,} flagged"
        return f"{words}; {self.failed:,} could not be read: see the column error" if self.failed else words


def _count(holds: pa.ChunkedArray) -> int:
    return int(pc.sum(holds).as_py() or 0)
