"""What an export says of JPEG radiographs: python MODEL.reader.py MODEL PICTURE...

Needs numpy, OpenCV and onnxruntime (PyTorch for a .pt2 file), and neither fracray nor another file. A picture is
prepared as fracray does. Prints a line of JSON for each file. For research; not a medical device.
"""

import json
import sys
from pathlib import Path

import cv2
import numpy as np

from fracray.data.images.crop import anatomy

REDUCED = {2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4, 8: cv2.IMREAD_REDUCED_GRAYSCALE_8}


def decoded(data: bytes, how: int) -> np.ndarray:
    gray = cv2.imdecode(np.frombuffer(data, np.uint8), how)
    if gray is None or data[:2] != b"\xff\xd8" or not data.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise ValueError("not a complete JPEG")
    return gray


def square(data: bytes, about: dict) -> np.ndarray:
    """The bytes of a JPEG to the square that the network takes, (size, size) uint8; about: the export's description."""
    gray, size = decoded(data, cv2.IMREAD_GRAYSCALE), about["size"]
    height, width = gray.shape
    factor = next((f for f in (8, 4, 2) if max(gray.shape) * about["least"] >= 2 * f * size), 1)
    if factor > 1:
        gray = decoded(data, REDUCED[factor])
    full = list(gray.shape)
    if about["crop"]:
        rows, columns = anatomy(gray)
        gray = np.ascontiguousarray(gray[rows, columns])
        full = [
            min(part.stop * factor, side) - part.start * factor for part, side in ((rows, height), (columns, width))
        ]
    down, across = (max(1, round(side * (size / max(full)))) for side in full)
    top, left = (size - down) // 2, (size - across) // 2
    filled = np.zeros((size, size), np.uint8)
    how = cv2.INTER_AREA if size < max(gray.shape) else cv2.INTER_LINEAR
    filled[top : top + down, left : left + across] = cv2.resize(gray, (across, down), interpolation=how)
    return filled


def open_export(path: str) -> tuple:
    """An export as a function from images (B, 1, size, size) uint8 to its outputs by name, and its description."""
    if path.endswith(".pt2"):
        import torch

        extra = {"preprocess.json": ""}
        module = torch.export.load(path, extra_files=extra).module()
        about = json.loads(extra["preprocess.json"])
        return lambda images: dict(zip(about["outputs"], module(torch.from_numpy(images)), strict=True)), about
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["fracray"])
    return lambda images: dict(zip(about["outputs"], session.run(None, {"images": images}), strict=True)), about


if __name__ == "__main__":
    run, about = open_export(sys.argv[1])
    for path in sys.argv[2:]:
        try:
            found = run(square(Path(path).read_bytes(), about)[None, None])
            said = {name: found[name][0].item() for name in ("probability", "logit", "call")}
        except (OSError, ValueError) as error:
            said = {"error": str(error)}
        print(json.dumps({"path": path} | said))
