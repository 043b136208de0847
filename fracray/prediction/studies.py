"""From a row for each picture to a row for each study: that of its picture with the highest probability.

The maximum, as a study is positive where one of its views shows a fracture; its threshold is that of single pictures,
so the more pictures a study has, the more often it is called positive without a fracture. Knows tables.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from fracray.prediction.scoring import COLUMNS

STUDY_COLUMNS = pa.schema([*COLUMNS, ("pictures", pa.int32()), ("failed", pa.int32())])
CHUNK = 65_536


def of_studies(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Tables of STUDY_COLUMNS, in the order of each study's first picture; a picture without a study is its own.

    pictures: of the study; failed: those of them that could not be read. A study without a readable one has the row of
    its first. Holds one row a study in memory.
    """
    best: dict[str, dict[str, Any]] = {}
    for table in tables:
        for row in table.to_pylist():
            name = row["study_instance_uid"] or f"path {row['path']}"
            before = best.get(name)
            counts = {
                "pictures": 1 + (before["pictures"] if before else 0),
                "failed": (row["probability"] is None) + (before["failed"] if before else 0),
            }
            best[name] = (row if before is None or _value(row) > _value(before) else before) | counts
    rows = list(best.values())
    for start in range(0, len(rows), CHUNK):
        yield pa.Table.from_pylist(rows[start : start + CHUNK], schema=STUDY_COLUMNS)


def _value(row: dict[str, Any]) -> float:
    return -1.0 if row["probability"] is None else float(row["probability"])
