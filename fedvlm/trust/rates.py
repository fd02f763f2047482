"""Rates and their gaps, with intervals that stay honest where no row differs from another.

A model that never refuses refuses in 0 of 40 rows; Student's interval of that has no width, and
would say that it never will. Where nothing varies the exact binomial limits stand in.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from fedvlm.leakage.intervals import clopper_pearson_lower, clopper_pearson_upper
from fedvlm.trust.contrasts import cluster_means
from fedvlm.trust.estimate import COVERAGE
from fedvlm.trust.readings import Reading, reading_of, reading_of_gap

_TAIL = (1 - COVERAGE) / 2


def rate_reading(values: ArrayLike, clusters: ArrayLike) -> Reading:
    """Return the reading of a mean of numbers in [0, 1] over clusters.

    Args:
        values: Shape (N,), in [0, 1]: 1 where something happened.
        clusters: Shape (N,): values of one cluster may move together.

    Returns:
        Student's interval over clusters, cut to [0, 1]; Clopper and Pearson's (1934) where all
        clusters are alike, and then nothing to pair a change by.

    Raises:
        UnresolvedError: No rows.

    Example:
        >>> str(rate_reading(np.zeros(40), np.arange(40)).estimate)
        '0.000 [0.000, 0.088]'
    """
    found = reading_of(values, clusters)
    one = found.estimate
    if np.ptp(list(cluster_means(values, clusters).values())) > 0:
        cut = replace(one, low=max(0.0, one.low), high=min(1.0, one.high))
        return Reading(cut, found.by_concept)
    count, total = one.clusters, one.value * one.clusters
    low = float(clopper_pearson_lower(total, count, _TAIL))
    high = float(clopper_pearson_upper(total, count, _TAIL))
    return Reading(replace(one, low=min(low, one.value), high=max(high, one.value)))


def gap_reading(
    first: tuple[ArrayLike, ArrayLike],
    second: tuple[ArrayLike, ArrayLike],
    rng: np.random.Generator,
) -> Reading:
    """Return the reading of first − second, two rates, paired by cluster.

    Where all n differences are one and the same number, another one has at most the chance that
    Clopper and Pearson's limit of 0 in n leaves it, and lies at most 2 away (1, where they are 0).

    Args:
        first: Values in [0, 1] and clusters, shapes (N,).
        second: Values and clusters, shapes (M,).
        rng: Draws signs for the p-value.

    Raises:
        UnresolvedError: They share no cluster.
    """
    found = reading_of_gap(first, second, rng)
    one = found.estimate
    differences = list((found.by_concept or {}).values())
    if np.ptp(differences) > 0:
        return found
    reach = float(clopper_pearson_upper(0, one.clusters, _TAIL)) * (1 + (one.value != 0))
    low, high = max(-1.0, one.value - reach), min(1.0, one.value + reach)
    return Reading(replace(one, low=low, high=high))
