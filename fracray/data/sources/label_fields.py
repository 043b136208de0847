"""What the columns of a table of labels may mean. Imports nothing slow: the help of the import lists the fields."""

from collections.abc import Mapping

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
