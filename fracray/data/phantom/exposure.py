"""What an X-ray device makes of an attenuation map: beam, scatter, noise, detector and display curve.

Knows attenuation and devices; nothing of bones, labels or files.
"""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np


@dataclass(frozen=True)
class Device:
    """One simulated X-ray device.

    `size` (width, height) in pixels; `dose` photons per pixel in the open beam; `blur` of the detector in pixels;
    `scatter` share of the beam; `gamma`, `floor` and `white` of the display curve; `edge` detail enhancement; `bands`
    read-out banding; `shutter` the area outside the collimated field, white (no dose) or black (masked); `marker`
    chance of a side letter; `share` of the studies that it makes.
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
    share: float


DEVICES = (
    Device("A", (373, 454), 4500, 0.55, 0.10, 1.20, 0.11, 0.90, 0.5, 0.006, "white", 0.05, 0.46),
    Device("B", (373, 454), 1100, 0.80, 0.14, 1.10, 0.07, 0.86, 0.3, 0.012, "white", 0.25, 0.24),
    Device("C", (373, 454), 9000, 0.50, 0.08, 1.30, 0.06, 0.94, 0.7, 0.000, "black", 0.80, 0.14),
    Device("D", (454, 373), 3000, 0.65, 0.12, 1.20, 0.13, 0.88, 0.4, 0.008, "white", 0.10, 0.08),
    Device("E", (352, 428), 700, 0.90, 0.16, 1.05, 0.09, 0.83, 0.2, 0.015, "white", 0.40, 0.08),
)
_MARGIN = 60  # pixels that the collimator never exceeds
_BLADES = {"top": 0.06, "bottom": 0.14, "left": 0.05, "right": 0.08}  # how often each is in the picture

_Blade = tuple[str, float, float, float]  # of the collimator: edge of the film, how far in, how tilted, how soft


def _cut_off(picture: np.ndarray, blades: list[_Blade], leak: float) -> None:
    """Dim, in place, the area behind the blades to `leak` of its brightness."""
    for edge, inset, tilt, soft in blades:
        # Written for the top edge; the other three are views of the same array, turned.
        views = {"top": picture, "bottom": picture[::-1], "left": picture.T, "right": picture.T[::-1]}
        turned = views[edge][:_MARGIN]
        down = np.arange(turned.shape[0], dtype=np.float32)[:, None]
        along = np.arange(turned.shape[1], dtype=np.float32) - np.float32(turned.shape[1] / 2)
        turned *= leak + (1 - leak) * np.clip(0.5 + (down - inset + tilt * along) / (2 * soft), 0, 1)


@lru_cache(maxsize=1)
def _tape() -> np.ndarray:
    """Normal deviates of which each picture uses two windows: new ones would double the cost of a picture."""
    return np.random.default_rng(521).standard_normal((900, 900), np.float32)


def _normal(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """(H, W) float32 standard normal deviates: the scaled sum of two windows of the tape, one of them mirrored."""
    y, x, v, u = rng.integers(0, 900 - max(height, width), 4)
    one, other = _tape()[y : y + height, x : x + width], _tape()[::-1][v : v + height, u : u + width]
    return cv2.addWeighted(one, 0.5**0.5, other, 0.5**0.5, 0)


def expose(attenuation: np.ndarray, device: Device, rng: np.random.Generator) -> np.ndarray:
    """The radiograph, (H, W) uint8 with bone bright, of an attenuation map (H, W) float32, which is overwritten.

    Beer-Lambert transmission, scatter, quantum noise (Poisson counts in their Gaussian limit: variance equal to the
    mean) and electronic noise, then the logarithm, detail enhancement and display curve of a digital unit.
    """
    height, width = attenuation.shape
    blades = [
        (edge, rng.uniform(3, 20), rng.normal(0, 0.012), rng.uniform(0.8, 3.5))
        for edge, chance in _BLADES.items()
        if rng.random() < chance
    ]
    # In place where possible: new memory for temporaries costs far more than the arithmetic.
    signal = np.negative(attenuation, out=attenuation)
    cv2.exp(signal, signal)
    if device.shutter == "white":
        _cut_off(signal, blades, 0.2)
    small = cv2.resize(signal, (width // 8, height // 8), interpolation=cv2.INTER_LINEAR)
    spare = cv2.resize(cv2.GaussianBlur(small, (0, 0), 5.0), (width, height), interpolation=cv2.INTER_LINEAR)
    cv2.addWeighted(signal, 1 - device.scatter, spare, device.scatter, 0, signal)
    cv2.GaussianBlur(signal, (5, 5), device.blur, signal)
    dose = device.dose * rng.uniform(0.7, 1.4)
    signal *= np.float32(dose)
    np.add(signal, np.float32(9), out=spare)
    cv2.sqrt(spare, spare)
    spare *= _normal(height, width, rng)
    signal += spare
    np.maximum(signal, 1, out=signal)
    signal *= np.float32(1 / dose)
    cv2.log(signal, signal)
    np.negative(signal, out=signal)
    if device.bands:
        signal += device.bands * cv2.resize(rng.standard_normal((height // 3, 1), np.float32), (1, height))
        signal += 0.5 * device.bands * cv2.resize(rng.standard_normal((1, width // 6), np.float32), (width, 1))
    cv2.boxFilter(signal, -1, (9, 9), spare)
    cv2.addWeighted(signal, 1 + device.edge, spare, -device.edge, 0, signal)
    # Automatic exposure: the window follows the brightest bone of the field, and the operator's choice.
    field = signal[_MARGIN:-_MARGIN:6, _MARGIN:-_MARGIN:6]
    signal *= np.float32(1 / max(float(np.quantile(field, 0.995)) * rng.uniform(0.95, 1.05), 0.5))
    np.clip(signal, 0, 1.3, out=signal)
    cv2.pow(signal, device.gamma * rng.uniform(0.96, 1.04), signal)
    floor = device.floor * rng.uniform(0.85, 1.15)
    signal *= np.float32(255 * (device.white - floor))
    signal += np.float32(255 * floor + 0.5)
    if device.shutter == "black":
        _cut_off(signal, blades, 0.0)
    return np.clip(signal, 0, 255, out=signal).astype(np.uint8)
