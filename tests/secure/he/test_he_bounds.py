"""H2, H3: a stated bound is never exceeded, and its tests search where it would be.

Every layer is compared with numpy through the wire, at its own `error` and at what the parameters
predict, without slack. Errors of encryption pass 8 standard deviations once in 10^13 entries.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure.he import (
    EncryptedAdapter,
    EncryptedGallery,
    EncryptedLinear,
    EncryptedLoRA,
    EncryptedSum,
    HEParams,
)
from secure.he.aggregation import sum_tolerance
from secure.he.plans import ResiduePlan, RotationPlan, SumPlan

from .he_tools import FAST, PRECISE, RESIDUE, client, through_the_wire, unit_rows

CHOSEN = HEParams.select(0, 1.0, 3e-4)


def exceeds_nothing(layer, weight, bias, values) -> None:
    """Check a layer against its own bound, and against the parameters' for its norms."""
    params = layer.plan.params
    expected = values @ weight.T + (0 if bias is None else bias)
    got = through_the_wire(layer, values, client(params))
    worst = np.abs(got - expected).max()
    assert worst <= layer.error
    norm = np.linalg.norm(weight, axis=1).max()
    reach = norm + (0 if bias is None else np.abs(bias).max()) / params.max_abs
    assert layer.error <= params.predicted_error() * max(reach, 1.0)


def shaped(kind: str, rng: np.random.Generator, outputs: int, inputs: int) -> np.ndarray:
    """Return weights of a kind that rounding has trouble with."""
    dense = rng.standard_normal((outputs, inputs)) / np.sqrt(inputs)
    if kind == "sparse":
        return dense * (rng.random((outputs, inputs)) < 0.02)
    if kind == "one row":
        return np.where(np.arange(outputs)[:, None] == outputs - 1, dense, 0)
    if kind == "one column":
        return np.where(np.arange(inputs) == inputs - 1, dense, 0)
    if kind == "offset":
        return np.full((outputs, inputs), 1 / np.sqrt(inputs)) + 1e-6 * dense
    if kind == "last bit":
        return np.nextafter(np.round(dense, 3), 1)
    if kind == "tiny":
        return dense * 1e-9
    if kind == "mixed":
        return dense * 10.0 ** rng.integers(-8, 4, (outputs, 1))
    if kind == "permutation":
        return np.eye(max(outputs, inputs))[
            :outputs, rng.permutation(max(outputs, inputs))[:inputs]
        ]
    return dense


KINDS = (
    *("dense", "sparse", "one row", "one column", "offset", "last bit"),
    *("tiny", "mixed", "permutation"),
)


def vectors(kind: str, rng: np.random.Generator, count: int, width: int) -> np.ndarray:
    """Return inputs of norm at most 1: dense, one entry, all equal, tiny."""
    if kind == "one":
        return np.eye(width)[rng.integers(width, size=count)]
    if kind == "equal":
        return np.full((count, width), 1 / np.sqrt(width))
    return unit_rows(rng, count, width) * (1e-7 if kind == "tiny" else 1.0)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(KINDS),
    values=st.sampled_from(["dense", "one", "equal", "tiny"]),
    inputs=st.integers(1, 80),
    outputs=st.integers(1, 80),
    has_bias=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_h3_rotations_keep_their_bound(kind, values, inputs, outputs, has_bias, seed):
    rng = np.random.default_rng(seed)
    weight = shaped(kind, rng, outputs, inputs)
    bias = rng.standard_normal(outputs) if has_bias else None
    layer = EncryptedLinear(weight, bias, params=CHOSEN, plan=RotationPlan(CHOSEN, inputs, outputs))
    exceeds_nothing(layer, weight, bias, vectors(values, rng, 1, inputs))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(KINDS),
    values=st.sampled_from(["dense", "one", "equal", "tiny"]),
    params=st.sampled_from([RESIDUE, PRECISE, CHOSEN]),
    inputs=st.integers(1, 100),
    outputs=st.integers(1, 6),
    has_bias=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_h2_residues_keep_their_bound(kind, values, params, inputs, outputs, has_bias, seed):
    rng = np.random.default_rng(seed)
    weight = shaped(kind, rng, outputs, inputs)
    bias = rng.standard_normal(outputs) if has_bias else None
    layer = EncryptedLinear(
        weight, bias, params=params, plan=ResiduePlan(params, inputs, outputs, 3)
    )
    exceeds_nothing(layer, weight, bias, vectors(values, rng, 3, inputs))


@pytest.mark.parametrize(("inputs", "outputs", "batch"), [(768, 2, 256), (64, 16, 256)])
def test_h2_what_select_was_asked_for_is_what_comes(inputs, outputs, batch):
    params = HEParams.select(0, 1.0, 1e-8, batch=batch)
    assert params.predicted_error() <= 1e-8
    rng = np.random.default_rng(inputs)
    weight = unit_rows(rng, outputs, inputs)
    layer = EncryptedLinear(weight, params=params, plan=ResiduePlan(params, inputs, outputs, batch))
    # The worst input of all: along the rounding of the weights themselves.
    known = sum(
        digit * 2.0 ** (layer._layer._digit_bits * power)  # pyright: ignore
        for power, digit in enumerate(reversed(layer._layer._digits))  # pyright: ignore
    )
    away = known / layer._layer.weight_scale - weight
    values = unit_rows(rng, batch, inputs)
    values[:outputs] = away / np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-300)
    exceeds_nothing(layer, weight, None, values)


