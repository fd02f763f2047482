"""What all parties of a run with a head plan from: mechanisms, public maps, how a sum is read."""

import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedvlm.adapters.frozen_head import SIZE, FrozenHead, raw_features
from fedvlm.adapters.linear_head import TEMPERATURE, LinearMapHead
from fedvlm.adapters.prototypes import PrototypeHead
from fedvlm.config.whole import Config
from fedvlm.data import ImageTextData, Splits
from fedvlm.errors import ConfigError
from fedvlm.federation.private_client import all_pairs
from fedvlm.federation.task import Task
from fedvlm.heads import fit_control, fit_whitening
from fedvlm.heads.linear import control_weight
from fedvlm.heads.text import whiten_texts
from fedvlm.models import LoadedModel
from fedvlm.privacy.mechanisms import GaussianMechanism
from fedvlm.privacy.planning import plan
from fedvlm.privacy.shared_noise import SharedNoise, honest_of, plan_shared_noise
from fedvlm.training import EncodedPairs

_BATCH = 256
_HELD = 1.4  # images of a caption that an image is of, over the mean of all captions


def term_bound(config: Config) -> float:
    """Return the norm that no image's term exceeds: prototypes' by construction, a map's clip."""
    return 1.0 if config.adapter.kind == "prototypes" else config.privacy.clip_norm


@lru_cache(maxsize=4)
def shared_mechanism(config: Config, size: int) -> SharedNoise:
    """Plan the noise for the fewest honest clients that may be in a sum, from public facts.

    With `min_clients` above the quorum there are more of them, and each adds less: a round then
    fails where fewer stay.

    Args:
        config: The federation's configuration.
        size: Parameters P of the adapter.

    Raises:
        ConfigError: No lane of secure aggregation is wide enough.
    """
    from secure.aggregation import Policy, integer_plan

    members = config.cohort
    floor = Policy(integer_plan(members, 1), roster=config.nodes)
    # Every client holds this floor by itself: of fewer there is no sum.
    fewest = max(floor.sharing(members).quorum, config.protection.min_clients)
    least = honest_of(fewest, floor.corrupt_members(members))
    return plan_shared_noise(
        config.privacy.epsilon,
        config.privacy.delta,
        size=size,
        least_noised=least,
        most_clients=members,
        rounds=config.training.rounds,
        clip_norm=term_bound(config),
    )


@lru_cache(maxsize=4)
def own_mechanism(config: Config) -> GaussianMechanism:
    """Plan the noise of a client that hides its images alone: of each round's whole sum.

    Args:
        config: The federation's configuration.
    """
    planned = plan(
        delta=config.privacy.delta,
        sample_rate=1.0,
        steps=config.training.rounds,
        target_epsilon=config.privacy.epsilon,
    )
    return GaussianMechanism(term_bound(config), planned.noise_multiplier)


def head_of(task: Task) -> PrototypeHead | LinearMapHead:
    """Return the task's head.

    Raises:
        ConfigError: The adapter is another.
    """
    head = task.model.vlm.head
    if not isinstance(head, PrototypeHead | LinearMapHead):
        raise ConfigError("this round is for adapter = prototypes or head")
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

    Raises:
        ConfigError: A linear map has no captions to be learned by.
    """
    head, public = model.vlm.head, splits.public
    if not isinstance(head, FrozenHead):
        return
    known = None
    if len(public) > 1:
        known = set_public(model, data, pairs, public, head)
    declared = sorted({line.strip() for line in config.adapter.captions.splitlines()} - {""})
    if declared:
        head.declare(model.processor.texts(declared))
    if isinstance(head, LinearMapHead):
        if declared:
            known = tower_texts(model, model.processor.texts(declared))
        if known is None:
            raise ConfigError(
                "a linear head is learned by a softmax over captions: the data has no public "
                "pairs, so declare the captions with head_captions, one a line"
            )
        head.learn_by(known, own=not declared)


def set_public(
    model: LoadedModel,
    data: ImageTextData,
    pairs: EncodedPairs,
    public: NDArray[np.int64],
    head: FrozenHead,
) -> NDArray[np.float64]:
    """Fit a head's public maps to public pairs; returns the public captions' embeddings.

    Args:
        model: The model, the head attached.
        data: Image–caption pairs.
        pairs: The same as the model sees them.
        public: Rows of the public pairs, two at least.
        head: The head.
    """
    before, model.vlm.head = model.vlm.head, None  # the towers' own embeddings are wanted
    try:
        images = model.processor.images(data, public, lambda *_: None)
        raw = np.concatenate(
            [raw_features(model.vlm.embed(x, "image"), x) for x in batches(images, public)]
        )
        captions, numbers = np.unique(pairs.caption_of[public], return_inverse=True)
        texts = model.vlm.embed(pairs.captions(captions), "text").double().numpy()
    finally:
        model.vlm.head = before
    whitening = fit_whitening(raw, pairs.concepts[public], 0.5, SIZE)
    control = fit_control(whitening(raw), numbers, texts)
    head.set_public(whitening, control, texts.shape[1])
    if isinstance(head, LinearMapHead):
        head.set_texts(whiten_texts(texts))
    return texts


def tower_texts(model: LoadedModel, inputs) -> NDArray[np.float64]:
    """Return captions' embeddings by the frozen tower: shape (C, D)."""
    head, model.vlm.head = model.vlm.head, None
    try:
        return model.vlm.embed(inputs, "text").double().numpy()
    finally:
        model.vlm.head = head


def plan_reading(config: Config, task: Task) -> None:
    """Tell the head how its sums will have been scaled and noised, by public facts."""
    head = head_of(task)
    if task.own is not None and not config.privacy.mean_pairs:
        return  # a node reads nothing; its part is the sum
    images = float(all_pairs(task))
    std = _noise_std(config, task.view.size)
    if isinstance(head, LinearMapHead):
        head.control_weight = control_weight(
            std / term_bound(config),
            images,
            config.training.rounds,
            config.adapter.rate,
            config.server.momentum,
            TEMPERATURE,
        )
        return
    head.total, head.std = images, std
    if len(head.declared):
        head.held = max(head.held, _HELD * images / len(head.declared))
    if config.privacy.dp == "client":
        # What clipping leaves of a client's sum, from the public mean of their sizes: images of
        # different captions stand in rows of their own, so that n of them are √n long.
        kept = min(1.0, config.privacy.clip_norm / math.sqrt(images / config.data.clients))
        head.total, head.std = config.server.fraction * config.nodes / kept, std / kept


def _noise_std(config: Config, size: int) -> float:
    """Return the standard deviation of the noise on one round's sum over all clients."""
    if config.privacy.dp == "none":
        return 0.0
    if config.privacy.dp == "client":
        planned = plan(
            delta=config.privacy.delta,
            sample_rate=config.server.fraction,
            steps=config.training.rounds,
            target_epsilon=config.privacy.epsilon,
        )
        return planned.noise_multiplier * config.privacy.clip_norm
    if config.privacy.shares_noise:
        return shared_mechanism(config, size).std_of(config.cohort)
    return own_mechanism(config).std * math.sqrt(config.cohort)


def batches(images, rows: NDArray[np.int64]) -> Iterator:
    """Return rows' inputs, 256 at a time."""
    for start in range(0, len(rows), _BATCH):
        yield images(rows[start : start + _BATCH])
