"""DICOM results without Ray: their validity by dciodvfy, and what pydicom and highdicom read in them."""

import shutil
import subprocess
import zlib
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pydicom
import pytest
from drawn_dicom import as_bytes, dataset
from drawn_fracatlas import jpeg, picture

from fracray.data.images.kept import Kept
from fracray.prediction.dicom_source import NoResultError, is_uid, read_source
from fracray.prediction.inputs import Picture
from fracray.prediction.scoring import COLUMNS, DICOM_OUT, SCORED, peak_of

hd = pytest.importorskip("highdicom")
from highdicom import sr  # noqa: E402

from fracray.prediction.dicom_out import NOT_FIRST, Writer, settled  # noqa: E402
from fracray.prediction.dicom_results import NOTICE, Map, captioned, results_of, spread  # noqa: E402

STUDY = {
    "StudyInstanceUID": "1.2.826.1",
    "SeriesInstanceUID": "1.2.826.1.1",
    "PatientID": "P7",
    "PatientName": "Müller^Jörg",
    "PatientBirthDate": "19700102",
    "PatientSex": "F",
    "PatientAge": "051Y",
    "StudyDate": "20210304",
    "StudyTime": "101112",
    "StudyID": "S1",
    "AccessionNumber": "A1",
    "ReferringPhysicianName": "Dr^No",
    "SpecificCharacterSet": "ISO_IR 100",
    "Modality": "DX",
    "ImageLaterality": "L",
    "PatientOrientation": ["L", "F"],
    "ImagerPixelSpacing": [0.25, 0.15],
    "WindowCenter": 2048,
    "WindowWidth": 4096,
}
DEIDENTIFIED = {"StudyInstanceUID": "1.2.826.2", "SeriesInstanceUID": "1.2.826.2.1", "PatientName": ""}
GRAY = (np.arange(120 * 200).reshape(120, 200) % 4096).astype(np.uint16)
COLOUR = np.stack([GRAY.astype(np.uint8)] * 3, axis=-1)
CELLS = np.zeros((4, 4), dtype=np.float32)
CELLS[2, 1], CELLS[1, 3] = 0.75, 0.5
KEPT = Kept(0, 0, 200, 120, float("nan"))
FOUND = Map(CELLS, KEPT, 32, "Fracture probability of each cell")
PEAK = peak_of(CELLS, KEPT, 32)
ROW = {
    "probability": 0.73125,
    "threshold": 0.5,
    "call": 1,
    "operating_point": "accuracy",
    "checkpoint": "0123456789abcdef",
    "peak_x": PEAK[0],
    "peak_y": PEAK[1],
}
OVERLAY = np.full((307, 512, 3), 90, dtype=np.uint8)
KINDS = {
    "whole header": (GRAY, STUDY | {"bits": 12}),
    "inverted": (GRAY, STUDY | {"bits": 12, "PhotometricInterpretation": "MONOCHROME1"}),
    "inverted by its shape": (GRAY, STUDY | {"bits": 12, "PresentationLUTShape": "INVERSE"}),
    "de-identified": (GRAY, DEIDENTIFIED | {"bits": 12}),
    "colour": (COLOUR, STUDY),
    "one frame, in a space": (GRAY, STUDY | {"NumberOfFrames": 1, "FrameOfReferenceUID": "1.2.3.9"}),
    "values of no kind": (GRAY, STUDY | {"PatientSex": "W", "StudyTime": "ten", "PatientAge": "old"}),
}


@pytest.fixture
def source_of(tmp_path):
    def source(pixels, tags):
        path = tmp_path / "source.dcm"
        path.write_bytes(as_bytes(dataset(pixels, "1.2.826.1.1.4", **tags)))
        return read_source(path)

    return source


@pytest.fixture
def whole(source_of, tmp_path):
    """The results of the whole header, written, as paths."""
    return written(results_of(source_of(*KINDS["whole header"]), ROW, OVERLAY, FOUND), tmp_path)


def written(results, folder):
    for kind, one in results.items():
        one.save_as(folder / f"{kind}.dcm", enforce_file_format=True)
    return {kind: folder / f"{kind}.dcm" for kind in results}


