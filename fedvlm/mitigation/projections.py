"""Linear maps of embeddings that take an attribute out: LEACE and the calibrated projection.

Both are one matrix (D, D), which `fold` multiplies into the model's output layer: private inference
and encrypted search then cost what they cost without.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedvlm.errors import ConfigError
from fedvlm.mitigation.moments import Moments

Floats = NDArray[np.float64]
_RELATIVE = 1e-8


def leace(moments: Moments) -> Floats:
    """Return the linear part of LEACE: I − W⁺ P W (Belrose et al. 2023, theorem 4.3).

    W = Σ_zz^(−1/2), P projects onto the columns of W Σ_za. Of all maps after which no linear reader
    in squared error beats a constant, it moves embeddings least. The paper's map also adds a
    constant, which no reader sees and which normalisation would undo; it is left out.

    Args:
        moments: Of embeddings and the attribute, over all nodes.

    Returns:
        Shape (D, D): z ↦ M z has no covariance with the attribute.

    Raises:
        ConfigError: Fewer examples than would tell anything, or one value of the attribute alone.
    """
    if moments.count < 2 or (moments.a > 0).sum() < 2:
        raise ConfigError("erasing an attribute needs examples of at least two of its values")
    values, vectors = np.linalg.eigh(moments.covariance)
    kept = values > _RELATIVE * max(values.max(), 0.0)
    root, basis = np.sqrt(values[kept]), vectors[:, kept]
    whiten, back = (basis / root) @ basis.T, (basis * root) @ basis.T
    left, strengths, _ = np.linalg.svd(whiten @ moments.cross_covariance, full_matrices=False)
    known = left[:, strengths > _RELATIVE * max(strengths.max(), 1e-30)]
    return np.eye(len(values)) - back @ known @ known.T @ whiten


def pair_moments(first: ArrayLike, second: ArrayLike) -> Floats:
    """Return Σ (z_i − z_j)(z_i − z_j)ᵀ over pairs that should agree; nodes' sums add up.

    Args:
        first: Shape (N, D).
        second: Shape (N, D): the same things with another value of the attribute.
    """
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    return difference.T @ difference


def calibrated_projection(
    pairs: ArrayLike, count: int, strength: float, spurious: ArrayLike | None = None
) -> Floats:
    """Return P₀ (I + λ M)⁻¹ (Chuang et al. 2023, equation 5).

    M is the mean of `pair_moments`, P₀ projects out what prompts of the attribute span. A large λ
    takes out more than the attribute: choose it on validation data by what retrieval loses.

    Args:
        pairs: Shape (D, D), from `pair_moments`, summed over nodes.
        count: Number of pairs.
        strength: λ, at least 0.
        spurious: Shape (A, D), embeddings of prompts that name the attribute; None skips P₀.

    Raises:
        ConfigError: No pair, or a negative strength.
    """
    if count < 1 or not strength >= 0:
        raise ConfigError(f"need at least one pair and λ of 0 or more; got {count}, {strength}")
    mean = np.asarray(pairs, dtype=np.float64) / count
    out = np.linalg.inv(np.eye(len(mean)) + strength * mean)
    if spurious is None:
        return out
    basis = np.linalg.qr(np.asarray(spurious, dtype=np.float64).T)[0]
    return (np.eye(len(mean)) - basis @ basis.T) @ out


def apply_projection(embeddings: ArrayLike, matrix: Floats) -> Floats:
    """Project embeddings and bring them back to unit norm, as the folded model does.

    Args:
        embeddings: Shape (N, D).
        matrix: Shape (D, D).
    """
    moved = np.asarray(embeddings, dtype=np.float64) @ matrix.T
    norms = np.linalg.norm(moved, axis=1, keepdims=True)
    return moved / np.where(norms > 0, norms, 1.0)
