"""The arithmetic of the augmentation on one image, by drawn parameters. Needs neither Torch nor albumentations."""

from collections.abc import Sequence

import cv2
import numpy as np

LINEAR, NEAREST = (flag | cv2.WARP_INVERSE_MAP for flag in (cv2.INTER_LINEAR, cv2.INTER_NEAREST))


def warp(
    img: np.ndarray,
    flip: bool = False,
    vertical_flip: bool = False,
    matrix: np.ndarray | None = None,
    dst: np.ndarray | None = None,
    interpolation: int = LINEAR,
) -> np.ndarray:
    """The warped image, written into `dst` where that is given; with a `matrix`, the flips are part of it."""
    if matrix is not None:
        warped = cv2.warpAffine(img, matrix, img.shape[1::-1], dst, interpolation)
        return warped if dst is not None else warped.reshape(img.shape)
    if flip or vertical_flip:
        return cv2.flip(img, -1 if flip and vertical_flip else int(flip), dst).reshape(img.shape)
    if dst is None:
        return img.copy()
    dst[:] = img
    return dst


def regray(img: np.ndarray, table: np.ndarray, frame: Sequence[int], dst: np.ndarray | None = None) -> np.ndarray:
    """The image with new gray levels inside `frame` (see `Pictures`); into `dst` where that is given."""
    if dst is None:
        dst = np.empty_like(img)
    top, bottom, left, right = frame
    if (bottom - top, right - left) != img.shape[:2]:
        dst[:] = img
    inside = img[top:bottom, left:right]
    dst[top:bottom, left:right] = cv2.LUT(inside, table).reshape(inside.shape)
    return dst
