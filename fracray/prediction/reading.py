"""One file to what a network gets, and to all that is known of it without one. The first half of a prediction.

Decodes as the training did, so the same file gives the same pixels. Knows no checkpoint.
"""

import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fracray.data.images.decode import inspect, read_file
from fracray.data.images.dicom_header import Header, header_in
from fracray.data.images.kept import KEPT
from fracray.data.images.kinds import DICOM, HEAD, kind_of
from fracray.data.images.letterbox import letterbox
from fracray.data.images.square import square_of

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

    size, crop: as in the training. shown: the side of another square of the same part, for overlays; 0 for none.
    sender: an actor of `Sender`; None where this process finds the files itself.
    """

    def __init__(self, size: int, crop: bool, shown: int = 0, sender: Any = None) -> None:
        self._size, self._crop, self._shown, self._sender = size, crop, shown, sender

    def __call__(self, batch: Batch) -> Batch:
        return self.of_bytes(batch, self._bytes(batch["file"].tolist()))

    def of_bytes(self, batch: Batch, contents: Iterable[tuple[bytes | None, str]]) -> Batch:
        """As a call, of files whose bytes are here, or the reasons why they are not."""
        cv2.setNumThreads(1)  # the parallelism is that of processes
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a row says what is odd about a file
            rows = [
                {"error": error} if error else self._facts(*read)
                for error, read in zip(batch["error"].tolist(), contents, strict=True)
            ]
        unknown: dict[str, Any] = {
            **dict.fromkeys(("error", "sop_instance_uid", "study_instance_uid", "pixel_hash", "fault", "note"), ""),
            **dict.fromkeys(("width", "height", "refilled"), 0),
            **dict.fromkeys(KEPT, 0),
            "brightness": float("nan"),
            "look": b"",
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

    def _facts(self, data: bytes | None, why: str) -> dict[str, Any]:
        """The cells of one file; `error` where it holds no sound picture."""
        if data is None:
            return {"error": why}
        try:
            header = header_in(data) if kind_of(data[:HEAD]) == DICOM else Header()
            named = {"sop_instance_uid": header.instance, "study_instance_uid": header.study}
            seen, picture = inspect(data)
            if seen.fault in FAULTS or picture.gray is None:
                return named | {"error": "; ".join(filter(None, [FAULTS.get(seen.fault, ""), seen.note]))}
            square, kept = square_of(data, picture, self._size, self._crop)
            part = np.ascontiguousarray(picture.gray[kept.top : kept.bottom, kept.left : kept.right])
            shown = {"shown": letterbox(part, self._shown)} if self._shown else {}
        except Exception as error:  # a damaged file must not end the prediction of all others
            return {"error": f"cannot be decoded: {type(error).__name__}: {error}"}
        facts = ("pixel_hash", "fault", "note", "width", "height", "refilled", "brightness", "look")
        return (
            named
            | {name: getattr(seen, name) for name in facts}
            | {"square": square}
            | shown
            | dict(zip(KEPT, kept, strict=True))
        )


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
