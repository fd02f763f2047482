"""The exact trade-off of Gaussian releases: δ at an ε, and ε at a δ (Balle and Wang 2018).

Any composition of Gaussian releases that each unit takes part in is one Gaussian release: with
noise multipliers z_i it has μ² = Σ 1/z_i² (Dong et al. 2022, corollary 3.3). Its

    δ(ε) = Φ(μ/2 − ε/μ) − e^ε Φ(−μ/2 − ε/μ)

is exact, so that no accountant can do better.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfcx, ndtr

# Below this μ the difference of two nearly equal numbers would have no digits left. δ and ε
# rise with μ, so that a larger μ in its place only adds.
_LEAST_MU = 1e-9
# Relative: more than all rounding of the formula together down to `_LEAST_MU`.
_ROUNDING = 1e-6
_HALVINGS = 200


def gaussian_delta(mu: float | NDArray[np.float64], epsilon: float) -> NDArray[np.float64]:
    """Return the δ of Gaussian releases at an ε, never below the true one.

    Args:
        mu: √Σ 1/z², at least 0; any shape.
        epsilon: ε, at least 0; may be thousands, nothing overflows.

    Returns:
        δ in [0, 1], of the shape of `mu`.

    Example:
        >>> round(float(gaussian_delta(1.0, 1.0)), 4)
        0.1269
    """
    mu = np.maximum(np.asarray(mu, dtype=np.float64), _LEAST_MU)
    near, far = epsilon / mu - mu / 2, epsilon / mu + mu / 2
    # e^ε Φ(−far) = φ(near) / φ(0) · erfcx(far / √2) / 2: the exponents are added before they are
    # raised, so that neither a huge ε nor a tiny μ loses digits.
    with np.errstate(under="ignore", over="ignore", invalid="ignore"):
        weight = 0.5 * np.exp(-np.square(near) / 2)
        other = weight * erfcx(far / math.sqrt(2))
        own = np.where(near > 0, weight * erfcx(near / math.sqrt(2)), ndtr(-near))
    return np.clip((own - other) * (1 + _ROUNDING), 0.0, 1.0)


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Return the ε of Gaussian releases at a δ: exact to a relative 10^-6, and never below.

    Args:
        mu: √Σ 1/z², at least 0.
        delta: δ in (0, 1).

    Example:
        >>> round(gaussian_epsilon(1.0, 1e-5), 3)
        4.377
    """
    if not math.isfinite(mu):
        return math.inf
    if float(gaussian_delta(mu, 0.0)) <= delta:
        return 0.0
    # δ(ε) ≤ Φ(μ/2 − ε/μ): the first ε at which that alone is δ is enough.
    high = mu * mu / 2 + mu * math.sqrt(2 * math.log(1 / delta)) + 1e-300
    low = 0.0
    for _ in range(_HALVINGS):
        if high - low <= 1e-9 * high:
            break
        middle = (low + high) / 2
        if float(gaussian_delta(mu, middle)) > delta:
            low = middle
        else:
            high = middle
    return high
