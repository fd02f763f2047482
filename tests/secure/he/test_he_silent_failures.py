"""What TenSEAL does silently, each beside the error that comes here, or the right number."""

import numpy as np
import pytest
import tenseal as ts
import tenseal.sealapi as sealapi

from secure.he import (
    DepthError,
    EncryptedAdapter,
    EncryptedLinear,
    EncryptedLoRA,
    EncryptedSum,
    HEClient,
    HEParams,
    KeyMismatchError,
    LayoutError,
    MissingKeyError,
    RangeError,
)
from secure.he._seal import engine, galois_element
from secure.he.keys import EvaluationKeys
from secure.he.plans import RotationPlan, SumPlan

from .he_tools import FAST, PRECISE, RESIDUE, client, through_the_wire, unit_rows


def tenseal_context(bits=(60, 40, 60), degree=8192, scale=40):
    context = ts.context(ts.SCHEME_TYPE.CKKS, degree, coeff_mod_bit_sizes=list(bits), n_threads=1)
    context.global_scale = 2.0**scale
    context.generate_galois_keys()
    return context


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_matmul_beyond_the_slots_is_wrong_there_and_right_here():
    # One ciphertext of 4096 slots; 3000 + 3000 exceed it, and no exception comes.
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((3000, 3000)) / np.sqrt(3000)
    values = unit_rows(rng, 1, 3000)
    theirs = ts.ckks_vector(tenseal_context(), values[0].tolist()).matmul(weight.T.tolist())
    assert np.abs(np.array(theirs.decrypt()) - values[0] @ weight.T).max() > 1e-2
    layer = EncryptedLinear(weight, params=PRECISE)
    ours = through_the_wire(layer, values, client(PRECISE))
    assert np.abs(ours - values @ weight.T).max() < 1e-6


def test_the_same_at_2048_slots():
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((1100, 1000)) / np.sqrt(1000)
    values = unit_rows(rng, 1, 1000)
    layer = EncryptedLinear(weight, params=FAST)
    got = through_the_wire(layer, values, client(FAST))
    assert np.abs(got - values @ weight.T).max() < FAST.predicted_error()


def test_a_sum_under_two_keys_is_accepted_there_and_refused_here():
    first, second = (tenseal_context((40, 40), 4096, 30) for _ in range(2))
    one = ts.ckks_vector(first, [0.25] * 8)
    other = ts.ckks_vector_from(first, ts.ckks_vector(second, [0.25] * 8).serialize())
    silent = np.array((one + other).decrypt())
    assert np.abs(silent - 0.5).max() > 1.0  # noise, and no exception

    plan = SumPlan(RESIDUE, 8)
    server = EncryptedSum(RESIDUE, 8)
    values = np.full(8, 0.25)
    server.add(client(RESIDUE).encrypt(values, plan).to_bytes())
    with pytest.raises(KeyMismatchError):
        server.add(HEClient(RESIDUE).encrypt(values, plan).to_bytes())
    assert server.count == 1


def test_decrypting_with_another_key_is_refused():
    layer = EncryptedLinear(np.eye(4), params=FAST)
    stranger = HEClient(FAST)
    keys = client(FAST).evaluation_keys(layer.plan)
    sent = client(FAST).encrypt(np.full(4, 0.1), layer.plan)
    with pytest.raises(KeyMismatchError):
        stranger.decrypt(layer(sent, keys))
    with pytest.raises(KeyMismatchError):
        layer(sent, stranger.evaluation_keys(layer.plan))


def test_galois_keys_of_steps_are_keys_of_elements_there():
    # [1, 2, 4] binds to the overload of elements: 1 is the identity, 2 and 4 are none.
    context = tenseal_context((51, 55), 4096, 28)
    raw = context.seal_context().data
    generator = sealapi.KeyGenerator(raw, context.secret_key().data)
    keys = sealapi.GaloisKeys()
    generator.create_galois_keys([3], keys)
    assert keys.has_key(galois_element(1, 4096))
    assert not keys.has_key(galois_element(3, 4096))