@pytest.mark.slow
def test_h3_outputs_almost_alone_in_a_block():
    rng = np.random.default_rng(0)
    weight = unit_rows(rng, 4097, 2049)
    layer = EncryptedLinear(weight, params=CHOSEN, plan=RotationPlan(CHOSEN, 2049, 4097))
    exceeds_nothing(layer, weight, None, weight[-1:])


def test_h3_the_last_item_of_a_gallery_keeps_its_score():
    rng = np.random.default_rng(1)
    rows = unit_rows(rng, 4097, 256)
    gallery = EncryptedGallery(rows, CHOSEN, progress=False)
    query = unit_rows(rng, 1, 256) + 0.4 * rows[-1]
    query /= np.linalg.norm(query)
    scores = through_the_wire(gallery, query, client(CHOSEN))[0]
    assert abs(scores[-1] - rows[-1] @ query[0]) <= gallery.error <= 3e-4
    assert abs(scores[-1]) > 0.1


def test_h3_a_diagonal_of_one_small_slot_does_not_vanish():
    """To the nearest, a weight under 2^-12 in a slot of its own rounds to a plaintext of zeros."""
    weight = np.zeros((3000, 1500))
    weight[2999] = 2e-4 * np.sign(np.random.default_rng(2).standard_normal(1500))
    weight[0, 0] = 1.0
    layer = EncryptedLinear(weight, params=CHOSEN, plan=RotationPlan(CHOSEN, 1500, 3000))
    values = weight[2999:] / np.linalg.norm(weight[2999])
    got = through_the_wire(layer, values, client(CHOSEN))[0]
    assert abs(got[2999] - 2e-4 * np.sqrt(1500)) <= layer.error < 2e-4 * np.sqrt(1500) / 10


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    scale_bits=st.integers(12, 38),
    size=st.integers(-6, 6),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**32),
)
def test_any_scale_and_any_size(scale_bits, size, kind, seed):
    params = HEParams(4096, (51, 55), scale_bits, 2.0**size)
    rng = np.random.default_rng(seed)
    weight = shaped(kind, rng, 9, 30)
    layer = EncryptedLinear(weight, params=params, plan=RotationPlan(params, 30, 9))
    exceeds_nothing(layer, weight, None, unit_rows(rng, 1, 30) * 2.0**size)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 2**32))
def test_two_layers_keep_their_bound(kind, seed):
    rng = np.random.default_rng(seed)
    deep = HEParams.select(2, 1.0, 1e-3)
    values = unit_rows(rng, 1, 24)
    w1, w2 = shaped(kind, rng, 12, 24), shaped("dense", rng, 10, 12)
    adapter = EncryptedAdapter((w1, None), (w2, None), params=deep, polynomial=(0.5, -1.0, 2.0))
    z = values @ w1.T
    expected = (0.5 - z + 2 * z**2) @ w2.T
    assert np.abs(through_the_wire(adapter, values, client(deep)) - expected).max() <= adapter.error


@pytest.mark.parametrize("kind", ["dense", "one", "tiny"])
def test_a_lora_apart_keeps_its_bound(kind):
    rng = np.random.default_rng(7)
    params = HEParams.select(1, 1.0, 1e-3)
    base, down, up = unit_rows(rng, 30, 24), shaped("sparse", rng, 6, 24), unit_rows(rng, 30, 6)
    layer = EncryptedLoRA(base, None, down, up, 0.5, params=params)
    values = vectors(kind, rng, 1, 24)
    got = through_the_wire(layer, values, client(params))
    assert np.abs(got - values @ (base + 0.5 * up @ down).T).max() <= layer.error


@pytest.mark.parametrize("size", [1e-9, 2e-7, 1e-4, 1.0])
def test_sums_of_sparse_vectors_keep_their_bound(size):
    """Small and alone, entries would round to zero in every summand, and their errors agree."""
    params = HEParams(2048, (53,), 29)
    owner, plan = client(params), SumPlan(params, 3000)
    server, vector = EncryptedSum(params, 3000), np.zeros(3000)
    vector[1234] = size
    for _ in range(40):
        server.add(owner.encrypt(vector, plan).to_bytes())
    total = owner.decrypt(server.result())[0]
    assert np.abs(total - 40 * vector).max() <= sum_tolerance(params, 40)


def test_the_prediction_is_not_idle():
    """A bound a thousand times too wide would pass every test above."""
    rng = np.random.default_rng(3)
    weight = np.eye(64)[rng.permutation(64)]
    values = unit_rows(rng, 1, 64)
    for params in (FAST, CHOSEN):
        layer = EncryptedLinear(weight, params=params, plan=RotationPlan(params, 64, 64))
        error = np.abs(through_the_wire(layer, values, client(params)) - values @ weight.T).max()
        assert error > layer.error / 1000
