"""Is the noise of a run what it states? Its size by round and place, its law, its independence.

Every test here holds whatever the clients sent. A round's sum is signal plus noise, the signal may
depend on all earlier rounds and the noise on nothing: then its squared length is at the least a
central χ², each of its values leaves any interval around 0 at least as often as noise alone
(Anderson 1955), and what is left of it beyond the span of earlier rounds still holds noise of its
own. Where the server saw the updates, the signal is taken out first, and the tests lose nothing.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, ndtr
from scipy.stats import chi2, kstest, ncx2

Array = NDArray[np.float64]
_PARTS = 8
_BEYOND = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)  # standard deviations


def size_p_value(noise: Array) -> tuple[float, int]:
    """Return the p-value of "at least the stated noise, in each round and place".

    Places are eighths of the vector, both contiguous and interleaved.

    Args:
        noise: Shape (T, P), over the stated standard deviation.

    Returns:
        The p-value, for all that is tested, and the round that is most suspicious, from 1.
    """
    squares, size = noise**2, noise.shape[1]
    least = [chi2.cdf(squares.sum(axis=1), size)]
    parts = min(_PARTS, size)
    places = [*np.array_split(np.arange(size), parts)]
    places += [np.arange(start, size, parts) for start in range(parts)]
    least += [chi2.cdf(squares[:, place].sum(axis=1), len(place)) for place in places]
    found = np.stack(least)
    worst = int(found.min(axis=0).argmin())
    return min(1.0, float(found.min()) * found.size), worst + 1


def excess_p_value(noise: Array, *signals: Array) -> tuple[float, int]:
    """Return the p-value of "nothing but the stated noise", where the signal was taken out.

    Tests that each round is no longer than noise is, and has no part along a signal.

    Args:
        noise: Shape (T, P), over the stated standard deviation; signal taken out.
        signals: Shape (T, P) each, on any scale: what noise doesn't depend on, such as the sum that
            was taken out, or what clipping took from it.

    Returns:
        The p-value, and the round that is most suspicious, from 1.
    """
    found = chi2.sf((noise**2).sum(axis=1), noise.shape[1])
    least = [min(1.0, float(found.min()) * len(found))]
    for signal in signals:
        length = float(np.sqrt((signal**2).sum()))
        if length > 0:
            along = float((noise * signal).sum()) / length
            least.append(2 * float(ndtr(-abs(along))))
    return min(1.0, min(least) * len(least)), int(found.argmin()) + 1


def repeats_p_value(noise: Array) -> tuple[float, int]:
    """Return the p-value of "each round's noise is independent of the earlier rounds".

    What a round holds beyond all combinations of the earlier ones must have the stated size.

    Args:
        noise: Shape (T, P), over the stated standard deviation.

    Returns:
        The p-value, and the round that is most suspicious, from 1; (1, 1) for one round.
    """
    size = noise.shape[1]
    basis, found = np.empty((0, size)), []
    for row in noise[: max(1, size // 2)]:
        fresh = row - (basis @ row) @ basis
        fresh -= (basis @ fresh) @ basis  # once more, for what rounding left
        if len(found) or len(basis):
            found.append(float(chi2.cdf(fresh @ fresh, size - len(basis))))
        length = float(np.linalg.norm(fresh))
        if length > 1e-6 * max(1.0, float(np.linalg.norm(row))):
            basis = np.concatenate([basis, fresh[None] / length])
    if not found:
        return 1.0, 1
    return min(1.0, min(found) * len(found)), int(np.argmin(found)) + 2


def law_p_value(noise: Array, exact: bool) -> float:
    """Return the p-value of "normal noise": values as far out as the normal law says.

    Args:
        noise: Shape (T, P), over the stated standard deviation.
        exact: Whether nothing else is in it: then its whole distribution is tested too.
    """
    sizes, found = np.abs(noise), []
    for limit in _BEYOND:
        chance = 2 * float(ndtr(-limit))
        counts = (sizes > limit).sum(axis=1)
        found += bdtr(counts.astype(float), noise.shape[1], chance).tolist()
        found.append(float(bdtr(float(counts.sum()), noise.size, chance)))
    least = min(1.0, min(found) * len(found))
    if not exact:
        return least
    return min(1.0, 2 * min(least, float(kstest(noise.ravel(), "norm").pvalue)))


def least_ratio(size: int, alpha: float) -> float:
    """Return the noise, over the stated, below which `size` values tell it 9 times in 10."""
    return float(np.sqrt(chi2.ppf(alpha, size) / chi2.ppf(0.9, size)))


def told_offset(size: int, alpha: float) -> float:
    """Return the error a coordinate, over the noise, that `size` of them tell 9 times in 10."""
    needed, low, high = chi2.isf(alpha, size), 0.0, 4.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        told = ncx2.sf(needed, size, size * middle**2) >= 0.9
        low, high = (low, middle) if told else (middle, high)
    return high
