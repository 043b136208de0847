"""One file to what a network gets, and to all that is known of it without one. The first half of a prediction.

Decodes as the training did, so the same file gives the same pixels. Knows no network.
"""

import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fracray.data.images.decode import read_file
from fracray.data.images.dicom_header import Header, header_in
from fracray.data.images.kept import KEPT
from fracray.data.images.kinds import DICOM, HEAD, kind_of
from fracray.data.images.letterbox import letterbox
from fracray.prediction.dicom_source import is_uid
from fracray.prediction.facts import Opened, judged, open_file, undecodable
from fracray.prediction.familiar import Familiar

HELD = 2**25  # bytes of files and pictures that wait to be judged together
READ_AHEAD = 4  # files that are being sent to a task from the machine that has them
FAULTS = {"truncated": "the file is cut short", "unreadable": "not readable"}

Batch = dict[str, np.ndarray]


class Sender:
    """Sends files from the machine that has them, and its checkpoint folder, to machines that cannot read them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def checkpoint(self) -> dict[str, bytes]:
        """All files of the checkpoint, by their paths in its folder."""
        files = (path for path in sorted(self._folder.rglob("*")) if path.is_file())
        return {path.relative_to(self._folder).as_posix(): path.read_bytes() for path in files}

    def read(self, path: str) -> tuple[bytes | None, str]:
        return read_file(Path(path))


def unpack_checkpoint(files: Mapping[str, bytes], folder: Path) -> None:
    """Write what `Sender.checkpoint` sends to a folder."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


class Decoder:
    """Ray Data's first step: batches of (place, path, file, image_id, error) to these with squares and facts.

    Among these instance: the SOP Instance UID as the file has it, also where it is none.
    size, crop: as in the training. familiar: what the pictures are compared with. shown: the side of another square of
    the same part, for overlays; 0 for none. sender: an actor of `Sender`; None where this process finds the files
    itself.
    """

    def __init__(self, size: int, crop: bool, familiar: Familiar, shown: int = 0, sender: Any = None) -> None:
        self._size, self._crop, self._familiar, self._shown, self._sender = size, crop, familiar, shown, sender

    def __call__(self, batch: Batch) -> Batch:
        return self.of_bytes(batch, self._bytes(batch["file"].tolist()))

    def of_bytes(self, batch: Batch, contents: Iterable[tuple[bytes | None, str]]) -> Batch:
        """As a call, of files whose bytes are here, or the reasons why they are not."""
        cv2.setNumThreads(1)  # the parallelism is that of processes
        rows: list[dict[str, Any]] = []
        waiting: list[tuple[dict[str, Any], Opened]] = []
        held = 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a row says what is odd about a file
            for error, read in zip(batch["error"].tolist(), contents, strict=True):
                row, opened = ({"error": error}, None) if error else self._opened(*read)
                rows.append(row)
                if opened is not None:
                    waiting.append((row, opened))
                    held += opened.bytes
                    if held > HELD:
                        self._judge(waiting)
                        waiting, held = [], 0
            self._judge(waiting)
        unknown: dict[str, Any] = {
            **dict.fromkeys(("error", "sop_instance_uid", "study_instance_uid", "instance", "flags"), ""),
            "seen_in_training": "",
            **dict.fromkeys(("width", "height"), 0),
            **dict.fromkeys(KEPT, 0),
            "distance": float("nan"),
            "square": _black(self._size),
            "shown": _black(self._shown or 1),
        }
        columns = {name: [row.get(name, value) for row in rows] for name, value in unknown.items()}
        return {name: batch[name] for name in ("place", "path", "image_id")} | {
            name: _array(values) for name, values in columns.items()
        }

    def _bytes(self, files: list[str]) -> Iterator[tuple[bytes | None, str]]:
        if self._sender is None:
            for file in files:
                yield read_file(Path(file)) if file else (None, "no file")
            return
        import ray

        coming: deque[Any] = deque()
        for file in files:
            coming.append(self._sender.read.remote(file))
            if len(coming) > READ_AHEAD:
                yield ray.get(coming.popleft())
        yield from map(ray.get, coming)

    def _opened(self, data: bytes | None, why: str) -> tuple[dict[str, Any], Opened | None]:
        """The cells of one file so far, and the file; with `error`, and without it, where it holds no sound picture."""
        if data is None:
            return {"error": why}, None
        try:
            header = header_in(data) if kind_of(data[:HEAD]) == DICOM else Header()
            uids = {"sop_instance_uid": header.instance, "study_instance_uid": header.study}
            named: dict[str, Any] = {name: uid if is_uid(uid) else "" for name, uid in uids.items()}
            named["instance"] = header.instance
            found = open_file(data, self._size, self._crop)
            if not isinstance(found, Opened):
                return named | {"error": "; ".join(filter(None, [FAULTS.get(found.fault, ""), found.note]))}, None
            if any(uid and not named[name] for name, uid in uids.items()):
                # What replaces a UID, as REMOVED, may be the same in many studies.
                found = replace(found, picture=replace(found.picture, note=found.picture.note or "holds no UIDs"))
            if self._shown:
                kept = found.kept
                part = found.whole()[kept.top : kept.bottom, kept.left : kept.right]
                named["shown"] = letterbox(np.ascontiguousarray(part), self._shown)
        except Exception as error:  # a damaged file must not end the prediction of all others
            return undecodable(error), None
        sides = {"width": found.picture.width, "height": found.picture.height}
        return named | sides | {"square": found.square} | dict(zip(KEPT, found.kept, strict=True)), found

    def _judge(self, waiting: list[tuple[dict[str, Any], Opened]]) -> None:
        """Write what is known of these pictures into their rows."""
        found = judged([one for _, one in waiting], self._familiar) if waiting else []
        for (row, _), cells in zip(waiting, found, strict=True):
            row.update(cells)


def _black(side: int) -> np.ndarray:
    return np.zeros((side, side), dtype=np.uint8)


def _array(values: list[Any]) -> np.ndarray:
    if isinstance(values[0], np.ndarray):
        return np.stack(values)
    if isinstance(values[0], str | bytes):  # NumPy's own bytes would lose zeros at the end
        found = np.empty(len(values), dtype=object)
        found[:] = values
        return found
    return np.array(values)
