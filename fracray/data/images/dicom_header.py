"""Device, body part, view and patient from the header of a DICOM file.

What names a person is returned only in a Header, whose reader hashes it. Must not decode a picture.
"""

import math
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from pydicom.dataset import Dataset
from pydicom.filereader import dcmread

from fracray.data.images.dicom import inflated_header, is_deflated
from fracray.data.images.dicom_fields import DicomError, as_dicom_errors

_HEADER_TAGS = (
    "SpecificCharacterSet", "SOPInstanceUID", "StudyInstanceUID", "AccessionNumber", "PatientID", "PatientName",
    "PatientAge", "PatientBirthDate", "StudyDate", "PatientSex", "Manufacturer", "ManufacturerModelName",
    "ViewPosition", "BodyPartExamined",
)  # fmt: skip
_VIEWS = {
    "AP": "frontal", "PA": "frontal", "LL": "lateral", "RL": "lateral", "ML": "lateral", "LM": "lateral",
    "LAT": "lateral", "LATERAL": "lateral", "OBL": "oblique", "OBLIQUE": "oblique", "RLO": "oblique", "LLO": "oblique",
}  # fmt: skip


@dataclass(frozen=True)
class Header:
    """Fields of a header; '' and nan where missing.

    The first four identify a patient, and are used for hashing only: study and patient with a secret salt, instance
    without one, for the image id. A UID is random or a device's counter, but who knows it can find the image.
    """

    instance: str = ""  # SOPInstanceUID
    study: str = ""  # StudyInstanceUID
    accession: str = ""
    patient: str = ""
    device: str = ""  # manufacturer and model
    view: str = ""  # frontal, lateral, oblique, or the code in lower case
    region: str = ""  # body part, in lower case
    age: float = math.nan  # years
    sex: str = ""  # F, M, O


def view_of(code: str) -> str:
    """The view that a code of DICOM's ViewPosition means, 'AP' or 'LL', or the code itself in lower case."""
    return _VIEWS.get(code.upper(), code.lower())


def read_header(path: Path, max_bytes: int) -> Header:
    """Read the header of a file without its picture; an empty Header where it cannot be read."""
    try:
        with as_dicom_errors(""), open(path, "rb") as file:
            return _read(file, max_bytes)
    except DicomError:  # the audit reports what is wrong with the file
        return Header()


def header_in(data: bytes) -> Header:
    """As `read_header`, from the bytes of a file."""
    try:
        with as_dicom_errors(""):
            return _read(BytesIO(data), len(data))
    except DicomError:
        return Header()


def _read(file: BinaryIO, max_bytes: int) -> Header:
    deflated = is_deflated(file.read(4096))
    file.seek(0)
    if deflated:
        return _header(inflated_header(file.read(max_bytes)))
    return _header(
        dcmread(file, force=True, stop_before_pixels=True, defer_size=2**20, specific_tags=list(_HEADER_TAGS))
    )


def _header(dataset: Dataset) -> Header:
    names = {
        part.casefold()
        for tag in ("PatientName", "PatientID", "AccessionNumber")
        for part in _text(dataset, tag).replace("^", " ").replace("=", " ").split()
        if len(part) > 2
    }

    def said(tag: str) -> str:
        """A text, or '' if it contains the patient's name or id."""
        text = _text(dataset, tag)
        return "" if any(name in text.casefold() for name in names) else text

    sex = _text(dataset, "PatientSex").upper()
    view = said("ViewPosition")
    return Header(
        instance=_text(dataset, "SOPInstanceUID"),
        study=_text(dataset, "StudyInstanceUID"),
        accession=_text(dataset, "AccessionNumber"),
        patient=_text(dataset, "PatientID"),
        device=" ".join(f"{said('Manufacturer')} {said('ManufacturerModelName')}".split()),
        view=view_of(view)[:16],
        region=said("BodyPartExamined").lower()[:16],
        age=_age(dataset),
        sex=sex if sex in ("F", "M", "O") else "",
    )


def _text(dataset: Dataset, tag: str) -> str:
    return " ".join(str(dataset.get(tag) or "").replace("\0", " ").split())


def _age(dataset: Dataset) -> float:
    """Years, from PatientAge ('045Y', '006M', '010W', '003D'), else from the dates of birth and study."""
    text = _text(dataset, "PatientAge").upper()
    years = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}
    if text[-1:] in years and text[:-1].isdecimal():
        return int(text[:-1]) * years[text[-1]]
    born, seen = _text(dataset, "PatientBirthDate"), _text(dataset, "StudyDate")
    if len(born) == len(seen) == 8 and born.isdecimal() and seen.isdecimal():
        age = int(seen[:4]) - int(born[:4]) - (seen[4:] < born[4:])
        return float(age) if 0 <= age <= 130 else math.nan
    return math.nan
