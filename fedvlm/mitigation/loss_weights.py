"""Weights by loss: a client whom the adapter serves badly counts for more."""

import math

from fedvlm.errors import ConfigError

LEAST = 1.0
"""What a client weighs at least: one pair."""
_MOST_LOSS = 1e9


def loss_weight(pairs: int, loss: float, power: float, most: float) -> float:
    """Return n·F^q, within [1, most]: what a client weighs in a mean (after q-FFL).

    The gradient of q-FFL's objective weighs each client's own by F^q (Li et al. 2020, equation 2).
    Here that is the weight of its update in the mean Σ wΔ / Σ w, which a protected sum takes as it
    takes n: nothing else leaves the client. q-FedAvg's step size, which needs norms of single
    updates, is not part of it.

    Args:
        pairs: n, at least 0.
        loss: F, of the adapter that the client was sent, over that of a guesser: 1 is chance.
            What isn't finite weighs the most, and what is no number the least.
        power: q, at least 0; 0 gives n.
        most: Where the weight is clamped: as a number of pairs is.

    Guarantees:
        A client that lies about F gains no more than one that lies about n: `most`.

    Raises:
        ConfigError: n, q or the clamp is out of its range.

    Example:
        >>> loss_weight(100, 0.5, 2.0, 1000.0)
        25.0
    """
    if pairs < 0 or not 0 <= power < math.inf or not most >= LEAST:
        raise ConfigError(
            f"a weight by loss needs pairs >= 0, power >= 0 and a clamp of {LEAST:g} or more; got "
            f"{pairs}, {power}, {most}"
        )
    if math.isnan(loss):
        return LEAST
    raised = pairs * min(max(loss, 0.0), _MOST_LOSS) ** power
    return float(min(max(raised, LEAST), most))