# ---------------------------------------------------------------- what a result holds


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy is not installed")
@pytest.mark.parametrize("kind", KINDS)
def test_results_follow_the_standard(source_of, tmp_path, kind):
    results = written(results_of(source_of(*KINDS[kind]), ROW, OVERLAY, FOUND), tmp_path)
    assert set(results) == ({"sr", "sc", "map"} if kind == "colour" else {"sr", "sc", "pr", "map"})
    for name, path in results.items():
        said = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True, check=False).stderr
        assert {"sr": "ComprehensiveSR", "sc": "SCImage", "map": "ParametricMap"}.get(name, "Presentation") in said
        assert "Error" not in said, said


def test_a_report_says_probability_finding_and_peak(whole):
    report = sr.srread(whole["sr"])
    assert report.SOPClassUID.name == "Comprehensive SR Storage"
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    (radiograph,) = report.content.get_image_measurement_groups()
    (probability,) = radiograph.get_measurements()
    assert (probability.name.meaning, probability.value) == ("Probability", 0.73125)
    (finding,) = radiograph.get_qualitative_evaluations()
    assert (finding.name.value, finding.value.meaning) == ("125605004", "Present")
    (region,) = report.content.get_planar_roi_measurement_groups()
    assert region.roi.graphic_type.value == "POINT"
    # Of 4 x 4 cells of a square of 32, 200 x 120 fills rows 6 to 24: row 2 is centred at (20 - 6) / 19 of the height.
    assert region.roi.value.tolist() == [pytest.approx([75.0, 14 / 19 * 120], abs=1e-4)]
    references = region.roi.ContentSequence[0].ReferencedSOPSequence[0]
    assert references.ReferencedSOPInstanceUID == "1.2.826.1.1.4"
    texts = [item.TextValue for item in radiograph[0].ContentSequence if item.ValueType == "TEXT"]
    assert {"fracray", "checkpoint 0123456789abcdef", "operating point accuracy"} <= set(texts)


def test_a_negative_call_is_an_absent_finding_and_no_peak_no_region(source_of):
    results = results_of(source_of(*KINDS["whole header"]), ROW | {"call": 0, "peak_x": None}, OVERLAY, None)
    report = sr.MeasurementReport.from_sequence([results["sr"]])
    (finding,) = report.get_image_measurement_groups()[0].get_qualitative_evaluations()
    assert finding.value.meaning == "Absent"
    assert not report.get_planar_roi_measurement_groups()
    assert set(results) == {"sr", "sc", "pr"}
    assert "GraphicObjectSequence" not in results["pr"].GraphicAnnotationSequence[0]


def test_a_map_has_the_value_of_its_cell_at_each_pixel_of_the_radiograph(whole):
    image = hd.imread(whole["map"])
    values = image.get_frame(1, apply_real_world_transform=True)
    assert values.shape == GRAY.shape
    assert values.max() == pytest.approx(0.75, abs=1e-5)
    rows, columns = np.nonzero(values == values.max())
    x, y = (np.mean(axis) + 0.5 for axis in (columns, rows))
    assert (x, y) == pytest.approx(PEAK, abs=1)
    assert image.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing == [0.25, 0.15]


def test_a_map_of_a_part_is_0_beyond_it():
    found = spread(Map(np.ones((2, 2), dtype=np.float32), Kept(20, 10, 60, 90, 0.0), 32, ""), 120, 200)
    assert (found[10:90, 20:60] == 65_535).all()
    assert found.astype(bool).sum() == 80 * 40


def test_a_capture_says_that_it_is_no_medical_device(whole):
    capture = hd.imread(whole["sc"])
    pixels = capture.pixel_array
    assert np.array_equal(pixels[: len(OVERLAY)], OVERLAY)
    assert (pixels[len(OVERLAY) :] > 128).any()
    assert np.array_equal(pixels[..., ::-1][len(OVERLAY) :][:24], captioned(OVERLAY, [NOTICE])[len(OVERLAY) :][:24])
    assert capture.BurnedInAnnotation == "YES"
    assert NOTICE in capture.DerivationDescription
    assert captioned(np.zeros((9, 20, 3), np.uint8), ["a line that is wider than its picture " * 3]).shape[1] > 400


def test_a_presentation_state_marks_the_peak_and_keeps_the_polarity(source_of):
    for kind, shape in (("whole header", "IDENTITY"), ("inverted", "INVERSE"), ("inverted by its shape", "INVERSE")):
        state = results_of(source_of(*KINDS[kind]), ROW, OVERLAY, FOUND)["pr"]
        (note,) = state.GraphicAnnotationSequence
        x, y, edge_x, edge_y = note.GraphicObjectSequence[0].GraphicData
        assert (x, y) == pytest.approx(PEAK)
        assert abs(edge_y - y) + abs(edge_x - x) == pytest.approx(8)
        assert NOTICE in note.TextObjectSequence[0].UnformattedTextValue
        assert state.PresentationLUTShape == shape
        assert state.SoftcopyVOILUTSequence[0].WindowWidth == 4096


