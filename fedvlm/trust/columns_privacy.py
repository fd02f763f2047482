"""Privacy by group: whose pairs a run remembers."""

import numpy as np
from numpy.typing import NDArray

from fedvlm.data.unsafe import is_unsafe
from fedvlm.trust.context import Context
from fedvlm.trust.estimate import Estimate, UnresolvedError
from fedvlm.trust.membership import margins, membership_by_group

_NEGATIVES = 256
LISTED = "membership_listed"
"""The one column of membership that isn't by designer."""


def _margins(context: Context, rows: NDArray[np.int64], negatives: list[str]) -> NDArray:
    subject, data = context.subject, context.data
    captions = sorted({data.captions[row] for row in rows})
    images = subject.images(data, rows)
    texts = subject.texts(captions)[context.right(rows, captions)]
    return margins(images, texts, subject.texts(negatives), subject.scale)


def membership_columns(before: Context, after: Context) -> dict[str, tuple[str, Estimate]]:
    """Measure membership by designer on a run's model: name → title and AUC.

    The score of a pair is how much its margin over public captions rose in training, which is what
    whoever holds the released adapter can compute.

    Args:
        before: The untouched model.
        after: The run's.

    Raises:
        UnresolvedError: The run holds no pairs out by a coin, or has one designer only.
    """
    splits, data = after.splits, after.data
    members = np.concatenate(splits.clients)
    others = np.concatenate(splits.non_members)
    if not len(others):
        raise UnresolvedError(
            "membership by group needs non-members drawn like the members: run with "
            "membership = 'half'"
        )
    auxiliary = splits.retention if len(splits.retention) > 1 else splits.validation
    negatives = sorted({data.captions[row] for row in auxiliary})[:_NEGATIVES]
    rows = np.concatenate([members, others])
    inside = np.arange(len(rows)) < len(members)
    scores = _margins(after, rows, negatives) - _margins(before, rows, negatives)
    rng = after.rng("membership")
    found = {}
    names = np.array([data.domain_names[d] for d in data.domains[rows]])
    by_group = membership_by_group(scores, inside, names, rng)
    for name, one in by_group.items():
        found[f"membership_{name}"] = (f"membership AUC, {name}", one)
    listed = is_unsafe(data.captions[row] for row in rows)
    if after.of_emoji and listed.any():
        by_list = membership_by_group(scores, inside, listed, after.rng("membership", "listed"))
        found[LISTED] = ("membership AUC, listed captions", by_list["True"])
    return found
