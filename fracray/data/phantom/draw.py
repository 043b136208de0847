"""Synthetic radiographs of broken and intact bones: the embedded data set, in FracAtlas' own layout.

Every picture is a pure function of (seed, index). Simulated are attenuation (Beer-Lambert), scatter, quantum and
electronic noise, and the response of a few devices; nothing here was learned from, or copied out of, a radiograph.
Knows nothing of manifests, splits or training.
"""

import csv
import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, repeat
from pathlib import Path

import cv2
import numpy as np

from fracray import interrupts
from fracray.config import PhantomConfig
from fracray.data.phantom.anatomy import Anatomy, Bone
from fracray.data.phantom.exposure import expose
from fracray.data.phantom.layouts import LAYOUTS, REGIONS, VIEWS
from fracray.data.phantom.patient import SHOWN, Study, choose_breaks, placement, study_of
from fracray.data.phantom.projection import (
    Break,
    paint_bone,
    paint_flat_bones,
    paint_metal,
    paint_reaction,
    paint_tissue,
    sixteenths,
)
from fracray.errors import InputError, RunError
from fracray.runtime.storage import atomic_path

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Phantom:
    """One synthetic radiograph and all that is known of it.

    image: (H, W) uint8, bone bright; boxes: (x, y, w, h) in pixels, one a fracture; study: what it shares with the
    other pictures of the patient. Its fracture need not be in the picture.
    """

    image: np.ndarray
    boxes: tuple[Box, ...]
    view: str
    hardware: bool
    multiscan: bool
    study: Study

    @property
    def label(self) -> int:
        """1 with a fracture in the picture."""
        return int(bool(self.boxes))


def _box(bone: Bone, fracture: Break, size: tuple[int, int]) -> Box:
    points, pad = fracture.outline(bone), 3 + 0.35 * bone.radius
    x0, y0 = np.maximum(np.floor(points.min(0) - pad), 0).astype(int).tolist()
    x1, y1 = np.minimum(np.ceil(points.max(0) + pad), np.array(size)).astype(int).tolist()
    return x0, y0, x1 - x0, y1 - y0


def _side_by_side(anatomy: Anatomy, matrix: np.ndarray, size: tuple[int, int]) -> Anatomy:
    """Both limbs on one film, the second one the mirror image of the first."""
    small = np.column_stack([0.62 * matrix[:, :2], (0.27 * size[0], size[1] / 2)])
    other = small * [[-1], [1]] + [[0, 0, size[0]], [0, 0, 0]]
    return anatomy.placed(small) + anatomy.placed(other)


