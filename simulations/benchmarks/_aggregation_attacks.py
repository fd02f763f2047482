"""The attacks on secure aggregation, each run for real against both protocols.

An attack returns whether the attacker got what it wanted. It is refused if it got nothing, or if
the honest side raised.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from flwr.common import bytes_to_ndarray
from flwr.common.secure_aggregation.crypto.shamir import combine_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import (
    decrypt,
    encrypt,
    generate_shared_key,
)
from flwr.common.secure_aggregation.secaggplus_utils import (
    pseudo_rand_gen,
    share_keys_plaintext_concat,
    share_keys_plaintext_separate,
)
from flwr.supercore.primitives.asymmetric import (
    bytes_to_private_key,
    bytes_to_public_key,
    generate_key_pairs,
    public_key_to_bytes,
)
from numpy.typing import NDArray

from secure.aggregation import (
    Client,
    LanePlan,
    Layout,
    Policy,
    Server,
    encode,
    identities,
    integer_plan,
)
from secure.aggregation._messages import Bundle, Cohort, UnmaskRequest
from secure.errors import SecureError
from secure.random import SecureRandom, keystream
from simulations.benchmarks._secaggplus import (
    CLIP,
    LEVELS,
    MODULUS,
    PeerClient,
    run_workflow,
    updates,
)

LENGTH = 16
COUNT = 4
RNG = SecureRandom()


@dataclass(frozen=True)
class Attack:
    """An attack by name: what was tried, and its run against either side."""

    name: str
    ours: Callable[[], bool]
    theirs: Callable[[], bool]


def refused(attack: Callable[[], bool]) -> bool:
    """Run an attack: True where the attacker got nothing.

    An error counts as a refusal only if it is one that the protocol raises on purpose.
    """
    try:
        return not attack()
    except (SecureError, ValueError, KeyError):
        return True


# --- our side ------------------------------------------------------------------------------------


@cache
def _keys(count: int):
    return identities(count, RNG)


class _Ours:
    """An active cohort, driven trip by trip."""

    def __init__(self, count: int = COUNT, **terms: Any) -> None:
        self.identities, self.roster = _keys(COUNT)
        lanes = LanePlan(bound=1.0, levels=1001, lane=32, clients=64)
        self.policy = Policy(**{"plan": lanes, "corrupt": 0.0, **terms})
        self.layout = Layout((("vector", (LENGTH,), "float32"),), ())
        members = list(self.identities)[:count]
        self.clients = {member: self._client(member) for member in members}
        self.server = self.opened(self.policy)

    def _client(self, member: int) -> Client:
        return Client(self.identities[member], self.roster, self.policy, "run", RNG)

    def opened(self, policy: Policy, round_number: int = 1) -> Server:
        """Return a server with other terms or another round."""
        return Server(policy, "run", round_number, "train", RNG, self.roster)

    def advertise(self, member: int, server: Server | None = None):
        """Open a session and get a member's keys."""
        client = self.clients[member]
        client.open((server or self.server).setup)
        words = encode(np.full(LENGTH, 0.1), 1.0, {}, self.policy, RNG)
        return client.advertise(words, self.layout)

    def to(self, trip: str) -> Mapping[int, Any]:
        """Run honestly up to a trip, and return its messages."""
        for member in self.clients:
            self.server.receive(self.advertise(member))
        closing = {
            "share": self.server.inboxes,
            "mask": self.server.survivors,
            "commit": self.server.unmask_requests,
        }
        outgoing: Mapping[int, Any] = self.server.cohorts()
        for step, close in closing.items():
            if step == trip:
                return outgoing
            for member, message in outgoing.items():
                self.server.receive(getattr(self.clients[member], step)(message))
            outgoing = close()
        return outgoing

    def bundles(self) -> list[Bundle]:
        """Return everybody's keys."""
        return [Bundle.from_bytes(data) for data in self.to("share")[1].bundles]

    def shares_with(self, bundles: list[Bundle]) -> bool:
        """Tell whether client 1 deals shares to this cohort."""
        cohort = Cohort(self.server.setup.session, tuple(each.to_bytes() for each in bundles))
        return bool(self.clients[1].share(cohort).ciphertexts)


