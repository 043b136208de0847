"""Synthetic radiographs of broken and whole bones: the embedded data set, in FracAtlas' own layout.

Every picture is a pure function of (seed, index). Simulated are attenuation (Beer-Lambert), scatter, quantum and
electronic noise, and the response of a few devices; nothing here was learned from, or copied out of, a radiograph.
Knows nothing of manifests, splits or training.
"""

import csv
import json
import multiprocessing
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from itertools import repeat
from pathlib import Path

import cv2
import numpy as np

from fracray.config import PhantomConfig
from fracray.data.phantom.anatomy import Anatomy
from fracray.data.phantom.exposure import expose
from fracray.data.phantom.layouts import REGIONS, VIEWS, lay_out
from fracray.data.phantom.patient import SHOWN, Study, choose_breaks, placement, study_of
from fracray.data.phantom.projection import (
    bone_length,
    break_outline,
    on_bone,
    paint_bone,
    paint_flat_bones,
    paint_metal,
    paint_reaction,
    paint_tissue,
)
from fracray.errors import InputError, RunError

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Phantom:
    """One synthetic radiograph and all that is known of it.

    image: (H, W) uint8, bone bright; label: 1 with a fracture in the picture; boxes: (x, y, w, h) in pixels, one a
    fracture; fracture: '' or one of KINDS; study: pictures of one patient share it.
    """

    image: np.ndarray
    label: int
    boxes: tuple[Box, ...]
    region: str
    view: str
    hardware: bool
    multiscan: bool
    device: str
    fracture: str
    displaced: bool
    study: int


def _box(points: np.ndarray, size: tuple[int, int], pad: float) -> Box:
    low = np.maximum(np.floor(points.min(0) - pad), 0).astype(int)
    high = np.minimum(np.ceil(points.max(0) + pad), np.array(size)).astype(int)
    return int(low[0]), int(low[1]), int(high[0] - low[0]), int(high[1] - low[1])


def _side_by_side(anatomy: Anatomy, matrix: np.ndarray, size: tuple[int, int]) -> Anatomy:
    """Both limbs on one film, the second one the mirror image of the first."""
    width, height = size
    small = matrix.copy()
    small[:, :2] *= 0.62
    small[:, 2] = (0.27 * width, height / 2)
    other = small.copy()
    other[0] *= -1
    other[0, 2] += width
    return anatomy.placed(small) + anatomy.placed(other)