def draw_phantom(index: int, seed: int) -> Phantom:
    """Draw one synthetic radiograph, a pure function of (seed, index).

    The same arguments give the same bytes in any order and in any process; neighbouring indices may be views of one
    patient (study).
    """
    study, place = study_of(index, seed)
    rng = np.random.default_rng((seed, 3, index))
    size = width, height = study.device.size
    view = study.views[place % len(study.views)]
    anatomy = LAYOUTS[study.region](view, np.random.default_rng((*study.seed, 4)))
    broken = study.broken and rng.random() < SHOWN
    multiscan = study.region in {"hand", "leg"} and view == "frontal" and bool(rng.random() < 0.04)
    matrix = placement(study, rng, multiscan)
    anatomy = _side_by_side(anatomy, matrix, size) if multiscan else anatomy.placed(matrix)

    bones, breaks = anatomy.bones, choose_breaks(study, anatomy, rng) if broken else {}
    muscle = rng.standard_normal((height // 40, width // 40), np.float32)
    attenuation = paint_tissue((height, width), anatomy.tissues, muscle, rng.uniform(11, 18) if study.plaster else 0.0)
    if anatomy.flat:
        attenuation += paint_flat_bones((height, width), anatomy.flat)
    physis = float(rng.uniform(0.2, 0.45)) if study.child else 0.0
    for i, bone in enumerate(bones):
        paint_bone(attenuation, bone, _trabeculae(), physis if bone.weight else 0.0, breaks.get(i))
    for i, fracture in breaks.items():
        paint_reaction(attenuation, bones[i], fracture, study.callus, rng)
    hardware = study.hardware and not multiscan
    if hardware:
        i = next(iter(breaks), _stoutest(bones, size))
        metal = np.random.default_rng((*study.seed, 6))
        paint_metal(attenuation, bones[i], breaks[i].at if i in breaks else None, metal)
    _paint_confounders(attenuation, anatomy, study, rng)
    image = expose(attenuation, study.device, rng)
    boxes = tuple(_box(bones[i], fracture, size) for i, fracture in breaks.items())
    return Phantom(image, boxes, view, hardware, multiscan, study)


def phantom_id(index: int) -> str:
    """The image id of a phantom, and its file's name without the extension."""
    return f"IMG{index:07d}"


def as_jpeg(phantom: Phantom) -> bytes:
    """The file of a phantom."""
    written, data = cv2.imencode(".jpg", phantom.image, [cv2.IMWRITE_JPEG_QUALITY, 92])
    assert written, "OpenCV encodes JPEG"
    return bytes(data)


@lru_cache(maxsize=1)
def _trabeculae() -> np.ndarray:
    """(H, W) float32 around 1, larger than any picture: the pattern of spongy bone."""
    coarse = np.random.default_rng(10).standard_normal((480, 300), np.float32)
    return 1 + np.float32(0.16) * cv2.resize(coarse, (600, 960), interpolation=cv2.INTER_LINEAR)


def _stoutest(bones: Sequence[Bone], size: tuple[int, int]) -> int:
    """The bone that metal most likely sits in: the stoutest breakable one whose middle is in the picture."""

    def rank(i: int) -> tuple[bool, float]:
        x, y = bones[i].point(bones[i].length / 2)
        inside = 20 < x < size[0] - 20 and 20 < y < size[1] - 20
        return bool(bones[i].weight and inside), bones[i].weight * bones[i].radius

    return max(range(len(bones)), key=rank)


def _paint_confounders(attenuation: np.ndarray, anatomy: Anatomy, study: Study, rng: np.random.Generator) -> None:
    """Lines that are no fracture: vessel channels, skin folds, a bangle, a side letter."""
    height, width = attenuation.shape
    dark, bright = np.zeros((2, height, width), np.uint8)

    def line(a: tuple[float, float], b: tuple[float, float], value: int) -> None:
        start, stop = sixteenths([a, b]).tolist()
        cv2.line(dark, start, stop, value, 1, cv2.LINE_AA, 4)

    shafts = [b for b in anatomy.bones if b.weight >= 2]
    for bone in shafts:
        if rng.random() < 0.3:
            # A nutrient canal: thin, oblique, through one cortex only.
            at, side = rng.uniform(0.3, 0.7) * bone.length, rng.choice((-1, 1)) * bone.radius
            line(bone.point(at, side), bone.point(at + rng.uniform(1.2, 2.5) * bone.radius, 0.3 * side), 60)
    if rng.random() < 0.5:
        y, slope = rng.uniform(0.15, 0.85) * height, rng.normal(0, 0.25)
        line((0, y), (width, y + slope * width), int(rng.integers(12, 30)))
    if study.region == "hand" and rng.random() < 0.06:
        centre = shafts[0].point(0.9 * shafts[0].length)
        centre, axes = sixteenths([centre, (34, rng.uniform(4, 12))]).tolist()
        cv2.ellipse(bright, centre, axes, rng.normal(0, 6), 0, 360, 255, 4, cv2.LINE_AA, 4)
    if rng.random() < study.device.marker:
        aside, down = int(rng.uniform(12, 40)), int(rng.uniform(25, 60))
        aside = aside if rng.random() < 0.5 else width - aside - 16
        cv2.putText(bright, "RL"[study.number % 2], (aside, down), cv2.FONT_HERSHEY_SIMPLEX, 0.5, 255, 1, cv2.LINE_AA)
    for layer, strength in ((dark, 0.8 / 255), (bright, 2.5 / 255)):
        x, y, w, h = cv2.boundingRect(layer)
        drawn, part = layer[y : y + h, x : x + w] * np.float32(strength), attenuation[y : y + h, x : x + w]
        part[:] = part + drawn if layer is bright else part * (1 - drawn)


# ---------------------------------------------------------------- the folder

_COLUMNS = ("image_id", *REGIONS, "hardware", "multiscan", "fractured", "fracture_count", *VIEWS)
_RECORD = "phantom.json"
DRAWING = 1  # raised when the same seed would draw other pictures


@dataclass(frozen=True)
class _Drawn:
    """One picture as the tables name it once it is on disk: file, (height, width), boxes, and row of dataset.csv."""

    name: str
    shape: tuple[int, ...]
    boxes: tuple[Box, ...]
    row: tuple[int, ...]


def _draw_into(folder: str, seed: int, indices: range) -> list[_Drawn]:
    """Draw and save some of the pictures; runs in a separate process."""
    cv2.setNumThreads(1)
    drawn = []
    for index in indices:
        p, name = draw_phantom(index, seed), f"{phantom_id(index)}.jpg"
        Path(folder, "images", "Fractured" if p.label else "Non_fractured", name).write_bytes(as_jpeg(p))
        # FracAtlas calls a picture mixed when it shows two regions: an elbow is tagged hand and shoulder too.
        tags = {"mixed", "hand", "shoulder"} if p.study.region == "mixed" else {p.study.region}
        row = [*(r in tags for r in REGIONS), p.hardware, p.multiscan, p.label, len(p.boxes)]
        row += [p.view == v for v in VIEWS]
        drawn.append(_Drawn(name, p.image.shape, p.boxes, tuple(map(int, row))))
    return drawn


def _annotation(number: int, image_id: int, box: Box) -> dict[str, object]:
    x, y, w, h = box
    corners = [x, y, x + w, y, x + w, y + h, x, y + h]
    return {
        "id": number,
        "iscrowd": 0,
        "image_id": image_id,
        "category_id": 0,
        "segmentation": [corners],
        "bbox": [x, y, w, h],
        "area": w * h,
    }


def _write_tables(folder: Path, drawn: Sequence[_Drawn]) -> None:
    with (folder / "dataset.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([_COLUMNS, *((d.name, *d.row) for d in drawn)])
    fractured = [d for d in drawn if d.boxes]
    boxes = [(image_id, box) for image_id, d in enumerate(fractured, start=1) for box in d.boxes]
    coco = {
        "info": {"description": "synthetic radiographs"},
        "images": [
            {"id": image_id, "width": d.shape[1], "height": d.shape[0], "file_name": d.name}
            for image_id, d in enumerate(fractured, start=1)
        ],
        "annotations": [_annotation(number, *box) for number, box in enumerate(boxes)],
        "categories": [{"id": 0, "name": "fractured"}],
    }
    masks, parts = folder / "Annotations" / "COCO JSON", folder / "Utilities" / "Fracture Split"
    masks.mkdir(parents=True)
    parts.mkdir(parents=True)
    (masks / "COCO_fracture_masks.json").write_text(json.dumps(coco))
    # The official split holds fractured pictures only, contiguous by id, 80/11/9.
    cuts = [round(share * len(fractured)) for share in (0, 0.80, 0.914, 1)]
    for name, (low, high) in zip(("train", "valid", "test"), pairwise(cuts), strict=True):
        (parts / f"{name}.csv").write_text("\n".join(["image_id", *(d.name for d in fractured[low:high])]) + "\n")


def _holds(folder: Path, record: dict[str, int]) -> bool:
    """Whether the folder holds exactly these phantoms; InputError if it holds something else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        found = json.loads((folder / _RECORD).read_text())
    except (OSError, ValueError):
        raise InputError(f"{folder}: exists, but is not a phantom set; name another folder") from None
    if found != record:
        raise InputError(f"{folder}: holds phantoms of {found}, not of {record}; delete it or name another folder")
    return True


def _end_with_parent() -> None:
    """Make this drawing process end when the one that started it has ended, killed or not."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _draw_all(folder: Path, config: PhantomConfig, progress: Callable[[int, int], None] | None) -> list[_Drawn]:
    parts = [range(low, min(low + 25, config.count)) for low in range(0, config.count, 25)]
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = max(1, min(cpus, len(parts) // 4, 16))
    # New processes: a fork would copy the locks of the caller's threads (Ray, Torch).
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _end_with_parent)
    draw = pool.map if processes > 1 else map
    drawn: list[_Drawn] = []
    try:
        with interrupts.children_spared():
            batches = draw(_draw_into, repeat(str(folder)), repeat(config.seed), parts)
        for batch in batches:
            drawn += batch
            if progress is not None:
                progress(len(drawn), config.count)
    except BrokenProcessPool:
        raise RunError(f"{folder}: a drawing process was killed; is the memory or the disk full?") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return drawn


def write_phantoms(folder: Path, config: PhantomConfig, progress: Callable[[int, int], None] | None = None) -> Path:
    """Write `config.count` phantoms in FracAtlas' layout and return the folder; draws nothing if they are there.

    progress: called with (drawn, of how many) now and then. The set gets its name once it is complete; of several
    processes that write the same set, the first one wins. Raises InputError when `folder` holds anything else.
    """
    folder = Path(folder)
    record = {"count": config.count, "seed": config.seed, "drawing": DRAWING}
    if _holds(folder, record):
        return folder
    try:
        with suppress(FileNotFoundError):
            folder.rmdir()  # an empty folder may be used
        with atomic_path(folder, replace=False) as partial:
            for name in ("Fractured", "Non_fractured"):
                (partial / "images" / name).mkdir(parents=True)
            _write_tables(partial, _draw_all(partial, config, progress))
            (partial / _RECORD).write_text(json.dumps(record))
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror or error}; name another folder") from None
    if not _holds(folder, record):
        raise InputError(f"{folder}: another command has written other phantoms there; name another folder")
    return folder
