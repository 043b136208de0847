"""What is known of a picture without a network: its flags, its distance from the training, whether it was seen there.

Most is told by a small picture, and the whole one is asked only where that leaves a doubt: near a limit, and where the
picture may be one of the training's. So the answers are those of the whole picture. Knows no network and no path.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fracray.data.duplicates import THUMB, look, signs_of
from fracray.data.images.blank import may_show_nothing, nothing_shown
from fracray.data.images.decode import DecodedImage, as_stored, decode
from fracray.data.images.hashes import perceptual_hash, pixel_hash, thumbnail
from fracray.data.images.kept import Kept
from fracray.data.images.letterbox import frame
from fracray.data.images.margins import may_be_refilled, refilled
from fracray.data.images.square import picture_of, square_of
from fracray.prediction.familiar import Familiar

# The least side of a square's picture and of a reduced one, px, that a thumbnail is made of, where a thumbnail of the
# whole would be much slower; below, the noise of the whole would get another shape in it.
LEAST_SQUARE, LEAST_REDUCED, LEAST_PIXELS = 3 * THUMB // 2, 2 * THUMB, 2**16


@dataclass(frozen=True)
class Opened:
    """A sound file, decoded once at the scale for its square; factor: by which that is reduced.

    thumb: its thumbnail, or nearly.
    """

    data: bytes
    picture: DecodedImage
    factor: int
    square: np.ndarray
    kept: Kept
    thumb: np.ndarray

    @property
    def bytes(self) -> int:
        """What it holds in memory."""
        return len(self.data) + (0 if self.picture.gray is None else self.picture.gray.nbytes)

    def whole(self) -> np.ndarray:
        """The gray picture at its full scale. Raises ValueError where it cannot be decoded."""
        return _whole(self.data, self.picture, self.factor)

    def refilled(self) -> int:
        """Its rows that are `refilled`."""
        if self.factor == 1:
            return refilled(as_stored(self.picture))
        return refilled(as_stored(decode(self.data))) if may_be_refilled(as_stored(self.picture), self.factor) else 0


def open_file(data: bytes, size: int, crop: bool) -> Opened | DecodedImage:
    """Decode a file for a square of this size; what was decoded of it where it is damaged. ValueError as `whole`."""
    picture, factor = picture_of(data, size, crop)
    if picture.gray is None or picture.fault:
        return picture
    square, kept = square_of(picture, factor, size, crop)
    return Opened(data, picture, factor, square, kept, _thumb(data, picture, factor, None if crop else square))


def _thumb(data: bytes, picture: DecodedImage, factor: int, square: np.ndarray | None) -> np.ndarray:
    """Of the square of all of the picture, or of what was decoded, where these show it well enough."""
    gray = picture.gray
    assert gray is not None, "it is sound"
    if factor > 1:
        return thumbnail(gray if min(gray.shape) >= LEAST_REDUCED else _whole(data, picture, factor))
    if square is None or gray.size < LEAST_PIXELS:
        return thumbnail(gray)
    rows, columns = frame(picture.width, picture.height, len(square))
    shown = square[rows, columns]
    return thumbnail(shown if min(shown.shape) >= LEAST_SQUARE else gray)


def _whole(data: bytes, picture: DecodedImage, factor: int) -> np.ndarray:
    found = picture if factor == 1 else decode(data)
    if found.gray is None or found.fault:
        raise ValueError(found.note or "not decodable at its full scale")
    return found.gray


def judged(opened: Sequence[Opened], familiar: Familiar) -> list[dict[str, Any]]:
    """The cells flags, distance and seen_in_training of each of these pictures; `error` of one that is damaged."""
    thumbs = np.stack([one.thumb for one in opened])
    brightness, empty = thumbs.mean((1, 2)).tolist(), may_show_nothing(thumbs).tolist()
    return [
        _cells(one, familiar, *facts) for one, *facts in zip(opened, brightness, signs_of(thumbs), empty, strict=True)
    ]


def _cells(one: Opened, familiar: Familiar, brightness: float, signs: np.ndarray, empty: bool) -> dict[str, Any]:
    """brightness, signs: of a small picture; empty: whether it may show nothing."""
    try:
        return _sound_cells(one, familiar, brightness, signs, empty)
    except Exception as error:  # a damaged file must not end the prediction of all others
        return undecodable(error)


def undecodable(error: Exception) -> dict[str, Any]:
    return {"error": f"cannot be decoded: {type(error).__name__}: {error}"}


def _sound_cells(one: Opened, familiar: Familiar, brightness: float, signs: np.ndarray, empty: bool) -> dict[str, Any]:
    distance, sieved = familiar.compared(signs)
    seen, why = familiar.unseen, ""
    close = familiar.near_a_limit(brightness, distance)
    if sieved or close or empty:
        whole = _Whole(one.whole())
        why = nothing_shown(whole.gray) if empty else ""
        if close:
            brightness = float(whole.thumb.mean())
            distance, _ = familiar.compared(whole.signs)
        if sieved or why:
            seen = familiar.seen_as(
                pixel_hash(whole.gray), lambda: b"" if why or not familiar.may_be_copy(whole.signs) else whole.look()
            )
        distance = math.nan if why else distance  # the look of nothing says nothing
    row = {
        "fault": "blank" if why else "",
        "note": one.picture.note,
        "refilled": one.refilled(),
        "brightness": brightness,
        "width": one.picture.width,
        "height": one.picture.height,
    }
    return {"flags": "+".join(familiar.flags(row, distance)), "distance": distance, "seen_in_training": seen}


class _Whole:
    """A picture at its full scale, and what is made of it where it is asked for."""

    def __init__(self, gray: np.ndarray) -> None:
        self.gray = gray

    @cached_property
    def thumb(self) -> np.ndarray:
        return thumbnail(self.gray)

    @cached_property
    def signs(self) -> np.ndarray:
        """A row of `signs_of`."""
        return signs_of(self.thumb[None])[0]

    def look(self) -> bytes:
        return look(self.thumb, perceptual_hash(self.thumb))
