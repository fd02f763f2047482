"""Secure aggregation beside flwr's SecAgg+: time, bytes, the strength of a mask, and attacks.

Seconds are CPU seconds of this process on both sides, so that a busy machine changes neither.
"""

import copy
import logging
import time
from collections.abc import Callable, Iterable

import numpy as np
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.supercore.primitives.asymmetric import generate_key_pairs

from secure.aggregation import (
    Client,
    LanePlan,
    Layout,
    LocalAggregator,
    Policy,
    Server,
    Session,
    combine,
    encode,
    identities,
    plan,
    random_secret,
    split,
)
from secure.aggregation._binding import pair_mask_key
from secure.aggregation._messages import Advert, Inbox, Setup
from secure.aggregation.flower import upload_bytes
from secure.random import SecureRandom
from simulations.benchmarks._aggregation_attacks import ATTACKS, refused
from simulations.benchmarks._aggregation_growth import sweep
from simulations.benchmarks._harness import Row, higher_is_better, lower_is_better
from simulations.benchmarks._secaggplus import (
    MODULUS,
    NAME,
    explains,
    folded,
    peer_uploads,
    ready_to_mask,
    run_workflow,
    updates,
)

RNG = SecureRandom()
REPEATS = 5


def run(progress: Callable[[str], None]) -> list[Row]:
    """Measure both sides, and return the rows."""
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    steps = (_mask, _upload, _shamir, _seeds, _attacks, _server, _growth)
    rows: list[Row] = []
    for step in steps:
        rows += step(progress)
    return rows


