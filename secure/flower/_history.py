"""What each session took and how it ended, for reports."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class TripRecord:
    """One trip of one session.

    Attributes:
        name: `advertise`, `share`, `mask`, `commit` or `unmask`. The first one carries the
            model down and holds the local training.
        sent: Messages that went out.
        answered: Answers that were accepted.
        download_bytes: Bytes of all messages together, server to clients.
        upload_bytes: Bytes of all answers together, clients to server.
        wall_s: Seconds that the server waited for the answers.
        server_s: Seconds that the server computed.
    """

    name: str
    sent: int
    answered: int
    download_bytes: int
    upload_bytes: int
    wall_s: float
    server_s: float


@dataclass(frozen=True)
class RoundRecord:
    """One session: the training or the evaluation of one round.

    Attributes:
        round: Round, from 1.
        kind: `train` or `evaluate`.
        asked: Clients that the session was opened with.
        summed: Clients in the sum; 0 if the round was abandoned.
        reason: Why it was abandoned, or "".
        trips: Trips that took place.
        refusals: Fixed code by node, of clients that answered with an error.
        faults: One line each: who sent something wrong, and what.
        weighting: `examples` or `uniform`: how the mean is weighted.
        clipped: Clients whose update was scaled down to the policy's bound.
        unusable: Clients in the sum whose update could not be used, and weighs nothing.
        partial: Metrics that some clients had no value in range for.
    """

    round: int
    kind: str
    asked: int
    summed: int
    reason: str
    trips: tuple[TripRecord, ...]
    refusals: dict[int, str] = field(default_factory=dict)
    faults: tuple[str, ...] = ()
    weighting: str = ""
    clipped: int = 0
    unusable: int = 0
    partial: tuple[str, ...] = ()

    @property
    def completed(self) -> bool:
        """Whether a sum came out."""
        return self.summed > 0

    @property
    def upload_bytes(self) -> int:
        """Bytes of all trips together, clients to server."""
        return sum(trip.upload_bytes for trip in self.trips)

    @property
    def download_bytes(self) -> int:
        """Bytes of all trips together, server to clients."""
        return sum(trip.download_bytes for trip in self.trips)
