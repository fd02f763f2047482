"""A client's round of a head: the sum of its images' bounded terms, and what is sent of it.

Nothing else is trained. With `noise = "shared"` the sum is one of integers, of which only the
cohort's is ever seen.
"""

import logging

import numpy as np
from numpy.typing import NDArray

from fedvlm.adapters.linear_head import TEMPERATURE, LinearMapHead
from fedvlm.adapters.prototypes import PrototypeHead
from fedvlm.canaries import HOST, Canaries, hidden_in
from fedvlm.federation.head_plan import (
    batches,
    head_of,
    own_mechanism,
    shared_mechanism,
    term_bound,
)
from fedvlm.federation.node_ledger import NodeLedger
from fedvlm.federation.private_client import all_pairs, noise_source
from fedvlm.federation.records import EXAMPLES
from fedvlm.federation.task import Task
from fedvlm.heads.contributions import whole_terms
from fedvlm.heads.linear import LinearHead, image_directions, whole_gradients
from fedvlm.heads.whitening import unit_rows
from fedvlm.privacy.shared_noise import summed_in_integers

log = logging.getLogger("fedvlm")

_FINE = 1 << 24  # integers a unit where nothing but float64 bounds them


def image_features(task: Task, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return whitened features of pairs' images by the frozen tower: shape (N, d).

    A party's own are kept, since the tower doesn't change between rounds.
    """
    head, vlm = head_of(task), task.model.vlm
    key = rows.tobytes()
    if key not in head.kept:
        vlm.head = None
        try:
            parts = [
                head.features(vlm.embed(inputs, "image"), inputs)
                for inputs in batches(task.pairs.images, rows)
            ]
        finally:
            vlm.head = head
        head.kept[key] = np.concatenate(parts) if parts else np.zeros((0, head.width))
    return head.kept[key]


def prototype_terms(
    task: Task, head: PrototypeHead, rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the terms of a client's images, each of a norm of at most 1: rows and vectors."""
    if not len(rows):
        return np.zeros(0, dtype=np.int64), np.zeros((0, head.width + 1))
    captions, numbers = np.unique(task.pairs.caption_of[rows], return_inverse=True)
    places = head.rows_of(task.pairs.captions(captions))[numbers]
    return head.terms(image_features(task, rows), places, task.pairs.groups[rows])


def map_directions(
    task: Task, head: LinearMapHead, rows: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the two factors of each image's clipped direction at the map that was sent.

    Where captions are declared, pairs of others are left out.
    """
    columns, candidates = head.map.shape[1], head.candidates
    nothing = np.zeros((0, head.width)), np.zeros((0, columns))
    if not len(rows) or candidates is None:
        return nothing
    features = image_features(task, rows)
    captions, numbers = np.unique(task.pairs.caption_of[rows], return_inverse=True)
    inputs = task.pairs.captions(captions)
    mapped = _mapped_texts(task, head, captions)[numbers]
    held = np.ones(len(rows), dtype=bool)
    if len(head.declared):
        held = (head.places_of(inputs) >= 0)[numbers]
    if not held.any():
        return nothing
    # One image is one unit: its first pair's feature, and the mean of its captions.
    _, first, images = np.unique(
        task.pairs.groups[rows][held], return_index=True, return_inverse=True
    )
    right = np.zeros((len(first), columns))
    np.add.at(right, images, mapped[held])
    right /= np.bincount(images)[:, None]
    settings = LinearHead(temperature=TEMPERATURE, clip_norm=task.config.privacy.clip_norm)
    weights = head.map.detach().double().numpy()
    return image_directions(settings, weights, features[held][first], right, candidates)


def _mapped_texts(
    task: Task, head: LinearMapHead, captions: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return captions as W takes them; kept, as features are."""
    key = b"captions" + captions.tobytes()
    if key not in head.kept:
        vlm = task.model.vlm
        vlm.head = None
        try:
            head.kept[key] = head.mapped(
                vlm.embed(task.pairs.captions(captions), "text").double().numpy()
            )
        finally:
            vlm.head = head
    return head.kept[key]


def summed(task: Task, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the sum of the terms of images: shape (P,)."""
    head = head_of(task)
    if isinstance(head, LinearMapHead):
        x, away = map_directions(task, head, rows)
        return (x.T @ away).reshape(-1)
    places, vectors = prototype_terms(task, head, rows)
    total = np.zeros((head.rows, head.width + 1))
    np.add.at(total, places, vectors)
    return total.reshape(-1)


def whole_sum(task: Task, rows: NDArray[np.int64], scale: int, plants: bool) -> NDArray[np.int64]:
    """Return the exact sum of the terms in integers, each rounded towards zero: shape (P,).

    Args:
        task: Model, adapter and data.
        rows: The client's pairs.
        scale: s, integers a unit.
        plants: Whether the run's canaries are among its images.
    """
    head = head_of(task)
    if isinstance(head, LinearMapHead):
        total = whole_gradients(*map_directions(task, head, rows), scale)
    else:
        places, vectors = prototype_terms(task, head, rows)
        total = summed_in_integers(places, whole_terms(vectors, scale), head.rows)
    if plants:
        canaries = Canaries.of_run(task.config, task.view.size)
        for direction in canaries.directions[canaries.planted]:
            term = term_bound(task.config) * unit_rows(direction[None])
            total += whole_terms(term, scale)[0]
    return total


def head_round(
    task: Task, client: int, number: int, ledger: NodeLedger, session: str
) -> tuple[NDArray, dict[str, int | float]]:
    """Pay, sum, and return what is sent: the vector and its metrics.

    Args:
        task: Model, adapter and data.
        client: Number of the client.
        number: Round.
        ledger: The node's, which is charged before anything is summed.
        session: Run and message, for the ledger.

    Raises:
        BudgetExceeded: The client's budget doesn't hold the answer; nothing was summed. With
            shared noise such a client sends its share of noise around zero, and logs why.
    """
    config, rows = task.config, task.rows(client)
    before = task.view.read().astype(np.float64)
    plants = bool(config.audit.canaries) and client == HOST
    if config.privacy.shares_noise:
        return _shared(task, client, number, ledger, session, plants), {EXAMPLES: 1}
    if config.privacy.dp == "example":
        mechanism = own_mechanism(config)
        ledger.answer(config, number, session, "example", mechanism)
        total = whole_sum(task, rows, _FINE, plants) / _FINE
        noised = mechanism.release(total, noise_source(config, "own", client, number))
        # A uniform mean of these is the sum over all images' public number.
        sent = before + noised * (config.data.clients / all_pairs(task))
        return sent.astype(np.float32), {EXAMPLES: 1}
    ledger.answer(config, number, session)
    if config.privacy.dp == "client":  # the server clips it as a whole
        weight = min(len(rows), config.privacy.weight_cap) if config.privacy.weight_cap else 1
        return (before + summed(task, rows)).astype(np.float32), {EXAMPLES: max(1, weight)}
    count = max(1, len(rows))
    update = (summed(task, rows) / count).astype(np.float32)
    if plants:
        update = hidden_in(config, update)
    told = {EXAMPLES: count, "train-loss": 0.0, "client-seconds": 0.0}
    return (before + update).astype(np.float32), told


def _shared(
    task: Task, client: int, number: int, ledger: NodeLedger, session: str, plants: bool
) -> NDArray[np.float64]:
    """Return a client's integers with its share of the noise."""
    config = task.config
    mechanism = shared_mechanism(config, task.view.size)
    try:
        ledger.answer(config, number, session, "example", mechanism)
        total = whole_sum(task, task.rows(client), mechanism.scale, plants)
    except Exception as error:
        # It has agreed to the sum, and the others count on its share of the noise.
        log.error("this node adds noise and no images: %s", error, exc_info=True)
        total = np.zeros(task.view.size, dtype=np.int64)
    noised = mechanism.encode(total, noise_source(config, "shared", client, number))
    return noised.astype(np.float64)
