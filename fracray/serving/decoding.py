"""What a decoder's process does: one upload to what the network takes, to what a viewer shows, or to a DICOM SR.

Decodes as the training did. Knows no network and no HTTP.
"""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from fracray.data.images.announced import announced_pixels
from fracray.data.images.full_depth import FullDepth, full_depth
from fracray.data.images.samples import MAX_PIXELS
from fracray.prediction.dicom_source import NoResultError, source_in
from fracray.prediction.familiar import Familiar
from fracray.prediction.reading import Batch, Decoder


class Reader:
    """Lives in a process of its own. size, crop: as in the training; pixels: the most that are decoded; familiar: what
    the pictures are compared with."""

    def __init__(self, size: int, crop: bool, pixels: int, familiar: Familiar) -> None:
        self._decoder, self._most = Decoder(size, crop, familiar), min(pixels, MAX_PIXELS)

    def batch(self, name: str, data: bytes) -> Batch | str:
        """The batch of one for the network, or why it is too large."""
        return self._too_large(data) or self._of(name, data, "")

    def failed(self, name: str, why: str) -> Batch:
        """The batch of one for a file whose decoder was lost, with the reason."""
        return self._of(name, None, why)

    def _of(self, name: str, data: bytes | None, why: str) -> Batch:
        named = {"place": 0, "path": name, "image_id": "", "error": ""}
        batch = {column: np.array([value], dtype=object) for column, value in named.items()}
        return self._decoder.of_bytes(batch, [(data, why)])

    def picture(self, data: bytes) -> FullDepth | str:
        """The picture at its full depth, or why it is too large. Raises ValueError where there is none."""
        return self._too_large(data) or full_depth(data)

    def report(self, data: bytes, row: Mapping[str, Any]) -> bytes | str:
        """The DICOM SR, as a file, of a DICOM file and its row without an error; or why there is none."""
        from fracray.prediction.dicom_results import report_of  # it takes a second, and most clients want none

        stream = io.BytesIO()
        try:
            report_of(source_in(data), row).save_as(stream, enforce_file_format=True)
        except NoResultError as why:
            return str(why)
        return stream.getvalue()

    def _too_large(self, data: bytes) -> str:
        pixels = announced_pixels(data)
        if pixels <= self._most:
            return ""
        return f"its header announces more than {self._most:,} pixels: not decoded; send it at a lower resolution"
