"""Gaps between groups of one's own table, whatever is measured: each group beside the largest."""

from collections.abc import Callable, Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from fedvlm.data.dataset import ImageTextData
from fedvlm.trust.estimate import UnresolvedError
from fedvlm.trust.fairness import check_groups, gap
from fedvlm.trust.readings import Reading

Measure = Callable[[], Reading]
_MOST_GROUPS = 12


def group_gaps(
    data: ImageTextData,
    rows: NDArray[np.int64],
    names: tuple[str, ...] | None,
    *,
    values: Callable[[], NDArray[np.float64]],
    labels: Sequence[str],
    clusters: NDArray[np.int64],
    rng: Callable[..., np.random.Generator],
    suffix: str = "",
    skip: Collection[str] = (),
) -> dict[str, tuple[str, Measure]]:
    """Return the gap of each own group to the largest one: name → title and measure.

    Args:
        data: Whose table names the groups.
        rows: Shape (n,), what groups are compared on.
        names: Columns of the table that hold groups; None takes every column of 2 to 12 values.
        values: Returns shape (n,), what is compared, under the model as it is.
        labels: n right answers: a column that is them by another name is refused.
        clusters: Shape (n,), what moves together.
        rng: Returns a generator for a purpose.
        suffix: Of the titles: what is compared.
        skip: Columns that hold no groups.
    """
    columns: dict[str, NDArray] = {
        key: np.array([column[row] for row in rows])
        for key, column in data.more.items()
        if key not in skip
    }
    if len(data.domain_names) > 1:
        columns["domain"] = np.array([data.domain_names[d] for d in data.domains[rows]])
    out: dict[str, tuple[str, Measure]] = {}
    for key in tuple(columns) if names is None else names:
        title = f"groups of {key}{suffix}"
        if key not in columns:
            out[f"group_{key}"] = (title, _refusing(f"no column {key!r} in the table"))
            continue
        groups = columns[key]
        there, counts = np.unique(groups, return_counts=True)
        if names is None and not 1 < len(there) <= _MOST_GROUPS:
            continue
        try:
            check_groups(groups, labels, key)
        except UnresolvedError as error:
            out[f"group_{key}"] = (title, _refusing(str(error)))
            continue
        largest = there[counts.argmax()]
        for name in there[there != largest]:

            def measure(
                groups: NDArray = groups, first: str = name, last: str = largest
            ) -> Reading:
                draws = rng("group", str(first))
                return Reading(gap(values(), groups, clusters, first, last, draws))

            out[f"group_{key}_{name}"] = (f"{key}: {name} − {largest}{suffix}", measure)
    return out


def _refusing(reason: str) -> Measure:
    def measure() -> Reading:
        raise UnresolvedError(reason)

    return measure
