"""Writes DICOM files whose pixels are all known, and compresses them with GDCM or pydicom."""

import io
from pathlib import Path

import gdcm
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, RLELossless

NAME = "Doe^Jane"


def dataset(pixels: np.ndarray, instance: str = "1.2.3.4", bits: int | None = None, **tags: object) -> Dataset:
    """A DX image of these stored values, (rows, columns) or (rows, columns, 3); `tags` by keyword."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = instance
    made.PatientName = NAME
    made.Rows, made.Columns = pixels.shape[:2]
    made.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    made.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    if pixels.ndim == 3:
        made.PlanarConfiguration = 0
    made.BitsAllocated = pixels.itemsize * 8
    made.BitsStored = bits or made.BitsAllocated
    made.HighBit = made.BitsStored - 1
    made.PixelRepresentation = int(pixels.dtype.kind == "i")
    made.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    made["PixelData"].VR = "OW" if pixels.itemsize == 2 else "OB"
    for tag, value in tags.items():
        setattr(made, tag, value)
    return made


def as_bytes(made: Dataset) -> bytes:
    stream = io.BytesIO()
    made.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def compressed(made: Dataset, syntax: str, folder: Path) -> bytes:
    """The file in another transfer syntax, by GDCM's encoder (RLE: pydicom's)."""
    if syntax == RLELossless:
        made.compress(RLELossless, generate_instance_uid=False)
        return as_bytes(made)
    plain, packed = folder / "plain.dcm", folder / "packed.dcm"
    plain.write_bytes(as_bytes(made))
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(plain))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(syntax))))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(packed))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return packed.read_bytes()


def rle_bomb(unfolded: int) -> bytes:
    """64 x 64 pixels as announced, whose one RLE segment decodes to `unfolded` bytes."""
    made = dataset(np.zeros((64, 64), np.uint8))
    made.file_meta.TransferSyntaxUID = RLELossless
    header = np.array([1, 64, *[0] * 14], "<u4").tobytes()
    made.PixelData = encapsulate([header + b"\x81\x55" * (unfolded // 128)])
    return as_bytes(made)
