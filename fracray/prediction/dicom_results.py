"""The DICOM objects that say what a checkpoint says of one radiograph, as new series of the radiograph's study.

A structured report, a secondary capture, a presentation state and, where there is a map, a parametric map. Knows a
header, a finished row and pictures; opens and writes no file. Needs highdicom.
"""

import logging
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import cv2
import highdicom as hd
import numpy as np
from highdicom import pm, pr, sc, sr
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from fracray import __version__
from fracray.data.images.dicom_display import exchanged
from fracray.data.images.dicom_fields import Fields
from fracray.data.images.kept import Kept
from fracray.data.images.letterbox import frame
from fracray.prediction.dicom_source import NoResultError

logging.getLogger("highdicom").setLevel(logging.CRITICAL)  # its warnings quote names

NOTICE = "Research only. No medical device."
_NAME = "fracray"
_FRACTURE = Code("125605004", "SCT", "Fracture of bone")
_RADIOGRAPHY = Code("168537006", "SCT", "Plain radiography")
_MAP_CODE = Code("fracture-map", "99FRACRAY", "Fracture map")
_PEAK = Code("fracture-peak", "99FRACRAY", "Peak of the fracture map")
# Their numbers, beyond those that devices use, by the kinds of results, which are the ends of their files' names.
SERIES = {"sr": 9801, "sc": 9802, "pr": 9803, "map": 9804}
_LEVELS = 65_535  # of the stored values of a map, for 0 to 1
_OUTSIDE = 0  # of a map, where the network saw nothing
_NARROWEST = 360  # px, of a secondary capture, so that its words can be read
_LINE = 22  # px


@dataclass(frozen=True)
class Map:
    """Where the network looks: cells (h, w) in 0..1 of its square of `size`, the part that the square shows, its name.

    words: 'fracture probability of each cell' or 'Grad-CAM'.
    """

    cells: np.ndarray
    kept: Kept
    size: int
    words: str


def uid_of(*parts: str) -> str:
    """A UID that follows from these texts alone (PS3.5, B.2), so that the same result has the same UID again."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, '/'.join(('fracray', *parts))).int}"


def results_of(source: Dataset, row: Mapping[str, Any], overlay: np.ndarray, found: Map | None) -> dict[str, Dataset]:
    """The objects by the ends of their file names: 'sr', 'sc', 'pr' unless the radiograph is in colour, 'map'.

    source: of `read_source`; row: of the table, without an error; overlay (H, W, 3) uint8, BGR. NoResultError for a
    header that highdicom cannot take over.
    """
    with _told_shortly():
        return _results_of(source, row, overlay, found)


def report_of(source: Dataset, row: Mapping[str, Any]) -> Dataset:
    """The structured report alone; arguments and errors as of `results_of`."""
    with _told_shortly():
        return _described(_report(source, row, _about(source, row, "sr")))


@contextmanager
def _told_shortly() -> Iterator[None]:
    """Keep to ourselves what highdicom says of a header that it cannot take over: it may name a person."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as those of its log
            yield
    except Exception as error:
        raise NoResultError(f"the header does not allow for one: {type(error).__name__}") from None


def _results_of(source: Dataset, row: Mapping[str, Any], overlay: np.ndarray, found: Map | None) -> dict[str, Dataset]:
    made: dict[str, Dataset] = {
        "sr": _report(source, row, _about(source, row, "sr")),
        "sc": _capture(source, row, overlay, _about(source, row, "sc")),
    }
    if source.SamplesPerPixel == 1 and source.PhotometricInterpretation in ("MONOCHROME1", "MONOCHROME2"):
        made["pr"] = _presentation(source, row, _about(source, row, "pr"))
    if found is not None:
        made["map"] = _parametric_map(source, found, _about(source, row, "map"))
    for kind, one in made.items():
        if kind != "sr":  # of a pair of body parts, a picture must say which it is of, or that it is unknown
            one.Laterality = source.get("Laterality") or source.get("ImageLaterality") or None
        _described(one)
    return made


def _described(made: Dataset) -> Dataset:
    made.SeriesDescription = f"fracray {__version__}, research only"
    return made


