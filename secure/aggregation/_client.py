"""The client's side of the protocol: a state machine that refuses whatever it was not promised."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from secure.aggregation import _binding as bind
from secure.aggregation._keys import (
    KEY_BYTES,
    Identity,
    Roster,
    Verify,
    check_public_key,
    seal,
    unseal,
    verify,
)
from secure.aggregation._messages import (
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
from secure.aggregation._policy import Policy
from secure.aggregation._shamir import SECRET_BYTES, random_secret, split
from secure.aggregation._state import ClientState
from secure.errors import IntegrityError, ParameterError, PolicyError
from secure.flower._refusals import StageError
from secure.flower._store import Spent
from secure.random import SecureRandom, add_keystreams

QUESTION_BYTES = 32


class Client:
    """One client of one run.

    Call, in this order, `open`, `advertise`, `share`, `mask`, in active mode `commit`, and
    `unmask`; between any two of them the client may be rebuilt from `state` and `words`. Every
    refusal wipes the session: what was refused once can't be tried again.

    Attributes:
        member: Id in the roster.
        state: What to store between two trips.
        words: The packed vector between `advertise` and `mask`, else None.

    Args:
        identity: The client's long-lived key.
        roster: Whom it trusts, itself included.
        policy: Floor below which it refuses; what it leaves open follows from the roster.
        run: Id of the run, as the client knows it.
        rng: Source of keys and shares.
        state: Where an earlier process stopped.
        words: The vector that it kept.
        check: Signature check; a simulation of many clients in one process may remember results.
        spent: The node's own record of rounds and stages, which outlives `state`; None leaves the
            count to `state`, and whoever can put an old `state` back can have a stage again.

    Guarantees:
        Those of `Policy`. Python can't overwrite freed memory: after the session the secrets are
        unreachable, not zeroed.
    """

    def __init__(
        self,
        identity: Identity,
        roster: Roster,
        policy: Policy,
        run: str,
        rng: SecureRandom,
        state: ClientState | None = None,
        words: NDArray[np.uint64] | None = None,
        check: Verify = verify,
        spent: Spent | None = None,
    ) -> None:
        self.member = roster.member_of(identity.public_key)
        self.state = state or ClientState()
        self.words = words
        self._identity = identity
        self._roster = roster
        self._policy = policy.for_roster(len(roster.keys))
        self._spent = spent
        self._run = run
        self._rng = rng
        self._check = check

    @contextmanager
    def _stage(self, stage: str, session: bytes) -> Iterator[ClientState]:
        """Run one trip: in turn, for this session, and with everything wiped if it fails."""
        try:
            if self.state.stage != stage:
                raise StageError(
                    f"this message needs the stage {stage!r}, the client is {self.state.stage!r}"
                )
            if session != self.state.session:
                raise StageError("this message belongs to another session")
            if self._spent is not None:
                self._spent.take(session, stage)
            yield self.state
        except BaseException:
            self.wipe()
            raise

    def wipe(self) -> None:
        """Forget the session, and keep which rounds are spent."""
        self.state = self.state.wiped()
        self.words = None

    def open(self, setup: Setup) -> None:
        """Check the terms before anything is computed, and spend the round.

        Raises:
            PolicyError: The server asks for less than this client's policy.
            StageError: The round was opened before, or belongs to another run.
        """
        self.wipe()
        self._policy.check(setup.terms)
        if setup.run != self._run:
            raise StageError(f"the server opens run {setup.run}, this client is in {self._run}")
        opened = self.state.opened(setup.run, setup.kind, setup.round)
        if self._spent is not None:
            self._spent.open(setup.run, setup.kind, setup.round, setup.session)
        self.state = replace(
            opened,
            stage="opened",
            session=setup.session,
            terms=json.dumps(setup.terms.to_fields()),
        )

    def _terms(self) -> Policy:
        return Policy.from_fields(json.loads(self.state.terms))

    def advertise(
        self, words: NDArray[np.uint64], layout: Layout, question: bytes = bytes(QUESTION_BYTES)
    ) -> Advert:
        """Keep the packed vector here, and send keys for the session.

        Args:
            words: What `encode` gave.
            layout: What it holds.
            question: Hash, 32 bytes, of what the server asked: this client is summed only with
                members that were asked the same. Zeros where a session has no question.

        Raises:
            ParameterError: The words are not of the layout's length, or the question is no hash.
            StageError: No session is open.
        """
        with self._stage("opened", self.state.session) as state:
            expected = layout.words(self._policy)
            if words.dtype != np.uint64 or words.shape != (expected,):
                raise ParameterError(
                    f"expected {expected} uint64 words, got {words.shape} of {words.dtype}"
                )
            if len(question) != QUESTION_BYTES:
                raise ParameterError(f"a question's hash has 32 bytes, got {len(question)}")
            channel_secret = self._rng.token(KEY_BYTES)
            channel = X25519PrivateKey.from_private_bytes(channel_secret).public_key()
            mask_seed, self_seed = random_secret(self._rng), random_secret(self._rng)
            bundle = Bundle.signed(
                self._identity,
                state.session,
                self.member,
                channel.public_bytes_raw(),
                bind.mask_public_key(mask_seed, state.session, self.member),
                bind.self_commitment(self_seed, state.session, self.member),
                layout.digest,
                question,
            ).to_bytes()
            self.words = words
            self.state = replace(
                state,
                stage="advertised",
                channel_secret=channel_secret,
                mask_seed=mask_seed,
                self_seed=self_seed,
                layout=layout.digest,
                question=question,
                bundle=bundle,
            )
            return Advert(state.session, bundle, layout.to_json())

    def _checked_bundles(self, cohort: Cohort) -> dict[int, Bundle]:
        bundles = [Bundle.from_bytes(data) for data in cohort.bundles]
        members = [bundle.member for bundle in bundles]
        bind.check_ascending(members, "the members of a cohort")
        if self.state.bundle not in cohort.bundles:
            raise IntegrityError("the cohort lacks this client's own keys as it sent them")
        for bundle in bundles:
            identity = self._roster.keys.get(bundle.member)
            if identity is None:
                raise IntegrityError(f"member {bundle.member} is not in this client's roster")
            if not self._check(identity, bundle.signature, bundle.signed_text(self.state.session)):
                raise IntegrityError(f"the keys of member {bundle.member} are not signed by it")
            if bundle.layout != self.state.layout:
                raise IntegrityError(
                    f"member {bundle.member} has the layout {bundle.layout.hex()[:16]}, "
                    f"expected {self.state.layout.hex()[:16]}"
                )
            if bundle.question != self.state.question:
                raise IntegrityError(
                    f"member {bundle.member} was sent another model or configuration than this "
                    "client"
                )
        keys = [key for bundle in bundles for key in (bundle.channel_key, bundle.mask_key)]
        if len(set(keys)) != len(keys):
            raise IntegrityError("two members of the cohort advertise the same key")
        return dict(zip(members, bundles, strict=True))

    def share(self, cohort: Cohort) -> Dealt:
        """Check everybody's keys, and deal shares of this session's secrets to the neighbours.

        Raises:
            PolicyError: The cohort is too small or too large.
            IntegrityError: A key is unsigned, swapped, repeated, of low order or from outside
                the roster; or a member's vector has another layout, or it was asked something
                else.
        """
        with self._stage("advertised", cohort.session) as state:
            # Size first: a server that floods pays for no signature checks here.
            sharing = self._terms().sharing(len(cohort.bundles))
            bundles = self._checked_bundles(cohort)
            everyone = bind.cohort_hash(state.session, cohort.bundles)
            members = tuple(bundles)
            around = bind.graph(everyone, members, sharing.neighbours)
            neighbours = around[self.member]
            points = (*neighbours, self.member)
            self_shares = split(state.self_seed, sharing.threshold, points, self._rng)
            mask_shares = split(state.mask_seed, sharing.threshold, points, self._rng)
            channel = X25519PrivateKey.from_private_bytes(state.channel_secret)
            ciphertexts, commitments, opening = [], [], []
            for peer in neighbours:
                check_public_key(bundles[peer].mask_key)
                pair = self_shares[peer], mask_shares[peer]
                bound = self._commitments(everyone, peer, *pair)
                key, opens = bind.channel_keys(
                    channel, bundles[peer].channel_key, everyone, self.member, peer
                )
                opening.append(opens)
                data = bind.channel_data(everyone, self.member, peer, bound)
                ciphertexts.append(seal(key, pair[0] + pair[1], data, self._rng))
                commitments.append(bound)
            own = self_shares[self.member]
            commitments.append(
                bind.share_commitment(everyone, "self", self.member, self.member, own)
            )
            self.state = replace(
                state,
                stage="shared",
                cohort=everyone,
                members=members,
                neighbours=neighbours,
                channel_secret=b"",
                opening_keys=tuple(opening),
                mask_keys=tuple(bundles[peer].mask_key for peer in neighbours),
                degree=sharing.neighbours,
                threshold=sharing.threshold,
                quorum=max(sharing.quorum, self._terms().fewest),
                own_share=own,
                bundle=b"",
            )
            return Dealt(
                state.session, self.member, neighbours, tuple(ciphertexts), tuple(commitments)
            )

    def _commitments(self, cohort: bytes, peer: int, own: bytes, pairwise: bytes) -> bytes:
        me = self.member
        return bind.share_commitment(cohort, "self", me, peer, own) + bind.share_commitment(
            cohort, "pair", me, peer, pairwise
        )

    def mask(self, inbox: Inbox) -> Masked:
        """Take the neighbours' shares in, mask the vector, and forget the secrets behind it.

        Raises:
            IntegrityError: The lists don't fit the cohort, or a share is not what its dealer
                committed to.
            PolicyError: Too few members or neighbours dealt shares.
        """
        with self._stage("shared", inbox.session) as state:
            peers = self._checked_dealers(inbox)
            opened = [
                self._unsealed(sender, ciphertext, commitments)
                for sender, ciphertext, commitments in zip(
                    inbox.senders, inbox.ciphertexts, inbox.commitments, strict=True
                )
            ]
            words = self._masked_words(peers)
            dealers = bind.dealers_hash(state.cohort, inbox.dealers)
            receipt = b""
            if self._terms().active:
                receipt = self._identity.sign(bind.receipt_text(dealers, self.member))
            self.words = None
            self.state = replace(
                state,
                stage="masked",
                mask_seed=b"",
                self_seed=b"",
                opening_keys=(),
                mask_keys=(),
                dealers=inbox.dealers,
                peers=peers,
                self_shares=tuple(pair[:SECRET_BYTES] for pair in opened),
                mask_shares=tuple(pair[SECRET_BYTES:] for pair in opened),
            )
            return Masked(state.session, self.member, receipt, words)

    def _checked_dealers(self, inbox: Inbox) -> tuple[int, ...]:
        state = self.state
        bind.check_ascending(inbox.dealers, "the dealers")
        if self.member not in inbox.dealers or not set(inbox.dealers) <= set(state.members):
            raise IntegrityError("the dealers lack this client or name one outside the cohort")
        if len(inbox.dealers) < state.quorum:
            raise PolicyError(
                f"{len(inbox.dealers)} members dealt shares, {state.quorum} are needed"
            )
        peers = tuple(peer for peer in state.neighbours if peer in set(inbox.dealers))
        if inbox.senders != peers:
            raise IntegrityError("the shares are not those of the neighbours that dealt")
        if not len(peers) == len(inbox.ciphertexts) == len(inbox.commitments):
            raise IntegrityError("the lists of an inbox have unequal lengths")
        if len(peers) + 1 < state.threshold:
            raise PolicyError(
                f"{len(peers) + 1} of the neighbourhood are left, {state.threshold} are needed"
            )
        return peers

    def _unsealed(self, sender: int, ciphertext: bytes, commitments: bytes) -> bytes:
        state = self.state
        key = state.opening_keys[state.neighbours.index(sender)]
        data = bind.channel_data(state.cohort, sender, self.member, commitments)
        pair = unseal(key, ciphertext, data, sender)
        expected = b"".join(
            bind.share_commitment(state.cohort, kind, sender, self.member, share)
            for kind, share in (("self", pair[:SECRET_BYTES]), ("pair", pair[SECRET_BYTES:]))
        )
        if len(pair) != 2 * SECRET_BYTES or commitments != expected:
            raise IntegrityError(f"member {sender} dealt shares that it did not commit to")
        return pair

    def _masked_words(self, peers: tuple[int, ...]) -> NDArray[np.uint64]:
        state = self.state
        if self.words is None:
            raise StageError("the vector of this session is gone")
        added = [bind.self_mask_key(state.self_seed, state.cohort, self.member)]
        subtracted = []
        private = bind.mask_private_key(state.mask_seed, state.session, self.member)
        public_keys = dict(zip(state.neighbours, state.mask_keys, strict=True))
        for peer in peers:
            key = bind.pair_mask_key(private, public_keys[peer], state.cohort, self.member, peer)
            (added if self.member < peer else subtracted).append(key)
        return add_keystreams(self.words, added, subtracted)

    def _check_survivors(self, survivors: tuple[int, ...]) -> None:
        """Refuse a survivor set that is too small, inconsistent, or isolates a neighbour."""
        state = self.state
        bind.check_ascending(survivors, "the survivors")
        alive = set(survivors)
        if self.member not in alive or not alive <= set(state.dealers):
            raise IntegrityError("the survivors lack this client or name one that dealt no shares")
        if len(survivors) < state.quorum:
            raise PolicyError(f"{len(survivors)} members survive, {state.quorum} are needed")
        around = bind.graph(state.cohort, state.members, state.degree)
        for member in (self.member, *state.peers):
            if member in alive:
                left = 1 + sum(peer in alive for peer in around[member])
                if left < state.threshold:
                    raise PolicyError(
                        f"{left} of the neighbourhood of member {member} survive, "
                        f"{state.threshold} are needed"
                    )

    def commit(self, survivors: Survivors) -> Commit:
        """Sign the one survivor set that this client will help to unmask (active mode).

        Raises:
            IntegrityError: The set is malformed, or a neighbour's receipt shows that it masked
                with other members than this client did.
            PolicyError: Too few survive.
        """
        with self._stage("masked", survivors.session) as state:
            if not self._terms().active:
                raise StageError("a semi-honest session has no commit trip")
            self._check_survivors(survivors.members)
            alive = set(survivors.members)
            expected = tuple(peer for peer in state.peers if peer in alive)
            if survivors.signers != expected or len(survivors.receipts) != len(expected):
                raise IntegrityError("the receipts are not those of the surviving neighbours")
            dealers = bind.dealers_hash(state.cohort, state.dealers)
            for peer, receipt in zip(expected, survivors.receipts, strict=True):
                if not self._check(
                    self._roster.keys[peer], receipt, bind.receipt_text(dealers, peer)
                ):
                    raise IntegrityError(
                        f"member {peer} has not signed for the same set of dealers"
                    )
            self.state = replace(state, stage="committed", survivors=survivors.members)
            text = bind.commit_text(dealers, survivors.members)
            return Commit(state.session, self.member, self._identity.sign(text))

    def _check_quorum(self, request: UnmaskRequest) -> None:
        state = self.state
        if request.members != state.survivors:
            raise IntegrityError("the survivors are not those that this client signed for")
        bind.check_ascending(request.signers, "the signers")
        if not set(request.signers) <= set(request.members):
            raise IntegrityError("a signer is not among the survivors")
        if not state.quorum <= len(request.signers) == len(request.signatures):
            raise PolicyError(
                f"{len(request.signers)} members signed for the survivors, "
                f"{state.quorum} are needed"
            )
        dealers = bind.dealers_hash(state.cohort, state.dealers)
        text = bind.commit_text(dealers, request.members)
        for signer, signature in zip(request.signers, request.signatures, strict=True):
            if not self._check(self._roster.keys[signer], signature, text):
                raise IntegrityError(f"member {signer} has not signed for this survivor set")

    def unmask(self, request: UnmaskRequest) -> Reveal:
        """Give exactly one kind of share for each neighbour, then forget everything.

        Raises:
            IntegrityError: The survivor set differs from the one signed, or a signature is bad.
            PolicyError: Too few survive, or too few signed.
            StageError: Shares were given away in this session already.
        """
        active = self.state.stage == "committed"
        with self._stage("committed" if active else "masked", request.session) as state:
            if active:
                self._check_quorum(request)
            elif self._terms().active:
                raise StageError("an active session commits to its survivors before it unmasks")
            else:
                self._check_survivors(request.members)
                if request.signers or request.signatures:
                    raise IntegrityError("a semi-honest session carries no signatures")
            alive = set(request.members)
            shares = [
                own if peer in alive else pairwise
                for peer, own, pairwise in zip(
                    state.peers, state.self_shares, state.mask_shares, strict=True
                )
            ]
            reveal = Reveal(
                state.session,
                self.member,
                (self.member, *state.peers),
                (state.own_share, *shares),
            )
            self.wipe()
            return reveal
