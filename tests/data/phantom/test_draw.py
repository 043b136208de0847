"""The synthetic radiographs: pure functions of (seed, index), in FracAtlas' layout, complete or not there at all."""

import csv
import hashlib
import json
import multiprocessing
import os
import signal
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from fracray.config import PhantomConfig
from fracray.data.phantom.draw import Phantom, draw_phantom, write_phantoms
from fracray.data.phantom.exposure import DEVICES, expose
from fracray.data.phantom.patient import KINDS
from fracray.errors import InputError

COUNT = 240
# The header of the published dataset.csv (doi 10.1038/s41597-023-02432-4).
HEADER = ["image_id", "hand", "leg", "hip", "shoulder", "mixed", "hardware", "multiscan"]
HEADER += ["fractured", "fracture_count", "frontal", "lateral", "oblique"]


@pytest.fixture(scope="module")
def phantoms() -> list[Phantom]:
    return [draw_phantom(i, 0) for i in range(COUNT)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantoms(tmp_path_factory.mktemp("phantoms") / "set", PhantomConfig(count=COUNT))


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "dataset.csv").open() as file:
        return list(csv.DictReader(file))


def digest(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


# --- drawing


def test_a_phantom_depends_only_on_its_seed_and_index(phantoms: list[Phantom]) -> None:
    for i in (37, 3, 200):
        again = draw_phantom(i, 0)
        np.testing.assert_array_equal(again.image, phantoms[i].image)
        assert (again.boxes, again.study) == (phantoms[i].boxes, phantoms[i].study)
    other = draw_phantom(3, 1)
    assert other.image.shape != phantoms[3].image.shape or (other.image != phantoms[3].image).mean() > 0.5


def test_images_are_gray_films_of_the_sizes_of_fracatlas(phantoms: list[Phantom]) -> None:
    sizes = Counter(p.image.shape for p in phantoms)
    assert all(p.image.dtype == np.uint8 for p in phantoms)
    assert {(454, 373), (373, 454)} <= set(sizes)
    assert sizes[454, 373] > COUNT / 2
    assert all(p.image.std() > 10 for p in phantoms)


def test_label_boxes_and_study_agree(phantoms: list[Phantom]) -> None:
    for p in phantoms:
        assert p.label == int(bool(p.boxes))
        assert p.study.broken or not p.label
        assert not (p.study.kind == "hairline" and p.study.displaced)
    shown = [p.label for p in phantoms if p.study.broken]
    assert 0.7 < np.mean(shown) < 0.95


def test_boxes_lie_inside_the_picture(phantoms: list[Phantom]) -> None:
    boxes = [(box, p.image.shape) for p in phantoms for box in p.boxes]
    assert boxes
    for (x, y, w, h), (height, width) in boxes:
        assert x >= 0
        assert y >= 0
        assert w >= 6
        assert h >= 6
        assert x + w <= width
        assert y + h <= height


def test_boxes_hold_the_fracture(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken study drawn without its breaks differs from itself most inside the boxes."""
    from fracray.data.phantom import draw as phantom

    inside, outside = [], []
    choose = phantom.choose_breaks
    for i in range(60):
        broken = draw_phantom(i, 0)
        if not broken.label or broken.hardware:
            continue
        # Plan the breaks, so that the generator's state is the same, then leave them out.
        monkeypatch.setattr(phantom, "choose_breaks", lambda *a: (choose(*a), {})[1])
        intact = draw_phantom(i, 0)
        monkeypatch.setattr(phantom, "choose_breaks", choose)
        assert intact.boxes == ()
        change = cv2.blur(np.abs(broken.image.astype(np.float32) - intact.image), (9, 9))
        mask = np.zeros(change.shape, bool)
        for x, y, w, h in broken.boxes:
            mask[y : y + h, x : x + w] = True
        inside.append(change[mask].mean())
        outside.append(change[~mask].mean())
    assert len(inside) >= 8
    assert np.mean(np.array(inside) > np.array(outside)) > 0.8


def test_prevalence_kinds_regions_and_views(phantoms: list[Phantom]) -> None:
    assert 0.27 <= np.mean([p.label for p in phantoms]) <= 0.43
    assert {p.study.kind for p in phantoms if p.label} == {*KINDS}
    assert {p.study.region for p in phantoms} == {"hand", "leg", "hip", "shoulder", "mixed"}
    assert {p.view for p in phantoms} == {"frontal", "lateral", "oblique"}
    displaced = [p.study.displaced for p in phantoms if p.label]
    assert 0.2 < np.mean(displaced) < 0.9
    hardware = [p.label for p in phantoms if p.hardware]
    assert 0 < sum(hardware) < len(hardware)


def test_a_study_is_a_run_of_neighbours_of_one_patient(phantoms: list[Phantom]) -> None:
    numbers = [p.study.number for p in phantoms]
    assert numbers == sorted(numbers)
    studies = Counter(numbers)
    assert set(studies.values()) == {1, 2, 3, 4}
    for number in studies:
        assert len({p.study for p in phantoms if p.study.number == number}) == 1


def test_the_number_of_a_picture_hardly_predicts_its_label(phantoms: list[Phantom]) -> None:
    shares = np.array([p.label for p in phantoms]).reshape(-1, 60).mean(1)
    assert shares.min() > 0.1
    assert shares.max() < 0.65


def test_devices_differ_in_exposure() -> None:
    """The same limb, exposed by each device: brightness, contrast and noise are the device's own."""
    attenuation = np.zeros((454, 373), np.float32)
    attenuation[:, 120:250] = 0.8
    attenuation[:, 160:200] = 1.8
    bare, noise = [], []
    for device in DEVICES:
        films = [expose(attenuation.copy(), device, np.random.default_rng(i)).astype(float) for i in range(8)]
        bare.append(np.mean([film[100:350, 60:100].mean() for film in films]))
        noise.append(np.mean([np.diff(film[100:350, 170:190]).std() for film in films]))
        assert all(f[200:250, 170:190].mean() > f[200:250, 130:150].mean() > f[200:250, 70:90].mean() for f in films)
    assert max(bare) > 1.5 * min(bare)
    assert max(noise) > 1.5 * min(noise)


def test_a_higher_dose_is_less_noisy() -> None:
    """Quantum noise of a flat field falls with the square root of the dose."""
    from dataclasses import replace

    def noise(dose: float) -> float:
        device = replace(DEVICES[2], dose=dose, bands=0.0, edge=0.0, gamma=1.0)
        flat = np.full((454, 373), 1.0, np.float32)
        flat[:, 300:] = 2.5  # keeps the display window where it is
        films = [expose(flat.copy(), device, np.random.default_rng(i)) for i in range(6)]
        return float(np.mean([f[80:380, 80:280].astype(float).std() for f in films]))

    assert noise(500) / noise(8000) == pytest.approx(4.0, rel=0.2)


# --- the folder


def test_the_folder_has_the_layout_of_fracatlas(folder: Path) -> None:
    with (folder / "dataset.csv").open() as file:
        assert next(csv.reader(file)) == HEADER
    table = rows(folder)
    assert [r["image_id"] for r in table] == [f"IMG{i:07d}.jpg" for i in range(COUNT)]
    for r in table:
        name = "Fractured" if r["fractured"] == "1" else "Non_fractured"
        image = cv2.imread(str(folder / "images" / name / r["image_id"]), cv2.IMREAD_UNCHANGED)
        assert image is not None
        assert image.ndim == 2
        assert sum(int(r[c]) for c in ("frontal", "lateral", "oblique")) == 1
        assert sum(int(r[c]) for c in ("hand", "leg", "hip", "shoulder")) == 1 + int(r["mixed"])
    assert sum(1 for _ in (folder / "images").rglob("*.jpg")) == COUNT


def test_the_tables_agree_with_the_phantoms(folder: Path, phantoms: list[Phantom]) -> None:
    table = rows(folder)
    coco = json.loads((folder / "Annotations" / "COCO JSON" / "COCO_fracture_masks.json").read_text())
    images = {i["id"]: i for i in coco["images"]}
    boxes: dict[str, list[tuple[int, ...]]] = {}
    for a in coco["annotations"]:
        boxes.setdefault(images[a["image_id"]]["file_name"], []).append(tuple(a["bbox"]))
        assert a["area"] == a["bbox"][2] * a["bbox"][3]
    for r, p in zip(table, phantoms, strict=True):
        assert (int(r["fractured"]), int(r["fracture_count"])) == (p.label, len(p.boxes))
        assert (int(r["hardware"]), int(r["multiscan"])) == (p.hardware, p.multiscan)
        assert r[p.study.region] == r[p.view] == "1"
        assert boxes.get(r["image_id"], []) == list(p.boxes)
    for image in images.values():
        assert (image["height"], image["width"]) == phantoms[int(image["file_name"][3:10])].image.shape
    parts = [
        (folder / "Utilities" / "Fracture Split" / f"{part}.csv").read_text().split()
        for part in ("train", "valid", "test")
    ]
    assert all(part[0] == "image_id" for part in parts)
    listed = [name for part in parts for name in part[1:]]
    assert listed == [r["image_id"] for r in table if r["fractured"] == "1"]


@pytest.mark.skipif("FRACRAY_FRACATLAS" not in os.environ, reason="needs the radiographs of FracAtlas")
def test_the_files_are_those_of_the_real_fracatlas(folder: Path) -> None:
    real = Path(os.environ["FRACRAY_FRACATLAS"])

    def shape(value: object) -> object:
        if isinstance(value, dict):
            return {key: shape(item) for key, item in value.items() if key != "description"}
        return [shape(value[0])] if isinstance(value, list) else "number" if isinstance(value, int | float) else "text"

    assert (real / "dataset.csv").read_text().splitlines()[0] == (folder / "dataset.csv").read_text().splitlines()[0]
    masks = Path("Annotations", "COCO JSON", "COCO_fracture_masks.json")
    assert shape(json.loads((real / masks).read_text())) == shape(json.loads((folder / masks).read_text()))
    for part in ("train", "valid", "test"):
        name = Path("Utilities", "Fracture Split", f"{part}.csv")
        assert (real / name).read_text().splitlines()[0] == (folder / name).read_text().splitlines()[0]


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_processes(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    config = PhantomConfig(count=120, seed=3)
    many = write_phantoms(tmp_path / "many", config, lambda done, of: seen.append((done, of)))
    assert seen[-1] == (120, 120)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    affinity = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(affinity)})
    try:
        one = write_phantoms(tmp_path / "one", config)
    finally:
        os.sched_setaffinity(0, affinity)
    assert digest(many) == digest(one)


def test_a_set_that_is_there_is_not_drawn_again(folder: Path) -> None:
    before = (folder / "dataset.csv").stat().st_mtime_ns
    calls: list[int] = []
    assert write_phantoms(folder, PhantomConfig(count=COUNT), lambda done, of: calls.append(done)) == folder
    assert calls == []
    assert (folder / "dataset.csv").stat().st_mtime_ns == before


def test_a_folder_of_something_else_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="delete it or name another folder"):
        write_phantoms(folder, PhantomConfig(count=COUNT, seed=9))
    (tmp_path / "letters.txt").write_text("keep me")
    with pytest.raises(InputError, match="not a phantom set"):
        write_phantoms(tmp_path, PhantomConfig(count=50))
    assert (tmp_path / "letters.txt").read_text() == "keep me"


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    def stop(done: int, of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_phantoms(tmp_path / "set", PhantomConfig(count=50), stop)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_write_leaves_nothing_under_the_final_name(tmp_path: Path) -> None:
    target = tmp_path / "set"
    writer = multiprocessing.get_context("spawn").Process(
        target=write_phantoms, args=(target, PhantomConfig(count=5000))
    )
    writer.start()
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("*/images/*/*.jpg")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert writer.pid is not None
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    assert list(tmp_path.glob("*/images/*/*.jpg"))
    assert not target.exists()
    assert write_phantoms(target, PhantomConfig(count=50)) == target


def test_two_writers_of_one_set_agree(tmp_path: Path) -> None:
    target, config = tmp_path / "set", PhantomConfig(count=50, seed=5)
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_phantoms, args=(target, config)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert len(rows(target)) == 50
    assert [p.name for p in tmp_path.iterdir()] == ["set"]
