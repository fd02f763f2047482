"""What a client does under example-level DP, and the plan that client and server share."""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedvlm.canaries import HOST, canary_gradients
from fedvlm.config import Config
from fedvlm.errors import ConfigError
from fedvlm.federation.node_ledger import NodeLedger
from fedvlm.federation.task import Task
from fedvlm.privacy import (
    Ledger,
    NoiseSource,
    SecureNoise,
    SimulatedNoise,
    noise_multiplier_for,
    plan,
)
from fedvlm.privacy.dpsgd import DPSGDSettings, train_privately
from fedvlm.privacy.losses import (
    Batch,
    GroupedInfoNCE,
    PrivateLoss,
    Repaired,
    bank,
    examples,
    group_batch,
)
from fedvlm.privacy.skellam import SkellamMechanism, plan_skellam
from fedvlm.seeds import ExperimentSeed

_BANK = 256
_PLACES = 8


def noise_source(config: Config, *purpose: str | int) -> NoiseSource:
    """Return the OS's entropy, or the experiment's seed where the configuration says so."""
    if config.privacy.simulated_noise:
        return SimulatedNoise(ExperimentSeed(config.training.seed), *purpose)
    return SecureNoise()


@lru_cache(maxsize=16)
def example_settings(config: Config, pairs: int) -> DPSGDSettings:
    """Plan DP-SGD for every client alike, from public facts.

    The sampling rate is that of a client of average size, so that ε doesn't depend on how many
    pairs a client holds, and neither does the number that its sums are divided by.

    Args:
        config: The federation's configuration.
        pairs: Pairs of all clients together.

    Returns:
        Settings whose `steps` are those of one round; noise is solved for all rounds.
    """
    average = max(1, pairs // config.data.clients)
    rate = min(1.0, config.training.batch_size / average)
    steps = config.training.local_epochs * max(1, round(1 / rate))
    planned = plan(
        delta=config.privacy.delta,
        sample_rate=rate,
        steps=steps * config.training.rounds,
        target_epsilon=config.privacy.epsilon,
    )
    return DPSGDSettings(
        clip_norm=config.privacy.clip_norm,
        noise_multiplier=planned.noise_multiplier,
        sample_rate=rate,
        steps=steps,
        expected_batch=rate * average,
        learning_rate=config.training.learning_rate,
        physical_batch=32,
    )


@lru_cache(maxsize=4)
def distributed_mechanism(config: Config, size: int) -> SkellamMechanism:
    """Plan distributed DP from public facts: noise for the fewest clients that may be summed.

    Args:
        config: The federation's configuration.
        size: Parameters P of the adapter.

    Raises:
        ConfigError: No lane of secure aggregation is wide enough.
    """
    from secure.aggregation import Policy, integer_plan

    members = max(2, round(config.server.fraction * config.nodes))
    floor = Policy(integer_plan(members, 1), roster=config.nodes)
    least = floor.sharing(members).quorum - floor.corrupt_members(members)

    def make(z: float) -> SkellamMechanism:
        return plan_skellam(config.privacy.clip_norm, z, size, least, members)

    z = noise_multiplier_for(
        lambda z: make(z).event(),
        config.training.rounds,
        config.privacy.epsilon,
        config.privacy.delta,
    )
    return make(z)


def rotation_seed(config: Config, server_round: int) -> int:
    """Return the public seed of a round's rotation."""
    return ExperimentSeed(config.training.seed).number("rotation", server_round)


def encode_update(
    task: Task, update: NDArray[np.float32], client: int, server_round: int
) -> NDArray[np.float64]:
    """Return what a client sends under distributed DP: noised integers, as float64.

    Args:
        task: Model and adapter.
        update: Shape (P,): what the client learned in the round.
        client: Number of the client.
        server_round: Round, from 1.
    """
    mechanism = distributed_mechanism(task.config, task.view.size)
    noise = noise_source(task.config, "distributed", client, server_round)
    seed = rotation_seed(task.config, server_round)
    return mechanism.encode(update, seed, noise).astype(np.float64)


def all_pairs(task: Task) -> int:
    """Return the number of pairs of all clients together, a public fact.

    Raises:
        ConfigError: The data are a node's own, and the configuration doesn't say the mean.
    """
    if task.config.privacy.mean_pairs:
        return task.config.privacy.mean_pairs * task.config.data.clients
    if len(task.splits.clients) != task.config.data.clients and (
        task.own is not None or not len(task.data)
    ):
        raise ConfigError(
            "nodes with data of their own can't count each other's pairs, which DP-SGD is planned "
            "from; set mean_pairs, the clients' mean number of pairs, as a public fact"
        )
    return sum(len(part) for part in task.splits.clients)


def _loss(
    task: Task, own: NDArray[np.int64], settings: DPSGDSettings
) -> tuple[PrivateLoss, Callable[[NDArray[np.int64]], Batch]]:
    """Choose a loss: a bank where the data has public pairs, else InfoNCE in fixed groups."""
    public = task.splits.public
    if len(public):
        chosen = np.sort(task.seed.numpy("bank").permutation(public)[:_BANK])
        loss = bank(task.model.vlm, task.pairs, chosen)
        repair = task.repair
        if repair is None:
            return loss, lambda rows: examples(task.pairs, own[rows])

        def with_extras(rows: NDArray[np.int64]) -> Batch:
            batch = examples(task.pairs, own[rows])
            return batch | {"extras": repair.extras(task.model.vlm, own[rows], batch["image"])}

        return Repaired(loss, repair), with_extras
    if task.repair is not None:
        raise ConfigError(
            "a mitigation under example-level DP contrasts with public pairs, and the data has none"
        )
    groups = max(1, round(settings.expected_batch / (_PLACES / 2)))
    return GroupedInfoNCE(), lambda rows: group_batch(
        task.pairs, own[rows], groups, _PLACES, task.seed
    )


def train_with_dp(
    task: Task, client: int, server_round: int, ledger: NodeLedger, session: str
) -> None:
    """Train the adapter in place as a client does in a round under example-level DP.

    Args:
        task: Model, adapter and data.
        client: Number of the client.
        server_round: Round, from 1.
        ledger: The node's, which is charged before anything is trained.
        session: Run and message, for the ledger.

    Raises:
        BudgetExceeded: The client's budget doesn't hold the round; nothing was trained.
    """
    config = task.config
    settings = example_settings(config, all_pairs(task))
    own = task.rows(client)
    loss, make_batch = _loss(task, own, settings)
    mechanism = settings.mechanism(loss)
    ledger.answer(config, server_round, session, "example", mechanism, settings.steps)
    # What the loop pays into: the node's own ledger has been charged for all of it.
    round_alone = Ledger("example", math.inf, config.privacy.delta)
    train_privately(
        task.model.vlm,
        task.view,
        make_batch,
        len(own),
        loss,
        settings,
        noise_source(config, "example", client, server_round),
        round_alone,
        canary_gradients(config, task.view.size)
        if config.audit.canaries and client == HOST
        else None,
    )
