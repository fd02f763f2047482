"""Attacks 9 to 11: looking through the mask, looking beside it, and spoiling the sum."""

import numpy as np
import pytest
from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.supercore.primitives.asymmetric import generate_key_pairs
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from secure.aggregation import Layout, Policy, combine, decode, encode, integer_plan
from secure.random import keystream
from tests.secure.aggregation.aggregation_helpers import skellam
from tests.secure.aggregation.rig import RNG, Rig

MODES = ["semi-honest", "active"]

# --- attack 9: the masked upload, and the search for a small seed --------------------------------


def test_attack_9_the_masked_upload_is_uniform():
    # False-alarm rate: 3e-6, one in a million for each of the three tests.
    rig = Rig(3, length=40_000)
    rig.values[:] = 0
    inboxes = rig.to("mask")
    words = rig.clients[1].mask(inboxes[1]).words
    for view in (words.view(np.uint8), words.view(np.uint8)[::8]):
        assert stats.chisquare(np.bincount(view, minlength=256)).pvalue > 1e-6
    ones = int(np.unpackbits(words.view(np.uint8)).sum())
    assert stats.binomtest(ones, 64 * len(words)).pvalue > 1e-6


def test_attack_9_two_masked_uploads_of_one_vector_have_nothing_in_common():
    uploads = []
    for _ in range(2):
        rig = Rig(3, length=1000)
        uploads.append(rig.clients[1].mask(rig.to("mask")[1]).words)
    assert not np.any(uploads[0] == uploads[1])


def fold(key: bytes) -> int:
    """What flwr 1.41 makes of a key: its 4-byte pieces XORed into one 32-bit seed."""
    seed = 0
    for start in range(0, len(key), 4):
        seed ^= int.from_bytes(key[start : start + 4], "little")
    return seed


def search(upload: np.ndarray, candidates: range, modulus: int, bound: int) -> list[int]:
    """Return the seeds whose RandomState stream explains an upload as small numbers plus mask."""
    found = []
    for seed in candidates:
        mask = np.random.RandomState(seed).randint(0, modulus - 1, len(upload), dtype=np.int64)
        if np.all((upload - mask) % modulus < bound):
            found.append(seed)
    return found


def test_attack_9_the_search_for_a_28_bit_seed():
    """The peer's mask falls to a search over its folded seed; the same search says nothing here.

    The search is cut down to 2^12 candidates around the true one, which shows that a candidate
    can be told from all others; the whole space is 2^28.
    """
    modulus, bound, width = 1 << 32, 1 << 22, 1 << 12
    (one, _), (_, other) = generate_key_pairs(), generate_key_pairs()
    key = generate_shared_key(one, other)
    values = np.arange(8, dtype=np.int64) * 1000
    theirs = (values + pseudo_rand_gen(key, modulus, [(8,)])[0]) % modulus
    true = fold(key)
    start = true - true % width
    assert search(theirs, range(start, start + width), modulus, bound) == [true]
    # Base64 leaves at most 7 bits of each byte, and pads the last piece: 28 bits are free.
    folds = np.array([fold(generate_shared_key(one, generate_key_pairs()[1])) for _ in range(60)])
    assert not np.any(folds & 0x00808080)

    ours = (values + (keystream(key[:32], 8) % np.uint64(modulus)).astype(np.int64)) % modulus
    assert search(ours, range(start, start + width), modulus, bound) == []


def test_attack_9_every_bit_of_a_mask_key_counts():
    key = bytes(range(32))
    streams = {keystream(key, 2).tobytes()}
    for bit in range(256):
        flipped = int.from_bytes(key, "big") ^ (1 << bit)
        streams.add(keystream(flipped.to_bytes(32, "big"), 2).tobytes())
    assert len(streams) == 257


@pytest.mark.parametrize("mode", MODES)
def test_attack_9_all_but_one_share_say_nothing_of_the_secret(mode):
    """t − 1 shares fit every secret: with any guess there is a polynomial through them."""
    rig = Rig(mode=mode)
    threshold = rig.policy.sharing(6).threshold
    rig.to("mask")
    shares = {member: rig.clients[member].state.own_share for member in range(1, threshold)}
    guesses = {combine(shares | {9: bytes([guess]) + bytes(31)}, threshold) for guess in range(50)}
    assert len(guesses) == 50


