"""How far probabilities can be taken at their word: calibration error without a floor, calibration slope and intercept.

All take image weights, so that a group can be left out without ranking the images again.
"""

import math

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit

from fracray.metrics.inputs import CELLS, Array, checked, numbered

BINS = 15  # of equal mass ...
BIN_IMAGES = 20  # ... with at least about as many images each
FLIPS = 1000  # draws of the perfect model
FEWEST_TO_FLIP = 6  # groups; of 5, all have the signs of the sample or their opposites in 6% of the draws
CERTAIN = 1e-12  # probabilities nearer to 0 or 1 count as this near: their logits are finite
STEPS = 30  # at most, of Newton's method ...
SETTLED = 1e-7  # ... until they are this small
WIDEST_ERROR = (
    1.0  # of a slope; where it is wider, a slope of 1, which is right, cannot be told from 0, which is useless
)


class CalibrationError:
    """The root mean square calibration error of one set of probabilities, without the floor of the usual ECE.

    labels (n,) in {0, 1}, probabilities (n,) in 0..1, groups (n,) (without them, or with a single one, each image is
    its own). In bins of equal mass, the square of (mean probability - share of positives) is estimated by the mean
    product of the residuals (probability - label) of two images of different groups. An image paired with itself adds
    the variance of its label, which is the floor of the usual estimate, and a pair of one group what its images have
    in common; neither is an error of the probabilities. This is the debiased estimate of Kumar, Liang and Ma (NeurIPS
    2019, arXiv 1909.10155) for images in groups. A bin all of whose images are of one group is left out.
    """

    def __init__(self, labels: npt.ArrayLike, probabilities: npt.ArrayLike, groups: npt.ArrayLike | None) -> None:
        y, p = checked(labels, probabilities)
        group = numbered(groups, len(y))
        self._told_apart = int(group.max(initial=-1)) + 1
        if len(y) and not group.any():
            group = np.arange(len(y))
        self._first = np.unique(group, return_index=True)[1]
        bins = equal_mass_bins(p)
        count, groups_count = int(bins.max(initial=-1)) + 1, len(self._first)
        cell, cells = bins * groups_count + group, count * groups_count
        # Sums over the images of a bin and a group, (bins, groups).
        self._residuals = np.bincount(cell, p - y, minlength=cells).reshape(count, groups_count)
        self._images = np.bincount(cell, minlength=cells).reshape(count, groups_count).astype(np.float64)

    def signed(self, weights: Array) -> Array:
        """The error for each of (r, n) image weights, equal within a group: (r,), in -1..1, nan where unknown.

        The square is estimated without bias, so of a perfect model it is below 0 as often as above; then minus
        the root of its size is returned. What is reported is 0 in its place.
        """
        found = self._squared(weights[:, self._first], weights[:, self._first])
        return np.sign(found) * np.sqrt(np.abs(found))

    def perfect(self, seed: int = 0, level: float = 0.95) -> float:
        """The error that a perfectly calibrated model stays below in `level` of the draws, with these groups.

        In each draw, the residuals of a group change their sign together or not (a wild bootstrap under the
        hypothesis, Cameron, Gelbach and Miller 2008, doi 10.1162/rest.90.3.414): that keeps what the images of a
        group have in common. Labels drawn one by one from the probabilities do not, and their band is too low.
        nan with fewer than FEWEST_TO_FLIP groups.
        """
        if self._told_apart < FEWEST_TO_FLIP:
            return math.nan
        generator = np.random.default_rng(seed)
        ones = np.ones((1, len(self._first)))
        block = max(1, CELLS // max(1, len(self._first)))
        drawn = [
            self._squared(generator.choice((-1.0, 1.0), (min(block, FLIPS - start), len(self._first))), ones)
            for start in range(0, FLIPS, block)
        ]
        return math.sqrt(max(0.0, float(np.quantile(np.concatenate(drawn), level))))

    def _squared(self, of_residuals: Array, of_images: Array) -> Array:
        """(r,) for group weights (r, groups) or, for all r the same, (1, groups)."""
        pairs = (of_residuals @ self._residuals.T) ** 2 - of_residuals**2 @ (self._residuals**2).T
        images = of_images @ self._images.T
        count = images**2 - of_images**2 @ (self._images**2).T
        known = count > 0.5  # the difference of two rounded sums of whole numbers
        share = images * known
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(known, share * pairs / count, 0.0).sum(1) / share.sum(1)


def equal_mass_bins(probabilities: Array) -> npt.NDArray[np.intp]:
    """The bin of each image, (n,), from 0: BINS of equal mass, or fewer where there are few images.

    Equal probabilities share a bin, that of their middle rank. Bins without an image are left out of the count.
    """
    n = len(probabilities)
    count = min(BINS, max(1, n // BIN_IMAGES))
    level = np.unique(probabilities, return_inverse=True)[1]
    sizes = np.bincount(level)
    middle = np.cumsum(sizes) - sizes / 2
    bins = np.minimum((count * middle / max(1, n)).astype(np.intp), count - 1)[level]
    return np.unique(bins, return_inverse=True)[1]


def slope_and_intercept(labels: npt.ArrayLike, probabilities: npt.ArrayLike, weights: Array) -> tuple[Array, Array]:
    """Calibration slope and intercept, each (r,), for (r, n) image weights; nan where there is none.

    The slope of a logistic regression of the label on the logit of the probability: 1 is right, below 1 the
    probabilities are too extreme (Cox 1958, Biometrika 45, 562). The intercept is that of the same regression with
    the slope fixed at 1: 0 is right, below 0 the probabilities are too high on average (calibration in the large; Van
    Calster et al. 2019, doi 10.1186/s12916-019-1466-7). nan with a single class and, for the slope, where the
    probabilities separate the classes, or are so much alike that its standard error is above WIDEST_ERROR even if the
    images were independent and told nothing apart.
    """
    y, p = checked(labels, probabilities)
    z = logit(np.clip(p, CERTAIN, 1 - CERTAIN))
    total, positive = weights.sum(1), weights @ y
    with np.errstate(all="ignore"):
        intercept = np.zeros(len(weights))
        for _ in range(STEPS):
            fitted = expit(z + intercept[:, None])
            step = (positive - (weights * fitted).sum(1)) / (weights * fitted * (1 - fitted)).sum(1)
            intercept += np.clip(step, -1, 1)  # a full step may overshoot where the slope of the sigmoid is small
            if not (np.abs(step) > SETTLED).any():
                break
        intercept[~(np.abs(step) < SETTLED)] = math.nan
        # Of the standardised logit, from no slope at all: from there Newton's method seldom overshoots.
        middle = float(z.mean()) if len(z) else 0.0
        spread = float(z.std()) if len(z) else 0.0
        x = (z - middle) / spread
        a, b = logit(positive / total), np.zeros(len(weights))
        for _ in range(STEPS):
            fitted = expit(a[:, None] + b[:, None] * x)
            rest = weights * (y - fitted)
            curve = weights * fitted * (1 - fitted)
            h0, h1, h2 = curve.sum(1), curve @ x, curve @ (x * x)
            g0, g1 = rest.sum(1), rest @ x
            det = h0 * h2 - h1**2
            step_a, step_b = (h2 * g0 - h1 * g1) / det, (h0 * g1 - h1 * g0) / det
            a, b = a + step_a, b + step_b
            settled = (np.abs(step_a) < SETTLED) & (np.abs(step_b) < SETTLED)
            if settled.all():
                break
        slope = np.where(settled, b / spread, math.nan)
    if len(y) == 0 or spread**2 * y.sum() * (1 - y.mean()) < 1 / WIDEST_ERROR**2:
        slope[:] = math.nan
    one_class = (positive <= 0) | (positive >= total)
    return np.where(one_class, math.nan, slope), np.where(one_class, math.nan, intercept)
