"""A linear head: score τ·xᵀWu, by clipped full-batch steps on a softmax over captions.

An image's gradient is x ⊗ (u_caption − Σ p u): its norm is the product of two, so that it is
clipped without ever being formed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedvlm.errors import ConfigError, IntegrityError

Release = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True)
class LinearHead:
    """Settings of a linear head.

    Attributes:
        steps: Full-batch steps T: rounds of a federation.
        learning_rate: Of a step, over the number of images.
        temperature: τ.
        momentum: Of the server, in [0, 1).
        clip_norm: L2 norm that an image's gradient is clipped to.
    """

    steps: int = 10
    learning_rate: float = 10.0
    temperature: float = 20.0
    momentum: float = 0.9
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        positive = (self.learning_rate, self.temperature, self.clip_norm)
        if self.steps < 1 or not all(v > 0 for v in positive) or not 0 <= self.momentum < 1:
            raise ConfigError(
                "a linear head needs steps >= 1, positive rate, temperature and clip, momentum "
                f"in [0, 1); got {self}"
            )


def head_gradients(
    head: LinearHead,
    weights: NDArray[np.float64],
    features: NDArray[np.float64],
    texts: NDArray[np.float64],
    right: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Return the sum of clipped descent directions of images: shape (d, m).

    Args:
        head: Settings.
        weights: Shape (d, m): W.
        features: Shape (N, d), norm at most 1, one row an image.
        texts: Shape (V, m), norm at most 1: the softmax's captions, declared or of a public bank.
        right: Shape (N,): each image's own row of `texts`.

    Guarantees:
        One image moves the sum by at most `clip_norm`, whatever `weights` are: an image whose
        direction isn't finite counts for nothing.
    """
    if weights.shape != (features.shape[1], texts.shape[1]):
        raise IntegrityError(f"weights {weights.shape} don't fit the features and texts")
    with np.errstate(invalid="ignore", over="ignore"):
        logits = head.temperature * (features @ weights) @ texts.T
        logits -= logits.max(axis=1, keepdims=True)
        chances = np.exp(logits)
        chances /= chances.sum(axis=1, keepdims=True)
        away = texts[right] - chances @ texts
        norms = np.linalg.norm(away, axis=1) * np.linalg.norm(features, axis=1)
        fine = np.isfinite(norms) & np.isfinite(away).all(axis=1)
        # Rounding of norms and products, d + m of them, is taken off the bound.
        bound = head.clip_norm * (1 - sum(weights.shape) * 2.0**-50)
        factor = np.where(fine, np.minimum(1.0, bound / np.maximum(norms, 1e-300)), 0.0)
    away = np.where(fine[:, None], away, 0.0) * factor[:, None]
    return np.where(fine[:, None], features, 0.0).T @ away


def release_steps(
    head: LinearHead,
    size: tuple[int, int],
    images: float,
    summed: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    release: Release,
) -> NDArray[np.float64]:
    """Take the steps: W ← W + rate/N · momentum of released sums.

    Args:
        head: Settings.
        size: (d, m).
        images: N, a public number.
        summed: W → the sum of clipped directions over all images.
        release: Adds the noise of one step; over T steps σ√T of one release.
    """
    weights, moved = np.zeros(size), np.zeros(size)
    for _ in range(head.steps):
        moved = head.momentum * moved + release(summed(weights))
        weights = weights + head.learning_rate / images * moved
    return weights


def train_head(
    head: LinearHead,
    features: NDArray[np.float64],
    texts: NDArray[np.float64],
    right: NDArray[np.int64],
    release: Release,
) -> NDArray[np.float64]:
    """Train on one party's images, or on all in a simulation: W of shape (d, m)."""
    return release_steps(
        head,
        (features.shape[1], texts.shape[1]),
        len(features),
        lambda weights: head_gradients(head, weights, features, texts, right),
        release,
    )
