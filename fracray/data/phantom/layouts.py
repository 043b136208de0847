"""Where the bones and soft tissue of each body region lie in each view.

In pixels of a 373 x 454 film, origin at its centre, x to the right and y down the limb; knows nothing of X-rays,
fractures, devices or files.
"""

from collections.abc import Callable, Sequence

import numpy as np

from fracray.data.phantom.anatomy import Anatomy, Bone, Plate, Point, Strip, Tissue

REGIONS = ("hand", "leg", "hip", "shoulder", "mixed")
VIEWS = ("frontal", "lateral", "oblique")
# How far bones that lie side by side in the frontal view are spread in each view.
SPREAD = {"frontal": 1.0, "oblique": 0.75, "lateral": 0.42}


def _toward(start: Point, angle: float, length: float) -> Point:
    """The point `length` from `start`, at `angle` degrees from straight down (positive to the right)."""
    turn = np.deg2rad(angle)
    return float(start[0] + length * np.sin(turn)), float(start[1] + length * np.cos(turn))


def _blob(x: float, y: float, width: float, height: float, density: float = 0.8) -> Bone:
    """A short spongy bone: a carpal, the patella, a femoral head."""
    half = width / 2
    return Bone(
        (x, y - height / 2), (x, y + height / 2), half, (half, half), height / 2, 0.16, square=2.2, density=density
    )


def _ray(
    start: Point, angle: float, lengths: Sequence[float], radius: float, weights: Sequence[float], curl: float = 0.0
) -> tuple[list[Bone], list[Point]]:
    """A finger or toe: bones in a chain that bends by `curl` degrees at each joint; also its joints."""
    bones, joints = [], [start]
    for i, (length, weight) in enumerate(zip(lengths, weights, strict=True)):
        r = radius * 0.9**i
        stop = _toward(start, angle, length)
        bones.append(Bone(start, stop, r, (r * 1.55, r * 1.5), 9.0, 0.36, weight=weight))
        start = _toward(stop, angle, 2.5)
        joints.append(stop)
        angle += curl
    return bones, joints


def _hand_bones(
    wrist: Point, view: str, rng: np.random.Generator, size: float = 1.0
) -> tuple[list[Bone], list[Tissue]]:
    """Carpals, metacarpals and phalanges hanging from the wrist."""
    k = SPREAD[view]
    x0, y0 = wrist
    bones = [
        _blob(x0 + size * k * x, y0 + size * y, size * w, size * w * 0.95, 0.75)
        for x, y, w in (
            (-19, 10, 17),
            (-4, 7, 16),
            (11, 9, 16),
            (-24, 26, 15),
            (-10, 25, 14),
            (4, 26, 17),
            (18, 25, 15),
        )
    ]
    spread = rng.uniform(0.75, 1.35)
    curl = rng.uniform(-2, 6) * (1 if view == "frontal" else 2.0)
    tissues = [Tissue((wrist, (x0, y0 + 92 * size)), (max(36 * k, 23) * size, max(48 * k, 20) * size), 22 * size)]
    for i, (angle, length) in enumerate(zip((-11, -3, 5, 14), (1.0, 1.04, 0.96, 0.86), strict=True)):
        base = (x0 + size * k * (-19 + 13.5 * i), y0 + 38 * size)
        lengths = [size * length * part for part in (58, 38, 23, 15)]
        ray, joints = _ray(base, angle * spread * k, lengths, 6.0 * size, (0.8, 0.3, 0.1, 0.0), curl * (0.5 + 0.3 * i))
        bones += ray
        tissues.append(Tissue(tuple(joints[1:]), tuple(size * w for w in (15, 11, 9.5, 7.5)), 11 * size))
    thumb, joints = _ray(
        (x0 - 25 * k * size, y0 + 26 * size),
        -rng.uniform(25, 48) * (0.4 + 0.6 * k),
        [size * p for p in (42, 29, 20)],
        6.2 * size,
        (0.4, 0.2, 0.0),
        8,
    )
    tissues.append(Tissue(tuple(joints), tuple(size * w for w in (20, 16, 11, 8)), 13 * size))
    return bones + thumb, tissues


