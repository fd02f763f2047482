"""Who holds what: public data, clients, validation, test, out of distribution, membership.

Made from a seed and identified by a hash, so that two results can be compared only when they
were read off the same split.
"""

import hashlib
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fedvlm.data.dataset import ImageTextData
from fedvlm.data.partition import PARTITIONS, Labels
from fedvlm.errors import ConfigError
from fedvlm.seeds import ExperimentSeed

Indices = NDArray[np.int64]

OOD_DOMAIN = "openmoji"
PRETRAINING_DOMAINS = ("noto", "twemoji")
_WITHHELD = 0.10
_VALIDATION = 0.25
_MAX_RETENTION = 500  # enough for ±2 %; each round is evaluated on it
_MIN_PAIRS = 2


@dataclass(frozen=True)
class Splits:
    """Indices into an `ImageTextData`. The parts don't overlap.

    Attributes:
        clients: One array per client: the pairs that it trains on.
        non_members: One array per client: pairs drawn like its own and held out by a fair coin
            each, for membership audits; empty where membership is "all".
        validation: For choosing rounds and rates.
        test: Private concepts, each in the hand of a designer that no client saw for it.
        ood: Private concepts by a designer whom nobody trains on.
        withheld: Private concepts that no client holds in any hand.
        retention: Public concepts in the clients' styles (500 pairs): what may be forgotten.
        public: Public pairs of the pretraining designers.
    """

    clients: tuple[Indices, ...]
    non_members: tuple[Indices, ...]
    validation: Indices
    test: Indices
    ood: Indices
    withheld: Indices
    retention: Indices
    public: Indices

    @cached_property
    def images(self) -> Indices:
        """Every pair whose image is used: all parts but `public`, of which captions suffice."""
        parts = [*self.clients, *self.non_members, self.validation, self.test]
        return np.unique(np.concatenate([*parts, self.ood, self.withheld, self.retention]))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over every part, in hex."""
        digest = hashlib.sha256()
        for field in fields(self):
            value = getattr(self, field.name)
            for part in value if isinstance(value, tuple) else (value,):
                digest.update(f"{field.name} {len(part)}\n".encode())
                digest.update(np.ascontiguousarray(part, dtype="<i8").tobytes())
        return digest.hexdigest()


def _hold_out_one_domain(
    data: ImageTextData, pool: Indices, rng: np.random.Generator
) -> tuple[Indices, Indices]:
    """Per concept, set aside one of its pairs where it has several. Returns (kept, held out)."""
    order = rng.permutation(pool)
    _, first, counts = np.unique(data.concepts[order], return_index=True, return_counts=True)
    held = order[first[counts > 1]]
    return np.setdiff1d(pool, held), np.sort(held)


def _sample(pool: Indices, most: int, rng: np.random.Generator) -> Indices:
    """Return at most `most` of the pool, drawn without replacement."""
    return np.sort(rng.permutation(pool)[:most])


def _coins(
    parts: list[Indices], membership: str, rng: np.random.Generator
) -> tuple[tuple[Indices, ...], tuple[Indices, ...]]:
    if membership == "all":
        return tuple(parts), tuple(part[:0] for part in parts)
    flips = [rng.random(len(part)) < 0.5 for part in parts]
    inside = tuple(part[flip] for part, flip in zip(parts, flips, strict=True))
    outside = tuple(part[~flip] for part, flip in zip(parts, flips, strict=True))
    return inside, outside


def make_splits(
    data: ImageTextData,
    seed: ExperimentSeed,
    *,
    clients: int = 10,
    partition: str = "designer-topic",
    alpha: float = 0.3,
    membership: str = "all",
) -> Splits:
    """Split a data set for a federation.

    Args:
        data: Image–caption pairs.
        seed: Decides every random choice here.
        clients: Number of clients, at least 2.
        partition: A name in `PARTITIONS`.
        alpha: Concentration of the Dirichlet draws, above 0; small is skewed.
        membership: "all" (clients train on all their pairs) or "half" (each pair is a member by
            a fair coin; the others are held out as i.i.d. non-members).

    Returns:
        The splits; `.fingerprint` identifies them.

    Raises:
        ConfigError: Too many clients for the data, a client left with fewer than two pairs, or
            an unknown name.
    """
    if partition not in PARTITIONS:
        raise ConfigError(f"partition must be one of {', '.join(PARTITIONS)}, got {partition!r}")
    if membership not in ("all", "half"):
        raise ConfigError(f"membership must be 'all' or 'half', got {membership!r}")
    if clients < 2 or alpha <= 0:
        raise ConfigError(f"need clients >= 2 and alpha > 0, got {clients} and {alpha}")
    everything = np.arange(len(data))
    names = np.array(data.domain_names)[data.domains]
    private = everything[~data.public & (names != OOD_DOMAIN)]
    concepts = np.unique(data.concepts[private])
    rng = seed.numpy("split", "concepts")
    if data.public.any():
        order = rng.permutation(concepts)
        withheld_concepts = order[: round(_WITHHELD * len(order))]
        is_withheld = np.isin(data.concepts[private], withheld_concepts)
        withheld, pool = private[is_withheld], private[~is_withheld]
    else:
        withheld, pool = private[:0], private
    kept, held = _hold_out_one_domain(data, pool, rng)
    if len(held) < 2:  # every caption stands once: hold out pairs instead of hands
        order = rng.permutation(pool)
        cut = max(2, len(pool) // 5)
        held, kept = np.sort(order[:cut]), np.sort(order[cut:])
    order = rng.permutation(held)
    cut = max(1, round(_VALIDATION * len(order)))
    if len(kept) < _MIN_PAIRS * clients:
        raise ConfigError(
            f"{clients} clients need at least {_MIN_PAIRS * clients} training pairs, and "
            f"{data.name} leaves {len(kept)}; lower clients or bring more data"
        )
    parts = PARTITIONS[partition](
        kept,
        Labels(data.domains[kept], data.topics[kept]),
        clients,
        alpha,
        seed.numpy("split", partition),
    )
    members, non_members = _coins(parts, membership, seed.numpy("split", "membership"))
    small = [number for number, part in enumerate(members) if len(part) < _MIN_PAIRS]
    if small:
        raise ConfigError(
            f"client {small[0]} would hold {len(members[small[0]])} pairs (of {clients} clients, "
            f"partition {partition!r}, alpha={alpha}); lower clients, raise alpha, or change seed"
        )
    pretraining = np.isin(names, PRETRAINING_DOMAINS)
    test = np.sort(order[cut:])
    ood = everything[(names == OOD_DOMAIN) & np.isin(data.concepts, np.unique(data.concepts[test]))]
    return Splits(
        clients=members,
        non_members=non_members,
        validation=np.sort(order[:cut]),
        test=test,
        ood=ood,
        withheld=withheld,
        retention=_sample(
            everything[data.public & ~pretraining & (names != OOD_DOMAIN)], _MAX_RETENTION, rng
        ),
        public=everything[data.public & pretraining],
    )
