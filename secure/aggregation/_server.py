"""The server's side of the protocol: it relays, sums, and removes the masks from the sum alone.

Nothing here is trusted by the clients. The server's own checks serve robustness: a client that
misbehaves is named and left out, so that it can't spoil the round of the others unseen.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from secure.aggregation import _binding as bind
from secure.aggregation._keys import NONCE_BYTES as SEAL_NONCE_BYTES
from secure.aggregation._keys import TAG_BYTES, Roster, Verify, check_public_key, verify
from secure.aggregation._messages import (
    COMMITMENT_BYTES,
    NONCE_BYTES,
    Advert,
    Bundle,
    Cohort,
    Commit,
    Dealt,
    Inbox,
    Masked,
    Reveal,
    Setup,
    Survivors,
    UnmaskRequest,
)
from secure.aggregation._payload import Layout
from secure.aggregation._policy import Policy, Sharing
from secure.aggregation._shamir import SECRET_BYTES, combine
from secure.errors import IntegrityError, PeerError, PolicyError, SecureError
from secure.flower._refusals import StageError
from secure.random import SecureRandom, add_keystreams

_T = TypeVar("_T", str, bytes)
SEALED_BYTES = SEAL_NONCE_BYTES + 2 * SECRET_BYTES + TAG_BYTES


def _short(layout: str) -> str:
    return Layout.from_json(layout).digest.hex()[:16]


@dataclass(frozen=True)
class Fault:
    """Who sent something wrong, and what.

    Attributes:
        member: Id in the roster, or 0 where the sender is not known.
        reason: One line.
    """

    member: int
    reason: str


@dataclass(frozen=True)
class SecureSum:
    """What the server learns.

    Attributes:
        words: Sum modulo 2^64 of the survivors' words.
        survivors: Members in the sum.
        layout: What each vector holds.
        faults: Who sent something wrong on the way, without stopping the round.
    """

    words: NDArray[np.uint64]
    survivors: tuple[int, ...]
    layout: Layout
    faults: tuple[Fault, ...]


@dataclass
class _Inbound:
    """What has arrived so far."""

    bundles: dict[int, Bundle] = field(default_factory=dict)
    keys: set[bytes] = field(default_factory=set)
    layouts: dict[int, str] = field(default_factory=dict)
    dealt: dict[int, dict[int, tuple[bytes, bytes]]] = field(default_factory=dict)
    own_commitments: dict[int, bytes] = field(default_factory=dict)
    receipts: dict[int, bytes] = field(default_factory=dict)
    signatures: dict[int, bytes] = field(default_factory=dict)
    reveals: dict[int, dict[int, bytes]] = field(default_factory=dict)


class Server:
    """One session: give each trip's messages out, take the answers in, and go on.

    Call `receive` for every answer, and between the trips `cohorts`, `inboxes`, in active mode
    `survivors`, `unmask_requests`, and at the end `result`. A client that does not answer simply
    has no answer received.

    Args:
        policy: Terms of the session; what they leave open follows from the roster's size, or
            without a roster from the plan's clients.
        run: Id of the run.
        round_number: Round, from 1.
        kind: `train` or `evaluate`.
        rng: Source of the session's nonce.
        roster: Identities to check the clients against; without it a client with a wrong
            signature is found out by the other clients, and the round is lost.
        check: Signature check.

    Raises:
        PeerError: From every step: too few clients are left, and the round must be abandoned.
    """

    def __init__(
        self,
        policy: Policy,
        run: str,
        round_number: int,
        kind: str,
        rng: SecureRandom,
        roster: Roster | None = None,
        check: Verify = verify,
    ) -> None:
        members = policy.plan.clients if roster is None else len(roster.keys)
        policy = policy.for_roster(members)
        self.setup = Setup(run, round_number, kind, rng.token(NONCE_BYTES), policy)
        self.policy = policy
        self.faults: list[Fault] = []
        self._session = self.setup.session
        self._roster = roster
        self._check = check
        self._stage = "advert"
        self._in = _Inbound()
        self._cohort = b""
        self._layout: Layout | None = None
        self._sharing = Sharing(0, 0, 0)
        self._around: dict[int, tuple[int, ...]] = {}
        self._dealers: tuple[int, ...] = ()
        self._survivors: tuple[int, ...] = ()
        self._total = np.empty(0, dtype=np.uint64)

    def receive(self, message: Advert | Dealt | Masked | Commit | Reveal) -> int:
        """Take one answer in.

        Args:
            message: A client's answer to the current trip.

        Returns:
            The member that sent it.

        Raises:
            IntegrityError: The message is wrong; its sender counts as dropped out, and is
                named in `faults`.
        """
        try:
            if message.session != self._session:
                raise StageError("the answer belongs to another session")
            return self._take(message)
        except SecureError as error:
            self.faults.append(Fault(getattr(message, "sender", 0), str(error)))
            raise

    def _take(self, message: Advert | Dealt | Masked | Commit | Reveal) -> int:
        if isinstance(message, Advert):
            self._need("advert")
            return self._take_advert(message)
        if isinstance(message, Dealt):
            self._need("dealt")
            self._take_shares(message)
        elif isinstance(message, Masked):
            self._need("masked")
            self._take_words(message)
        elif isinstance(message, Commit):
            self._need("commit")
            self._take_signature(message)
        else:
            self._need("reveal")
            self._take_reveal(message)
        return message.sender

    def _take_advert(self, advert: Advert) -> int:
        bundle = Bundle.from_bytes(advert.bundle)
        if bundle.member in self._in.bundles:
            raise IntegrityError(f"member {bundle.member} advertised twice")
        check_public_key(bundle.channel_key)
        check_public_key(bundle.mask_key)
        mine = {bundle.channel_key, bundle.mask_key}
        # Each client refuses a whole cohort in which a key is there twice.
        if len(mine) < 2 or mine & self._in.keys:
            raise IntegrityError(f"member {bundle.member} advertises a key that is there already")
        if self._roster is not None:
            identity = self._roster.keys.get(bundle.member, b"")
            if not self._check(identity, bundle.signature, bundle.signed_text(self._session)):
                raise IntegrityError(f"the keys of member {bundle.member} are not signed by it")
        if Layout.from_json(advert.layout).digest != bundle.layout:
            raise IntegrityError(f"member {bundle.member} signed for another layout")
        self._in.keys |= mine
        self._in.bundles[bundle.member] = bundle
        self._in.layouts[bundle.member] = advert.layout
        return bundle.member

    def _need(self, stage: str) -> None:
        if self._stage != stage:
            raise StageError(f"an answer for {stage!r} came during {self._stage!r}")

    def _abandon(self, left: int, needed: int, what: str) -> None:
        if left < needed:
            self._stage = "abandoned"
            raise PeerError(f"{left} members {what}, {needed} are needed; the round is abandoned")

    def _leave_out(self, what: dict[int, _T], say: Callable[[_T, _T], str]) -> None:
        """Leave out the members that differ from most, and name them."""
        values = list(what.values())
        if not values:
            return
        common = max(sorted(set(values)), key=values.count)  # pyright: ignore[reportArgumentType]
        for member, value in what.items():
            if value != common:
                del self._in.bundles[member]
                self.faults.append(Fault(member, say(value, common)))

    def cohorts(self) -> dict[int, Cohort]:
        """Close trip 1: the message of trip 2 by member.

        Raises:
            PeerError: Too few clients sent keys.
        """
        self._need("advert")
        # What most of them agree on: a client that was asked something else is refused by them.
        asked = {member: bundle.question for member, bundle in self._in.bundles.items()}
        self._leave_out(asked, lambda got, common: "was asked something else than the others")
        self._leave_out(
            {member: self._in.layouts[member] for member in self._in.bundles},
            lambda got, common: (
                f"layout or schema {_short(got)}, expected {_short(common)} as the others"
            ),
        )
        for layout in {self._in.layouts[member] for member in self._in.bundles}:
            self._layout = Layout.from_json(layout)
        members = tuple(sorted(self._in.bundles))
        try:
            self._sharing = self.policy.sharing(len(members))
        except PolicyError as error:
            self._stage = "abandoned"
            raise PeerError(f"{error}; the round is abandoned") from None
        bundles = tuple(self._in.bundles[member].to_bytes() for member in members)
        self._cohort = bind.cohort_hash(self._session, bundles)
        self._around = bind.graph(self._cohort, members, self._sharing.neighbours)
        self._stage = "dealt"
        return dict.fromkeys(members, Cohort(self._session, bundles))

    def _take_shares(self, dealt: Dealt) -> None:
        me = dealt.sender
        if me in self._in.dealt or dealt.recipients != self._around.get(me):
            raise IntegrityError(f"member {me} dealt twice or to others than its neighbours")
        sizes = [2 * COMMITMENT_BYTES] * len(dealt.recipients) + [COMMITMENT_BYTES]
        if [len(each) for each in dealt.commitments] != sizes or [
            len(each) for each in dealt.ciphertexts
        ] != [SEALED_BYTES] * len(dealt.recipients):
            raise IntegrityError(f"member {me} dealt shares or commitments of a wrong size")
        *pairs, own = dealt.commitments
        self._in.own_commitments[me] = own
        self._in.dealt[me] = {
            peer: (ciphertext, pair)
            for peer, ciphertext, pair in zip(
                dealt.recipients, dealt.ciphertexts, pairs, strict=True
            )
        }

    def _needed(self) -> int:
        return max(self._sharing.quorum, self.policy.fewest)

    def inboxes(self) -> dict[int, Inbox]:
        """Close trip 2: the message of trip 3 by member.

        Raises:
            PeerError: Too few clients dealt shares.
        """
        self._need("dealt")
        self._dealers = tuple(sorted(self._in.dealt))
        self._abandon(len(self._dealers), self._needed(), "dealt shares")
        self._stage = "masked"
        boxes = {}
        for member in self._dealers:
            senders = tuple(peer for peer in self._around[member] if peer in self._in.dealt)
            sent = [self._in.dealt[peer][member] for peer in senders]
            ciphertexts = tuple(ciphertext for ciphertext, _ in sent)
            commitments = tuple(commitment for _, commitment in sent)
            boxes[member] = Inbox(self._session, self._dealers, senders, ciphertexts, commitments)
        return boxes

    def _take_words(self, masked: Masked) -> None:
        me = masked.sender
        if me not in self._dealers or me in self._in.receipts:
            raise IntegrityError(f"member {me} sent a vector twice or without having dealt")
        if self.policy.active and self._roster is not None:
            text = bind.receipt_text(bind.dealers_hash(self._cohort, self._dealers), me)
            if not self._check(self._roster.keys[me], masked.receipt, text):
                raise IntegrityError(f"member {me} did not sign for whom it masked with")
        expected = self._known_layout().words(self.policy)
        if masked.words.shape != (expected,):
            raise IntegrityError(
                f"member {me} sent {masked.words.shape} words, expected {expected}"
            )
        self._in.receipts[me] = masked.receipt
        if len(self._total):
            self._total += masked.words
        else:
            self._total = masked.words.astype(np.uint64, copy=True)

    def _known_layout(self) -> Layout:
        if self._layout is None:
            raise StageError("no client said what its vector holds")
        return self._layout

    def _close_masked(self) -> None:
        self._need("masked")
        self._survivors = tuple(sorted(self._in.receipts))
        self._abandon(len(self._survivors), self._needed(), "sent a masked vector")

    def survivors(self) -> dict[int, Survivors]:
        """Close trip 3 in active mode: the message of trip 4 by member.

        Raises:
            PeerError: Too few clients sent their masked vector.
        """
        self._close_masked()
        self._stage = "commit"
        told = {}
        for member in self._survivors:
            signers = tuple(peer for peer in self._around[member] if peer in self._in.receipts)
            receipts = tuple(self._in.receipts[peer] for peer in signers)
            told[member] = Survivors(self._session, self._survivors, signers, receipts)
        return told

    def _take_signature(self, commit: Commit) -> None:
        me = commit.sender
        if me not in self._survivors or me in self._in.signatures:
            raise IntegrityError(f"member {me} signed twice or is not among the survivors")
        text = bind.commit_text(bind.dealers_hash(self._cohort, self._dealers), self._survivors)
        if self._roster is not None and not self._check(
            self._roster.keys[me], commit.signature, text
        ):
            raise IntegrityError(f"member {me} did not sign for the survivors")
        self._in.signatures[me] = commit.signature

    def unmask_requests(self) -> dict[int, UnmaskRequest]:
        """Close the trip before the last: the last message by member.

        Raises:
            PeerError: Too few clients are left.
        """
        signers: tuple[int, ...] = ()
        asked = self._survivors
        if self.policy.active:
            self._need("commit")
            signers = asked = tuple(sorted(self._in.signatures))
            self._abandon(len(signers), self._needed(), "signed for the survivors")
            # More signatures than a quorum tell a client nothing more.
            signers = signers[: self._needed()]
        else:
            self._close_masked()
            asked = self._survivors
        self._stage = "reveal"
        request = UnmaskRequest(
            self._session,
            self._survivors,
            signers,
            tuple(self._in.signatures[signer] for signer in signers),
        )
        return dict.fromkeys(asked, request)

    def _take_reveal(self, reveal: Reveal) -> None:
        me = reveal.sender
        peers = tuple(peer for peer in self._around.get(me, ()) if peer in self._in.dealt)
        if me not in self._survivors or me in self._in.reveals:
            raise IntegrityError(f"member {me} revealed twice or is not among the survivors")
        if reveal.owners != (me, *peers) or len(reveal.shares) != len(reveal.owners):
            raise IntegrityError(f"member {me} revealed other shares than were asked for")
        alive = set(self._survivors)
        kept = {}
        for owner, share in zip(reveal.owners, reveal.shares, strict=True):
            kind = "self" if owner in alive else "pair"
            if owner == me:
                expected = self._in.own_commitments[me]
            else:
                pair = self._in.dealt[owner][me][1]
                expected = pair[:COMMITMENT_BYTES] if kind == "self" else pair[COMMITMENT_BYTES:]
            if bind.share_commitment(self._cohort, kind, owner, me, share) != expected:
                self.faults.append(
                    Fault(me, f"member {me} revealed a wrong share of member {owner}")
                )
                continue
            kept[owner] = share
        self._in.reveals[me] = kept

    def _secret(self, owner: int) -> bytes:
        holders = (owner, *self._around[owner])
        shares = {
            holder: self._in.reveals[holder][owner]
            for holder in holders
            if owner in self._in.reveals.get(holder, {})
        }
        if len(shares) < self._sharing.threshold:
            named = sorted({fault.member for fault in self.faults if fault.member})
            blame = f"; wrong answers came from members {named}" if named else ""
            raise PeerError(
                f"{len(shares)} right shares of member {owner}'s secret came back, "
                f"{self._sharing.threshold} are needed{blame}; the round is abandoned"
            )
        try:
            return combine(shares, self._sharing.threshold)
        except IntegrityError:
            # Each is what its holder was dealt: the commitments say so.
            raise IntegrityError(f"member {owner} dealt shares that are no shares") from None

    def _self_mask_key(self, owner: int) -> bytes:
        seed = self._secret(owner)
        if bind.self_commitment(seed, self._session, owner) != self._in.bundles[owner].commitment:
            raise IntegrityError(
                f"member {owner} dealt shares of another secret than it committed to"
            )
        return bind.self_mask_key(seed, self._cohort, owner)

    def _pair_mask_keys(self, gone: int, alive: set[int]) -> tuple[list[bytes], list[bytes]]:
        """Return the keys of what survivors added for a member that is gone, and subtracted."""
        seed = self._secret(gone)
        private = bind.mask_private_key(seed, self._session, gone)
        if private.public_key().public_bytes_raw() != self._in.bundles[gone].mask_key:
            raise IntegrityError(f"member {gone} dealt shares of another key than it advertised")
        added, subtracted = [], []
        for peer in self._around[gone]:
            if peer in alive:
                public = self._in.bundles[peer].mask_key
                key = bind.pair_mask_key(private, public, self._cohort, gone, peer)
                # The survivor added the mask if its id is the lower one.
                (added if peer < gone else subtracted).append(key)
        return added, subtracted

    def result(self) -> SecureSum:
        """Close the last trip and take the masks off the sum.

        Returns:
            The exact sum of the survivors' words.

        Raises:
            PeerError: Too few right shares came back.
            IntegrityError: A member dealt shares of a wrong secret; it is named.
        """
        self._need("reveal")
        self._stage = "done"
        alive = set(self._survivors)
        for owner in self._dealers:
            if owner in alive:
                masks = [self._self_mask_key(owner)], []
            else:
                masks = self._pair_mask_keys(owner, alive)
            self._total = add_keystreams(self._total, masks[1], masks[0])
        return SecureSum(self._total, self._survivors, self._known_layout(), tuple(self.faults))