def _forearm_bones(elbow: Point, wrist: Point, view: str, rng: np.random.Generator) -> tuple[list[Bone], list[Tissue]]:
    k = SPREAD[view]
    (x0, y0), (x1, y1) = elbow, wrist
    across = np.array([y1 - y0, x0 - x1]) / np.hypot(x1 - x0, y1 - y0)
    thick, gap = rng.uniform(0.9, 1.15), rng.uniform(18, 21)

    def beside(point: Point, offset: float, along: float = 0.0) -> Point:
        return point[0] + across[0] * offset - across[1] * along, point[1] + across[1] * offset + across[0] * along

    radius = Bone(
        beside(elbow, gap * k, 6),
        beside(wrist, gap * k * 0.62, -1),
        11.0 * thick,
        (12, 19 * thick),
        30,
        0.34,
        rng.uniform(4, 10) * k,
        3.0,
        4.0,
    )
    ulna = Bone(
        beside(elbow, -gap * k * 0.7, -12),
        beside(wrist, -gap * k * 1.05, -6),
        9.5 * thick,
        (17, 10),
        34,
        0.36,
        -rng.uniform(0, 5) * k,
        2.6,
        3.0,
    )
    width = max(43 * k, 30) * rng.uniform(0.95, 1.2)
    middle = beside(((x0 + x1) / 2, (y0 + y1) / 2), 0, -(y1 - y0) * 0.15)
    return [radius, ulna], [Tissue((elbow, middle, wrist), (width * 1.2, width * 1.3, max(37 * k, 25)), 34)]


def _hand(view: str, rng: np.random.Generator) -> Anatomy:
    """The hand with the distal forearm, or the forearm with the hand's beginning."""
    if rng.random() < 0.12:
        wrist, elbow, size = (0.0, -25.0), (rng.uniform(-15, 15), -370.0), rng.uniform(1.0, 1.2)
        stub: list[Bone] = []
    else:
        wrist, elbow, size = (0.0, 120.0), (rng.uniform(-10, 10), -165.0), rng.uniform(0.95, 1.1)
        stub = [
            Bone(
                (elbow[0], -420.0),
                (elbow[0], elbow[1] - 7),
                12,
                (14, 28 * (0.55 + 0.45 * SPREAD[view])),
                40,
                square=3.2,
                weight=0.5,
            )
        ]
    arm, arm_tissue = _forearm_bones(elbow, wrist, view, rng)
    hand, hand_tissue = _hand_bones(wrist, view, rng, size)
    upper = [Tissue(((elbow[0], -420.0), elbow), (44, 44), 38)] if stub else []
    return Anatomy(tuple(stub + arm + hand), tuple(arm_tissue + upper + hand_tissue))


def _foot(ankle: Point, view: str, rng: np.random.Generator) -> tuple[list[Bone], list[Tissue]]:
    x, y = ankle
    if view == "lateral":
        bones = [
            _blob(x + 4, y + 20, 56, 32),
            Bone((x - 58, y + 62), (x + 16, y + 44), 18, (22, 17), 20, 0.14, square=2.6, density=0.8, weight=0.8),
            _blob(x + 34, y + 40, 24, 30),
            _blob(x + 56, y + 50, 26, 26),
        ]
        for i in range(4):
            ray, _ = _ray((x + 68, y + 46 + 6 * i), 66 - 4 * i, (70 - 3 * i, 26, 15), 7.0, (0.5, 0.2, 0), 6)
            bones += ray
        line = ((x - 52, y + 58), (x + 10, y + 38), (x + 90, y + 72), (x + 190, y + 112))
        return bones, [Tissue(line, (32, 46, 32, 16), 34)]
    k = 0.6 + 0.4 * SPREAD[view]
    bones = [
        _blob(x, y + 16, 56, 30),
        _blob(x - 3, y + 46, 50, 40),
        _blob(x - 14, y + 78, 26, 26),
        _blob(x + 12, y + 80, 30, 26),
    ]
    for i, (angle, length) in enumerate(zip((-9, -5, 0, 5, 11), (56, 64, 62, 58, 54), strict=True)):
        wide = 8.2 if i == 0 else 5.4
        ray, _ = _ray(
            (x + k * (-26 + 13 * i), y + 92 - abs(i - 1) * 2), angle * k, (length, 26, 15), wide, (0.6, 0.2, 0), 1
        )
        bones += ray
    return bones, [Tissue(((x, y), (x, y + 90), (x + 2, y + 165), (x + 2, y + 205)), (40, 48 * k, 54 * k, 44 * k), 40)]


