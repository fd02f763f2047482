"""How long messages are: known from the plan, so that a peer can send no byte more."""

from secure.he._pack import packed_bytes
from secure.he._seal import SEED_BYTES
from secure.he.plans import Plan

_OVERHEAD = 256  # envelope, header and parameters; exact lengths are checked on reading


def message_bytes(plan: Plan) -> int:
    """Return the most bytes that an encrypted input of a plan takes, seeded or not."""
    params = plan.params
    polynomial = packed_bytes(params.poly_modulus_degree, sum(params.data_bits))
    return plan.input_ciphertexts * 2 * polynomial + _OVERHEAD


def result_bytes(plan: Plan) -> int:
    """Return the most bytes that an encrypted result of a plan takes."""
    params = plan.params
    polynomial = packed_bytes(params.poly_modulus_degree, sum(params.data_bits))
    return plan.output_ciphertexts * 2 * polynomial + _OVERHEAD


def key_bytes(plan: Plan, public: bool) -> int:
    """Return the most bytes that the evaluation keys of a plan take."""
    params = plan.params
    switch = packed_bytes(params.poly_modulus_degree, sum(params.coeff_bits))
    count = (len(plan.steps) + plan.relinearises) * len(params.data_bits)
    return count * (switch + SEED_BYTES) + 2 * public * switch + 4 * len(plan.steps) + _OVERHEAD
