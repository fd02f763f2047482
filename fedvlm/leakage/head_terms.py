"""What an attacker computes of a pair where a head is learned: its bounded term, by hand.

A head's round is a sum of such terms, so that a term takes the place of an example's gradient; and
what a caption's row holds of one image is that image's feature.
"""

import numpy as np
from numpy.typing import NDArray

from fedvlm.adapters.linear_head import LinearMapHead
from fedvlm.adapters.prototypes import PrototypeHead
from fedvlm.federation.head_plan import head_of
from fedvlm.federation.head_round import image_features, map_directions, prototype_terms
from fedvlm.federation.task import Task
from fedvlm.heads.whitening import unit_rows

Array = NDArray[np.float64]
Indices = NDArray[np.int64]


def term_alignment(
    task: Task, adapter: NDArray[np.float32], indices: Indices, updates: NDArray[np.float32]
) -> tuple[Array, Array]:
    """Return how each pair's term lies with updates.

    Args:
        task: Model with a head, and the data.
        adapter: Shape (P,), where the term is taken.
        indices: Shape (N,), rows of the data set.
        updates: Shape (K, P), new adapter less old.

    Returns:
        Inner products of shape (K, N), and the terms' norms, (N,); both zero for a pair whose
        caption has no place in the head.
    """
    head = head_of(task)
    task.view.write(np.array(adapter))
    dots, norms = np.zeros((len(updates), len(indices))), np.zeros(len(indices))
    image_features(task, indices)  # all at once; each pair's are kept
    for at, row in enumerate(indices):
        one = np.array([row], dtype=np.int64)
        if isinstance(head, LinearMapHead):
            x, away = map_directions(task, head, one)
            if not len(x):
                continue
            shaped = updates.reshape(len(updates), x.shape[1], away.shape[1])
            dots[:, at] = np.einsum("kdm,d,m->k", shaped, x[0], away[0], optimize=True)
            norms[at] = np.linalg.norm(x[0]) * np.linalg.norm(away[0])
            continue
        places, vectors = prototype_terms(task, head, one)
        shaped = updates.reshape(len(updates), head.rows, head.width + 1)
        dots[:, at] = np.einsum("krd,rd->k", shaped[:, places], vectors)
        norms[at] = np.linalg.norm(vectors)
    return dots, norms


def read_feature(task: Task, adapter: NDArray[np.float32], indices: Indices) -> Array:
    """Return the cosine of each pair's feature with what the head says of its caption.

    A prototype of a caption that one image has *is* that image's feature, in the clear. A linear
    map says W·u of a caption u, which many images share.

    Args:
        task: Model with a head, and the data.
        adapter: Shape (P,): what was released, or one client's update.
        indices: Shape (N,), rows of the data set.

    Returns:
        Shape (N,), in [−1, 1]; 0 where the head has nothing of the caption.
    """
    head = head_of(task)
    features = image_features(task, indices)
    captions, numbers = np.unique(task.pairs.caption_of[indices], return_inverse=True)
    inputs = task.pairs.captions(captions)
    if isinstance(head, PrototypeHead):
        places = head.rows_of(inputs)
        sums = np.asarray(adapter, dtype=np.float64).reshape(head.rows, -1)[:, :-1]
        found = np.where((places >= 0)[:, None], sums[places], 0.0)
    else:
        vlm, vlm.head = task.model.vlm, None
        try:
            mapped = head.mapped(vlm.embed(inputs, "text").double().numpy())
        finally:
            vlm.head = head
        found = mapped @ np.asarray(adapter, dtype=np.float64).reshape(head.width, -1).T
    return np.einsum("nd,nd->n", unit_rows(found)[numbers], unit_rows(features))