def test_results_belong_to_the_patient_and_study_and_are_new_series(source_of):
    source = source_of(*KINDS["whole header"])
    results = results_of(source, ROW, OVERLAY, FOUND)
    for one in results.values():
        for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "PatientAge", "StudyInstanceUID",
                        "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"):  # fmt: skip
            assert one[keyword].value == source[keyword].value, keyword
        assert "research only" in one.SeriesDescription
    series = {one.SeriesInstanceUID for one in results.values()} | {source.SeriesInstanceUID}
    assert len(series) == 5
    instances = [one.SOPInstanceUID for one in results.values()]
    assert len(set(instances)) == 4
    assert all(map(is_uid, [*series, *instances]))


def test_the_same_result_has_the_same_uids_again_and_another_checkpoint_others(source_of):
    def uids(tags, row):
        made = results_of(source_of(GRAY, tags | {"bits": 12}), row, OVERLAY, FOUND)
        return {(one.SeriesInstanceUID, one.SOPInstanceUID) for one in made.values()}

    first = uids(STUDY, ROW)
    assert uids(STUDY, ROW) == first
    other = uids(STUDY, ROW | {"checkpoint": "fedcba9876543210"})
    assert not {uid for pair in first for uid in pair} & {uid for pair in other for uid in pair}
    other_image = uids(STUDY | {"SOPInstanceUID": "1.2.826.1.1.5"}, ROW)
    assert {series for series, _ in other_image} == {series for series, _ in first}
    assert not {instance for _, instance in other_image} & {instance for _, instance in first}


# ---------------------------------------------------------------- headers


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"StudyInstanceUID": None}, "(0020,000D) StudyInstanceUID is missing"),
        ({"StudyInstanceUID": ""}, "(0020,000D) StudyInstanceUID is no UID"),
        ({"SeriesInstanceUID": None}, "(0020,000E) SeriesInstanceUID is missing"),
        ({"SOPInstanceUID": "../../evil"}, "(0008,0018) SOPInstanceUID is no UID"),
        ({"SOPInstanceUID": "Doe^Jane"}, "(0008,0018) SOPInstanceUID is no UID"),
    ],
)
def test_a_header_without_what_results_refer_to_has_none(tmp_path, change, why):
    made = dataset(GRAY, **STUDY)
    for keyword, value in change.items():
        if value is None:
            delattr(made, keyword)
        else:
            setattr(made, keyword, value)
    (tmp_path / "a.dcm").write_bytes(as_bytes(made))
    with pytest.raises(NoResultError) as raised:
        read_source(tmp_path / "a.dcm")
    assert str(raised.value) == why


def test_nothing_of_a_header_is_said(source_of, capfd):
    """highdicom warns of names without '^', and quotes them."""
    made = results_of(source_of(GRAY, STUDY | {"PatientName": "Jane Doe", "bits": 12}), ROW, OVERLAY, FOUND)
    assert made["sr"].PatientName == "Jane Doe"
    assert capfd.readouterr() == ("", "")


def test_a_deflated_header_is_read(tmp_path):
    made = dataset(GRAY, **STUDY)
    made.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    (tmp_path / "a.dcm").write_bytes(as_bytes(made))
    assert read_source(tmp_path / "a.dcm").PatientID == "P7"
    with pytest.raises(zlib.error):
        zlib.decompress((tmp_path / "a.dcm").read_bytes())


# ---------------------------------------------------------------- files


def rows_of(places, **cells):
    overlay = cv2.imencode(".png", OVERLAY)[1].tobytes()
    known = {"error": "", "heatmap": overlay, "map": CELLS.tolist(), "part": [0, 0, 200, 120], "image_id": "i"}
    return pa.Table.from_pylist(
        [ROW | known | {"place": place, "sop_instance_uid": "1.2.3.4"} | cells for place in places], SCORED
    )


