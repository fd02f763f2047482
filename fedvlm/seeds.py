"""Seeds of experiments: data, initial weights, client sampling. Never secrets."""

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ExperimentSeed:
    """One number from which every reproducible random choice of a run is derived.

    Secrets never come from here: keys, masks, shares and released noise are drawn from
    `secure.random.SecureRandom`, which takes no seed.

    Attributes:
        value: The run's seed, at least 0.

    Example:
        >>> seed = ExperimentSeed(0)
        >>> seed.number("split") == seed.number("split")
        True
        >>> seed.number("client", 1) == seed.number("client", 2)
        False
    """

    value: int

    def number(self, *purpose: str | int) -> int:
        """Return a number in [0, 2^63) that depends on the seed and the purpose only."""
        text = "/".join(str(part) for part in (self.value, *purpose))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1

    def numpy(self, *purpose: str | int) -> np.random.Generator:
        """Return a NumPy generator for one purpose."""
        return np.random.default_rng(self.number(*purpose))

    def torch(self, *purpose: str | int) -> "torch.Generator":
        """Return a torch generator for one purpose."""
        import torch

        return torch.Generator().manual_seed(self.number(*purpose))