def _leg(view: str, rng: np.random.Generator) -> Anatomy:
    """The knee, the shin, or the ankle with the foot."""
    k, thick = SPREAD[view], rng.uniform(0.9, 1.12)
    knee_y, ankle_y = ((-15.0, 390.0), (-190.0, 160.0), (-390.0, -35.0))[int(rng.choice(3, p=(0.18, 0.72, 0.10)))]
    bones: list[Bone] = []
    tissues: list[Tissue] = []
    lean = rng.uniform(-6, 6)
    ankle = (lean, ankle_y)
    side = 0.45 + 0.55 * k
    tibia = Bone(
        (0.0, knee_y + 3), ankle, 17 * thick, (46 * side, 25 * side + 2), 44, 0.34, rng.uniform(-4, 4), 3.6, 4.0
    )
    fibula_x = 46 * k - 8
    fibula = Bone(
        (fibula_x, knee_y + 26),
        (lean + 34 * k - 6, ankle_y + 14),
        6.5 * thick,
        (11, 10),
        26,
        0.42,
        rng.uniform(-5, 5),
        weight=2.0,
    )
    tissues.append(
        Tissue(
            ((4.0, knee_y), (6.0, knee_y + 110), (3.0, ankle_y - 70), ankle),
            (60, 66 * rng.uniform(0.95, 1.2), 42, 40),
            56,
        )
    )
    if knee_y > -300:
        bend = rng.uniform(-4, 4) if view == "frontal" else rng.choice((-1, 1)) * rng.uniform(8, 48)
        hip = _toward((0.0, knee_y), 180 + bend, 420)
        width = 46 * (0.62 + 0.38 * k)
        bones.append(Bone(hip, (0.0, knee_y - 3), 19 * thick, (30, width), 52, 0.32, rng.uniform(-4, 4), 3.0, 3.0))
        if view != "frontal":
            bones.append(_blob(-(width + 12) * np.sign(bend), knee_y - 28, 22, 40))
        else:
            bones.append(_blob(rng.uniform(-4, 4), knee_y - 38, 42, 42, 0.35))
        tissues.append(Tissue((_toward((0.0, knee_y), 180 + bend, 300), (0.0, knee_y)), (96, 62), 66))
    if ankle_y < 300:
        foot, foot_tissue = _foot(ankle, "lateral" if view == "lateral" else "frontal", rng)
        bones, tissues = bones + foot, tissues + foot_tissue
    return Anatomy((fibula, tibia, *bones), tuple(tissues))


def _femur(head: Point, side: int, view: str, rng: np.random.Generator, size: float) -> list[Bone]:
    """Head, neck, greater trochanter and shaft; `side` 1 has the shaft to the right of the head."""
    x, y = head
    reach = (34 + 18 * SPREAD[view]) * size
    knee = (x + side * (reach - 4 * size), y + 330 * size)
    top = (x + side * reach, y + 22 * size)
    return [
        _blob(x, y, 47 * size, 47 * size, 0.85),
        Bone(
            (x + side * 4 * size, y + 4 * size),
            (x + side * reach, y + 40 * size),
            15 * size,
            (19 * size, 18 * size),
            16 * size,
            0.2,
            weight=1.0,
            density=0.9,
        ),
        _blob(top[0] + side * 6 * size, top[1] + 8 * size, 28 * size, 50 * size, 0.7),
        Bone(top, knee, 15.5 * size, (25 * size, 26 * size), 50 * size, 0.38, side * rng.uniform(-5, 5), weight=4.0),
    ]


