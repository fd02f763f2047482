"""Whitening of a frozen tower's features, by the covariance of public pairs alone."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedvlm.errors import ConfigError, IntegrityError

_TINY = 1e-9


def unit_rows(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return rows scaled to norm 1, and never above it; a row that isn't finite becomes zero.

    Args:
        values: Shape (N, d).

    Guarantees:
        The L2 norm of each row, summed in double precision, is at most 1.

    Example:
        >>> unit_rows(np.array([[3.0, 4.0], [np.nan, 1.0]])).round(3).tolist()
        [[0.6, 0.8], [0.0, 0.0]]
    """
    rows = np.asarray(values, dtype=np.float64)
    fine = np.isfinite(rows).all(axis=1, keepdims=True)
    rows = np.where(fine, rows, 0.0)
    # First by the largest entry: squares of what is huge or tiny would leave double precision.
    most = np.abs(rows).max(axis=1, initial=0.0)
    rows = rows / np.where(most > 0, most, 1.0)[:, None]
    norms = np.sqrt(np.einsum("nd,nd->n", rows, rows))
    # Norm and quotients are off by d roundings of 2^−53 at most: a shade below 1 stays below 1.
    shade = 1 - (rows.shape[1] + 8) * 2.0**-52
    return rows * (shade / np.where(norms > 0, norms, 1.0))[:, None]


@dataclass(frozen=True)
class Whitening:
    """An affine map of features to a space where designers' differences are round, and unit rows.

    Attributes:
        mean: Shape (F,).
        matrix: Shape (F, d).
    """

    mean: NDArray[np.float64]
    matrix: NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or self.matrix.shape[:1] != self.mean.shape:
            raise IntegrityError(
                f"a whitening's mean {self.mean.shape} and matrix {self.matrix.shape} don't fit"
            )
        if not (np.isfinite(self.mean).all() and np.isfinite(self.matrix).all()):
            raise IntegrityError("a whitening must be finite")

    @property
    def size(self) -> int:
        """Width d of what comes out."""
        return self.matrix.shape[1]

    def __call__(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """Map features of shape (N, F) to rows of norm at most 1: shape (N, d).

        A row that isn't finite, or leaves double precision in the map, becomes zero.
        """
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise IntegrityError(f"expected (N, {len(self.mean)}) features, got {features.shape}")
        with np.errstate(invalid="ignore", over="ignore"):
            return unit_rows((features.astype(np.float64) - self.mean) @ self.matrix)


def identity_whitening(width: int) -> Whitening:
    """Return the map that only scales to norm 1, for models without public pairs."""
    return Whitening(np.zeros(width), np.eye(width))


def fit_whitening(
    features: NDArray[np.floating],
    concepts: NDArray[np.int64],
    shrinkage: float = 1.0,
    size: int | None = None,
) -> Whitening:
    """Fit to public pairs: their covariance *within* a concept, so that what tells apart stays.

    Args:
        features: Shape (N, F), finite: of public pairs.
        concepts: Shape (N,): pairs that show the same thing share a number.
        shrinkage: How much of the mean variance is added to every direction, above 0.
        size: Keep this many directions, those of most variance between public pairs.

    Raises:
        ConfigError: No concept has two public pairs, or a value is out of range.
    """
    x = np.asarray(features, dtype=np.float64)
    if not shrinkage > 0 or not np.isfinite(x).all():
        raise ConfigError(f"whitening needs finite features and shrinkage > 0, got {shrinkage}")
    _, numbers, counts = np.unique(concepts, return_inverse=True, return_counts=True)
    if not (counts > 1).any():
        raise ConfigError("whitening needs a concept with two public pairs or more; there is none")
    mean = x.mean(axis=0)
    means = np.zeros((len(counts), x.shape[1]))
    np.add.at(means, numbers, x)
    means /= counts[:, None]
    several = counts[numbers] > 1
    # One degree of freedom of a concept goes into its mean.
    scale = np.sqrt(counts / np.maximum(counts - 1, 1))[numbers[several]]
    apart = (x - means[numbers])[several] * scale[:, None]
    within = apart.T @ apart / len(apart)
    width = len(within)
    ridge = max(shrinkage * np.trace(within) / width, _TINY)
    values, vectors = np.linalg.eigh(within + ridge * np.eye(width))
    matrix = vectors / np.sqrt(values)
    if size is not None and size < width:
        between = (x - mean) @ matrix
        _, directions = np.linalg.eigh(between.T @ between)
        matrix = matrix @ directions[:, ::-1][:, :size]
    return Whitening(mean, matrix)
