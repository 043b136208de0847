"""Where the bones and soft tissue of each body region lie in each view.

In pixels of a 373 x 454 film, origin at its centre, x to the right and y down the limb; knows nothing of X-rays,
fractures, devices or files.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from fracray.data.phantom.anatomy import Anatomy, Bone, FlatBone, Point, Tissue, signed

REGIONS = ("hand", "leg", "hip", "shoulder", "mixed")
VIEWS = ("frontal", "lateral", "oblique")
# How far bones that lie side by side in the frontal view are spread in each view.
SPREAD = {"frontal": 1.0, "oblique": 0.75, "lateral": 0.42}
FAR = 420.0  # beyond the film


def _toward(start: Point, angle: float, length: float) -> Point:
    """The point `length` from `start`, at `angle` degrees from straight down (positive to the right)."""
    turn = np.deg2rad(angle)
    return float(start[0] + length * np.sin(turn)), float(start[1] + length * np.cos(turn))


def _blob(x: float, y: float, width: float, height: float, density: float = 0.8) -> Bone:
    """A short spongy bone: a carpal, the patella, a femoral head."""
    top, bottom, r = (x, y - height / 2), (x, y + height / 2), width / 2
    return Bone(top, bottom, r, (r, r), height / 2, 0.16, square=2.2, density=density)


def _ray(
    start: Point, angle: float, lengths: Iterable[float], radius: float, weights: Sequence[float], curl: float
) -> tuple[list[Bone], tuple[Point, ...]]:
    """A finger or toe: bones in a chain that bends by `curl` degrees at each joint; also its joints."""
    bones, joints = [], [start]
    for i, length in enumerate(lengths):
        r = radius * 0.9**i
        joints.append(_toward(start, angle, length))
        bones.append(Bone(start, joints[-1], r, (r * 1.55, r * 1.5), 9.0, 0.36, weight=weights[i]))
        start = _toward(joints[-1], angle, 2.5)
        angle += curl
    return bones, tuple(joints)


_CARPALS = ((-19, 10, 17), (-4, 7, 16), (11, 9, 16), (-24, 26, 15), (-10, 25, 14), (4, 26, 17), (18, 25, 15))


def _fingers(wrist: Point, view: str, rng: np.random.Generator, size: float) -> Anatomy:
    """Carpals, metacarpals and phalanges below the wrist."""
    k, (x0, y0) = SPREAD[view], wrist
    bones = [_blob(x0 + size * k * x, y0 + size * y, size * w, size * w * 0.95, 0.75) for x, y, w in _CARPALS]
    spread, curl = rng.uniform(0.75, 1.35), rng.uniform(-2, 6) * (1 if view == "frontal" else 2.0)
    tissues = [Tissue((wrist, (x0, y0 + 92 * size)), (max(36 * k, 23) * size, max(48 * k, 20) * size), 22 * size)]
    for i, (turn, length) in enumerate(((-11, 1.0), (-3, 1.04), (5, 0.96), (14, 0.86))):
        base = (x0 + size * k * (-19 + 13.5 * i), y0 + 38 * size)
        lengths = [size * length * part for part in (58, 38, 23, 15)]
        ray, joints = _ray(base, turn * spread * k, lengths, 6.0 * size, (0.8, 0.3, 0.1, 0.0), curl * (0.5 + 0.3 * i))
        bones += ray
        tissues.append(Tissue(joints[1:], tuple(size * w for w in (15, 11, 9.5, 7.5)), 11 * size))
    base, angle = (x0 - 25 * k * size, y0 + 26 * size), -rng.uniform(25, 48) * (0.4 + 0.6 * k)
    thumb, joints = _ray(base, angle, [size * part for part in (42, 29, 20)], 6.2 * size, (0.4, 0.2, 0.0), 8)
    tissues.append(Tissue(joints, tuple(size * w for w in (20, 16, 11, 8)), 13 * size))
    return Anatomy((*bones, *thumb), tuple(tissues))


def _forearm(elbow: Point, wrist: Point, view: str, rng: np.random.Generator) -> Anatomy:
    k, (x0, y0), (x1, y1) = SPREAD[view], elbow, wrist
    cross, down = np.array([y1 - y0, x0 - x1]) / np.hypot(x1 - x0, y1 - y0)
    thick, gap = rng.uniform(0.9, 1.15), rng.uniform(18, 21)

    def aside(point: Point, offset: float, along: float) -> Point:
        return point[0] + cross * offset - down * along, point[1] + down * offset + cross * along

    top, end, bow = aside(elbow, gap * k, 6), aside(wrist, gap * k * 0.62, -1), rng.uniform(4, 10) * k
    radius = Bone(top, end, 11.0 * thick, (12, 19 * thick), 30, 0.34, bow, 3.0, 4.0)
    top, end, bow = aside(elbow, -gap * k * 0.7, -12), aside(wrist, -gap * k * 1.05, -6), -rng.uniform(0, 5) * k
    ulna = Bone(top, end, 9.5 * thick, (17, 10), 34, 0.36, bow, 2.6, 3.0)
    width = max(43 * k, 30) * rng.uniform(0.95, 1.2)
    middle = aside(((x0 + x1) / 2, (y0 + y1) / 2), 0, -(y1 - y0) * 0.15)
    return Anatomy((radius, ulna), (Tissue((elbow, middle, wrist), (width * 1.2, width * 1.3, max(37 * k, 25)), 34),))


def _hand(view: str, rng: np.random.Generator) -> Anatomy:
    """The hand with the distal forearm, or the forearm with the beginning of the hand."""
    upper = Anatomy()
    if rng.random() < 0.12:
        wrist, elbow, size = (0.0, -25.0), (rng.uniform(-15, 15), -370.0), rng.uniform(1.0, 1.2)
    else:
        wrist, elbow, size = (0.0, 120.0), (rng.uniform(-10, 10), -165.0), rng.uniform(0.95, 1.1)
        top, end, ends = (elbow[0], -FAR), (elbow[0], elbow[1] - 7), (14, 28 * (0.55 + 0.45 * SPREAD[view]))
        stub = Bone(top, end, 12, ends, 40, square=3.2, weight=0.5)
        upper = Anatomy((stub,), (Tissue((top, elbow), (44, 44), 38),))
    arm = _forearm(elbow, wrist, view, rng)
    # Plaster goes around the first tissue: the forearm's.
    return Anatomy(upper.bones, arm.tissues) + Anatomy(arm.bones, upper.tissues) + _fingers(wrist, view, rng, size)


def _foot(ankle: Point, view: str) -> Anatomy:
    x, y = ankle
    if view == "lateral":
        heel = Bone((x - 58, y + 62), (x + 16, y + 44), 18, (22, 17), 20, 0.14, square=2.6, density=0.8, weight=0.8)
        bones = [_blob(x + 4, y + 20, 56, 32), heel, _blob(x + 34, y + 40, 24, 30), _blob(x + 56, y + 50, 26, 26)]
        for i in range(4):
            bones += _ray((x + 68, y + 46 + 6 * i), 66 - 4 * i, (70 - 3 * i, 26, 15), 7.0, (0.5, 0.2, 0), 6)[0]
        line = ((x - 52, y + 58), (x + 10, y + 38), (x + 90, y + 72), (x + 190, y + 112))
        return Anatomy(tuple(bones), (Tissue(line, (32, 46, 32, 16), 34),))
    k = 0.6 + 0.4 * SPREAD[view]
    tarsals = ((0, 16, 56, 30), (-3, 46, 50, 40), (-14, 78, 26, 26), (12, 80, 30, 26))
    bones = [_blob(x + dx, y + dy, width, height) for dx, dy, width, height in tarsals]
    for i, (angle, length) in enumerate(((-9, 56), (-5, 64), (0, 62), (5, 58), (11, 54))):
        base = (x + k * (-26 + 13 * i), y + 92 - abs(i - 1) * 2)
        bones += _ray(base, angle * k, (length, 26, 15), 5.4 if i else 8.2, (0.6, 0.2, 0), 1)[0]
    line = ((x, y), (x, y + 90), (x + 2, y + 165), (x + 2, y + 205))
    return Anatomy(tuple(bones), (Tissue(line, (40, 48 * k, 54 * k, 44 * k), 40),))


def _leg(view: str, rng: np.random.Generator) -> Anatomy:
    """The knee, the shin, or the ankle with the foot."""
    k, thick = SPREAD[view], rng.uniform(0.9, 1.12)
    knee_y, ankle_y = ((-15.0, 390.0), (-190.0, 160.0), (-390.0, -35.0))[int(rng.choice(3, p=(0.18, 0.72, 0.10)))]
    lean, side = rng.uniform(-6, 6), 0.45 + 0.55 * k
    ankle, ends = (lean, ankle_y), (46 * side, 25 * side + 2)
    tibia = Bone((0.0, knee_y + 3), ankle, 17 * thick, ends, 44, 0.34, rng.uniform(-4, 4), 3.6, 4.0)
    top, end = (46 * k - 8, knee_y + 26), (lean + 34 * k - 6, ankle_y + 14)
    fibula = Bone(top, end, 6.5 * thick, (11, 10), 26, 0.42, rng.uniform(-5, 5), weight=2.0)
    line = ((4.0, knee_y), (6.0, knee_y + 110), (3.0, ankle_y - 70), ankle)
    leg = Anatomy((fibula, tibia), (Tissue(line, (60, 66 * rng.uniform(0.95, 1.2), 42, 40), 56),))
    if knee_y > -300:
        knee = (0.0, knee_y)
        bend = rng.uniform(-4, 4) if view == "frontal" else signed(rng, 8, 48)
        hip, width = _toward(knee, 180 + bend, 420), 46 * (0.62 + 0.38 * k)
        femur = Bone(hip, (0.0, knee_y - 3), 19 * thick, (30, width), 52, 0.32, rng.uniform(-4, 4), 3.0, 3.0)
        if view == "frontal":
            patella = _blob(rng.uniform(-4, 4), knee_y - 38, 42, 42, 0.35)
        else:
            patella = _blob(-(width + 12) * np.sign(bend), knee_y - 28, 22, 40)
        leg += Anatomy((femur, patella), (Tissue((_toward(knee, 180 + bend, 300), knee), (96, 62), 66),))
    return leg + _foot(ankle, "lateral" if view == "lateral" else "frontal") if ankle_y < 300 else leg


def _femur(x: float, y: float, side: int, view: str, rng: np.random.Generator, size: float) -> tuple[Bone, ...]:
    """Head at (x, y), neck, greater trochanter and shaft; `side` 1 has the shaft to the right of the head."""
    reach = (34 + 18 * SPREAD[view]) * size
    knee, top = (x + side * (reach - 4 * size), y + 330 * size), (x + side * reach, y + 22 * size)
    head, low = (x + side * 4 * size, y + 4 * size), (x + side * reach, y + 40 * size)
    ends = (19 * size, 18 * size)
    return (
        _blob(x, y, 47 * size, 47 * size, 0.85),
        Bone(head, low, 15 * size, ends, 16 * size, 0.2, weight=1.0, density=0.9),
        _blob(top[0] + side * 6 * size, top[1] + 8 * size, 28 * size, 50 * size, 0.7),
        Bone(top, knee, 15.5 * size, (25 * size, 26 * size), 50 * size, 0.38, side * rng.uniform(-5, 5), weight=4.0),
    )


# Half a pelvis: radius (0 for the wing of the ilium), density and line of rim, inlet, rami, socket and wing.
_PELVIS = (
    (5, 0.7, ((22, -12), (30, -48), (62, -76), (98, -66), (114, -36), (106, -4), (96, 22))),
    (8, 0.9, ((24, 4), (40, 24), (52, 48), (48, 74), (30, 92), (6, 100))),
    (7, 0.7, ((6, 102), (22, 114), (40, 130), (56, 122), (62, 96), (66, 70))),
    (4, 1.0, ((92, 22), (74, 30), (64, 50), (68, 70), (80, 80))),
    (0, 0.8, ((22, -10), (30, -48), (62, -76), (98, -66), (114, -36), (106, -4), (92, 22), (66, 30), (44, 14))),
)


def _spine(x: float, top: float, bottom: float, size: float) -> tuple[Bone, ...]:
    step, ends = 29 * size, (22 * size, 22 * size)
    tops = np.arange(bottom - step, top - step, -step)
    return tuple(Bone((x, y), (x, y + step - 4), 19 * size, ends, 8, 0.12, square=4.0, density=0.4) for y in tops)


def _hip(view: str, rng: np.random.Generator) -> Anatomy:
    """The pelvis with both hips, or one hip close up."""
    size, x0 = (1.5, -150.0) if rng.random() < 0.6 else (1.05, 0.0)
    x0, y0 = x0 + rng.uniform(-12, 12), -60.0 + rng.uniform(-15, 15)
    top, end, ends = (x0, y0 - 34 * size), (x0, y0 + 52 * size), (30 * size, 8 * size)
    sacrum = Bone(top, end, 24 * size, ends, 40 * size, 0.1, density=0.5)
    trunk = Tissue(((x0, -FAR), (x0, y0 + 60 * size)), (128 * size, 142 * size), 92)
    hip = Anatomy((*_spine(x0, -330, y0 - 30 * size, size), sacrum), (trunk,))
    for s in (1, -1):
        flat = tuple(
            FlatBone(tuple((x0 + s * size * x, y0 + size * y) for x, y in line), radius * size, density)
            for radius, density, line in _PELVIS
        )
        line = ((x0 + s * 92 * size, y0 + 70 * size), (x0 + s * 108 * size, y0 + 380 * size))
        femur = _femur(x0 + s * 84 * size, y0 + 52 * size, s, view, rng, size)
        hip += Anatomy(femur, (Tissue(line, (66 * size, 56 * size), 84),), flat)
    return hip


def _rib(x: float, y: float, i: int, rng: np.random.Generator) -> FlatBone:
    turns = np.linspace(-0.9, 0.5, 14) * np.pi / 1.4
    arc = ((x + 16 + (58 + 9 * min(i, 5)) * np.cos(a * 0.75), y + 27 * i + (13 + 1.3 * i) * (a + 1.6)) for a in turns)
    return FlatBone(tuple((float(u), float(v)) for u, v in arc), 4.2, 0.45 + 0.1 * rng.random())


def _shoulder(view: str, rng: np.random.Generator) -> Anatomy:
    """Shoulder with the upper arm, collar bone, shoulder blade and the near ribs."""
    x, y = 52.0 + rng.uniform(-14, 14), -92.0 + rng.uniform(-12, 12)
    angle = rng.uniform(2, 62) if view == "frontal" else rng.uniform(0, 24)
    elbow, k = _toward((x, y), angle, 330), 0.6 + 0.4 * SPREAD[view]
    humerus = Bone(_toward((x, y), angle, -22), elbow, 14.0, (29, 30), 42, 0.34, rng.uniform(-4, 4), 2.2, 5.0)
    inner = (x - 158 * k, y - 18 + rng.uniform(-10, 12))
    clavicle = Bone(inner, (x + 2, y - 36), 6.5, (11, 9), 26, 0.36, -9, weight=0.8)
    blade = ((-24, -12), (-62, -26), (-100 * k, -2), (-84 * k, 66), (-66 * k, 112), (-44, 50), (-26, 24))
    scapula = (  # rim, spine, socket, blade
        (5.0, 0.9, blade[4:]),
        (5.5, 0.8, ((-100 * k, 4), (-50, -16), (-4, -34), (16, -24))),
        (4.0, 1.0, ((-25, -20), (-30, 0), (-25, 22))),
        (0.0, 0.7, blade),
    )
    ribs = [_rib(x - 205, y - 66, i, rng) for i in range(9)]
    flat = [FlatBone(tuple((x + u, y + v) for u, v in line), radius, density) for radius, density, line in scapula]
    tissues = (
        Tissue(((x - 215, y - 50), (x - 215, FAR)), (150, 170), 62),
        Tissue(((x - 200, -FAR), (x - 200, y - 30)), (48, 74), 52),
        Tissue(((x - 130, y - 8), (x - 6, y + 6), elbow), (58, 54, 40), 50),
    )
    bones = (humerus, clavicle, _blob(x - 24, y - 20, 22, 14, 0.7), *_spine(x - 205, -330, 330, 0.9))
    return Anatomy(bones, tissues, (*ribs, *flat))


def _mixed(view: str, rng: np.random.Generator) -> Anatomy:
    """The arm around the elbow: upper arm, forearm and, at times, the hand and the edge of the trunk."""
    elbow = (rng.uniform(-30, 30), rng.uniform(-70, -10))
    side = rng.choice((-1, 1))
    bend = side * (rng.uniform(0, 14) if view == "frontal" else rng.uniform(35, 95))
    wrist = _toward(elbow, rng.uniform(-8, 8), rng.uniform(200, 270))
    shoulder, near = _toward(elbow, 180 + bend, 320), _toward(elbow, 180 + bend, 6)
    ends, bow = (26, 15 + 17 * SPREAD[view]), rng.uniform(-4, 4)
    humerus = Bone(shoulder, near, 13.0, ends, 40, 0.34, bow, 3.2, 3.0)
    arm = _forearm(_toward(elbow, 0, 4), wrist, view, rng)
    upper = Tissue((shoulder, elbow), (56, 42), 42)
    mixed = Anatomy((humerus,), arm.tissues) + Anatomy(arm.bones, (upper,)) + _fingers(wrist, view, rng, 0.9)
    if rng.random() < 0.4:
        x = -side * 265.0 if view == "frontal" else side * 265.0
        mixed += Anatomy(tissues=(Tissue(((x, -FAR), (x, FAR)), (120, 140), 80),))
    return mixed


LAYOUTS: dict[str, Callable[[str, np.random.Generator], Anatomy]] = {
    "hand": _hand,
    "leg": _leg,
    "hip": _hip,
    "shoulder": _shoulder,
    "mixed": _mixed,
}
