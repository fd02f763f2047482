"""Canaries: random directions that a run is made to learn, so that its leakage can be measured.

A canary is one unit of what the run's privacy speaks of: a client of its own under client-level
and distributed DP, an example of client 0 under example-level DP. Without DP client 0 hides them
all in its update. Each is in by a fair coin, and those held out are what the others are told
from.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedvlm.errors import ConfigError

if TYPE_CHECKING:
    from fedvlm.config import Config

HOST = 0
"""The client that plants canaries where they are no clients of their own."""
_STRETCH = 10.0  # times the clip norm: whoever clips makes it 1, and whoever doesn't is seen
_SHARE = 0.5  # norm of all canaries in an update that nobody clips, over the update's own


@dataclass(frozen=True, eq=False)
class Canaries:
    """Random unit directions, each planted or held out by a fair coin.

    In P dimensions random directions are almost orthogonal, so each is a test of its own, and one
    run with many of them suffices (Andrew et al. 2023; Maddock et al. 2022; Steinke et al. 2023).

    Attributes:
        directions: Shape (m, P), float32, unit rows.
        planted: Shape (m,), bool: the coins.
    """

    directions: NDArray[np.float32]
    planted: NDArray[np.bool_]

    @classmethod
    def draw(cls, count: int, size: int, rng: np.random.Generator) -> "Canaries":
        """Draw canaries.

        Args:
            count: m, at least 2.
            size: P, at least 2.
            rng: Draws directions and coins. An audit's coins are an experiment's, and no secret.

        Raises:
            ConfigError: Too few canaries or dimensions.
        """
        if count < 2 or size < 2:
            raise ConfigError(f"need at least 2 canaries in 2 dimensions, got {count} in {size}")
        raw = rng.standard_normal((count, size), dtype=np.float32)
        raw /= np.linalg.norm(raw, axis=1, keepdims=True)
        return cls(raw, rng.random(count) < 0.5)

    @classmethod
    def of_run(cls, config: "Config", size: int) -> "Canaries":
        """Return a run's canaries: all of its parties draw the same from the experiment's seed.

        Args:
            config: The run's configuration, with `canaries` above 0.
            size: Parameters P of the adapter.
        """
        return _of_run(config.audit.canaries, size, config.training.seed)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of directions and coins, in hex."""
        digest = hashlib.sha256(np.ascontiguousarray(self.directions, dtype="<f4").tobytes())
        digest.update(np.packbits(self.planted).tobytes())
        return digest.hexdigest()

    def updates(self, length: float) -> NDArray[np.float32]:
        """Return the updates of those that are planted: shape (planted, P), of one length each.

        Args:
            length: Usually the clip norm: the most that a client may send. Longer canaries test
                whether anybody clips.
        """
        return self.directions[self.planted] * np.float32(length)

    def scores(self, total: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return each direction's share of a sum of updates: shape (m,), higher if planted.

        Args:
            total: Shape (P,): one client's update (V1) or a released sum (V2).
        """
        return (self.directions @ total.astype(np.float32)).astype(np.float64)

    def cosines(self, total: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return each direction's cosine with a sum: N(0, 1/P) if it wasn't planted."""
        return self.scores(total) / max(float(np.linalg.norm(total)), 1e-12)


@lru_cache(maxsize=1)
def _of_run(count: int, size: int, seed: int) -> Canaries:
    from fedvlm.seeds import ExperimentSeed

    return Canaries.draw(count, size, ExperimentSeed(seed).numpy("canaries", count, size))


def canary_update(config: "Config", size: int, client: int) -> NDArray[np.float32]:
    """Return what a client that is a canary sends in every round: shape (P,), zero if held out.

    Args:
        config: The run's configuration.
        size: Parameters P of the adapter.
        client: Number of the client, in [clients, nodes).
    """
    canaries, number = Canaries.of_run(config, size), client - config.data.clients
    length = _STRETCH * config.privacy.clip_norm * float(canaries.planted[number])
    return canaries.directions[number] * np.float32(length)


def hidden_in(config: "Config", update: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return an update with the planted canaries in it, together half as long as itself.

    Args:
        config: The run's configuration.
        update: Shape (P,): what client 0 learned in a round.
    """
    canaries = Canaries.of_run(config, len(update))
    length = _SHARE * float(np.linalg.norm(update)) / max(1, int(canaries.planted.sum())) ** 0.5
    return update + canaries.updates(length).sum(axis=0)


def canary_gradients(config: "Config", size: int) -> NDArray[np.float32]:
    """Return gradients of the planted canaries, for DP-SGD to sample, clip and sum as examples.

    Args:
        config: The run's configuration.
        size: Parameters P of the adapter.

    Returns:
        Shape (planted, P), far beyond the clip norm; a step against them goes along a direction.
    """
    return -Canaries.of_run(config, size).updates(_STRETCH * config.privacy.clip_norm)