def _about(source: Dataset, row: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """What all objects say of themselves. Their UIDs follow from the radiograph, the checkpoint and the version."""
    made_by = (kind, row["checkpoint"], __version__)
    return {
        "series_instance_uid": uid_of(source.StudyInstanceUID, *made_by),
        "series_number": SERIES[kind],
        "sop_instance_uid": uid_of(source.StudyInstanceUID, source.SOPInstanceUID, *made_by),
        "instance_number": max(1, int(source.get("InstanceNumber") or 1)),
        "manufacturer": _NAME,
        "manufacturer_model_name": _NAME,
        "software_versions": __version__,
        "device_serial_number": row["checkpoint"],
    }


def _words(row: Mapping[str, Any]) -> list[str]:
    called = "fracture" if row["call"] else "no fracture"
    return [
        f"probability of a fracture {row['probability']:.3f}",
        f"called {called} (threshold {row['threshold']:.3f}, {row['operating_point']})",
        f"fracray {__version__}, checkpoint {row['checkpoint']}",
    ]


# ---------------------------------------------------------------- structured report


def _report(source: Dataset, row: Mapping[str, Any], about: dict[str, Any]) -> Dataset:
    """Comprehensive SR after TID 1500: the radiograph's group (TID 1501), and the peak of the map as a region."""
    algorithm = sr.AlgorithmIdentification(
        _NAME,
        __version__,
        [
            f"checkpoint {row['checkpoint']}",
            f"threshold {row['threshold']:.6g} of the probability",
            f"operating point {row['operating_point']}",
        ],
    )
    reference = (source.SOPClassUID, source.SOPInstanceUID)
    uid = about["sop_instance_uid"]
    groups: list[Any] = [
        sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=sr.TrackingIdentifier(uid_of(uid, "radiograph"), "radiograph"),
            finding_type=_FRACTURE,
            algorithm_id=algorithm,
            measurements=[sr.Measurement(codes.DCM.Probability, float(row["probability"]), codes.UCUM.NoUnits)],
            qualitative_evaluations=[
                sr.QualitativeEvaluation(_FRACTURE, codes.SCT.Present if row["call"] else codes.SCT.Absent)
            ],
            source_images=[sr.SourceImageForMeasurementGroup(*reference)],
        )
    ]
    if row["peak_x"] is not None:
        point = np.array([[row["peak_x"], row["peak_y"]]], dtype=np.float64)
        groups.append(
            sr.PlanarROIMeasurementsAndQualitativeEvaluations(
                tracking_identifier=sr.TrackingIdentifier(uid_of(uid, "peak"), "peak of the map"),
                referenced_region=sr.ImageRegion("POINT", point, sr.SourceImageForRegion(*reference)),
                finding_type=_PEAK,
                algorithm_id=algorithm,
            )
        )
    device = sr.DeviceObserverIdentifyingAttributes(
        uid_of("device", row["checkpoint"]), _NAME, _NAME, _NAME, row["checkpoint"]
    )
    context = sr.ObservationContext(observer_device_context=sr.ObserverContext(codes.DCM.Device, device))
    content = sr.MeasurementReport(
        observation_context=context,
        procedure_reported=_RADIOGRAPHY,
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    made = sr.ComprehensiveSR(evidence=[source], content=content[0], **about)
    made.CodingSchemeIdentificationSequence = [_own_scheme()]
    return made


def _own_scheme() -> Dataset:
    return CodingSchemeIdentificationItem(
        "99FRACRAY", name="fracray", version=__version__, responsible_organization="fracray"
    )


# ---------------------------------------------------------------- pictures


def _capture(source: Dataset, row: Mapping[str, Any], overlay: np.ndarray, about: dict[str, Any]) -> Dataset:
    """Secondary capture in colour: the overlay, and below it what is said, burnt in."""
    made = sc.SCImage.from_ref_dataset(
        source,
        pixel_array=np.ascontiguousarray(captioned(overlay, [NOTICE, *_words(row)])[..., ::-1]),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "F"),  # highdicom demands one; replaced below
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **about,
    )
    made.copy_patient_and_study_information(source)
    made.PatientOrientation = source.get("PatientOrientation")
    made.ImageType = ["DERIVED", "SECONDARY"]
    made.BurnedInAnnotation = "YES"
    made.DerivationDescription = f"Map of where a network looks, over the radiograph. {NOTICE}"
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    purpose = Dataset()
    purpose.CodeValue, purpose.CodingSchemeDesignator = "121322", "DCM"
    purpose.CodeMeaning = "Source image for image processing operation"
    reference.PurposeOfReferenceCodeSequence = [purpose]
    made.SourceImageSequence = [reference]
    return made


def captioned(picture: np.ndarray, lines: list[str]) -> np.ndarray:
    """A picture (H, W, 3) with lines of text on black below it; as wide as they need, and covering nothing."""
    font, scale = cv2.FONT_HERSHEY_SIMPLEX, 0.45
    needed = max(cv2.getTextSize(line, font, scale, 1)[0][0] for line in lines) + 12
    width = max(picture.shape[1], needed, _NARROWEST)
    left = (width - picture.shape[1]) // 2
    canvas = np.zeros((picture.shape[0] + _LINE * len(lines) + 8, width, 3), dtype=np.uint8)
    canvas[: len(picture), left : left + picture.shape[1]] = picture
    for number, line in enumerate(lines, start=1):
        at = (6, picture.shape[0] + _LINE * number)
        cv2.putText(canvas, line, at, font, scale, (255, 255, 255), 1, cv2.LINE_AA)
    return canvas


