"""The client: keys stay at home, decryption is the owner's, release is noised and counted."""

import copy
import pickle

import numpy as np
import pytest
from scipy import stats

from secure.errors import ParameterError
from secure.he import (
    Encrypted,
    EncryptedLinear,
    EvaluationKeys,
    HEClient,
    ReleaseError,
    ReleasePolicy,
    WireError,
)
from secure.he._pack import pack
from secure.he._seal import engine
from secure.he.release import gaussian
from tests.secure.fixed_random import FixedRandom

from .he_tools import FAST, RESIDUE, client

WIDTH = 128
LAYER = EncryptedLinear(np.eye(WIDTH), params=FAST)


@pytest.fixture(scope="module")
def exchange():
    owner = HEClient(FAST)
    keys = owner.evaluation_keys(LAYER.plan, public=True)
    sent = owner.encrypt(np.full(WIDTH, 0.05), LAYER.plan)
    return owner, keys, sent, LAYER(sent, keys)


def test_no_part_of_the_secret_key_is_in_what_is_sent(exchange):
    owner, keys, sent, result = exchange
    rows = engine(FAST).split_secret_key(owner._secret)
    everything = keys.to_bytes() + sent.to_bytes() + result.to_bytes()
    for row, bits in zip(rows, FAST.coeff_bits, strict=True):
        packed = pack(row, bits)
        assert packed not in everything
        # Any 32 bytes in a row, in packed form and as SEAL would write them.
        for form in (packed, row.astype("<u8").tobytes()):
            pieces = {form[at : at + 32] for at in range(0, len(form) - 32, 32)}
            assert not any(piece in everything for piece in pieces)


def test_the_scan_finds_a_key_that_is_there(exchange):
    owner, *_ = exchange
    row = engine(FAST).split_secret_key(owner._secret)[0]
    assert pack(row, FAST.coeff_bits[0])[64:96] in owner.export_secret()


def test_what_is_sent_does_not_decrypt(exchange):
    owner, keys, _, result = exchange
    seal = engine(FAST)
    evaluation = EvaluationKeys.from_bytes(keys.to_bytes())
    assert not any("secret" in name for name in vars(evaluation))
    # Read any part of the evaluation keys as if it were the secret key: nothing comes out.
    assert len(evaluation.rotation_parts) >= 2
    for residues, _ in evaluation.rotation_parts:
        guess = seal.join_secret_key(residues)
        decryptor = seal.api.Decryptor(seal.context, guess)
        plain = seal.api.Plaintext()
        decryptor.decrypt(result.load()[0], plain)
        slots = np.array(seal.encoder.decode_complex(plain))
        values = result.plan.decode(slots[None])
        assert np.abs(values - 0.05).min() > 1e-2
    assert np.abs(owner.decrypt(result) - 0.05).max() < 1e-3


def test_two_encryptions_of_one_value_have_nothing_in_common(exchange):
    owner, _, sent, _ = exchange
    again = owner.encrypt(np.full(WIDTH, 0.05), LAYER.plan)
    assert sent.pieces[0].seed != again.pieces[0].seed
    assert np.mean(sent.pieces[0].residues == again.pieces[0].residues) < 0.01


def test_residues_on_the_wire_are_uniform(exchange):
    # Kolmogorov-Smirnov at a false-alarm rate of 1e-6.
    _, _, sent, _ = exchange
    share = sent.pieces[0].residues.ravel() / engine(FAST).primes()[0]
    assert stats.kstest(share, "uniform").pvalue > 1e-6


def test_a_client_is_neither_pickled_nor_printed_with_its_key(exchange):
    owner, *_ = exchange
    for attempt in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match="secret key"):
            attempt(owner)
    assert repr(owner) == f"HEClient(N=4096, key={owner.fingerprint.hex()[:8]})"


def test_the_secret_key_can_be_carried_to_another_process(exchange):
    owner, _, _, result = exchange
    twin = HEClient.from_secret(owner.export_secret())
    assert twin.fingerprint == owner.fingerprint
    assert np.array_equal(twin.decrypt(result), owner.decrypt(result))
    keys = twin.evaluation_keys(LAYER.plan)
    mixed = LAYER(owner.encrypt(np.full(WIDTH, 0.02), LAYER.plan), keys)
    assert np.abs(owner.decrypt(mixed) - 0.02).max() < 1e-3


def test_a_damaged_secret_key_is_refused(exchange):
    data = exchange[0].export_secret()
    for broken in (data[:-1], data[:100], data[:60] + b"\0" + data[61:]):
        with pytest.raises(WireError):
            HEClient.from_secret(broken)
    with pytest.raises(WireError):
        Encrypted.from_bytes(data, FAST)


class TestRelease:
    POLICY = ReleasePolicy(8, 0.25, 3, error=FAST.predicted_error(), entries=WIDTH)

    def test_it_counts_and_then_refuses(self):
        owner = HEClient(FAST)
        keys = owner.evaluation_keys(LAYER.plan)
        result = LAYER(owner.encrypt(np.full(WIDTH, 0.05), LAYER.plan), keys)
        for count in range(3):
            released = owner.release(result, self.POLICY)
            assert owner.released == count + 1
            assert np.array_equal(released, np.round(released * 256) / 256)
            assert not np.allclose(released, 0.05, atol=1e-3)
        with pytest.raises(ReleaseError, match="make a new key"):
            owner.release(result, self.POLICY)
        assert np.abs(owner.decrypt(result) - 0.05).max() < 1e-3

    def test_the_noise_has_its_sigma_and_not_another(self):
        # 200,000 draws: the sample deviation is within 1.2 % at 7.6 sigma (alarm rate 3e-14).
        noise = self.POLICY.apply(np.zeros(200_000), FixedRandom(5))
        assert abs(noise.std() / np.hypot(0.25, 2.0**-8 / np.sqrt(12)) - 1) < 0.012
        for wrong in (2 / 3, 3 / 2):
            assert abs(noise.std() / (0.25 * wrong) - 1) > 0.3

    def test_gaussian_is_gaussian(self):
        draws = gaussian(FixedRandom(6), 100_001)
        assert draws.shape == (100_001,)
        assert stats.kstest(draws, "norm").pvalue > 1e-6

    def test_for_advantage_inverts_the_bound(self):
        policy = ReleasePolicy.for_advantage(1e-6, 100, 1000, 2.0**-10)
        assert np.sqrt(1000 * 100) * 1e-6 / (2 * policy.sigma) <= 2.0**-10
        assert policy.max_queries == 1000

    @pytest.mark.parametrize(
        "values",
        [(-1, 1.0, 1), (41, 1.0, 1), (8, 0.0, 1), (8, 0.001, 1), (8, np.nan, 1), (8, 1.0, 0)],
    )
    def test_policies_that_protect_nothing_are_refused(self, values):
        with pytest.raises(ParameterError):
            ReleasePolicy(*values, error=1e-9, entries=1)


def test_the_residue_layout_has_no_key_to_send():
    owner = client(RESIDUE)
    layer = EncryptedLinear(np.eye(4), params=RESIDUE, batch=2)
    assert owner.evaluation_keys(layer.plan).rotation_parts == ()
