"""Writes the DICOM results of a prediction: files named after the radiograph's SOP Instance UID, in one folder.

Knows finished rows with their pictures. What the files hold is in `dicom_results`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from fracray.data.images.kept import Kept
from fracray.errors import RunError
from fracray.prediction.dicom_source import NoResultError, read_source
from fracray.prediction.inputs import Picture
from fracray.prediction.scoring import DICOM_OUT, DICOM_WRITTEN, HEATMAP, MAP, PART, PLACE
from fracray.runtime.storage import atomic_path

UNREAD = "the file could not be read"
NOT_FIRST = "an earlier file with its SOP Instance UID has results"
_UID = "sop_instance_uid"
MAP_WORDS = {"localiser": "Fracture probability of each cell", "grad_cam": "Grad-CAM, 1 at its highest cell"}


class Writer:
    """Writes the results of rows to a folder, and says in column DICOM_OUT what became of each.

    pictures: in their places; size: of the network's squares; method: of the maps, None for none; earlier: the rows of
    an earlier start. Of files with the same SOP Instance UID, the first of `pictures` that can have results has them.
    Rows may come in any order: where that one comes later, its results replace the others', whose rows `settled`
    corrects.
    """

    def __init__(
        self, root: Path, pictures: Sequence[Picture], size: int, method: str | None, earlier: Iterable[pa.Table]
    ) -> None:
        self._root, self._pictures, self._size = root, pictures, size
        self._words = MAP_WORDS[method] if method else ""
        self._first: dict[str, int] = {}  # the place of the file that has results, by SOP Instance UID
        for table in earlier:  # in the order of places
            for row in table.select([PLACE, DICOM_OUT, _UID]).to_pylist():
                if row[DICOM_OUT] == DICOM_WRITTEN:
                    self._first.setdefault(row[_UID], row[PLACE])

    def __call__(self, rows: pa.Table) -> pa.Table:
        """The rows with DICOM_OUT, their results written. RunError where there is no room."""
        said = [self._one(row) for row in rows.to_pylist()]
        at = rows.schema.get_field_index(DICOM_OUT)
        return rows.set_column(at, rows.schema.field(at), pa.array(said, pa.string()))

    def _one(self, row: Mapping[str, Any]) -> str:
        from fracray.prediction.dicom_results import SERIES

        if row["error"]:
            return UNREAD
        try:
            source = read_source(Path(self._pictures[row[PLACE]].file))
            uid = str(source.SOPInstanceUID)
            if uid != row[_UID]:  # the results would name another patient
                raise NoResultError("the file holds another radiograph than the one predicted on")
            if self._first.get(uid, row[PLACE]) < row[PLACE]:
                return NOT_FIRST
            made = self._make(source, row)
        except NoResultError as why:
            return str(why)
        try:
            for kind, result in made.items():
                with atomic_path(self._root / f"{uid}-{kind}.dcm") as partial:
                    result.save_as(partial, enforce_file_format=True)
            for kind in SERIES.keys() - made.keys():  # of another file with this UID, or of another checkpoint
                (self._root / f"{uid}-{kind}.dcm").unlink(missing_ok=True)
        except OSError as error:
            raise RunError(
                f"--dicom-out {self._root}: cannot be written: {error}; free space and give the same command again"
            ) from None
        self._first[uid] = row[PLACE]
        return DICOM_WRITTEN

    def _make(self, source: Any, row: Mapping[str, Any]) -> Mapping[str, Any]:
        from fracray.prediction.dicom_results import Map, results_of

        found = None
        if row[MAP] is not None:
            left, top, right, bottom = row[PART]
            kept = Kept(left, top, right, bottom, float("nan"))
            found = Map(np.array(row[MAP], dtype=np.float32), kept, self._size, self._words)
        overlay = cv2.imdecode(np.frombuffer(row[HEATMAP], np.uint8), cv2.IMREAD_COLOR)
        assert overlay is not None, "the overlay is a PNG of fracray's"
        return results_of(source, row, overlay, found)


def settled(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """All rows in the order of places, as `Writer` leaves them, with the results of each UID at their file alone."""
    taken: set[str] = set()
    for table in tables:
        said: list[str | None] = []
        for why, uid in zip(table[DICOM_OUT].to_pylist(), table[_UID].to_pylist(), strict=True):
            said.append(NOT_FIRST if why == DICOM_WRITTEN and uid in taken else why)
            if why == DICOM_WRITTEN:
                taken.add(uid)
        at = table.schema.get_field_index(DICOM_OUT)
        yield table.set_column(at, table.schema.field(at), pa.array(said, pa.string()))
