"""The same attacks, run against Flower's SecAgg+.

Each returns whether the attacker got what it wanted; where the honest side raises, it got nothing.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
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

from simulations.benchmarks._secaggplus import (
    CLIP,
    LENGTH,
    LEVELS,
    MODULUS,
    PeerClient,
    explains,
    folded,
    run_workflow,
    updates,
)


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


def both_shares() -> bool:
    theirs = _Theirs()
    masked = theirs.masked()
    shares: list[tuple[int, bytes]] = []
    for client in theirs.clients.values():
        # Everybody is alive, and everybody is dead: the answer holds both kinds, in this order.
        answer = client.unmask([1, 2, 3], [1, 2, 3])
        shares += [answer[0], answer[4], answer[5]]
    return _open_with_shares(theirs, masked, shares)


def duplicates() -> bool:
    theirs = _Theirs()
    masked = theirs.masked()
    shares: list[tuple[int, bytes]] = []
    for client in theirs.clients.values():
        answer = client.unmask([1, 1], [2, 3])
        shares += answer[1:]
    return _open_with_shares(theirs, masked, shares)


def second_unmask() -> bool:
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


def swapped_keys() -> bool:
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


def sybil() -> bool:
    theirs = _Theirs()
    fake = [public_key_to_bytes(generate_key_pairs()[1]) for _ in range(2)]
    own = theirs.clients[1].setup(4, 4, 2)
    return bool(theirs.clients[1].share({**theirs.keys, 1: own, 9: fake}))


def repeated_keys() -> bool:
    theirs = _Theirs()
    return bool(theirs.clients[1].share({**theirs.keys, 2: theirs.keys[3]}))


def replayed_round() -> bool:
    theirs = _Theirs()
    theirs.masked()
    return bool(theirs.clients[1].setup(3, 3, 2))


def changed(**changes: int) -> bool:
    theirs = _Theirs(**changes)
    return bool(theirs.masked())


def split_views() -> bool:
    theirs = _Theirs()
    theirs.masked()
    views = {1: ([1, 2], [3]), 2: ([2, 3], [1]), 3: ([1, 3], [2])}
    return all(bool(theirs.clients[node].unmask(*view)) for node, view in views.items())


def wrong_share() -> bool:
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


def nan() -> bool:
    theirs = _Theirs()
    theirs.clients[1].update = np.full(LENGTH, np.nan, dtype=np.float32)
    with np.errstate(invalid="ignore"):
        return bool(theirs.masked())


def early_dropout() -> bool:
    _, mean, _ = run_workflow(4, LENGTH, {2: [2]})
    return mean is None


def small_seed() -> bool:
    key = generate_shared_key(generate_key_pairs()[0], generate_key_pairs()[1])
    return explains(pseudo_rand_gen(key, MODULUS, [(8,)])[0], folded(key))


def plaintext() -> bool:
    theirs = _Theirs()
    theirs.masked()
    answer = theirs.clients[1].answer
    examples = answer.metric_records["fitres.num_examples"]["num_examples"]
    loss = answer.config_records["fitres.metrics"]["loss"]
    return examples == theirs.clients[1].examples and loss == 2.5


def kept_secrets() -> bool:
    theirs = _Theirs()
    theirs.masked()
    client = theirs.clients[1]
    client.unmask([1, 2, 3], [])
    kept: Any = client.context.state.config_records["secaggplus_state"]
    return bool(kept["sk1"] and kept["rd_seed"])
