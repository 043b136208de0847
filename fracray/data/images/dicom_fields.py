"""The fields of a DICOM header: read one by one, checked, and named by tag and keyword where they are wrong.

Quotes no text of a header, which may name a person: only numbers, and only small ones.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence as Items

_QUOTED = 2**16  # larger numbers, in a field of another type than the standard's, could be a date or a patient's number


class DicomError(ValueError):
    """A file without a usable picture: `fault` is 'truncated' or 'unreadable'; the message quotes nothing.

    (A header may name a patient, and messages are kept in manifests.)
    """

    def __init__(self, fault: str, why: str) -> None:
        super().__init__(why)
        self.fault = fault


@contextmanager
def as_dicom_errors(what: str) -> Iterator[None]:
    """Turns whatever a parser or decoder raises on unknown bytes into a DicomError that quotes nothing."""
    try:
        yield
    except DicomError:
        raise
    except EOFError:
        raise DicomError("truncated", "the file ends within its header") from None
    except Exception as error:
        raise DicomError("unreadable", f"{what}: {type(error).__name__}") from None


def named(keyword: str) -> str:
    """A field as messages name it: '(0028,0101) BitsStored'."""
    tag = tag_for_keyword(keyword)
    assert tag is not None, keyword
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X}) {keyword}"


def _anything(value: float) -> bool:
    return True


@dataclass(frozen=True)
class Fields:
    """The fields of one dataset. `notes` collects what is wrong with them and what is assumed instead."""

    dataset: Dataset
    notes: list[str] = field(default_factory=list)

    def note(self, keyword: str, words: str) -> None:
        """Add a note on a field, unless it is there."""
        text = f"{named(keyword)} {words}"
        if text not in self.notes:
            self.notes.append(text)

    def values(self, keyword: str) -> list[Any] | None:
        """All values of a field; [] where it is empty, None where it is missing, [None] where it cannot be read."""
        try:
            value = self.dataset.get(keyword)
            if keyword not in self.dataset:
                return None
        except Exception:  # pydicom converts on access, and raises many kinds of errors
            return [None]
        several = list(value) if isinstance(value, MultiValue | Items) else [value]
        return [] if several in ([], [None], [""], [b""]) else several

    def number(self, keyword: str, valid: Callable[[int], bool] = _anything) -> tuple[int | None, str]:
        """A field of one whole number, or None and what is wrong with it."""
        values = self.values(keyword)
        if not values:
            return None, "is missing" if values is None else "is empty"
        if len(values) > 1:
            return None, "has several values"
        found = _decimal(values[0])
        if math.isnan(found) or found != int(found):
            return None, "is not a whole number"
        return (int(found), "") if valid(int(found)) else (None, f"is {_quoted(found)}")

    def number_or(
        self, keyword: str, otherwise: int, words: str, valid: Callable[[int], bool] = _anything, needed: bool = True
    ) -> int:
        """As `number`; where it is wrong, `otherwise`, with the note 'taken as `words`'.

        A field that is not `needed` may be missing without a note.
        """
        found, problem = self.number(keyword, valid)
        if found is not None:
            return found
        if needed or problem != "is missing":
            self.note(keyword, f"{problem}: taken as {words}")
        return otherwise

    def decimals(self, keyword: str) -> list[float]:
        """All numbers of a field, nan for those that are none; [] where it is missing or empty."""
        return [_decimal(value) for value in self.values(keyword) or []]

    def code(self, keyword: str, known: Sequence[str]) -> tuple[str, str]:
        """The field's first word in capitals if it is `known`, or '' and what is wrong with it."""
        values = self.values(keyword)
        if not values:
            return "", "is missing" if values is None else "is empty"
        text = values[0].strip(" \0").upper() if isinstance(values[0], str) else ""
        return (text, "") if text in known else ("", "is not a known word")

    def item(self, keyword: str) -> Dataset | None:
        """The first item of a sequence; None where it is missing or empty, with a note where it is no sequence."""
        values = self.values(keyword)
        if not values:
            return None
        if not isinstance(values[0], Dataset):
            self.note(keyword, "is not a sequence: ignored")
            return None
        return values[0]


def _decimal(value: Any) -> float:
    """A number, or nan; infinity, which no field may hold, is nan too."""
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return found if math.isfinite(found) else math.nan


def _quoted(value: float) -> str:
    return f"{value:g}" if abs(value) <= _QUOTED else "out of range"


def quoted_numbers(values: Sequence[float]) -> str:
    """Numbers as messages show them: 'not a number' for nan, 'out of range' for what may be more than a number."""
    return ", ".join("not a number" if math.isnan(value) else _quoted(value) for value in values)
