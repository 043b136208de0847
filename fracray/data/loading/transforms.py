"""fracray's own albumentations transforms: one affine warp, and one lookup table of gray levels.

Each does the work of several stock transforms in one pass. In a pipeline of albumentations they draw their parameters
from its random state; the `Augmenter` does the same arithmetic (`pixels`) with the parameters it has drawn.
"""

from collections.abc import Sequence
from typing import Any

import albumentations as A
import cv2
import numpy as np
from albumentations.core.type_definitions import Targets

from fracray.config import AugmentConfig
from fracray.data.loading.draws import UNIFORMS, Draws, Pictures, draws_within, gray_tables, source_matrices
from fracray.data.loading.pixels import LINEAR, NEAREST, regray, warp

OFF = dict.fromkeys(("rotate", "flip", "vertical_flip", "scale", "stretch", "brightness", "contrast"), 0.0)


class Warp(A.DualTransform):
    """Flips, then zoom, then rotation, all about the centre of the image, in one affine warp.

    rotate: largest angle in degrees, 0 to 180; flip, vertical_flip: probabilities; scale: largest relative zoom, 0 to
    below 1; stretch: largest relative change of width against height, 0 to below 1; p: probability of the transform.
    Takes images (H, W) or (H, W, C), masks and bounding boxes. Outside of the image is black (0). Images are
    interpolated linearly, masks get the value of the nearest pixel, a box becomes the smallest one around its four
    corners. Flips alone do not change pixel values. Raises ValueError for a strength out of range.
    """

    _targets = (Targets.IMAGE, Targets.MASK, Targets.BBOXES)

    def __init__(
        self,
        rotate: float = 0.0,
        flip: float = 0.0,
        vertical_flip: float = 0.0,
        scale: float = 0.0,
        stretch: float = 0.0,
        p: float = 1.0,
    ) -> None:
        super().__init__(p=p)
        self.rotate, self.flip, self.vertical_flip = rotate, flip, vertical_flip
        self.scale, self.stretch = scale, stretch
        given = {"rotate": rotate, "flip": flip, "vertical_flip": vertical_flip, "scale": scale, "stretch": stretch}
        self._strengths = AugmentConfig(**{**OFF, **given})

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """One draw: `flip`, `vertical_flip`, and the `matrix` (2, 3) from augmented to original pixels, or None."""
        draws = _one_draw(self._strengths, self.random_generator)
        height, width = params["shape"][:2]
        matrix = source_matrices(draws, height, width)[0]
        flips = {"flip": bool(draws.flip[0]), "vertical_flip": bool(draws.vertical_flip[0])}
        return {**flips, "matrix": matrix if self._strengths.warps else None}

    def apply(
        self,
        img: np.ndarray,
        flip: bool = False,
        vertical_flip: bool = False,
        matrix: np.ndarray | None = None,
        dst: np.ndarray | None = None,
        interpolation: int = LINEAR,
        **params: Any,
    ) -> np.ndarray:
        """The warped image, written into `dst` where that is given; with a `matrix`, the flips are part of it."""
        return warp(img, flip, vertical_flip, matrix, dst, interpolation)

    def apply_to_mask(self, mask: np.ndarray, *args: Any, **params: Any) -> np.ndarray:
        """The warped mask: no value appears that was not there, except 0 from outside."""
        return self.apply(mask, *args, **{**params, "interpolation": NEAREST})

    def apply_to_bboxes(self, bboxes: np.ndarray, *args: Any, **params: Any) -> np.ndarray:
        """Boxes (n, 4 or more) of x_min, y_min, x_max, y_max as shares of width and height, and what follows these."""
        height, width = params["shape"][:2]
        matrix = params["matrix"]
        if matrix is None:
            draws = _flips_alone(params["flip"], params["vertical_flip"])
            matrix = source_matrices(draws, height, width)[0]
        forward = cv2.invertAffineTransform(matrix)
        corners = bboxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]] * (width, height) - 0.5  # centres of pixels are integers
        moved = (corners @ forward[:, :2].T + forward[:, 2] + 0.5) / (width, height)
        return np.concatenate([moved.min(axis=1), moved.max(axis=1), bboxes[:, 4:]], axis=1)


class GrayLevels(A.ImageOnlyTransform):
    """Contrast about the mean, then brightness, in one lookup table for each image.

    Takes uint8 images (H, W) or (H, W, C). Inside the picture only: equal black bands on two opposite sides, as a
    letterbox has them, stay black. brightness: largest shift as a share of full scale, contrast: largest relative
    change, both 0 to below 1; p: probability of the transform. Levels are clipped to black and white. Raises ValueError
    for a strength out of range.
    """

    def __init__(self, brightness: float = 0.0, contrast: float = 0.0, p: float = 1.0) -> None:
        super().__init__(p=p)
        self.brightness, self.contrast = brightness, contrast
        self._strengths = AugmentConfig(**{**OFF, "brightness": brightness, "contrast": contrast})

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """One draw: the `table` (256,) uint8 of the gray level that each level becomes, and the picture's `frame`."""
        image = data["image"]
        picture = Pictures.of_images((image if image.ndim == 2 else image.mean(axis=2).astype(np.uint8))[None])
        table = gray_tables(_one_draw(self._strengths, self.random_generator), picture.means)[0]
        return {"table": table, "frame": picture.frames[0].tolist()}

    def apply(
        self,
        img: np.ndarray,
        table: np.ndarray,
        frame: Sequence[int],
        dst: np.ndarray | None = None,
        **params: Any,
    ) -> np.ndarray:
        """The image with new gray levels inside `frame` (see `Pictures`); into `dst` where that is given."""
        return regray(img, table, frame, dst)


def _one_draw(strengths: AugmentConfig, random: np.random.Generator) -> Draws:
    return draws_within(strengths, random.random((UNIFORMS, 1)))


def _flips_alone(flip: bool, vertical_flip: bool) -> Draws:
    """The draws of an image that is only flipped."""
    nothing = np.zeros(1)
    return Draws(np.array([flip]), np.array([vertical_flip]), nothing, np.ones((1, 2)), nothing, nothing)
