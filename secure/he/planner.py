"""Which layout is cheaper: a model of compute and bytes, stated with its choice."""

import math
from dataclasses import dataclass

from secure.errors import ParameterError
from secure.he._arguments import whole
from secure.he._pack import packed_bytes
from secure.he._seal import SEED_BYTES
from secure.he.params import HEParams
from secure.he.plans import ResiduePlan, RotationPlan

# Nanoseconds of one core for the unit operations, fitted on a 2 GHz server core. Only their
# proportions matter to the choice, and those are alike from machine to machine.
_ROTATE_NS = 4.5  # a digit, a prime, a coefficient and log2 N of key switching
_PRODUCT_NS = 3.0  # a prime and a coefficient of ciphertext times plaintext
_CLIENT_NS = 6.0  # a prime, a coefficient and log2 N of encryption or decryption
_FLOP_NS = 0.08  # one float64 multiply-add in BLAS
_LIMBS = 2
_BYTES_PER_SECOND = 12.5e6  # a link of 100 Mbit/s


@dataclass(frozen=True)
class Cost:
    """Predicted cost of one encrypted call.

    Attributes:
        compute_s: Seconds of one core, client and server together.
        upload_bytes: Encrypted input.
        download_bytes: Encrypted result.
        key_bytes: Evaluation keys, sent once.
    """

    compute_s: float
    upload_bytes: int
    download_bytes: int
    key_bytes: int

    @property
    def total_s(self) -> float:
        """Seconds with the transfer at 100 Mbit/s, keys not counted: they are sent once."""
        return self.compute_s + (self.upload_bytes + self.download_bytes) / _BYTES_PER_SECOND


def cost(plan: RotationPlan | ResiduePlan) -> Cost:
    """Predict the cost of a layout."""
    params = plan.params
    degree, primes, digits = (
        params.poly_modulus_degree,
        len(params.data_bits),
        len(params.data_bits),
    )
    log = math.log2(degree)
    polynomial = packed_bytes(degree, sum(params.data_bits))
    upload = plan.input_ciphertexts * (polynomial + SEED_BYTES)
    download = 2 * plan.output_ciphertexts * polynomial
    ends = plan.input_ciphertexts + plan.output_ciphertexts
    nanoseconds = ends * primes * degree * log * _CLIENT_NS
    key_bytes = 0
    if isinstance(plan, RotationPlan):
        rotate = digits * (primes + 1) * degree * log * _ROTATE_NS
        product = primes * degree * _PRODUCT_NS
        nanoseconds += plan.batch * (plan.rotations * rotate + plan.products * product)
        switch = packed_bytes(degree, sum(params.coeff_bits)) + SEED_BYTES
        key_bytes = len(plan.steps) * digits * switch
    else:
        columns = plan.token_blocks * 2 * degree * primes
        flops = plan.in_features * plan.out_features * columns * _LIMBS
        nanoseconds += flops * _FLOP_NS
    return Cost(nanoseconds * 1e-9, upload, download, key_bytes)


@dataclass(frozen=True)
class Choice:
    """A plan, what it costs, and why it was taken.

    Attributes:
        plan: The layout.
        cost: Its predicted cost.
        reason: One line.
    """

    plan: RotationPlan | ResiduePlan
    cost: Cost
    reason: str


def choose(params: HEParams, in_features: int, out_features: int, batch: int) -> Choice:
    """Choose the layout of a linear layer.

    Args:
        params: Encryption parameters.
        in_features: Width of the input.
        out_features: Width of the result.
        batch: Vectors in one call.

    Example:
        >>> params = HEParams(4096, (51, 55), 28)
        >>> type(choose(params, 512, 512, 1).plan).__name__
        'RotationPlan'
        >>> type(choose(params, 512, 512, 4096).plan).__name__
        'ResiduePlan'
    """
    if whole(batch, "batch") < 1:
        raise ParameterError(f"batch must be at least 1, got {batch}")
    residue = ResiduePlan(params, in_features, out_features, batch)
    if not params.rotates:
        return Choice(
            residue,
            cost(residue),
            "residue product: these parameters have no special prime, so nothing can rotate",
        )
    rotation = RotationPlan(params, in_features, out_features, batch)
    pairs: list[tuple[str, RotationPlan | ResiduePlan, Cost]] = [
        ("rotations", rotation, cost(rotation)),
        ("residue product", residue, cost(residue)),
    ]
    pairs.sort(key=lambda pair: pair[2].total_s)
    (name, plan, taken), (other, _, left) = pairs
    reason = (
        f"{name}: {taken.total_s:.3g} s predicted for {batch} vectors at 100 Mbit/s, "
        f"{other} {left.total_s:.3g} s"
    )
    return Choice(plan, taken, reason)