def _public() -> bytes:
    return X25519PrivateKey.generate().public_key().public_bytes_raw()


def _our_unmask(**changes: Any) -> bool:
    ours = _Ours()
    request = ours.to("unmask")[1]
    return bool(ours.clients[1].unmask(replace(request, **changes)).shares)


def _our_second_unmask() -> bool:
    ours = _Ours()
    request = ours.to("unmask")[1]
    ours.clients[1].unmask(request)
    return bool(ours.clients[1].unmask(replace(request, members=(1, 2, 3))).shares)


def _our_swapped_keys() -> bool:
    ours = _Ours()
    first, *others = ours.bundles()
    forged = [replace(each, channel_key=_public(), mask_key=_public()) for each in others]
    return ours.shares_with([first, *forged])


def _our_sybil() -> bool:
    ours = _Ours()
    stranger, _ = identities(1, RNG)
    first = ours.bundles()[0]
    fake = Bundle.signed(
        stranger[1],
        ours.server.setup.session,
        9,
        _public(),
        _public(),
        first.commitment,
        first.layout,
    )
    return ours.shares_with([*map(Bundle.from_bytes, _cohort_bytes(ours)), fake])


def _cohort_bytes(ours: _Ours) -> list[bytes]:
    return [bundle.to_bytes() for bundle in ours.server._in.bundles.values()]


def _our_repeated_keys() -> bool:
    ours = _Ours()
    bundles = ours.bundles()
    bundles[1] = Bundle.signed(
        ours.identities[2],
        ours.server.setup.session,
        2,
        bundles[2].channel_key,
        bundles[2].mask_key,
        bundles[1].commitment,
        bundles[1].layout,
    )
    return ours.shares_with(bundles)


def _our_replayed_round() -> bool:
    ours = _Ours()
    ours.to("commit")
    again = ours.opened(ours.policy)
    return bool(ours.advertise(1, again).bundle)


def _our_weaker(**terms: Any) -> bool:
    ours = _Ours()
    return bool(ours.advertise(1, ours.opened(replace(ours.policy, **terms))).bundle)


def _our_cohort_of_two() -> bool:
    ours = _Ours(min_clients=2)
    return ours.shares_with(ours.bundles()[:2])


def _our_split_views() -> bool:
    ours = _Ours()
    told = ours.to("commit")
    signatures: dict[tuple[int, ...], dict[int, bytes]] = {}
    for member, survivors in told.items():
        members = (1, 2, 3) if member in (1, 2) else (2, 3, 4)
        pairs = zip(survivors.signers, survivors.receipts, strict=True)
        kept = [(signer, receipt) for signer, receipt in pairs if signer in members]
        view = replace(
            survivors,
            members=members,
            signers=tuple(signer for signer, _ in kept),
            receipts=tuple(receipt for _, receipt in kept),
        )
        commit = ours.clients[member].commit(view)
        signatures.setdefault(members, {})[member] = commit.signature
    members, signed = next(iter(signatures.items()))
    request = UnmaskRequest(
        ours.server.setup.session, members, tuple(signed), tuple(signed.values())
    )
    return bool(ours.clients[1].unmask(request).shares)


def _our_wrong_share() -> bool:
    ours = _Ours()
    for member, request in ours.to("unmask").items():
        reveal = ours.clients[member].unmask(request)
        if member == 2:
            reveal = replace(reveal, shares=tuple(bytes(32) for _ in reveal.shares))
        ours.server.receive(reveal)
    summed = ours.server.result()
    return not (len(summed.survivors) == COUNT and {each.member for each in summed.faults} == {2})


def _our_nan() -> bool:
    encode(np.full(LENGTH, np.nan), 1.0, {}, _Ours().policy, RNG)
    return True


def _our_early_dropout() -> bool:
    ours = _Ours()
    cohorts = ours.to("share")
    for member, message in cohorts.items():
        if member != 2:
            ours.server.receive(ours.clients[member].share(message))
    for member, message in ours.server.inboxes().items():
        ours.server.receive(ours.clients[member].mask(message))
    for member, message in ours.server.survivors().items():
        ours.server.receive(ours.clients[member].commit(message))
    for member, message in ours.server.unmask_requests().items():
        ours.server.receive(ours.clients[member].unmask(message))
    return ours.server.result().survivors != (1, 3, 4)


