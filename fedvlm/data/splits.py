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

MIN_TEST_IMAGES = 10  # fewer, and one image is more than a tenth of the accuracy
_WITHHELD = 0.10
_VALIDATION = 0.25
_HELD = 0.20  # of the images, where concepts don't decide it
_FEW = 0.10  # of the images: a hand held out a concept is no test where it comes to fewer
_MAX_RETENTION = 500  # enough for ±2 %; each round is evaluated on it
_MIN_PAIRS = 2


@dataclass(frozen=True)
class Splits:
    """Indices into an `ImageTextData`.

    Guarantees:
        The parts don't overlap, and no two of them hold pairs whose images show the same
        (`ImageTextData.groups`).

    Attributes:
        clients: One array per client: the pairs that it trains on.
        non_members: One array per client: pairs drawn like its own and held out by a fair coin
            for each image, for membership audits; empty where membership is "all".
        validation: For choosing rounds and rates.
        test: Private pairs whose images nobody trains on. Where concepts have several images, one
            of a concept, and its others are trained on (the embedded set: in another designer's
            hand); else a share of the images of each concept.
        ood: Private concepts by a designer whom nobody trains on.
        withheld: Private concepts that no client holds in any hand.
        retention: Public concepts in the clients' styles (500 images): what may be forgotten.
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


def _one_of_each_concept(
    data: ImageTextData, pool: Indices, rng: np.random.Generator
) -> tuple[Indices, Indices]:
    """Draw one image of each concept that has several; returns them and their random order."""
    order = rng.permutation(pool)
    _, first, counts = np.unique(data.concepts[order], return_index=True, return_counts=True)
    held = np.sort(order[first[counts > 1]])
    return held, rng.permutation(held)


def _share_of_each_concept(
    data: ImageTextData, pool: Indices, count: int, rng: np.random.Generator
) -> Indices:
    """Draw `count` images evenly over the concepts: a systematic sample, from a random start."""
    rank = rng.permutation(int(data.concepts.max()) + 1)
    order = rng.permutation(pool)
    order = order[np.argsort(rank[data.concepts[order]], kind="stable")]
    places = (np.arange(count) + rng.random()) * (len(order) / count)
    return np.sort(order[places.astype(np.int64)])


def _validation_size(held: int) -> int:
    return max(1, round(_VALIDATION * held))


def _hold_out(
    data: ImageTextData, pool: Indices, rng: np.random.Generator
) -> tuple[Indices, Indices, Indices]:
    """Part a pool of images into what clients may train on, validation and test.

    Raises:
        ConfigError: The test would be too small to say anything.
    """
    held, order = _one_of_each_concept(data, pool, rng)
    if len(held) >= _FEW * len(pool) and _large_enough(len(held)):
        cut = _validation_size(len(order))
        validation, test = np.sort(order[:cut]), np.sort(order[cut:])
    else:  # captions that stand once, or a few classes of many images each
        least = next(n for n in range(MIN_TEST_IMAGES, len(data) + 99) if _large_enough(n))
        count = max(least, round(_HELD * len(pool)))
        if 2 * count > len(pool):
            raise ConfigError(
                f"{data.name} shows {len(pool)} different images in {len(data)} pairs; at least "
                f"{2 * count} are needed, so that {MIN_TEST_IMAGES} of them make a test and as "
                "many as are held out are trained on: bring more images"
            )
        held = _share_of_each_concept(data, pool, count, rng)
        validation = _share_of_each_concept(data, held, _validation_size(count), rng)
        test = np.setdiff1d(held, validation)
    if len(np.unique(data.concepts[test])) < 2:
        raise ConfigError(
            f"all {len(test)} images of the test have the same caption, so that any model finds "
            f"it: bring captions that differ, or more images of the rarer ones (in {data.name})"
        )
    return np.setdiff1d(pool, held), validation, test


def _large_enough(held: int) -> bool:
    """Say whether a test is left of so many held-out images once validation is taken."""
    return held - _validation_size(held) >= MIN_TEST_IMAGES


def _sample(pool: Indices, most: int, rng: np.random.Generator) -> Indices:
    """Return at most `most` of the pool, drawn without replacement."""
    return np.sort(rng.permutation(pool)[:most])


def _coins(
    parts: list[Indices], membership: str, rng: np.random.Generator
) -> tuple[list[Indices], list[Indices]]:
    if membership == "all":
        return parts, [part[:0] for part in parts]
    flips = [rng.random(len(part)) < 0.5 for part in parts]
    inside = [part[flip] for part, flip in zip(parts, flips, strict=True)]
    outside = [part[~flip] for part, flip in zip(parts, flips, strict=True)]
    return inside, outside


def _deal(
    data: ImageTextData, kept: Indices, seed: ExperimentSeed, clients: int, name: str, alpha: float
) -> list[Indices]:
    if len(kept) < _MIN_PAIRS * clients:
        raise ConfigError(
            f"{clients} clients need at least {_MIN_PAIRS * clients} training pairs of different "
            f"images, and {data.name} leaves {len(kept)}; lower clients or bring more data"
        )
    labels = Labels(data.domains[kept], data.topics[kept])
    return PARTITIONS[name](kept, labels, clients, alpha, seed.numpy("split", name))


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

    Images are split, and all pairs of an image go together: with several captions an image, or
    rows that stand twice, no image that is tested is trained on, and no non-member's image is a
    member's. A group's domain, topic and concept are those of its first pair.

    Args:
        data: Image–caption pairs.
        seed: Decides every random choice here.
        clients: Number of clients, at least 2.
        partition: A name in `PARTITIONS`.
        alpha: Concentration of the Dirichlet draws, above 0; small is skewed.
        membership: "all" (clients train on all their pairs) or "half" (each image is a member's
            by a fair coin; the pairs of the others are held out as i.i.d. non-members).

    Returns:
        The splits; `.fingerprint` identifies them.

    Raises:
        ConfigError: Too many clients for the data, a client left with fewer than two images, a
            test of fewer than ten images or of one caption, or an unknown name.
    """
    if partition not in PARTITIONS:
        raise ConfigError(f"partition must be one of {', '.join(PARTITIONS)}, got {partition!r}")
    if membership not in ("all", "half"):
        raise ConfigError(f"membership must be 'all' or 'half', got {membership!r}")
    if clients < 2 or not alpha > 0:
        raise ConfigError(f"need clients >= 2 and alpha > 0, got {clients} and {alpha}")
    groups = data.groups
    everything = np.unique(groups, return_index=True)[1]  # one pair stands for each image
    public = data.public[everything]
    foreign = np.isin(data.domains[everything], _domains(data, (data.ood_domain,)))
    pretraining = np.isin(data.domains[everything], _domains(data, data.pretraining_domains))
    private = everything[~public & ~foreign]
    concepts = np.unique(data.concepts[private])
    rng = seed.numpy("split", "concepts")
    withheld, pool = private[:0], private
    if public.any():
        order = rng.permutation(concepts)
        withheld_concepts = order[: round(_WITHHELD * len(order))]
        is_withheld = np.isin(data.concepts[private], withheld_concepts)
        withheld, pool = private[is_withheld], private[~is_withheld]
    kept, validation, test = _hold_out(data, pool, rng)
    parts = _deal(data, kept, seed, clients, partition, alpha)
    members, non_members = _coins(parts, membership, seed.numpy("split", "membership"))
    small = [number for number, part in enumerate(members) if len(part) < _MIN_PAIRS]
    if small:
        raise ConfigError(
            f"client {small[0]} would hold {len(members[small[0]])} pairs (of {clients} clients, "
            f"partition {partition!r}, alpha={alpha}); lower clients, raise alpha, or change seed"
        )
    tested = np.isin(data.concepts[everything], np.unique(data.concepts[test]))
    retention = _sample(everything[public & ~pretraining & ~foreign], _MAX_RETENTION, rng)

    def whole(part: Indices) -> Indices:
        """Return all pairs of the images that stand for a part."""
        return np.flatnonzero(np.isin(groups, groups[part]))

    return Splits(
        clients=tuple(whole(part) for part in members),
        non_members=tuple(whole(part) for part in non_members),
        validation=whole(validation),
        test=whole(test),
        ood=whole(everything[foreign & tested]),
        withheld=whole(withheld),
        retention=whole(retention),
        public=whole(everything[public & pretraining]),
    )


def _domains(data: ImageTextData, names: tuple[str | None, ...]) -> list[int]:
    """Return the numbers of domains by name."""
    return [number for number, name in enumerate(data.domain_names) if name in names]
