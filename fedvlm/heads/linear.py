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


@dataclass(frozen=True)
class Candidates:
    """The captions of a softmax.

    Attributes:
        texts: Shape (V, m), norm at most 1: the declared captions, or a public bank.
        own: Whether an image's own captions stand beside them, as they must beside a bank, which
            doesn't hold them; declared captions hold them already.
    """

    texts: NDArray[np.float64]
    own: bool = False


def image_directions(
    head: LinearHead,
    weights: NDArray[np.float64],
    features: NDArray[np.float64],
    right: NDArray[np.float64],
    candidates: Candidates,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return each image's clipped descent direction, as two factors: x of (N, d), y of (N, m).

    Args:
        head: Settings.
        weights: Shape (d, m): W.
        features: Shape (N, d), norm at most 1, one row an image.
        right: Shape (N, m), norm at most 1: the mean of the image's own captions' texts.
        candidates: What the softmax runs over.

    Guarantees:
        ‖x‖·‖y‖ ≤ `clip_norm` for each image, whatever `weights` are: one whose direction isn't
        finite counts for nothing. An image's direction depends on no other image.
    """
    if weights.shape != (features.shape[1], right.shape[1]) or len(features) != len(right):
        raise IntegrityError(f"weights {weights.shape} don't fit the features and texts")
    with np.errstate(invalid="ignore", over="ignore"):
        mapped = head.temperature * features @ weights
        logits = mapped @ candidates.texts.T
        if candidates.own:
            logits = np.column_stack([logits, np.einsum("nm,nm->n", mapped, right)])
        logits -= logits.max(axis=1, keepdims=True)
        chances = np.exp(logits)
        chances /= chances.sum(axis=1, keepdims=True)
        known = len(candidates.texts)
        away = right * (1 - chances[:, known:].sum(axis=1, keepdims=True))
        away = away - chances[:, :known] @ candidates.texts
        norms = np.linalg.norm(away, axis=1) * np.linalg.norm(features, axis=1)
        fine = np.isfinite(norms) & np.isfinite(away).all(axis=1)
        # Rounding of norms and products, d + m of them, is taken off the bound.
        bound = head.clip_norm * (1 - sum(weights.shape) * 2.0**-50)
        factor = np.where(fine, np.minimum(1.0, bound / np.maximum(norms, 1e-300)), 0.0)
    away = np.where(fine[:, None], away, 0.0) * factor[:, None]
    return np.where(fine[:, None], features, 0.0), away


def head_gradients(
    head: LinearHead,
    weights: NDArray[np.float64],
    features: NDArray[np.float64],
    right: NDArray[np.float64],
    candidates: Candidates,
) -> NDArray[np.float64]:
    """Return the sum of clipped descent directions of images: shape (d, m).

    Args: as of `image_directions`.

    Guarantees:
        One image moves the sum by at most `clip_norm` (up to the rounding of the addition; what is
        released under DP is summed in integers, see `whole_gradients`).
    """
    x, away = image_directions(head, weights, features, right, candidates)
    return x.T @ away


def whole_gradients(
    x: NDArray[np.float64], away: NDArray[np.float64], scale: int, images: int = 32
) -> NDArray[np.int64]:
    """Return the sum of outer products in integers, each rounded *towards zero*: shape (d · m,).

    Args:
        x: Shape (N, d).
        away: Shape (N, m).
        scale: s, integers a unit.
        images: Outer products that are formed at a time.

    Guarantees:
        No image's integers are longer than s·‖x‖·‖y‖, and their sum is exact.
    """
    total = np.zeros((x.shape[1], away.shape[1]), dtype=np.int64)
    for start in range(0, len(x), images):
        at = slice(start, start + images)
        terms = np.trunc(scale * np.einsum("nd,nm->ndm", x[at], away[at]))
        total += terms.astype(np.int64).sum(axis=0)
    return total.reshape(-1)


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
    right: NDArray[np.float64],
    candidates: Candidates,
    release: Release,
) -> NDArray[np.float64]:
    """Train on one party's images, or on all in a simulation: W of shape (d, m)."""
    return release_steps(
        head,
        (features.shape[1], right.shape[1]),
        len(features),
        lambda weights: head_gradients(head, weights, features, right, candidates),
        release,
    )


def steps_reach(steps: int, momentum: float) -> NDArray[np.float64]:
    """Return what each step's release weighs in W in the end, over the rate: shape (T,)."""
    left = np.arange(steps, 0, -1)
    weights = (1 - momentum**left) / (1 - momentum)
    return np.asarray(weights, dtype=np.float64)


def control_weight(
    std: float, images: float, steps: int, rate: float, momentum: float, temperature: float
) -> float:
    """Return what the control's score weighs beside a trained map's, from public facts alone.

    Args:
        std: Standard deviation of the noise on one step's sum, over the clip norm; 0 without DP.
        images: Images of all parties, which steps are divided by.
        steps: T.
        rate: Of a step.
        momentum: Of the server.
        temperature: τ.

    Returns:
        The weight: of noise beside what one image's gradient adds up to, and rising with it, so
        that at much noise the control is all that is left.
    """
    reach = steps_reach(steps, momentum)
    signal = temperature * rate / images * float(reach.sum())
    ratio = std * float(np.linalg.norm(reach)) / float(reach.sum())
    # Chosen on seeds 100 and 101 of the embedded data, which are in no table.
    return 2.0 + signal * (0.05 + 6 * ratio**2 * (1 + ratio**2 / 16))