def _our_small_seed() -> bool:
    """Tell whether the folded 32-bit seed of a key explains what that key masks."""
    key = RNG.token(32)
    mask = (keystream(key, 8) % np.uint64(MODULUS)).astype(np.int64)
    return explains(mask, folded(key))


def _our_plaintext() -> bool:
    ours = _Ours()
    policy = replace(ours.policy, plan=integer_plan(64, 1000), clip=False)
    value = np.arange(LENGTH, dtype=np.float64)
    words = encode(value, 777.0, {"loss": 2.5}, policy, RNG)
    ours.layout = Layout((("vector", (LENGTH,), "float64"),), ("loss",))
    ours.policy = policy
    ours.clients = {member: ours._client(member) for member in ours.clients}
    ours.server = ours.opened(policy)
    for client in ours.clients.values():
        client.open(ours.server.setup)
        ours.server.receive(client.advertise(words, ours.layout))
    sent: list[bytes] = []
    for member, message in ours.server.cohorts().items():
        ours.server.receive(ours.clients[member].share(message))
    for member, message in ours.server.inboxes().items():
        sent.append(ours.clients[member].mask(message).words.tobytes())
    plain = words[-2:].tobytes()
    return any(plain in each or plain[:8] in each for each in sent)


def _our_kept_secrets() -> bool:
    ours = _Ours()
    request = ours.to("unmask")[1]
    ours.clients[1].unmask(request)
    kept = ours.clients[1].state.to_fields().values()
    return any(isinstance(value, bytes | list) for value in kept) or (
        ours.clients[1].words is not None
    )


# --- the peer's side -----------------------------------------------------------------------------


class _Theirs:
    """A cohort of SecAgg+ with three clients, driven stage by stage."""

    def __init__(self, count: int = 3, threshold: int = 2, modulus: int = MODULUS) -> None:
        self.modulus = modulus
        self.clients = {
            node: PeerClient(node, update) for node, update in enumerate(updates(count, LENGTH), 1)
        }
        self.keys = {
            node: each.setup(count, count, threshold, modulus)
            for node, each in self.clients.items()
        }

    def share(self) -> None:
        """Run the stage honestly."""
        self.sent = {node: each.share(self.keys) for node, each in self.clients.items()}

    def collect(self, node: int) -> list[bytes]:
        """Get one client's masked vectors, honestly."""
        inbox = {peer: to[node] for peer, to in self.sent.items() if peer != node}
        return self.clients[node].collect(inbox)

    def masked(self) -> dict[int, list[bytes]]:
        """Run up to the masked vectors."""
        self.share()
        return {node: self.collect(node) for node in self.clients}


def _levels_of(victim: PeerClient) -> NDArray:
    """Return the levels that a victim's update lies at, before random rounding."""
    return (np.clip(victim.update, -CLIP, CLIP) + CLIP) * (LEVELS / (2 * CLIP))


def _opened(masked: list[bytes], masks: list[list[NDArray]], victim: PeerClient) -> bool:
    """Tell whether a masked vector less its masks is the victim's update."""
    vectors = [bytes_to_ndarray(each) for each in masked]
    for mask in masks:
        vectors = [vector - each for vector, each in zip(vectors, mask, strict=True)]
    return bool(np.abs(vectors[1] % MODULUS - _levels_of(victim)).max() <= 1)


def _pair(secret: bytes, public: bytes, me: int, peer: int) -> list[NDArray]:
    key = generate_shared_key(bytes_to_private_key(secret), bytes_to_public_key(public))
    mask = pseudo_rand_gen(key, MODULUS, [(), (LENGTH,)])
    return mask if me > peer else [-each for each in mask]


