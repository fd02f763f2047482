"""The text's side of a linear head: whitened embeddings, or random features of them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedvlm.errors import ConfigError
from fedvlm.heads.whitening import Whitening, unit_rows


@dataclass(frozen=True)
class TextMap:
    """Text embeddings → what a linear head multiplies with.

    Attributes:
        whitening: Of text embeddings, by public captions.
        directions: Shape (D, m) of random features; None for the whitened embedding itself.
        phases: Shape (m,).
    """

    whitening: Whitening
    directions: NDArray[np.float64] | None = None
    phases: NDArray[np.float64] | None = None

    def __call__(self, texts: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return rows of norm at most 1: shape (N, D) or (N, m)."""
        whitened = self.whitening(texts)
        if self.directions is None or self.phases is None:
            return whitened
        return unit_rows(np.cos(whitened @ self.directions + self.phases))


def whiten_texts(texts: NDArray[np.floating], shrinkage: float = 0.3) -> TextMap:
    """Fit to public captions' embeddings, of shape (C, D): their whole covariance, shrunk."""
    if len(texts) < 2 or not shrinkage > 0:
        raise ConfigError("whitening captions needs two of them or more, and shrinkage > 0")
    x = np.asarray(texts, dtype=np.float64)
    mean = x.mean(axis=0)
    covariance = (x - mean).T @ (x - mean) / len(x)
    ridge = shrinkage * np.trace(covariance) / len(covariance)
    values, vectors = np.linalg.eigh(covariance + ridge * np.eye(len(covariance)))
    return TextMap(Whitening(mean, vectors / np.sqrt(values)))


def random_features(base: TextMap, size: int, sharpness: float, seed: int) -> TextMap:
    """Return random features of a Gaussian kernel (Rahimi and Recht 2007) over a map's rows."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((base.whitening.size, size)) * sharpness
    return TextMap(base.whitening, directions, rng.uniform(0, 2 * np.pi, size))
