"""What each key, commitment and signature of a session is bound to.

Client and server call the same functions, so that a role, a direction or a session can't be
mixed up between the two.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from secure._hashing import digest
from secure.aggregation._graph import neighbourhoods
from secure.aggregation._keys import agree, derive, exchange
from secure.errors import IntegrityError


def cohort_hash(session: bytes, bundles: Sequence[bytes]) -> bytes:
    """Hash of all signed bundles: the roster of this session."""
    return digest("cohort", session, list(bundles))


# 2^15 blocks of 1 KiB: 32 MiB, and 0.1 to 0.2 s of a core a graph.
_SCRYPT_BLOCKS, _SCRYPT_SIZE = 1 << 15, 8


@lru_cache(maxsize=16)
def graph_seed(cohort: bytes) -> bytes:
    """Seed of a sparse graph's permutation: scrypt (RFC 7914) of the cohort's hash.

    A member that works with the server may sign new keys, once all the others' are known, until
    the graph suits the two. It needs no message for that, so each try is made to cost time and
    memory.
    """
    kdf = Scrypt(digest("graph", cohort), 32, _SCRYPT_BLOCKS, _SCRYPT_SIZE, 1)
    return kdf.derive(cohort)


def graph(cohort: bytes, members: tuple[int, ...], neighbours: int) -> dict[int, tuple[int, ...]]:
    """Who masks with whom in a cohort; in the complete graph there is nothing to draw."""
    complete = neighbours == len(members) - 1
    return neighbourhoods(members, neighbours, b"" if complete else graph_seed(cohort))


def mask_private_key(mask_seed: bytes, session: bytes, member: int) -> X25519PrivateKey:
    """X25519 key that a member's pairwise masks come from."""
    return X25519PrivateKey.from_private_bytes(derive(mask_seed, "mask key", session, member))


def mask_public_key(mask_seed: bytes, session: bytes, member: int) -> bytes:
    """Public half of `mask_private_key`, 32 bytes."""
    return mask_private_key(mask_seed, session, member).public_key().public_bytes_raw()


def self_commitment(self_seed: bytes, session: bytes, member: int) -> bytes:
    """Commitment to the seed of a member's own mask; hiding, since the seed is uniform."""
    return digest("self commitment", session, member, self_seed)


def share_commitment(cohort: bytes, kind: str, dealer: int, holder: int, share: bytes) -> bytes:
    """Commitment to one share; hiding, since a share is uniform on its own."""
    return digest("share", cohort, kind, dealer, holder, share)


def channel_keys(
    private_key: X25519PrivateKey, public_key: bytes, cohort: bytes, member: int, peer: int
) -> tuple[bytes, bytes]:
    """Keys of both directions between two members: what seals for the peer, what opens from it."""
    shared = exchange(private_key, public_key)
    sealing = derive(shared, "shares", cohort, member, peer)
    return sealing, derive(shared, "shares", cohort, peer, member)


def channel_data(cohort: bytes, sender: int, recipient: int, commitments: bytes) -> bytes:
    """Associated data of the encrypted shares."""
    return digest("shares", cohort, sender, recipient, commitments)


def self_mask_key(self_seed: bytes, cohort: bytes, member: int) -> bytes:
    """Keystream key of a member's own mask."""
    return derive(self_seed, "self mask", cohort, member)


def pair_mask_key(
    private_key: X25519PrivateKey, public_key: bytes, cohort: bytes, one: int, other: int
) -> bytes:
    """Keystream key of the mask between two members, the same from both sides."""
    return agree(private_key, public_key, "pair mask", cohort, min(one, other), max(one, other))


def dealers_hash(cohort: bytes, dealers: Sequence[int]) -> bytes:
    """Hash of the members who dealt shares."""
    return digest("dealers", cohort, list(dealers))


def receipt_text(dealers: bytes, member: int) -> bytes:
    """What a member signs beside its masked vector: whom it masked with."""
    return digest("receipt", dealers, member)


def commit_text(dealers: bytes, survivors: Sequence[int]) -> bytes:
    """What a member signs in trip 4: who dealt, and whose vectors are summed."""
    return digest("commit", dealers, list(survivors))


def check_ascending(members: Sequence[int], what: str) -> None:
    """Refuse a list of members that repeats one or is out of order.

    Raises:
        IntegrityError: The list is not strictly ascending.
    """
    if any(later <= earlier for earlier, later in pairwise(members)):
        raise IntegrityError(f"{what} must be in ascending order, each once")
