"""The simulated patient: injury and pose, drawn at random.

Knows the frequencies of regions, fractures and implants; nothing of X-rays or files.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np

from fracray.data.phantom.anatomy import Anatomy, Bone, signed
from fracray.data.phantom.exposure import DEVICES, Device
from fracray.data.phantom.layouts import REGIONS
from fracray.data.phantom.projection import Break

KINDS = ("transverse", "oblique", "spiral", "hairline")
_KIND_SHARES = (0.37, 0.37, 0.18, 0.08)
_REGION_SHARES = (0.37, 0.48, 0.04, 0.04, 0.07)
# How often a study of each region is one of a fracture; not every picture of such a study shows it.
_FRACTURE_SHARES = {"hand": 0.46, "leg": 0.34, "hip": 0.38, "shoulder": 0.40, "mixed": 0.44}
SHOWN = 0.85
_CHUNK = 12  # ids are assigned to studies chunk by chunk, so that any picture can be drawn without the others


@dataclass(frozen=True)
class Study:
    """What the pictures of one patient share."""

    number: int
    seed: tuple[int, ...]
    region: str
    broken: bool
    device: Device
    views: tuple[str, ...]
    kind: str
    displaced: bool
    hardware: bool
    plaster: bool
    child: bool
    callus: float


def study_of(index: int, seed: int) -> tuple[Study, int]:
    """The study that picture `index` belongs to, and its place in it: studies are 1 to 4 neighbouring ids."""
    chunk, place = divmod(index, _CHUNK)
    dealer = np.random.default_rng((seed, 1, chunk))
    number = 0
    while place >= (size := int(dealer.choice((1, 2, 3, 4), p=(0.5, 0.3, 0.12, 0.08)))):
        place, number = place - size, number + 1
    key = (seed, 2, chunk, number)
    rng = np.random.default_rng(key)
    region = str(rng.choice(REGIONS, p=_REGION_SHARES))
    limb = region in {"hand", "leg", "mixed"}
    broken = bool(rng.random() < _FRACTURE_SHARES[region])
    views = ("frontal", "lateral", "oblique") if limb else ("frontal", "oblique", "lateral")
    views = ("lateral", "frontal", "oblique") if rng.random() < 0.3 else views
    kind = str(rng.choice(KINDS, p=_KIND_SHARES))
    displaced = kind != "hairline" and bool(rng.random() < 0.85)
    device = DEVICES[int(rng.choice(len(DEVICES), p=[device.share for device in DEVICES]))]
    hardware = bool(rng.random() < (0.16 if broken else 0.02))
    plaster = bool(rng.random() < (0.18 if broken else 0.03)) and limb
    child = bool(rng.random() < 0.08)
    callus = float(rng.uniform(0.6, 1.1)) if kind != "hairline" and rng.random() < 0.92 else 0.0
    number += chunk * _CHUNK
    study = Study(number, key, region, broken, device, views, kind, displaced, hardware, plaster, child, callus)
    return study, place


def placement(study: Study, rng: np.random.Generator, multiscan: bool) -> np.ndarray:
    """The 2 x 3 similarity from the anatomy's coordinates to the film's."""
    width, height = study.device.size
    angle = rng.normal(0, 3)
    if width > height and study.region not in {"hip", "shoulder"} and not multiscan and rng.random() < 0.2:
        angle += rng.choice((-90, 90))
    scale = rng.uniform(0.95, 1.06) * {"hand": 1.7, "leg": 1.4, "mixed": 1.6}.get(study.region, 1.15)
    c, s = scale * np.cos(np.deg2rad(angle)), scale * np.sin(np.deg2rad(angle))
    matrix = np.array([[c, -s], [s, c]]) @ np.diag([-1.0 if study.number % 2 else 1.0, 1.0])
    return np.column_stack([matrix, (width / 2 + rng.uniform(-14, 14), height / 2 + rng.uniform(-16, 16))])


def _plan_break(study: Study, bone: Bone, at: float, rng: np.random.Generator) -> Break:
    hair, r = study.kind == "hairline", bone.radius
    slope, pitch, shift, apex = rng.uniform(-0.15, 0.15), 0.0, 0.0, 0.0
    if study.kind == "oblique":
        slope = signed(rng, 0.6, 1.5)
    elif study.kind == "spiral":
        slope, pitch = 0.0, signed(rng, 1.1, 2.0)
    elif hair:
        slope = rng.uniform(-0.9, 0.9)
    gap = float(np.sqrt(r / 10) * (rng.uniform(1.4, 2.2) if hair else rng.uniform(3.5, 5.5)))
    depth = rng.uniform(0.5, 0.75) if hair else rng.uniform(0.85, 1.0)
    if study.displaced:
        shift = signed(rng, 0.8, 1.8) * r
        apex = signed(rng, 0.10, 0.34) * min(at, bone.length - at, 130)
    jag = tuple(float(t) for t in rng.normal(0, 0.04 * r if hair else 0.09 * r, 9))
    return Break(at, slope, pitch, gap, depth, shift, apex, jag, int(rng.choice((-1, 1))) * hair)


def _neighbour(anatomy: Anatomy, broken: int, point: tuple[float, float]) -> tuple[int, float] | None:
    """The parallel shaft next to a break, and where along it the break would continue."""
    ahead = anatomy.bones[broken].axes[0]
    for j, bone in enumerate(anatomy.bones):
        along, length = bone.axes[0], bone.length
        at = float(np.subtract(point, bone.start) @ along)
        if j == broken or bone.weight < 2 or abs(along @ ahead) <= 0.97 or not 0.12 < at / length < 0.88:
            continue
        if np.hypot(*np.subtract(bone.point(at), point)) < 8 * bone.radius:
            return j, at
    return None


def choose_breaks(study: Study, anatomy: Anatomy, rng: np.random.Generator) -> dict[int, Break]:
    """Which bone is broken and how; the study fixes the order of preference, the film what can be seen."""
    own = np.random.default_rng((*study.seed, 5))
    weights = np.array([b.weight for b in anatomy.bones])
    order = own.choice(len(weights), size=int((weights > 0).sum()), replace=False, p=weights / weights.sum())
    share = own.uniform(0.25, 0.75)
    width, height = study.device.size
    places = sorted(np.linspace(0.12, 0.88, 39), key=lambda f: abs(f - share))
    # The fracture is put in the middle of the film, where possible.
    for margin, i, place in product((90, 34), order, places):
        bone = anatomy.bones[i]
        x, y = bone.point(place * bone.length)
        if margin < x < width - margin and margin < y < height - margin:
            breaks = {int(i): _plan_break(study, bone, float(place * bone.length), rng)}
            partner = _neighbour(anatomy, int(i), (x, y))
            if study.displaced and partner and own.random() < 0.5:
                # What displaces one of two parallel bones often breaks the other.
                breaks[partner[0]] = _plan_break(study, anatomy.bones[partner[0]], partner[1], rng)
            return breaks
    raise AssertionError("no bone of the anatomy lies in the picture")