def test_each_row_says_what_became_of_its_results(tmp_path):
    files = {
        "a.dcm": as_bytes(dataset(GRAY, "1.2.3.4", **STUDY)),
        "again.dcm": as_bytes(dataset(GRAY, "1.2.3.4", **STUDY)),
        "b.jpg": jpeg(picture(1)),
        "odd.dcm": as_bytes(dataset(GRAY, "1.2.3.5", **STUDY | {"SOPClassUID": "1.2.3.4.5"})),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    pictures = [Picture(name, str(tmp_path / name), name) for name in (*files, "gone.dcm")]
    root = tmp_path / "results"
    write = Writer(root, pictures, 32, "localiser", [])
    said = pa.concat_tables(
        [write(rows_of([0, 1, 2])), write(rows_of([3], sop_instance_uid="1.2.3.5")), write(rows_of([4]))]
    )
    assert said.schema == SCORED
    assert said[DICOM_OUT].to_pylist() == [
        "written",
        NOT_FIRST,
        "not a DICOM file",
        "the header does not allow for one: KeyError",
        "the file cannot be read again: cannot be read: No such file or directory",
    ]
    assert sorted(path.name for path in root.iterdir()) == [f"1.2.3.4-{kind}.dcm" for kind in ("map", "pr", "sc", "sr")]
    # Another radiograph has come in its place since it was predicted on.
    changed = Writer(root, pictures, 32, "localiser", [])(rows_of([0], sop_instance_uid="1.2.3.9"))
    assert changed[DICOM_OUT].to_pylist() == ["the file holds another radiograph than the one predicted on"]
    failed = write(rows_of([2], error="cut"))
    assert failed[DICOM_OUT].to_pylist() == ["the file could not be read"]
    # After a start that was killed, what is kept counts; a block that was not kept is written again, to the same names.
    resumed = Writer(root, pictures, 32, "localiser", [said])
    assert resumed(rows_of([1]))[DICOM_OUT].to_pylist() == [NOT_FIRST]
    anew = Writer(root, pictures, 32, "localiser", [])
    assert anew(rows_of([0]))[DICOM_OUT].to_pylist() == ["written"]
    assert len(list(root.iterdir())) == 4


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [2, 3, 0, 1], [1, 3, 0, 2]])
@pytest.mark.parametrize("killed", [0, 1, 2, 3, 4])
def test_of_one_uid_the_first_file_that_can_has_results_whenever_it_is_done(tmp_path, order, killed):
    """Place 0 cannot be read, place 1 is in colour, so without a presentation state. Killed after so many rows."""
    same = {"StudyInstanceUID": "1.2.9", "SeriesInstanceUID": "1.2.9.1"}
    for place in range(4):
        made = dataset(COLOUR if place == 1 else GRAY, "1.2.3.4", **same | {"PatientID": f"P{place}"})
        (tmp_path / f"{place}.dcm").write_bytes(as_bytes(made))
    pictures = [Picture(f"{place}.dcm", str(tmp_path / f"{place}.dcm")) for place in range(4)]
    rows = {place: rows_of([place], error="cut" if place == 0 else "") for place in range(4)}
    root, kept = tmp_path / "results", {}
    starts = (order[:killed], order[killed:])
    for number, start in enumerate(starts):
        write = Writer(root, pictures, 32, "localiser", [kept[place] for place in sorted(kept)])
        kept |= {place: write(rows[place]) for place in start}
        if number == 0 and starts[1]:
            write(rows[starts[1][0]])  # its files are written, but its row is not kept
    said = [table[DICOM_OUT][0].as_py() for table in settled(kept[place] for place in range(4))]
    assert said == ["the file could not be read", "written", NOT_FIRST, NOT_FIRST]
    assert {path.name for path in root.iterdir()} == {f"1.2.3.4-{kind}.dcm" for kind in ("map", "sc", "sr")}
    assert {pydicom.dcmread(path).PatientID for path in root.iterdir()} == {"P1"}


def test_a_network_without_a_map_has_no_parametric_map(tmp_path):
    (tmp_path / "a.dcm").write_bytes(as_bytes(dataset(GRAY, "1.2.3.4", **STUDY)))
    write = Writer(tmp_path / "results", [Picture("a", str(tmp_path / "a.dcm"), "a")], 32, None, [])
    write(rows_of([0], map=None, peak_x=None))
    assert {path.name for path in Path(tmp_path / "results").iterdir()} == {
        f"1.2.3.4-{kind}.dcm" for kind in ("pr", "sc", "sr")
    }
    assert DICOM_OUT not in COLUMNS.names
