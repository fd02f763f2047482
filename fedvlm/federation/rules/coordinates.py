"""Rules that average some coordinates of the adapter: FedIT, FedSA-LoRA, pLoRA, RoLoRA, masks."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fedvlm.federation.rules.layers import Layout, places, size_of
from fedvlm.federation.rules.mask import drawn
from fedvlm.federation.rules.protocol import Vector


@dataclass(frozen=True)
class CoordinateRule:
    """Averages chosen coordinates; the others are personal, frozen, or wait for their turn.

    `both` is FedIT (Zhang et al. 2024): Ā = Σ w A, B̄ = Σ w B. `A` is FedSA-LoRA (Guo et al.
    2024): A is averaged, B never leaves its node; `B` is pLoRA, the other way round. `alternate`
    is RoLoRA (Chen et al. 2025): in odd rounds B trains while A is frozen, in even ones A.

    Attributes:
        layout: Name and shape of each parameter.
        share: both, A, B or alternate.
        kept: Share of the coordinates that are sent in a round; 1 for all.
        seed: The experiment's seed, public: it draws the mask.

    Guarantees:
        The rule is a choice of coordinates: it commutes with every sum and mean. Of the personal
        part nothing is in what `encode` returns. With `alternate` the mean of the products is the
        product of the mean, since the other factor is the same everywhere: Σ w B·A = (Σ w B)·A.
    """

    layout: Layout
    share: str = "both"
    kept: float = 1.0
    seed: int = 0
    linear: bool = True
    passes: int = 1

    @cached_property
    def common(self) -> NDArray[np.bool_]:
        """Coordinates that all nodes have in common, shape (P,)."""
        if self.share in ("A", "B"):
            return places(self.layout, self.share)
        return np.ones(size_of(self.layout), dtype=np.bool_)

    def trained(self, number: int) -> NDArray[np.bool_]:
        """Return the coordinates that train in a round, shape (P,)."""
        if self.share == "alternate":
            return places(self.layout, "B" if number % 2 else "A")
        return np.ones(size_of(self.layout), dtype=np.bool_)

    def sent(self, number: int) -> NDArray[np.bool_]:
        """Return the coordinates that clients send in a round, shape (P,)."""
        chosen = self.common & self.trained(number)
        if self.kept < 1:
            chosen[chosen] = drawn(int(chosen.sum()), self.kept, self.seed, number)
        return chosen

    def start(self, adapter: Vector) -> Vector:
        """Return the adapter: there is no other state."""
        return adapter

    def adapter(self, state: Vector) -> Vector:
        """Return the state: it is the adapter."""
        return state

    def encode(self, adapter: Vector, number: int) -> Vector:
        """Return the coordinates of the round."""
        return adapter[self.sent(number)]

    def rest(self, state: Vector, number: int) -> Vector:
        """Return the common coordinates that aren't in the round."""
        return state[self.common & ~self.sent(number)]

    def receive(self, own: Vector, sent: Vector, rest: Vector, number: int) -> Vector:
        """Return the common coordinates as they came, and the personal ones as they were."""
        state, chosen = own.copy(), self.sent(number)
        state[chosen] = sent
        state[self.common & ~chosen] = rest
        return state

    def decode(self, mean: Vector, state: Vector, number: int) -> Vector:
        """Return the state with the round's coordinates replaced by their mean."""
        after = state.copy()
        after[self.sent(number)] = mean
        return after
