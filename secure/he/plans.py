"""How vectors lie in slots: what client and server must agree on, and nothing secret.

A plan is public, follows from the parameters and the shape alone, and travels as a tag.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from secure.errors import ParameterError
from secure.he._plan import TAG, TAG_BYTES, Plan, as_batch, make_tag
from secure.he.chain_plan import ChainPlan, PeriodicPlan
from secure.he.errors import LayoutError, WireError
from secure.he.params import HEParams
from secure.he.residue_plan import ResiduePlan
from secure.he.rotation_plan import RotationPlan

__all__ = [
    "TAG_BYTES",
    "ChainPlan",
    "PeriodicPlan",
    "Plan",
    "ResiduePlan",
    "RotationPlan",
    "SumPlan",
    "plan_from_tag",
]


@dataclass(frozen=True)
class SumPlan:
    """A vector of any length to be added to others: two entries a complex slot.

    Args:
        params: Encryption parameters.
        length: Entries of the vector.
    """

    KIND: ClassVar[int] = 4
    params: HEParams
    length: int

    def __post_init__(self) -> None:
        if not 1 <= self.length <= 1 << 31:
            raise ParameterError(f"length must be in [1, 2^31], got {self.length}")

    @property
    def tag(self) -> bytes:
        """The plan on the wire."""
        return make_tag(self.KIND, self.length)

    @property
    def input_ciphertexts(self) -> int:
        """Ciphertexts of one vector."""
        return -(-self.length // self.params.poly_modulus_degree)

    @property
    def output_ciphertexts(self) -> int:
        """Ciphertexts of the sum."""
        return self.input_ciphertexts

    @property
    def steps(self) -> tuple[int, ...]:
        """No rotation."""
        return ()

    @property
    def entries(self) -> int:
        """Entries of the sum."""
        return self.length

    @property
    def relinearises(self) -> bool:
        """No product of ciphertexts."""
        return False

    def encode(self, values: NDArray[np.float64]) -> NDArray[np.complex128]:
        """Pack `(length,)` into slots."""
        padded = np.zeros(self.input_ciphertexts * self.params.poly_modulus_degree)
        padded[: self.length] = as_batch(values, self.length, 1)[0]
        halves = padded.reshape(self.input_ciphertexts, 2, self.params.slots)
        return halves[:, 0] + 1j * halves[:, 1]

    def decode(self, slots: NDArray[np.complex128]) -> NDArray[np.float64]:
        """Read `(1, length)` from the slots of the sum."""
        return np.concatenate([slots.real, slots.imag], axis=1).reshape(1, -1)[:, : self.length]


def plan_from_tag(params: HEParams, tag: bytes) -> Plan:
    """Rebuild a plan from its tag.

    Raises:
        WireError: The tag names no plan.
        LayoutError: The plan does not go with these parameters.
    """
    kind, *numbers = TAG.unpack(tag)
    try:
        if kind == RotationPlan.KIND:
            plan: Plan = RotationPlan(params, *numbers[:3])
        elif kind == ResiduePlan.KIND:
            plan = ResiduePlan(params, *numbers[:3])
        elif kind == ChainPlan.KIND:
            plan = ChainPlan(params, numbers[0], numbers[1], numbers[2], bool(numbers[3]))
        elif kind == SumPlan.KIND:
            plan = SumPlan(params, numbers[0])
        elif kind == PeriodicPlan.KIND:
            plan = PeriodicPlan(params, *numbers[:2])
        else:
            raise WireError(f"no layout has number {kind}")
    except ParameterError as error:
        raise LayoutError(f"inadmissible layout: {error}") from error
    if plan.tag != tag:
        raise WireError("the layout has fields that it does not use")
    return plan
