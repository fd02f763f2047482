"""Can an attribute be read off an embedding linearly: a probe, fitted and scored apart."""

import numpy as np
from numpy.typing import ArrayLike

from fedvlm.trust.contrasts import mean_estimate
from fedvlm.trust.estimate import Estimate, UnresolvedError
from fedvlm.trust.fairness import check_groups

_FOLDS = 5


def attribute_probe(
    embeddings: ArrayLike,
    attributes: ArrayLike,
    clusters: ArrayLike,
    rng: np.random.Generator,
    ridge: float = 1e-3,
) -> Estimate:
    """Estimate a linear probe's balanced accuracy less chance, by cross-fitting over concepts.

    Least squares on one-hot attributes with a ridge: the best linear reader in squared error.
    That an attribute can't be read so doesn't say that the model treats its values alike.

    Args:
        embeddings: Shape (N, D).
        attributes: Shape (N,), A ≥ 2 values.
        clusters: Shape (N,); a cluster is fitted on or scored, never both.
        rng: Deals clusters to folds.
        ridge: Times the mean square of the embeddings.

    Returns:
        Accuracy in which every value counts alike, less 1/A. 0 is chance.

    Raises:
        UnresolvedError: One value only, or fewer clusters than folds.
    """
    found = np.asarray(embeddings, dtype=np.float64)
    attributes, clusters = np.asarray(attributes), np.asarray(clusters)
    check_groups(attributes, name="attribute")
    names, codes = np.unique(attributes, return_inverse=True)
    clusters_there = np.unique(clusters)
    if len(clusters_there) < _FOLDS:
        raise UnresolvedError(
            f"a probe needs at least {_FOLDS} concepts, got {len(clusters_there)}"
        )
    deal = rng.permutation(len(clusters_there)) % _FOLDS
    fold = deal[np.searchsorted(clusters_there, clusters)]
    right = np.zeros(len(found))
    for number in range(_FOLDS):
        held = fold == number
        x, y = found[~held], np.eye(len(names))[codes[~held]]
        weight = 1 / np.bincount(codes[~held], minlength=len(names)).clip(1)[codes[~held]]
        weight /= weight.sum()
        mean, target = weight @ x, weight @ y
        centred = x - mean
        gram = (centred * weight[:, None]).T @ centred
        gram += ridge * np.trace(gram) / len(gram) * np.eye(len(gram))
        coefficients = np.linalg.solve(gram, (centred * weight[:, None]).T @ (y - target))
        guess = ((found[held] - mean) @ coefficients + target).argmax(axis=1)
        right[held] = guess == codes[held]
    share = np.bincount(codes) / len(codes)
    balanced = right / (len(names) * share[codes]) - 1 / len(names)
    return mean_estimate(balanced, clusters)
