"""What planted canaries and remembered pairs show, in figures."""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import root_scalar
from scipy.stats import norm

from fedvlm.errors import ConfigError
from fedvlm.leakage.inputs import finite
from fedvlm.leakage.units import EpsilonLower, Kind, Unit


def clip(updates: NDArray[np.float32], norm_limit: float) -> NDArray[np.float32]:
    """Scale rows down to a norm limit, as client-level DP does before it sums."""
    lengths = np.linalg.norm(updates, axis=1, keepdims=True)
    return updates * np.minimum(1.0, norm_limit / np.maximum(lengths, 1e-12)).astype(np.float32)


def andrew_estimate(cosines: NDArray[np.float64], size: int, delta: float) -> EpsilonLower:
    """Estimate a client's ε from canaries' cosines, against their known null N(0, 1/P).

    Source: Andrew et al. 2023, algorithm 1: a normal is fitted to the planted canaries' cosines,
    and ε is that of telling it from the null. Nothing bounds its error: an estimate.

    Args:
        cosines: Shape (k,), of planted canaries, k >= 2.
        size: P.
        delta: In (0, 1).
    """
    if len(cosines) < 2:
        raise ConfigError(f"need at least 2 planted canaries, got {len(cosines)}")
    finite("cosines", cosines)
    null = size**-0.5
    mean, std = float(cosines.mean()), max(float(cosines.std(ddof=1)), 1e-12)
    grid = np.linspace(min(mean - 12 * std, -12 * null), max(mean + 12 * std, 12 * null), 20001)
    planted, held = norm.logpdf(grid, mean, std), norm.logpdf(grid, 0.0, null)
    step = float(grid[1] - grid[0])

    def excess(epsilon: float) -> float:
        # Hockey-stick divergence in both directions.
        one = np.maximum(np.exp(planted) - np.exp(epsilon + held), 0).sum() * step
        two = np.maximum(np.exp(held) - np.exp(epsilon + planted), 0).sum() * step
        return float(max(one, two)) - delta

    value = 0.0
    if excess(0.0) > 0:
        value = 100.0
        if excess(value) <= 0:
            value = float(root_scalar(excess, bracket=(0.0, value), method="brentq").root)
    return EpsilonLower(
        value, delta, "andrew", Kind.ESTIMATE, Unit.CLIENT, 0.0, "cosines are normal"
    )


def exposure(canary: float, references: NDArray[np.float64]) -> float:
    """Return log₂|R| − log₂ rank of a canary among references (Carlini et al. 2019).

    Args:
        canary: The trained-on canary's score, higher if remembered.
        references: Shape (R − 1,), scores of canaries drawn alike and not trained on.

    Returns:
        Bits in [0, log₂ R]. A tie counts against the attacker.

    Raises:
        ConfigError: A score isn't finite.

    Example:
        >>> exposure(2.0, np.zeros(1023))
        10.0
    """
    finite("scores", np.array([canary]), references)
    rank = 1 + int((references >= canary).sum())
    return float(np.log2(len(references) + 1) - np.log2(rank))


def exposures(
    scores: NDArray[np.float64], planted: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the exposure of planted canaries among held-out ones, and of these among the rest.

    Args:
        scores: Shape (m,), at least two of them held out.
        planted: Shape (m,).

    Returns:
        Bits, shapes (planted,) and (held out,). Both have one mean where nothing was remembered.
    """
    held = scores[~planted]
    inside = [exposure(float(one), held[1:]) for one in scores[planted]]
    outside = [exposure(float(one), np.delete(held, at)) for at, one in enumerate(held)]
    return np.array(inside), np.array(outside)


def recall_gap(
    trained: NDArray[np.float64],
    reference: NDArray[np.float64],
    public_objects: NDArray[np.bool_],
    own_objects: NDArray[np.bool_],
    neighbours: int = 10,
) -> NDArray[np.float64]:
    """Return how much more of an image its caption gives away after training on the pair.

    Déjà Vu (Jayaraman et al. 2024, section 3): the caption fetches its nearest public images;
    what they show is a guess at what the private image shows. Recall of that guess under the
    trained model, less recall under a model that did not train on the pair.

    Args:
        trained: Shape (N, J), cosines of N captions with J public images.
        reference: Shape (N, J), under the reference model.
        public_objects: Shape (J, O), what public images show.
        own_objects: Shape (N, O), what the private images show; at least one each.
        neighbours: k, in [1, J].

    Returns:
        Shape (N,), in [−1, 1]; above 0 on average where the pairs were remembered.

    Raises:
        ConfigError: A cosine isn't finite.
    """
    finite("cosines", trained, reference)

    def recall(cosines: NDArray[np.float64]) -> NDArray[np.float64]:
        nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :neighbours]
        shown = public_objects[nearest].any(axis=1)
        return (shown & own_objects).sum(axis=1) / own_objects.sum(axis=1)

    return recall(trained) - recall(reference)