# --- attack 10: secrets that stay, and texts that tell --------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_attack_10_secrets_are_wiped_as_the_session_goes_on(mode):
    rig = Rig(mode=mode)
    inboxes = rig.to("mask")
    client = rig.clients[1]
    before = client.state
    secrets = [before.mask_seed, before.self_seed, *before.opening_keys]
    assert all(secrets)
    assert not before.channel_secret  # forgotten as soon as the channels are agreed on
    client.mask(inboxes[1])
    assert client.words is None
    kept = client.state.to_fields()
    parts = [each if isinstance(each, list | tuple) else [each] for each in kept.values()]
    flat = b"".join(each for part in parts for each in part if isinstance(each, bytes))
    assert not any(secret in flat for secret in secrets)
    rig = Rig(mode=mode)
    rig.finish()
    for client in rig.clients.values():
        assert client.state.to_fields() == {
            "stage": "idle",
            "spent": '{"run": {"train": 1}}',
            "degree": 0,
            "threshold": 0,
            "quorum": 0,
        }


def test_attack_10_a_state_does_not_show_its_secrets():
    rig = Rig()
    rig.to("mask")
    state = rig.clients[1].state
    for text in (repr(state), str(state), f"{state}", repr(rig.identities[1])):
        assert state.mask_seed.hex() not in text
        assert repr(state.mask_seed) not in text
        assert rig.identities[1].private_bytes().hex() not in text


# --- attack 11: the exact integer sum, and noise under the most dropouts -------------------------


@st.composite
def cohorts(draw):
    """Return a cohort and who drops out where; enough members stay to the end."""
    count = draw(st.integers(3, 12))
    mode = draw(st.sampled_from(MODES))
    trips = ["advertise", "share", "mask", "unmask"] + (["commit"] if mode == "active" else [])
    rig = Rig(count, mode=mode, length=draw(st.integers(0, 12)), min_clients=2)
    most = min(count - 3, count - rig.policy.sharing(count).threshold)
    lost = draw(st.lists(st.integers(1, count), max_size=most, unique=True))
    return rig, {member: draw(st.sampled_from(trips)) for member in lost}


@given(cohorts())
@settings(max_examples=60, deadline=None)
def test_attack_11_any_cohort_any_dropouts_above_the_threshold_give_the_exact_sum(case):
    rig, fates = case
    drop = {trip: [each for each, fate in fates.items() if fate == trip] for trip in fates.values()}
    summed = rig.finish(drop=drop)
    early = {"advertise", "share", "mask"}
    expected = [member for member in rig.clients if fates.get(member) not in early]
    assert summed.survivors == tuple(expected)
    assert rig.decoded(summed).tolist() == rig.plain_sum(expected).tolist()
    assert not rig.refused
    assert not summed.faults


@given(
    st.lists(st.lists(st.integers(-500, 500), min_size=4, max_size=4), min_size=3, max_size=6),
    st.sampled_from(MODES),
)
@settings(max_examples=30, deadline=None)
def test_attack_11_any_integer_vectors_are_summed_exactly(vectors, mode):
    policy = Policy(plan=integer_plan(8, 500), mode=mode, clip=False)
    from secure.aggregation import LocalAggregator

    total = LocalAggregator(policy).sum([np.array(each, dtype=np.float64) for each in vectors])
    assert np.rint(total).astype(int).tolist() == np.sum(vectors, axis=0).tolist()


def test_attack_11_the_noise_reaches_its_target_under_the_most_dropouts():
    """Each client adds Skellam noise of variance σ²/t; t survivors still give σ².

    The seed is fixed. With 20 000 coordinates the sample variance of the sum is within 5 % of
    its expectation but for a chance below 1e-6; noise for one client fewer is told apart.
    """
    clients, least, sigma, length = 9, 6, 30.0, 20_000
    policy = Policy(plan=integer_plan(clients, 2000), min_clients=least, clip=False)
    assert policy.sharing(clients).quorum == least
    rng = np.random.default_rng(11)
    noise = [skellam(rng, sigma**2 / least, length) for _ in range(clients)]
    from secure.aggregation import LocalAggregator

    total = LocalAggregator(policy).sum(noise, drop={"mask": [1, 5, 9]})
    kept = [each for member, each in enumerate(noise, 1) if member not in (1, 5, 9)]
    assert np.rint(total).tolist() == np.sum(kept, axis=0).tolist()
    ratio = float(np.var(total)) / sigma**2
    assert 0.95 < ratio < 1.05
    assert not 0.95 < ratio * (least - 1) / least < 1.05


def test_attack_11_a_sum_that_counts_other_clients_is_refused():
    from secure.errors import IntegrityError

    policy = Rig().policy
    layout = Layout((("v", (2,), "float32"),), ())
    words = encode(np.zeros(2, dtype=np.float32), 1.0, {}, policy, RNG)
    with pytest.raises(IntegrityError, match="does not count 2 clients"):
        decode(words, layout, policy, 2)
