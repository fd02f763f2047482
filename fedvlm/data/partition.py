"""How pairs are dealt out to clients.

Every partitioner takes indices and labels and returns one array of indices per client; together
they are a permutation of what came in.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedvlm.errors import ConfigError

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Labels:
    """What a partitioner may look at, one row per index of the pool.

    Attributes:
        domains: Shape (N,), int64.
        topics: Shape (N,), int64.
    """

    domains: Indices
    topics: Indices


def iid(
    pool: Indices, labels: Labels, clients: int, alpha: float, rng: np.random.Generator
) -> list[Indices]:
    """Deal pairs at random in equal shares."""
    return [np.sort(part) for part in np.array_split(rng.permutation(pool), clients)]


def quantity(
    pool: Indices, labels: Labels, clients: int, alpha: float, rng: np.random.Generator
) -> list[Indices]:
    """Deal pairs at random in shares drawn from Dirichlet(alpha): sizes differ, contents don't.

    Each client gets one pair before the shares are drawn, so none is empty.
    """
    order = rng.permutation(pool)
    shares = rng.dirichlet(np.full(clients, alpha))
    cuts = clients + np.cumsum(shares) * (len(order) - clients)
    first, rest = order[:clients], order[clients:]
    parts = np.split(rest, (np.round(cuts[:-1]) - clients).astype(int))
    return [np.sort(np.append(part, one)) for part, one in zip(parts, first, strict=True)]


def dirichlet(
    pool: Indices, labels: Labels, clients: int, alpha: float, rng: np.random.Generator
) -> list[Indices]:
    """Split each topic over the clients in shares drawn from Dirichlet(alpha).

    Source: Hsu, Qi and Brown 2019, section 3 (label skew).
    """
    parts: list[list[Indices]] = [[] for _ in range(clients)]
    for topic in np.unique(labels.topics):
        members = rng.permutation(pool[labels.topics == topic])
        shares = np.cumsum(rng.dirichlet(np.full(clients, alpha)))[:-1]
        pieces = np.split(members, np.round(shares * len(members)).astype(int))
        for part, piece in zip(parts, pieces, strict=True):
            part.append(piece)
    return [np.sort(np.concatenate(part)) for part in parts]


def designer_topic(
    pool: Indices, labels: Labels, clients: int, alpha: float, rng: np.random.Generator
) -> list[Indices]:
    """Give each domain to its own clients, and skew the topics within it by Dirichlet(alpha).

    The clients are shared out over the domains as evenly as can be; with 5 domains and 10
    clients, two clients hold one designer's drawings, each with topics of its own.

    Raises:
        ConfigError: There are fewer clients than domains.
    """
    names = np.unique(labels.domains)
    if clients < len(names):
        raise ConfigError(
            f"partition 'designer-topic' needs at least one client a domain: clients={clients}, "
            f"domains={len(names)}; raise clients or choose partition 'dirichlet'"
        )
    out: list[Indices] = []
    for domain, group in zip(names, np.array_split(np.arange(clients), len(names)), strict=True):
        chosen = labels.domains == domain
        inner = Labels(labels.domains[chosen], labels.topics[chosen])
        out += dirichlet(pool[chosen], inner, len(group), alpha, rng)
    return out


Partitioner = Callable[[Indices, Labels, int, float, np.random.Generator], list[Indices]]

PARTITIONS: dict[str, Partitioner] = {
    "designer-topic": designer_topic,
    "dirichlet": dirichlet,
    "iid": iid,
    "quantity": quantity,
}
"""Partitioners by the name that the configuration uses."""