def _pelvis_half(x0: float, y0: float, side: int, size: float) -> tuple[list[Strip], list[Plate]]:
    """Ilium, acetabulum, pubic and ischial rami, from the sacrum at (x0, y0) outwards to `side`."""

    def line(*points: Point) -> tuple[Point, ...]:
        return tuple((x0 + side * size * x, y0 + size * y) for x, y in points)

    wing = line((22, -10), (30, -48), (62, -76), (98, -66), (114, -36), (106, -4), (92, 22), (66, 30), (44, 14))
    rim = line((22, -12), (30, -48), (62, -76), (98, -66), (114, -36), (106, -4), (96, 22))
    inlet = line((24, 4), (40, 24), (52, 48), (48, 74), (30, 92), (6, 100))
    ramus = line((6, 102), (22, 114), (40, 130), (56, 122), (62, 96), (66, 70))
    socket = line((92, 22), (74, 30), (64, 50), (68, 70), (80, 80))
    return [
        Strip(rim, 5 * size, 0.7),
        Strip(inlet, 8 * size, 0.9),
        Strip(ramus, 7 * size, 0.7),
        Strip(socket, 4 * size),
    ], [Plate(wing, 0.8)]


def _spine(x: float, top: float, bottom: float, size: float) -> list[Bone]:
    step = 29 * size
    return [
        Bone((x, y), (x, y + step - 4), 19 * size, (22 * size, 22 * size), 8, 0.12, square=4.0, density=0.4)
        for y in np.arange(bottom - step, top - step, -step)
    ]


def _hip(view: str, rng: np.random.Generator) -> Anatomy:
    """The whole pelvis, or one hip close up."""
    close = rng.random() < 0.6
    size, x0 = (1.5, -150.0) if close else (1.05, 0.0)
    x0, y0 = x0 + rng.uniform(-12, 12), -60.0 + rng.uniform(-15, 15)
    bones = [*_spine(x0, -330, y0 - 30 * size, size)]
    bones.append(
        Bone((x0, y0 - 34 * size), (x0, y0 + 52 * size), 24 * size, (30 * size, 8 * size), 40 * size, 0.1, density=0.5)
    )
    strips: list[Strip] = []
    plates: list[Plate] = []
    for side in (1, -1):
        bones += _femur((x0 + side * 84 * size, y0 + 52 * size), side, view, rng, size)
        half_strips, half_plates = _pelvis_half(x0, y0, side, size)
        strips, plates = strips + half_strips, plates + half_plates
    trunk = Tissue(((x0, -420.0), (x0, y0 + 60 * size)), (128 * size, 142 * size), 92)
    thighs = tuple(
        Tissue(
            ((x0 + s * 92 * size, y0 + 70 * size), (x0 + s * 108 * size, y0 + 380 * size)), (66 * size, 56 * size), 84
        )
        for s in (1, -1)
    )
    return Anatomy(tuple(bones), (trunk, *thighs), tuple(strips), tuple(plates))


def _chest(x: float, top: float, rng: np.random.Generator) -> tuple[list[Strip], list[Bone]]:
    """Ribs to the left of a shoulder whose spine is at `x`."""
    ribs = []
    for i in range(9):
        y, reach = top + 27 * i, 58 + 9 * min(i, 5)
        turns = np.linspace(-0.9, 0.5, 14) * np.pi / 1.4
        arc = tuple((float(x + 16 + reach * np.cos(a * 0.75)), float(y + (13 + 1.3 * i) * (a + 1.6))) for a in turns)
        ribs.append(Strip(arc, 4.2, 0.45 + 0.1 * rng.random()))
    return ribs, _spine(x, -330, 330, 0.9)