def _cpu_seconds(work: Callable[[], object], repeats: int = REPEATS, warmup: int = 1) -> float:
    """Return the median CPU time of `work` in seconds."""
    times = []
    for _ in range(warmup + repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return float(np.median(times[warmup:]))


def _our_client(neighbours: int, length: int) -> tuple[Client, Inbox, Policy]:
    """Bring a client of an active cohort to the masking trip: it, its shares, its policy."""
    lanes = LanePlan(bound=1.0, levels=1 << 15, lane=21, clients=64)
    policy = Policy(lanes)
    keys, roster = identities(neighbours + 1, RNG)
    members = {
        member: Client(identity, roster, policy, "bench", RNG) for member, identity in keys.items()
    }
    layout = Layout((("update", (length,), "float32"),), ())
    server = Server(policy, "bench", 1, "train", RNG, roster)
    words = encode(updates(1, length)[0], 1.0, {}, policy, RNG)
    for client in members.values():
        client.open(server.setup)
        server.receive(client.advertise(words, layout))
    for member, cohort in server.cohorts().items():
        server.receive(members[member].share(cohort))
    return members[1], server.inboxes()[1], policy


def _mask(progress: Callable[[str], None]) -> list[Row]:
    length, neighbours = 1_000_000, 10
    progress(f"masking {length} parameters with {neighbours} neighbours")
    client, inbox, policy = _our_client(neighbours, length)
    state, update = client.state, updates(1, length)[0]
    peer, shares = ready_to_mask(64, length, neighbours)
    peer_state = peer.context.state

    def ours() -> None:
        client.state = state
        client.words = encode(update, 1.0, {}, policy, RNG)
        client.mask(inbox).words.tobytes()

    theirs_s = []

    def theirs() -> None:
        # The mod writes into its state, which has to be as before for every repetition.
        peer.context.state = copy.deepcopy(peer_state)
        before = peer.seconds
        peer.collect(shares)
        theirs_s.append(peer.seconds - before)

    ours_s, bare_s = [], []
    for _ in range(REPEATS + 1):  # in turns, so that a busy machine slows all three alike
        theirs()
        ours_s.append(_cpu_seconds(ours, 5, 1))
        bare_s.append(_cpu_seconds(lambda: _bare_keystream(length, neighbours, policy), 5, 1))
    value = float(np.median(ours_s[1:]))
    note = "d=1e6, 10 neighbours: clip, quantise, open the shares, mask, serialise; 21-bit lanes"
    return [
        lower_is_better(
            "client_mask_seconds", value, "s", NAME, float(np.median(theirs_s[1:])), note
        ),
        Row(
            "keystream_fraction",
            float(np.median(bare_s[1:])) / value,
            "",
            None,
            None,
            None,
            "share of it that the bare AES-256-CTR keystream of its 11 masks and of its rounding "
            "takes, drawn into a buffer that stays in the cache",
        ),
    ]


def _bare_keystream(length: int, neighbours: int, policy: Policy) -> None:
    """Draw as much keystream as a client's masks and rounding need, and do nothing with it."""
    size = 1 << 17
    zeros, out = memoryview(bytes(size)), memoryview(bytearray(size))
    masks = [8 * policy.plan.words(length)] * (neighbours + 1)
    for count in (*masks, 4 * length):
        stream = Cipher(algorithms.AES(bytes(32)), modes.CTR(bytes(16))).encryptor()
        for start in range(0, count, size):
            left = min(size, count - start)
            stream.update_into(zeros[:left], out[:left])


def _upload(progress: Callable[[str], None]) -> list[Row]:
    """Count what one of 64 clients sends: in the masking trip, and in the whole session."""
    count, length = 64, 1_000_000
    progress(f"upload of one client among {count} (the peer deals its shares for a minute)")
    our_vector, our_all = _our_uploads(count, length)
    their_vector, their_all = peer_uploads(count, length)
    return [
        lower_is_better(
            "upload_bytes_per_parameter",
            our_all / length,
            "B",
            NAME,
            their_all / length,
            "n=64, d=1e6, complete graph: all that a client sends in a session",
        ),
        lower_is_better(
            "masked_vector_bytes_per_parameter",
            our_vector / length,
            "B",
            NAME,
            their_vector / length,
            "n=64, d=1e6: the masking trip alone",
        ),
    ]


def _our_uploads(count: int, length: int) -> tuple[int, int]:
    """Return the bytes of the masking trip and of all trips of one client, as Flower sends them."""
    lanes = LanePlan(bound=1.0, levels=1 << 15, lane=21, clients=count)
    policy = Policy(lanes)
    keys, roster = identities(count, RNG)
    members = {
        member: Client(identity, roster, policy, "bench", RNG) for member, identity in keys.items()
    }
    layout = Layout((("update", (length,), "float32"),), ())
    words = encode(updates(1, length)[0], 1.0, {}, policy, RNG)
    server = Server(policy, "bench", 1, "train", RNG, roster)
    sent: list[int] = []

    def advertise(client: Client, setup: Setup) -> Advert:
        client.open(setup)
        return client.advertise(words, layout)

    trips = [
        ("advertise", lambda: dict.fromkeys(members, server.setup), advertise),
        ("share", server.cohorts, Client.share),
        ("mask", server.inboxes, Client.mask),
        ("commit", server.survivors, Client.commit),
        ("unmask", server.unmask_requests, Client.unmask),
    ]
    for name, outgoing, step in trips:
        for member, message in outgoing().items():
            answer = step(members[member], message)
            server.receive(answer)
            if member == 1:
                sent.append(upload_bytes(name, answer))
    server.result()
    return sent[2], sum(sent)


def _shamir(progress: Callable[[str], None]) -> list[Row]:
    count, threshold = 101, 51
    progress(f"sharing a key among {count}")
    secret = random_secret(RNG)
    points = list(range(1, count + 1))

    def ours() -> None:
        shares = split(secret, threshold, points, RNG)
        if combine(dict(list(shares.items())[50:]), threshold) != secret:
            raise RuntimeError("the secret did not come back")

    pem = generate_key_pairs()[0].private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )

    def theirs() -> None:
        if combine_shares(create_shares(pem, threshold, count)[50:]) != pem:
            raise RuntimeError("the peer's secret did not come back")

    note = "n=101, t=51; each side shares the secret it has: a 32-byte seed, a key in PEM"
    value = _cpu_seconds(ours, REPEATS)
    return [
        lower_is_better(
            "shamir_split_combine_seconds", value, "s", NAME, _cpu_seconds(theirs, 1, 0), note
        )
    ]


def _rank(numbers: Iterable[int]) -> int:
    """Return the dimension over GF(2) that the differences of bit strings span."""
    first, *rest = numbers
    basis: list[int] = []
    for number in rest:
        value = number ^ first
        for each in basis:
            value = min(value, value ^ each)
        if value:
            basis.append(value)
    return len(basis)


