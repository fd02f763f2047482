"""Were clients drawn by independent coins of the stated chance? From who answered when."""

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, bdtrc
from scipy.stats import binom


def draws_p_value(drawn: NDArray[np.bool_], rate: float) -> tuple[float, str]:
    """Return the p-value of "drawn by coins no larger than stated, anew in each round".

    Tests each client's rounds, all draws together, and who is drawn twice running. Only
    too many draws count: a client may drop out.

    Args:
        drawn: Shape (T, K).
        rate: Stated chance q, in (0, 1).

    Returns:
        The p-value for all that is tested, and what is most suspicious, in words.
    """
    rounds, clients = drawn.shape
    by_client = drawn.sum(axis=0)
    single = bdtrc(by_client.max() - 1.0, rounds, rate) if by_client.max() else 1.0
    total = int(drawn.sum())
    together = float(bdtrc(total - 1.0, rounds * clients, rate)) if total else 1.0
    found = {
        f"client {int(by_client.argmax())} in {int(by_client.max())} of {rounds} rounds": min(
            1.0, float(single) * clients
        ),
        f"{total} of {rounds * clients} possible draws": together,
    }
    # Of two rounds side by side: who was in the first is in the second by another coin.
    for start in (0, 1):
        pairs = (rounds - start) // 2
        before, after = (drawn[start + shift :: 2][:pairs] for shift in (0, 1))
        again, trials = int((before & after).sum()), int(before.sum())
        if trials:
            found[f"{again} of {trials} draws as in the round before ({start + 1})"] = float(
                bdtrc(again - 1.0, trials, rate) if again else 1.0
            )
    worst = min(found, key=lambda name: found[name])
    return min(1.0, found[worst] * len(found)), worst


def rounds_to_tell(clients: int, rate: float, alpha: float) -> int:
    """Return after how many rounds one client that is always drawn is told."""
    return int(np.ceil(np.log(alpha / (4 * clients)) / np.log(rate)))


def least_share(rounds: int, clients: int, rate: float, alpha: float) -> float:
    """Return the share of clients drawn, all alike, that is told 9 times in 10."""
    trials = rounds * clients
    needed = int(binom.isf(alpha / 4, trials, rate)) + 1
    low, high = rate, 1.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (
            (low, middle) if 1 - bdtr(needed - 1.0, trials, middle) >= 0.9 else (middle, high)
        )
    return high
