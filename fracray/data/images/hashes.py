"""What a gray picture is told by: its thumbnail, the hash of what it looks like, and that of its pixels.

Knows gray arrays only: nothing of files, labels or manifests.
"""

import hashlib

import cv2
import numpy as np
from PIL import Image

from fracray.data.duplicates import THUMB


def thumbnail(gray: np.ndarray) -> np.ndarray:
    """A gray picture (H, W) uint8 as (THUMB, THUMB) uint8, whatever its aspect."""
    return cv2.resize(gray, (THUMB, THUMB), interpolation=cv2.INTER_AREA)


def perceptual_hash(thumb: np.ndarray) -> int:
    """The DCT hash of a thumbnail, 64 bits."""
    import imagehash  # SciPy comes with it, which no task of the ingest needs

    return int(str(imagehash.phash(Image.fromarray(thumb))), 16)


def pixel_hash(gray: np.ndarray) -> str:
    """sha256 (hex) of the size and the pixels of a whole gray picture as displayed."""
    digest = hashlib.sha256(f"{gray.shape[1]}x{gray.shape[0]}:".encode())
    digest.update(np.ascontiguousarray(gray).data)
    return digest.hexdigest()