def _spanned(seeds: list[int], free: int) -> list[int]:
    """Return 2^free seeds that differ from the first as the observed ones do."""
    basis: list[int] = []
    for seed in seeds[1:]:
        value = seed ^ seeds[0]
        for each in basis:
            value = min(value, value ^ each)
        if value:
            basis.append(value)
    candidates = [seeds[0]]
    for each in basis[:free]:
        candidates += [candidate ^ each for candidate in candidates]
    return candidates


def _seeds(progress: Callable[[str], None]) -> list[Row]:
    """Count the bits that vary from key to key, and time the search through them."""
    samples, free = 400, 14
    progress(f"bits of {samples} mask seeds, and a search through 2^{free} of them")
    secret, _ = generate_key_pairs()
    shared = [generate_shared_key(secret, generate_key_pairs()[1]) for _ in range(samples)]
    seeds = [folded(key) for key in shared]
    theirs = _rank(seeds)
    mine = X25519PrivateKey.generate()
    ours = _rank(
        int.from_bytes(
            pair_mask_key(
                mine, X25519PrivateKey.generate().public_key().public_bytes_raw(), b"", 1, 2
            )
        )
        for _ in range(samples)
    )
    # The mask of the first key; its seed is hidden among candidates that other keys could have.
    mask = pseudo_rand_gen(shared[0], MODULUS, [(8,)])[0]
    candidates = sorted(_spanned(seeds, free))
    start = time.process_time()
    found = [seed for seed in candidates if explains(mask, seed)]
    seconds = time.process_time() - start
    if found != [seeds[0]]:
        raise RuntimeError("the search did not find the peer's seed")
    per_seed = seconds / len(candidates)
    note = (
        f"dimension spanned by {samples} keys; the peer's seed was found among {len(candidates)} "
        f"in {seconds:.2f} CPU s"
    )
    return [
        higher_is_better("seed_bits", ours, "bits", NAME, theirs, note),
        higher_is_better(
            "seed_search_seconds",
            per_seed * 2.0**ours,
            "s",
            NAME,
            per_seed * 2.0**theirs,
            "CPU time of the whole search, extrapolated from the measured part",
        ),
    ]


def _attacks(progress: Callable[[str], None]) -> list[Row]:
    progress(f"{len(ATTACKS)} attacks against both")
    ours = {attack.name: refused(attack.ours) for attack in ATTACKS}
    theirs = {attack.name: refused(attack.theirs) for attack in ATTACKS}
    passed = ", ".join(name for name, held in theirs.items() if not held)
    note = f"of {len(ATTACKS)}; the peer accepts: {passed}"
    if not all(ours.values()):
        note += "; ACCEPTED HERE: " + ", ".join(name for name, held in ours.items() if not held)
    return [
        higher_is_better(
            "attacks_refused", sum(ours.values()), "1", NAME, sum(theirs.values()), note
        )
    ]


def _server(progress: Callable[[str], None]) -> list[Row]:
    count, length, gone = 50, 10_000, [1, 11, 21, 31, 41]
    progress(f"server with {count} clients, {len(gone)} dropouts (the peer takes minutes)")
    vectors = updates(count, length)
    aggregator = LocalAggregator(Policy(plan(64, 1.0, 1e-5, max_weight=1)))

    def once() -> float:
        timings = Session()
        aggregator.aggregate(vectors, {"mask": gone}, timings)
        return timings.server_s

    once()
    value = float(np.median([once() for _ in range(REPEATS)]))
    seconds, mean, errors = run_workflow(count, length, {3: gone})
    if mean is None:
        raise RuntimeError(f"the peer lost its round: {errors[:1]}")
    note = "n=50, d=1e4, 5 dropouts, complete graph; ours in active mode, five trips"
    return [lower_is_better("server_seconds", value, "s", NAME, seconds, note)]


def _growth(progress: Callable[[str], None]) -> list[Row]:
    rows = []
    for cell in sweep(progress, largest=100):
        name = f"n{cell.clients}_d{cell.length}"
        note = f"active, {cell.dropouts} dropouts, {cell.neighbours} neighbours"
        rows.append(Row(f"growth_client_seconds_{name}", cell.client_s, "s", note=note))
        rows.append(Row(f"growth_server_seconds_{name}", cell.server_s, "s", note=note))
    return rows