def _open_with_shares(theirs: _Theirs, masked: Mapping, shares: list[tuple[int, bytes]]) -> bool:
    """Open client 1 from shares of its own mask and of the others' keys."""
    grouped: dict[int, list[bytes]] = {}
    for owner, share in shares:
        grouped.setdefault(owner, []).append(share)
    seed = combine_shares(grouped[1])
    masks = [pseudo_rand_gen(seed, MODULUS, [(), (LENGTH,)])]
    for peer in (2, 3):
        secret = combine_shares(grouped[peer])
        # What a dropped peer's secret opens is the pairwise mask, from either side the same.
        masks.append(_pair(secret, theirs.keys[1][0], 1, peer))
    return _opened(masked[1], masks, theirs.clients[1])


def _their_both_shares() -> bool:
    theirs = _Theirs()
    masked = theirs.masked()
    shares: list[tuple[int, bytes]] = []
    for client in theirs.clients.values():
        # Everybody is alive, and everybody is dead: the answer holds both kinds, in this order.
        answer = client.unmask([1, 2, 3], [1, 2, 3])
        shares += [answer[0], answer[4], answer[5]]
    return _open_with_shares(theirs, masked, shares)


def _their_duplicates() -> bool:
    theirs = _Theirs()
    masked = theirs.masked()
    shares: list[tuple[int, bytes]] = []
    for client in theirs.clients.values():
        answer = client.unmask([1, 1], [2, 3])
        shares += answer[1:]
    return _open_with_shares(theirs, masked, shares)


def _their_second_unmask() -> bool:
    theirs = _Theirs()
    theirs.masked()
    client = theirs.clients[1]
    client.unmask([1, 2, 3], [])
    return bool(client.unmask([1, 2], [3]))


def _fake_cohort() -> tuple[_Theirs, dict[int, tuple]]:
    theirs = _Theirs()
    fakes = {peer: (generate_key_pairs(), generate_key_pairs()) for peer in (2, 3)}
    told = {1: theirs.keys[1]}
    for peer, (one, two) in fakes.items():
        told[peer] = [public_key_to_bytes(one[1]), public_key_to_bytes(two[1])]
    theirs.sent = {1: theirs.clients[1].share(told)}
    return theirs, fakes


def _their_swapped_keys() -> bool:
    """The server is everybody else: it holds their keys, their shares, and so the victim."""
    theirs, fakes = _fake_cohort()
    shares = []
    for peer, (_, (secret, _)) in fakes.items():
        key = generate_shared_key(secret, bytes_to_public_key(theirs.keys[1][1]))
        plain = decrypt(key, theirs.sent[1][peer])
        shares.append(share_keys_plaintext_separate(plain)[2])
    inbox = {}
    for peer, (_, (secret, _)) in fakes.items():
        key = generate_shared_key(secret, bytes_to_public_key(theirs.keys[1][1]))
        inbox[peer] = encrypt(key, share_keys_plaintext_concat(peer, 1, b"x" * 20, b"y" * 20))
    masked = theirs.clients[1].collect(inbox)
    masks = [pseudo_rand_gen(combine_shares(shares), MODULUS, [(), (LENGTH,)])]
    for peer, ((secret, _), _) in fakes.items():
        key = generate_shared_key(secret, bytes_to_public_key(theirs.keys[1][0]))
        mask = pseudo_rand_gen(key, MODULUS, [(), (LENGTH,)])
        masks.append(mask if peer < 1 else [-each for each in mask])
    return _opened(masked, masks, theirs.clients[1])


def _their_sybil() -> bool:
    theirs = _Theirs()
    fake = [public_key_to_bytes(generate_key_pairs()[1]) for _ in range(2)]
    own = theirs.clients[1].setup(4, 4, 2)
    return bool(theirs.clients[1].share({**theirs.keys, 1: own, 9: fake}))


def _their_repeated_keys() -> bool:
    theirs = _Theirs()
    return bool(theirs.clients[1].share({**theirs.keys, 2: theirs.keys[3]}))


def _their_replayed_round() -> bool:
    theirs = _Theirs()
    theirs.masked()
    return bool(theirs.clients[1].setup(3, 3, 2))


def _their_changed(**changes: int) -> bool:
    theirs = _Theirs(**changes)
    return bool(theirs.masked())


def _their_split_views() -> bool:
    theirs = _Theirs()
    theirs.masked()
    views = {1: ([1, 2], [3]), 2: ([2, 3], [1]), 3: ([1, 3], [2])}
    return all(bool(theirs.clients[node].unmask(*view)) for node, view in views.items())


