"""The product of residues: exact against Python's integers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure.he import EncryptedLinear, HEParams, RangeError
from secure.he._residues import matmul_mod
from secure.he.plans import ResiduePlan

from .he_tools import PRECISE, RESIDUE, client, through_the_wire, unit_rows


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    prime=st.sampled_from([(1 << 26) - 5, (1 << 53) - 111, (1 << 54) - 33, (1 << 60) - 93]),
    width=st.integers(1, 40),
    seed=st.integers(0, 2**32),
    extreme=st.booleans(),
)
def test_it_equals_integer_arithmetic(prime, width, seed, extreme):
    rng = np.random.default_rng(seed)
    top = 1 << 20
    weights = rng.integers(-top, top, (3, width), endpoint=True)
    residues = rng.integers(0, prime, (width, 5), dtype=np.uint64)
    if extreme:
        weights = np.where(weights < 0, -top, top)
        residues[:] = prime - 1
    got = matmul_mod(weights.astype(np.float64), residues, prime)
    for row in range(3):
        for column in range(5):
            exact = sum(int(weights[row, k]) * int(residues[k, column]) for k in range(width))
            assert int(got[row, column]) == exact % prime


def test_inputs_wider_than_a_part_are_summed_exactly():
    prime, width = (1 << 53) - 111, 4100
    rng = np.random.default_rng(1)
    weights = rng.integers(-(1 << 15), 1 << 15, (2, width))
    residues = rng.integers(0, prime, (width, 3), dtype=np.uint64)
    got = matmul_mod(weights.astype(np.float64), residues, prime)
    for row in range(2):
        for column in range(3):
            exact = sum(int(weights[row, k]) * int(residues[k, column]) for k in range(width))
            assert int(got[row, column]) == exact % prime


@pytest.mark.parametrize(
    ("params", "batch", "bias"), [(RESIDUE, 1, False), (RESIDUE, 2500, True), (PRECISE, 9, True)]
)
def test_a_layer_on_tokens_in_slots(params, batch, bias):
    rng = np.random.default_rng(batch)
    weight, shift = rng.standard_normal((6, 11)) / 3, rng.standard_normal(6) / 4
    plan = ResiduePlan(params, 11, 6, batch)
    layer = EncryptedLinear(weight, shift if bias else None, params=params, plan=plan)
    values = unit_rows(rng, batch, 11)
    got = through_the_wire(layer, values, client(params))
    assert got.shape == (batch, 6)
    assert np.abs(got - (values @ weight.T + bias * shift)).max() < 3e-5


def test_no_evaluation_key_is_needed_and_none_is_made():
    plan = ResiduePlan(RESIDUE, 4, 4, 10)
    keys = client(RESIDUE).evaluation_keys(plan)
    assert keys.steps == ()
    assert len(keys.to_bytes()) < 200


def test_a_result_that_could_leave_the_range_is_refused():
    tight = HEParams(1024, (26,), 20)
    with pytest.raises(RangeError, match="longer modulus"):
        EncryptedLinear(100 * np.eye(4), params=tight, plan=ResiduePlan(tight, 4, 4, 10))