def draw_phantom(index: int, seed: int) -> Phantom:
    """Draw one synthetic radiograph, a pure function of (seed, index).

    The same arguments give the same bytes in any order and in any process; neighbouring indices may be views of one
    patient (study).
    """
    study, place = study_of(index, seed)
    rng = np.random.default_rng((seed, 3, index))
    width, height = study.device.size
    view = study.views[place % len(study.views)]
    anatomy = lay_out(study.region, view, np.random.default_rng((*study.seed, 4)))
    label = int(study.broken and rng.random() < SHOWN)
    multiscan = study.region in {"hand", "leg"} and view == "frontal" and bool(rng.random() < 0.04)
    matrix = placement(study, rng, multiscan)
    anatomy = _side_by_side(anatomy, matrix, study.device.size) if multiscan else anatomy.placed(matrix)

    breaks = choose_breaks(study, anatomy, rng) if label else {}
    muscle = rng.standard_normal((height // 40, width // 40), np.float32)
    attenuation = paint_tissue((height, width), anatomy.tissues, muscle, rng.uniform(11, 18) if study.plaster else 0.0)
    if anatomy.strips or anatomy.plates:
        attenuation += paint_flat_bones((height, width), anatomy.strips, anatomy.plates)
    physis = float(rng.uniform(0.2, 0.45)) if study.child else 0.0
    for i, bone in enumerate(anatomy.bones):
        paint_bone(attenuation, bone, _trabeculae(), physis if bone.weight else 0.0, breaks.get(i))
    for i, planned in breaks.items():
        paint_reaction(attenuation, anatomy.bones[i], planned, study.callus, rng)
    hardware = study.hardware and not multiscan
    if hardware:
        i = next(iter(breaks), _stoutest(anatomy, study.device.size))
        paint_metal(
            attenuation,
            anatomy.bones[i],
            breaks[i].at if i in breaks else None,
            np.random.default_rng((*study.seed, 6)),
        )
    _paint_confounders(attenuation, anatomy, study, rng)
    image = expose(attenuation, study.device, rng)
    boxes = tuple(
        _box(break_outline(anatomy.bones[i], b), study.device.size, 3 + 0.35 * anatomy.bones[i].radius)
        for i, b in breaks.items()
    )
    return Phantom(
        image=image,
        label=label,
        boxes=boxes,
        region=study.region,
        view=view,
        hardware=hardware,
        multiscan=multiscan,
        device=study.device.name,
        fracture=study.kind if label else "",
        displaced=bool(label and study.displaced),
        study=study.number,
    )


@lru_cache(maxsize=1)
def _trabeculae() -> np.ndarray:
    """(H, W) float32 around 1, larger than any picture: the pattern of spongy bone."""
    coarse = np.random.default_rng(10).standard_normal((480, 300), np.float32)
    return 1 + np.float32(0.16) * cv2.resize(coarse, (600, 960), interpolation=cv2.INTER_LINEAR)


def _stoutest(anatomy: Anatomy, size: tuple[int, int]) -> int:
    """The bone that metal most likely sits in: the stoutest breakable one whose middle is in the picture."""

    def rank(i: int) -> tuple[bool, float]:
        bone = anatomy.bones[i]
        x, y = on_bone(bone, bone_length(bone) / 2)
        return bool(bone.weight and 20 < x < size[0] - 20 and 20 < y < size[1] - 20), bone.weight * bone.radius

    return max(range(len(anatomy.bones)), key=rank)


def _paint_confounders(attenuation: np.ndarray, anatomy: Anatomy, study: Study, rng: np.random.Generator) -> None:
    """Lines that are no fracture: vessel channels, skin folds, a bangle, a side letter."""
    height, width = attenuation.shape
    layer = np.zeros((height, width), np.uint8)

    def fixed(point: tuple[float, float]) -> list[int]:
        return [round(c * 16) for c in point]

    shafts = [b for b in anatomy.bones if b.weight >= 2]
    for bone in shafts:
        if rng.random() < 0.3:
            # A nutrient canal: thin, oblique, through one cortex only.
            at, side = rng.uniform(0.3, 0.7) * bone_length(bone), rng.choice((-1, 1)) * bone.radius
            a, b = on_bone(bone, at, side), on_bone(bone, at + rng.uniform(1.2, 2.5) * bone.radius, 0.3 * side)
            cv2.line(layer, fixed(a), fixed(b), 60, 1, cv2.LINE_AA, 4)
    if rng.random() < 0.5:
        y, slope = rng.uniform(0.15, 0.85) * height, rng.normal(0, 0.25)
        cv2.line(layer, fixed((0, y)), fixed((width, y + slope * width)), int(rng.integers(12, 30)), 1, cv2.LINE_AA, 4)
    x, y, w, h = cv2.boundingRect(layer)
    attenuation[y : y + h, x : x + w] *= 1 - layer[y : y + h, x : x + w] * np.float32(0.8 / 255)
    layer[:] = 0
    if study.region == "hand" and rng.random() < 0.06:
        bone = shafts[0]
        centre = on_bone(bone, 0.9 * bone_length(bone))
        cv2.ellipse(
            layer, fixed(centre), fixed((34, rng.uniform(4, 12))), rng.normal(0, 6), 0, 360, 255, 4, cv2.LINE_AA, 4
        )
    if rng.random() < study.device.marker:
        aside, down = int(rng.uniform(12, 40)), int(rng.uniform(25, 60))
        aside = aside if rng.random() < 0.5 else width - aside - 16
        cv2.putText(layer, "RL"[study.number % 2], (aside, down), cv2.FONT_HERSHEY_SIMPLEX, 0.5, 255, 1, cv2.LINE_AA)
    x, y, w, h = cv2.boundingRect(layer)
    attenuation[y : y + h, x : x + w] += layer[y : y + h, x : x + w] * np.float32(2.5 / 255)


_COLUMNS = (
    "image_id",
    *("hand", "leg", "hip", "shoulder", "mixed"),
    *("hardware", "multiscan", "fractured", "fracture_count"),
    *("frontal", "lateral", "oblique"),
)
_RECORD = "phantom.json"
DRAWING = 1  # raised when the same seed would draw other pictures


@dataclass(frozen=True)
class _Drawn:
    """What the tables say of one picture once it is on disk."""

    index: int
    size: tuple[int, int]
    boxes: tuple[Box, ...]
    row: tuple[int, ...]


def _file_name(index: int) -> str:
    return f"IMG{index:07d}.jpg"


def _draw_into(folder: str, seed: int, indices: range) -> list[_Drawn]:
    """Draw and save some of the pictures; runs in a process of its own."""
    cv2.setNumThreads(1)
    drawn = []
    for index in indices:
        p = draw_phantom(index, seed)
        path = Path(folder, "images", "Fractured" if p.label else "Non_fractured", _file_name(index))
        if not cv2.imwrite(str(path), p.image, [cv2.IMWRITE_JPEG_QUALITY, 92]):
            raise OSError(f"{path}: not written")
        # FracAtlas calls a picture mixed when it shows two regions: an elbow is tagged hand and shoulder too.
        regions = [int(p.region == r or (p.region == "mixed" and r in {"hand", "shoulder"})) for r in REGIONS]
        views = [int(p.view == v) for v in VIEWS]
        row = (*regions, int(p.hardware), int(p.multiscan), p.label, len(p.boxes), *views)
        drawn.append(_Drawn(index, (p.image.shape[1], p.image.shape[0]), p.boxes, row))
    return drawn


def _write_tables(folder: Path, drawn: Sequence[_Drawn]) -> None:
    with (folder / "dataset.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_COLUMNS)
        writer.writerows((_file_name(d.index), *d.row) for d in drawn)
    fractured = [d for d in drawn if d.boxes]
    annotations: list[dict[str, object]] = []
    for image_id, d in enumerate(fractured, start=1):
        for x, y, w, h in d.boxes:
            corners = [x, y, x + w, y, x + w, y + h, x, y + h]
            annotations.append(
                {
                    "id": len(annotations),
                    "iscrowd": 0,
                    "image_id": image_id,
                    "category_id": 0,
                    "segmentation": [corners],
                    "bbox": [x, y, w, h],
                    "area": w * h,
                }
            )
    coco = {
        "info": {"description": "synthetic radiographs"},
        "images": [
            {"id": i, "width": d.size[0], "height": d.size[1], "file_name": _file_name(d.index)}
            for i, d in enumerate(fractured, start=1)
        ],
        "annotations": annotations,
        "categories": [{"id": 0, "name": "fractured"}],
    }
    masks = folder / "Annotations" / "COCO JSON"
    masks.mkdir(parents=True)
    (masks / "COCO_fracture_masks.json").write_text(json.dumps(coco))
    # The official split holds fractured pictures only, contiguous by id, 80/11/9.
    parts = folder / "Utilities" / "Fracture Split"
    parts.mkdir(parents=True)
    cuts = (0, round(0.80 * len(fractured)), round(0.914 * len(fractured)), len(fractured))
    for name, low, high in zip(("train", "valid", "test"), cuts[:-1], cuts[1:], strict=True):
        lines = ["image_id", *(_file_name(d.index) for d in fractured[low:high])]
        (parts / f"{name}.csv").write_text("\n".join(lines) + "\n")


def _record(config: PhantomConfig) -> dict[str, int]:
    return {"count": config.count, "seed": config.seed, "drawing": DRAWING}


def _holds(folder: Path, config: PhantomConfig) -> bool:
    """Whether the folder holds just these phantoms; InputError if it holds something else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        record = json.loads((folder / _RECORD).read_text())
    except (OSError, ValueError):
        raise InputError(f"{folder}: exists and is no phantom set; name another folder") from None
    if record != _record(config):
        raise InputError(
            f"{folder}: holds phantoms of {record}, not of {_record(config)}; delete it or name another folder"
        )
    return True


def _leave_with_the_parent() -> None:
    """Make this drawing process end when the one that started it is gone, killed or not."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _draw_all(folder: Path, config: PhantomConfig, progress: Callable[[int, int], None] | None) -> list[_Drawn]:
    step = 25
    parts = [range(low, min(low + step, config.count)) for low in range(0, config.count, step)]
    processes = min(
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, len(parts) // 4, 16
    )
    drawn: list[_Drawn] = []

    def take(batch: list[_Drawn]) -> None:
        drawn.extend(batch)
        if progress is not None:
            progress(len(drawn), config.count)

    if processes < 2:
        for part in parts:
            take(_draw_into(str(folder), config.seed, part))
        return drawn
    # Fresh processes: a fork would copy the locks of whatever threads (Ray, Torch) the caller has running.
    pool = ProcessPoolExecutor(
        processes, mp_context=multiprocessing.get_context("spawn"), initializer=_leave_with_the_parent
    )
    try:
        for batch in pool.map(_draw_into, repeat(str(folder)), repeat(config.seed), parts):
            take(batch)
    except BrokenProcessPool:
        raise RunError(f"{folder}: a drawing process was killed; is the memory or the disk full?") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return drawn


def write_phantoms(folder: Path, config: PhantomConfig, progress: Callable[[int, int], None] | None = None) -> Path:
    """Write `config.count` phantoms in FracAtlas' layout and return the folder; draws nothing if they are there.

    progress: called with (drawn, of how many) now and then. The set is built beside `folder` and renamed when whole, so
    that a half-written one never bears its name; of several processes that write the same set, the first one wins.
    Raises InputError when `folder` holds anything else.
    """
    folder = Path(folder)
    if _holds(folder, config):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror}; name a folder that can") from None
    try:
        for name in ("Fractured", "Non_fractured"):
            (partial / "images" / name).mkdir(parents=True)
        _write_tables(partial, _draw_all(partial, config, progress))
        (partial / _RECORD).write_text(json.dumps(_record(config)))
        partial.chmod(0o755)
        try:
            partial.rename(folder)
        except OSError:
            # Another process was first: its set is as good as ours, if it is the same.
            if not _holds(folder, config):
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def contact_sheet(images: Sequence[np.ndarray], columns: int, captions: Sequence[str] | None = None) -> np.ndarray:
    """Tile gray images, each letterboxed to the largest, into one picture.

    images: (H, W) uint8, sizes may differ; captions: one per image, written below it.
    Returns uint8, rows by columns of tiles.
    """
    assert images
    assert columns > 0
    assert captions is None or len(captions) == len(images)
    height = max(i.shape[0] for i in images)
    width = max(i.shape[1] for i in images)
    foot = 0 if captions is None else 16
    rows = -(-len(images) // columns)
    sheet = np.zeros((rows * (height + foot + 2), columns * (width + 2)), np.uint8)
    for n, image in enumerate(images):
        y, x = n // columns * (height + foot + 2), n % columns * (width + 2)
        h, w = image.shape
        sheet[y + (height - h) // 2 :, x + (width - w) // 2 :][:h, :w] = image
        if captions is not None:
            cv2.putText(
                sheet, captions[n], (x + 3, y + height + 12), cv2.FONT_HERSHEY_SIMPLEX, 0.36, 230, 1, cv2.LINE_AA
            )
    return sheet
