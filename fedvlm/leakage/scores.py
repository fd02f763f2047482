"""Membership scores as pure functions of what an attacker measured; higher means "member".

Arrays are indexed by example (N), shadow model (M), client (K), round (T), population (Z).
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr, logsumexp, ndtr

from fedvlm.errors import ConfigError

Array = NDArray[np.float64]

_POOL_BELOW = 64  # shadows; with fewer, a deviation of its own for each example is too noisy
_TINY = 1e-12


def _or_nan(ranks: Array, *values: Array) -> Array:
    """Return ranks, NaN where a value that was ranked is: sorting puts NaN last, a member's rank.

    Whoever audits scores refuses those that aren't finite.
    """
    return np.where(np.isnan(sum(values)), np.nan, ranks)


def margin(own: Array, to_captions: Array, to_images: Array, scale: float) -> Array:
    """Return the InfoNCE margin φ of pairs against fixed public negatives.

    φ = s/τ − ½ log Σ_j exp(s_ij/τ) − ½ log Σ_j exp(s_ji/τ): the logit of the pair among public
    captions and among public images. It is the contrastive counterpart of LiRA's logit scaling.

    Args:
        own: Shape (N,), cosine of each pair's image and caption.
        to_captions: Shape (N, J), cosines of the images with public captions.
        to_images: Shape (N, J'), cosines of the captions with public images.
        scale: Inverse temperature 1/τ, above 0.

    Example:
        >>> float(margin(np.array([1.0]), np.array([[1.0]]), np.array([[1.0]]), 10.0)[0])
        0.0
    """
    rows = np.asarray(logsumexp(scale * to_captions, axis=1))
    columns = np.asarray(logsumexp(scale * to_images, axis=1))
    return scale * own - 0.5 * (rows + columns)


def augmented_similarity(own: Array, augmented: Array) -> Array:
    """Return CSA + Σ_k [cos(x, t) − cos(A_k x, t)]: AEA (Ko et al. 2023, section 4.2).

    Args:
        own: Shape (N,), cosines of the pairs.
        augmented: Shape (K, N), cosines with the image augmented in K ways.
    """
    return own + (own[None, :] - augmented).sum(axis=0)


def lira_online(observed: Array, shadows: Array, inside: NDArray[np.bool_]) -> Array:
    """Return log N(φ; μ_in, σ_in) − log N(φ; μ_out, σ_out) (Carlini et al. 2022, algorithm 1).

    Args:
        observed: Shape (N,), φ under the audited model.
        shadows: Shape (M, N), φ under each shadow.
        inside: Shape (M, N), whether a shadow trained on the example.

    Raises:
        ConfigError: An example has fewer than two shadows of a kind.
    """
    out_mean, out_std = _moments(shadows, ~inside)
    in_mean, in_std = _moments(shadows, inside)
    log_in = -0.5 * ((observed - in_mean) / in_std) ** 2 - np.log(in_std)
    return log_in + 0.5 * ((observed - out_mean) / out_std) ** 2 + np.log(out_std)


def lira_offline(observed: Array, shadows: Array, inside: NDArray[np.bool_]) -> Array:
    """Return log Φ((φ − μ_out) / σ_out) (Carlini et al. 2022, equation 4); see `lira_online`."""
    mean, std = _moments(shadows, ~inside)
    return log_ndtr((observed - mean) / std)


def _moments(shadows: Array, chosen: NDArray[np.bool_]) -> tuple[Array, Array]:
    count = chosen.sum(axis=0)
    if (count < 2).any():
        raise ConfigError(
            f"LiRA needs at least 2 shadows of each kind for an example; got {int(count.min())}; "
            "train more shadows"
        )
    mean = np.where(chosen, shadows, 0.0).sum(axis=0) / count
    squares = np.where(chosen, (shadows - mean) ** 2, 0.0)
    if len(shadows) < _POOL_BELOW:
        variance = np.full(mean.shape, squares.sum() / (count - 1).sum())
    else:
        variance = squares.sum(axis=0) / (count - 1)
    return mean, np.sqrt(np.maximum(variance, _TINY))


def rmia_offline(
    observed: Array,
    shadows_out: Array,
    population: Array,
    population_out: Array,
    a: float = 0.3,
    gamma: float = 1.0,
) -> Array:
    """Return Pr_z[(p(x|θ)/p(x)) / (p(z|θ)/p(z)) > γ] (Zarifzadeh et al. 2024, equation 4).

    With p(x) ≈ ½ [(1 + a) mean_out p(x|θ') + (1 − a)].

    Args:
        observed: Shape (N,), p(x|θ) in (0, 1].
        shadows_out: Shape (N,), mean of p(x|θ') over shadows without x.
        population: Shape (Z,), p(z|θ) of public examples.
        population_out: Shape (Z,), mean of p(z|θ') over the shadows.
        a: Offline scaling, in [0, 1].
        gamma: At least 1.
    """
    ratio = observed / np.maximum(0.5 * ((1 + a) * shadows_out + (1 - a)), _TINY)
    base = population / np.maximum(0.5 * ((1 + a) * population_out + (1 - a)), _TINY)
    return _or_nan(np.searchsorted(np.sort(base * gamma), ratio, side="left") / len(base), ratio)


def attack_p(losses: Array, population: Array) -> Array:
    """Return Pr_z[ℓ(z; θ) ≥ ℓ(x; θ)] over public z (Ye et al. 2022, attack P).

    Args:
        losses: Shape (N,).
        population: Shape (Z,).
    """
    below = np.searchsorted(np.sort(population), losses, side="left")
    return _or_nan(1 - below / len(population), losses)


def attack_r(losses: Array, references: Array, outside: NDArray[np.bool_]) -> Array:
    """Return Pr_θ'[ℓ(x; θ') ≥ ℓ(x; θ)] over reference models (Ye et al. 2022, attack R).

    Args:
        losses: Shape (N,), under the audited model.
        references: Shape (M, N), under reference models.
        outside: Shape (M, N), whether a reference did *not* train on x; the others don't count.

    Raises:
        ConfigError: All references trained on some x.
    """
    count = outside.sum(axis=0)
    if (count == 0).any():
        raise ConfigError("attack R needs a reference that didn't train on each example")
    found = (outside & (references >= losses[None, :])).sum(axis=0) / count
    return _or_nan(found, losses + np.where(outside, references, 0.0).sum(axis=0))


def loss_trajectory(margins: Array) -> Array:
    """Return the mean gain in φ over rounds, each measured from the first model.

    Args:
        margins: Shape (T + 1, N), φ under each global model, the first before training.
    """
    return (margins[1:] - margins[0]).mean(axis=0)


def average_cosine(dots: Array, gradient_norms: Array, update_norms: Array) -> Array:
    """Return mean_t cos(Δ_t, ∇ℓ(x; θ_t)) with Δ = θ_t − θ_{t+1} (Li et al. 2022).

    Args:
        dots: Shape (T, N), inner products of update and gradient.
        gradient_norms: Shape (T, N).
        update_norms: Shape (T,).
    """
    return (dots / np.maximum(gradient_norms * update_norms[:, None], _TINY)).mean(axis=0)


def gradient_difference(dots: Array, gradient_norms: Array) -> Array:
    """Return mean_t ‖Δ‖² − ‖Δ − ∇ℓ‖² = mean_t 2⟨Δ, ∇ℓ⟩ − ‖∇ℓ‖² (Li et al. 2022).

    Args:
        dots: Shape (T, N), inner products of update and gradient.
        gradient_norms: Shape (T, N).
    """
    return (2 * dots - gradient_norms**2).mean(axis=0)


def fed_mia(cosines: Array, target: int) -> Array:
    """Return mean_t Φ((s_t − μ) / σ), μ and σ over the clients other than the target.

    Other clients' updates are the "out" distribution of the target's (Zhu et al. 2024).

    Args:
        cosines: Shape (T, K, N), cosine of each client's update with each example's gradient.
        target: The client that is asked about, in [0, K).

    Raises:
        ConfigError: Fewer than three clients, so that others have no spread.
    """
    if cosines.shape[1] < 3:
        raise ConfigError(f"FedMIA needs at least 3 clients, got {cosines.shape[1]}")
    others = np.delete(cosines, target, axis=1)
    std = np.maximum(others.std(axis=1, ddof=1), _TINY)
    return ndtr((cosines[:, target] - others.mean(axis=1)) / std).mean(axis=0)
