"""A linear layer against numpy: any shape, both layouts, blocks, bias, the planner."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secure.errors import ParameterError
from secure.he import EncryptedLinear, HEClient, HEParams, RangeError
from secure.he.planner import choose, cost
from secure.he.plans import ResiduePlan, RotationPlan, plan_from_tag

from .he_tools import FAST, PRECISE, RESIDUE, client, through_the_wire, unit_rows


def check(params, weight, bias, values):
    plan = RotationPlan(params, weight.shape[1], weight.shape[0], len(values))
    layer = EncryptedLinear(weight, bias, params=params, plan=plan)
    got = through_the_wire(layer, values, client(params))
    expected = values @ weight.T + (0 if bias is None else bias)
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= layer.error


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    inputs=st.integers(1, 70),
    outputs=st.integers(1, 70),
    size=st.floats(-6, 4),
    has_bias=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_any_shape_and_any_size_of_weights(inputs, outputs, size, has_bias, seed):
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((outputs, inputs)) * 2.0**size
    bias = rng.standard_normal(outputs) * 2.0**size if has_bias else None
    check(FAST, weight, bias, unit_rows(rng, 1, inputs))


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    scale_bits=st.integers(18, 32),
    size=st.integers(-4, 4),
    inputs=st.integers(1, 40),
    seed=st.integers(0, 2**32),
)
def test_any_scale_and_any_size_of_values(scale_bits, size, inputs, seed):
    rng = np.random.default_rng(seed)
    params = HEParams(4096, (51, 55), scale_bits, 2.0**size)
    values = unit_rows(rng, 1, inputs) * 2.0**size * rng.uniform(0, 1)
    weight = unit_rows(rng, 9, inputs)
    layer = EncryptedLinear(weight, params=params)
    error = np.abs(through_the_wire(layer, values, HEClient(params)) - values @ weight.T).max()
    assert error <= layer.error <= params.predicted_error()


@pytest.mark.parametrize(
    ("inputs", "outputs", "batch"),
    [
        (1, 1, 1),  # smallest
        (64, 48, 3),  # several vectors
        (2500, 3, 1),  # input over two ciphertexts
        (3, 4500, 1),  # output over two ciphertexts
        (2100, 40, 2),  # several vectors of several ciphertexts
    ],
)
def test_shapes_at_the_borders_of_the_slots(inputs, outputs, batch):
    rng = np.random.default_rng(inputs + outputs)
    weight = rng.standard_normal((outputs, inputs)) / np.sqrt(inputs)
    values = unit_rows(rng, batch, inputs)
    check(FAST, weight, None, values)


@pytest.mark.parametrize("params", [FAST, PRECISE])
def test_the_error_is_what_was_predicted(params):
    # Rows of norm 1, and a permutation, whose single entries meet the biased slots in full.
    rng = np.random.default_rng(0)
    dense = unit_rows(rng, 64, 64)
    layer = EncryptedLinear(dense, params=params)
    values = unit_rows(rng, 1, 64)
    error = np.abs(through_the_wire(layer, values, client(params)) - values @ dense.T).max()
    assert params.predicted_error() / 30_000 < error <= params.predicted_error()
    check(params, np.eye(64)[rng.permutation(64)], None, values)


def test_special_weights():
    rng = np.random.default_rng(3)
    values = unit_rows(rng, 1, 40)
    single = np.zeros((24, 40))
    single[7, 11] = 1.0  # all but one diagonal are zero
    check(FAST, single, None, values)
    check(FAST, np.full((24, 40), 1e-3), None, values)


def test_from_torch_takes_weight_and_bias():
    torch.manual_seed(0)
    linear = torch.nn.Linear(20, 12)
    layer = EncryptedLinear.from_torch(linear, PRECISE)
    values = unit_rows(np.random.default_rng(0), 1, 20)
    expected = linear.double()(torch.tensor(values)).detach().numpy()
    assert np.abs(through_the_wire(layer, values, client(PRECISE)) - expected).max() < 1e-7
    assert "20 to 12: rotations" in layer.explain()


@pytest.mark.parametrize(
    "weight",
    [np.zeros(3), np.zeros((0, 3)), np.full((2, 2), np.nan), np.full((2, 2), np.inf)],
)
def test_unusable_weights_are_refused(weight):
    with pytest.raises(ParameterError):
        EncryptedLinear(weight, params=FAST)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ParameterError, match="bias"):
        EncryptedLinear(np.eye(3), np.ones(2), params=FAST)
    with pytest.raises(ParameterError, match="does not fit"):
        EncryptedLinear(np.eye(3), params=FAST, plan=RotationPlan(FAST, 4, 3))
    layer = EncryptedLinear(np.eye(3), params=FAST)
    for values in (np.ones(2) / 9, np.ones((2, 3)) / 9, np.ones((1, 1, 3)) / 9, 0.1):
        with pytest.raises(ParameterError):
            client(FAST).encrypt(values, layer.plan)


def test_weights_too_large_for_the_range_are_refused_before_anything_is_encrypted():
    with pytest.raises(RangeError, match="longer modulus"):
        EncryptedLinear(np.full((4, 4), 1e9), params=FAST)
    with pytest.raises(RangeError):
        EncryptedLinear(np.eye(4), np.full(4, 1e10), params=FAST)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1.1])
def test_values_out_of_range_are_refused(value):
    layer = EncryptedLinear(np.eye(3), params=FAST)
    with pytest.raises(RangeError, match="max_abs"):
        client(FAST).encrypt([value, 0.0, 0.0], layer.plan)


def test_at_the_largest_norm_and_largest_row_nothing_wraps():
    params = HEParams.select(0, 8.0, 1e-2)
    owner = HEClient(params)
    for sign in (1, -1):
        weight = sign * np.full((4, 4), 5.0)
        layer = EncryptedLinear(weight, params=params)
        values = np.full((1, 4), 4.0)
        got = through_the_wire(layer, values, owner)
        assert np.abs(got - values @ weight.T).max() < 0.1


class TestPlanner:
    def test_few_vectors_rotate_and_many_multiply_residues(self):
        assert isinstance(choose(FAST, 512, 512, 1).plan, RotationPlan)
        many = choose(FAST, 512, 512, 4096)
        assert isinstance(many.plan, ResiduePlan)
        assert "residue product" in many.reason
        assert "rotations" in many.reason

    def test_parameters_without_a_special_prime_cannot_rotate(self):
        assert isinstance(choose(RESIDUE, 8, 8, 1).plan, ResiduePlan)
        with pytest.raises(ParameterError, match="special prime"):
            RotationPlan(RESIDUE, 8, 8)

    def test_the_predicted_bytes_are_the_bytes(self):
        layer = EncryptedLinear(np.eye(16), params=FAST)
        predicted = cost(layer.plan)
        owner = client(FAST)
        keys = owner.evaluation_keys(layer.plan)
        sent = owner.encrypt(np.ones(16) / 9, layer.plan)
        assert 0 <= len(sent.to_bytes()) - predicted.upload_bytes < 200
        assert 0 <= len(layer(sent, keys).to_bytes()) - predicted.download_bytes < 200
        assert 0 <= len(keys.to_bytes()) - predicted.key_bytes < 400

    def test_keys_for_512_to_512_stay_under_their_limit(self):
        assert cost(RotationPlan(FAST, 512, 512)).key_bytes <= 1.2e6

    def test_a_plan_survives_its_tag(self):
        for plan in (RotationPlan(FAST, 5, 7, 2), ResiduePlan(RESIDUE, 5, 7, 9)):
            assert plan_from_tag(plan.params, plan.tag) == plan
