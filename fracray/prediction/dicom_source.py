"""What the DICOM results of a picture take over from its file: the patient, the study, and what they refer to.

Returns a header that the results can be made of, or says why there is none. Quotes nothing of a header, which may name
a person.
"""

import re
from io import BytesIO
from pathlib import Path

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.filereader import dcmread
from pydicom.valuerep import validate_value

from fracray.data.images.decode import read_file
from fracray.data.images.dicom import inflated_header, is_deflated
from fracray.data.images.dicom_fields import DicomError, as_dicom_errors, named
from fracray.data.images.kinds import DICOM, HEAD, kind_of

NO_DICOM = "not a DICOM file"
_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
# Attributes that every result has to have, with or without a value (type 2 of the modules Patient and General Study).
_MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "ReferringPhysicianName",
)  # fmt: skip
# A radiograph lies in no space of the patient, whatever its header says, and has one frame.
_MISLEADING = ("FrameOfReferenceUID", "PositionReferenceIndicator", "NumberOfFrames")
_UID = re.compile(r"(0|[1-9]\d*)(\.(0|[1-9]\d*))+")


class NoResultError(Exception):
    """Why a picture has no DICOM results, in a few words that quote nothing."""


def is_uid(text: str) -> bool:
    """Whether a text is a UID: numbers with dots between them, of 64 characters at most."""
    return len(text) <= 64 and _UID.fullmatch(text) is not None


def read_source(path: Path) -> Dataset:
    """As `source_in`, of a file. NoResultError where it cannot be read, too."""
    data, why = read_file(path)
    if data is None:
        raise NoResultError(f"the file cannot be read again: {why}")
    return source_in(data)


def source_in(data: bytes) -> Dataset:
    """The header of a DICOM file's bytes without its pixels, with values that results may have.

    Its UIDs are UIDs. Attributes that every result needs are there, empty where the file has none; other values that
    break the standard are left out. NoResultError where the bytes are none of DICOM, or do not say what a result must
    refer to.
    """
    if kind_of(data[:HEAD]) != DICOM:
        raise NoResultError(NO_DICOM)
    try:
        with as_dicom_errors("the header cannot be copied"):
            header = (
                inflated_header(data)
                if is_deflated(data)
                else dcmread(BytesIO(data), force=True, stop_before_pixels=True)
            )
            found = _clean(header)
    except DicomError as error:
        raise NoResultError(str(error)) from None
    for keyword in _UIDS:
        value = str(found.get(keyword) or "")
        if not is_uid(value):
            raise NoResultError(f"{named(keyword)} is {'no UID' if keyword in header else 'missing'}")
    return found


def _clean(header: Dataset) -> Dataset:
    found = Dataset()
    for element in header:  # converts each; a value that cannot be is an error of the header
        if element.tag.group % 2 == 0 and _valid(element):
            found.add(element)
    for keyword in _MISLEADING:
        if keyword in found:
            del found[keyword]
    for keyword in _MAY_BE_EMPTY:
        if keyword not in found:
            setattr(found, keyword, None)
    if found.PatientSex not in ("F", "M", "O"):
        found.PatientSex = None
    return found


def _valid(element: DataElement) -> bool:
    """Whether a value is one that the standard allows for its kind; those of a sequence are not looked at."""
    if element.VR == "SQ" or element.is_empty:
        return True
    values = element.value if element.VM > 1 else [element.value]
    try:
        for value in values:
            if isinstance(value, str | bytes):
                validate_value(element.VR, value, 2)  # 2: raise
    except ValueError:
        return False
    return True
