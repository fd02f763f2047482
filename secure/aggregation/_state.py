"""A client's memory between two trips: small, flat, and emptied as the session goes on."""

import json
from dataclasses import dataclass, replace
from typing import Any

from secure.aggregation._messages import from_fields, to_fields
from secure.flower._refusals import StageError

_MAX_RUNS = 1_000


@dataclass(frozen=True)
class ClientState:
    """All that a client keeps; a fresh process goes on from it.

    Attributes:
        stage: `idle`, `opened`, `advertised`, `shared`, `masked` or `committed`.
        spent: Last round by run and kind of session, as JSON.
        known_train: Layout of the last training vector, as JSON.
        known_evaluate: The same for evaluation.
        session: Hash of the open session.
        terms: Its terms, as JSON.
        channel_secret: X25519 private key behind the channels, until they are agreed on.
        mask_seed: Secret behind the pairwise masks.
        self_seed: Secret behind the own mask.
        layout: Hash of what the vector holds.
        question: Hash of what was asked.
        bundle: The signed bundle that was sent.
        cohort: Hash of all bundles.
        members: Ids of the cohort.
        neighbours: Ids of this member's neighbours.
        opening_keys: What their shares are decrypted with.
        mask_keys: Their mask keys.
        degree: Neighbours of each member.
        threshold: Shares that give a secret back.
        quorum: Members that must be in the sum.
        own_share: This member's share of its own self-mask seed.
        dealers: Members who dealt shares.
        peers: Neighbours among them.
        self_shares: Shares of the peers' self-mask seeds.
        mask_shares: Shares of the peers' mask seeds.
        survivors: Members that this client signed for.
    """

    stage: str = "idle"
    spent: str = ""
    known_train: str = ""
    known_evaluate: str = ""
    session: bytes = b""
    terms: str = ""
    channel_secret: bytes = b""
    mask_seed: bytes = b""
    self_seed: bytes = b""
    layout: bytes = b""
    question: bytes = b""
    bundle: bytes = b""
    cohort: bytes = b""
    members: tuple[int, ...] = ()
    neighbours: tuple[int, ...] = ()
    opening_keys: tuple[bytes, ...] = ()
    mask_keys: tuple[bytes, ...] = ()
    degree: int = 0
    threshold: int = 0
    quorum: int = 0
    own_share: bytes = b""
    dealers: tuple[int, ...] = ()
    peers: tuple[int, ...] = ()
    self_shares: tuple[bytes, ...] = ()
    mask_shares: tuple[bytes, ...] = ()
    survivors: tuple[int, ...] = ()

    def wiped(self) -> "ClientState":
        """Return a state that remembers only which rounds are spent, and names and shapes."""
        return ClientState(
            spent=self.spent, known_train=self.known_train, known_evaluate=self.known_evaluate
        )

    def opened(self, run: str, kind: str, number: int) -> "ClientState":
        """Return the state with a round spent.

        Raises:
            StageError: It was spent before.
        """
        try:
            runs = json.loads(self.spent or "{}")
            last = runs.get(run, {}).get(kind, 0)
            late = number <= last
        except (ValueError, AttributeError, TypeError):
            raise StageError("the count of spent rounds can't be read") from None
        if late:
            raise StageError(f"{kind} round {number} is spent: one session a round, in order")
        if run not in runs and len(runs) >= _MAX_RUNS:
            raise StageError(f"this client has taken part in {len(runs)} runs, all it remembers")
        runs.setdefault(run, {})[kind] = number
        return replace(self, spent=json.dumps(runs, sort_keys=True))

    def to_fields(self) -> dict[str, Any]:
        """Flatten into numbers, text, bytes and lists, to be stored on the client's machine."""
        return to_fields(self)

    @classmethod
    def from_fields(cls, flat: dict[str, Any]) -> "ClientState":
        """Rebuild what `to_fields` gave."""
        return from_fields(cls, flat)

    def __repr__(self) -> str:
        # A log or a traceback must not show what is in here.
        return f"ClientState(stage={self.stage!r})"
