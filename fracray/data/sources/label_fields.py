"""What the columns of a table of labels may mean. Imports nothing slow: the help of the import lists the fields."""

import re
from collections.abc import Iterable, Mapping

# Each field with the column names that are recognised without --column; case, spaces and signs are ignored.
FIELDS: Mapping[str, tuple[str, ...]] = {
    "image": (
        "imageid", "image", "filename", "file", "filestem", "path", "filepath", "imagepath", "imagename",
        "sopinstanceuid", "accessionnumber", "accession", "studyinstanceuid", "name", "id",
    ),
    "label": ("label", "fractured", "fracture", "fracturevisible", "target", "class", "abnormal"),
    "patient": ("patientid", "patient", "subjectid", "subject", "mrn"),
    "study": ("studyid", "study"),
    "region": ("region", "bodypart", "bodypartexamined", "anatomy"),
    "view": ("view", "viewposition", "projection"),
    "batch": ("batch", "device", "scanner", "manufacturer", "devicemanufacturer"),
    "hardware": ("hardware", "metal", "implant"),
    "age": ("age", "patientage"),
    "sex": ("sex", "gender", "patientsex"),
}  # fmt: skip


def patient_column(header: Iterable[str]) -> str | None:
    """The first column that is recognised as that of patients, None where there is none."""
    return next((name for name in header if re.sub(r"[\W_]", "", name.lower()) in FIELDS["patient"]), None)
