"""The secret source: published vectors, range, fork safety."""

import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy import stats

from secure.errors import ParameterError
from secure.random import SecureRandom, add_keystreams, keystream


def test_keystream_is_aes_256_ctr():
    key = bytes(range(32))
    reference = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(800))
    assert keystream(key, 100).astype("<u8").tobytes() == reference


def test_keystream_nist_vector():
    # FIPS 197, appendix C.3: AES-256 of 00112233…ff under the key 000102…1f.
    key = bytes(range(32))
    block = bytes.fromhex("00112233445566778899aabbccddeeff")
    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    assert encryptor.update(block).hex() == "8ea2b7ca516745bfeafc49904b496089"
    zero = Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(bytes(16))
    assert keystream(key, 2).astype("<u8").tobytes() == zero


def test_keystream_spans_chunks_without_a_seam():
    key = bytes(32)
    words = keystream(key, (1 << 17) + 5)
    assert np.array_equal(words[:9], keystream(key, 9))
    assert len(np.unique(words)) == len(words)


@pytest.mark.parametrize("key", [b"", bytes(16), bytes(33)])
def test_keystream_refuses_a_key_of_another_length(key):
    with pytest.raises(ParameterError, match="32 bytes"):
        keystream(key, 1)


@pytest.mark.parametrize("bound", [1, 2, 3, 10, 255, 256, 1 << 40, (1 << 63) + 1, 1 << 64])
def test_below_stays_below(bound):
    draw = SecureRandom().below(bound, 2000)
    assert draw.dtype == np.uint64
    assert int(draw.max()) < bound


def test_below_is_uniform():
    # False-alarm rate 1e-6 by construction.
    counts = np.bincount(SecureRandom().below(10, 100_000).astype(int), minlength=10)
    assert stats.chisquare(counts).pvalue > 1e-6


def test_uniform_is_uniform():
    assert stats.kstest(SecureRandom().uniform(100_000), "uniform").pvalue > 1e-6


def test_below_refuses_bad_bounds():
    for bound in (0, -1, (1 << 64) + 1):
        with pytest.raises(ParameterError):
            SecureRandom().below(bound, 1)


def test_two_sources_differ():
    assert SecureRandom().token(32) != SecureRandom().token(32)


def test_a_forked_child_draws_its_own_secrets():
    rng = SecureRandom()
    rng.token(1)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writer, rng.token(32))
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reader, 32) != rng.token(32)


def test_it_cannot_be_pickled():
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(SecureRandom())


def test_s13_threads_share_a_source_and_no_draw():
    rng = SecureRandom()
    with ThreadPoolExecutor(8) as pool:
        draws = list(pool.map(lambda _: rng.words(20_000).tobytes(), range(64)))
    assert len(set(draws)) == 64


def test_s13_no_key_outlives_a_call():
    rng = SecureRandom()
    rng.words(10)
    assert vars(rng) == {}


@pytest.mark.parametrize("count", [0, 1, 7, (1 << 14) - 1, 1 << 14, (1 << 15) + 3])
@pytest.mark.parametrize(("added", "subtracted"), [(0, 0), (1, 0), (0, 1), (3, 2)])
def test_adding_keystreams_is_adding_them_one_by_one(count, added, subtracted):
    keys = [os.urandom(32) for _ in range(added + subtracted)]
    words = SecureRandom().words(count)
    before = words.copy()
    expected = words.copy()
    for index, key in enumerate(keys):
        stream = keystream(key, count)
        expected = expected + stream if index < added else expected - stream
    found = add_keystreams(words, keys[:added], keys[added:])
    assert np.array_equal(found, expected)
    assert np.array_equal(words, before)
    assert not np.shares_memory(found, words)


def test_adding_a_keystream_refuses_a_short_key():
    with pytest.raises(ParameterError, match="32 bytes"):
        add_keystreams(np.zeros(1, dtype=np.uint64), [bytes(32)], [bytes(16)])
