"""A client's round of prototypes: the sum of its images' terms, and what both sides plan from.

Nothing is trained here. With `noise = "shared"` the sum is one of integers, of which only the
cohort's is ever seen.
"""

import logging
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedvlm.adapters.prototypes import SIZE, PrototypeHead, raw_features
from fedvlm.config.whole import Config
from fedvlm.data import ImageTextData, Splits
from fedvlm.errors import ConfigError
from fedvlm.federation.node_ledger import NodeLedger
from fedvlm.federation.private_client import all_pairs, noise_source
from fedvlm.federation.records import EXAMPLES
from fedvlm.federation.task import Task
from fedvlm.heads import fit_control, fit_whitening
from fedvlm.heads.contributions import whole_terms
from fedvlm.models import LoadedModel
from fedvlm.privacy.shared_noise import (
    SharedNoise,
    honest_of,
    plan_shared_noise,
    summed_in_integers,
)
from fedvlm.training import EncodedPairs

log = logging.getLogger("fedvlm")

_BATCH = 256


@lru_cache(maxsize=4)
def shared_mechanism(config: Config, size: int) -> SharedNoise:
    """Plan the noise for the fewest honest clients that may be in a sum, from public facts.

    Args:
        config: The federation's configuration.
        size: Parameters P of the adapter.

    Raises:
        ConfigError: No lane of secure aggregation is wide enough.
    """
    from secure.aggregation import Policy, integer_plan

    members = config.cohort
    floor = Policy(integer_plan(members, 1), roster=config.nodes)
    least = honest_of(floor.sharing(members).quorum, floor.corrupt_members(members))
    return plan_shared_noise(
        config.privacy.epsilon,
        config.privacy.delta,
        size=size,
        least_noised=least,
        most_clients=members,
    )


def head_of(task: Task) -> PrototypeHead:
    """Return the task's head.

    Raises:
        ConfigError: The adapter is another.
    """
    head = task.model.vlm.head
    if not isinstance(head, PrototypeHead):
        raise ConfigError("this round is for adapter = prototypes")
    return head


def prepare(
    config: Config,
    model: LoadedModel,
    data: ImageTextData,
    pairs: EncodedPairs,
    splits: Splits,
) -> None:
    """Set what public pairs make of features and captions, the same for every party.

    Without public pairs features are only scaled to norm 1, and captions have no control.

    Args:
        config: The federation's configuration.
        model: The model, its fresh head attached.
        data: Image–caption pairs.
        pairs: The same as the model sees them.
        splits: Who holds what; only `public` is looked at.
    """
    head, public = model.vlm.head, splits.public
    if not isinstance(head, PrototypeHead):
        return
    if len(public) > 1:
        _set_public(model, data, pairs, public, head)
    declared = sorted({line.strip() for line in config.adapter.captions.splitlines()} - {""})
    if declared:
        head.declare(model.processor.texts(declared))


def _set_public(
    model: LoadedModel,
    data: ImageTextData,
    pairs: EncodedPairs,
    public: NDArray[np.int64],
    head: PrototypeHead,
) -> None:
    model.vlm.head = None  # the towers' own embeddings are wanted
    try:
        images = model.processor.images(data, public, lambda *_: None)
        raw = np.concatenate(
            [raw_features(model.vlm.embed(x, "image"), x) for x in _batches(images, public)]
        )
        captions, numbers = np.unique(pairs.caption_of[public], return_inverse=True)
        texts = model.vlm.embed(pairs.captions(captions), "text").double().numpy()
    finally:
        model.vlm.head = head
    whitening = fit_whitening(raw, pairs.concepts[public], 0.5, SIZE)
    control = fit_control(whitening(raw), numbers, texts)
    head.set_public(whitening, control, texts.shape[1])


def plan_reading(config: Config, task: Task) -> None:
    """Tell the head how its sum will have been scaled and noised, by public facts."""
    head = head_of(task)
    if config.privacy.dp == "none" and task.own is not None and not config.privacy.mean_pairs:
        return  # a node reads nothing; its part is the sum
    head.total = float(all_pairs(task))
    if config.privacy.shares_noise:
        head.std = shared_mechanism(config, task.view.size).std_of(config.cohort)


def _batches(images, rows: NDArray[np.int64]) -> Iterator:
    for start in range(0, len(rows), _BATCH):
        yield images(rows[start : start + _BATCH])


def _terms(task: Task, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the terms of a client's images, each of a norm of at most 1."""
    head, vlm = head_of(task), task.model.vlm
    captions, numbers = np.unique(task.pairs.caption_of[rows], return_inverse=True)
    if not len(rows):
        return np.zeros(0, dtype=np.int64), np.zeros((0, head.width + 1))
    vlm.head = None
    try:
        features = np.concatenate(
            [
                head.features(vlm.embed(inputs, "image"), inputs)
                for inputs in _batches(task.pairs.images, rows)
            ]
        )
    finally:
        vlm.head = head
    places = head.rows_of(task.pairs.captions(captions))[numbers]
    return head.terms(features, places, task.pairs.groups[rows])


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
    config, head = task.config, head_of(task)
    if config.privacy.shares_noise:
        mechanism = shared_mechanism(config, task.view.size)
        try:
            ledger.answer(config, number, session, "example", mechanism)
            places, vectors = _terms(task, task.rows(client))
        except Exception as error:
            # It has agreed to the sum, and the others count on its share of the noise.
            log.error("this node adds noise and no images: %s", error, exc_info=True)
            places, vectors = np.zeros(0, dtype=np.int64), np.zeros((0, head.width + 1))
        total = summed_in_integers(places, whole_terms(vectors, mechanism.scale), head.rows)
        noised = mechanism.encode(total, noise_source(config, "shared", client, number))
        return noised.astype(np.float64), {EXAMPLES: 1}
    ledger.answer(config, number, session)
    places, vectors = _terms(task, task.rows(client))
    total = np.zeros((head.rows, head.width + 1))
    np.add.at(total, places, vectors)
    count = max(1, len(task.rows(client)))
    told = {EXAMPLES: count, "train-loss": 0.0, "client-seconds": 0.0}
    return (total.reshape(-1) / count).astype(np.float32), told