def _their_wrong_share() -> bool:
    """Tell whether a wrong share goes by, or stops the sum without a name."""
    theirs = _Theirs()
    theirs.masked()
    shares = [client.unmask([1, 2, 3], [])[0][1] for client in theirs.clients.values()]
    right = combine_shares(shares)
    wrong = [shares[0][:-1] + bytes([shares[0][-1] ^ 1]), *shares[1:]]
    try:
        return combine_shares(wrong) != right
    except ValueError as error:
        return "1" not in str(error)


def _their_nan() -> bool:
    theirs = _Theirs()
    theirs.clients[1].update = np.full(LENGTH, np.nan, dtype=np.float32)
    with np.errstate(invalid="ignore"):
        return bool(theirs.masked())


def _their_early_dropout() -> bool:
    _, mean, _ = run_workflow(4, LENGTH, {2: [2]})
    return mean is None


def folded(key: bytes) -> int:
    """Fold a key as `pseudo_rand_gen` does: its 4-byte pieces XORed."""
    seed = 0
    for start in range(0, len(key), 4):
        seed ^= int.from_bytes(key[start : start + 4], "little")
    return seed


def explains(mask: NDArray[np.int64], seed: int) -> bool:
    """Tell whether a 32-bit seed alone reproduces a mask."""
    drawn = np.random.RandomState(seed).randint(0, MODULUS - 1, len(mask), dtype=np.int64)
    return bool(np.array_equal(mask, drawn))


def _their_small_seed() -> bool:
    key = generate_shared_key(generate_key_pairs()[0], generate_key_pairs()[1])
    return explains(pseudo_rand_gen(key, MODULUS, [(8,)])[0], folded(key))


def _their_plaintext() -> bool:
    theirs = _Theirs()
    theirs.masked()
    answer = theirs.clients[1].answer
    examples = answer.metric_records["fitres.num_examples"]["num_examples"]
    loss = answer.config_records["fitres.metrics"]["loss"]
    return examples == theirs.clients[1].examples and loss == 2.5


def _their_kept_secrets() -> bool:
    theirs = _Theirs()
    theirs.masked()
    client = theirs.clients[1]
    client.unmask([1, 2, 3], [])
    kept: Any = client.context.state.config_records["secaggplus_state"]
    return bool(kept["sk1"] and kept["rd_seed"])


ATTACKS = (
    Attack(
        "both kinds of share",
        lambda: _our_unmask(members=(1, 2, 3, 4, 1, 2, 3, 4)),
        _their_both_shares,
    ),
    Attack("duplicate survivors", lambda: _our_unmask(members=(1, 1, 2, 3)), _their_duplicates),
    Attack("second unmask request", _our_second_unmask, _their_second_unmask),
    Attack("keys swapped by the server", _our_swapped_keys, _their_swapped_keys),
    Attack("made-up members", _our_sybil, _their_sybil),
    Attack("repeated keys", _our_repeated_keys, _their_repeated_keys),
    Attack("a round opened twice", _our_replayed_round, _their_replayed_round),
    Attack(
        "threshold of one",
        lambda: _our_weaker(threshold=0.5),
        lambda: _their_changed(threshold=1),
    ),
    Attack("cohort of two", _our_cohort_of_two, lambda: _their_changed(count=2, threshold=2)),
    Attack(
        "modulus of two",
        lambda: _our_weaker(plan=LanePlan(1.0, 2, 16, 64)),
        lambda: _their_changed(modulus=2),
    ),
    Attack("split survivor sets", _our_split_views, _their_split_views),
    Attack("wrong share, unnamed", _our_wrong_share, _their_wrong_share),
    Attack("NaN in an update", _our_nan, _their_nan),
    Attack("dropout while sharing", _our_early_dropout, _their_early_dropout),
    Attack("32-bit seed of a mask", _our_small_seed, _their_small_seed),
    Attack("counts and metrics in clear", _our_plaintext, _their_plaintext),
    Attack("secrets kept after the round", _our_kept_secrets, _their_kept_secrets),
)