def _presentation(source: Dataset, row: Mapping[str, Any], about: dict[str, Any]) -> Dataset:
    """Grayscale softcopy presentation state: what is said in a corner, and a circle around the peak."""
    rows, columns = int(source.Rows), int(source.Columns)
    layer = pr.GraphicLayer("FRACRAY", 1, "What fracray says. Research only.")
    text = pr.TextObject(
        "\r\n".join([NOTICE, *_words(row)]), "DISPLAY", bounding_box=(0.02, 0.02, 0.98, 0.2), text_justification="LEFT"
    )
    circles = []
    if row["peak_x"] is not None:
        radius = 0.04 * max(rows, columns)
        x, y = row["peak_x"], row["peak_y"]  # (0, 0) is the corner of the first pixel, here as there
        edge = np.array([[x, y], [x, y + (radius if y + radius <= rows else -radius)]], dtype=np.float64)
        circles = [pr.GraphicObject("CIRCLE", edge, "PIXEL")]
    note = pr.GraphicAnnotation([source], layer, graphic_objects=circles or None, text_objects=[text])
    # The state replaces what the radiograph says of dark and bright, so its shape must say what the network was shown.
    shape = "INVERSE" if exchanged(source.PhotometricInterpretation, Fields(source)) else "IDENTITY"
    return pr.GrayscaleSoftcopyPresentationState(
        referenced_images=[source],
        content_label="FRACRAY",
        content_description="What fracray says. Research only.",
        graphic_annotations=[note],
        graphic_layers=[layer],
        presentation_lut_transformation=hd.PresentationLUTTransformation(presentation_lut_shape=shape),
        **about,
    )


# ---------------------------------------------------------------- the map


def _parametric_map(source: Dataset, found: Map, about: dict[str, Any]) -> Dataset:
    """Parametric map with a value for each pixel of the radiograph: that of its cell, 0 beyond what was looked at."""
    levels = spread(found, int(source.Rows), int(source.Columns))
    highest = max(2, int(levels.max()))  # shown white: the probabilities of cells may all be low
    mapping = pm.RealWorldValueMapping(
        lut_label="FRACTURE_MAP",
        lut_explanation=found.words,
        unit=codes.UCUM.NoUnits,
        value_range=(0, _LEVELS),
        slope=1 / _LEVELS,
        intercept=0.0,
        quantity_definition=_MAP_CODE,
    )
    made = pm.ParametricMap(
        [_in_a_space(source)],
        levels,
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[hd.VOILUTTransformation(window_center=highest / 2, window_width=highest)],
        transfer_syntax_uid=RLELossless,
        content_label="FRACTURE_MAP",
        content_description=found.words,
        **about,
    )
    made.DimensionOrganizationSequence[0].DimensionOrganizationUID = uid_of(made.SOPInstanceUID, "dimension")
    for dimension in made.DimensionIndexSequence:
        dimension.DimensionOrganizationUID = made.DimensionOrganizationSequence[0].DimensionOrganizationUID
    return made


def _in_a_space(source: Dataset) -> Dataset:
    """The radiograph's header, placed in a space of its own, at the origin: a parametric map has to lie in one.

    The spacing is the header's, at the detector; where it has none, a pixel is called a millimetre.
    """
    placed = Dataset(source)
    placed.FrameOfReferenceUID = uid_of(source.SOPInstanceUID, "space")
    placed.PositionReferenceIndicator = None
    placed.ImagePositionPatient, placed.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
    spacing = source.get("PixelSpacing") or source.get("ImagerPixelSpacing") or [1, 1]
    placed.PixelSpacing = spacing if len(spacing) == 2 and min(spacing) > 0 else [1, 1]
    placed.SliceThickness = 1
    return placed


def spread(found: Map, rows: int, columns: int) -> np.ndarray:
    """The value of each pixel (rows, columns) uint16 of a radiograph, from the cell of the map that it lies in."""
    kept, (height, width) = found.kept, found.cells.shape
    inside = frame(int(kept.right - kept.left), int(kept.bottom - kept.top), found.size)
    cells = np.rint(np.clip(found.cells, 0, 1) * _LEVELS).astype(np.uint16)
    down = _cell_of(int(kept.top), int(kept.bottom), inside[0], found.size, height)
    across = _cell_of(int(kept.left), int(kept.right), inside[1], found.size, width)
    made = np.full((rows, columns), _OUTSIDE, dtype=np.uint16)
    made[int(kept.top) : int(kept.bottom), int(kept.left) : int(kept.right)] = cells[np.ix_(down, across)]
    return made


def _cell_of(first: int, end: int, inside: slice, size: int, count: int) -> np.ndarray:
    """For each pixel from `first` to before `end`, the cell that it lies in, of `count` along a square of `size`."""
    share = (np.arange(end - first) + 0.5) / (end - first)
    return ((inside.start + share * (inside.stop - inside.start)) * count / size).astype(int).clip(0, count - 1)