def test_a_missing_rotation_key_is_refused_before_computing():
    layer = EncryptedLinear(np.eye(128), params=FAST)
    owner = client(FAST)
    sent = owner.encrypt(np.full(128, 0.05), layer.plan)
    with pytest.raises(MissingKeyError, match="evaluation keys"):
        layer(sent)
    keys = owner.evaluation_keys(layer.plan)
    fewer = EvaluationKeys(FAST, keys.fingerprint, keys.steps[:-1], keys.rotation_parts[:-1])
    with pytest.raises(MissingKeyError, match=f"step {keys.steps[-1]}"):
        layer(sent, fewer)
    seal = engine(FAST)
    with pytest.raises(MissingKeyError, match="step 5"):
        seal.rotate(sent.load()[0], 5, fewer.galois)


def test_a_missing_relinearisation_key_is_refused():
    params = HEParams.select(2, 1.0, 1e-2)
    adapter = EncryptedAdapter((np.eye(4), None), (np.eye(4), None), params=params)
    owner = client(params)
    keys = owner.evaluation_keys(adapter.plan)
    without = EvaluationKeys(params, keys.fingerprint, keys.steps, keys.rotation_parts)
    sent = owner.encrypt(np.full(4, 0.1), adapter.plan)
    with pytest.raises(MissingKeyError, match="relinearisation"):
        adapter(sent, without)


def test_overflow_wraps_there_and_is_refused_here():
    context = tenseal_context((40, 40), 4096, 37)
    one = ts.ckks_vector(context, [1.5] * 2048)
    wrapped = np.array((one + one + one + one).decrypt())
    assert np.abs(wrapped - 6.0).max() > 1.0  # 6 * 2^37 is above q/2, and no exception comes
    with pytest.raises(RangeError):
        client(FAST).encrypt([3.0], RotationPlan(FAST, 1, 1))
    with pytest.raises(RangeError):
        EncryptedLinear(np.full((2, 2), 1e9), params=FAST)


def test_sums_wrap_there_and_are_counted_here():
    server = EncryptedSum(tight := HEParams(1024, (26,), 22), 4)
    plan, owner = SumPlan(tight, 4), client(tight)
    message = owner.encrypt([1.0, 0, 0, 0], plan).to_bytes()
    for _ in range(server._limit):
        server.add(message)
    total = owner.decrypt(server.result())[0]
    assert abs(total[0] - server._limit) < 0.05 * server._limit
    with pytest.raises(RangeError, match="room for"):
        server.add(message)


def test_depth_is_checked_when_the_layer_is_built():
    with pytest.raises(DepthError, match="2 rescalings"):
        EncryptedAdapter((np.eye(4), None), (np.eye(4), None), params=PRECISE)
    with pytest.raises(DepthError, match="depth=1"):
        EncryptedLoRA(np.eye(4), None, np.ones((1, 4)), np.ones((4, 1)), 1.0, params=FAST)


def test_a_result_can_not_go_through_a_layer_again():
    layer = EncryptedLinear(np.eye(4), params=FAST)
    owner = client(FAST)
    keys = owner.evaluation_keys(layer.plan)
    result = layer(owner.encrypt(np.full(4, 0.1), layer.plan), keys)
    with pytest.raises(LayoutError, match="result already"):
        layer(result, keys)


def test_another_layout_is_refused_and_an_input_is_not_read():
    layer = EncryptedLinear(np.eye(4), params=FAST)
    owner = client(FAST)
    sent = owner.encrypt(np.full(5, 0.1), RotationPlan(FAST, 5, 4))
    with pytest.raises(LayoutError, match="packed for"):
        layer(sent, owner.evaluation_keys(layer.plan))
    with pytest.raises(LayoutError, match="apply the layer"):
        owner.decrypt(sent)


def test_the_biased_low_slots_stay_within_the_prediction():
    # Key switching leaves ten and more times the usual error in slot 0: one weight meets it in
    # full under a permutation. The worst of 20 keys and of all shifts is within the bound.
    rng = np.random.default_rng(4)
    weight = np.roll(np.eye(256), 1, axis=0)
    layer = EncryptedLinear(weight, params=FAST)
    worst = 0.0
    for _ in range(20):
        owner = HEClient(FAST)
        values = unit_rows(rng, 1, 256)
        got = through_the_wire(layer, values, owner)
        worst = max(worst, float(np.abs(got - values @ weight.T).max()))
    assert 1e-6 < worst <= FAST.predicted_error()
