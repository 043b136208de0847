"""What an X-ray device makes of an attenuation map: beam, scatter, noise, detector and display curve.

Knows attenuation and devices; nothing of bones, labels or files.
"""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np


@dataclass(frozen=True)
class Device:
    """One simulated X-ray unit with its own habits.

    `size` (width, height) in pixels; `dose` photons per pixel in the open beam; `blur` of the detector in pixels;
    `scatter` share of the beam; `gamma`, `floor` and `white` of the display curve; `edge` detail enhancement; `bands`
    read-out banding; `shutter` what lies outside the collimated field, white (no dose) or black (masked); `marker`
    chance of a side letter.
    """

    name: str
    size: tuple[int, int]
    dose: float
    blur: float
    scatter: float
    gamma: float
    floor: float
    white: float
    edge: float
    bands: float
    shutter: str
    marker: float


DEVICES = (
    Device("A", (373, 454), 4500, 0.55, 0.10, 1.20, 0.11, 0.90, 0.5, 0.006, "white", 0.05),
    Device("B", (373, 454), 1100, 0.80, 0.14, 1.10, 0.07, 0.86, 0.3, 0.012, "white", 0.25),
    Device("C", (373, 454), 9000, 0.50, 0.08, 1.30, 0.06, 0.94, 0.7, 0.000, "black", 0.80),
    Device("D", (454, 373), 3000, 0.65, 0.12, 1.20, 0.13, 0.88, 0.4, 0.008, "white", 0.10),
    Device("E", (352, 428), 700, 0.90, 0.16, 1.05, 0.09, 0.83, 0.2, 0.015, "white", 0.40),
)
DEVICE_SHARES = (0.46, 0.24, 0.14, 0.08, 0.08)

_MARGIN = 60  # pixels that the collimator never reaches beyond


@dataclass(frozen=True)
class _Blade:
    """One blade of the collimator: which edge of the film, how far in, how tilted, how soft."""

    edge: str
    inset: float
    tilt: float
    soft: float


def _collimator(rng: np.random.Generator) -> list[_Blade]:
    chances = {"top": 0.06, "bottom": 0.14, "left": 0.05, "right": 0.08}
    return [
        _Blade(edge, rng.uniform(3, 20), rng.normal(0, 0.012), rng.uniform(0.8, 3.5))
        for edge, chance in chances.items()
        if rng.random() < chance
    ]


def _cut_off(picture: np.ndarray, blades: list[_Blade], leak: float) -> None:
    """Dim, in place, what lies behind the blades to the share `leak`."""
    for blade in blades:
        # Written for the top edge; the other three are views of the same array, turned.
        turned = {
            "top": picture,
            "bottom": picture[::-1],
            "left": picture.T,
            "right": picture.T[::-1],
        }[blade.edge][:_MARGIN]
        down = np.arange(turned.shape[0], dtype=np.float32)[:, None]
        along = np.arange(turned.shape[1], dtype=np.float32) - np.float32(turned.shape[1] / 2)
        inside = 0.5 + (down - blade.inset + blade.tilt * along) / (2 * blade.soft)
        turned *= leak + (1 - leak) * np.minimum(np.maximum(inside, 0), 1)


def _scatter(primary: np.ndarray) -> np.ndarray:
    """The broad veil of scattered photons, from the primary beam."""
    height, width = primary.shape
    small = cv2.resize(primary, (width // 8, height // 8), interpolation=cv2.INTER_LINEAR)
    return cv2.resize(cv2.GaussianBlur(small, (0, 0), 5.0), (width, height), interpolation=cv2.INTER_LINEAR)


@lru_cache(maxsize=1)
def _tape() -> np.ndarray:
    """Normal deviates that every picture takes two windows of; drawing them anew would double the cost of a picture."""
    return np.random.default_rng(521).standard_normal((900, 900), np.float32)


def _normal(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """(H, W) float32 standard normal deviates: the scaled sum of two windows of the tape, one of them upside down."""
    height, width = shape
    y, x, v, u = rng.integers(0, 900 - max(shape), 4)
    return cv2.addWeighted(
        _tape()[y : y + height, x : x + width], 0.5**0.5, _tape()[::-1][v : v + height, u : u + width], 0.5**0.5, 0
    )


def expose(attenuation: np.ndarray, device: Device, rng: np.random.Generator) -> np.ndarray:
    """The radiograph, (H, W) uint8 with bone bright, of an attenuation map (H, W) float32, which is used up.

    Beer-Lambert transmission, scatter, quantum noise (Poisson counts in their Gaussian limit: variance equal to the
    mean) and electronic noise, then the logarithm, detail enhancement and display curve of a digital unit.
    """
    height, width = attenuation.shape
    blades = _collimator(rng)
    # In place wherever it can be: fresh pages for temporaries cost far more than the arithmetic.
    signal = attenuation
    np.negative(signal, out=signal)
    cv2.exp(signal, signal)
    if device.shutter == "white":
        _cut_off(signal, blades, 0.2)
    spare = _scatter(signal)
    cv2.addWeighted(signal, 1 - device.scatter, spare, device.scatter, 0, signal)
    cv2.GaussianBlur(signal, (5, 5), device.blur, signal)
    dose = device.dose * rng.uniform(0.7, 1.4)
    signal *= np.float32(dose)
    np.add(signal, np.float32(9), out=spare)
    cv2.sqrt(spare, spare)
    spare *= _normal((height, width), rng)
    signal += spare
    np.maximum(signal, 1, out=signal)
    signal *= np.float32(1 / dose)
    cv2.log(signal, signal)
    np.negative(signal, out=signal)
    if device.bands:
        signal += device.bands * cv2.resize(rng.standard_normal((height // 3, 1), np.float32), (1, height))
        signal += 0.5 * device.bands * cv2.resize(rng.standard_normal((1, width // 6), np.float32), (width, 1))
    if device.edge:
        cv2.boxFilter(signal, -1, (9, 9), spare)
        cv2.addWeighted(signal, 1 + device.edge, spare, -device.edge, 0, signal)
    # Automatic exposure: the window follows the brightest bone of the field, and the operator's hand.
    field = signal[_MARGIN:-_MARGIN:6, _MARGIN:-_MARGIN:6]
    top = max(float(np.quantile(field, 0.995)) * rng.uniform(0.95, 1.05), 0.5)
    signal *= np.float32(1 / top)
    np.clip(signal, 0, 1.3, out=signal)
    cv2.pow(signal, device.gamma * rng.uniform(0.96, 1.04), signal)
    floor = device.floor * rng.uniform(0.85, 1.15)
    signal *= np.float32(255 * (device.white - floor))
    signal += np.float32(255 * floor + 0.5)
    if device.shutter == "black":
        _cut_off(signal, blades, 0.0)
    np.clip(signal, 0, 255, out=signal)
    return signal.astype(np.uint8)
