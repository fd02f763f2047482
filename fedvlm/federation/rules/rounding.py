"""Compression by few bits: how fine the lanes of a secure sum are.

Every client rounds at random, without bias, onto levels that are the same for all, so that the
rounded values can be summed under masks. The randomness is the client's own, from the operating
system: with a public seed the rounding would tell the fraction that it took away.
"""

import math


def rounding_error(bits: int, bound: float, clients: int) -> float:
    """Return the error that `bits` bits a coordinate bring into a mean.

    Levels are δ = 2·bound / (2^bits − 1) apart. Rounding at random at a fraction f between two of
    them has variance f(1−f)·δ² ≤ δ²/4, and a mean over K clients a K-th of it.

    Args:
        bits: Bits of one client's coordinate, at least 2.
        bound: Largest magnitude of a coordinate of an update.
        clients: K, how many are summed.

    Returns:
        A bound on the root-mean-square error of a coordinate of the mean, in the update's unit.

    Example:
        >>> round(rounding_error(8, 1.0, 1), 6)
        0.003922
    """
    return bound / (2**bits - 1) / math.sqrt(clients)