def _shoulder(view: str, rng: np.random.Generator) -> Anatomy:
    """Shoulder with the upper arm, collar bone, shoulder blade and the near ribs."""
    x, y = 52.0 + rng.uniform(-14, 14), -92.0 + rng.uniform(-12, 12)
    angle = rng.uniform(2, 62) if view == "frontal" else rng.uniform(0, 24)
    elbow = _toward((x, y), angle, 330)
    k = 0.6 + 0.4 * SPREAD[view]
    humerus = Bone(_toward((x, y), angle, -22), elbow, 14.0, (29, 30), 42, 0.34, rng.uniform(-4, 4), 2.2, 5.0)
    clavicle = Bone(
        (x - 158 * k, y - 18 + rng.uniform(-10, 12)), (x + 2, y - 36), 6.5, (11, 9), 26, 0.36, -9, weight=0.8
    )
    blade = (
        (x - 24, y - 12),
        (x - 62, y - 26),
        (x - 100 * k, y - 2),
        (x - 84 * k, y + 66),
        (x - 66 * k, y + 112),
        (x - 44, y + 50),
        (x - 26, y + 24),
    )
    lateral_rim = Strip((blade[4], blade[5], blade[6]), 5.0, 0.9)
    spine_of_scapula = Strip(((x - 100 * k, y + 4), (x - 50, y - 16), (x - 4, y - 34), (x + 16, y - 24)), 5.5, 0.8)
    socket = Strip(((x - 25, y - 20), (x - 30, y), (x - 25, y + 22)), 4.0)
    coracoid = _blob(x - 24, y - 20, 22, 14, 0.7)
    ribs, spine = _chest(x - 205, y - 66, rng)
    trunk = Tissue(((x - 215, y - 50), (x - 215, 420.0)), (150, 170), 62)
    neck = Tissue(((x - 200, -420.0), (x - 200, y - 30)), (48, 74), 52)
    cap = Tissue(((x - 130, y - 8), (x - 6, y + 6), elbow), (58, 54, 40), 50)
    return Anatomy(
        (humerus, clavicle, coracoid, *spine),
        (trunk, neck, cap),
        (*ribs, lateral_rim, spine_of_scapula, socket),
        (Plate(blade, 0.7),),
    )


def _mixed(view: str, rng: np.random.Generator) -> Anatomy:
    """The arm around the elbow: upper arm, forearm and, at times, the hand and the edge of the trunk."""
    elbow = (rng.uniform(-30, 30), rng.uniform(-70, -10))
    side = rng.choice((-1, 1))
    bend = side * (rng.uniform(0, 14) if view == "frontal" else rng.uniform(35, 95))
    wrist = _toward(elbow, rng.uniform(-8, 8), rng.uniform(200, 270))
    shoulder = _toward(elbow, 180 + bend, 320)
    k = SPREAD[view]
    humerus = Bone(
        shoulder, _toward(elbow, 180 + bend, 6), 13.0, (26, 15 + 17 * k), 40, 0.34, rng.uniform(-4, 4), 3.2, 3.0
    )
    arm, arm_tissue = _forearm_bones(_toward(elbow, 0, 4), wrist, view, rng)
    hand, hand_tissue = _hand_bones(wrist, view, rng, 0.9)
    tissues = [*arm_tissue, Tissue((shoulder, elbow), (56, 42), 42), *hand_tissue]
    if rng.random() < 0.4:
        x = -side * 265.0 if view == "frontal" else side * 265.0
        tissues.append(Tissue(((x, -420.0), (x, 420.0)), (120, 140), 80))
    return Anatomy((humerus, *arm, *hand), tuple(tissues))


_LAYOUTS: dict[str, Callable[[str, np.random.Generator], Anatomy]] = {
    "hand": _hand,
    "leg": _leg,
    "hip": _hip,
    "shoulder": _shoulder,
    "mixed": _mixed,
}


def lay_out(region: str, view: str, rng: np.random.Generator) -> Anatomy:
    """The anatomy of one of REGIONS in one of VIEWS; the same generator state gives the same patient."""
    return _LAYOUTS[region](view, rng)
