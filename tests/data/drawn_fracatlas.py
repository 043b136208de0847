"""Draws small folders in FracAtlas' layout, with the defects a test asks for."""

import io
import json
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

FLAGS = ("hand", "leg", "hip", "shoulder", "mixed", "hardware", "multiscan", "fractured")
COLUMNS = ["image_id", *FLAGS, "fracture_count", "frontal", "lateral", "oblique"]


def picture(seed: int, width: int = 160, height: int = 200) -> np.ndarray:
    """A gray picture, different for every seed: smooth shadows and a few bright bars."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 170, (9, 7)).astype(np.float32)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(6):
        start, end = rng.integers(0, width, 2), rng.integers(0, height, 2)
        cv2.line(image, (int(start[0]), int(end[0])), (int(start[1]), int(end[1])), float(rng.uniform(150, 250)), 5)
    return np.clip(image, 0, 255).astype(np.uint8)


def jpeg(image: np.ndarray, quality: int = 92, orientation: int | None = None) -> bytes:
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=quality, exif=exif)
    return stream.getvalue()


class Atlas:
    """A FracAtlas folder that is being built: `add` images, then `write` the tables."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lines: list[dict[str, object]] = []
        self.coco: dict[str, list[dict[str, object]]] = {"images": [], "annotations": [], "categories": []}
        for name in ("Fractured", "Non_fractured"):
            (root / "images" / name).mkdir(parents=True)

    def add(
        self, number: int, label: int = 0, data: bytes | None = b"", folders: tuple[int, ...] | None = None, **tags: int
    ) -> str:
        """List IMG<number>.jpg and put its file (drawn from its number; None: no file) into its class folder(s)."""
        name = f"IMG{number:07d}.jpg"
        if data == b"":
            data = jpeg(picture(number))
        self.lines.append(
            dict.fromkeys(COLUMNS, 0) | {"image_id": name, "fractured": label, "leg": 1, "frontal": 1} | tags
        )
        for folder in (label,) if folders is None else folders:
            if data is not None:
                (self.root / "images" / ("Non_fractured", "Fractured")[folder] / name).write_bytes(data)
        return name.removesuffix(".jpg")

    def box(self, image_id: str, box: tuple[float, float, float, float], width: int = 160, height: int = 200) -> None:
        key = len(self.coco["images"]) + 1
        self.coco["images"].append({"id": key, "file_name": f"{image_id}.jpg", "width": width, "height": height})
        self.coco["annotations"].append({"id": key, "image_id": key, "category_id": 0, "bbox": list(box)})

    def write(self, coco: bool = True) -> Path:
        rows = [",".join(str(line[column]) for column in COLUMNS) for line in self.lines]
        (self.root / "dataset.csv").write_text("\n".join([",".join(COLUMNS), *rows]) + "\n")
        if coco:
            folder = self.root / "Annotations" / "COCO JSON"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "COCO_fracture_masks.json").write_text(json.dumps(self.coco))
        return self.root
