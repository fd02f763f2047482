"""Products outside SEAL against integers of any length, and against SEAL."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure.he import EncryptedLinear, HEClient, HEParams, _rotations
from secure.he._dense import DenseProducts
from secure.he.plans import RotationPlan
from tests.secure.fixed_random import FixedRandom

PRIME = (1 << 51) - 129  # the largest that the bound allows, up to a few
FAST = HEParams(4096, (51, 55), 28)


def exact(weights: np.ndarray, inputs: np.ndarray, prime: int) -> np.ndarray:
    """Return `(sums, 2, N)` from `(sums, terms, N)` and `(terms, 2, N)`, in Python's integers."""
    wide = np.einsum("grt,rpt->gpt", weights.astype(object), inputs.astype(object))
    return (wide % prime).astype(np.uint64)


def dense(weights: np.ndarray, prime: int) -> DenseProducts:
    sums, terms, degree = weights.shape
    made = DenseProducts(prime, degree, sums, terms)
    for index in range(sums):
        for term in range(terms):
            made.put(index, term, weights[index, term])
    return made


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    prime=st.sampled_from([PRIME, (1 << 50) - 27, (1 << 30) - 35, 97]),
    sums=st.integers(1, 5),
    terms=st.integers(1, 150),
)
def test_it_is_exact(seed: int, prime: int, sums: int, terms: int) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.integers(0, prime, (sums, terms, 16), dtype=np.uint64)
    inputs = rng.integers(0, prime, (terms, 2, 16), dtype=np.uint64)
    assert np.array_equal(dense(weights, prime)(inputs), exact(weights, inputs, prime))


@pytest.mark.parametrize("terms", [1, 63, 64, 65, 128, 300])
def test_it_is_exact_at_the_largest_residues(terms: int) -> None:
    weights = np.full((3, terms, 8), PRIME - 1, dtype=np.uint64)
    inputs = np.full((terms, 2, 8), PRIME - 1, dtype=np.uint64)
    assert np.array_equal(dense(weights, PRIME)(inputs), exact(weights, inputs, PRIME))


def test_it_gives_what_seal_gives_bit_by_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((9000, 256)) / 16
    weight[:4200] = 0.0
    weight[0, 0] = 1.0  # one diagonal of the first block: its other sums are zero
    plan = RotationPlan(FAST, 256, 9000)
    client = HEClient(FAST)
    keys = client.evaluation_keys(plan)
    sent = client.encrypt(rng.standard_normal(256) / 32, plan)
    # The same offsets before rounding, so that both encode the same weights.
    monkeypatch.setattr(_rotations, "SecureRandom", lambda: FixedRandom(8))
    outside = EncryptedLinear(weight, params=FAST, plan=plan)
    monkeypatch.setattr(_rotations, "_DENSE_SUMS", 1 << 30)
    inside = EncryptedLinear(weight, params=FAST, plan=plan)
    assert outside._layer._dense is not None  # pyright: ignore
    assert inside._layer._dense is None  # pyright: ignore
    assert outside(sent, keys).to_bytes() == inside(sent, keys).to_bytes()
