"""From logits to probabilities: temperature and bias, and what they are worth on images they were not fitted to."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from fracray.metrics.inputs import Array, checked, numbered

# Outside these bounds, logits are separable or useless and the calibration is no estimate.
TEMPERATURES = (0.05, 20.0)
BIASES = (-10.0, 10.0)
FOLDS = 5  # of groups, for the probabilities of `cross_fitted`


@dataclass(frozen=True)
class Calibration:
    """Logits to probabilities: sigmoid(logit / temperature + bias).

    Temperature alone (Guo et al., ICML 2017) keeps logit 0 at probability 0.5. A loss weighted against the imbalance
    moves every logit by about log(weight), which only a bias corrects (Platt, 1999), so both are fitted. The order
    of the images, and with it AUROC, does not change.
    """

    temperature: float = 1.0
    bias: float = 0.0

    def apply(self, logits: npt.ArrayLike) -> Array:
        """Probabilities, float64, of logits of any shape."""
        return np.asarray(expit(np.asarray(logits, dtype=np.float64) / self.temperature + self.bias))


def fit_temperature(labels: npt.ArrayLike, logits: npt.ArrayLike) -> Calibration:
    """Fit temperature and bias by maximum likelihood; labels (n,) in {0, 1}, logits (n,).

    Bounded to TEMPERATURES and BIASES, so separable logits end at a bound. With a single class the identity is
    returned. Raises RunError for logits that are not finite. Sources: see Calibration.
    """
    from scipy.optimize import minimize  # it takes longer to import than all metrics, and a search begins without it

    y, z = checked(labels, logits)
    if not len(y) or y.min() == y.max():
        return Calibration()

    def loss(parameters: Array) -> tuple[float, Array]:
        slope, bias = parameters
        u = slope * z + bias
        residual = expit(u) - y
        return float(np.mean(np.logaddexp(0.0, u) - y * u)), np.array([np.mean(residual * z), np.mean(residual)])

    slopes = (1 / TEMPERATURES[1], 1 / TEMPERATURES[0])
    # Convex in slope and bias, so the starting point does not matter.
    found = minimize(
        loss,
        x0=np.array([1.0, 0.0]),
        jac=True,
        method="L-BFGS-B",
        bounds=[slopes, BIASES],
        options={"ftol": 1e-15, "gtol": 1e-9, "maxiter": 500},
    )
    return Calibration(temperature=float(1 / found.x[0]), bias=float(found.x[1]))


def cross_fitted(labels: npt.ArrayLike, logits: npt.ArrayLike, groups: npt.ArrayLike | None = None) -> Array:
    """Probabilities (n,) of logits, each by a calibration that was fitted to images of other groups.

    Probabilities of a calibration that was fitted to the same images look better calibrated than they are. The groups,
    (n,) (without them each image is its own), are dealt into FOLDS folds of about equal size; by their labels they
    are not, as the folds would then be more alike than new images are. Where the other folds hold one class, or there
    is one group, nothing else is left than the calibration of all images.
    Raises RunError as `fit_temperature`.
    """
    y, z = checked(labels, logits)
    found = fit_temperature(y, z).apply(z)
    fold = _dealt(numbered(groups, len(y)))
    for number in np.unique(fold):
        others = fold != number
        if len(np.unique(y[others])) == 2:
            found[~others] = fit_temperature(y[others], z[others]).apply(z[~others])
    return found


def _dealt(group: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """The fold of each image: groups in the order of their size dealt to and fro."""
    sizes = np.bincount(group)
    to_and_fro = np.r_[np.arange(FOLDS), np.arange(FOLDS)[::-1]]
    fold_of = np.empty(len(sizes), dtype=np.intp)
    fold_of[np.argsort(-sizes, kind="stable")] = np.resize(to_and_fro, len(sizes))
    return fold_of[group]
